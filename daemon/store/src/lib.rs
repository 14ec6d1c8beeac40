//! Bytes on disk: blobs, snapshots, the database, layers.
//!
//! Everything lives below one root, which this crate alone writes to:
//!
//! ```text
//! store.db                   the database, see `db`
//! content/blobs/<alg>/<hex>  blobs by digest
//! content/ingest/<id>        blobs being written
//! snapshots/<id>/{fs,work}   directory trees, see `snapshots`
//! mounts/<id>                mount points of this process
//! trash/<id>                 renamed here, then deleted
//! empty                      a directory that stays empty
//! ```
//!
//! A file or directory counts only when the database has a row for it, and a
//! row only when the file is there: [`Store::open`] makes both agree before
//! anything is served, so a process that was killed leaves nothing half made.
//! What a blob or snapshot is for is not known here; see the crate `refs`.
//!
//! All calls block; callers on async threads go through `base::task::blocking`.

mod apply;
mod blobs;
mod changes;
mod compress;
mod copy;
mod db;
mod diff;
mod error;
mod estargz;
pub mod fail;
mod layer;
mod reconcile;
mod snapshots;
mod stack;
pub mod tar;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sys::directory::{self, PRIVATE};

pub use apply::{Applied, Whiteouts, apply, inherit};
pub use blobs::{BlobInfo, Blobs, Ingest, Pin};
pub use changes::{Change, ChangeKind, Entry, double_walk, is_whiteout, overlay_walk};
pub use compress::{Compression, CompressionKind, Compressor, Decompressor};
pub use copy::copy_tree;
pub use db::{Db, Read, ReadTx, Rows, Table, WriteTx};
pub use diff::ChangeWriter;
pub use error::{Error, Result};
pub use estargz::{Estargz, write_estargz};
pub use layer::{DiffSource, WrittenLayer, convert_layer, unpack_layer, write_layer};
pub use snapshots::{
    DiskUse, LooseLayer, MountSpec, Removed, SnapshotInfo, SnapshotKind, Snapshots, disk_use,
};
pub use stack::{Doings, apply_changes, doings, has_opaque, link_layer};

/// How directory trees are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Snapshotter {
    /// Overlay where the file system can, else copies.
    #[default]
    Auto,
    /// Layers stacked by the kernel.
    Overlay,
    /// A full copy per tree.
    Native,
}

/// What the owner decides.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How directory trees are kept.
    pub snapshotter: Snapshotter,
    /// Wait for the disk before a blob gets its name. A killed process loses
    /// nothing either way; after a power cut a blob may have the right size
    /// and the wrong bytes.
    pub sync_blobs: bool,
}

/// All that is on disk under one root. Clones are the same.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    db: Db,
    blobs: Blobs,
    snapshots: Snapshots,
    fail: fail::Points,
}

impl Store {
    /// Opens the store at `root`, or begins one, and puts it in order: what
    /// has no row is removed, rows without files are dropped, mounts left by
    /// a process that was killed are detached.
    ///
    /// # Errors
    /// [`Error::Newer`] for a database of a later version, or what the disk
    /// says. A database that cannot be read is kept as `store.db.bak`.
    pub fn open(root: impl AsRef<Path>, options: Options) -> Result<Self> {
        let root = std::path::absolute(&root).map_err(Error::io("resolve", root.as_ref()))?;
        // What is in them has just the permissions that builds ask for, which may be all of them.
        directory::make(&root, PRIVATE)?;
        for dir in ["content", "snapshots", "mounts", "trash"] {
            directory::own(&root.join(dir), PRIVATE)?;
        }
        for dir in ["content/blobs/sha256", "content/ingest"] {
            directory::make(&root.join(dir), PRIVATE)?;
        }
        // Steps see this one.
        directory::own(&root.join("empty"), 0o755)?;
        let fail = fail::Points::default();
        let db = Db::open(&root.join("store.db"))?;
        reconcile::leftovers(&root)?;
        let snapshots = Snapshots::open(&root, options.snapshotter, db.clone(), fail.clone())?;
        let blobs = Blobs::open(&root, options.sync_blobs, db.clone(), fail.clone());
        reconcile::blobs(&root, &db)?;
        reconcile::snapshots(&root, &db)?;
        Ok(Self { inner: Arc::new(Inner { root, db, blobs, snapshots, fail }) })
    }

    /// The directory all is in.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.inner.db
    }

    /// The blobs.
    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    /// The directory trees.
    pub fn snapshots(&self) -> &Snapshots {
        &self.inner.snapshots
    }

    /// Where tests make it fail.
    pub fn fail(&self) -> &fail::Points {
        &self.inner.fail
    }

    /// An empty directory to mount on.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn mount_point(&self) -> Result<PathBuf> {
        let path = self.inner.root.join("mounts").join(base::id::fresh());
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    /// A directory with nothing in it; stays so.
    pub fn empty(&self) -> PathBuf {
        self.inner.root.join("empty")
    }

    /// Deletes what was thrown away. May take long; can be called at any time.
    ///
    /// # Errors
    /// The first refusal, after all was tried.
    pub fn empty_trash(&self) -> Result<()> {
        let trash = self.inner.root.join("trash");
        let root = sys::path::Root::open(&trash)?;
        let mut result = Ok(());
        for entry in root.dir().list()? {
            let done = root.dir().remove_all(&entry.name);
            if let (Err(e), Ok(())) = (done, &result) {
                result = Err(Error::from(e));
            }
        }
        result
    }

    /// Bytes of the file system the store is on: all, and those still free.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn disk(&self) -> Result<Disk> {
        let root = &self.inner.root;
        let stat = rustix::fs::statvfs(root).map_err(Error::io("stat", root))?;
        let unit = stat.f_frsize;
        Ok(Disk {
            total: stat.f_blocks.saturating_mul(unit),
            free: stat.f_bfree.saturating_mul(unit),
            available: stat.f_bavail.saturating_mul(unit),
        })
    }
}

/// How full a disk is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// All there is.
    pub total: u64,
    /// Not used by anybody.
    pub free: u64,
    /// Not used, and not set aside for root.
    pub available: u64,
}

/// Moves `path` out of the way, to be deleted later; nothing there is fine.
fn throw_away(root: &Path, path: &Path) -> Result<()> {
    let to = root.join("trash").join(base::id::fresh());
    match fs::rename(path, &to) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("throw away", path)(e)),
    }
}
