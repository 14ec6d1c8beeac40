//! One call of the runtime, from its start to its end.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use base::Failure;
use base::task::Scope;
use rustix::process::{Pid, Signal};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Error;
use crate::io::{self, Io, Terminal, WindowSize};

/// Between attempts to kill a container that may not have started yet.
const RETRY: Duration = Duration::from_millis(5);

/// How often a process that is there is looked at for a terminal to resize.
const TRIES: u32 = 200;

/// After this the runtime itself is killed.
const PATIENCE: Duration = Duration::from_millis(1500);

/// For output that is still on its way when the process is gone after a cancellation.
const LAST_WORDS: Duration = Duration::from_millis(200);

pub(crate) struct Run<'a> {
    pub command: Command,
    pub program: &'a Path,
    /// Where the runtime writes the pid of the process it started.
    pub pid_file: PathBuf,
}

/// A runtime that has ended by itself.
pub(crate) struct Ended {
    pub status: ExitStatus,
    /// The process in the container was started.
    pub started: bool,
}

impl Run<'_> {
    /// Starts the runtime, moves input and output, passes signals on and waits for the end.
    /// On cancellation the process is killed first.
    pub(crate) async fn drive(self, tty: bool, io: Io, scope: &Scope) -> Result<Ended, Failure> {
        let Io { stdin, stdout, stderr, resize, signals, started } = io;
        let mut wiring = io::wire(tty, stdin, stdout, stderr)?;
        let mut child = {
            let mut command = tokio::process::Command::from(self.command);
            command.stdin(wiring.stdin).stdout(wiring.stdout).stderr(wiring.stderr).kill_on_drop(true);
            // The command holds our copies of the other ends: it must go.
            command.spawn().map_err(Error::file("start", self.program))?
        };
        if let Some(started) = started {
            _ = started.send(());
        }
        let outputs = wiring.pump.start_output(scope);
        let input = wiring.pump.start_input(scope);
        let mut watch = Watch { resize, signals, terminal: wiring.pump.terminal.take() };
        let result = watch.wait(&mut child, &self.pid_file, scope).await;
        if let Some(input) = input {
            input.abort();
        }
        drop(watch);
        finish(outputs, scope).await;
        let status = result?;
        let started = tokio::fs::try_exists(&self.pid_file).await.unwrap_or(false);
        scope.check()?;
        Ok(Ended { status, started })
    }
}

/// Waits for output to have been read; after a cancellation not for long.
async fn finish(outputs: Vec<JoinHandle<()>>, scope: &Scope) {
    for mut output in outputs {
        tokio::select! {
            _ = &mut output => {}
            () = async { scope.cancelled().await; tokio::time::sleep(LAST_WORDS).await } => output.abort(),
        }
    }
}

/// What may happen while a process runs.
struct Watch {
    resize: Option<mpsc::Receiver<WindowSize>>,
    signals: Option<mpsc::Receiver<i32>>,
    terminal: Option<Terminal>,
}

impl Watch {
    async fn wait(
        &mut self,
        child: &mut Child,
        pid_file: &Path,
        scope: &Scope,
    ) -> Result<ExitStatus, Failure> {
        let runtime = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        let mut deadline: Option<Instant> = None;
        // Asked for by a signal or by cancellation, and not yet done.
        let mut kill = false;
        // A size the process may not know yet, and how often it was told.
        let mut wanted: Option<(WindowSize, u32)> = None;
        loop {
            tokio::select! {
                status = child.wait() => {
                    return status.map_err(|e| Error::file("wait for", "runtime")(e).into());
                }
                _ = scope.cancelled(), if deadline.is_none() => {
                    kill = true;
                    deadline = Some(Instant::now() + PATIENCE);
                }
                () = tokio::time::sleep(RETRY), if kill => {
                    kill = !kill_process(pid_file, runtime).await;
                }
                () = sleep_until(deadline) => {
                    tracing::warn!(pid = runtime, "runtime does not end, killing it");
                    _ = child.start_kill();
                    deadline = Some(Instant::now() + PATIENCE);
                }
                signal = next(&mut self.signals) => match Signal::from_named_raw(signal) {
                    // The runtime cannot pass this one on.
                    Some(Signal::KILL) => kill = true,
                    Some(signal) => notify(runtime, signal),
                    None => tracing::debug!(signal, "unknown signal"),
                },
                size = next(&mut self.resize) => wanted = Some((size, 0)),
                () = tokio::time::sleep(RETRY), if wanted.is_some() => {
                    if let (Some(terminal), Some((size, tries))) = (&self.terminal, wanted.take()) {
                        let process = process(pid_file, runtime).await;
                        if !terminal.resize(size, process.as_ref()) && tries < TRIES {
                            wanted = Some((size, tries + u32::from(process.is_some())));
                        }
                        // The runtime may have a copy of the size.
                        if process.is_some() {
                            notify(runtime, Signal::WINCH);
                        }
                    }
                }
            }
        }
    }
}

/// Kills the process whose pid the runtime wrote, once it has. With it ends every
/// process of its pid namespace.
async fn kill_process(pid_file: &Path, runtime: i32) -> bool {
    process(pid_file, runtime).await.is_some_and(|process| process.signal(Signal::KILL).is_ok())
}

/// The process whose pid the runtime wrote, once it has.
async fn process(pid_file: &Path, runtime: i32) -> Option<sys::process::Process> {
    let text = tokio::fs::read_to_string(pid_file).await.ok()?;
    sys::process::Process::child_of(text.trim().parse().ok()?, runtime)
}

fn notify(runtime: i32, signal: Signal) {
    // Not reaped yet: its number is still its own.
    if let Some(pid) = Pid::from_raw(runtime)
        && let Err(e) = rustix::process::kill_process(pid, signal)
    {
        tracing::debug!(error = %e, "signal runtime");
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The next message; never, when there are no more.
async fn next<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(r) = receiver
        && let Some(message) = r.recv().await
    {
        return message;
    }
    *receiver = None;
    std::future::pending().await
}
