//! Changes, as they are made on disk.
//!
//! What replaces something is made under a name of its own and renamed. Bytes
//! come later: a file is first made empty, with all its attributes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::receive::MapEntry;
use super::root::{Root, proc_path};
use super::{Stat, mode};
use crate::Error;

/// Makes directories, links and empty files in a root, and removes things.
pub(super) struct Writer {
    root: Arc<Root>,
    map: Option<MapEntry>,
    /// When each directory was modified; set at the end, since making entries
    /// in a directory modifies it.
    times: BTreeMap<String, i64>,
    names: AtomicU64,
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// Nothing: the entry is not wanted.
    Nothing,
    /// An entry without bytes.
    Whole,
    /// An empty file that waits for its bytes.
    Empty,
}

impl Writer {
    pub(super) fn new(root: Arc<Root>, map: Option<MapEntry>) -> Self {
        Self { root, map, times: BTreeMap::new(), names: AtomicU64::new(rand::random()) }
    }

    /// Removes `path` and all that is below it. False when it is to stay.
    pub(super) fn remove(&mut self, path: &str) -> Result<bool, Error> {
        if let Some(map) = &self.map
            && !map(path, &mut Stat::default())
        {
            return Ok(false);
        }
        self.root.forget();
        self.remove_all(path)?;
        Ok(true)
    }

    fn remove_all(&self, path: &str) -> Result<(), Error> {
        let remove = || -> io::Result<()> {
            let (dir, name) = self.root.parent(path)?;
            match rustix::fs::unlinkat(&*dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => std::fs::remove_dir_all(self.root.path().join(path)),
                other => Ok(other?),
            }
        };
        match remove() {
            Err(e) if !super::walk::vanished(&e) => Err(Error::io("remove", path, e)),
            _ => Ok(()),
        }
    }

    /// Brings `path` into the state that `stat` says.
    pub(super) fn set(&mut self, stat: &Stat) -> Result<Made, Error> {
        let path = stat.path.as_str();
        let mut wanted = stat.clone();
        if let Some(map) = &self.map
            && !map(path, &mut wanted)
        {
            return Ok(Made::Nothing);
        }
        if stat.is_dir() {
            self.times.insert(path.to_owned(), wanted.mod_time);
        }
        let (dir, name) = self.root.parent(path).map_err(|e| Error::io("open parent of", path, e))?;
        let old = match rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(raw) => Some(FileType::from_raw_mode(raw.st_mode)),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(Error::io("stat", path, e)),
        };
        if stat.is_dir() && old == Some(FileType::Directory) {
            attributes(&*dir, name, &wanted).map_err(|e| Error::io("set attributes of", path, e))?;
            return Ok(Made::Whole);
        }
        let Some(old) = old else {
            return self.make(&dir, name, &wanted);
        };
        let temporary = format!(".tmp.{:09}", self.names.fetch_add(1, Ordering::Relaxed) % 1_000_000_000);
        let made = self.make(&dir, &temporary, &wanted).and_then(|made| {
            if stat.is_dir() != (old == FileType::Directory) {
                self.root.forget();
                self.remove_all(path)?;
            }
            rustix::fs::renameat(&*dir, temporary.as_str(), &*dir, name)
                .map_err(|e| Error::io("rename", path, e))?;
            // Renaming one link of a file to another one does nothing at all.
            if !wanted.linkname.is_empty() && !wanted.is_symlink() {
                _ = rustix::fs::unlinkat(&*dir, temporary.as_str(), AtFlags::empty());
            }
            Ok(made)
        });
        if made.is_err() {
            _ = rustix::fs::unlinkat(&*dir, temporary.as_str(), AtFlags::empty());
        }
        made
    }

    fn make(&self, dir: &OwnedFd, name: &str, stat: &Stat) -> Result<Made, Error> {
        let fail = |verb| move |e: io::Error| Error::io(verb, stat.path.clone(), e);
        let permissions = Mode::from_raw_mode(stat.permissions());
        let mut made = Made::Whole;
        if stat.is_dir() {
            rustix::fs::mkdirat(dir, name, permissions)
                .map_err(io::Error::from)
                .map_err(fail("create directory"))?;
        } else if stat.mode & (mode::DEVICE | mode::FIFO) != 0 {
            let (kind, device) = if stat.mode & mode::FIFO != 0 {
                (FileType::Fifo, 0)
            } else {
                let number = |n: i64| u32::try_from(n).map_err(|_| Errno::INVAL.into());
                let major = number(stat.devmajor).map_err(fail("create device"))?;
                let minor = number(stat.devminor).map_err(fail("create device"))?;
                let char = stat.mode & mode::CHAR_DEVICE != 0;
                let kind = if char { FileType::CharacterDevice } else { FileType::BlockDevice };
                (kind, rustix::fs::makedev(major, minor))
            };
            rustix::fs::mknodat(dir, name, kind, permissions, device)
                .map_err(io::Error::from)
                .map_err(fail("create device"))?;
        } else if stat.is_symlink() {
            rustix::fs::symlinkat(stat.linkname.as_str(), dir, name)
                .map_err(io::Error::from)
                .map_err(fail("create symlink"))?;
        } else if !stat.linkname.is_empty() {
            self.link(dir, name, stat).map_err(fail("create hard link"))?;
        } else {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, flags, permissions)
                .map_err(io::Error::from)
                .map_err(fail("create"))?;
            made = Made::Empty;
        }
        attributes(dir, name, stat).map_err(fail("set attributes of"))?;
        Ok(made)
    }

    fn link(&self, dir: &OwnedFd, name: &str, stat: &Stat) -> io::Result<()> {
        let (from, target) = self.root.parent(&stat.linkname)?;
        Ok(rustix::fs::linkat(&*from, target, dir, name, AtFlags::empty())?)
    }

    /// Gives directories the times they are to have.
    pub(super) fn finish(self) -> Result<(), Error> {
        for (path, time) in &self.times {
            let set = || -> io::Result<()> {
                let (dir, name) = self.root.parent(path)?;
                Ok(set_time(&*dir, name, *time)?)
            };
            match set() {
                Err(e) if !super::walk::vanished(&e) => {
                    return Err(Error::io("set times of", path.clone(), e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Sets when `name` was modified (and read), in nanoseconds since 1970.
pub(super) fn set_time(dir: impl AsFd, name: &str, nanos: i64) -> rustix::io::Result<()> {
    let time = Timespec { tv_sec: nanos.div_euclid(1_000_000_000), tv_nsec: nanos.rem_euclid(1_000_000_000) };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn attributes(dir: impl AsFd, name: &str, stat: &Stat) -> io::Result<()> {
    let dir = dir.as_fd();
    for (key, value) in &stat.xattrs {
        // Not every file system takes every attribute; the sender may be
        // another system altogether.
        _ = rustix::fs::lsetxattr(proc_path(dir, name), key.as_str(), value, XattrFlags::empty());
    }
    // All bits set means "leave it" to the kernel.
    if stat.uid == u32::MAX || stat.gid == u32::MAX {
        return Err(Errno::INVAL.into());
    }
    let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !stat.is_symlink() {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(stat.permissions()), AtFlags::empty())?;
    }
    Ok(set_time(dir, name, stat.mod_time)?)
}
