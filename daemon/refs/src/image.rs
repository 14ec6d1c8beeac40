//! Layers: how they come in lazily and go out as blobs.

use std::pin::Pin;

use async_trait::async_trait;
use base::{Descriptor, Digest, Failure, Timestamp};
use tokio::io::AsyncRead;

/// A stream of a blob's bytes.
pub type Bytes = Pin<Box<dyn AsyncRead + Send>>;

/// Where the bytes of a blob come from: a registry, a session, a remote cache.
#[async_trait]
pub trait BlobSource: Send + Sync + 'static {
    /// The bytes of the blob from `offset` on. They are verified by who reads
    /// them; after a broken stream it is asked again with a higher offset.
    ///
    /// # Errors
    /// When they cannot be had.
    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<Bytes, Failure>;
}

/// A layer of an image that may not be here yet.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// When it was made, from the image's history.
    pub created_at: Option<Timestamp>,
    /// For people: `pulled from docker.io/library/alpine:3`.
    pub description: String,
}

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
}

impl LayerBlob {
    /// Whether the bytes are in the store already.
    pub fn is_local(&self) -> bool {
        todo!()
    }

    /// Brings the bytes into the store, unless they are there, and keeps them
    /// there while the guard is held.
    ///
    /// # Errors
    /// When they cannot be fetched or are not what the descriptor says.
    pub async fn fetch(&self) -> Result<store::Pin, Failure> {
        todo!()
    }
}
