//! Directory trees by name: layers stacked by the kernel, or full copies.
//!
//! A snapshot is active while it is written to, then committed and never
//! changed again. With overlays it holds what differs from its parent
//! (`fs`, beside the kernel's `work`); without, everything.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::Timestamp;
use serde::{Deserialize, Serialize};
use sys::mount::{Bind, Mounted, Overlay, Upper};

use crate::db::{Db, Read, Rows, WriteTx};
use crate::{Error, Result, Snapshotter, fail};

pub(crate) const SNAPSHOTS: Rows<SnapshotInfo> = Rows::new("snapshots");

/// Whether a snapshot may still change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// It is written to.
    Active,
    /// It never changes.
    Committed,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// What it stands on.
    pub parent: Option<String>,
    /// It has no directory of its own but is these, topmost first, each taken
    /// without what it stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<Vec<String>>,
    /// Whether it may still change.
    pub kind: SnapshotKind,
    /// When it was begun.
    pub created: Timestamp,
}

/// Bytes and inodes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskUse {
    /// Allocated bytes, which for sparse files are fewer than their length.
    pub bytes: u64,
    /// Files and directories; names of one file count once.
    pub inodes: u64,
}

/// How to make a tree visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSpec {
    /// It is a directory already.
    Bind {
        /// The directory.
        source: PathBuf,
        /// Show it read-only.
        readonly: bool,
    },
    /// A stack of directories.
    Overlay(Overlay),
}

impl MountSpec {
    /// Mounts it on the directory `target`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn mount(&self, target: &Path) -> Result<Mounted> {
        match self {
            Self::Bind { source, readonly } => {
                Ok(sys::mount::bind(source, target, Bind { recursive: false, readonly: *readonly })?)
            }
            Self::Overlay(overlay) => {
                if let Some(upper) = &overlay.upper {
                    // Left by an earlier volatile mount; the kernel refuses to
                    // mount again while it is there.
                    let mark = upper.work.join("work/incompat");
                    if mark.exists() {
                        fs::remove_dir_all(&mark).map_err(Error::io("remove", &mark))?;
                    }
                }
                Ok(overlay.mount(target)?)
            }
        }
    }
}

/// Directory trees by name. Clones are the same.
#[derive(Clone)]
pub struct Snapshots(Arc<Inner>);

struct Inner {
    root: PathBuf,
    db: Db,
    fail: fail::Points,
    overlay: bool,
    userxattr: bool,
}

/// A snapshot whose row is gone; its directory goes with [`Removed::discard`],
/// to be called when the transaction is through.
#[must_use = "the directory stays until it is discarded"]
pub struct Removed {
    root: PathBuf,
    dir: PathBuf,
}

impl Removed {
    /// Moves the directory to the trash.
    ///
    /// # Errors
    /// When the disk refuses; the next start tries again.
    pub fn discard(self) -> Result<()> {
        crate::throw_away(&self.root, &self.dir)
    }
}

fn missing(id: &str, reason: &'static str) -> Error {
    Error::Snapshot { id: id.to_owned(), reason }
}

impl Snapshots {
    pub(crate) fn open(root: &Path, wanted: Snapshotter, db: Db, fail: fail::Points) -> Result<Self> {
        let dir = root.join("snapshots");
        let probe = |userxattr| sys::mount::probe_overlay(&dir, userxattr);
        let (overlay, userxattr) = match wanted {
            Snapshotter::Native => (false, false),
            Snapshotter::Overlay | Snapshotter::Auto => match (probe(false), wanted) {
                (Ok(()), _) => (true, false),
                (Err(_), _) if probe(true).is_ok() => (true, true),
                (Err(source), Snapshotter::Overlay) => return Err(Error::NoOverlay { path: dir, source }),
                (Err(e), _) => {
                    tracing::warn!(error = %e, "overlays do not work here, trees are copied");
                    (false, false)
                }
            },
        };
        Ok(Self(Arc::new(Inner { root: root.to_owned(), db, fail, overlay, userxattr })))
    }

    /// `overlayfs` or `native`, as labels and clients call it.
    pub fn name(&self) -> &'static str {
        if self.0.overlay { "overlayfs" } else { "native" }
    }

    /// Whether snapshots are layers rather than full copies.
    pub fn is_overlay(&self) -> bool {
        self.0.overlay
    }

    /// Whether whiteouts are marked with `user.` attributes.
    pub fn userxattr(&self) -> bool {
        self.0.userxattr
    }

    fn home(&self, id: &str) -> PathBuf {
        self.0.root.join("snapshots").join(id)
    }

    /// The directory that holds the layer, or the whole tree without overlays.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.home(id).join("fs")
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// [`Error::Snapshot`] when there is none.
    pub fn info(&self, id: &str) -> Result<SnapshotInfo> {
        self.0.db.read(|tx| self.info_in(tx, id))
    }

    fn info_in(&self, tx: &impl Read, id: &str) -> Result<SnapshotInfo> {
        SNAPSHOTS.get(tx, id)?.ok_or_else(|| missing(id, "not found"))
    }

    /// Whether there is such a snapshot, as `tx` sees it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn exists(&self, tx: &impl Read, id: &str) -> Result<bool> {
        Ok(SNAPSHOTS.get(tx, id)?.is_some())
    }

    /// The names of all snapshots.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self) -> Result<Vec<String>> {
        Ok(self.0.db.read(|tx| SNAPSHOTS.all(tx))?.into_iter().map(|(id, _)| id).collect())
    }

    /// Begins the snapshot `id` on a committed one.
    ///
    /// # Errors
    /// When there is no such parent, or one is there already.
    pub fn prepare(&self, id: &str, parent: Option<&str>) -> Result<()> {
        if let Some(parent) = parent
            && self.info(parent)?.kind != SnapshotKind::Committed
        {
            return Err(missing(parent, "still being written"));
        }
        let home = self.home(id);
        let made = self.prepare_dirs(id, &home, parent).and_then(|()| {
            self.0.fail.pass("snapshot.made")?;
            let (parent, kind) = (parent.map(str::to_owned), SnapshotKind::Active);
            let info = SnapshotInfo { parent, stack: None, kind, created: Timestamp::now() };
            self.0.db.write_lazily(|tx| SNAPSHOTS.put(tx, id, &info))
        });
        if made.is_err() {
            // If even this fails the next start finds it.
            _ = crate::throw_away(&self.0.root, &home);
        }
        made
    }

    fn prepare_dirs(&self, id: &str, home: &Path, parent: Option<&str>) -> Result<()> {
        let make = |path: &Path, mode| {
            fs::DirBuilder::new().mode(mode).create(path).map_err(Error::io("create", path))
        };
        make(home, 0o700)?;
        let tree = self.dir(id);
        make(&tree, 0o755)?;
        // Whatever the umask is.
        rustix::fs::chmod(&tree, rustix::fs::Mode::from_raw_mode(0o755))
            .map_err(Error::io("chmod", &tree))?;
        match parent {
            Some(parent) if self.0.overlay => self.own_root(&tree, parent)?,
            Some(parent) => crate::copy_tree(&self.dir(parent), &tree)?,
            None => {}
        }
        if self.0.overlay {
            make(&home.join("work"), 0o711)?;
        }
        Ok(())
    }

    /// The root of a layer belongs to whom it belongs to in the layer below.
    fn own_root(&self, tree: &Path, parent: &str) -> Result<()> {
        let Some(lower) = self.chain(parent)?.into_iter().next() else { return Ok(()) };
        let meta = fs::metadata(&lower).map_err(Error::io("stat", &lower))?;
        std::os::unix::fs::lchown(tree, Some(meta.uid()), Some(meta.gid())).map_err(Error::io("chown", tree))
    }

    /// Begins the directories of a layer whose parent need not be there yet;
    /// until [`Self::adopt`] it is not a snapshot. Overlays only.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn begin_layer(&self, id: &str) -> Result<LooseLayer> {
        let home = self.home(id);
        let layer = LooseLayer { snapshots: self.clone(), id: id.to_owned(), adopted: false };
        self.prepare_dirs(id, &home, None)?;
        Ok(layer)
    }

    /// Makes a layer a committed snapshot on `parent`, together with whatever
    /// else is in `tx`. When that fails the layer stays loose.
    ///
    /// # Errors
    /// When there is no such parent, or the database refuses.
    pub fn adopt(&self, tx: &WriteTx, layer: &LooseLayer, parent: Option<&str>) -> Result<()> {
        if let Some(parent) = parent {
            self.info_in(tx, parent)?;
        }
        let (parent, kind) = (parent.map(str::to_owned), SnapshotKind::Committed);
        let info = SnapshotInfo { parent, stack: None, kind, created: Timestamp::now() };
        SNAPSHOTS.put(tx, &layer.id, &info)
    }

    /// Makes the committed snapshot `id` out of others, topmost first, each
    /// taken without what it stands on. Overlays only.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn put_stack(&self, tx: &WriteTx, id: &str, stack: Vec<String>) -> Result<()> {
        for member in &stack {
            self.info_in(tx, member)?;
        }
        let kind = SnapshotKind::Committed;
        let info = SnapshotInfo { parent: None, stack: Some(stack), kind, created: Timestamp::now() };
        SNAPSHOTS.put(tx, id, &info)
    }

    /// Makes it unchangeable, together with whatever else is in `tx`.
    ///
    /// # Errors
    /// When there is none.
    pub fn commit(&self, tx: &WriteTx, id: &str) -> Result<()> {
        let mut info = self.info_in(tx, id)?;
        info.kind = SnapshotKind::Committed;
        SNAPSHOTS.put(tx, id, &info)
    }

    /// Removes it, together with whatever else is in `tx`. Nothing may stand
    /// on it any more; that is the caller's to know.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn remove(&self, tx: &WriteTx, id: &str) -> Result<Removed> {
        SNAPSHOTS.delete(tx, id)?;
        Ok(Removed { root: self.0.root.clone(), dir: self.home(id) })
    }

    /// The directories a tree is stacked of, topmost first; without overlays
    /// it is the one that has everything.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn chain(&self, id: &str) -> Result<Vec<PathBuf>> {
        if !self.0.overlay {
            self.info(id)?;
            return Ok(vec![self.dir(id)]);
        }
        self.0.db.read(|tx| {
            let mut chain = Vec::new();
            let mut next = Some(id.to_owned());
            while let Some(id) = next {
                let info = self.info_in(tx, &id)?;
                next = info.parent;
                match info.stack {
                    Some(stack) => chain.extend(stack.iter().map(|id| self.dir(id))),
                    None => chain.push(self.dir(&id)),
                }
            }
            Ok(chain)
        })
    }

    /// How to mount it, read-only.
    ///
    /// # Errors
    /// When it is missing.
    pub fn view(&self, id: &str) -> Result<MountSpec> {
        Ok(self.stack(self.chain(id)?))
    }

    /// How to mount a stack of layers read-only, topmost first.
    pub fn stack(&self, mut lowers: Vec<PathBuf>) -> MountSpec {
        if lowers.len() <= 1 {
            let source = lowers.pop().unwrap_or_else(|| self.0.root.join("empty"));
            return MountSpec::Bind { source, readonly: true };
        }
        MountSpec::Overlay(Overlay { lowers, upper: None, userxattr: self.0.userxattr, volatile: false })
    }

    /// How to mount an active one to write into.
    ///
    /// # Errors
    /// When it is missing or committed.
    pub fn writable(&self, id: &str, volatile: bool) -> Result<MountSpec> {
        let info = self.info(id)?;
        if info.kind != SnapshotKind::Active {
            return Err(missing(id, "committed"));
        }
        let dir = self.dir(id);
        Ok(match info.parent {
            Some(parent) if self.0.overlay => MountSpec::Overlay(Overlay {
                lowers: self.chain(&parent)?,
                upper: Some(Upper { dir, work: self.home(id).join("work") }),
                userxattr: self.0.userxattr,
                volatile,
            }),
            _ => MountSpec::Bind { source: dir, readonly: false },
        })
    }

    /// What it takes on disk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn usage(&self, id: &str) -> Result<DiskUse> {
        if self.info(id)?.stack.is_some() {
            return Ok(DiskUse::default());
        }
        disk_use(&self.dir(id))
    }
}

/// Directories of a layer that is being unpacked. Dropped, they go to the trash.
pub struct LooseLayer {
    snapshots: Snapshots,
    id: String,
    adopted: bool,
}

impl LooseLayer {
    /// The name it will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where to unpack.
    pub fn dir(&self) -> PathBuf {
        self.snapshots.dir(&self.id)
    }

    /// Gives it the owner of what it will stand on.
    ///
    /// # Errors
    /// When that is missing, or the disk refuses.
    pub fn own_root(&self, parent: &str) -> Result<()> {
        self.snapshots.own_root(&self.dir(), parent)
    }

    /// The transaction it was adopted in went through.
    pub fn keep(mut self) {
        self.adopted = true;
    }
}

impl Drop for LooseLayer {
    fn drop(&mut self) {
        if !self.adopted {
            // If even this fails the next start finds it.
            _ = crate::throw_away(&self.snapshots.0.root, &self.snapshots.home(&self.id));
        }
    }
}

/// What a tree takes on disk. Does not follow symlinks nor enter other file
/// systems; what disappears meanwhile is not counted.
///
/// # Errors
/// When a directory cannot be read.
pub fn disk_use(root: &Path) -> Result<DiskUse> {
    let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
    let device = fs::symlink_metadata(root).map_err(Error::io("stat", root))?.dev();
    let mut used = DiskUse::default();
    let mut seen = HashSet::new();
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Err(e) if gone(&e) => continue,
            other => other.map_err(Error::io("stat", &path))?,
        };
        if meta.dev() != device || (!meta.is_dir() && meta.nlink() > 1 && !seen.insert(meta.ino())) {
            continue;
        }
        used.inodes += 1;
        used.bytes += meta.blocks() * 512;
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Err(e) if gone(&e) => {}
                other => {
                    for entry in other.map_err(Error::io("read", &path))? {
                        rest.push(entry.map_err(Error::io("read", &path))?.path());
                    }
                }
            }
        }
    }
    Ok(used)
}
