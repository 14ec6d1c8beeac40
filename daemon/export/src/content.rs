//! Where the bytes of an image are: in the store, or still where a lazy layer
//! comes from.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Descriptor, Digest, Failure, Timestamp};
use refs::LayerBlob;
use store::{Pin, Store};

use crate::error::Error;

/// Brings a layer's bytes here.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// Brings them, unless they are here.
    ///
    /// # Errors
    /// When they cannot be had.
    async fn fetch(&self) -> Result<Pin, Failure>;
}

#[async_trait]
impl Fetch for LayerBlob {
    async fn fetch(&self) -> Result<Pin, Failure> {
        LayerBlob::fetch(self).await
    }
}

#[async_trait]
impl Fetch for Pin {
    async fn fetch(&self) -> Result<Pin, Failure> {
        Ok(self.clone())
    }
}

/// A layer that is to be part of an image.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) descriptor: Descriptor,
    /// The digest of its uncompressed tar.
    pub(crate) diff_id: Digest,
    pub(crate) created_at: Option<Timestamp>,
    /// None for a layer nobody knows anything about.
    pub(crate) description: Option<String>,
    pub(crate) bytes: Arc<dyn Fetch>,
}

impl From<LayerBlob> for Layer {
    fn from(blob: LayerBlob) -> Self {
        Self {
            descriptor: blob.descriptor.clone(),
            diff_id: blob.diff_id.clone(),
            created_at: blob.created_at,
            description: Some(blob.description.clone()),
            bytes: Arc::new(blob),
        }
    }
}

/// All blobs of an image.
#[derive(Clone, Default)]
pub(crate) struct Content {
    blobs: HashMap<Digest, Arc<dyn Fetch>>,
    /// The blobs that were made for this image.
    own: Vec<Pin>,
}

impl Content {
    /// Adds a layer.
    pub(crate) fn add_layer(&mut self, layer: &Layer) {
        self.blobs.insert(layer.descriptor.digest.clone(), layer.bytes.clone());
    }

    /// Adds a manifest, an index or a config, and keeps it.
    pub(crate) fn add(&mut self, pin: Pin) {
        self.blobs.insert(pin.digest().clone(), Arc::new(pin.clone()));
        self.own.push(pin);
    }

    /// The blobs that were made for this image.
    pub(crate) fn own(&self) -> &[Pin] {
        &self.own
    }

    /// The names of all of them.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        self.blobs.keys().cloned().collect()
    }

    /// Brings a blob here.
    ///
    /// # Errors
    /// When it is not one of the image's, or cannot be fetched.
    pub(crate) async fn fetch(&self, digest: &Digest) -> Result<Pin, Failure> {
        self.get(digest)?.fetch().await
    }

    /// Where the bytes of a blob are.
    ///
    /// # Errors
    /// When it is not one of the image's.
    pub(crate) fn get(&self, digest: &Digest) -> Result<Arc<dyn Fetch>, Error> {
        self.blobs.get(digest).cloned().ok_or_else(|| Error::NoContent { digest: digest.clone() })
    }

    /// Reads a small blob of our own making.
    ///
    /// # Errors
    /// When it cannot be had, or is larger than `limit`.
    pub(crate) async fn read(&self, store: &Store, digest: &Digest, limit: u64) -> Result<Vec<u8>, Failure> {
        let pin = self.fetch(digest).await?;
        let blobs = store.blobs().clone();
        base::task::blocking(move || Ok(blobs.read(pin.digest(), limit)?)).await
    }
}
