//! A content store the client serves: OCI layouts, local caches, exports.

use base::Digest;
use bytes::Bytes;
use proto::content as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client;
use crate::{Caller, Error, metadata};

/// The most bytes of one message of [`BlobWriter`].
const CHUNK: usize = 1 << 20;

/// What the store knows of a blob.
#[derive(Debug, Clone)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// A blob being read.
pub struct BlobReader {
    caller: Caller,
    stream: tonic::Streaming<wire::ReadContentResponse>,
    offset: i64,
}

/// A blob being written.
pub struct BlobWriter {
    caller: Caller,
    requests: mpsc::Sender<wire::WriteContentRequest>,
    answers: tonic::Streaming<wire::WriteContentResponse>,
    reference: String,
    offset: i64,
    total: i64,
    expected: Digest,
}

fn request<T>(store: &str, message: T) -> Result<tonic::Request<T>, Error> {
    let mut request = tonic::Request::new(message);
    metadata::append(request.metadata_mut(), metadata::STORE_ID, store)?;
    Ok(request)
}

impl Caller {
    /// Looks for a blob in the client's store `store`.
    ///
    /// # Errors
    /// When the store or the blob is not there.
    pub async fn blob_info(&self, store: &str, digest: &Digest) -> Result<BlobInfo, Error> {
        let mut client = client!(wire::content_client::ContentClient, self);
        let request = request(store, wire::InfoRequest { digest: digest.to_string() })?;
        let answer = self.run(async { Ok(client.info(request).await?.into_inner()) }).await?;
        let info = answer.info.unwrap_or_default();
        let size = u64::try_from(info.size)
            .map_err(|_| Error::Protocol(format!("blob {digest} has size {}", info.size)))?;
        Ok(BlobInfo { digest: digest.clone(), size })
    }

    /// Reads a blob from `offset` on. `length` 0 is to its end. The bytes are
    /// not verified here.
    ///
    /// # Errors
    /// When the store or the blob is not there.
    pub async fn read_blob(
        &self,
        store: &str,
        digest: &Digest,
        offset: u64,
        length: u64,
    ) -> Result<BlobReader, Error> {
        let mut client = client!(wire::content_client::ContentClient, self);
        let number =
            |n: u64| i64::try_from(n).map_err(|_| Error::Protocol(format!("offset {n} is too large")));
        let (offset, size) = (number(offset)?, number(length)?);
        let request = request(store, wire::ReadContentRequest { digest: digest.to_string(), offset, size })?;
        let stream = self.run(async { Ok(client.read(request).await?.into_inner()) }).await?;
        Ok(BlobReader { caller: self.clone(), stream, offset })
    }

    /// Begins to write a blob of `total` bytes into the client's store, or goes
    /// on where `reference` was left. `None` when the store has the blob.
    ///
    /// # Errors
    /// When the store is not there or does not take it.
    pub async fn write_blob(
        &self,
        store: &str,
        reference: &str,
        expected: &Digest,
        total: u64,
    ) -> Result<Option<BlobWriter>, Error> {
        let mut client = client!(wire::content_client::ContentClient, self);
        let (tx, rx) = mpsc::channel(4);
        let total =
            i64::try_from(total).map_err(|_| Error::Protocol(format!("size {total} is too large")))?;
        let stat = wire::WriteContentRequest {
            action: wire::WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            total,
            expected: expected.to_string(),
            ..Default::default()
        };
        _ = tx.send(stat).await;
        let request = request(store, ReceiverStream::new(rx))?;
        let begun = self
            .run(async {
                let mut answers = client.write(request).await?.into_inner();
                let first = answers.message().await?;
                Ok((answers, first))
            })
            .await;
        match super::auth::none_if(begun, &[base::Kind::AlreadyExists])? {
            None => Ok(None),
            Some((_, None)) => Err(Error::Broken("content store closed the stream".into())),
            Some((answers, Some(first))) => Ok(Some(BlobWriter {
                caller: self.clone(),
                requests: tx,
                answers,
                reference: reference.to_owned(),
                offset: first.offset.max(0),
                total,
                expected: expected.clone(),
            })),
        }
    }
}

impl BlobReader {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the client fails, goes away, or sends bytes of another place.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let Self { caller, stream, offset } = self;
        let Some(message) = caller.run(async { Ok(stream.message().await?) }).await? else { return Ok(None) };
        if message.offset != *offset {
            return Err(Error::Protocol(format!("content at offset {}, expected {offset}", message.offset)));
        }
        *offset = offset.saturating_add(i64::try_from(message.data.len()).unwrap_or(i64::MAX));
        Ok(Some(message.data))
    }
}

impl BlobWriter {
    /// How many bytes the store has already: writing goes on there.
    pub fn offset(&self) -> u64 {
        self.offset.unsigned_abs()
    }

    /// Appends `data`.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), Error> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            let len = i64::try_from(chunk.len()).unwrap_or(i64::MAX);
            let answer = self.exchange(wire::WriteAction::Write, chunk).await?;
            self.offset = self.offset.saturating_add(len);
            if answer.offset != self.offset {
                let text = format!("content store is at offset {}, expected {}", answer.offset, self.offset);
                return Err(Error::Protocol(text));
            }
        }
        Ok(())
    }

    /// Ends the blob; the store verifies size and digest.
    ///
    /// # Errors
    /// When they are not as promised.
    pub async fn commit(mut self) -> Result<(), Error> {
        let done = self.exchange(wire::WriteAction::Commit, Bytes::new()).await;
        super::auth::none_if(done, &[base::Kind::AlreadyExists]).map(drop)
    }

    async fn exchange(
        &mut self,
        action: wire::WriteAction,
        data: Bytes,
    ) -> Result<wire::WriteContentResponse, Error> {
        let commit = action == wire::WriteAction::Commit;
        let message = wire::WriteContentRequest {
            action: action.into(),
            r#ref: self.reference.clone(),
            total: if commit { self.total } else { 0 },
            expected: if commit { self.expected.to_string() } else { String::new() },
            offset: self.offset,
            data,
            ..Default::default()
        };
        let Self { caller, requests, answers, .. } = self;
        let answer = caller
            .run(async {
                // When the store has hung up, its answer says why.
                _ = requests.send(message).await;
                Ok(answers.message().await?)
            })
            .await?;
        answer.ok_or_else(|| Error::Broken("content store closed the stream".into()))
    }
}
