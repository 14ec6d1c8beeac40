//! Files the daemon may pull, each once.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use base::id;
use base::task::Scope;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use proto::moby::upload::v1::BytesMessage;
use proto::moby::upload::v1::upload_server::Upload;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::metadata;

/// The most bytes of one message.
const CHUNK: usize = 256 << 10;

type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// What may be pulled. Clones are the same collection.
#[derive(Clone, Default)]
pub struct Uploads(Arc<Mutex<HashMap<String, Reader>>>);

impl Uploads {
    /// Offers `reader` and gives the address for the build.
    pub fn add(&self, reader: impl AsyncRead + Send + Unpin + 'static) -> String {
        let id = id::fresh();
        self.0.lock().insert(id.clone(), Box::new(reader));
        format!("http://buildkit-session/{id}")
    }
}

pub(super) struct Service {
    pub(super) uploads: Uploads,
    pub(super) scope: Scope,
}

type Messages = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Upload for Service {
    type PullStream = Messages;

    async fn pull(&self, request: Request<Streaming<BytesMessage>>) -> Result<Response<Messages>, Status> {
        let path = metadata::first(request.metadata(), metadata::URL_PATH).unwrap_or_default();
        let id = path.rsplit('/').next().unwrap_or_default();
        let Some(mut reader) = self.uploads.0.lock().remove(id) else {
            return Err(Status::unknown(format!("no http response from session for {id}")));
        };
        let (tx, rx) = mpsc::channel(2);
        self.scope.spawn(async move {
            let mut buffer = vec![0; CHUNK];
            loop {
                let message = match reader.read(&mut buffer).await {
                    Ok(0) => break,
                    Ok(n) => Ok(BytesMessage { data: Bytes::copy_from_slice(&buffer[..n]) }),
                    Err(e) => Err(Status::unknown(format!("read upload: {e}"))),
                };
                let last = message.is_err();
                if tx.send(message).await.is_err() || last {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(rx).boxed()))
    }
}
