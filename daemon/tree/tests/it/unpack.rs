//! Archives that `ADD` unpacks.

use std::io::Write;
use std::path::Path;

use base::task::Scope;
use sys::path::{Owner, Root};
use tar::{Builder, EntryType, Header};
use tree::fileop::{Copy, copy};

use crate::fixture;

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(5);
    header.set_gid(6);
    header.set_mtime(1_000_000_000);
    header.set_size(size as u64);
    header
}

/// A name exactly as given, dots and slashes included.
fn raw(header: &mut Header, name: &str) {
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
}

fn archive(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    fill(&mut builder);
    builder.into_inner().unwrap()
}

fn usual() -> Vec<u8> {
    archive(|tar| {
        let mut dir = header(EntryType::Directory, 0o750, 0);
        tar.append_data(&mut dir, "dir/", &[][..]).unwrap();
        let mut file = header(EntryType::Regular, 0o4711, 2);
        tar.append_data(&mut file, "dir/file", &b"hi"[..]).unwrap();
        let mut link = header(EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut link, "dir/link", "/dir/file").unwrap();
        let mut hard = header(EntryType::Link, 0o4711, 0);
        tar.append_link(&mut hard, "hard", "dir/file").unwrap();
        let mut implied = header(EntryType::Regular, 0o644, 1);
        tar.append_data(&mut implied, "new/deep/x", &b"x"[..]).unwrap();
    })
}

fn run(src: &Path, dest: &Path, name: &str, owner: Option<Owner>) -> Result<(), tree::fileop::Error> {
    let action = Copy {
        src: format!("/{name}"),
        dest: "/out/".into(),
        create_dest_path: true,
        attempt_unpack: true,
        ..Copy::default()
    };
    copy(&Scope::root(), &Root::open(src).unwrap(), &Root::open(dest).unwrap(), &action, owner)
}

const USUAL: &str = "  . 0:0
  out 40755 0:0
  out/dir 40750 5:6 T
  out/dir/file 104711 5:6 T \"hi\"
  out/dir/link 120777 5:6 T ->/dir/file
  out/hard 104711 5:6 T =out/dir/file
  out/new 40755 0:0
  out/new/deep 40755 0:0
  out/new/deep/x 100644 5:6 T \"x\"
";

#[test]
fn unpacks_every_compression() {
    let tar = usual();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar).unwrap();
    let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bz.write_all(&tar).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&tar).unwrap();
    let zst = zstd::encode_all(&tar[..], 1).unwrap();
    let all = [tar, gz.finish().unwrap(), bz.finish().unwrap(), xz.finish().unwrap(), zst];
    for (at, bytes) in all.into_iter().enumerate() {
        let (src, dest) = (fixture::empty(), fixture::empty());
        std::fs::write(src.path().join("a"), bytes).unwrap();
        run(src.path(), dest.path(), "a", None).unwrap();
        assert_eq!(fixture::dump(dest.path()), USUAL, "compression {at}");
    }
}

#[test]
fn copies_what_is_no_archive() {
    for bytes in [&b""[..], b"plain text", &[0; 1024], b"\x1f\x8b\x08 broken", &[b'x'; 600]] {
        let (src, dest) = (fixture::empty(), fixture::empty());
        std::fs::write(src.path().join("a"), bytes).unwrap();
        run(src.path(), dest.path(), "a", None).unwrap();
        assert_eq!(std::fs::read(dest.path().join("out/a")).unwrap(), bytes);
    }
}

#[test]
fn gives_everything_to_the_owner() {
    let (src, dest) = (fixture::empty(), fixture::empty());
    std::fs::write(src.path().join("a"), usual()).unwrap();
    run(src.path(), dest.path(), "a", Some(Owner { uid: 8, gid: 9 })).unwrap();
    let dump = fixture::dump(dest.path());
    assert!(!dump.contains("5:6") && dump.contains("out/dir/file 104711 8:9 T"), "{dump}");
}

#[test]
fn replaces_what_is_there_but_merges_directories() {
    let (src, dest) = (fixture::empty(), fixture::empty());
    std::fs::write(src.path().join("a"), usual()).unwrap();
    std::fs::create_dir_all(dest.path().join("out/dir/file/sub")).unwrap();
    std::fs::write(dest.path().join("out/dir/kept"), "kept").unwrap();
    run(src.path(), dest.path(), "a", None).unwrap();
    let dump = fixture::dump(dest.path());
    assert!(dump.contains("out/dir/kept") && dump.contains("out/dir/file 104711"), "{dump}");
}

#[test]
fn nothing_is_written_outside() {
    let hostile: [(&str, Vec<u8>); 4] = [
        (
            "dots",
            archive(|tar| {
                let mut file = header(EntryType::Regular, 0o644, 1);
                raw(&mut file, "../escape");
                tar.append(&file, &b"x"[..]).unwrap();
            }),
        ),
        (
            "dots inside",
            archive(|tar| {
                let mut file = header(EntryType::Regular, 0o644, 1);
                raw(&mut file, "a/../../escape");
                tar.append(&file, &b"x"[..]).unwrap();
            }),
        ),
        (
            "through a symlink",
            archive(|tar| {
                let mut link = header(EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut link, "link", "../../..").unwrap();
                let mut file = header(EntryType::Regular, 0o644, 1);
                raw(&mut file, "link/escape");
                tar.append(&file, &b"x"[..]).unwrap();
            }),
        ),
        (
            "hard link",
            archive(|tar| {
                let mut link = header(EntryType::Link, 0o644, 0);
                link.set_link_name_literal("../secret").unwrap();
                raw(&mut link, "stolen");
                tar.append(&link, &[][..]).unwrap();
            }),
        ),
    ];
    for (what, bytes) in hostile {
        let (src, dest) = (fixture::empty(), fixture::empty());
        std::fs::create_dir(dest.path().join("root")).unwrap();
        std::fs::write(dest.path().join("root/secret"), "secret").unwrap();
        std::fs::write(src.path().join("a"), bytes).unwrap();
        _ = run(src.path(), &dest.path().join("root"), "a", None);
        let dump = fixture::dump(dest.path());
        for line in dump.lines().filter(|line| line.contains("escape")) {
            assert!(line.trim().starts_with("root/out/"), "{what}: {dump}");
        }
        assert!(!dump.contains('='), "{what}: {dump}");
    }
}
