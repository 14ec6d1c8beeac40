//! Programs: those that run and end, and those that serve until stopped.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a client may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `ready` gives something.
///
/// # Errors
/// When it has not within `patience`.
pub fn wait_for<T>(what: &str, patience: Duration, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("{what}: not within {patience:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What a program that ended has said.
#[must_use = "look at its output or call `ok`"]
pub struct Run {
    /// As it was started.
    pub command: String,
    /// `None` when it was killed for taking too long.
    pub status: Option<ExitStatus>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Run {
    /// It must have succeeded; gives its standard output.
    ///
    /// # Errors
    /// With everything it said, when it has not.
    pub fn ok(self) -> Result<String> {
        if !self.status.is_some_and(|s| s.success()) {
            bail!("{self}");
        }
        Ok(self.stdout)
    }

    /// It must have succeeded; gives both its outputs.
    ///
    /// # Errors
    /// With everything it said, when it has not.
    pub fn said(self) -> Result<String> {
        let all = format!("{}{}", self.stdout, self.stderr);
        self.ok()?;
        Ok(all)
    }

    /// It must have failed by itself, saying all of `parts`.
    ///
    /// # Errors
    /// With everything it said, when it succeeded, hung, crashed or said something else.
    pub fn fails_with(self, parts: &[&str]) -> Result<()> {
        match self.status.map(|s| s.code()) {
            Some(Some(code)) if code != 0 && code != 101 => {}
            _ => bail!("should have failed: {self}"),
        }
        for part in parts {
            if !self.stderr.contains(part) && !self.stdout.contains(part) {
                bail!("should have said {part:?}: {self}");
            }
        }
        Ok(())
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status.map_or_else(|| "killed, it took too long".to_owned(), |s| s.to_string());
        write!(f, "{}\n{status}\n--- stdout\n{}\n--- stderr\n{}", self.command, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end, with `input` on its standard input.
///
/// # Errors
/// When it cannot be started.
pub fn run_with(mut command: Command, input: &[u8]) -> Result<Run> {
    let text = shown(&command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn().with_context(|| format!("start {text}"))?);
    let (stdin, stdout, stderr) = (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take());
    thread::scope(|scope| {
        let out = scope.spawn(|| text_of(stdout));
        let err = scope.spawn(|| text_of(stderr));
        scope.spawn(move || {
            // A program may end without having read everything.
            if let Some(mut stdin) = stdin {
                _ = stdin.write_all(input);
            }
        });
        let status = wait_for(&text, PATIENCE, || child.0.try_wait().ok().flatten()).ok();
        if status.is_none() {
            _ = child.0.kill();
        }
        let (stdout, stderr) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        Ok(Run { command: text, status, stdout, stderr })
    })
}

/// Runs `command` to its end.
///
/// # Errors
/// When it cannot be started.
pub fn run(command: Command) -> Result<Run> {
    run_with(command, &[])
}

fn text_of(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A child that does not outlive its guard.
pub struct Reaped(pub Child);

impl Reaped {
    /// Sends a signal. One that has ended already does not mind.
    pub fn signal(&self, signal: Signal) {
        _ = kill_process(Pid::from_child(&self.0), signal);
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A program that serves until it is stopped; its output goes to a file.
pub struct Service {
    name: String,
    child: Reaped,
    log: PathBuf,
}

impl Service {
    /// Starts `program`. It is terminated when this process ends, at the latest.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        args: impl IntoIterator<Item = A>,
        env: &[(&str, OsString)],
        log: PathBuf,
    ) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log).context("open log")?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM"])
            .arg(program)
            .args(args)
            .envs(env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("log")?)
            .stderr(file);
        let child = spawn_for_good(command).with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child: Reaped(child), log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Waits until `ready` gives something, as long as the program runs.
    ///
    /// # Errors
    /// When it ended or took longer than `patience`.
    pub fn wait_until<T>(&mut self, patience: Duration, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        let child = &mut self.child.0;
        let found = wait_for(&self.name, patience, || match ready() {
            Some(value) => Some(Ok(value)),
            None => child.try_wait().ok().flatten().map(Err),
        });
        match found {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => bail!("{} ended with {status}:\n{}", self.name, self.log()),
            Err(e) => Err(e.context(self.log())),
        }
    }

    /// Ends it politely.
    ///
    /// # Errors
    /// When it had to be killed, or had ended by itself or badly.
    pub fn stop(&mut self, patience: Duration) -> Result<()> {
        if let Ok(Some(status)) = self.child.0.try_wait() {
            bail!("{} had ended with {status}:\n{}", self.name, tail(&self.log()));
        }
        self.child.signal(Signal::TERM);
        let child = &mut self.child.0;
        let ended = wait_for("end", patience, || child.try_wait().ok().flatten());
        match ended {
            // Being told to end is reported as an error by some.
            Ok(status) if matches!(status.code(), Some(0 | 1)) => Ok(()),
            Ok(status) => bail!("{} ended with {status}:\n{}", self.name, tail(&self.log())),
            Err(_) => {
                self.kill();
                bail!("{} did not end within {patience:?}:\n{}", self.name, tail(&self.log()))
            }
        }
    }

    /// Ends it as a power failure would.
    pub fn kill(&mut self) {
        _ = self.child.0.kill();
        _ = self.child.0.wait();
    }
}

/// Spawns from a thread that lives as long as this process: the kernel tells a
/// child that its parent has gone when the *thread* that made it ends.
fn spawn_for_good(command: Command) -> std::io::Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, taken) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in taken {
                _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, child) = mpsc::channel();
    _ = spawner.send((command, answer));
    child.recv().unwrap_or_else(|_| Err(std::io::Error::other("the spawning thread is gone")))
}

/// The last lines of a log.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.signal(Signal::TERM);
        let child = &mut self.child.0;
        _ = wait_for("end", Duration::from_secs(10), || child.try_wait().ok().flatten());
    }
}
