//! The guards.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::progress::VertexSink;
use base::{Failure, Timestamp};
use store::{Compression, Store};

use crate::{BlobSource, Error, Layer, LayerBlob, NewRef, PrunePolicy, RecordType, Usage};

/// What the owner decides.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Mount writable overlays `volatile`: faster to unmount, and a power cut
    /// may lose what was committed shortly before.
    pub volatile: bool,
}

/// All refs of one store. Clones are the same.
#[derive(Clone)]
pub struct Refs {}

impl Refs {
    /// Opens the refs of `store`: reconciles records with snapshots and blobs,
    /// removes what was half made.
    ///
    /// # Errors
    /// When the database cannot be read or is of a newer version.
    pub async fn open(store: Store, options: Options) -> Result<Self, Failure> {
        todo!()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        todo!()
    }

    /// An empty directory, or one with what is in `parent`, to write into.
    ///
    /// # Errors
    /// When the parent cannot be brought here or the disk refuses.
    pub async fn new_mutable(&self, parent: Option<&Ref>, new: NewRef) -> Result<Mutable, Failure> {
        todo!()
    }

    /// The immutable ref `id`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Sort`] when it is mutable.
    pub fn get(&self, id: &str) -> Result<Ref, Error> {
        todo!()
    }

    /// The mutable ref `id` that was retained. What it was committed as
    /// earlier is forgotten.
    ///
    /// # Errors
    /// [`Error::Locked`] when it, or what it was committed as, is in use;
    /// [`Error::NotFound`], [`Error::Sort`].
    pub async fn get_mutable(&self, id: &str) -> Result<Mutable, Error> {
        todo!()
    }

    /// The ids under which something is known, in no particular order.
    pub fn search(&self, key: &str) -> Vec<String> {
        todo!()
    }

    /// A chain of refs for the layers of an image, bottom first; the last of
    /// them. Layers that are known by their chain are shared. Nothing is
    /// fetched. `None` for an image without layers.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn image(
        &self,
        layers: Vec<Layer>,
        source: Arc<dyn BlobSource>,
        record_type: RecordType,
        progress: VertexSink,
    ) -> Result<Option<Ref>, Failure> {
        todo!()
    }

    /// The trees of `inputs` laid over each other, the first at the bottom.
    ///
    /// # Errors
    /// Without inputs, or when the database refuses.
    pub async fn merge(&self, inputs: &[Ref], new: NewRef) -> Result<Ref, Failure> {
        todo!()
    }

    /// What `upper` has and `lower` has not, deletions included.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn diff(&self, lower: Option<&Ref>, upper: Option<&Ref>, new: NewRef) -> Result<Ref, Failure> {
        todo!()
    }

    /// What every record takes.
    ///
    /// # Errors
    /// A filter that does not parse, or the disk.
    pub async fn usage(&self, filters: &[String]) -> Result<Vec<Usage>, Failure> {
        todo!()
    }

    /// Removes what `policies` say, each in turn, and tells `removed` of it.
    ///
    /// # Errors
    /// A filter that does not parse, or the disk.
    pub async fn prune(
        &self,
        policies: &[PrunePolicy],
        removed: impl FnMut(Usage) + Send,
    ) -> Result<(), Failure> {
        todo!()
    }
}

/// An immutable result. Holding it keeps it. Clones are the same.
#[derive(Clone)]
pub struct Ref {}

impl Ref {
    /// Its id.
    pub fn id(&self) -> &str {
        todo!()
    }
    /// What it is made of: the layer below, the inputs of a merge, lower and upper.
    pub fn parents(&self) -> Vec<Ref> {
        todo!()
    }
    /// Its description.
    pub fn description(&self) -> String {
        todo!()
    }
    /// What it is for.
    pub fn record_type(&self) -> RecordType {
        todo!()
    }
    /// Changes what it is for.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn set_record_type(&self, to: RecordType) -> Result<(), Failure> {
        todo!()
    }
    /// When it was made.
    pub fn created_at(&self) -> Timestamp {
        todo!()
    }
    /// Bytes on disk of this ref alone.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub async fn size(&self) -> Result<u64, Failure> {
        todo!()
    }
    /// Whether files of it, or of what is below, must still be fetched.
    pub fn is_lazy(&self) -> bool {
        todo!()
    }
    /// Where its missing blobs can be fetched from now on.
    pub fn attach(&self, source: Arc<dyn BlobSource>, progress: VertexSink) {
        todo!()
    }
    /// Fetches and unpacks whatever is missing, siblings in parallel.
    ///
    /// # Errors
    /// [`Error::NoSource`], and those of the source.
    pub async fn ensure(&self) -> Result<(), Failure> {
        todo!()
    }
    /// Mounts it read-only; shared with others who have it mounted.
    ///
    /// # Errors
    /// Those of [`Self::ensure`] and of mounting.
    pub async fn mount(&self) -> Result<MountGuard, Failure> {
        todo!()
    }
    /// The directories it is stacked of, topmost first.
    ///
    /// # Errors
    /// Those of [`Self::ensure`].
    pub async fn lowers(&self) -> Result<Vec<PathBuf>, Failure> {
        todo!()
    }
    /// What was noted under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn get_meta(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        todo!()
    }
    /// Notes `value` under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        todo!()
    }
    /// Makes it found by [`Refs::search`] under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_index(&self, key: &str) -> Result<(), Error> {
        todo!()
    }
    /// Its layers as blobs, bottom first. Existing blobs are taken as they are
    /// unless `compression.force`; missing ones are made. Lazy layers stay
    /// lazy unless they must be converted.
    ///
    /// # Errors
    /// Those of [`Self::ensure`], and of reading and writing.
    pub async fn layers(&self, compression: Compression) -> Result<Vec<LayerBlob>, Failure> {
        todo!()
    }
}

/// A result in the making; exclusive. Dropped without commit it is removed,
/// unless it is retained.
pub struct Mutable {}

impl Mutable {
    /// Its id.
    pub fn id(&self) -> &str {
        todo!()
    }
    /// Mounts it writable.
    ///
    /// # Errors
    /// Those of mounting.
    pub async fn mount(&self) -> Result<MountGuard, Failure> {
        todo!()
    }
    /// Makes it immutable, in one transaction with its snapshot. A retained
    /// one stays and can be had again by its id.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn commit(self) -> Result<Ref, Failure> {
        todo!()
    }
    /// As [`Self::commit`], and `also` in the same transaction with the id of
    /// the new ref.
    ///
    /// # Errors
    /// When the database refuses, or those of `also`.
    pub async fn commit_with(
        self,
        also: impl FnOnce(&store::WriteTx, &str) -> Result<(), store::Error> + Send + 'static,
    ) -> Result<Ref, Failure> {
        todo!()
    }
    /// What was noted under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn get_meta(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        todo!()
    }
    /// Notes `value` under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        todo!()
    }
    /// Makes it found by [`Refs::search`] under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_index(&self, key: &str) -> Result<(), Error> {
        todo!()
    }
}

/// A mounted tree; unmounted when the last clone is gone. Keeps the ref.
#[derive(Clone)]
pub struct MountGuard {}

impl MountGuard {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        todo!()
    }
}
