//! `local`: caches in directories of the client.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Descriptor, Digest, Failure};
use bytes::Bytes;
use futures_util::stream;
use refs::BlobSource;
use session::{Caller, Sessions};
use tokio_util::io::StreamReader;

use crate::collect::Had;
use crate::content::Target;
use crate::imported::Place;
use crate::options::{Attrs, text};
use crate::{Deps, Error};

/// A client's session appears within this time or not at all.
const WAIT: Duration = Duration::from_secs(5);

fn store_id(path: &str) -> String {
    format!("local:{path}")
}

async fn caller(sessions: &Sessions, session: &str) -> Result<Caller, Failure> {
    if session.is_empty() {
        return Err(Error::attribute("local cache exporter/importer requires session").into());
    }
    Ok(sessions.get(session, WAIT).await?)
}

/// Where a cache is written to.
#[derive(Debug, Clone)]
pub(crate) struct Dest(String);

impl Dest {
    /// # Errors
    /// When it is not said.
    pub(crate) fn new(attrs: &Attrs) -> Result<Self, Error> {
        let dest = text(attrs, "dest");
        Ok(Self(dest.ok_or_else(|| Error::attribute("local cache exporter requires dest"))?.to_owned()))
    }

    pub(crate) async fn target(&self, deps: &Deps, session: &str) -> Result<Directory, Failure> {
        Ok(Directory { caller: caller(&deps.sessions, session).await?, store: store_id(&self.0) })
    }
}

/// A client's directory that takes a cache.
pub(crate) struct Directory {
    caller: Caller,
    store: String,
}

#[async_trait]
impl Target for Directory {
    async fn layer(&self, _: &Descriptor, had: &Had) -> Result<(), Failure> {
        let pin = had.blob.fetch().await?;
        export::copy_blob(&self.caller, &self.store, &pin).await
    }

    async fn config(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), Failure> {
        let digest = &descriptor.digest;
        let begun = self.caller.write_blob(&self.store, digest.as_str(), digest, descriptor.size).await?;
        let Some(mut writer) = begun else { return Ok(()) };
        let from = usize::try_from(writer.offset()).unwrap_or(usize::MAX).min(bytes.len());
        writer.write(bytes.slice(from..)).await?;
        Ok(writer.commit().await?)
    }

    async fn manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), Failure> {
        self.config(descriptor, bytes).await
    }
}

/// Looks for a cache.
///
/// # Errors
/// When it is not said which, or it is not there.
pub(crate) async fn find(attrs: &Attrs, deps: &Deps, session: &str) -> Result<(Place, Descriptor), Failure> {
    let digest = text(attrs, "digest")
        .ok_or_else(|| Error::attribute("local cache importer requires explicit digest"))?;
    let src = text(attrs, "src").ok_or_else(|| Error::attribute("local cache importer requires src"))?;
    let digest: Digest = digest.parse().map_err(|e| Error::attribute(format!("{e}")))?;
    let store = store_id(src);
    let found = caller(&deps.sessions, session).await?.blob_info(&store, &digest).await?;
    let source = Arc::new(Blobs { sessions: deps.sessions.clone(), session: session.to_owned(), store });
    // What it is the client does not say.
    Ok((Place { source, fleeting: true, origin: None }, Descriptor::new("", digest, found.size)))
}

/// Blobs in a client's directory.
struct Blobs {
    sessions: Sessions,
    session: String,
    store: String,
}

#[async_trait]
impl BlobSource for Blobs {
    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<refs::Bytes, Failure> {
        let caller = caller(&self.sessions, &self.session).await?;
        let reader = caller.read_blob(&self.store, &descriptor.digest, offset, 0).await?;
        let chunks = stream::try_unfold(reader, |mut reader| async move {
            let next = reader.next().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(next.map(|bytes| (bytes, reader)))
        });
        Ok(Box::pin(StreamReader::new(Box::pin(chunks))))
    }
}
