//! Unpacking a layer into a directory, whatever its author had in mind.
//!
//! Every path of an entry, every target of a hard link and every parent is
//! resolved inside the directory by the kernel ([`sys::path::Root`]); symlinks
//! are created but never followed outside. Entries replace what earlier ones
//! put there, except that directories merge.
//!
//! A layer that goes on top of others as an overlay does not need them while
//! it is unpacked: deletions become overlay whiteouts. Directories that are
//! only implied by a path get 0755 and are listed in [`Applied::implied`];
//! [`inherit`] gives them the attributes they have in the layers below, once
//! those are there.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use base::Timestamp;
use rustix::fs::{FileType, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use sys::path::{Dir, Make, Owner, Root};

use crate::tar::{Header, Kind, Reader};
use crate::{Error, Result};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of this sort are notes of an old union file system.
const NOTE: &[u8] = b".wh..wh.";

/// What deletions in a layer turn into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// The files go away: for the lowest layer, and for trees that are copies.
    Remove,
    /// Marks that the kernel's overlay understands.
    Overlay {
        /// In `user.` rather than `trusted.` attributes.
        userxattr: bool,
    },
}

/// What came of unpacking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Bytes of all files.
    pub bytes: u64,
    /// Directories that no entry described, outermost first, relative.
    pub implied: Vec<PathBuf>,
}

/// Unpacks the uncompressed archive `input` into `dir`. Stops at the
/// archive's end mark, which need not be the end of `input`.
///
/// # Errors
/// [`Error::Archive`] for a broken or malicious archive, or what the file
/// system says. What was unpacked until then is left to the caller.
pub fn apply(input: impl Read, dir: &Path, whiteouts: Whiteouts) -> Result<Applied> {
    let mut unpack = Unpack {
        root: Root::open(dir)?,
        whiteouts,
        parent: None,
        seen: HashMap::new(),
        gone: HashSet::new(),
        implied: Vec::new(),
        dirs: Vec::new(),
        bytes: 0,
    };
    let mut reader = Reader::new(input);
    while let Some(header) = reader.next_entry()? {
        unpack.entry(&header, &mut reader)?;
    }
    unpack.finish()
}

/// Gives the `implied` directories of the layer in `dir` the owner,
/// permissions, times and attributes they have in the layers below, topmost
/// first. What the layers below do not have as a directory stays as it is.
///
/// # Errors
/// What the file system says.
pub fn inherit(dir: &Path, implied: &[PathBuf], lowers: &[PathBuf]) -> Result<()> {
    if implied.is_empty() || lowers.is_empty() {
        return Ok(());
    }
    let root = Root::open(dir)?;
    let lowers = lowers.iter().map(Root::open).collect::<sys::Result<Vec<_>>>()?;
    // Innermost first: giving a directory its times must come after its children's.
    for path in implied.iter().rev() {
        for lower in &lowers {
            let stat = match lower.stat(path) {
                Ok(stat) => stat,
                Err(e) if is_missing(&e) => continue,
                Err(e) => return Err(e.into()),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                copy_attributes(lower, &root, path, &stat)?;
            }
            break;
        }
    }
    Ok(())
}

fn is_missing(e: &sys::Error) -> bool {
    matches!(
        e.source.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
    )
}

fn copy_attributes(from: &Root, to: &Root, path: &Path, stat: &sys::path::Stat) -> Result<()> {
    let (dir, name) = to.open_parent(path)?;
    dir.chown(&name, Owner { uid: stat.st_uid, gid: stat.st_gid })?;
    let (lower, lower_name) = from.open_parent(path)?;
    for (key, value) in lower.xattrs(&lower_name)? {
        if !key.as_bytes().starts_with(b"trusted.") && !key.as_bytes().starts_with(b"user.overlay.") {
            set_xattr(&dir, &name, key.as_bytes(), &value, true)?;
        }
    }
    dir.chmod(&name, stat.st_mode & 0o7777)?;
    let time = |secs: i64, nanos: u64| {
        Timestamp::from_nanos(secs.saturating_mul(1_000_000_000).saturating_add(nanos as i64))
    };
    dir.utimens(&name, time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec))?;
    Ok(())
}

struct Unpack {
    root: Root,
    whiteouts: Whiteouts,
    /// The directory of the last entry, as most have the same as their
    /// neighbours. Forgotten whenever something is removed.
    parent: Option<(PathBuf, Dir)>,
    /// What entries put there: resolved path, and whether it is a directory.
    /// Deletions in this layer do not concern them.
    seen: HashMap<PathBuf, bool>,
    /// What this layer deletes from those below.
    gone: HashSet<PathBuf>,
    implied: Vec<PathBuf>,
    dirs: Vec<(PathBuf, Timestamp)>,
    bytes: u64,
}

/// The name without dots, doubled slashes and leading slash. `None` for the root.
fn clean(name: &[u8]) -> Option<PathBuf> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| PathBuf::from(OsString::from_vec(parts.join(&b'/'))))
}

impl Unpack {
    fn entry<R: Read>(&mut self, header: &Header, reader: &mut Reader<R>) -> Result<()> {
        if header.kind == Kind::Global {
            return Ok(());
        }
        let Some(path) = clean(&header.name) else { return Ok(()) };
        let Some(name) = path.file_name().map(OsStr::to_owned) else { return Ok(()) };
        let parent = self.open_parent(&path, header)?;
        let place = relative(parent.path()).join(&name);
        if let Some(deleted) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(header, &parent, name.as_bytes(), deleted);
        }
        let is_dir = header.kind == Kind::Directory;
        self.make_room(&parent, &name, &place, is_dir)?;
        self.create(header, reader, &parent, &name)?;
        if is_dir {
            if self.gone.contains(&place) {
                self.set_opaque(&parent, &name)?;
            }
            self.implied.retain(|p| *p != place);
            self.dirs.push((place.clone(), modified(header)));
        }
        self.seen.insert(place, is_dir);
        self.bytes = self.bytes.saturating_add(header.size);
        Ok(())
    }

    /// The directory the entry goes into, made if need be.
    fn open_parent(&mut self, path: &Path, header: &Header) -> Result<Dir> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if let Some((known, dir)) = &self.parent
            && known == parent
        {
            return Ok(dir.try_clone()?);
        }
        let dir = match self.root.open_dir(parent) {
            Ok(dir) => self.resolved(parent, dir)?,
            Err(e) if is_missing(&e) => {
                let make = Make { mode: 0o755, owner: None, time: None };
                let made = self.root.mkdir_all(parent, &make).map_err(|e| {
                    if is_missing(&e) {
                        Error::archive(&header.name, "a parent is not a directory")
                    } else {
                        e.into()
                    }
                })?;
                for dir in made {
                    let dir = relative(&dir);
                    self.seen.insert(dir.clone(), true);
                    self.implied.push(dir);
                }
                let dir = self.root.open_dir(parent)?;
                self.resolved(parent, dir)?
            }
            Err(e) => return Err(e.into()),
        };
        self.parent = Some((parent.to_owned(), dir.try_clone()?));
        Ok(dir)
    }

    /// `dir` under the name it really has, when symlinks led there.
    fn resolved(&self, parent: &Path, dir: Dir) -> Result<Dir> {
        let real = self.root.resolve(parent, true)?;
        if real == dir.path() {
            return Ok(dir);
        }
        Ok(self.root.open_dir(&real)?)
    }

    /// Removes what is in the way; a directory stays for a directory.
    fn make_room(&mut self, parent: &Dir, name: &OsStr, place: &Path, is_dir: bool) -> Result<()> {
        let Some(stat) = parent.lstat_opt(name)? else { return Ok(()) };
        if is_dir && FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(());
        }
        self.remove(parent, name, place)
    }

    fn remove(&mut self, parent: &Dir, name: &OsStr, place: &Path) -> Result<()> {
        parent.remove_all(name)?;
        self.parent = None;
        self.seen.retain(|path, _| !path.starts_with(place));
        self.implied.retain(|path| !path.starts_with(place));
        Ok(())
    }

    fn whiteout(&mut self, header: &Header, parent: &Dir, name: &[u8], deleted: &[u8]) -> Result<()> {
        if name == OPAQUE {
            return self.opaque(parent);
        }
        if name.starts_with(NOTE) {
            return Ok(());
        }
        if matches!(deleted, b"" | b"." | b"..") {
            return Err(Error::archive(&header.name, "invalid whiteout"));
        }
        let deleted = OsStr::from_bytes(deleted);
        let place = relative(parent.path()).join(deleted);
        let own = self.seen.get(&place).copied();
        match (self.whiteouts, own) {
            // What this layer itself brings is not meant.
            (Whiteouts::Remove, None) => self.remove(parent, deleted, &place),
            (Whiteouts::Remove, Some(false)) | (Whiteouts::Overlay { .. }, Some(false)) => Ok(()),
            (Whiteouts::Remove, Some(true)) => self.remove_others(&place),
            (Whiteouts::Overlay { .. }, Some(true)) => self.set_opaque(parent, deleted),
            (Whiteouts::Overlay { .. }, None) => {
                self.gone.insert(place);
                if parent.lstat_opt(deleted)?.is_none() {
                    parent.mknod(deleted, FileType::CharacterDevice, 0, 0)?;
                    let owner = owner(header)?;
                    parent.chown(deleted, owner)?;
                }
                Ok(())
            }
        }
    }

    /// Everything the layers below have in `dir` goes away.
    fn opaque(&mut self, dir: &Dir) -> Result<()> {
        let place = relative(dir.path());
        match self.whiteouts {
            Whiteouts::Remove => self.remove_others(&place),
            Whiteouts::Overlay { userxattr } => {
                // Through the descriptor: it has no name to go by if it is the root.
                let (dir, name) = self.root.open_parent(&place)?;
                mark_opaque(&dir, &name, userxattr)
            }
        }
    }

    fn set_opaque(&self, parent: &Dir, name: &OsStr) -> Result<()> {
        match self.whiteouts {
            Whiteouts::Overlay { userxattr } => mark_opaque(parent, name, userxattr),
            Whiteouts::Remove => Ok(()),
        }
    }

    /// Removes what is below `place` and was not put there by this layer.
    fn remove_others(&mut self, place: &Path) -> Result<()> {
        let dir = self.root.open_dir(place)?;
        for entry in dir.list()? {
            let path = place.join(&entry.name);
            match self.seen.get(&path) {
                None => dir.remove_all(&entry.name)?,
                Some(true) => self.remove_others(&path)?,
                Some(false) => {}
            }
        }
        self.parent = None;
        Ok(())
    }

    fn create<R: Read>(
        &mut self,
        header: &Header,
        reader: &mut Reader<R>,
        dir: &Dir,
        name: &OsStr,
    ) -> Result<()> {
        let mode = header.mode & 0o7777;
        match header.kind {
            Kind::Regular => return self.file(header, reader, dir, name),
            Kind::Directory => {
                dir.mkdir(name, mode)?;
            }
            Kind::Symlink => dir.symlink(OsStr::from_bytes(&header.link), name)?,
            Kind::HardLink => self.hard_link(header, dir, name)?,
            Kind::Character | Kind::Block | Kind::Fifo => {
                let (kind, device) = match header.kind {
                    Kind::Character => (FileType::CharacterDevice, device(header)),
                    Kind::Block => (FileType::BlockDevice, device(header)),
                    _ => (FileType::Fifo, 0),
                };
                dir.mknod(name, kind, mode, device)?;
            }
            Kind::Global | Kind::Other(_) => {
                return Err(Error::archive(&header.name, format!("unsupported type {:?}", header.kind)));
            }
        }
        dir.chown(name, owner(header)?)?;
        self.xattrs(header, dir, name)?;
        // A hard link may name a symlink; those have no permissions.
        if header.kind != Kind::Symlink
            && FileType::from_raw_mode(dir.lstat(name)?.st_mode) != FileType::Symlink
        {
            dir.chmod(name, mode)?;
        }
        let time = modified(header);
        dir.utimens(name, time, time)?;
        Ok(())
    }

    fn file<R: Read>(&self, header: &Header, reader: &mut Reader<R>, dir: &Dir, name: &OsStr) -> Result<()> {
        let path = dir.path_of(Path::new(name));
        let file = dir.create(name, 0o600)?;
        reader
            .copy_data(|offset, bytes| file.write_all_at(bytes, offset).map_err(Error::io("write", &path)))?;
        let stat = rustix::fs::fstat(&file).map_err(Error::io("stat", &path))?;
        if u64::try_from(stat.st_size).ok() != Some(header.size) {
            file.set_len(header.size).map_err(Error::io("extend", &path))?;
        }
        let owner = owner(header)?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
            .map_err(Error::io("chown", &path))?;
        self.xattrs(header, dir, name)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(header.mode & 0o7777))
            .map_err(Error::io("chmod", &path))?;
        let time = modified(header);
        let time = Timespec { tv_sec: time.secs(), tv_nsec: time.subsec_nanos().into() };
        rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
            .map_err(Error::io("set times of", &path))
    }

    fn hard_link(&self, header: &Header, dir: &Dir, name: &OsStr) -> Result<()> {
        let bad = |reason: String| Error::archive(&header.name, reason);
        let target = clean(&header.link).ok_or_else(|| bad("hard link to the root".into()))?;
        let (from, from_name) = self
            .root
            .open_parent(&target)
            .map_err(|e| bad(format!("hard link to {}: {}", target.display(), e.source)))?;
        dir.link(&from, &from_name, name)
            .map_err(|e| bad(format!("hard link to {}: {}", target.display(), e.source)))
    }

    fn xattrs(&self, header: &Header, dir: &Dir, name: &OsStr) -> Result<()> {
        let special = !matches!(header.kind, Kind::Regular | Kind::Directory);
        for (key, value) in header.xattrs() {
            // What steers the overlay is not the author's to say.
            if key.starts_with(b"trusted.") || key.starts_with(b"user.overlay.") {
                continue;
            }
            if key.is_empty() || key.contains(&0) {
                return Err(Error::archive(&header.name, "invalid attribute name"));
            }
            set_xattr(dir, name, key, value, special && key.starts_with(b"user."))?;
        }
        Ok(())
    }

    /// Directories get their times last, as putting things into them changes those.
    fn finish(self) -> Result<Applied> {
        for (path, time) in self.dirs.iter().rev() {
            if self.seen.get(path) != Some(&true) {
                continue;
            }
            let (dir, name) = self.root.open_parent(path)?;
            if dir.is_dir(&name)? {
                dir.utimens(&name, *time, *time)?;
            }
        }
        Ok(Applied { bytes: self.bytes, implied: self.implied })
    }
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

fn mark_opaque(dir: &Dir, name: &OsStr, userxattr: bool) -> Result<()> {
    let key = if userxattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
    Ok(dir.set_xattr(name, OsStr::new(key), b"y")?)
}

/// File systems without attributes do without; so do, with `lenient`, files
/// that cannot have them.
fn set_xattr(dir: &Dir, name: &OsStr, key: &[u8], value: &[u8], lenient: bool) -> Result<()> {
    match dir.set_xattr(name, OsStr::from_bytes(key), value) {
        Err(e) if e.source.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(()),
        Err(e) if lenient && e.source.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(()),
        other => Ok(other?),
    }
}

fn owner(header: &Header) -> Result<Owner> {
    let id = |id: u64| {
        // The last one means "nobody in particular" to the kernel.
        u32::try_from(id).ok().filter(|id| *id != u32::MAX)
    };
    match (id(header.uid), id(header.gid)) {
        (Some(uid), Some(gid)) => Ok(Owner { uid, gid }),
        _ => Err(Error::archive(&header.name, "owner out of range")),
    }
}

fn device(header: &Header) -> u64 {
    rustix::fs::makedev(header.dev_major, header.dev_minor)
}

/// When it was modified. Times before 1970 become 1970, as every unpacker of
/// images makes them.
fn modified(header: &Header) -> Timestamp {
    let nanos =
        header.mtime.checked_mul(1_000_000_000).and_then(|n| n.checked_add(header.mtime_nanos.into()));
    Timestamp::from_nanos(nanos.unwrap_or(0).max(0))
}
