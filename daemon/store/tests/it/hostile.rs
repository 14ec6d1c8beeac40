//! Archives that mean harm.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use store::{Error, Whiteouts, apply};

use crate::support::{Dir, Tar};

/// A root to unpack into, beside things nobody may touch.
fn scene() -> Dir {
    let dir = Dir::new();
    dir.sub("root");
    dir.sub("outside");
    fs::write(dir.0.join("outside/secret"), "secret").unwrap();
    dir
}

fn unpack(dir: &Dir, archive: &[u8]) -> store::Result<store::Applied> {
    let result = apply(archive, &dir.0.join("root"), Whiteouts::Remove);
    assert_eq!(fs::read_to_string(dir.0.join("outside/secret")).unwrap(), "secret");
    assert_eq!(fs::read_dir(dir.0.join("outside")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 2);
    result
}

fn refused(dir: &Dir, archive: &[u8]) -> String {
    match unpack(dir, archive) {
        Err(e @ Error::Archive { .. }) => e.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_stay_inside() {
    let dir = scene();
    let archive = Tar::new()
        .file("../../outside/a", "x")
        .file("/outside/b", "x")
        .file("a/../../../c", "x")
        .dir("..")
        .dir("/")
        .file("./././d", "x");
    unpack(&dir, &archive.done()).unwrap();
    for name in ["outside/a", "outside/b", "c", "d"] {
        assert!(dir.0.join("root").join(name).exists(), "{name}");
    }
}

#[test]
fn symlinks_do_not_lead_out() {
    let dir = scene();
    let outside = dir.0.join("outside");
    let archive = Tar::new()
        .symlink("up", "../../outside")
        .file("up/secret", "pwned")
        .symlink("abs", outside.to_str().unwrap())
        .file("abs/secret", "pwned")
        .symlink("loop", "loop2")
        .symlink("file", "../../outside/secret")
        .file("file", "replaces the link");
    unpack(&dir, &archive.done()).unwrap();
    assert!(fs::symlink_metadata(dir.0.join("root/file")).unwrap().is_file());

    let archive = Tar::new().symlink("loop", "loop2").symlink("loop2", "loop").file("loop/x", "x").done();
    assert!(unpack(&dir, &archive).is_err());
    // A directory entry of the same name does not follow it either.
    let archive = Tar::new().symlink("d", "../../outside").dir("d/").file("d/x", "x").done();
    unpack(&dir, &archive).unwrap();
    assert!(dir.0.join("root/d/x").exists());
}

#[test]
fn hard_links_do_not_lead_out() {
    let dir = scene();
    let secret = dir.0.join("outside/secret");
    refused(&dir, &Tar::new().link("a", "../../outside/secret").done());
    refused(&dir, &Tar::new().link("a", secret.to_str().unwrap()).done());
    refused(&dir, &Tar::new().symlink("s", "../../outside").link("a", "s/secret").done());
    refused(&dir, &Tar::new().link("a", "/").done());
    refused(&dir, &Tar::new().dir("d/").link("a", "d").done());
    refused(&dir, &Tar::new().link("a", "missing").done());
    // To a symlink is to the symlink itself.
    unpack(&dir, &Tar::new().symlink("s", "../../outside/secret").link("t", "s").done()).unwrap();
    assert!(fs::symlink_metadata(dir.0.join("root/t")).unwrap().is_symlink());
    assert_eq!(fs::metadata(dir.0.join("outside/secret")).unwrap().nlink(), 1);
}

#[test]
fn whiteouts_delete_only_names_beside_them() {
    let dir = scene();
    fs::create_dir(dir.0.join("root/d")).unwrap();
    for bad in ["d/.wh.", "d/.wh..", "d/.wh...", ".wh.."] {
        assert!(refused(&dir, &Tar::new().file(bad, "").done()).contains("whiteout"), "{bad}");
    }
    unpack(&dir, &Tar::new().file("d/.wh..wh.plnk", "").file("../.wh.outside", "").done()).unwrap();
    assert!(dir.0.join("root/d").exists());
}

#[test]
fn attributes_that_steer_the_overlay_are_not_taken() {
    let dir = scene();
    let archive = Tar::new()
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.overlay.opaque", b"y")])
        .dir("d/")
        .pax(&[("SCHILY.xattr.user.ok", b"\0binary\n=")])
        .file("f", "x");
    unpack(&dir, &archive.done()).unwrap();
    assert!(sys::xattr::list(&dir.0.join("root/d")).unwrap().is_empty());
    assert_eq!(sys::xattr::get(&dir.0.join("root/f"), "user.ok").unwrap().unwrap(), b"\0binary\n=");
}

#[test]
fn devices_are_devices() {
    let dir = scene();
    unpack(&dir, &Tar::new().device("null", 1, 3).done()).unwrap();
    let meta = fs::symlink_metadata(dir.0.join("root/null")).unwrap();
    assert!(meta.file_type().is_char_device());
    assert_eq!(meta.rdev(), rustix::fs::makedev(1, 3));
}

#[test]
fn sizes_that_contradict_each_other_are_followed_to_the_letter() {
    let dir = scene();
    // The record wins over the header: what follows would otherwise be read
    // as entries that another reader does not see.
    let inner = Tar::new().file("smuggled", "x").done();
    let mut archive = Tar::new().pax(&[("size", b"1024")]).file("f", "").done();
    archive.truncate(archive.len() - 1024);
    archive.extend_from_slice(&inner[..1024]);
    archive.extend_from_slice(&[0; 1024]);
    unpack(&dir, &archive).unwrap();
    assert_eq!(fs::metadata(dir.0.join("root/f")).unwrap().len(), 1024);
    assert!(!dir.0.join("root/smuggled").exists());
    for bad in ["-1", "1e3", "99999999999999999999", "1 ", "0x10"] {
        refused(&dir, &Tar::new().pax(&[("size", bad.as_bytes())]).file("f", "").done());
    }
}

#[test]
fn cut_archives_are_refused_wherever_they_are_cut() {
    let archive = Tar::new().pax(&[("SCHILY.xattr.user.a", b"b")]).file("f", "data").file("g", "more").done();
    // The end mark may be missing: everything before was complete.
    let complete = archive.len() - 1024;
    for len in (1..complete).step_by(100) {
        let dir = scene();
        let result = unpack(&dir, &archive[..len]);
        // Between entries nobody can tell.
        assert!(result.is_err() || len % 512 == 0, "{len}");
    }
    unpack(&scene(), &archive[..complete]).unwrap();
}

#[test]
fn broken_headers_are_refused() {
    let dir = scene();
    let good = Tar::new().file("f", "x").done();
    let mut sum = good.clone();
    sum[0] = b'g';
    assert!(refused(&dir, &sum).contains("checksum"));
    for bad in [&b"5 a=b"[..], b"99 a=b\n", b"x a=b\n", b"6 ab \n", b"5 =b\n", b"0 a=b\n", b"12 path=a\0b\n"]
    {
        let mut archive = Vec::new();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(bad.len() as u64);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(bad);
        archive.resize(1024, 0);
        archive.extend_from_slice(&good);
        assert!(refused(&dir, &archive).contains("PAX"), "{bad:?}");
    }
    // Records without end do not fill the memory.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    assert!(refused(&dir, header.as_bytes()).contains("too large"));
}

#[test]
fn owners_out_of_range_are_refused() {
    let dir = scene();
    for id in ["4294967295", "4294967296"] {
        refused(&dir, &Tar::new().pax(&[("uid", id.as_bytes())]).file("f", "").done());
    }
}

#[test]
fn noise_never_panics() {
    use proptest::prelude::*;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let archive = Tar::new()
        .dir("d/")
        .pax(&[("path", b"d/long"), ("SCHILY.xattr.user.a", b"b")])
        .file("x", "data")
        .symlink("d/s", "x")
        .link("d/h", "d/long")
        .done();
    let dir = scene();
    let changes = proptest::collection::vec((0..archive.len(), any::<u8>()), 0..8);
    runner
        .run(&(changes, any::<bool>()), |(changes, fix)| {
            let mut bytes = archive.clone();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            if fix {
                for block in bytes.chunks_exact_mut(512) {
                    if &block[257..262] == b"ustar" {
                        let sum: u32 = block
                            .iter()
                            .enumerate()
                            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
                            .sum();
                        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                    }
                }
            }
            _ = unpack(&dir, &bytes);
            Ok(())
        })
        .unwrap();
}
