//! OCI layouts that a client serves: a store of blobs at the other end of its session.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Descriptor, Digest, Failure, Kind};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use refs::BlobSource;
use session::{Caller, Sessions};
use tokio_util::io::StreamReader;

use super::Attrs;
use super::file::Pieces;
use crate::Error;

/// How long a named session may take to appear.
const PATIENCE: Duration = Duration::from_secs(5);

/// A layout: a store of one session, or of any of a build's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    session: String,
    store: String,
}

impl Layout {
    /// The store that attributes name, in the session that they may name.
    pub(crate) fn parse(attrs: &Attrs<'_>) -> Result<Self, Error> {
        let text = |key| attrs.get(key).unwrap_or_default().to_owned();
        Ok(Self { session: text(llb::attr::OCI_SESSION), store: text(llb::attr::OCI_STORE) })
    }

    /// The store `store` of whichever session has it.
    pub(crate) fn of_any(store: &str) -> Self {
        Self { session: String::new(), store: store.to_owned() }
    }

    pub(crate) fn store(&self) -> &str {
        &self.store
    }

    /// The store's name on the wire.
    fn wire(&self) -> String {
        format!("oci:{}", self.store)
    }

    async fn ask<T, F>(
        &self,
        sessions: &Sessions,
        ids: &[String],
        mut ask: impl FnMut(Caller) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if self.session.is_empty() {
            return sessions.any(ids, ask).await;
        }
        ask(sessions.get(&self.session, PATIENCE).await?).await
    }

    /// The size of a blob, as the client says.
    pub(crate) async fn size(
        &self,
        sessions: &Sessions,
        ids: &[String],
        digest: &Digest,
    ) -> Result<u64, Failure> {
        let store = &self.wire();
        let info =
            self.ask(sessions, ids, |caller| async move { Ok(caller.blob_info(store, digest).await?) });
        Ok(info.await?.size)
    }

    /// The bytes of a blob from `offset` on, not verified.
    pub(crate) async fn open(
        &self,
        sessions: &Sessions,
        ids: &[String],
        digest: &Digest,
        offset: u64,
    ) -> Result<Pieces, Failure> {
        let store = &self.wire();
        let reader = self
            .ask(sessions, ids, |caller| async move { Ok(caller.read_blob(store, digest, offset, 0).await?) })
            .await?;
        let pieces = stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|piece| (piece, reader)))
        });
        Ok(pieces.boxed())
    }

    /// A blob as a whole, verified.
    ///
    /// # Errors
    /// Also when it is larger than `limit` bytes.
    pub(crate) async fn fetch(
        &self,
        sessions: &Sessions,
        ids: &[String],
        digest: &Digest,
        limit: u64,
    ) -> Result<Bytes, Failure> {
        let mut pieces = self.open(sessions, ids, digest, 0).await?;
        let mut body = BytesMut::new();
        while let Some(piece) = pieces.next().await.transpose()? {
            body.extend_from_slice(&piece);
            if body.len() as u64 > limit {
                let text = format!("content {digest} is larger than {limit} bytes");
                return Err(Failure::new(Kind::FailedPrecondition, text));
            }
        }
        let actual = Digest::of(&body);
        if actual != *digest {
            return Err(Failure::new(Kind::DataLoss, format!("content {digest} has the digest {actual}")));
        }
        Ok(body.freeze())
    }
}

/// Where the layers of an image in a layout come from.
pub(crate) struct LayoutBlobs {
    pub(crate) layout: Layout,
    pub(crate) sessions: Sessions,
    pub(crate) ids: Vec<String>,
}

#[async_trait]
impl BlobSource for LayoutBlobs {
    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<refs::Bytes, Failure> {
        let pieces = self.layout.open(&self.sessions, &self.ids, &descriptor.digest, offset).await?;
        Ok(Box::pin(StreamReader::new(pieces.map_err(|e| io::Error::other(e.to_string())))))
    }
}

impl LayoutBlobs {
    pub(crate) fn shared(layout: Layout, sessions: Sessions, ids: Vec<String>) -> Arc<dyn BlobSource> {
        Arc::new(Self { layout, sessions, ids })
    }
}
