//! Layers whose files can be fetched one by one, where they are asked for.
//!
//! They are other layers than those they are made from: the table of contents
//! is part of them. So they are made for an image on its way out.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Descriptor, Failure};
use futures_util::future::try_join_all;
use store::{Compression, CompressionKind, Store, write_estargz};

use crate::Context;
use crate::content::Layer;

/// The digest of the table of contents.
const TOC: &str = "containerd.io/snapshot/stargz/toc.digest";
/// How many bytes the layer has when it is not compressed.
const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
/// Begins the labels of blobs that are in a registry.
const SOURCE: &str = "containerd.io/distribution.source.";

/// `layers`, each such that its files can be fetched one by one. Those that are
/// in a registry as they are stay so, unless all are to be converted by force.
///
/// # Errors
/// When a layer cannot be read, or has something in it that such layers cannot have.
pub(crate) async fn convert(
    store: &Store,
    layers: &[Layer],
    compression: Compression,
    context: &Context,
) -> Result<Vec<Layer>, Failure> {
    let _status = context.progress.counter("converting layers to estargz", 0);
    let all = layers.iter().map(|layer| one(store, layer, compression));
    context.scope.run(try_join_all(all)).await
}

async fn one(store: &Store, layer: &Layer, compression: Compression) -> Result<Layer, Failure> {
    if layer.descriptor.annotations.contains_key(TOC) {
        return Ok(layer.clone());
    }
    if !compression.force {
        let info = store.blobs().info(&layer.descriptor.digest)?;
        if info.is_none_or(|info| info.labels.keys().any(|key| key.starts_with(SOURCE))) {
            return Ok(layer.clone());
        }
    }
    let pin = layer.bytes.fetch().await?;
    let blobs = store.blobs().clone();
    let level = compression.level;
    let written = base::task::blocking(move || Ok(write_estargz(&blobs, pin.open()?, level)?)).await?;
    let blob = written.blob;
    let media_type = CompressionKind::Gzip.media_type();
    let mut descriptor = Descriptor::new(media_type, blob.digest().clone(), blob.size());
    descriptor.annotations = layer.descriptor.annotations.clone();
    descriptor.annotations.extend(BTreeMap::from([
        (TOC.to_owned(), written.toc.to_string()),
        (UNCOMPRESSED_SIZE.to_owned(), written.uncompressed_size.to_string()),
    ]));
    Ok(Layer { descriptor, diff_id: written.diff_id, bytes: Arc::new(blob), ..layer.clone() })
}
