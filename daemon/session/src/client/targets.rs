//! Where exporters send their results: directories and files.
//!
//! One method serves both, with messages of two types: `Packet`s towards a
//! directory, `BytesMessage`s towards a file. Which it is only the request's
//! metadata tells, so messages are taken as bytes and decoded here.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base::task::Scope;
use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt};
use prost::Message;
use proto::fsutil::types::Packet;
use proto::moby::filesync::v1::BytesMessage;
use tokio::sync::mpsc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Request, Response, Status, Streaming};

use super::files::answer;
use super::refuse;
use crate::fs::{self, Differ, Receive};
use crate::{Error, MAX_MESSAGE, metadata};

/// Opens the file for a result with this metadata; `None` declines it.
pub type OpenFile =
    Box<dyn Fn(BTreeMap<String, String>) -> Result<Option<Box<dyn Write + Send>>, Error> + Send + Sync>;

/// Where a result goes.
pub enum Target {
    /// Into a directory. Everything there will belong to whoever runs this.
    Dir {
        /// The directory; made when it is not there.
        path: PathBuf,
        /// What is there and not in the result is deleted.
        delete: bool,
    },
    /// Into a file.
    File(OpenFile),
}

impl Target {
    /// Into the file `path`, made or emptied when the result comes.
    pub fn file(path: PathBuf) -> Self {
        Self::File(Box::new(move |_| {
            let file = std::fs::File::create(&path)
                .map_err(|e| Error::io("create", path.display().to_string(), e))?;
            Ok(Some(Box::new(file)))
        }))
    }
}

/// Passes messages through as they are.
#[derive(Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// `moby.filesync.v1.FileSend`.
#[derive(Clone)]
pub(super) struct FileSendService(Arc<Inner>);

struct Inner {
    targets: HashMap<i64, Target>,
    scope: Scope,
}

impl FileSendService {
    pub(super) fn new(targets: HashMap<i64, Target>, scope: Scope) -> Self {
        Self(Arc::new(Inner { targets, scope }))
    }
}

impl tonic::server::NamedService for FileSendService {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl tower::Service<http::Request<tonic::body::Body>> for FileSendService {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != "/moby.filesync.v1.FileSend/DiffCopy" {
                return Ok(Status::unimplemented("unknown method").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(RawCodec)
                .apply_max_message_size_config(Some(MAX_MESSAGE), Some(MAX_MESSAGE));
            Ok(grpc.streaming(DiffCopy(inner), request).await)
        })
    }
}

struct DiffCopy(Arc<Inner>);

type Raw = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl tonic::server::StreamingService<Bytes> for DiffCopy {
    type Response = Bytes;
    type ResponseStream = Raw;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Raw>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { inner.take(request).await.map(Response::new) })
    }
}

impl Inner {
    async fn take(&self, request: Request<Streaming<Bytes>>) -> Result<Raw, Status> {
        let map = request.metadata();
        let number = metadata::first(map, metadata::EXPORTER_ID).and_then(|v| v.parse().ok()).unwrap_or(0);
        match self.targets.get(&number) {
            None => Err(Status::unknown(format!("exporter {number} not found"))),
            Some(Target::Dir { path, delete }) => {
                let able = map.get_all(metadata::EXPORTER_MULTI_PLATFORM).iter().any(|v| v == "1");
                if *delete && !able {
                    return Err(Status::unknown(
                        "local exporter mode=delete requires a BuildKit daemon with multi-platform local export support",
                    ));
                }
                self.take_dir(path.clone(), *delete, request.into_inner()).await
            }
            Some(Target::File(open)) => {
                let writer = open(exporter_metadata(map)).map_err(refuse)?;
                let writer = writer.ok_or_else(|| Status::already_exists("target already exists"))?;
                take_file(writer, request.into_inner()).await?;
                Ok(futures_util::stream::empty().boxed())
            }
        }
    }

    async fn take_dir(&self, path: PathBuf, delete: bool, messages: Streaming<Bytes>) -> Result<Raw, Status> {
        fs::ensure_dir(&path).map_err(refuse)?;
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let receive = Receive {
            dest: path,
            merge: !delete,
            // What is to be the same is sent whole.
            differ: if delete { Differ::None } else { Differ::Metadata },
            map: Some(Arc::new(move |_, stat| {
                (stat.uid, stat.gid) = (uid, gid);
                true
            })),
            ..Receive::default()
        };
        let incoming = messages.map(|message| Packet::decode(message?).map_err(invalid));
        let (tx, rx) = mpsc::channel(64);
        let transfer = self.scope.spawn(async move { fs::receive(receive, tx, incoming).await });
        Ok(answer(rx, transfer).map(|packet| packet.map(|p| p.encode_to_vec().into())).boxed())
    }
}

fn invalid(error: prost::DecodeError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Writes on a thread of its own.
async fn take_file(mut writer: Box<dyn Write + Send>, mut messages: Streaming<Bytes>) -> Result<(), Status> {
    let (tx, mut rx) = mpsc::channel::<Bytes>(8);
    let writing = base::task::blocking(move || {
        let fail = |e| Error::io("write", "export target", e);
        while let Some(data) = rx.blocking_recv() {
            writer.write_all(&data).map_err(fail)?;
        }
        Ok(writer.flush().map_err(fail)?)
    });
    let reading = async move {
        while let Some(message) = messages.message().await? {
            let message = BytesMessage::decode(message).map_err(invalid)?;
            if tx.send(message.data).await.is_err() {
                // The writer says why.
                break;
            }
        }
        Ok::<_, Status>(())
    };
    let (read, written) = tokio::join!(reading, writing);
    written.map_err(refuse)?;
    read
}

fn exporter_metadata(map: &MetadataMap) -> BTreeMap<String, String> {
    let mut out = BTreeMap::<String, String>::new();
    for pair in map.iter() {
        let KeyAndValueRef::Ascii(key, value) = pair else { continue };
        let (Some(key), Ok(value)) = (key.as_str().strip_prefix(metadata::EXPORTER_PREFIX), value.to_str())
        else {
            continue;
        };
        match out.get_mut(key) {
            Some(old) => {
                old.push(',');
                old.push_str(value);
            }
            None => {
                out.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    out
}
