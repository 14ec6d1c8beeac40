//! Mounts: overlays of any depth, binds, tmpfs, and guards that take them away.
//!
//! Overlays go through `fsopen`/`fsconfig`, one layer per call, because the
//! options of `mount(2)` end at one page and a stack of a hundred layers does
//! not fit. Kernels without `lowerdir+` (before 6.8) get `mount(2)` with paths
//! relative to the layers' common directory, which is as short as it can be.
//!
//! A mount made here is a [`Mounted`]: dropping it detaches it. Detaching is
//! lazy, so it also succeeds while some process still has a file open.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    self as kernel, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
    MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::{Error, Result};

/// A mount that goes away with this value.
#[derive(Debug)]
#[must_use = "dropping it unmounts"]
pub struct Mounted {
    path: Option<PathBuf>,
}

impl Mounted {
    fn at(path: &Path) -> Self {
        Self { path: Some(path.to_owned()) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Unmounts it now and says whether that worked.
    ///
    /// # Errors
    /// What the kernel said; the mount is then left.
    pub fn unmount(mut self) -> Result<()> {
        match self.path.take() {
            Some(path) => detach(&path),
            None => Ok(()),
        }
    }

    /// Gives up the guard: the mount stays.
    pub fn leave(mut self) -> PathBuf {
        self.path.take().unwrap_or_default()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            // Nobody is left to be told; whoever cares calls `unmount`.
            _ = detach(&path);
        }
    }
}

/// The writable part of an overlay. Both must be on one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// What is written ends up here.
    pub dir: PathBuf,
    /// Empty, for the kernel.
    pub work: PathBuf,
}

/// An overlay to be mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// The layers below, topmost first. At least one, and two without `upper`.
    pub lowers: Vec<PathBuf>,
    /// The writable layer; without it the mount is read-only.
    pub upper: Option<Upper>,
    /// Mark whiteouts with `user.` instead of `trusted.` attributes, which is
    /// what works in a user namespace.
    pub userxattr: bool,
    /// Never sync: unmounting is quick, a power cut loses what was written.
    pub volatile: bool,
}

/// What `/proc` says this kernel's overlay can be told.
fn has_parameter(name: &str) -> bool {
    Path::new("/sys/module/overlay/parameters").join(name).exists()
}

/// Before Linux 6.5, overlays take whatever parameter there is, look at it only when they are
/// made, and refuse then with a line in the kernel's log.
fn looks_at_parameters_late() -> bool {
    static LATE: OnceLock<bool> = OnceLock::new();
    *LATE.get_or_init(|| {
        let context = kernel::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC);
        context.is_ok_and(|fd| kernel::fsconfig_set_flag(&fd, "no_such_parameter").is_ok())
    })
}

impl Overlay {
    /// Options that are words or numbers. Features that would let an upper
    /// directory refer to lower ones (`redirect_dir`, `metacopy`) or to its
    /// neighbours (`index`) are off: an upper directory must mean the same
    /// wherever it is stacked.
    fn flags(&self) -> Vec<(&'static str, Option<&'static str>)> {
        let mut flags = Vec::new();
        if self.upper.is_some() {
            if has_parameter("index") {
                flags.push(("index", Some("off")));
            }
            if self.volatile {
                flags.push(("volatile", None));
            }
        }
        if self.userxattr {
            flags.push(("userxattr", None));
        } else {
            if has_parameter("redirect_dir") {
                flags.push(("redirect_dir", Some("off")));
            }
            if has_parameter("metacopy") {
                flags.push(("metacopy", Some("off")));
            }
        }
        flags
    }

    /// Mounts it on the directory `target`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn mount(&self, target: &Path) -> Result<Mounted> {
        let fd = match self.configure() {
            Ok(fd) => fd,
            // Too old for `lowerdir+`, or a path beyond the 255 bytes of a
            // parameter's value.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return self.mount_old(target);
            }
            Err(e) => return Err(Error::new("configure overlay for", target, e)),
        };
        kernel::fsconfig_create(&fd).map_err(|e| Error::new("create overlay for", target, e))?;
        let attr =
            if self.upper.is_none() { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        let tree = kernel::fsmount(&fd, FsMountFlags::FSMOUNT_CLOEXEC, attr)
            .map_err(|e| Error::new("mount overlay on", target, e))?;
        attach(&tree, target)
    }

    fn configure(&self) -> std::result::Result<OwnedFd, Errno> {
        let upper = self.upper.iter().flat_map(|u| [&u.dir, &u.work]);
        if self.lowers.iter().chain(upper).any(|p| p.as_os_str().as_bytes().contains(&b'\\')) {
            // Whether a backslash here escapes depends on the kernel's version.
            return Err(Errno::INVAL);
        }
        if looks_at_parameters_late() {
            return Err(Errno::INVAL);
        }
        let fd = kernel::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        kernel::fsconfig_set_string(&fd, "source", "overlay")?;
        for lower in &self.lowers {
            kernel::fsconfig_set_string(&fd, "lowerdir+", lower.as_path())?;
        }
        if let Some(upper) = &self.upper {
            kernel::fsconfig_set_string(&fd, "upperdir", upper.dir.as_path())?;
            kernel::fsconfig_set_string(&fd, "workdir", upper.work.as_path())?;
        }
        for (key, value) in self.flags() {
            match value {
                Some(value) => kernel::fsconfig_set_string(&fd, key, value)?,
                None => kernel::fsconfig_set_flag(&fd, key)?,
            }
        }
        Ok(fd)
    }

    /// `mount(2)` from within the layers' common directory. The directory of a
    /// thread is its own after `unshare(CLONE_FS)`, so it is done on one that ends.
    fn mount_old(&self, target: &Path) -> Result<Mounted> {
        let target = std::path::absolute(target).map_err(|e| Error::new("resolve", target, e))?;
        let base = common_dir(&self.lowers);
        let options = self.options_text(base.as_deref());
        let readonly = self.upper.is_none();
        let work = || -> Result<Mounted> {
            if let Some(base) = &base {
                // SAFETY: only CLONE_FS is unshared, which gives this thread a
                // working directory of its own; no descriptors, memory or
                // credentials are touched, and the thread ends afterwards.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
                    .map_err(|e| Error::new("unshare for", &target, e))?;
                rustix::process::chdir(base).map_err(|e| Error::new("enter", base, e))?;
            }
            let flags = if readonly { MountFlags::RDONLY } else { MountFlags::empty() };
            kernel::mount("overlay", &target, "overlay", flags, Some(options.as_c_str()))
                .map_err(|e| Error::new("mount overlay on", &target, e))?;
            Ok(Mounted::at(&target))
        };
        std::thread::scope(|scope| match scope.spawn(work).join() {
            Ok(result) => result,
            Err(_) => Err(Error::new("mount overlay on", &target, io::Error::other("thread panicked"))),
        })
    }

    fn options_text(&self, base: Option<&Path>) -> CString {
        let mut text = b"lowerdir=".to_vec();
        for (i, lower) in self.lowers.iter().enumerate() {
            if i > 0 {
                text.push(b':');
            }
            let short = base.and_then(|b| lower.strip_prefix(b).ok()).unwrap_or(lower);
            text.extend_from_slice(escape(short.as_os_str(), b"\\:,").as_bytes());
        }
        if let Some(upper) = &self.upper {
            for (key, path) in [("upperdir", &upper.dir), ("workdir", &upper.work)] {
                text.extend_from_slice(format!(",{key}=").as_bytes());
                text.extend_from_slice(escape(path.as_os_str(), b"\\,").as_bytes());
            }
        }
        for (key, value) in self.flags() {
            text.push(b',');
            text.extend_from_slice(key.as_bytes());
            if let Some(value) = value {
                text.push(b'=');
                text.extend_from_slice(value.as_bytes());
            }
        }
        text.retain(|b| *b != 0);
        CString::new(text).unwrap_or_default()
    }
}

/// `text` with a backslash before each of `special`.
fn escape(text: &OsStr, special: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(text.len());
    for &b in text.as_bytes() {
        if special.contains(&b) {
            out.push(b'\\');
        }
        out.push(b);
    }
    OsString::from_vec(out)
}

fn common_dir(paths: &[PathBuf]) -> Option<PathBuf> {
    let mut common = paths.first()?.parent()?.to_owned();
    if paths.iter().any(|p| !p.is_absolute()) {
        return None;
    }
    while !paths.iter().all(|p| p.starts_with(&common) && *p != common) {
        if !common.pop() {
            return None;
        }
    }
    Some(common)
}

/// How a bind mount differs from what it shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bind {
    /// With the mounts below the source.
    pub recursive: bool,
    /// Nothing can be written through it, nor through the mounts below.
    pub readonly: bool,
}

/// A copy of the mount at `source` that is nowhere yet; see [`attach`].
///
/// # Errors
/// What the kernel said.
pub fn clone_tree(source: &Path, bind: Bind) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let fd = kernel::open_tree(CWD, source, flags).map_err(|e| Error::new("clone mount", source, e))?;
    if bind.readonly {
        set_readonly(fd.as_fd(), bind.recursive).map_err(|e| Error::new("make read-only", source, e))?;
    }
    Ok(fd)
}

/// Puts a mount that is nowhere yet on `target`.
///
/// # Errors
/// What the kernel said.
pub fn attach(tree: &OwnedFd, target: &Path) -> Result<Mounted> {
    kernel::move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| Error::new("attach mount to", target, e))?;
    Ok(Mounted::at(target))
}

/// Shows `source`, a directory or a file, at `target` of the same sort.
///
/// # Errors
/// What the kernel said.
pub fn bind(source: &Path, target: &Path, bind: Bind) -> Result<Mounted> {
    match clone_tree(source, bind) {
        Ok(tree) => attach(&tree, target),
        Err(e) if e.source.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {
            bind_old(source, target, bind)
        }
        Err(e) => Err(e),
    }
}

/// Before Linux 5.2 (and 5.12 for read-only trees).
fn bind_old(source: &Path, target: &Path, bind: Bind) -> Result<Mounted> {
    let done = if bind.recursive {
        kernel::mount_bind_recursive(source, target)
    } else {
        kernel::mount_bind(source, target)
    };
    done.map_err(|e| Error::new("bind mount on", target, e))?;
    let mounted = Mounted::at(target);
    if bind.readonly {
        let below = if bind.recursive { mounts_below(target)? } else { vec![target.to_owned()] };
        for path in below {
            kernel::mount_remount(&path, MountFlags::BIND | MountFlags::RDONLY, "")
                .map_err(|e| Error::new("make read-only", &path, e))?;
        }
    }
    Ok(mounted)
}

/// Makes the mount at `target`, and with `recursive` those below, read-only.
///
/// # Errors
/// What the kernel said.
pub fn make_readonly(target: &Path, recursive: bool) -> Result<()> {
    let fd = rustix::fs::open(
        target,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOFOLLOW,
        rustix::fs::Mode::empty(),
    )
    .map_err(|e| Error::new("open", target, e))?;
    set_readonly(fd.as_fd(), recursive).map_err(|e| Error::new("make read-only", target, e))
}

fn set_readonly(fd: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attr =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path is a valid empty C string, and
    // `attr` is a live `mount_attr` whose true size is passed along.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A file system in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tmpfs {
    /// Its limit in bytes; half of the memory when there is none.
    pub size: Option<u64>,
    /// The permissions of its root; 01777 when not given.
    pub mode: Option<u32>,
}

impl Tmpfs {
    /// Mounts it on the directory `target`, without devices or set-user-id.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn mount(&self, target: &Path) -> Result<Mounted> {
        let mut options = Vec::new();
        if let Some(size) = self.size {
            options.push(format!("size={size}"));
        }
        if let Some(mode) = self.mode {
            options.push(format!("mode={:o}", mode & 0o7777));
        }
        let options = CString::new(options.join(",")).unwrap_or_default();
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        kernel::mount("tmpfs", target, "tmpfs", flags, Some(options.as_c_str()))
            .map_err(|e| Error::new("mount tmpfs on", target, e))?;
        Ok(Mounted::at(target))
    }
}

/// Moves the mount at `from` to `to`.
///
/// # Errors
/// What the kernel said; below a shared mount it refuses.
pub fn move_to(from: &Path, to: &Path) -> Result<()> {
    kernel::mount_move(from, to).map_err(|e| Error::new("move mount to", to, e))
}

/// Mounts made at or below `target`, now or later, stay invisible to other
/// mount namespaces, and theirs here.
///
/// # Errors
/// What the kernel said.
pub fn make_private(target: &Path) -> Result<()> {
    kernel::mount_change(target, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| Error::new("make private", target, e))
}

/// Gives the calling thread, and the threads and processes it starts from then on, a mount
/// namespace of their own. Mounts of the old one still arrive; mounts made here stay here, and
/// end with the last process that sees them.
///
/// # Errors
/// What the kernel said; `EPERM` without `CAP_SYS_ADMIN`.
pub fn own_namespace() -> Result<()> {
    // SAFETY: this changes which mount table the thread sees and nothing that memory or
    // descriptors depend on; its working directory stays the same directory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(|e| Error::new("unshare", "mount namespace", e))?;
    kernel::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|e| Error::new("make a slave of", "/", e))
}

/// Takes the mount at `path` out of the tree now; it ends when nobody uses it.
///
/// # Errors
/// What the kernel said; `EINVAL` when nothing is mounted there.
pub fn detach(path: &Path) -> Result<()> {
    kernel::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|e| Error::new("unmount", path, e))
}

/// The mount points at and below `dir`, in the order in which they were made.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    const INFO: &str = "/proc/self/mountinfo";
    let text = fs::read(INFO).map_err(|e| Error::new("read", INFO, e))?;
    let points = text.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4));
    Ok(points.map(|p| PathBuf::from(unescape_octal(p))).filter(|p| p.starts_with(dir)).collect())
}

/// Detaches everything mounted at or below `dir`, last first. What cannot be
/// detached is left.
///
/// # Errors
/// The first refusal, after all were tried.
pub fn detach_below(dir: &Path) -> Result<()> {
    let mut result = Ok(());
    for point in mounts_below(dir)?.iter().rev() {
        let done = detach(point);
        if result.is_ok() {
            result = done;
        }
    }
    result
}

/// `\040` and the like, as `/proc` writes blanks in paths.
fn unescape_octal(text: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Whether overlays work on the file system of `dir`: mounts one there, with
/// a whiteout in it, and takes everything away again.
///
/// # Errors
/// Why they do not.
pub fn probe_overlay(dir: &Path, userxattr: bool) -> Result<()> {
    let name = format!(".overlay-probe-{}-{:?}", std::process::id(), std::thread::current().id());
    let root = dir.join(name.replace(['(', ')'], ""));
    let result = probe_in(&root, userxattr);
    // It is ours and nothing is mounted there any more.
    _ = fs::remove_dir_all(&root);
    result
}

fn probe_in(root: &Path, userxattr: bool) -> Result<()> {
    let [low1, low2, upper, work, merged] = ["low1", "low2", "upper", "work", "merged"].map(|n| root.join(n));
    for dir in [&low1, &low2, &upper, &work, &merged] {
        fs::create_dir_all(dir).map_err(|e| Error::new("create", dir, e))?;
    }
    let file = low1.join("file");
    fs::write(&file, b"").map_err(|e| Error::new("write", &file, e))?;
    let overlay = Overlay {
        lowers: vec![low1, low2],
        upper: Some(Upper { dir: upper.clone(), work }),
        userxattr,
        volatile: false,
    };
    let mounted = overlay.mount(&merged)?;
    // Deleting makes a whiteout, which is what some file systems and user
    // namespaces refuse.
    let seen = merged.join("file");
    fs::remove_file(&seen).map_err(|e| Error::new("delete in overlay", &seen, e))?;
    mounted.unmount()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sys-mount-{name}-{}", std::process::id()));
            _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn sub(&self, name: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            _ = detach_below(&self.0);
            _ = fs::remove_dir_all(&self.0);
        }
    }

    fn many_layers(dir: &Dir, n: usize) -> Overlay {
        let lowers: Vec<_> = (0..n)
            .map(|i| {
                let layer = dir.sub(&format!("layers/{i:0>60}"));
                fs::write(layer.join("who"), i.to_string()).unwrap();
                fs::write(layer.join(format!("f{i}")), "").unwrap();
                layer
            })
            .collect();
        Overlay {
            lowers,
            upper: Some(Upper { dir: dir.sub("upper"), work: dir.sub("work") }),
            ..Overlay::default()
        }
    }

    #[test]
    fn stacks_more_layers_than_fit_into_a_page() {
        let dir = Dir::new("deep");
        let overlay = many_layers(&dir, 150);
        let target = dir.sub("merged");
        let mounted = overlay.mount(&target).unwrap();
        assert_eq!(fs::read_to_string(target.join("who")).unwrap(), "0");
        assert!(target.join("f149").exists());
        fs::write(target.join("new"), "x").unwrap();
        drop(mounted);
        assert!(!target.join("who").exists());
        assert!(dir.0.join("upper/new").exists());
    }

    #[test]
    fn the_old_way_mounts_the_same() {
        let dir = Dir::new("old");
        let overlay = many_layers(&dir, 40);
        let target = dir.sub("merged");
        let here = std::env::current_dir().unwrap();
        let mounted = overlay.mount_old(&target).unwrap();
        assert_eq!(fs::read_to_string(target.join("who")).unwrap(), "0");
        assert!(target.join("f39").exists());
        assert_eq!(std::env::current_dir().unwrap(), here);
        mounted.unmount().unwrap();
    }

    #[test]
    fn strange_paths_are_taken_as_they_are() {
        let dir = Dir::new("a,b:c\\d e");
        let overlay = many_layers(&dir, 2);
        let target = dir.sub("merged");
        for old in [false, true] {
            let mounted =
                if old { overlay.mount_old(&target).unwrap() } else { overlay.mount(&target).unwrap() };
            assert!(target.join("f1").exists());
            assert!(mounts_below(&dir.0).unwrap().contains(&target));
            mounted.unmount().unwrap();
        }
    }

    #[test]
    fn a_read_only_bind_holds_below_too() {
        let dir = Dir::new("bind");
        let (source, target) = (dir.sub("source"), dir.sub("target"));
        let inner = Tmpfs { size: Some(1 << 20), mode: Some(0o700) }.mount(&dir.sub("source/inner")).unwrap();
        let mounted = bind(&source, &target, Bind { recursive: true, readonly: true }).unwrap();
        assert!(fs::write(target.join("x"), "").is_err());
        assert!(fs::write(target.join("inner/x"), "").is_err());
        fs::write(source.join("inner/x"), "").unwrap();
        assert!(target.join("inner/x").exists());
        drop(mounted);
        inner.unmount().unwrap();
    }

    #[test]
    fn overlays_work_here() {
        let dir = Dir::new("probe");
        probe_overlay(&dir.0, false).unwrap();
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0);
    }
}
