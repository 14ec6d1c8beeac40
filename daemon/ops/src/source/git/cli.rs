//! The `git` program, run so that nothing but its arguments decides what it does.
//!
//! No configuration of this machine, no hooks, no prompts, no protocols but those
//! that are meant. What it prints is shown to people without credentials. It runs
//! in a process group of its own, which ends with whoever wants it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base::progress::Stream;
use base::{Failure, Kind, Secret};
use rustix::process::{Pid, Signal, kill_process_group};
use session::Forwarded;
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::is_commit;
use crate::logs::StepLog;
use crate::source::redacted;
use crate::{Behalf, LogLimits};

/// More than any answer we read needs, in bytes.
const MAX_OUTPUT: usize = 64 << 20;
/// So much of what it complains about is kept, in bytes.
const MAX_COMPLAINT: usize = 64 << 10;
/// One command may take that long.
const LIMIT: Duration = Duration::from_secs(60 * 60);
/// How long it may take to go when it is asked to.
const GRACE: Duration = Duration::from_secs(5);
/// Its output ends soon after it has: a helper that lingers is not waited for.
const LINGER: Duration = Duration::from_secs(5);

/// Settings that no repository changes.
const SETTINGS: [&str; 14] = [
    "protocol.allow=never",
    "protocol.http.allow=always",
    "protocol.https.allow=always",
    "protocol.git.allow=always",
    "protocol.ssh.allow=always",
    // Only what we name ourselves: no submodule reads this machine's repositories.
    "protocol.file.allow=user",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "credential.helper=",
    "gc.autoDetach=false",
    "maintenance.autoDetach=false",
    "safe.directory=*",
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=300",
];
const PROXIES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];
/// The variable that carries a header past the list of processes.
const HEADER: &str = "BUILDKIT_GIT_HEADER";

/// What a remote wants to see before it answers.
#[derive(Default)]
pub(super) struct Access {
    /// The setting for the header, and the header.
    pub(super) header: Option<(String, Secret)>,
    pub(super) agent: Option<Forwarded>,
    pub(super) known_hosts: Option<NamedTempFile>,
}

/// The program, about to run somewhere. Clones differ in where.
#[derive(Clone)]
pub(super) struct Git<'a> {
    behalf: &'a Behalf,
    access: &'a Access,
    /// The remote as people must not see it, and as they may.
    shown: (String, String),
    directory: PathBuf,
    git_dir: Option<PathBuf>,
    work_tree: Option<PathBuf>,
}

impl<'a> Git<'a> {
    /// Outside of any repository, in `directory`.
    pub(super) fn new(behalf: &'a Behalf, access: &'a Access, remote: &str, directory: &Path) -> Self {
        let shown = (remote.to_owned(), redacted(remote));
        Self { behalf, access, shown, directory: directory.to_owned(), git_dir: None, work_tree: None }
    }

    /// In the repository at `path`.
    pub(super) fn at(&self, path: &Path) -> Self {
        Self { git_dir: Some(path.to_owned()), work_tree: None, ..self.clone() }
    }

    /// With files at `path`.
    pub(super) fn on(&self, path: &Path) -> Self {
        Self { work_tree: Some(path.to_owned()), directory: path.to_owned(), ..self.clone() }
    }

    /// Runs one command and gives what it printed.
    ///
    /// # Errors
    /// With what it complained about when it fails.
    pub(super) async fn run(&self, args: &[&str]) -> Result<Vec<u8>, Failure> {
        let mut args = args.to_vec();
        loop {
            // On the heap: this is run in many places, one within the other.
            let once = Box::pin(self.once(&args));
            let (ok, output, complaint) = match tokio::time::timeout(LIMIT, once).await {
                Ok(done) => done?,
                Err(_) => {
                    let text = format!("git {} took longer than {} s", first(&args), LIMIT.as_secs());
                    return Err(Failure::new(Kind::DeadlineExceeded, text));
                }
            };
            if ok {
                return Ok(output);
            }
            // Old servers know neither shallow fetches nor fetches of a commit.
            let says = |text: &str| complaint.contains(text);
            let before = args.len();
            if says("--depth") || says("shallow") {
                args.retain(|arg| *arg != "--depth=1");
            }
            if args.len() == before
                && (says("not our ref") || says("unadvertised object"))
                && first(&args) == "fetch"
                && args.last().is_some_and(|last| is_commit(last))
            {
                args.pop();
            }
            if args.len() == before {
                let text = format!("git {} failed: git stderr:\n{}", first(&args), complaint.trim_end());
                return Err(Failure::new(Kind::Unknown, text));
            }
        }
    }

    /// As [`Self::run`], for commands that print one line.
    pub(super) async fn line(&self, args: &[&str]) -> Result<String, Failure> {
        let output = self.run(args).await?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = std::process::Command::new("git");
        command.current_dir(&self.directory);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        if let Some(path) = &self.work_tree {
            command.arg("--work-tree").arg(path);
        }
        if let Some(path) = &self.git_dir {
            command.arg("--git-dir").arg(path);
        }
        let keep = |name: &str| Some((name.to_owned(), std::env::var_os(name)?));
        let inherited: Vec<_> = PROXIES.into_iter().chain(["PATH"]).filter_map(keep).collect();
        command.env_clear().envs(inherited).envs([
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("HOME", "/dev/null"),
            ("LC_ALL", "C"),
        ]);
        command.env("GIT_SSH_COMMAND", self.ssh_command()).env("GIT_CEILING_DIRECTORIES", &self.directory);
        if let Some(agent) = &self.access.agent {
            command.env("SSH_AUTH_SOCK", agent.path());
        }
        if let Some((setting, header)) = &self.access.header {
            command.arg(format!("--config-env={setting}={HEADER}")).env(HEADER, header.expose());
        }
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Files of a repository are everybody's to read and nobody's to write, as in the reference.
        sys::process::set_umask(&mut command, 0o022);
        let mut command = Command::from(command);
        command.process_group(0).kill_on_drop(true);
        command
    }

    fn ssh_command(&self) -> String {
        let hosts = match &self.access.known_hosts {
            // Our own name: nothing in it needs quotes.
            Some(file) => format!("UserKnownHostsFile={}", file.path().display()),
            None => "StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null".to_owned(),
        };
        format!("ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=60 -o ServerAliveInterval=30 -o {hosts}")
    }

    /// Whether it succeeded, what it printed, and what it complained about.
    async fn once(&self, args: &[&str]) -> Result<(bool, Vec<u8>, String), Failure> {
        let log = StepLog::new(self.behalf.progress.clone(), LogLimits::default());
        let spawned = self.command(args).spawn();
        let mut child = spawned.map_err(|e| {
            let failure = Failure::other(&e).context("run git");
            match e.kind() {
                std::io::ErrorKind::NotFound => failure.hinted("install git where the daemon runs"),
                _ => failure,
            }
        })?;
        let mut group = Group::of(&child);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let read = async {
            let output = self.read(out, &log, Stream::Stdout, MAX_OUTPUT, false);
            let complaint = self.read(err, &log, Stream::Stderr, MAX_COMPLAINT, true);
            let (output, complaint) = tokio::try_join!(output, complaint)?;
            Ok::<_, Failure>((output, self.scrub(&complaint)))
        };
        tokio::pin!(read);
        let mut printed = None;
        let status = loop {
            tokio::select! {
                biased;
                cause = self.behalf.scope.cancelled() => {
                    group.signal(Signal::TERM);
                    if tokio::time::timeout(GRACE, child.wait()).await.is_ok() {
                        group.leader = None;
                    }
                    return Err(cause);
                }
                done = &mut read, if printed.is_none() => printed = Some(done?),
                status = child.wait() => break status.map_err(|e| Failure::other(&e).context("wait for git"))?,
            }
        };
        group.leader = None;
        let (output, complaint) = match printed {
            Some(printed) => printed,
            None => tokio::time::timeout(LINGER, read).await.map_err(|_| {
                Failure::internal(format!("git {} left a process behind that holds its output", first(args)))
            })??,
        };
        let complaint = match status.success() {
            true => complaint,
            false => format!("{complaint}{status}"),
        };
        Ok((status.success(), output, complaint))
    }

    /// Reads to the end, shows it, and keeps up to `limit` bytes: the last ones, or an error.
    async fn read(
        &self,
        from: Option<impl AsyncRead + Unpin>,
        log: &StepLog,
        stream: Stream,
        limit: usize,
        tail: bool,
    ) -> Result<Vec<u8>, Failure> {
        let mut kept = Vec::new();
        let Some(mut from) = from else { return Ok(kept) };
        let mut buffer = vec![0; 16 << 10];
        loop {
            let n = from.read(&mut buffer).await.map_err(|e| Failure::other(&e).context("read from git"))?;
            if n == 0 {
                return Ok(kept);
            }
            let piece = buffer.get(..n).unwrap_or_default();
            log.write(stream, self.scrub(piece).as_bytes());
            kept.extend_from_slice(piece);
            if kept.len() > limit {
                if !tail {
                    return Err(Failure::new(
                        Kind::ResourceExhausted,
                        format!("git printed more than {limit} bytes"),
                    ));
                }
                kept.drain(..kept.len() - limit);
            }
        }
    }

    /// Text without the credentials of the remote.
    fn scrub(&self, text: &[u8]) -> String {
        let text = String::from_utf8_lossy(text);
        let (secret, shown) = &self.shown;
        if secret == shown { text.into_owned() } else { text.replace(secret.as_str(), shown) }
    }
}

fn first<'a>(args: &[&'a str]) -> &'a str {
    args.iter().find(|arg| !arg.starts_with('-') && !arg.contains('=')).copied().unwrap_or_default()
}

/// A process and its helpers, which end when this is dropped.
struct Group {
    /// Until it was waited for: its number is its own that long.
    leader: Option<Pid>,
}

impl Group {
    fn of(child: &Child) -> Self {
        Self { leader: child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) }
    }

    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            // It may have gone by itself.
            _ = kill_process_group(leader, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
