//! A cache as objects under names: layers by digest, and a description that also
//! says what a manifest would.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use base::progress::VertexSink;
use base::{Descriptor, Digest, Failure, Timestamp};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use refs::{BlobSource, Refs};
use registry::Downloads;
use store::Pin;

use crate::Error;
use crate::chains::Chains;
use crate::collect::Collected;
use crate::config::{Annotations, Config, NEVER};
use crate::imported::{CREATED, DIFF_ID, Imported, Place};

/// The largest description that is read, in bytes. It has the records of a whole
/// cache, and no manifest beside it.
pub(crate) const MAX_CONFIG: u64 = 32 << 20;

/// Where objects are kept, and how to get there.
#[async_trait]
pub(crate) trait Cloud: Send + Sync {
    /// What writing there is called, for people.
    fn title(&self) -> &'static str;

    /// Gets there.
    async fn open(&self, downloads: Downloads) -> Result<Arc<dyn Objects>, Failure>;
}

/// Keeps objects; layers are read as from any source.
#[async_trait]
pub(crate) trait Objects: BlobSource {
    /// Whether a layer is there. One that is there stays for another while.
    async fn has(&self, layer: &Digest) -> Result<bool, Failure>;

    /// Takes a layer.
    async fn put(&self, layer: &Digest, bytes: &Pin) -> Result<(), Failure>;

    /// Takes the description, under every name of the cache.
    async fn describe(&self, config: Bytes) -> Result<(), Failure>;

    /// The descriptions that are there.
    async fn descriptions(&self) -> Result<Vec<Vec<u8>>, Failure>;

    /// How many layers may be under way at once.
    fn at_once(&self) -> usize;
}

/// Writes a cache.
///
/// # Errors
/// When the other end does not take it, or a layer cannot be had.
pub(crate) async fn write(to: &dyn Objects, made: &Collected, progress: &VertexSink) -> Result<(), Failure> {
    let mut config = made.chains.config(&HashSet::new());
    let known: HashMap<&Digest, &Descriptor> =
        made.chains.blobs().iter().map(|blob| (&blob.digest, blob)).collect();
    let mut seen = HashSet::new();
    let mut work = Vec::new();
    for layer in &mut config.layers {
        let missing = || Error::Missing(layer.blob.clone());
        let descriptor = known.get(&layer.blob).ok_or_else(missing)?;
        let had = made.layers.get(&layer.blob).ok_or_else(missing)?;
        let noted = |key: &str| descriptor.annotations.get(key);
        layer.annotations = Some(Annotations {
            media_type: descriptor.media_type.clone(),
            diff_id: noted(DIFF_ID).and_then(|text| text.parse().ok()),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            created_at: noted(CREATED).and_then(|text| Timestamp::parse(text)).unwrap_or(NEVER),
        });
        if seen.insert(layer.blob.clone()) {
            let digest = layer.blob.clone();
            work.push(async move {
                if !to.has(&digest).await? {
                    let _status = progress.counter(format!("writing layer {digest}"), 0);
                    let bytes = had.blob.fetch().await?;
                    to.put(&digest, &bytes).await.map_err(|e| e.context("error writing layer blob"))?;
                }
                Ok::<_, Failure>(())
            });
        }
    }
    stream::iter(work).buffer_unordered(to.at_once()).try_collect::<()>().await?;
    let json = config.json()?;
    to.describe(json.into()).await.map_err(|e| e.context("error writing manifest"))
}

/// Reads the cache that is there; one without records if there is none.
///
/// # Errors
/// When it is broken, or cannot be had.
pub(crate) async fn import(from: Arc<dyn Objects>, refs: Refs) -> Result<Imported, Failure> {
    let mut chains = Chains::default();
    for json in from.descriptions().await? {
        read(&json, &mut chains)?;
    }
    // Layers nobody looks into stay there; a later build has to name the cache again.
    Ok(Imported::new(&chains, Place { source: from, fleeting: false, origin: None }, refs))
}

fn read(json: &[u8], chains: &mut Chains) -> Result<(), Error> {
    let config = Config::parse(json)?;
    let mut layers = HashMap::new();
    for layer in &config.layers {
        let missing = |what: &str| Error::config(format!("cache layer with missing {what}"));
        let noted = layer.annotations.as_ref().ok_or_else(|| missing("annotations"))?;
        let diff_id = noted.diff_id.as_ref().ok_or_else(|| missing("diffid"))?;
        let size =
            u64::try_from(noted.size).map_err(|_| Error::config("cache layer with a negative size"))?;
        let mut annotations = BTreeMap::from([(DIFF_ID.to_owned(), diff_id.to_string())]);
        if noted.created_at != NEVER {
            annotations.insert(CREATED.to_owned(), noted.created_at.to_string());
        }
        let mut descriptor = Descriptor::new(noted.media_type.clone(), layer.blob.clone(), size);
        descriptor.annotations = annotations;
        layers.insert(layer.blob.clone(), descriptor);
    }
    chains.read(&config, &layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_must_say_what_they_are() {
        let layer = |annotations: &str| {
            let blob = Digest::of("blob");
            format!(r#"{{"layers":[{{"blob":"{blob}","parent":-1{annotations}}}]}}"#)
        };
        let said = |annotations: &str| {
            read(layer(annotations).as_bytes(), &mut Chains::default()).map_err(|e| e.to_string())
        };
        let diff_id = format!(r#""diffID":"{}""#, Digest::of("tar"));
        assert_eq!(said(&format!(r#","annotations":{{{diff_id},"size":3}}"#)), Ok(()));
        for (annotations, expected) in [
            (String::new(), "missing annotations"),
            (r#","annotations":{"size":3}"#.to_owned(), "missing diffid"),
            (format!(r#","annotations":{{{diff_id},"size":-3}}"#), "negative size"),
        ] {
            assert!(said(&annotations).is_err_and(|e| e.contains(expected)), "{annotations}");
        }
    }
}
