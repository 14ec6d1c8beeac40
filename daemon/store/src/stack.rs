//! Layers outside of the stack they were made for.
//!
//! A layer's whiteouts refer to what was below when it was made. Stacked on
//! something else some may hide nothing, and then the kernel, which does not
//! merge a directory that only one layer has, shows them as names of nothing.
//! Such a layer is used through a copy of links without those whiteouts. A
//! directory that hides everything, which the kernel also makes of new ones,
//! would hide what it never knew of; the copy names what it did know instead.
//! What the kernel has in a layer though nothing was done to it, such as the
//! directory of a file that came and went, would show too; the copy is without.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};

use crate::apply::Whiteouts;
use crate::changes::{Change, ChangeKind, double_walk, is_opaque, is_whiteout, list, lstat, overlay_walk};
use crate::copy::{copy_attributes, copy_one};
use crate::{Error, Result};

/// What a layer does, seen apart from what it was made on.
#[derive(Default)]
pub struct Doings {
    /// What it deleted of what is beneath it now, by the directory it is in; relative.
    deleted: HashMap<PathBuf, Vec<OsString>>,
    /// What it has that is new or different, and the directories on the way to that and
    /// to what it deleted.
    made: HashSet<PathBuf>,
    exact: bool,
}

impl Doings {
    /// Whether the layer, as it is, does this and nothing else.
    pub fn is_exact(&self) -> bool {
        self.exact
    }
}

/// What `layer` does to the layers `beneath`, topmost first: what it did to the
/// tree `made_on`, deletions as far as they are of something beneath, too.
///
/// # Errors
/// When a layer cannot be read.
pub fn doings(layer: &Path, made_on: &Path, beneath: &[PathBuf]) -> Result<Doings> {
    let mut doings = Doings { exact: true, ..Doings::default() };
    overlay_walk(Some(made_on), layer, &mut |change| {
        match change.kind {
            ChangeKind::Unmodified => return Ok(()),
            ChangeKind::Delete => {
                if let (Some(dir), Some(name)) = (change.path.parent(), change.path.file_name())
                    && is_visible(change.path, beneath)?
                {
                    doings.deleted.entry(dir.to_owned()).or_default().push(name.to_owned());
                }
            }
            ChangeKind::Add | ChangeKind::Modify => {
                doings.made.insert(change.path.to_owned());
            }
        }
        let above = change.path.ancestors().skip(1).take_while(|dir| !dir.as_os_str().is_empty());
        for dir in above {
            if !doings.made.insert(dir.to_owned()) {
                break;
            }
        }
        Ok(())
    })?;
    let mut rest = vec![PathBuf::new()];
    while let Some(dir) = rest.pop() {
        let deleted = doings.deleted.get(&dir);
        for entry in list(&layer.join(&dir))? {
            let path = dir.join(&entry.name);
            doings.exact &= match is_whiteout(&entry.meta) {
                true => deleted.is_some_and(|names| names.contains(&entry.name)),
                false => doings.made.contains(&path),
            };
            if entry.meta.is_dir() {
                doings.exact &= !is_opaque(&layer.join(&path))?;
                rest.push(path);
            }
        }
        if !doings.exact {
            break;
        }
    }
    Ok(doings)
}

/// Whether some directory of a layer hides all there is below it.
///
/// # Errors
/// When the layer cannot be read.
pub fn has_opaque(layer: &Path) -> Result<bool> {
    let mut rest = vec![layer.to_owned()];
    while let Some(dir) = rest.pop() {
        if is_opaque(&dir)? {
            return Ok(true);
        }
        rest.extend(list(&dir)?.into_iter().filter(|e| e.meta.is_dir()).map(|e| dir.join(e.name)));
    }
    Ok(false)
}

/// Whether a stack of layers shows something at `path`.
fn is_visible(path: &Path, layers: &[PathBuf]) -> Result<bool> {
    'layers: for layer in layers {
        let mut at = layer.clone();
        let mut last = false;
        let mut parts = path.components().peekable();
        while let Some(Component::Normal(part)) = parts.next() {
            at.push(part);
            let Some(meta) = lstat(&at)? else {
                if last {
                    return Ok(false);
                }
                continue 'layers;
            };
            if is_whiteout(&meta) {
                return Ok(false);
            }
            if parts.peek().is_none() {
                return Ok(true);
            }
            if !meta.is_dir() {
                return Ok(false);
            }
            // Nothing below this layer counts any more.
            last |= is_opaque(&at)?;
        }
        if last {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Makes the existing, empty directory `to` the layer `from`, doing just
/// `doings`. Files are the same files under another name.
///
/// # Errors
/// What the file system says.
pub fn link_layer(from: &Path, to: &Path, doings: &Doings) -> Result<()> {
    link_dir(from, to, Path::new(""), doings)
}

fn link_dir(from: &Path, to: &Path, rel: &Path, doings: &Doings) -> Result<()> {
    for entry in list(from)? {
        let path = rel.join(&entry.name);
        if is_whiteout(&entry.meta) || !doings.made.contains(&path) {
            continue;
        }
        let (source, target) = (from.join(&entry.name), to.join(&entry.name));
        if entry.meta.is_dir() {
            fs::create_dir(&target).map_err(Error::io("create", &target))?;
            link_dir(&source, &target, &path, doings)?;
        } else {
            match fs::hard_link(&source, &target) {
                // As many names as the file system allows.
                Err(e) if e.kind() == io::ErrorKind::TooManyLinks => {
                    copy_one(&source, &target, &entry.meta)?;
                    copy_attributes(&source, &target, &entry.meta)?;
                }
                other => other.map_err(Error::io("link", &target))?,
            }
        }
    }
    for name in doings.deleted.get(rel).into_iter().flatten() {
        mark_deleted(&to.join(name))?;
    }
    let meta = fs::symlink_metadata(from).map_err(Error::io("stat", from))?;
    copy_attributes(from, to, &meta)
}

/// Does to the tree or layer in `to` what turned `lower` into `upper`. With
/// [`Whiteouts::Overlay`] deletions are marked, otherwise done.
///
/// # Errors
/// What the file system says.
pub fn apply_changes(
    lower: Option<&Path>,
    upper: Option<&Path>,
    to: &Path,
    whiteouts: Whiteouts,
) -> Result<()> {
    let Some(upper) = upper else {
        let lower = lower.map(list).transpose()?.unwrap_or_default();
        return lower.iter().try_for_each(|entry| delete(to, Path::new(&entry.name), whiteouts));
    };
    let mut names: HashMap<u64, PathBuf> = HashMap::new();
    let mut dirs = Vec::new();
    double_walk(lower, upper, &mut |change: &Change<'_>| {
        parents(upper, to, change.path, &mut dirs)?;
        if change.kind == ChangeKind::Delete {
            return delete(to, change.path, whiteouts);
        }
        if change.kind == ChangeKind::Unmodified {
            return Ok(());
        }
        let (source, target) = (upper.join(change.path), to.join(change.path));
        let there = lstat(&target)?;
        let merge = change.meta.is_dir() && there.as_ref().is_some_and(fs::Metadata::is_dir);
        if there.is_some() && !merge {
            remove(&target)?;
        }
        if !change.meta.is_dir() && change.meta.nlink() > 1 {
            if let Some(first) = names.get(&change.meta.ino()) {
                return fs::hard_link(first, &target).map_err(Error::io("link", &target));
            }
            names.insert(change.meta.ino(), target.clone());
        }
        if is_socket(change.meta) {
            return Ok(());
        }
        if !merge {
            copy_one(&source, &target, change.meta)?;
        }
        copy_attributes(&source, &target, change.meta)?;
        if change.meta.is_dir() {
            dirs.push(change.path.to_owned());
        }
        Ok(())
    })?;
    // Once more, as filling directories changed their times.
    for path in dirs.iter().rev() {
        let (source, target) = (upper.join(path), to.join(path));
        if let (Some(meta), Some(there)) = (lstat(&source)?, lstat(&target)?)
            && there.is_dir()
        {
            copy_attributes(&source, &target, &meta)?;
        }
    }
    Ok(())
}

fn is_socket(meta: &fs::Metadata) -> bool {
    FileType::from_raw_mode(meta.mode()) == FileType::Socket
}

/// Makes the directories above `path` that are unchanged and so were not listed.
fn parents(upper: &Path, to: &Path, path: &Path, dirs: &mut Vec<PathBuf>) -> Result<()> {
    let mut missing = Vec::new();
    let mut next = path.parent();
    while let Some(parent) = next.filter(|p| !p.as_os_str().is_empty()) {
        match lstat(&to.join(parent))? {
            Some(meta) if meta.is_dir() => break,
            Some(_) => {
                remove(&to.join(parent))?;
                missing.push(parent);
            }
            None => missing.push(parent),
        }
        next = parent.parent();
    }
    for parent in missing.into_iter().rev() {
        let (source, target) = (upper.join(parent), to.join(parent));
        // A deletion below what is no directory any more has nothing to stand in.
        let Some(meta) = lstat(&source)?.filter(fs::Metadata::is_dir) else { return Ok(()) };
        copy_one(&source, &target, &meta)?;
        copy_attributes(&source, &target, &meta)?;
        dirs.push(parent.to_owned());
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    Ok(sys::path::Root::open(parent)?.dir().remove_all(name)?)
}

fn delete(to: &Path, path: &Path, whiteouts: Whiteouts) -> Result<()> {
    let target = to.join(path);
    remove(&target)?;
    match whiteouts {
        Whiteouts::Remove => Ok(()),
        Whiteouts::Overlay { .. } => mark_deleted(&target),
    }
}

fn mark_deleted(path: &Path) -> Result<()> {
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0)
        .map_err(Error::io("create", path))
}
