//! `containerd.services.content.v1.Content`: blobs, for reading.

use std::io::{Read as _, Seek as _, SeekFrom};

use base::filter::Filters;
use base::{Digest, Failure};
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use proto::content as wire;
use store::{BlobInfo, Store};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::status;
use build::timestamp;

/// Bytes per message.
const CHUNK: usize = 1 << 20;
/// Blobs per message of a list.
const LISTED: usize = 100;

/// Serves the blobs of the store.
pub(crate) struct Content {
    store: Store,
}

impl Content {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    fn find(&self, digest: &str) -> Result<BlobInfo, Failure> {
        let digest: Digest =
            digest.parse().map_err(|e: base::digest::ParseError| Failure::invalid(e.to_string()))?;
        let info = self.store.blobs().info(&digest)?;
        info.ok_or_else(|| Failure::new(base::Kind::NotFound, format!("content {digest}: not found")))
    }
}

/// What filters can ask of a blob.
fn field(blob: &BlobInfo, path: &[&str]) -> Option<String> {
    match path {
        ["digest"] => Some(blob.digest.to_string()),
        ["size"] => Some(blob.size.to_string()),
        ["labels", name @ ..] => blob.labels.get(&name.join(".")).cloned(),
        _ => None,
    }
}

fn info(blob: BlobInfo) -> wire::Info {
    let time = Some(timestamp(blob.created));
    wire::Info {
        digest: blob.digest.to_string(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        created_at: time,
        // Blobs do not change; only labels may.
        updated_at: time,
        labels: blob.labels,
    }
}

fn read_only() -> Status {
    Status::unimplemented("read-only content store")
}

#[async_trait::async_trait]
impl wire::content_server::Content for Content {
    type ReadStream = BoxStream<'static, Result<wire::ReadContentResponse, Status>>;
    type WriteStream = BoxStream<'static, Result<wire::WriteContentResponse, Status>>;
    type ListStream = BoxStream<'static, Result<wire::ListContentResponse, Status>>;

    async fn info(
        &self,
        request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        let found = self.find(&request.into_inner().digest).map_err(status)?;
        Ok(Response::new(wire::InfoResponse { info: Some(info(found)) }))
    }

    async fn read(
        &self,
        request: Request<wire::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let found = self.find(&request.digest).map_err(status)?;
        let out_of_range =
            || Status::out_of_range(format!("offset {} is outside of the blob", request.offset));
        let offset = u64::try_from(request.offset).map_err(|_| out_of_range())?;
        let rest = found.size.checked_sub(offset).ok_or_else(out_of_range)?;
        let length = match u64::try_from(request.size) {
            Ok(size) if size > 0 => size.min(rest),
            _ => rest,
        };
        let mut file = self.store.blobs().open_blob(&found.digest).map_err(status)?;
        let (tx, rx) = mpsc::channel(4);
        // Ends with the file, or when the client has gone.
        tokio::task::spawn_blocking(move || {
            let mut send = || -> std::io::Result<()> {
                file.seek(SeekFrom::Start(offset))?;
                let (mut at, end) = (offset, offset + length);
                while at < end {
                    let mut chunk = vec![0; CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK))];
                    file.read_exact(&mut chunk)?;
                    let message =
                        wire::ReadContentResponse { offset: at.cast_signed(), data: Bytes::from(chunk) };
                    at += message.data.len() as u64;
                    if tx.blocking_send(Ok(message)).is_err() {
                        return Ok(());
                    }
                }
                Ok(())
            };
            if let Err(e) = send() {
                _ = tx.blocking_send(Err(Status::data_loss(format!("read {}: {e}", found.digest))));
            }
        });
        Ok(Response::new(ReceiverStream::new(rx).boxed()))
    }

    async fn list(
        &self,
        request: Request<wire::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let blobs = self.store.blobs().clone();
        let all = base::task::blocking(move || Ok(blobs.list()?)).await.map_err(status)?;
        let found: Vec<_> =
            all.into_iter().filter(|blob| filters.matches(|path| field(blob, path))).map(info).collect();
        // As many in one message as other stores put there.
        let messages = found.chunks(LISTED).map(|some| Ok(wire::ListContentResponse { info: some.to_vec() }));
        Ok(Response::new(futures_util::stream::iter(messages.collect::<Vec<_>>()).boxed()))
    }

    async fn write(
        &self,
        _: Request<tonic::Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        Err(read_only())
    }

    async fn update(
        &self,
        _: Request<wire::UpdateRequest>,
    ) -> Result<Response<wire::UpdateResponse>, Status> {
        Err(read_only())
    }

    async fn delete(&self, _: Request<wire::DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(read_only())
    }

    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        Err(Status::not_found("nothing is being written"))
    }

    async fn list_statuses(
        &self,
        _: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        Ok(Response::new(wire::ListStatusesResponse::default()))
    }

    async fn abort(&self, _: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        Err(read_only())
    }
}
