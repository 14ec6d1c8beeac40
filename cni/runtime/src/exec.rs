//! Plugins that are programs: configuration in, answer out, and not for ever.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command as Program, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags};
use serde_json::Value;

use crate::error::{Code, Error, PluginError};
use crate::plugin::Call;
use crate::result::NetworkResult;

/// How long a plugin may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// What a plugin may say, in bytes.
const LIMIT: usize = 1 << 20;

/// Calls a plugin's program. For ADD its result.
pub(crate) fn call(
    program: &Path,
    kind: &str,
    call: &Call<'_>,
    timeout: Duration,
) -> Result<Option<NetworkResult>, Error> {
    let command = call.command.name();
    let answer = |message: String| Error::Answer { kind: kind.into(), command, message };
    let mut line = Program::new(program);
    line.env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &call.attachment.container_id)
        .env("CNI_NETNS", call.attachment.netns.as_deref().unwrap_or(Path::new("")))
        .env("CNI_IFNAME", &call.attachment.ifname)
        .env("CNI_ARGS", call.attachment.args_text())
        .env("CNI_PATH", std::env::join_paths(call.path).unwrap_or_default());
    let config = call.config.to_string();
    let output = run(line, config.as_bytes(), timeout)
        .map_err(Error::file("run", program))?
        .ok_or(Error::Timeout { kind: kind.into(), command, seconds: timeout.as_secs() })?;
    let Output { success, stdout, stderr } = output;
    let parsed: Option<Value> = serde_json::from_slice(&stdout).ok();
    // Some print an error and forget to fail.
    let forgot = parsed.as_ref().is_some_and(|v| v.get("code").is_some() && v.get("msg").is_some());
    if !success || forgot {
        let source = match parsed.map(serde_json::from_value::<PluginError>) {
            Some(Ok(error)) => error,
            _ => {
                let said = [stdout.as_slice(), &stderr].map(|s| String::from_utf8_lossy(s).trim().to_owned());
                PluginError::new(Code::Other, said.join(" ").trim())
            }
        };
        return Err(Error::Plugin { kind: kind.into(), command, source });
    }
    if !stderr.is_empty() {
        tracing::debug!(kind, command, said = %String::from_utf8_lossy(&stderr).trim(), "CNI plugin");
    }
    if call.command != crate::Command::Add {
        return Ok(None);
    }
    let value = parsed.ok_or_else(|| answer("its answer is not JSON".into()))?;
    NetworkResult::read(value).map(Some).map_err(|e| answer(e.to_string()))
}

struct Output {
    success: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs a program to its end. `None` when it took too long and was killed. Children it
/// leaves behind with its output open are not waited for.
fn run(mut program: Program, input: &[u8], timeout: Duration) -> std::io::Result<Option<Output>> {
    let deadline = Instant::now() + timeout;
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::Other)?;
    let mut streams = Streams {
        stdin: child.stdin.take(),
        stdout: child.stdout.take(),
        stderr: child.stderr.take(),
        input,
        out: Vec::new(),
        err: Vec::new(),
    };
    let moved = streams.move_all(pid, deadline);
    if !matches!(moved, Ok(true)) {
        _ = child.kill();
    }
    let status = child.wait()?;
    Ok(moved?.then_some(Output { success: status.success(), stdout: streams.out, stderr: streams.err }))
}

struct Streams<'a> {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    input: &'a [u8],
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Streams<'_> {
    /// Moves bytes until the program has ended. `false` when it has not in time.
    fn move_all(&mut self, pid: Pid, deadline: Instant) -> std::io::Result<bool> {
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        if let Some(stdin) = &self.stdin {
            nonblocking(stdin)?;
        }
        if let Some(stdout) = &self.stdout {
            nonblocking(stdout)?;
        }
        if let Some(stderr) = &self.stderr {
            nonblocking(stderr)?;
        }
        loop {
            let ended = {
                let mut fds = vec![PollFd::new(&handle, PollFlags::IN)];
                fds.extend(self.stdin.as_ref().map(|s| PollFd::new(s, PollFlags::OUT)));
                fds.extend(self.stdout.as_ref().map(|s| PollFd::new(s, PollFlags::IN)));
                fds.extend(self.stderr.as_ref().map(|s| PollFd::new(s, PollFlags::IN)));
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(false);
                }
                let left = Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: left.subsec_nanos().into(),
                };
                match poll(&mut fds, Some(&left)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
                fds.first().is_some_and(|fd| !fd.revents().is_empty())
            };
            write_some(&mut self.stdin, &mut self.input);
            read_some(&mut self.stdout, &mut self.out)?;
            read_some(&mut self.stderr, &mut self.err)?;
            if ended {
                return Ok(true);
            }
        }
    }
}

fn nonblocking(fd: impl AsFd) -> std::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}

/// Writes what fits; closes the stream at the end or when nobody reads on.
fn write_some(stream: &mut Option<ChildStdin>, input: &mut &[u8]) {
    let Some(to) = stream else { return };
    loop {
        match to.write(input) {
            _ if input.is_empty() => break,
            Ok(n) => *input = input.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    *stream = None;
}

/// Reads what is there; closes the stream at its end.
fn read_some(stream: &mut Option<impl Read>, into: &mut Vec<u8>) -> std::io::Result<()> {
    let Some(from) = stream else { return Ok(()) };
    let mut buffer = [0; 8192];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if into.len() + n > LIMIT => {
                return Err(std::io::Error::other("plugin says more than can be useful"));
            }
            Ok(n) => into.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    *stream = None;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: &[u8], timeout: u64) -> std::io::Result<Option<Output>> {
        let mut program = Program::new("/bin/sh");
        program.args(["-c", script]);
        run(program, input, Duration::from_millis(timeout))
    }

    #[test]
    fn large_input_and_both_outputs() {
        let input = vec![b'x'; 300_000];
        let output = sh("wc -c; echo err >&2; exit 3", &input, 20_000).unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "300000");
        assert_eq!((output.stderr.as_slice(), output.success), (&b"err\n"[..], false));
    }

    #[test]
    fn does_not_wait_for_ever() {
        assert!(sh("sleep 60", b"", 50).unwrap().is_none());
        // A child that keeps the output open is not waited for.
        assert!(sh("sleep 60 & echo done", b"", 20_000).unwrap().unwrap().success);
        assert!(sh("yes", b"", 20_000).is_err());
    }
}
