//! The tree that the golden values were made from, and how a tree is written
//! down.

use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tempfile::TempDir;

/// A directory under the system's temporary one, gone when dropped.
pub(crate) fn empty() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn file(root: &Path, path: &str, data: &str, mode: u32) {
    std::fs::write(root.join(path), data).unwrap();
    std::fs::set_permissions(root.join(path), PermissionsExt::from_mode(mode)).unwrap();
}

fn dir(root: &Path, path: &str, mode: u32) {
    std::fs::create_dir(root.join(path)).unwrap();
    std::fs::set_permissions(root.join(path), PermissionsExt::from_mode(mode)).unwrap();
}

fn node(root: &Path, path: &str, kind: FileType, mode: u32, device: u64) {
    mknodat(CWD, root.join(path), kind, Mode::from_raw_mode(mode), device).unwrap();
    std::fs::set_permissions(root.join(path), PermissionsExt::from_mode(mode)).unwrap();
}

/// One of everything.
pub(crate) fn source() -> TempDir {
    let tree = empty();
    let root = tree.path();
    std::fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
    dir(root, "d0", 0o755);
    file(root, "d0/abc", "data0", 0o644);
    symlink("abc", root.join("d0/def")).unwrap();
    symlink("nosuchfile", root.join("d0/ghi")).unwrap();
    dir(root, "d1", 0o700);
    file(root, "d1/foo", "foo data", 0o4755);
    file(root, "d1/foo.txt", "x", 0o600);
    lchown(root.join("d1/foo.txt"), Some(1), Some(2)).unwrap();
    dir(root, "d1/sub", 0o1755);
    dir(root, "d1/sub/deep", 0o755);
    file(root, "d1/sub/deep/file.go", "deep", 0o644);
    dir(root, "d1/void", 0o755);
    file(root, "d1-x", "between", 0o644);
    symlink("d1", root.join("d2")).unwrap();
    symlink("/d1/sub", root.join("abs")).unwrap();
    symlink("../../d1", root.join("d0/up")).unwrap();
    file(root, "empty", "", 0o644);
    node(root, "fifo", FileType::Fifo, 0o644, 0);
    node(root, "chr", FileType::CharacterDevice, 0o600, makedev(5, 1));
    std::fs::hard_link(root.join("d1/foo"), root.join("hard")).unwrap();
    tree
}

/// Something to copy to.
pub(crate) fn target() -> TempDir {
    let tree = empty();
    let root = tree.path();
    dir(root, "there", 0o711);
    file(root, "there/d1-x", "old", 0o600);
    dir(root, "there/sub", 0o700);
    symlink("there", root.join("lnk")).unwrap();
    symlink("/made/later", root.join("dangling")).unwrap();
    file(root, "file", "f", 0o644);
    symlink("file", root.join("there/foo")).unwrap();
    tree
}

/// A line for each path: type and mode, owner, `T` for the agreed time, content.
pub(crate) fn dump(root: &Path) -> String {
    let mut out = String::new();
    let mut links = std::collections::HashMap::new();
    let meta = root.symlink_metadata().unwrap();
    let time = |meta: &std::fs::Metadata| if meta.mtime() == 1_000_000_000 { " T" } else { "" };
    writeln!(out, "  . {}:{}{}", meta.uid(), meta.gid(), time(&meta)).unwrap();
    walk(root, root, &mut |path, rel| {
        let meta = path.symlink_metadata().unwrap();
        let mut what = String::new();
        if meta.is_file() {
            what = format!(" {:?}", std::fs::read_to_string(path).unwrap());
            if meta.nlink() > 1 {
                let first = links.entry(meta.ino()).or_insert_with(|| rel.to_owned());
                if first != rel {
                    what = format!(" ={first}");
                }
            }
        } else if meta.is_symlink() {
            what = format!(" ->{}", std::fs::read_link(path).unwrap().display());
        }
        let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
        writeln!(out, "  {rel} {mode:o} {uid}:{gid}{}{what}", time(&meta)).unwrap();
    });
    out
}

fn walk(root: &Path, at: &Path, each: &mut impl FnMut(&Path, &str)) {
    let mut names: Vec<_> = std::fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = at.join(name);
        each(&path, path.strip_prefix(root).unwrap().to_str().unwrap());
        if path.symlink_metadata().unwrap().is_dir() {
            walk(root, &path, each);
        }
    }
}
