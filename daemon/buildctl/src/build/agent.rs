//! An SSH agent for private keys that are named on the command line.
//!
//! Keys are read by OpenSSH's own programs, `ssh-agent` and `ssh-add`: they know every format a
//! key has ever had. The agent lives as long as the [`KeyAgent`], and only this user sees it.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base::{Failure, Kind, id};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// How long the agent may take to open its socket, and a key to be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often is looked for the socket.
const POLL: Duration = Duration::from_millis(5);
/// As much of a file as can be a key, in bytes.
const MAX_KEY: u64 = 100 << 10;

/// An agent that holds some keys and ends with this value.
#[derive(Debug)]
pub(crate) struct KeyAgent {
    dir: PathBuf,
    _agent: Child,
}

impl KeyAgent {
    /// Starts an agent and gives it the private keys in `files`.
    ///
    /// # Errors
    /// When OpenSSH is not there, or a file is no private key that can be read without a
    /// passphrase; the message names it.
    pub(crate) async fn start(files: &[PathBuf]) -> Result<Self, Failure> {
        let dir = std::env::temp_dir().join(format!("buildctl-ssh-{}", id::fresh()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|e| Failure::new(Kind::Unknown, format!("create {}: {e}", dir.display())))?;
        let socket = dir.join("agent");
        let agent = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let agent = match agent {
            Ok(agent) => Self { dir, _agent: agent },
            Err(e) => {
                _ = std::fs::remove_dir_all(&dir);
                let text = format!("start ssh-agent, which holds the keys of --ssh: {e}");
                return Err(Failure::new(Kind::FailedPrecondition, text)
                    .hinted("install OpenSSH's client, or pass the socket of an agent"));
            }
        };
        let filled = async {
            while tokio::net::UnixStream::connect(&socket).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
            for file in files {
                add(&socket, file).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, filled).await {
            Ok(outcome) => outcome.map(|()| agent),
            Err(_) => Err(Failure::new(Kind::DeadlineExceeded, "ssh-agent does not answer")),
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("agent")
    }
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Gives one key to the agent.
async fn add(socket: &Path, file: &Path) -> Result<(), Failure> {
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        Failure::invalid(format!("failed to {what} {}: {e}", file.display()))
    };
    let mut key = Vec::new();
    let opened = tokio::fs::File::open(file).await.map_err(|e| failed("open", &e))?;
    opened.take(MAX_KEY).read_to_end(&mut key).await.map_err(|e| failed("read", &e))?;
    // Through its input, so that the permissions of the file are not judged.
    let mut program = Command::new("ssh-add")
        .args(["-q", "-"])
        .env("SSH_AUTH_SOCK", socket)
        .env("SSH_ASKPASS_REQUIRE", "never")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Failure::new(Kind::FailedPrecondition, format!("start ssh-add: {e}")))?;
    if let Some(mut input) = program.stdin.take() {
        // When it does not read to the end it says why on its own.
        _ = input.write_all(&key).await;
    }
    let output = program.wait_with_output().await.map_err(|e| failed("parse", &e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed("parse", &said.trim().replace("(stdin)", "the key")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "no key").unwrap();
        let failure = KeyAgent::start(std::slice::from_ref(&file)).await.unwrap_err().to_string();
        assert!(failure.contains(&format!("failed to parse {}", file.display())), "{failure}");
        let failure = KeyAgent::start(&[dir.path().join("none")]).await.unwrap_err().to_string();
        assert!(failure.contains("failed to open"), "{failure}");
    }
}
