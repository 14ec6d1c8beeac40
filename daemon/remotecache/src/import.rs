//! Reading a cache: from a manifest of its own, or from the images it is told
//! of in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base::progress::VertexSink;
use base::{Descriptor, Digest, Failure, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::try_join_all;
use refs::{BlobSource, Refs};
use registry::{Document, Manifest, image};
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use crate::Error;
use crate::chains::Chains;
use crate::config::{Config, MEDIA_TYPE, Record};
use crate::imported::{CREATED, DESCRIPTION, DIFF_ID, Imported, Place};

/// The largest manifest or description of a cache, in bytes.
pub(crate) const MAX_DOCUMENT: u64 = 1 << 20;
/// Indexes within indexes that are followed, and how many documents in all.
const MAX_DEPTH: usize = 4;
const MAX_IMAGES: usize = 256;

/// Reads a small blob, size and digest verified.
///
/// # Errors
/// When it is larger than `limit`, not what it is called, or cannot be had.
pub(crate) async fn read(source: &dyn BlobSource, desc: &Descriptor, limit: u64) -> Result<Vec<u8>, Failure> {
    if desc.size > limit {
        return Err(Error::TooLarge { digest: desc.digest.clone(), size: desc.size, limit }.into());
    }
    let stream = source.open(desc, 0).await?;
    let mut bytes = Vec::new();
    let read = stream.take(desc.size + 1).read_to_end(&mut bytes).await;
    read.map_err(|e| Failure::new(base::Kind::Unavailable, format!("read {}: {e}", desc.digest)))?;
    let found = Digest::of(&bytes);
    if found != desc.digest {
        return Err(Error::Mismatch { wanted: desc.digest.clone(), found }.into());
    }
    Ok(bytes)
}

/// Reads the cache behind `root`.
///
/// # Errors
/// When it is no cache, is broken, or cannot be had.
pub(crate) async fn import(
    place: Place,
    root: &Descriptor,
    refs: Refs,
    progress: &VertexSink,
) -> Result<Imported, Failure> {
    let source = place.source.clone();
    let bytes = read(&*source, root, MAX_DOCUMENT).await?;
    let (media_type, document) = parse(root, &bytes)?;
    progress.counter(format!("inferred cache manifest type: {media_type}"), 0).finish();
    let blobs = match &document {
        Document::Index(index) => index.manifests.iter().chain(None),
        Document::Image(manifest) => manifest.layers.iter().chain(Some(&manifest.config)),
    };
    let (configs, layers): (Vec<&Descriptor>, Vec<&Descriptor>) =
        blobs.partition(|blob| blob.media_type == MEDIA_TYPE);
    let mut chains = Chains::default();
    match configs.last() {
        Some(config) => {
            let config = Config::parse(&read(&*source, config, MAX_DOCUMENT).await?)?;
            let layers = layers.into_iter().map(|layer| (layer.digest.clone(), layer.clone())).collect();
            chains.read(&config, &layers)?;
        }
        None => {
            for image in images(&source, document).await? {
                if let Some((config, layers)) = inline(&*source, image).await? {
                    chains.read(&config, &layers)?;
                }
            }
        }
    }
    Ok(Imported::new(&chains, place, refs))
}

/// A manifest or index, and which of the two.
fn parse(desc: &Descriptor, bytes: &[u8]) -> Result<(String, Document), Failure> {
    let invalid = |reason: String| Error::Document { what: "cache manifest", reason };
    // Its type is judged by what is in it: layouts on disk do not say.
    let media_type = image::detect(&desc.digest, bytes).map_err(|e| invalid(e.to_string()))?;
    let desc = Descriptor { media_type, ..desc.clone() };
    let document = Document::parse(&desc, bytes).map_err(|e| invalid(e.to_string()))?;
    Ok((desc.media_type, document))
}

/// All images in a document.
async fn images(source: &Arc<dyn BlobSource>, document: Document) -> Result<Vec<Manifest>, Failure> {
    let mut images = Vec::new();
    let mut level = vec![document];
    let mut seen = std::collections::HashSet::new();
    for _ in 0..=MAX_DEPTH {
        let mut next = Vec::new();
        for document in level {
            match document {
                Document::Image(manifest) => images.push(*manifest),
                Document::Index(index) => {
                    next.extend(index.manifests.into_iter().filter(|m| seen.insert(m.digest.clone())));
                }
            }
        }
        if next.is_empty() || images.len() + next.len() > MAX_IMAGES {
            break;
        }
        let fetched = next.iter().map(|desc| async move {
            let bytes = read(&**source, desc, MAX_DOCUMENT).await?;
            Ok::<_, Failure>(parse(desc, &bytes).ok().map(|(_, document)| document))
        });
        level = try_join_all(fetched).await?.into_iter().flatten().collect();
    }
    Ok(images)
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    rootfs: RootFs,
    #[serde(default, rename = "moby.buildkit.cache.v0")]
    cache: Option<String>,
    #[serde(default)]
    history: Option<Vec<Step>>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    created: Option<Timestamp>,
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    empty_layer: bool,
}

type Told = (Config, HashMap<Digest, Descriptor>);

/// What an image tells of how it was made, if it does.
async fn inline(source: &dyn BlobSource, manifest: Manifest) -> Result<Option<Told>, Failure> {
    if manifest.layers.is_empty() {
        return Ok(None);
    }
    let invalid = |reason: String| Error::Document { what: "image config", reason };
    let config = read(source, &manifest.config, registry::MAX_CONFIG).await?;
    let image: Image = serde_json::from_slice(&config).map_err(|e| invalid(e.to_string()))?;
    let diff_ids = image.rootfs.diff_ids.unwrap_or_default();
    let Some(cache) = image.cache.filter(|_| diff_ids.len() == manifest.layers.len()) else {
        return Ok(None);
    };
    let json = STANDARD.decode(cache).map_err(|e| invalid(e.to_string()))?;
    let records: Option<Vec<Record>> =
        serde_json::from_slice(&json).map_err(|e| Error::config(e.to_string()))?;
    let mut config = Config { layers: Vec::new(), records: records.unwrap_or_default() };
    let mut steps = image.history.into_iter().flatten().filter(|step| !step.empty_layer);
    let mut layers = HashMap::new();
    for (at, (mut layer, diff_id)) in manifest.layers.into_iter().zip(diff_ids).enumerate() {
        let mut annotations = BTreeMap::from([(DIFF_ID.to_owned(), diff_id.to_string())]);
        if let Some(step) = steps.next() {
            annotations.extend(step.created.map(|time| (CREATED.to_owned(), time.to_string())));
            if !step.created_by.is_empty() {
                annotations.insert(DESCRIPTION.to_owned(), step.created_by);
            }
        }
        layer.annotations = annotations;
        let parent = i64::try_from(at).unwrap_or(i64::MAX) - 1;
        config.layers.push(crate::config::Layer { blob: layer.digest.clone(), parent, annotations: None });
        layers.insert(layer.digest.clone(), layer);
    }
    Ok(Some((config, layers)))
}
