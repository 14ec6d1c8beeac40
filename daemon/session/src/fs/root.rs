//! A directory, and what is below it without following any link.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::check::split;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory that relative, clean paths are resolved in. A symbolic link in
/// the middle of a path is an error.
pub(super) struct Root {
    path: PathBuf,
    fd: Arc<OwnedFd>,
    /// The directory that was asked for last: walks ask again and again.
    last: Mutex<Option<(String, Arc<OwnedFd>)>>,
}

impl Root {
    /// Opens `path`, following links in it: it is the owner's word.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { path: path.to_owned(), fd: Arc::new(fd), last: Mutex::default() })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory `path`; the empty path is the root.
    pub(super) fn dir(&self, path: &str) -> io::Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.fd.clone());
        }
        if let Some((last, fd)) = &*self.last.lock()
            && last == path
        {
            return Ok(fd.clone());
        }
        let fd = Arc::new(self.open_below(path, DIRECTORY, Mode::empty())?);
        *self.last.lock() = Some((path.to_owned(), fd.clone()));
        Ok(fd)
    }

    /// The directory that `path` is in, and its name there.
    pub(super) fn parent<'a>(&self, path: &'a str) -> io::Result<(Arc<OwnedFd>, &'a str)> {
        let (dir, name) = split(path);
        Ok((self.dir(dir)?, name))
    }

    /// Forgets which directory was asked for last: it may have been replaced.
    pub(super) fn forget(&self) {
        *self.last.lock() = None;
    }

    /// Opens the file `path`.
    pub(super) fn open_file(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<std::fs::File> {
        let (dir, name) = self.parent(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&*dir, name, flags, mode)?.into())
    }

    fn open_below(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&*self.fd, path, flags, mode, resolve) {
            // Old kernels, and sandboxes that do not know the call.
            Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => self.open_stepwise(path),
            result => Ok(result?),
        }
    }

    fn open_stepwise(&self, path: &str) -> io::Result<OwnedFd> {
        let mut dir = rustix::fs::openat(&*self.fd, ".", DIRECTORY, Mode::empty())?;
        for name in path.split('/') {
            if name == ".." {
                return Err(Errno::INVAL.into());
            }
            dir = rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty())?;
        }
        Ok(dir)
    }
}

/// A path by which calls that take no directory descriptor reach `name` in
/// `dir`; they must not follow links in the last step.
pub(super) fn proc_path(dir: impl AsFd, name: &str) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd())
}

/// The directory `path` with all its parents.
pub(super) fn create_all(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match rustix::fs::statat(CWD, path, rustix::fs::AtFlags::empty()) {
        Ok(_) => Ok(()),
        Err(_) => std::fs::DirBuilder::new().recursive(true).mode(mode).create(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("a/out")).unwrap();
        std::os::unix::fs::symlink("b", dir.path().join("a/in")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.dir("a/b").unwrap();
        root.open_stepwise("a/b").unwrap();
        for bad in ["a/out", "a/in", "a/..", ".."] {
            assert!(root.open_stepwise(bad).is_err(), "{bad}");
        }
        for bad in ["a/out", "a/in", ".."] {
            assert!(root.dir(bad).is_err(), "{bad}");
        }
        assert!(root.open_file("a/out/x", OFlags::RDONLY, Mode::empty()).is_err());
    }
}
