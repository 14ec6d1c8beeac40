//! Pushing an image: what it consists of first, what names it last.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::pin::Pin as StdPin;
use std::sync::Arc;

use async_trait::async_trait;
use base::descriptor::media;
use base::progress::VertexSink;
use base::{Descriptor, Failure};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use registry::{Access, MAX_MANIFEST, Reference, Registries, Repository};
use store::Store;
use tokio::io::{AsyncRead, AsyncSeekExt};

use crate::content::{Content, Fetch};
use crate::error::Error;
use crate::manifest::{Index, Manifest, is_nondistributable};

/// Blobs under way at once, for one image. How many really move is the
/// registry's limit.
const AT_ONCE: usize = 16;

/// The label on a blob that says which repositories of a registry have it.
const SOURCE_LABEL: &str = "containerd.io/distribution.source.";

/// What to push, and with what.
pub(crate) struct Push {
    pub(crate) registries: Registries,
    pub(crate) store: Store,
    pub(crate) access: Access,
    pub(crate) root: Descriptor,
    pub(crate) content: Arc<Content>,
    pub(crate) by_digest: bool,
    pub(crate) progress: VertexSink,
}

/// What an image consists of, in the order in which it can be pushed.
#[derive(Default)]
struct Parts {
    blobs: Vec<Descriptor>,
    /// Those inside an index before the index.
    manifests: Vec<(Descriptor, Bytes)>,
}

/// Pushes the image under the name `target`.
///
/// # Errors
/// When it is no name, a blob cannot be had, or the registry does not take it.
pub(crate) async fn push(push: &Push, target: &str) -> Result<(), Failure> {
    let parsed: Reference = target.parse()?;
    if push.by_digest && !parsed.is_name_only() {
        return Err(Error::Tagged { name: parsed.to_string() }.into());
    }
    let (name, tag) = if push.by_digest {
        (parsed.name(), None)
    } else {
        let tagged = parsed.clone().tag_name_only();
        let tag = tagged.tag().map(str::to_owned);
        (tagged.with_digest(push.root.digest.clone()).to_string(), tag)
    };
    let repository = push.registries.repository(&parsed.trimmed(), &push.access).await?;

    let status = push.progress.counter("pushing layers", 0);
    let parts = parts(push).await?;
    let send = |blob: &Descriptor| Ok::<_, Error>((blob.clone(), push.content.get(&blob.digest)?));
    let blobs = parts.blobs.iter().map(send).collect::<Result<Vec<_>, _>>()?;
    let repository_of = &repository;
    let work: Vec<_> = blobs
        .into_iter()
        .map(|(blob, bytes)| async move { push_blob(&push.store, repository_of, &blob, bytes).await })
        .collect();
    stream::iter(work).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    status.finish();

    let status = push.progress.counter(format!("pushing manifest for {name}"), 0);
    for (descriptor, bytes) in parts.manifests {
        let tag = tag.as_deref().filter(|_| descriptor.digest == push.root.digest);
        repository.push_manifest(bytes, &descriptor.media_type, tag).await?;
    }
    status.finish();
    Ok(())
}

async fn parts(push: &Push) -> Result<Parts, Failure> {
    let mut parts = Parts::default();
    let mut seen = HashSet::new();
    let root = read(push, &push.root).await?;
    if media::is_index(&push.root.media_type) {
        let index: Index = parse(&root)?;
        for descriptor in index.manifests {
            if seen.insert(descriptor.digest.clone()) {
                let bytes = read(push, &descriptor).await?;
                add(&mut parts, &mut seen, &bytes)?;
                parts.manifests.push((descriptor, bytes));
            }
        }
    } else {
        add(&mut parts, &mut seen, &root)?;
    }
    parts.manifests.push((push.root.clone(), root));
    Ok(parts)
}

fn add(parts: &mut Parts, seen: &mut HashSet<base::Digest>, manifest: &[u8]) -> Result<(), Error> {
    let manifest: Manifest = parse(manifest)?;
    for blob in manifest.layers.into_iter().flatten().chain([manifest.config]) {
        if !is_nondistributable(&blob.media_type) && seen.insert(blob.digest.clone()) {
            parts.blobs.push(blob);
        }
    }
    Ok(())
}

async fn read(push: &Push, descriptor: &Descriptor) -> Result<Bytes, Failure> {
    let bytes = push.content.read(&push.store, &descriptor.digest, MAX_MANIFEST).await?;
    Ok(bytes.into())
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(Error::json("invalid manifest"))
}

/// The label on a blob that says which repositories of the registry `domain` have it.
pub fn source_label(domain: &str) -> String {
    format!("{SOURCE_LABEL}{domain}")
}

/// Makes a repository have the blob `blob`: from a neighbour that is known to
/// have it, by labels or annotations, or else with `bytes`.
///
/// # Errors
/// When the registry does not take it, or the bytes cannot be had.
pub async fn push_blob(
    store: &Store,
    repository: &Repository,
    blob: &Descriptor,
    bytes: Arc<dyn Fetch>,
) -> Result<(), Failure> {
    let reference = repository.reference();
    let label = source_label(reference.domain());
    let (blobs, digest) = (store.blobs().clone(), blob.digest.clone());
    let info = base::task::blocking(move || Ok(blobs.info(&digest)?)).await?;
    let noted = info.as_ref().and_then(|info| info.labels.get(&label)).cloned().unwrap_or_default();
    let mut neighbours: Vec<String> =
        noted.split(',').filter(|path| !path.is_empty()).map(str::to_owned).collect();
    neighbours.extend(blob.annotations.get(&label).iter().flat_map(|v| v.split(',')).map(str::to_owned));
    let known = neighbours.iter().any(|path| path == reference.path());
    neighbours.retain(|path| path != reference.path());

    let bytes = Lazy { bytes, store: store.clone() };
    repository.push_blob(blob, Arc::new(bytes), &neighbours, None).await?;

    if !known && info.is_some() {
        let mut paths: Vec<&str> = noted.split(',').filter(|path| !path.is_empty()).collect();
        paths.push(reference.path());
        paths.sort_unstable();
        let labels = BTreeMap::from([(label, paths.join(","))]);
        let (store, digest) = (store.clone(), blob.digest.clone());
        // Only a hint; the blob may be gone by now.
        _ = base::task::blocking(move || {
            Ok(store.db().write_lazily(|tx| store.blobs().label(tx, &digest, &labels))?)
        })
        .await;
    }
    Ok(())
}

/// A blob that is fetched only if the registry does not have it.
struct Lazy {
    bytes: Arc<dyn Fetch>,
    store: Store,
}

#[async_trait]
impl registry::Source for Lazy {
    async fn open(&self, offset: u64) -> io::Result<StdPin<Box<dyn AsyncRead + Send>>> {
        let pin = self.bytes.fetch().await.map_err(|e| io::Error::other(e.to_string()))?;
        let mut file = tokio::fs::File::open(self.store.blobs().path(pin.digest())).await?;
        file.seek(io::SeekFrom::Start(offset)).await?;
        Ok(Box::pin(Pinned { file, _pin: pin }))
    }
}

/// A file whose blob stays while it is read.
struct Pinned {
    file: tokio::fs::File,
    _pin: store::Pin,
}

impl AsyncRead for Pinned {
    fn poll_read(
        mut self: StdPin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        StdPin::new(&mut self.file).poll_read(cx, buf)
    }
}
