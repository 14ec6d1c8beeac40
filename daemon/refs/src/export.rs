//! Refs as chains of layer blobs.

use std::sync::Arc;

use base::progress::VertexSink;
use base::task::blocking;
use base::{Descriptor, Digest, Failure, Timestamp};
use futures_util::future::try_join_all;
use store::{Compression, CompressionKind, DiffSource, Pin, WrittenLayer};

use crate::Error;
use crate::compose::{layers_of, sides};
use crate::fetch::{BlobSource, Provider};
use crate::held::{Held, MountGuard, Ref, snapshot_of};
use crate::lazy::{ensure, local_blob};
use crate::model::{Blob, Content, chain};

/// A layer of a ref, as a blob to be put into an image.
#[derive(Clone)]
pub struct LayerBlob {
    /// The blob. Annotations are those it was given, no private ones.
    pub descriptor: Descriptor,
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// When the ref was made.
    pub created_at: Option<Timestamp>,
    /// The ref's description.
    pub description: String,
    /// The ref the layer belongs to.
    pub ref_id: String,
    held: Arc<Held>,
}

impl std::fmt::Debug for LayerBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LayerBlob({} of {})", self.descriptor.digest, self.ref_id)
    }
}

impl LayerBlob {
    /// Whether the bytes are in the store already.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn is_local(&self) -> Result<bool, Error> {
        Ok(self.held.refs.ledger.store.blobs().info(&self.descriptor.digest)?.is_some())
    }

    /// Brings the bytes into the store, unless they are there, and keeps them
    /// there while the guard is held.
    ///
    /// # Errors
    /// When they cannot be fetched or are not what the descriptor says.
    pub async fn fetch(&self) -> Result<Pin, Failure> {
        let blob = Blob { descriptor: self.descriptor.clone(), diff_id: self.diff_id.clone() };
        local_blob(&self.held, &blob).await
    }

    /// Where its bytes can be fetched from now on, and who is told.
    pub fn attach(&self, source: Arc<dyn BlobSource>, progress: VertexSink) {
        self.held.attach(Provider { source, progress });
    }
}

impl Ref {
    /// Its layers as blobs, bottom first. Existing blobs are taken as they are
    /// unless `compression.force`; missing ones are made. Lazy layers stay
    /// lazy unless they must be converted.
    ///
    /// # Errors
    /// Those of [`Self::ensure`], and of reading and writing.
    pub async fn layers(&self, compression: Compression) -> Result<Vec<LayerBlob>, Failure> {
        self.finalize().await?;
        let layers = layers_of(&self.held)?;
        let blobs = try_join_all(layers.iter().map(|layer| layer_blob(layer, compression))).await?;
        let held = self.held.clone();
        blocking(move || Ok(set_chains(&held)?)).await?;
        layers
            .into_iter()
            .zip(blobs)
            .map(|(held, blob)| {
                let record = held.record()?;
                Ok(LayerBlob {
                    descriptor: blob.descriptor,
                    diff_id: blob.diff_id,
                    created_at: Some(record.created_at),
                    description: record.description.clone(),
                    ref_id: held.id.clone(),
                    held,
                })
            })
            .collect()
    }

    /// The blobs of its layers as far as there are any already, bottom first;
    /// `None` when one was never written. Nothing is computed or fetched.
    ///
    /// # Errors
    /// When the ref is on its way out.
    pub fn known_layers(&self) -> Result<Option<Vec<LayerBlob>>, Error> {
        let mut blobs = Vec::new();
        for held in layers_of(&self.held)? {
            let record = held.record()?;
            let Some(blob) = held.usable_blob()? else { return Ok(None) };
            blobs.push(LayerBlob {
                descriptor: blob.descriptor,
                diff_id: blob.diff_id,
                created_at: Some(record.created_at),
                description: record.description.clone(),
                ref_id: held.id.clone(),
                held,
            });
        }
        Ok(Some(blobs))
    }
}

async fn layer_blob(held: &Arc<Held>, compression: Compression) -> Result<Blob, Failure> {
    let record = held.record()?;
    let asked = held.clone();
    let Some(blob) = blocking(move || Ok(asked.usable_blob()?)).await? else {
        return write(held, compression).await;
    };
    let fits =
        |blob: &Blob| CompressionKind::of_media_type(&blob.descriptor.media_type) == Some(compression.kind);
    if !compression.force || fits(&blob) {
        return Ok(blob);
    }
    match record.variants.iter().find(|blob| fits(blob)) {
        Some(variant) => Ok(variant.clone()),
        None => convert(held, blob, compression).await,
    }
}

fn described(layer: &WrittenLayer) -> Blob {
    let media = layer.compression.kind.media_type();
    Blob {
        descriptor: Descriptor::new(media, layer.blob.digest().clone(), layer.blob.size()),
        diff_id: layer.diff_id.clone(),
    }
}

/// Writes the layer as a blob for the first time.
async fn write(held: &Arc<Held>, compression: Compression) -> Result<Blob, Failure> {
    let inner = held.refs.clone();
    let work = || async {
        if let Some(pin) = known(held, |record| record.blob.clone()).await? {
            return Ok(pin);
        }
        Box::pin(ensure(held.clone())).await?;
        let source = Source::of(held).await?;
        let _permit = inner.compressions.acquire().await.map_err(|_| Failure::canceled("shutting down"))?;
        let held = held.clone();
        blocking(move || {
            let store = &held.refs.ledger.store;
            let layer = store::write_layer(store.blobs(), source.diff(), compression)?;
            store.fail().pass("layer.written")?;
            let blob = described(&layer);
            held.refs.ledger.update(&held.id, true, |record| {
                record.blob.get_or_insert(blob);
                record.size = None;
            })?;
            Ok(layer.blob)
        })
        .await
    };
    // Whoever comes meanwhile and wants another compression gets the same:
    // it is asked for new layers only.
    inner.blobs.run(format!("write/{}", held.id), work).await?;
    Ok(held.record()?.blob.clone().ok_or_else(|| Error::NotFound { id: held.id.clone() })?)
}

/// The blob a record names, if it is here.
async fn known(
    held: &Arc<Held>,
    pick: impl FnOnce(&crate::model::Record) -> Option<Blob> + Send + 'static,
) -> Result<Option<Pin>, Failure> {
    let held = held.clone();
    blocking(move || match pick(&*held.record()?) {
        Some(blob) => Ok(held.refs.ledger.store.blobs().pin(&blob.descriptor.digest)?),
        None => Ok(None),
    })
    .await
}

/// Writes the layer's blob once more, compressed another way.
async fn convert(held: &Arc<Held>, from: Blob, compression: Compression) -> Result<Blob, Failure> {
    let inner = held.refs.clone();
    let kind = compression.kind;
    let fits = move |blob: &&Blob| CompressionKind::of_media_type(&blob.descriptor.media_type) == Some(kind);
    let work = || async {
        if let Some(pin) = known(held, move |record| record.variants.iter().find(fits).cloned()).await? {
            return Ok(pin);
        }
        let pin = local_blob(held, &from).await?;
        let _permit = inner.compressions.acquire().await.map_err(|_| Failure::canceled("shutting down"))?;
        let (held, diff_id) = (held.clone(), from.diff_id.clone());
        blocking(move || {
            let store = &held.refs.ledger.store;
            let layer = store::convert_layer(store.blobs(), pin.open()?, compression, None)?;
            if layer.diff_id != diff_id {
                let (expected, found) = (diff_id.to_string(), layer.diff_id.to_string());
                return Err(store::Error::Mismatch { what: "diff id", expected, found }.into());
            }
            let blob = described(&layer);
            held.refs.ledger.update(&held.id, true, |record| {
                record.variants.push(blob);
                record.size = None;
            })?;
            Ok(layer.blob)
        })
        .await
    };
    inner.blobs.run(format!("convert/{}/{}", held.id, kind.as_str()), work).await?;
    let found = held.record()?.variants.iter().find(fits).cloned();
    Ok(found.ok_or_else(|| Error::NotFound { id: held.id.clone() })?)
}

/// What a layer is computed from, mounted as far as needed.
struct Source {
    lower: Option<MountGuard>,
    upper: Option<MountGuard>,
    /// The layer's own directory, with overlays.
    own: Option<std::path::PathBuf>,
}

impl Source {
    async fn of(held: &Arc<Held>) -> Result<Self, Failure> {
        let (lower, upper) = sides(held)?;
        let lower = match lower {
            Some(lower) => Some(lower.mount().await?),
            None => None,
        };
        let snapshots = held.refs.ledger.store.snapshots();
        let record = held.record()?;
        let own = match (&record.content, record.parts.first()) {
            _ if !snapshots.is_overlay() => None,
            (Content::Diff { .. }, Some(own)) => Some(snapshots.dir(own)),
            (Content::Layer { .. }, _) => Some(snapshots.dir(&snapshot_of(held)?)),
            _ => None,
        };
        let upper = match (&own, upper) {
            (None, Some(upper)) => Some(upper.mount().await?),
            _ => None,
        };
        Ok(Self { lower, upper, own })
    }

    fn diff(&self) -> DiffSource<'_> {
        let lower = self.lower.as_ref().map(MountGuard::path);
        match (&self.own, &self.upper) {
            (Some(upper), _) => DiffSource::Upper { lower, upper },
            (None, upper) => DiffSource::Trees { lower, upper: upper.as_ref().map(MountGuard::path) },
        }
    }
}

/// Notes by which chains of layers the ref is known, now that all have blobs,
/// so that an image with the same layers finds it.
fn set_chains(held: &Arc<Held>) -> Result<(), Error> {
    let (mut files, mut blobs): (Option<Digest>, Option<Digest>) = (None, None);
    let layers = layers_of(held)?;
    for (at, layer) in layers.iter().enumerate() {
        let record = layer.record()?;
        let Some(blob) = &record.blob else { return Ok(()) };
        files = Some(chain(files.as_ref(), &blob.diff_id));
        let own = chain(Some(&blob.descriptor.digest), &blob.diff_id);
        blobs = Some(chain(blobs.as_ref(), &own));
        // Its chain is this one only if it stands on exactly these.
        let standing = matches!(record.content, Content::Layer { .. }) && layers_of(layer)?.len() == at + 1;
        if standing && record.blob_chain.is_none() {
            held.refs.ledger.update(&layer.id, false, |record| {
                record.chain.clone_from(&files);
                record.blob_chain.clone_from(&blobs);
            })?;
        }
    }
    Ok(())
}
