//! Files in and out.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use base::Kind;
use base::progress::VertexSink;
use bytes::Bytes;
use futures_util::{FutureExt, TryFutureExt, TryStreamExt};
use proto::fsutil::types::Packet;
use proto::moby::filesync::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;

use super::client;
use crate::fs::{self, Receive, Tree};
use crate::{Caller, Error, MAX_MESSAGE, metadata};

const SYNC: &str = "/moby.filesync.v1.FileSync/DiffCopy";
const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// Packets that may wait for the line.
const QUEUE: usize = 64;
/// The most bytes of one message of a file.
const CHUNK: usize = 3 << 20;

/// Which directory of the client is wanted, and which part of it.
#[derive(Default)]
pub struct SyncDir {
    /// Its name, such as `context`.
    pub name: String,
    /// Only what matches one of these.
    pub include: Vec<String>,
    /// But not what matches these.
    pub exclude: Vec<String>,
    /// Paths, with all that the links in them lead to.
    pub follow_paths: Vec<String>,
    /// Where it goes, and how.
    pub receive: Receive,
    /// Where `transferring <name>:` is counted.
    pub progress: Option<VertexSink>,
}

/// To which of the client's export targets something goes.
#[derive(Debug, Clone, Default)]
pub struct Deliver {
    /// The exporter's number in the request.
    pub exporter: i64,
    /// What the exporter says of the result.
    pub metadata: BTreeMap<String, String>,
    /// There is one directory per platform; a client that is to delete what it
    /// is not sent asks for this.
    pub multi_platform: bool,
}

impl Deliver {
    fn write(&self, map: &mut MetadataMap) -> Result<(), Error> {
        for (key, value) in &self.metadata {
            let key = format!("{}{}", metadata::EXPORTER_PREFIX, key.to_ascii_lowercase());
            metadata::append(map, &key, value)?;
        }
        if self.multi_platform {
            metadata::append(map, metadata::EXPORTER_MULTI_PLATFORM, "1")?;
        }
        metadata::append(map, metadata::EXPORTER_ID, &self.exporter.to_string())
    }
}

/// The stream of a call's answers, for calls whose answer comes only when
/// something has been sent.
fn answers<T: Send + 'static>(
    call: impl Future<Output = Result<tonic::Response<tonic::Streaming<T>>, tonic::Status>> + Send,
) -> impl futures_util::Stream<Item = Result<T, tonic::Status>> + Send {
    call.map(|answer| answer.map(tonic::Response::into_inner)).try_flatten_stream()
}

impl Caller {
    /// Brings a directory on this machine into the state of one of the client's.
    ///
    /// # Errors
    /// When the client does not give it (`no access allowed to dir "x"`), goes
    /// away, or breaks the rules; when the disk fails. What was brought until
    /// then stays.
    pub async fn sync_dir(&self, sync: SyncDir) -> Result<(), Error> {
        if !self.supports(SYNC) {
            return Err(Error::NoLocalSources);
        }
        let SyncDir { name, include, exclude, follow_paths, mut receive, progress } = sync;
        let (tx, rx) = mpsc::channel(QUEUE);
        let mut request = tonic::Request::new(ReceiverStream::new(rx));
        let map = request.metadata_mut();
        metadata::put_list(map, metadata::INCLUDE, &include)?;
        metadata::put_list(map, metadata::EXCLUDE, &exclude)?;
        metadata::put_list(map, metadata::FOLLOW, &follow_paths)?;
        metadata::put_list(map, metadata::DIR_NAME, std::slice::from_ref(&name))?;
        if let Some(sink) = progress {
            let mut counter = sink.transfer(format!("transferring {name}:"));
            receive.progress =
                Some(Box::new(move |total| counter.set(i64::try_from(total).unwrap_or(i64::MAX))));
        }
        let mut client = client!(wire::file_sync_client::FileSyncClient, self);
        self.run(async { fs::receive(receive, tx, answers(client.diff_copy(request))).await }).await
    }

    /// Sends a tree to a directory of the client's. `progress` is called with
    /// the number of bytes just sent.
    ///
    /// # Errors
    /// When the client does not take it, goes away, or breaks the rules.
    pub async fn send_dir(
        &self,
        to: &Deliver,
        tree: Arc<dyn Tree>,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(), Error> {
        self.require(SEND)?;
        let (tx, rx) = mpsc::channel(QUEUE);
        let mut request = tonic::Request::new(ReceiverStream::new(rx));
        to.write(request.metadata_mut())?;
        // The schema has other messages here; towards a directory these travel.
        let mut client = tonic::client::Grpc::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let path = http::uri::PathAndQuery::from_static(SEND);
        self.run(async {
            client.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
            let mut answers = Box::pin(answers(client.streaming(request, path, codec)));
            fs::send(tree, tx, answers.as_mut(), progress).await?;
            // The client may still find something wrong.
            while answers.try_next().await?.is_some() {}
            Ok(())
        })
        .await
    }

    /// Begins to send a file to one of the client's export targets.
    ///
    /// # Errors
    /// When the client takes no files.
    pub fn send_stream(&self, to: &Deliver) -> Result<FileWriter, Error> {
        self.require(SEND)?;
        let (tx, rx) = mpsc::channel(4);
        let mut request = tonic::Request::new(ReceiverStream::new(rx));
        to.write(request.metadata_mut())?;
        let mut client = client!(wire::file_send_client::FileSendClient, self);
        let caller = self.clone();
        let answer = async move {
            let call = async {
                let mut answers = client.diff_copy(request).await?.into_inner();
                while answers.message().await?.is_some() {}
                Ok(())
            };
            caller.run(call).await.map_err(|e| match e {
                Error::Peer { failure } if failure.kind() == Kind::AlreadyExists => Error::Declined,
                e => e,
            })
        };
        Ok(FileWriter { chunks: Some(tx), answer: Box::pin(answer), ended: false })
    }
}

/// A file on its way to the client. Dropped before [`FileWriter::finish`], the
/// client is left with a part of it.
pub struct FileWriter {
    chunks: Option<mpsc::Sender<wire::BytesMessage>>,
    answer: Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>,
    ended: bool,
}

impl FileWriter {
    /// Sends `data`.
    ///
    /// # Errors
    /// [`Error::Declined`] when the client has the file already; others when
    /// the client fails or goes away.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), Error> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            let Self { chunks: Some(chunks), answer, ended } = self else {
                return Err(Error::Broken("file is finished".into()));
            };
            if *ended {
                return Err(Error::Broken("client closed the file".into()));
            }
            tokio::select! {
                biased;
                early = &mut *answer => {
                    *ended = true;
                    early?;
                    return Err(Error::Broken("client closed the file before its end".into()));
                }
                place = chunks.reserve() => match place {
                    Ok(place) => place.send(wire::BytesMessage { data: chunk }),
                    // The answer says why.
                    Err(_) => {
                        *ended = true;
                        answer.await?;
                        return Err(Error::Broken("client closed the file before its end".into()));
                    }
                },
            }
        }
        Ok(())
    }

    /// Ends the file and waits until the client has it.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub async fn finish(mut self) -> Result<(), Error> {
        self.chunks = None;
        if self.ended {
            return Err(Error::Broken("client closed the file before its end".into()));
        }
        self.answer.await
    }
}
