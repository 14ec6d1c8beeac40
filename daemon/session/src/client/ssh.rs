//! SSH agents.
//!
//! A build may list keys and have things signed with them; it may not change
//! the agent. So the agent's protocol is followed: a message is four bytes of
//! length, big-endian, and as many bytes, the first of which says what it is.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;

use base::task::Scope;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use proto::moby::sshforward::v1::ssh_server::Ssh;
use proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::metadata;

const DEFAULT_ID: &str = "default";
/// As much as agents themselves take.
const MAX_MESSAGE: u32 = 256 << 10;
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
/// `SSH_AGENT_FAILURE` as a whole message.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];

/// An agent to be lent to builds.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its socket.
    pub socket: PathBuf,
    /// Pass everything through: it need not be an agent at all.
    pub raw: bool,
}

pub(super) struct Service {
    pub(super) agents: HashMap<String, Agent>,
    pub(super) scope: Scope,
}

impl Service {
    fn agent(&self, id: &str) -> Result<&Agent, Status> {
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        self.agents.get(id).ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Ssh for Service {
    type ForwardAgentStream = Messages;

    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.agent(&request.into_inner().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Messages>, Status> {
        let agent = self.agent(metadata::first(request.metadata(), metadata::SSH_ID).unwrap_or_default())?;
        let socket = UnixStream::connect(&agent.socket).await.map_err(|e| {
            Status::unavailable(format!("failed to connect to {}: {e}", agent.socket.display()))
        })?;
        let (tx, rx) = mpsc::channel(4);
        let incoming = request.into_inner();
        let (raw, scope) = (agent.raw, self.scope.clone());
        self.scope.spawn(async move {
            let relay = async {
                if raw {
                    _ = relay(socket, incoming, tx).await;
                } else {
                    let (ours, theirs) = tokio::io::duplex(64 << 10);
                    _ = tokio::join!(relay(ours, incoming, tx), guard(theirs, socket));
                }
            };
            tokio::select! {
                _ = scope.cancelled() => {}
                () = relay => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(rx).map(Ok).boxed()))
    }
}

/// Copies each way to its end.
async fn relay(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    mut incoming: Streaming<BytesMessage>,
    outgoing: mpsc::Sender<BytesMessage>,
) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(socket);
    let down = async {
        while let Ok(Some(message)) = incoming.message().await {
            writer.write_all(&message.data).await?;
        }
        writer.shutdown().await
    };
    let up = async move {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let n = reader.read(&mut buffer).await?;
            let data = Bytes::copy_from_slice(&buffer[..n]);
            if n == 0 || outgoing.send(BytesMessage { data }).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::try_join!(down, up).map(drop)
}

/// Lets requests that change nothing through to the agent, one at a time.
async fn guard(mut client: DuplexStream, mut agent: UnixStream) -> std::io::Result<()> {
    loop {
        let Some(request) = message(&mut client).await? else { return Ok(()) };
        match request.get(4) {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => {
                agent.write_all(&request).await?;
                let Some(answer) = message(&mut agent).await? else { return Ok(()) };
                client.write_all(&answer).await?;
            }
            _ => client.write_all(&FAILURE).await?,
        }
    }
}

/// One message with its length; `None` at the end.
async fn message(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let len = match from.read_u32().await {
        Ok(len) => len,
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    if len == 0 || len > MAX_MESSAGE {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut message = len.to_be_bytes().to_vec();
    message.resize(4 + len as usize, 0);
    from.read_exact(&mut message[4..]).await?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_cannot_be_changed() {
        let (mut ours, theirs) = tokio::io::duplex(1 << 10);
        let (agent, mut real) = UnixStream::pair().unwrap();
        let guarded = tokio::spawn(guard(theirs, agent));
        // Remove all keys.
        ours.write_all(&[0, 0, 0, 1, 19]).await.unwrap();
        assert_eq!(message(&mut ours).await.unwrap().unwrap(), FAILURE);
        ours.write_all(&[0, 0, 0, 1, REQUEST_IDENTITIES]).await.unwrap();
        assert_eq!(message(&mut real).await.unwrap().unwrap(), [0, 0, 0, 1, REQUEST_IDENTITIES]);
        real.write_all(&[0, 0, 0, 2, 12, 7]).await.unwrap();
        assert_eq!(message(&mut ours).await.unwrap().unwrap(), [0, 0, 0, 2, 12, 7]);
        drop(ours);
        guarded.await.unwrap().unwrap();
    }
}
