//! Network namespaces.
//!
//! A thread is in one network namespace; the calls here that enter another do so
//! on a thread made for that, so that the caller's never changes. Sockets stay in
//! the namespace in which they were opened, wherever they are used.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::{Error, Result};

/// Where a thread finds its own namespace. `/proc/self` would be the main thread's.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It exists as long as this, a file it is bound to, a
/// process or a socket in it does.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// Makes a namespace and runs `inside` in it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn create<T: Send>(inside: impl FnOnce() -> T + Send) -> Result<(Self, T)> {
        on_thread(|| {
            // SAFETY: of what a thread can unshare, only the network namespace is; the
            // thread runs nothing but `inside` and ends.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|e| Error::new("unshare", "network namespace", e))?;
            Ok((Self::open(Path::new(OWN))?, inside()))
        })
    }

    /// The namespace of this thread.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn current() -> Result<Self> {
        Self::open(Path::new(OWN))
    }

    /// The namespace that is bound to a file.
    ///
    /// # Errors
    /// When the file cannot be opened, or is something else.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::new("open", path, e))?;
        // Opening succeeds for any file, entering does not: better said here.
        let kind = rustix::fs::fstatfs(&file).map_err(|e| Error::new("statfs", path, e))?.f_type;
        if kind == NSFS_MAGIC {
            Ok(Self(file.into()))
        } else {
            Err(Error::new("open network namespace", path, std::io::ErrorKind::InvalidInput))
        }
    }

    /// Runs `inside` in this namespace.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|e| Error::new("enter", "network namespace", e))?;
            Ok(inside())
        })
    }

    /// Binds it to a file, which is created.
    ///
    /// # Errors
    /// When the file exists, or what the kernel said.
    pub fn bind(&self, path: &Path) -> Result<()> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(path)
            .map_err(|e| Error::new("create", path, e))?;
        let source = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        rustix::mount::mount_bind(source, path).map_err(|e| {
            _ = std::fs::remove_file(path);
            Error::new("bind network namespace to", path, e)
        })
    }
}

const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes a namespace off the file it was bound to and removes the file. A file that
/// is missing, or to which nothing is bound, is fine.
///
/// # Errors
/// What the kernel said.
pub fn unbind(path: &Path) -> Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(Error::new("unmount", path, e)),
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::new("remove", path, e)),
        _ => Ok(()),
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let error = |e| Error::new("start", "thread for network namespace", e);
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work).map_err(error)?;
        thread.join().unwrap_or_else(|_| Err(error(std::io::Error::other("it panicked"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> std::path::PathBuf {
        std::fs::read_link(OWN).unwrap()
    }

    #[test]
    fn made_bound_entered_and_gone() {
        let before = own();
        let (ns, inside) = NetNs::create(own).unwrap();
        assert_ne!(inside, before);
        assert_eq!(own(), before);
        let path = std::env::temp_dir().join(format!("netns-{}", base::id::fresh()));
        ns.bind(&path).unwrap();
        drop(ns);
        assert_eq!(NetNs::open(&path).unwrap().run(own).unwrap(), inside);
        assert!(NetNs::current().unwrap().bind(&path).is_err());
        unbind(&path).unwrap();
        unbind(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn other_files_are_no_namespaces() {
        assert!(NetNs::open(Path::new("/proc/self/exe")).is_err());
    }
}
