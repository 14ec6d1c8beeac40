//! The client's SSH agent, as a socket on this machine.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base::task::Scope;
use base::{Failure, id};
use proto::moby::sshforward::v1 as wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client;
use crate::{Caller, Error, metadata};

const DEFAULT_ID: &str = "default";
const CHUNK: usize = 32 << 10;

/// Who may use the socket.
#[derive(Debug, Clone)]
pub struct SocketOptions {
    /// The agent's id; empty is `default`.
    pub id: String,
    /// The socket's owner.
    pub uid: u32,
    /// The socket's group.
    pub gid: u32,
    /// The socket's permissions.
    pub mode: u32,
}

/// A socket that leads to the client's agent, until it is dropped.
pub struct Forwarded {
    directory: PathBuf,
    socket: PathBuf,
    scope: Scope,
}

impl Forwarded {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.scope.cancel(Failure::canceled("ssh socket closed"));
        _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Caller {
    /// Whether the client has the agent `id`.
    ///
    /// # Errors
    /// When it has not, or serves none.
    pub async fn check_agent(&self, id: &str) -> Result<(), Error> {
        let mut client = client!(wire::ssh_client::SshClient, self);
        let request = wire::CheckAgentRequest { id: id.to_owned() };
        self.run(async { Ok(client.check_agent(request).await?) }).await.map(drop)
    }

    /// Makes a socket below `parent` that leads to the client's agent.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn forward_agent(&self, parent: &Path, options: SocketOptions) -> Result<Forwarded, Error> {
        let directory = parent.join(format!(".buildkit-ssh-sock{}", id::fresh()));
        let socket = directory.join("ssh_auth_sock");
        let scope = self.scope().child();
        let forwarded =
            Forwarded { directory: directory.clone(), socket: socket.clone(), scope: scope.clone() };
        let at = socket.clone();
        let listener = base::task::blocking(move || {
            let io = |verb, path: &Path, e| Failure::from(Error::io(verb, path.display().to_string(), e));
            std::fs::create_dir_all(&directory).map_err(|e| io("create", &directory, e))?;
            set_mode(&directory, 0o711).map_err(|e| io("chmod", &directory, e))?;
            let listener =
                std::os::unix::net::UnixListener::bind(&at).map_err(|e| io("listen on", &at, e))?;
            listener.set_nonblocking(true).map_err(|e| io("listen on", &at, e))?;
            std::os::unix::fs::chown(&at, Some(options.uid), Some(options.gid))
                .map_err(|e| io("chown", &at, e))?;
            set_mode(&at, options.mode & 0o7777).map_err(|e| io("chmod", &at, e))?;
            Ok(listener)
        })
        .await?;
        let listener = UnixListener::from_std(listener)
            .map_err(|e| Error::io("listen on", socket.display().to_string(), e))?;
        let id = if options.id.is_empty() { DEFAULT_ID.to_owned() } else { options.id };
        let caller = self.clone();
        scope.clone().spawn(async move {
            loop {
                let connection = tokio::select! {
                    _ = scope.cancelled() => break,
                    accepted = listener.accept() => match accepted {
                        Ok((connection, _)) => connection,
                        Err(e) => {
                            tracing::debug!(error = %e, "ssh socket ends");
                            break;
                        }
                    },
                };
                let (caller, id, inner) = (caller.clone(), id.clone(), scope.clone());
                scope.spawn(async move {
                    let relay = async { caller.relay_agent(&id, connection).await.map_err(Failure::from) };
                    if let Err(error) = inner.run(relay).await {
                        tracing::debug!(%error, "ssh connection ends");
                    }
                });
            }
        });
        Ok(forwarded)
    }

    /// Copies between one connection and the client's agent, each way to its end.
    async fn relay_agent(&self, id: &str, connection: UnixStream) -> Result<(), Error> {
        let mut client = client!(wire::ssh_client::SshClient, self);
        let (tx, rx) = mpsc::channel(4);
        let mut request = tonic::Request::new(ReceiverStream::new(rx));
        metadata::append(request.metadata_mut(), metadata::SSH_ID, id)?;
        let (mut reader, mut writer) = connection.into_split();
        let up = async move {
            let mut buffer = vec![0; CHUNK];
            loop {
                let n = reader.read(&mut buffer).await.map_err(|e| Error::io("read", "ssh socket", e))?;
                let data = bytes::Bytes::copy_from_slice(&buffer[..n]);
                if n == 0 || tx.send(wire::BytesMessage { data }).await.is_err() {
                    return Ok(());
                }
            }
        };
        let down = async {
            let mut stream = client.forward_agent(request).await?.into_inner();
            while let Some(message) = stream.message().await? {
                writer.write_all(&message.data).await.map_err(|e| Error::io("write", "ssh socket", e))?;
            }
            writer.shutdown().await.map_err(|e| Error::io("write", "ssh socket", e))
        };
        self.run(async { tokio::try_join!(up, down).map(drop) }).await
    }
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
