//! Paths inside a root, resolved against a directory descriptor.
//!
//! A [`Root`] is a directory that plays `/`. Every path given to it is resolved
//! by the kernel with `openat2(RESOLVE_IN_ROOT)`: absolute paths and absolute
//! symlinks start at the root, `..` stops there, and no race with somebody who
//! renames directories at the same time leads outside. A [`Dir`] is one
//! directory within it; its operations take single names and never follow a
//! symlink, so a walk from `Dir` to `Dir` cannot leave the tree either.
//!
//! Paths in errors are those inside the root.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use base::Timestamp;
use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

mod dir;

pub use dir::{Dir, Entry};
pub use rustix::fs::{FileType, Stat};

use crate::{Error, Result};

/// As many symlinks are followed in one path; the kernel stops at 40, other
/// implementations of builds at 255.
const MAX_LINKS: usize = 255;

/// `openat2` asks to be called again when something moved while it resolved `..`.
const MAX_RETRIES: usize = 64;

const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const OPEN_PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
// A FIFO or a terminal in a hostile tree must neither block nor take over.
const OPEN_READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Who owns something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A directory that plays `/` for the paths given to it.
#[derive(Debug)]
pub struct Root {
    dir: Dir,
}

/// What [`Root::mkdir_all`] gives the directories it makes.
#[derive(Debug, Clone, Copy)]
pub struct Make {
    /// Permission bits, exact: the umask has no say.
    pub mode: u32,
    /// The owner; the caller when not given.
    pub owner: Option<Owner>,
    /// Both times; now when not given.
    pub time: Option<Timestamp>,
}

impl Root {
    /// Takes the directory at `path`, a trusted path, as root.
    ///
    /// # Errors
    /// When it cannot be opened as a directory.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fd = fs::open(path, OPEN_DIR, Mode::empty()).map_err(|e| Error::new("open", path, e))?;
        Ok(Self::from_fd(fd))
    }

    /// Takes an open directory as root.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { dir: Dir { fd, path: PathBuf::from("/") } }
    }

    /// The root itself, as a directory.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// The same root on another descriptor.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self { dir: self.dir.try_clone()? })
    }

    /// The path, absolute inside the root and free of symlinks and dots.
    ///
    /// Parts that do not exist are taken as they are written. With
    /// `follow_last` a symlink at the end is followed too.
    ///
    /// # Errors
    /// Too many symlinks, or a part in the middle that is no directory.
    pub fn resolve(&self, path: impl AsRef<Path>, follow_last: bool) -> Result<PathBuf> {
        self.resolve_with(path, follow_last, |_, _| {})
    }

    /// As [`Self::resolve`], and tells `seen` of each symlink that was followed:
    /// its resolved path and what it says.
    ///
    /// # Errors
    /// As for [`Self::resolve`].
    pub fn resolve_with(
        &self,
        path: impl AsRef<Path>,
        follow_last: bool,
        mut seen: impl FnMut(&Path, &Path),
    ) -> Result<PathBuf> {
        let asked = path.as_ref();
        let mut rest: VecDeque<OsString> = parts(asked).collect();
        let mut done = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&part);
            if rest.is_empty() && !follow_last {
                return Ok(next);
            }
            match self.link_at(&next)? {
                None => done = next,
                Some(target) => {
                    seen(&next, &target);
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::new("lstat", asked, Errno::LOOP));
                    }
                    if target.is_absolute() {
                        done = PathBuf::from("/");
                    }
                    for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(part);
                    }
                }
            }
        }
        Ok(done)
    }

    /// The target when there is a symlink at `path`.
    fn link_at(&self, path: &Path) -> Result<Option<PathBuf>> {
        match self.open_at(path, OPEN_PATH | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => match fs::readlinkat(&fd, "", Vec::new()) {
                Ok(target) => Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes())))),
                // Not a symlink.
                Err(Errno::NOENT | Errno::INVAL) => Ok(None),
                Err(e) => Err(Error::new("readlink", path, e)),
            },
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::new("lstat", path, e)),
        }
    }

    fn open_at(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mut tries = 0;
        loop {
            match fs::openat2(&self.dir.fd, path, flags, mode, resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < MAX_RETRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// Opens the directory at `path`, following symlinks.
    ///
    /// # Errors
    /// When there is none.
    pub fn open_dir(&self, path: impl AsRef<Path>) -> Result<Dir> {
        let path = path.as_ref();
        let fd =
            self.open_at(path, OPEN_DIR, Mode::empty()).map_err(|e| Error::new("open", inside(path), e))?;
        Ok(Dir { fd, path: inside(path) })
    }

    /// The directory that holds `path`, symlinks followed, and the last name of
    /// it, untouched. The root itself is `.` in the root.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open_parent(&self, path: impl AsRef<Path>) -> Result<(Dir, OsString)> {
        let path = path.as_ref();
        match (path.parent(), path.components().next_back()) {
            (Some(parent), Some(Component::Normal(name))) => Ok((self.open_dir(parent)?, name.to_owned())),
            _ => Ok((self.open_dir(path)?, OsString::from("."))),
        }
    }

    /// Opens the file at `path` for reading, following symlinks. Does not wait
    /// for the other end of a FIFO.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_read(&self, path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        self.open_at(path, OPEN_READ, Mode::empty())
            .map(File::from)
            .map_err(|e| Error::new("open", inside(path), e))
    }

    /// What is at `path`, symlinks followed.
    ///
    /// # Errors
    /// When there is nothing.
    pub fn stat(&self, path: impl AsRef<Path>) -> Result<Stat> {
        let path = path.as_ref();
        self.open_at(path, OPEN_PATH, Mode::empty())
            .and_then(|fd| fs::fstat(&fd))
            .map_err(|e| Error::new("stat", inside(path), e))
    }

    /// What is at `path`; a symlink at the end stands for itself.
    ///
    /// # Errors
    /// When there is nothing.
    pub fn lstat(&self, path: impl AsRef<Path>) -> Result<Stat> {
        let path = path.as_ref();
        self.open_at(path, OPEN_PATH | OFlags::NOFOLLOW, Mode::empty())
            .and_then(|fd| fs::fstat(&fd))
            .map_err(|e| Error::new("lstat", inside(path), e))
    }

    /// Makes the directory at `path` and those above it, symlinks followed.
    /// Returns those that were made, outermost first.
    ///
    /// # Errors
    /// When something that is no directory is in the way, or the kernel refuses.
    pub fn mkdir_all(&self, path: impl AsRef<Path>, make: &Make) -> Result<Vec<PathBuf>> {
        let path = self.resolve(path, true)?;
        let mut made = Vec::new();
        let mut dir = self.dir.try_clone()?;
        for name in parts(&path) {
            match dir.lstat_opt(&name)? {
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                Some(_) => return Err(Error::new("mkdir", dir.path.join(&name), Errno::NOTDIR)),
                None => {
                    if dir.mkdir(&name, make.mode)? {
                        if let Some(owner) = make.owner {
                            dir.chown(&name, owner)?;
                        }
                        if let Some(time) = make.time {
                            dir.utimens(&name, time, time)?;
                        }
                        made.push(dir.path.join(&name));
                    }
                }
            }
            dir = dir.open_dir(&name)?;
        }
        Ok(made)
    }

    /// Removes what is at `path` and below; nothing there is fine. The
    /// directories above are found through symlinks, the last name is not.
    ///
    /// # Errors
    /// When something cannot be removed; the root itself cannot.
    pub fn remove_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match self.open_parent(path) {
            Ok((dir, name)) => dir.remove_all(name),
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error { call: "unlinkat", path: inside(path), ..e }),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.fd.as_fd()
    }
}

/// The names of a path, `..` among them.
fn parts(path: &Path) -> impl Iterator<Item = OsString> + use<'_> {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}

/// The path as seen from inside.
fn inside(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Tree(PathBuf);

    impl Tree {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("sys-path-{}", base::id::fresh()));
            std::fs::create_dir_all(path.join("root/dir/sub")).unwrap();
            std::fs::write(path.join("secret"), "secret").unwrap();
            std::fs::write(path.join("root/file"), "inside").unwrap();
            Self(path)
        }

        fn root(&self) -> Root {
            Root::open(self.0.join("root")).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn nothing_leads_out() {
        let tree = Tree::new();
        let root = tree.root();
        symlink("../../../secret", tree.0.join("root/up")).unwrap();
        symlink("/secret", tree.0.join("root/abs")).unwrap();
        symlink("/proc/self/root", tree.0.join("root/magic")).unwrap();
        for path in ["../secret", "up", "abs", "/../../secret", "dir/../../secret", "magic/etc"] {
            let e = root.open_read(path).unwrap_err();
            assert_eq!(e.source.kind(), io::ErrorKind::NotFound, "{path}: {e}");
        }
        std::fs::write(tree.0.join("root/secret"), "own").unwrap();
        assert_eq!(io::read_to_string(root.open_read("up").unwrap()).unwrap(), "own");
        assert_eq!(root.resolve("up", true).unwrap(), Path::new("/secret"));
        assert_eq!(root.resolve("dir/../up", false).unwrap(), Path::new("/up"));
        assert_eq!(root.resolve("abs/../../x", true).unwrap(), Path::new("/x"));
    }

    #[test]
    fn names_are_single() {
        let tree = Tree::new();
        let root = tree.root();
        for bad in ["..", "", "a/b", "/"] {
            assert!(root.dir().create(bad, 0o644).is_err(), "{bad}");
            assert!(root.dir().remove_all(bad).is_err(), "{bad}");
        }
        assert!(root.remove_all("/").is_err(), "the root stays");
        assert!(tree.0.join("root").exists());
    }

    #[test]
    fn loops_end() {
        let tree = Tree::new();
        symlink("b", tree.0.join("root/a")).unwrap();
        symlink("a", tree.0.join("root/b")).unwrap();
        assert!(tree.root().resolve("a", true).is_err());
        assert!(tree.root().stat("a").is_err());
        assert!(tree.root().lstat("a").is_ok());
    }

    #[test]
    fn makes_directories_through_dangling_links() {
        let tree = Tree::new();
        symlink("/made/here", tree.0.join("root/link")).unwrap();
        let root = tree.root();
        let owner = Some(Owner { uid: 3, gid: 4 });
        let make = Make { mode: 0o2750, owner, time: Some(Timestamp::from_secs(7)) };
        let made = root.mkdir_all("link/deep", &make).unwrap();
        assert_eq!(made, ["/made", "/made/here", "/made/here/deep"].map(PathBuf::from));
        let stat = root.lstat("/made/here/deep").unwrap();
        assert_eq!((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, stat.st_mtime), (0o2750, 3, 4, 7));
        let e = root.mkdir_all("file/x", &make).unwrap_err();
        assert_eq!(e.to_string(), "lstat /file/x: not a directory");
    }

    #[test]
    fn removes_links_not_their_targets() {
        let tree = Tree::new();
        symlink("../../dir", tree.0.join("root/dir/sub/link")).unwrap();
        symlink("dir", tree.0.join("root/link")).unwrap();
        let root = tree.root();
        root.remove_all("link").unwrap();
        assert!(root.stat("dir/sub/link").is_ok());
        root.remove_all("dir").unwrap();
        root.remove_all("missing/x").unwrap();
        let names: Vec<_> = root.dir().list().unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["file"]);
    }

    #[test]
    fn removing_together_is_no_failure() {
        let tree = Tree::new();
        let root = tree.root();
        for round in 0..50 {
            for at in 0..20 {
                std::fs::create_dir_all(tree.0.join(format!("root/dir/{at}/deep/er"))).unwrap();
            }
            std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(|| root.dir().remove_all("dir"))).collect();
                for one in all {
                    one.join().unwrap().unwrap_or_else(|e| panic!("round {round}: {e}"));
                }
            });
            assert!(root.stat("dir").is_err());
        }
    }

    #[test]
    fn chmod_never_follows() {
        let tree = Tree::new();
        symlink("file", tree.0.join("root/link")).unwrap();
        let root = tree.root();
        let before = root.lstat("file").unwrap().st_mode;
        assert!(root.dir().chmod("link", 0o777).is_err());
        assert_eq!(root.lstat("file").unwrap().st_mode, before);
        root.dir().chmod("file", 0o4755).unwrap();
        assert_eq!(root.lstat("file").unwrap().st_mode & 0o7777, 0o4755);
    }

    #[test]
    fn attributes_go_in_and_come_out() {
        let tree = Tree::new();
        let root = tree.root();
        let key = std::ffi::OsStr::new("user.note");
        // Not every file system has user attributes.
        if root.dir().set_xattr("file", key, b"kept").is_ok() {
            let xattrs = root.dir().xattrs("file").unwrap();
            assert!(xattrs.contains(&(key.to_owned(), b"kept".to_vec())), "{xattrs:?}");
        }
    }
}
