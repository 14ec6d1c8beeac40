//! Two layers with everything in them that makes a difference to an archive.

use std::fs;
use std::os::unix::fs::{FileTypeExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev};

fn file(path: &Path, content: &str, mode: u32) {
    fs::write(path, content).unwrap();
    chmod(path, mode);
}

fn chmod(path: &Path, mode: u32) {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).unwrap();
}

fn dir(path: &Path, mode: u32) {
    fs::create_dir_all(path).unwrap();
    chmod(path, mode);
}

fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
}

fn whiteout(path: &Path) {
    node(path, FileType::CharacterDevice, 0);
}

fn set_time(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Gives everything below a time of its own that does not depend on when it
/// was made; those that are to have another get it afterwards.
fn set_times(root: &Path) {
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().len() as i64;
        if meta.is_dir() {
            rest.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        if !meta.file_type().is_socket() {
            set_time(&path, 1_500_000_000 + name, 0);
        }
    }
}

/// What is below: also what the upper layer leaves as it is, changes, deletes.
pub(crate) fn lower(root: &Path) {
    for name in ["etc", "gone-dir/sub", "opaque/old", "kept/deep/er", "to-file", "linked"] {
        dir(&root.join(name), 0o755);
    }
    file(&root.join("etc/passwd"), "root:x:0:0\n", 0o644);
    file(&root.join("etc/same"), "same\n", 0o644);
    file(&root.join("gone"), "gone\n", 0o600);
    file(&root.join("gone-dir/sub/x"), "x\n", 0o600);
    file(&root.join("opaque/old/a"), "a\n", 0o644);
    file(&root.join("opaque/both"), "both\n", 0o644);
    file(&root.join("kept/deep/er/file"), "file\n", 0o644);
    file(&root.join("to-file/inside"), "inside\n", 0o644);
    file(&root.join("to-dir"), "to-dir\n", 0o644);
    file(&root.join("linked/one"), "linked\n", 0o644);
    fs::hard_link(root.join("linked/one"), root.join("linked/two")).unwrap();
    symlink("etc/passwd", root.join("link")).unwrap();
    set_times(root);
}

/// What an overlay wrote on top.
pub(crate) fn upper(root: &Path) {
    for name in ["etc", "opaque/new", "kept/deep", "to-dir/in", "linked", "néw", "many/levels/down"] {
        dir(&root.join(name), 0o755);
    }
    // Changed, unchanged, added.
    file(&root.join("etc/passwd"), "root:x:0:0\nuser:x:1000:1000\n", 0o644);
    file(&root.join("etc/same"), "same\n", 0o644);
    file(&root.join("etc/suid"), "#!\n", 0o4755);
    file(&root.join("etc/empty"), "", 0o000);
    // Deleted, and a deletion of what is not there.
    whiteout(&root.join("gone"));
    whiteout(&root.join("gone-dir"));
    whiteout(&root.join("never-was"));
    whiteout(&root.join("kept/deep/er"));
    // All new in place of the old.
    sys::xattr::set(&root.join("opaque"), "trusted.overlay.opaque", b"y").unwrap();
    file(&root.join("opaque/both"), "both, but longer\n", 0o644);
    file(&root.join("opaque/new/n"), "n\n", 0o644);
    // One sort of thing in place of another.
    file(&root.join("to-file"), "a file now\n", 0o644);
    file(&root.join("to-dir/in/side"), "side\n", 0o644);
    // Names.
    file(&root.join("néw/ünïcode"), "u\n", 0o644);
    let part = "a-rather-long-directory-name-of-fifty-characters-xx";
    dir(&root.join(part).join(part), 0o700);
    file(&root.join(part).join(part).join("short"), "fits into a prefix\n", 0o644);
    file(&root.join(part).join("y".repeat(120)), "does not fit\n", 0o644);
    dir(&root.join("many/levels").join("z".repeat(110)), 0o755);
    // Links.
    file(&root.join("linked/a"), "three names\n", 0o644);
    fs::hard_link(root.join("linked/a"), root.join("linked/b")).unwrap();
    fs::hard_link(root.join("linked/a"), root.join("many/levels/c")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    symlink("t".repeat(130), root.join("long-target")).unwrap();
    symlink("zïel", root.join("unicode-target")).unwrap();
    // Things that are no files.
    node(&root.join("char"), FileType::CharacterDevice, makedev(5, 1));
    node(&root.join("block"), FileType::BlockDevice, makedev(8, 300));
    node(&root.join("fifo"), FileType::Fifo, 0);
    node(&root.join("socket"), FileType::Socket, 0);
    assert!(fs::symlink_metadata(root.join("socket")).unwrap().file_type().is_socket());
    // Owners, capabilities, other attributes.
    file(&root.join("owned"), "owned\n", 0o640);
    lchown(root.join("owned"), Some(1000), Some(3_000_000)).unwrap();
    lchown(root.join("absolute"), Some(7), Some(8)).unwrap();
    file(&root.join("capable"), "capable\n", 0o755);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    sys::xattr::set(&root.join("capable"), "security.capability", &capability).unwrap();
    sys::xattr::set(&root.join("capable"), "user.note", b"not for archives").unwrap();
    set_times(root);
    // Times that need more than a plain header.
    set_time(&root.join("owned"), -5, 0);
    set_time(&root.join("etc/empty"), 1_600_000_000, 123_456_789);
    set_time(&root.join("char"), 9_000_000_000, 0);
    // As below, so that these two are unchanged.
    set_time(&root.join("etc/same"), 1_500_000_008, 0);
    set_time(&root.join("etc"), 1_700_000_000, 0);
}
