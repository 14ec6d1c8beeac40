//! Clamping the times in layers to the epoch.
//!
//! Layers the image has in common with its base stay as they are: they are
//! shared with other images.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::progress::Stream;
use base::{Descriptor, Digest, Failure};
use futures_util::future::join_all;
use serde::Deserialize;
use store::{Compression, Store, convert_layer};

use crate::Context;
use crate::content::Layer;
use crate::epoch::Time;
use crate::error::Error;

/// Says of a layer to which epoch it was rewritten.
const REWRITTEN: &str = "buildkit/rewritten-timestamp";

/// `layers` with no file newer than `epoch`. A layer that cannot be rewritten
/// stays as it is, and the build's log says so.
///
/// # Errors
/// When the base image's config cannot be read.
pub(crate) async fn rewrite(
    store: &Store,
    layers: &[Layer],
    base: Option<&[u8]>,
    epoch: &Time,
    compression: Compression,
    context: &Context,
) -> Result<Vec<Layer>, Failure> {
    let base = base_diff_ids(base)?;
    let shared = layers.iter().zip(&base).take_while(|(layer, base)| layer.diff_id == **base).count();
    let secs = epoch.timestamp().secs();
    let what = format!("rewriting layers with source-date-epoch {secs} ({})", epoch.shown());
    let _status = context.progress.counter(what, 0);
    let all = layers.iter().enumerate().map(|(at, layer)| async move {
        if at < shared {
            return layer.clone();
        }
        match one(store, layer, secs, compression).await {
            Ok(rewritten) => rewritten,
            Err(e) => {
                let (n, total) = (at + 1, layers.len());
                let text =
                    format!("failed to rewrite layer {n}/{total} to match source-date-epoch {secs}: {e}\n");
                context.progress.log(Stream::Stderr, text);
                layer.clone()
            }
        }
    });
    context.scope.run(async { Ok(join_all(all).await) }).await
}

async fn one(store: &Store, layer: &Layer, secs: i64, compression: Compression) -> Result<Layer, Failure> {
    if layer.descriptor.annotations.get(REWRITTEN).is_some_and(|at| *at == secs.to_string()) {
        return Ok(layer.clone());
    }
    let pin = layer.bytes.fetch().await?;
    let blobs = store.blobs().clone();
    let written =
        base::task::blocking(move || Ok(convert_layer(&blobs, pin.open()?, compression, Some(secs))?))
            .await?;
    let blob = written.blob;
    let media_type = written.compression.kind.media_type();
    let mut descriptor = Descriptor::new(media_type, blob.digest().clone(), blob.size());
    descriptor.annotations = BTreeMap::from([(REWRITTEN.to_owned(), secs.to_string())]);
    Ok(Layer { descriptor, diff_id: written.diff_id, bytes: Arc::new(blob), ..layer.clone() })
}

fn base_diff_ids(config: Option<&[u8]>) -> Result<Vec<Digest>, Error> {
    #[derive(Deserialize, Default)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Option<Vec<Digest>>,
    }
    #[derive(Deserialize)]
    struct Base {
        #[serde(default)]
        rootfs: RootFs,
    }
    let Some(json) = config.filter(|json| !json.is_empty()) else { return Ok(Vec::new()) };
    let base: Base =
        serde_json::from_slice(json).map_err(Error::json("failed to unmarshal base image config"))?;
    Ok(base.rootfs.diff_ids.unwrap_or_default())
}
