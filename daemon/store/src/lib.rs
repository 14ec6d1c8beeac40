//! Bytes on disk: blobs, snapshots, the database, layers.

mod compress;
mod error;

use std::collections::BTreeMap;
use std::path::Path;

use base::Digest;

pub use compress::{Compression, CompressionKind};
pub use error::{Error, Result};

/// All that is on disk under one root. Clones are the same.
#[derive(Clone)]
pub struct Store {}

impl Store {
    /// The database.
    pub fn db(&self) -> &Db {
        todo!()
    }
    /// The blobs.
    pub fn blobs(&self) -> &Blobs {
        todo!()
    }
}

/// The one database. Clones are the same.
#[derive(Clone)]
pub struct Db {}

/// A table of bytes by bytes, by its name.
#[derive(Debug, Clone, Copy)]
pub struct Table(pub &'static str);

impl Db {
    /// Reads one consistent state.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<T, E: From<Error>>(&self, read: impl FnOnce(&ReadTx) -> Result<T, E>) -> Result<T, E> {
        todo!()
    }
    /// All of `write`, or nothing; on disk when it returns. Blocks.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write<T, E: From<Error>>(&self, write: impl FnOnce(&WriteTx) -> Result<T, E>) -> Result<T, E> {
        todo!()
    }
    /// As [`Self::write`], on disk with the next [`Self::write`].
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write_lazily<T, E: From<Error>>(
        &self,
        write: impl FnOnce(&WriteTx) -> Result<T, E>,
    ) -> Result<T, E> {
        todo!()
    }
}

/// One consistent state of the database.
pub struct ReadTx {}

/// Changes that happen together.
pub struct WriteTx {}

/// What both kinds of transaction read with.
pub trait Read {
    /// The value of `key`.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Calls `each` with every key that begins with `prefix`, in order, until
    /// it gives false.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn scan(&self, table: Table, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()>;
}

impl WriteTx {
    /// Sets `key`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        todo!()
    }
    /// Removes `key`; whether it was there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn delete(&self, table: Table, key: &[u8]) -> Result<bool> {
        todo!()
    }
}

/// Blobs by digest.
pub struct Blobs {}

/// Keeps a blob from being collected while it is held.
#[derive(Clone)]
pub struct Pin {}

/// A blob that is here.
#[derive(Debug, Clone)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// What was noted about it.
    pub labels: BTreeMap<String, String>,
}

impl Blobs {
    /// What is known of a blob, if it is here.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        todo!()
    }
    /// Opens a blob for reading.
    ///
    /// # Errors
    /// [`Error::NoBlob`].
    pub fn open(&self, digest: &Digest) -> Result<std::fs::File> {
        todo!()
    }
    /// Begins a new blob.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn ingest(&self) -> Result<Ingest> {
        todo!()
    }
    /// Keeps a blob while the guard is held; `None` when it is not here.
    pub fn pin(&self, digest: &Digest) -> Option<Pin> {
        todo!()
    }
}

/// A blob in the making: an [`std::io::Write`]. Dropped, it leaves nothing.
pub struct Ingest {}

impl Ingest {
    /// Verifies and names the blob.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn commit(self, expected: Option<(&Digest, u64)>, labels: BTreeMap<String, String>) -> Result<Pin> {
        todo!()
    }
}

/// The root of a store on disk.
#[allow(dead_code)]
fn root(_: &Path) {}
