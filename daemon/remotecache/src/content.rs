//! A cache as a manifest with layers, for registries and directories.

use std::collections::HashSet;

use async_trait::async_trait;
use base::descriptor::media;
use base::progress::VertexSink;
use base::{Descriptor, Digest, Failure, gojson};
use bytes::Bytes;
use export::{Index, Manifest};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;

use crate::Error;
use crate::collect::{Collected, Had};
use crate::config::MEDIA_TYPE;
use crate::options::Form;

/// Layers under way at once. How many really move is the registry's limit.
const AT_ONCE: usize = 16;

/// Takes the parts of a cache.
#[async_trait]
pub(crate) trait Target: Send + Sync {
    /// Takes a layer.
    async fn layer(&self, descriptor: &Descriptor, had: &Had) -> Result<(), Failure>;

    /// Takes the description.
    async fn config(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), Failure>;

    /// Takes the manifest, which is what names the cache.
    async fn manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), Failure>;
}

/// Writes a cache to `target`. The descriptor of its manifest; none when there
/// is nothing to write.
///
/// # Errors
/// When the target does not take it, or a layer cannot be had.
pub(crate) async fn write(
    target: &dyn Target,
    form: Form,
    made: &Collected,
    progress: &VertexSink,
) -> Result<Option<Descriptor>, Failure> {
    let config = made.chains.config(&HashSet::new());
    if config.layers.is_empty() {
        progress.counter("skipping cache export for empty result", 0).finish();
        return Ok(None);
    }
    let mut layers = Vec::with_capacity(config.layers.len());
    for layer in &config.layers {
        let found = made.chains.blobs().iter().find(|blob| blob.digest == layer.blob);
        let had = made.layers.get(&layer.blob);
        layers.push(found.zip(had).ok_or_else(|| Error::Missing(layer.blob.clone()))?);
    }
    let mut seen = HashSet::new();
    let distinct = layers.iter().filter(|(d, _)| seen.insert(&d.digest));
    let work: Vec<_> = distinct
        .map(|(descriptor, had)| async move {
            let _status = progress.counter(format!("writing layer {}", descriptor.digest), 0);
            target.layer(descriptor, had).await.map_err(|e| e.context("error writing layer blob"))
        })
        .collect();
    stream::iter(work).buffer_unordered(AT_ONCE).try_collect::<()>().await?;

    let json = config.json()?;
    let config = describe(MEDIA_TYPE, &json);
    let status = progress.counter(format!("writing config {}", config.digest), 0);
    let written = target.config(&config, json.into()).await;
    written.map_err(|e| e.context("error writing config blob"))?;
    status.finish();

    let (media_type, json) = form.manifest(&config, layers.into_iter().map(|(d, _)| d.clone()).collect())?;
    let manifest = describe(media_type, &json);
    let what = if form.image_manifest { "cache image manifest" } else { "cache manifest" };
    let status = progress.counter(format!("writing {what} {}", manifest.digest), 0);
    let written = target.manifest(&manifest, json.into()).await;
    written.map_err(|e| e.context("error writing manifest blob"))?;
    status.finish();
    Ok(Some(manifest))
}

fn describe(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}

impl Form {
    /// The manifest, with its type.
    fn manifest(
        self,
        config: &Descriptor,
        mut layers: Vec<Descriptor>,
    ) -> Result<(&'static str, Vec<u8>), Error> {
        for layer in &mut layers {
            layer.media_type = export::layer_media_type(&layer.media_type, self.oci).to_owned();
        }
        let invalid = |e: serde_json::Error| Error::Document { what: "manifest", reason: e.to_string() };
        if self.image_manifest {
            let manifest = Manifest {
                schema_version: 2,
                media_type: media::OCI_MANIFEST.to_owned(),
                artifact_type: None,
                config: config.clone(),
                layers: Some(layers),
                subject: None,
                annotations: BTreeMap::new(),
            };
            return Ok((media::OCI_MANIFEST, gojson::to_vec(&manifest).map_err(invalid)?));
        }
        let media_type = if self.oci { media::OCI_INDEX } else { media::DOCKER_LIST };
        layers.push(config.clone());
        let index = Index {
            schema_version: 2,
            media_type: media_type.to_owned(),
            manifests: layers,
            annotations: BTreeMap::new(),
        };
        Ok((media_type, gojson::to_vec(&index).map_err(invalid)?))
    }
}
