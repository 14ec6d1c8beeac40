//! Mount points in a root file system that somebody else has filled.
//!
//! Those that are missing are created before a run and removed after it when
//! nothing was put into them. Symbolic links in the root file system are
//! followed as if it were the root of the system; nothing here leaves it,
//! whatever it holds. The times of the directories around stay as they were,
//! so that a run leaves no trace of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use base::Timestamp;
use rustix::fs::FileType;
use sys::path::{Dir, Make, Owner, Root, Stat};

/// What stands at a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stub {
    Directory,
    File,
}

/// Mount points that were created, to be removed.
#[derive(Debug, Default)]
pub(crate) struct Stubs(Vec<PathBuf>);

impl Stubs {
    /// Creates what is missing of `path`, a resolved one. Remembered are its
    /// last component, or with `recursive` all that were missing.
    pub(crate) fn create(
        &mut self,
        root: &Root,
        path: &Path,
        kind: Stub,
        recursive: bool,
    ) -> sys::Result<()> {
        let mut ancestor = path;
        let mut missing = Vec::new();
        while root.lstat(ancestor).is_err() {
            missing.push(ancestor.to_owned());
            match ancestor.parent() {
                Some(parent) => ancestor = parent,
                None => break,
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let make = Make { mode: 0o755, owner: None, time: None };
        let times = root.stat(ancestor)?;
        if kind == Stub::Directory {
            root.mkdir_all(path, &make)?;
        } else {
            if let Some(parent) = path.parent() {
                root.mkdir_all(parent, &make)?;
            }
            let (dir, name) = root.open_parent(path)?;
            dir.create(name, 0o755)?;
        }
        set_times(root, ancestor, &times)?;
        let keep = if recursive { missing.len() } else { 1 };
        self.0.extend(missing.into_iter().take(keep).rev());
        Ok(())
    }

    /// Removes those in which there is nothing. One that cannot be removed
    /// stays; the log says so.
    pub(crate) fn remove(&self, root: &Root) {
        for path in self.0.iter().rev() {
            if let Err(e) = remove(root, path) {
                tracing::warn!(path = %path.display(), error = %e, "remove mount point");
            }
        }
    }
}

fn remove(root: &Root, path: &Path) -> sys::Result<()> {
    // The process may have put a link in the way: then it is not the same place any more.
    if root.resolve(path, false)? != path {
        return Ok(());
    }
    let Ok((dir, name)) = root.open_parent(path) else { return Ok(()) };
    let Some(stat) = dir.lstat_opt(&name)? else { return Ok(()) };
    let Some(parent) = path.parent() else { return Ok(()) };
    let times = root.stat(parent)?;
    if !remove_empty(&dir, &name, &stat)? {
        return Ok(());
    }
    set_times(root, parent, &times)
}

fn remove_empty(dir: &Dir, name: &OsString, stat: &Stat) -> sys::Result<bool> {
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return match dir.rmdir(name) {
            Ok(()) => Ok(true),
            Err(e) if e.source.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(e) => Err(e),
        };
    }
    if stat.st_size != 0 {
        return Ok(false);
    }
    dir.unlink(name)?;
    Ok(true)
}

/// Makes the working directory, with the directories above it, the user's own
/// where it is missing.
pub(crate) fn create_cwd(root: &Root, cwd: &str, uid: u32, gid: u32) -> sys::Result<()> {
    if root.stat(cwd).is_ok() {
        return Ok(());
    }
    root.mkdir_all(cwd, &Make { mode: 0o755, owner: Some(Owner { uid, gid }), time: None })?;
    Ok(())
}

fn set_times(root: &Root, path: &Path, stat: &Stat) -> sys::Result<()> {
    let (access, change) = times(stat);
    root.open_dir(path)?.utimens(".", access, change)
}

/// When something was read and changed last.
pub(crate) fn times(stat: &Stat) -> (Timestamp, Timestamp) {
    let time = |seconds: i64, nanos: u64| {
        Timestamp::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add_unsigned(nanos))
    };
    (time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn stubs_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        symlink("/nowhere/deep", dir.path().join("dangling")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mtime = || std::fs::metadata(dir.path().join("etc")).unwrap().mtime_nsec();
        let before = mtime();
        let mut stubs = Stubs::default();
        for (path, kind, recursive) in [
            ("/etc/hosts", Stub::File, false),
            ("/etc/a/b", Stub::Directory, true),
            ("/etc/c/d", Stub::Directory, false),
            ("/dangling", Stub::File, false),
        ] {
            let path = root.resolve(path, true).unwrap();
            stubs.create(&root, &path, kind, recursive).unwrap();
        }
        assert!(dir.path().join("etc/hosts").is_file() && dir.path().join("nowhere/deep").is_file());
        assert_eq!(mtime(), before);
        std::fs::write(dir.path().join("nowhere/deep"), "kept").unwrap();
        stubs.remove(&root);
        for gone in ["etc/hosts", "etc/a", "etc/c/d"] {
            assert!(!dir.path().join(gone).exists(), "{gone}");
        }
        assert!(dir.path().join("nowhere/deep").is_file() && dir.path().join("etc/c").is_dir());
        assert_eq!(mtime(), before);
    }

    #[test]
    fn a_link_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("other/sub")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mut stubs = Stubs::default();
        stubs.create(&root, Path::new("/mnt/sub"), Stub::Directory, false).unwrap();
        std::fs::remove_dir_all(dir.path().join("mnt")).unwrap();
        symlink("/other", dir.path().join("mnt")).unwrap();
        stubs.remove(&root);
        assert!(dir.path().join("other/sub").is_dir());
    }

    #[test]
    fn the_working_directory_is_the_users() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        create_cwd(&root, "/made/dir", 7, 8).unwrap();
        let meta = std::fs::metadata(dir.path().join("made")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (7, 8, 0o755));
    }
}
