//! Content stores over directories: OCI layouts and local caches.
//!
//! A blob is `blobs/<algorithm>/<hex>`; one being written is a file below
//! `ingest/` until its size and digest are known to be right.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use base::digest::Hasher;
use base::task::Scope;
use base::{Digest, Failure, Kind, id};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use proto::content as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::refuse;
use crate::{Error, metadata};

/// The most bytes of one message.
const CHUNK: usize = 1 << 20;

pub(super) const METHODS: [&str; 9] = [
    "/containerd.services.content.v1.Content/Info",
    "/containerd.services.content.v1.Content/Read",
    "/containerd.services.content.v1.Content/Write",
    "/containerd.services.content.v1.Content/List",
    "/containerd.services.content.v1.Content/Update",
    "/containerd.services.content.v1.Content/Delete",
    "/containerd.services.content.v1.Content/Status",
    "/containerd.services.content.v1.Content/ListStatuses",
    "/containerd.services.content.v1.Content/Abort",
];

/// A directory of blobs.
#[derive(Debug, Clone)]
pub struct OciStore {
    root: PathBuf,
}

impl OciStore {
    /// The store in `root`; `create` makes the directory when it is not there.
    ///
    /// # Errors
    /// When it is no directory.
    pub fn open(root: &Path, create: bool) -> Result<Self, Error> {
        let fail = |e| Error::io("open", root.display().to_string(), e);
        if create {
            std::fs::create_dir_all(root).map_err(fail)?;
        }
        if !std::fs::metadata(root).map_err(fail)?.is_dir() {
            return Err(fail(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Where a blob is or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn size(&self, digest: &Digest) -> Result<u64, Error> {
        match std::fs::metadata(self.path(digest)) {
            Ok(meta) => Ok(meta.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(missing(digest)),
            Err(e) => Err(Error::io("stat", digest.to_string(), e)),
        }
    }

    fn list(&self) -> Result<Vec<(Digest, u64)>, Error> {
        let fail = |e| Error::io("read", self.root.display().to_string(), e);
        let mut out = Vec::new();
        let entries = match std::fs::read_dir(self.root.join("blobs/sha256")) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(out),
            Err(e) => return Err(fail(e)),
        };
        for entry in entries {
            let entry = entry.map_err(fail)?;
            let name = format!("sha256:{}", entry.file_name().to_string_lossy());
            if let Ok(digest) = name.parse() {
                out.push((digest, entry.metadata().map_err(fail)?.len()));
            }
        }
        out.sort();
        Ok(out)
    }
}

fn missing(digest: &Digest) -> Error {
    Failure::new(Kind::NotFound, format!("content {digest}: not found")).into()
}

pub(super) struct Service {
    stores: HashMap<String, Arc<OciStore>>,
    scope: Scope,
}

impl Service {
    pub(super) fn new(stores: HashMap<String, OciStore>, scope: Scope) -> Self {
        Self { stores: stores.into_iter().map(|(id, store)| (id, Arc::new(store))).collect(), scope }
    }

    fn choose(&self, map: &MetadataMap) -> Result<Arc<OciStore>, Status> {
        let id = metadata::first(map, metadata::STORE_ID).ok_or_else(|| {
            Status::invalid_argument(format!(
                "request lacks metadata {:?}: invalid argument",
                metadata::STORE_ID
            ))
        })?;
        self.stores
            .get(id)
            .cloned()
            .ok_or_else(|| Status::not_found(format!("unknown store {id}: not found")))
    }
}

fn parse(digest: &str) -> Result<Digest, Status> {
    digest.parse().map_err(|e: base::digest::ParseError| Status::invalid_argument(e.to_string()))
}

/// Runs blocking work for an answer.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Status> {
    base::task::blocking(move || Ok(work()?)).await.map_err(refuse)
}

fn info(digest: &Digest, size: u64) -> wire::Info {
    wire::Info {
        digest: digest.to_string(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        ..Default::default()
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl wire::content_server::Content for Service {
    type ReadStream = Answers<wire::ReadContentResponse>;
    type WriteStream = Answers<wire::WriteContentResponse>;
    type ListStream = Answers<wire::ListContentResponse>;

    async fn info(
        &self,
        request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        let store = self.choose(request.metadata())?;
        let digest = parse(&request.into_inner().digest)?;
        let found = blocking(move || Ok(info(&digest, store.size(&digest)?))).await?;
        Ok(Response::new(wire::InfoResponse { info: Some(found) }))
    }

    async fn read(
        &self,
        request: Request<wire::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let store = self.choose(request.metadata())?;
        let request = request.into_inner();
        let digest = parse(&request.digest)?;
        let (tx, rx) = mpsc::channel(4);
        let (mut file, mut offset, mut left) = blocking(move || {
            let size = store.size(&digest)?;
            let range = read_range(size, request.offset, request.size);
            let (offset, left) = range.ok_or_else(|| {
                let text = format!("offset {} is beyond the {size} bytes of {digest}", request.offset);
                Failure::new(Kind::OutOfRange, text)
            })?;
            let fail = |e| Error::io("read", digest.to_string(), e);
            let mut file = File::open(store.path(&digest)).map_err(fail)?;
            file.seek(SeekFrom::Start(offset)).map_err(fail)?;
            Ok((file, offset, left))
        })
        .await?;
        self.scope.spawn_blocking(move || {
            while left > 0 {
                let mut buffer = BytesMut::zeroed(CHUNK.min(usize::try_from(left).unwrap_or(CHUNK)));
                let answer = match file.read(&mut buffer) {
                    Ok(0) => Err(Status::data_loss("content is shorter than it was")),
                    Ok(n) => {
                        buffer.truncate(n);
                        Ok(wire::ReadContentResponse {
                            offset: i64::try_from(offset).unwrap_or(i64::MAX),
                            data: buffer.freeze(),
                        })
                    }
                    Err(e) => Err(refuse(Error::io("read", "content", e))),
                };
                let n = answer.as_ref().map_or(left, |a| a.data.len() as u64);
                (offset, left) = (offset + n, left - n);
                if tx.blocking_send(answer).is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(rx).boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let store = self.choose(request.metadata())?;
        let mut requests = request.into_inner();
        let (tx, rx) = mpsc::channel(4);
        self.scope.spawn(async move {
            let mut ingest = None;
            loop {
                let request = match requests.message().await {
                    Ok(Some(request)) => request,
                    _ => break,
                };
                let (at, store) = (ingest.take(), store.clone());
                let answer = match blocking(move || step(&store, at, request)).await {
                    Ok((next, answer)) => {
                        ingest = next;
                        Ok(answer)
                    }
                    Err(status) => Err(status),
                };
                let last = answer.is_err() || ingest.is_none();
                if tx.send(answer).await.is_err() || last {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(rx).boxed()))
    }

    async fn list(
        &self,
        request: Request<wire::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let store = self.choose(request.metadata())?;
        if !request.get_ref().filters.is_empty() {
            return Err(Status::unimplemented("filters are not supported"));
        }
        let found = blocking(move || store.list()).await?;
        let found: Vec<_> = found.iter().map(|(digest, size)| info(digest, *size)).collect();
        let pages: Vec<_> =
            found.chunks(100).map(|page| Ok(wire::ListContentResponse { info: page.to_vec() })).collect();
        Ok(Response::new(futures_util::stream::iter(pages).boxed()))
    }

    async fn update(
        &self,
        _: Request<wire::UpdateRequest>,
    ) -> Result<Response<wire::UpdateResponse>, Status> {
        Err(Status::failed_precondition(
            "update not supported on immutable content store: failed precondition",
        ))
    }

    async fn delete(&self, request: Request<wire::DeleteContentRequest>) -> Result<Response<()>, Status> {
        let store = self.choose(request.metadata())?;
        let digest = parse(&request.into_inner().digest)?;
        blocking(move || match std::fs::remove_file(store.path(&digest)) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(missing(&digest)),
            Err(e) => Err(Error::io("remove", digest.to_string(), e)),
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        // What is not committed is gone when its stream ends.
        Err(Status::not_found(format!("ref {:?}: not found", request.into_inner().r#ref)))
    }

    async fn list_statuses(
        &self,
        _: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        Ok(Response::new(wire::ListStatusesResponse::default()))
    }

    async fn abort(&self, request: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        Err(Status::not_found(format!("ref {:?}: not found", request.into_inner().r#ref)))
    }
}

/// Where to read, and how much. Size 0 is to the end.
fn read_range(total: u64, offset: i64, size: i64) -> Option<(u64, u64)> {
    let (offset, size) = (u64::try_from(offset).ok()?, u64::try_from(size).ok()?);
    let left = total.checked_sub(offset)?;
    Some((offset, if size == 0 { left } else { size.min(left) }))
}

/// A blob being written. Its file goes away with it.
struct Ingest {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    offset: u64,
}

impl Drop for Ingest {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.path);
    }
}

impl Ingest {
    fn begin(store: &OciStore) -> io::Result<Self> {
        let directory = store.root.join("ingest");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(id::fresh());
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(Self { path, file, hasher: Hasher::new(), offset: 0 })
    }

    fn write(&mut self, data: &Bytes) -> io::Result<()> {
        self.file.write_all(data)?;
        self.hasher.update(data);
        self.offset += data.len() as u64;
        Ok(())
    }
}

/// Answers one request of a write. Without an ingest the stream ends.
fn step(
    store: &OciStore,
    ingest: Option<Ingest>,
    request: wire::WriteContentRequest,
) -> Result<(Option<Ingest>, wire::WriteContentResponse), Error> {
    let fail = |e| Error::io("write", request.r#ref.clone(), e);
    let action = wire::WriteAction::try_from(request.action)
        .map_err(|_| Error::Protocol(format!("unknown write action {}", request.action)))?;
    let expected = match request.expected.as_str() {
        "" => None,
        text => Some(text.parse::<Digest>().map_err(|e| Error::Protocol(e.to_string()))?),
    };
    let exists = |digest: &Digest| {
        Error::from(Failure::new(Kind::AlreadyExists, format!("content {digest}: already exists")))
    };
    let mut ingest = match ingest {
        Some(ingest) => ingest,
        None => {
            if let Some(digest) = &expected
                && store.path(digest).exists()
            {
                return Err(exists(digest));
            }
            Ingest::begin(store).map_err(fail)?
        }
    };
    if action != wire::WriteAction::Stat {
        let at = u64::try_from(request.offset).unwrap_or(u64::MAX);
        if request.offset != 0 && at != ingest.offset {
            let text = format!("write at offset {at}, expected {}", ingest.offset);
            return Err(Failure::new(Kind::OutOfRange, text).into());
        }
        ingest.write(&request.data).map_err(fail)?;
    }
    let answer = wire::WriteContentResponse {
        action: action.into(),
        offset: i64::try_from(ingest.offset).unwrap_or(i64::MAX),
        total: request.total,
        ..Default::default()
    };
    if action != wire::WriteAction::Commit {
        return Ok((Some(ingest), answer));
    }
    let digest = std::mem::take(&mut ingest.hasher).finish();
    if request.total > 0 && request.total.unsigned_abs() != ingest.offset {
        let text = format!("unexpected commit size {}, expected {}", ingest.offset, request.total);
        return Err(Failure::new(Kind::FailedPrecondition, text).into());
    }
    if let Some(expected) = &expected
        && *expected != digest
    {
        let text = format!("unexpected commit digest {digest}, expected {expected}");
        return Err(Failure::new(Kind::FailedPrecondition, text).into());
    }
    let path = store.path(&digest);
    if path.exists() {
        return Err(exists(&digest));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    ingest.file.sync_all().map_err(fail)?;
    std::fs::rename(&ingest.path, &path).map_err(fail)?;
    Ok((None, wire::WriteContentResponse { digest: digest.to_string(), ..answer }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_with_the_blob() {
        assert_eq!(read_range(10, 0, 0), Some((0, 10)));
        assert_eq!(read_range(10, 4, 3), Some((4, 3)));
        assert_eq!(read_range(10, 4, 100), Some((4, 6)));
        assert_eq!(read_range(10, 10, 0), Some((10, 0)));
        assert_eq!(read_range(10, 11, 0), None);
        assert_eq!(read_range(10, -1, 0), None);
    }
}
