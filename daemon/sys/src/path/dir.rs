//! One directory of a root, and what can be done to the names in it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base::Timestamp;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RawDir, Stat, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::{OPEN_DIR, OPEN_PATH, OPEN_READ, Owner, Root};
use crate::{Error, Result};

/// An open directory. Names given to it are single components, or `.`.
#[derive(Debug)]
pub struct Dir {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// What it is; [`FileType::Unknown`] when the file system does not say.
    pub kind: FileType,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Where it is inside the root, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its own path when `name` is `.`, else that of `name` in it.
    pub fn path_of(&self, name: impl AsRef<Path>) -> PathBuf {
        let name = name.as_ref();
        if name == Path::new(".") { self.path.clone() } else { self.path.join(name) }
    }

    /// The same directory on another descriptor.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|e| Error::new("dup", &self.path, e))?;
        Ok(Self { fd, path: self.path.clone() })
    }

    /// Makes this directory a root of its own.
    pub fn into_root(self) -> Root {
        Root::from_fd(self.fd)
    }

    fn fail(&self, call: &'static str, name: &Path) -> impl FnOnce(Errno) -> Error + use<> {
        let path = self.path_of(name);
        move |e| Error::new(call, path, e)
    }

    fn openat(&self, name: &Path, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
        single(name)?;
        loop {
            match fs::openat(&self.fd, name, flags | OFlags::NOFOLLOW, Mode::from_raw_mode(mode)) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Opens the directory `name`; a symlink is none.
    ///
    /// # Errors
    /// When it is no directory or cannot be opened.
    pub fn open_dir(&self, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        let fd = self.openat(name, OPEN_DIR, 0).map_err(self.fail("open", name))?;
        Ok(Self { fd, path: self.path_of(name) })
    }

    /// Opens the file `name` for reading. Does not wait for the other end of a FIFO.
    ///
    /// # Errors
    /// When it is a symlink or cannot be opened.
    pub fn open_read(&self, name: impl AsRef<Path>) -> Result<File> {
        let name = name.as_ref();
        self.openat(name, OPEN_READ, 0).map(File::from).map_err(self.fail("open", name))
    }

    /// Opens the file `name` for writing from its beginning, its old content
    /// gone. Does not make it.
    ///
    /// # Errors
    /// When it is a symlink, missing, or cannot be written.
    pub fn open_truncated(&self, name: impl AsRef<Path>) -> Result<File> {
        let name = name.as_ref();
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.openat(name, flags, 0).map(File::from).map_err(self.fail("open", name))
    }

    /// Opens the file `name` for reading and writing, its content as it is. Does not
    /// make it, nor wait for the other end of a FIFO.
    ///
    /// # Errors
    /// When it is a symlink, missing, or cannot be written.
    pub fn open_write(&self, name: impl AsRef<Path>) -> Result<File> {
        let name = name.as_ref();
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.openat(name, flags, 0).map(File::from).map_err(self.fail("open", name))
    }

    /// Makes the file `name`, open for reading and writing, with exactly these
    /// permission bits.
    ///
    /// # Errors
    /// When something of that name is there.
    pub fn create(&self, name: impl AsRef<Path>, mode: u32) -> Result<File> {
        let name = name.as_ref();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = self.openat(name, flags, mode & 0o777).map_err(self.fail("open", name))?;
        fs::fchmod(&fd, Mode::from_raw_mode(mode & 0o7777)).map_err(self.fail("chmod", name))?;
        Ok(File::from(fd))
    }

    /// Makes the directory `name` with exactly these permission bits. `false`
    /// when a directory of that name was there already.
    ///
    /// # Errors
    /// When something else of that name is there, or the kernel refuses.
    pub fn mkdir(&self, name: impl AsRef<Path>, mode: u32) -> Result<bool> {
        let name = name.as_ref();
        single(name).map_err(self.fail("mkdir", name))?;
        match fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode & 0o777)) {
            Ok(()) => {
                self.chmod(name, mode)?;
                Ok(true)
            }
            Err(Errno::EXIST) if self.is_dir(name)? => Ok(false),
            Err(e) => Err(self.fail("mkdir", name)(e)),
        }
    }

    /// Whether `name` is a directory, not a symlink to one.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn is_dir(&self, name: impl AsRef<Path>) -> Result<bool> {
        let stat = self.lstat_opt(name)?;
        Ok(stat.is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory))
    }

    /// Makes the symlink `name` that says `target`.
    ///
    /// # Errors
    /// When something of that name is there.
    pub fn symlink(&self, target: impl AsRef<Path>, name: impl AsRef<Path>) -> Result<()> {
        let name = name.as_ref();
        single(name)
            .and_then(|()| fs::symlinkat(target.as_ref(), &self.fd, name))
            .map_err(self.fail("symlink", name))
    }

    /// Makes `name` another name of `from_name` in `from`.
    ///
    /// # Errors
    /// When something of that name is there, or the kernel refuses.
    pub fn link(&self, from: &Self, from_name: impl AsRef<Path>, name: impl AsRef<Path>) -> Result<()> {
        let (from_name, name) = (from_name.as_ref(), name.as_ref());
        single(name)
            .and_then(|()| single(from_name))
            .and_then(|()| fs::linkat(&from.fd, from_name, &self.fd, name, AtFlags::empty()))
            .map_err(self.fail("link", name))
    }

    /// Moves `name` to `to_name` in `to`, replacing what is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rename(&self, name: impl AsRef<Path>, to: &Self, to_name: impl AsRef<Path>) -> Result<()> {
        let (name, to_name) = (name.as_ref(), to_name.as_ref());
        single(name)
            .and_then(|()| single(to_name))
            .and_then(|()| fs::renameat(&self.fd, name, &to.fd, to_name))
            .map_err(self.fail("rename", name))
    }

    /// Makes a device, FIFO or, for any other kind, an empty file.
    ///
    /// # Errors
    /// When something of that name is there, or the kernel refuses.
    pub fn mknod(&self, name: impl AsRef<Path>, kind: FileType, mode: u32, device: u64) -> Result<()> {
        let name = name.as_ref();
        let kind = match kind {
            FileType::BlockDevice | FileType::CharacterDevice | FileType::Fifo => kind,
            _ => FileType::RegularFile,
        };
        single(name)
            .and_then(|()| fs::mknodat(&self.fd, name, kind, Mode::from_raw_mode(mode & 0o777), device))
            .map_err(self.fail("mknod", name))?;
        self.chmod(name, mode)
    }

    /// Removes the name of something that is no directory.
    ///
    /// # Errors
    /// When it is missing or a directory.
    pub fn unlink(&self, name: impl AsRef<Path>) -> Result<()> {
        let name = name.as_ref();
        single(name)
            .and_then(|()| fs::unlinkat(&self.fd, name, AtFlags::empty()))
            .map_err(self.fail("unlinkat", name))
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// When it is missing or not empty.
    pub fn rmdir(&self, name: impl AsRef<Path>) -> Result<()> {
        let name = name.as_ref();
        single(name)
            .and_then(|()| fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR))
            .map_err(self.fail("rmdir", name))
    }

    /// Removes `name` and all below; nothing there is fine, and so is somebody
    /// else who removes it at the same time.
    ///
    /// # Errors
    /// When something cannot be removed. What could be removed is gone then.
    pub fn remove_all(&self, name: impl AsRef<Path>) -> Result<()> {
        let name = name.as_ref();
        match self.unlink(name) {
            Err(e) if matches!(e.source.raw_os_error(), Some(libc::EISDIR | libc::EPERM)) => {}
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
        if !self.is_dir(name)? {
            return present(self.unlink(name)).map(drop);
        }
        // A stack of our own: a hostile tree may be deeper than the thread's.
        let Some(top) = present(self.open_dir(name))? else { return Ok(()) };
        let mut stack = vec![(top, name.as_os_str().to_owned(), None::<Vec<Entry>>)];
        while let Some((dir, own, entries)) = stack.last_mut() {
            let entries = match entries {
                Some(entries) => entries,
                None => entries.insert(present(dir.list())?.unwrap_or_default()),
            };
            if let Some(entry) = entries.pop() {
                let next = if entry.kind == FileType::Directory || dir.is_dir(&entry.name)? {
                    present(dir.open_dir(&entry.name))?
                } else {
                    present(dir.unlink(&entry.name))?;
                    None
                };
                stack.extend(next.map(|next| (next, entry.name, None)));
                continue;
            }
            let own = std::mem::take(own);
            stack.pop();
            present(stack.last().map_or(self, |(dir, ..)| dir).rmdir(own))?;
        }
        Ok(())
    }

    /// What `name` is; a symlink stands for itself.
    ///
    /// # Errors
    /// When it is missing.
    pub fn lstat(&self, name: impl AsRef<Path>) -> Result<Stat> {
        let name = name.as_ref();
        single(name)
            .and_then(|()| fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW))
            .map_err(self.fail("lstat", name))
    }

    /// What `name` is, if there is such a name.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn lstat_opt(&self, name: impl AsRef<Path>) -> Result<Option<Stat>> {
        match self.lstat(name) {
            Ok(stat) => Ok(Some(stat)),
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What the symlink `name` says.
    ///
    /// # Errors
    /// When it is no symlink.
    pub fn readlink(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let name = name.as_ref();
        let target = single(name)
            .and_then(|()| fs::readlinkat(&self.fd, name, Vec::new()))
            .map_err(self.fail("readlink", name))?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// The names in this directory, sorted by their bytes, without the dots.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let fail = |e| Error::new("readdir", &self.path, e);
        // A descriptor of its own, as the position in the directory belongs to it.
        let fd = self.openat(Path::new("."), OPEN_DIR, 0).map_err(fail)?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut raw = RawDir::new(&fd, buffer.spare_capacity_mut());
        let mut out = Vec::new();
        while let Some(entry) = raw.next() {
            let entry = entry.map_err(fail)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                out.push(Entry { name: name.to_owned(), kind: entry.file_type() });
            }
        }
        out.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    /// Gives `name` to `owner`; a symlink stands for itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn chown(&self, name: impl AsRef<Path>, owner: Owner) -> Result<()> {
        let name = name.as_ref();
        let (uid, gid) = (fs::Uid::from_raw(owner.uid), fs::Gid::from_raw(owner.gid));
        single(name)
            .and_then(|()| fs::chownat(&self.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))
            .map_err(self.fail("lchown", name))
    }

    /// Sets the permission bits, set-id and sticky included, of something that
    /// is no symlink.
    ///
    /// # Errors
    /// When it is a symlink, or the kernel refuses.
    pub fn chmod(&self, name: impl AsRef<Path>, mode: u32) -> Result<()> {
        let name = name.as_ref();
        // There is no call that takes a name and refuses symlinks before Linux
        // 6.6; the way through the descriptor reaches exactly what was opened.
        self.openat(name, OPEN_PATH, 0)
            .and_then(|fd| fs::chmod(proc_path(&fd), Mode::from_raw_mode(mode & 0o7777)))
            .map_err(self.fail("chmod", name))
    }

    /// Sets the two times; a symlink stands for itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn utimens(&self, name: impl AsRef<Path>, access: Timestamp, change: Timestamp) -> Result<()> {
        let name = name.as_ref();
        let spec = |t: Timestamp| fs::Timespec { tv_sec: t.secs(), tv_nsec: t.subsec_nanos().into() };
        let times = Timestamps { last_access: spec(access), last_modification: spec(change) };
        single(name)
            .and_then(|()| fs::utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW))
            .map_err(self.fail("utimensat", name))
    }

    /// The extended attributes of `name`, sorted; a symlink stands for itself.
    /// Those that cannot be read are left out. Empty where the file system has none.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn xattrs(&self, name: impl AsRef<Path>) -> Result<Vec<(OsString, Vec<u8>)>> {
        let name = name.as_ref();
        single(name).map_err(self.fail("listxattr", name))?;
        let path = self.proc_name(name);
        let list = match sized(|buffer| fs::llistxattr(&path, buffer)) {
            Ok(list) => list,
            Err(Errno::OPNOTSUPP) => Vec::new(),
            Err(e) => return Err(self.fail("listxattr", name)(e)),
        };
        let mut out = Vec::new();
        for key in list.split(|b| *b == 0).filter(|key| !key.is_empty()) {
            let key = OsStr::from_bytes(key);
            if let Ok(value) = sized(|buffer| fs::lgetxattr(&path, key, buffer)) {
                out.push((key.to_owned(), value));
            }
        }
        out.sort_unstable();
        Ok(out)
    }

    /// Sets an extended attribute of `name`; a symlink stands for itself.
    ///
    /// # Errors
    /// When the kernel or the file system refuses.
    pub fn set_xattr(&self, name: impl AsRef<Path>, key: &OsStr, value: &[u8]) -> Result<()> {
        let name = name.as_ref();
        single(name)
            .and_then(|()| fs::lsetxattr(self.proc_name(name), key, value, XattrFlags::empty()))
            .map_err(self.fail("setxattr", name))
    }

    /// A path to `name` for calls that know no directory descriptors.
    fn proc_name(&self, name: &Path) -> PathBuf {
        let mut path = proc_path(&self.fd);
        path.push(name);
        path
    }
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Reads what is mostly short. The kernel lets neither lists nor values of
/// attributes grow beyond 64 KiB.
fn sized(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    let size = match call(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer = vec![0; 64 << 10];
            call(&mut buffer)?
        }
        other => other?,
    };
    buffer.truncate(size);
    Ok(buffer)
}

/// `None` for what is not there.
fn present<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(e) if e.source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Refuses what would lead to another directory.
fn single(name: &Path) -> rustix::io::Result<()> {
    let bytes = name.as_os_str().as_bytes();
    if bytes.is_empty() || bytes == b".." || bytes.contains(&b'/') {
        return Err(Errno::INVAL);
    }
    Ok(())
}
