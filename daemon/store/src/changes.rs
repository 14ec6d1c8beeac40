//! What differs between two trees, in the order in which a layer lists it.
//!
//! Two ways to the same answer. [`double_walk`] compares trees entry by entry.
//! [`overlay_walk`] looks only at what an overlay's upper directory holds and
//! is what makes committing a step cheap. Both list names in byte order,
//! directories before what is in them, and call a file unmodified only when
//! its attributes and times say so; times without a fraction may have been cut
//! off by an archive, so then the contents are compared too.
//!
//! The trees are snapshots nobody writes to, which is why plain paths do here.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ChangeKind {
    /// Nothing, but it has other names, so a layer may need it.
    Unmodified,
    Add,
    Modify,
    Delete,
}

/// One difference.
#[derive(Debug)]
pub struct Change<'a> {
    /// What happened.
    pub kind: ChangeKind,
    /// Where, relative to both trees.
    pub path: &'a Path,
    /// What is there now; of a deletion, what was there or what marks it.
    pub meta: &'a Metadata,
}

/// A name in a directory and what it is.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// What it is, a symlink standing for itself.
    pub meta: Metadata,
}

/// Takes changes.
type Each<'a> = dyn FnMut(&Change<'_>) -> Result<()> + 'a;

/// A character device 0:0, the overlay's mark for a deleted file.
pub fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

pub(crate) fn list(dir: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let meta = entry.metadata().map_err(Error::io("stat", entry.path()))?;
        entries.push(Entry { name: entry.file_name(), meta });
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

pub(crate) fn lstat(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io("stat", path)(e)),
    }
}

/// Compares `upper` with `lower`, or with nothing.
///
/// # Errors
/// Those of `each` and of the file system.
pub fn double_walk(lower: Option<&Path>, upper: &Path, each: &mut Each<'_>) -> Result<()> {
    walk_both(lower, upper, Path::new(""), false, each)
}

/// `marks`: the upper tree may hold whiteouts, which are not there.
fn walk_both(lower: Option<&Path>, upper: &Path, rel: &Path, marks: bool, each: &mut Each<'_>) -> Result<()> {
    let mut below = match lower {
        Some(lower) => list(lower)?,
        None => Vec::new(),
    }
    .into_iter()
    .peekable();
    let mut above = list(upper)?.into_iter().filter(|e| !(marks && is_whiteout(&e.meta))).peekable();
    loop {
        let order = match (below.peek(), above.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(b), Some(a)) => b.name.cmp(&a.name),
        };
        let old = if order.is_le() { below.next() } else { None };
        let new = if order.is_ge() { above.next() } else { None };
        let Some(new) = new else {
            if let Some(old) = old {
                let path = rel.join(&old.name);
                each(&Change { kind: ChangeKind::Delete, path: &path, meta: &old.meta })?;
            }
            continue;
        };
        let (path, full) = (rel.join(&new.name), upper.join(&new.name));
        let old_full = old.as_ref().and_then(|old| Some(lower?.join(&old.name)));
        let kind = match (&old, &old_full) {
            (Some(old), Some(old_full)) if same(&old.meta, &new.meta, old_full, &full)? => {
                (!new.meta.is_dir() && new.meta.nlink() > 1).then_some(ChangeKind::Unmodified)
            }
            (Some(_), _) => Some(ChangeKind::Modify),
            (None, _) => Some(ChangeKind::Add),
        };
        if let Some(kind) = kind {
            each(&Change { kind, path: &path, meta: &new.meta })?;
        }
        if new.meta.is_dir() {
            let was_dir = old.is_some_and(|old| old.meta.is_dir());
            walk_both(old_full.as_deref().filter(|_| was_dir), &full, &path, marks, each)?;
        }
    }
}

/// Compares what an overlay of `upper` on `lower` shows with `lower`.
///
/// # Errors
/// Those of `each` and of the file system; [`Error::Snapshot`] when `upper`
/// refers to renamed directories below.
pub fn overlay_walk(lower: Option<&Path>, upper: &Path, each: &mut Each<'_>) -> Result<()> {
    walk_upper(lower, upper, Path::new(""), each)
}

fn walk_upper(lower: Option<&Path>, upper: &Path, rel: &Path, each: &mut Each<'_>) -> Result<()> {
    for entry in list(upper)? {
        let (path, full, meta) = (rel.join(&entry.name), upper.join(&entry.name), &entry.meta);
        let old_full = lower.map(|lower| lower.join(&entry.name));
        let old = match &old_full {
            Some(path) => lstat(path)?,
            None => None,
        };
        if is_whiteout(meta) {
            // A mark over nothing is nothing.
            if old.is_some() {
                each(&Change { kind: ChangeKind::Delete, path: &path, meta })?;
            }
            continue;
        }
        let kind = match (&old, &old_full) {
            (Some(old), Some(old_full)) => (!same(old, meta, old_full, &full)?).then_some(ChangeKind::Modify),
            _ => Some(ChangeKind::Add),
        };
        if let Some(kind) = kind {
            each(&Change { kind, path: &path, meta })?;
        }
        if !meta.is_dir() {
            continue;
        }
        if sys::xattr::get(&full, "trusted.overlay.redirect")?.is_some_and(|v| !v.is_empty()) {
            return Err(Error::Snapshot {
                id: full.display().to_string(),
                reason: "refers to a renamed directory, which no layer can express",
            });
        }
        let was_dir = old.as_ref().is_some_and(Metadata::is_dir);
        let old_dir = old_full.as_deref().filter(|_| was_dir);
        if old.is_some() && is_opaque(&full)? {
            walk_both(old_dir, &full, &path, true, each)?;
        } else {
            walk_upper(old_dir, &full, &path, each)?;
        }
    }
    Ok(())
}

pub(crate) fn is_opaque(dir: &Path) -> Result<bool> {
    for key in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        if sys::xattr::get(dir, key)?.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether nothing happened between the two.
fn same(old: &Metadata, new: &Metadata, old_path: &Path, new_path: &Path) -> Result<bool> {
    if old.dev() == new.dev() && old.ino() == new.ino() {
        return Ok(true);
    }
    let attributes = |m: &Metadata| (m.mode(), m.uid(), m.gid(), m.rdev());
    if attributes(old) != attributes(new) || capability(old_path)? != capability(new_path)? {
        return Ok(false);
    }
    if new.is_dir() {
        return Ok(true);
    }
    if (old.len(), old.mtime(), old.mtime_nsec()) != (new.len(), new.mtime(), new.mtime_nsec()) {
        return Ok(false);
    }
    if new.mtime_nsec() != 0 {
        return Ok(true);
    }
    if new.is_symlink() {
        let target = |path: &Path| fs::read_link(path).map_err(Error::io("read link", path));
        return Ok(target(old_path)? == target(new_path)?);
    }
    if new.len() == 0 || !new.is_file() {
        return Ok(true);
    }
    same_content(old_path, new_path)
}

fn capability(path: &Path) -> Result<Option<Vec<u8>>> {
    Ok(sys::xattr::get(path, "security.capability")?)
}

fn same_content(a: &Path, b: &Path) -> Result<bool> {
    let open = |path: &PathBuf| File::open(path).map_err(Error::io("open", path));
    let (pa, pb) = (a.to_owned(), b.to_owned());
    let (mut fa, mut fb) = (open(&pa)?, open(&pb)?);
    let (mut ba, mut bb) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let (na, nb) = (fill(&mut fa, &mut ba, a)?, fill(&mut fb, &mut bb, b)?);
        if ba.get(..na) != bb.get(..nb) {
            return Ok(false);
        }
        if na == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buf: &mut [u8], path: &Path) -> Result<usize> {
    let mut n = 0;
    while let Some(rest) = buf.get_mut(n..).filter(|r| !r.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path)(e)),
        }
    }
    Ok(n)
}
