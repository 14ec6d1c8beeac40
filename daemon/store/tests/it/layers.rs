//! Layers there and back.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use base::Digest;
use store::{
    Compression, CompressionKind, Decompressor, DiffSource, Snapshotter, Whiteouts, convert_layer, inherit,
    unpack_layer, write_layer,
};
use sys::mount::Overlay;

use crate::support::{Dir, Tar, gzip, listing};
use crate::trees;

const OVERLAY: Whiteouts = Whiteouts::Overlay { userxattr: false };

fn kinds() -> [Compression; 3] {
    [CompressionKind::Uncompressed, CompressionKind::Gzip, CompressionKind::Zstd]
        .map(|kind| Compression { kind, ..Compression::default() })
}

#[test]
fn a_layer_unpacks_to_what_it_was_made_of() {
    let dir = Dir::new();
    let store = dir.store();
    let (lower, upper) = (dir.sub("lower"), dir.sub("upper"));
    trees::lower(&lower);
    trees::upper(&upper);
    let seen = dir.sub("seen");
    let mounted =
        Overlay { lowers: vec![upper.clone(), lower.clone()], ..Default::default() }.mount(&seen).unwrap();
    // Archives have no sockets, whole seconds, and no years before 1970.
    let expected: Vec<_> = listing(&seen)
        .into_iter()
        .filter(|line| !line.starts_with("socket "))
        .map(|line| line.replace(" -5 n", " 0 n"))
        .collect();
    drop(mounted);

    let mut diff_ids = Vec::new();
    for compression in kinds() {
        let source = DiffSource::Upper { lower: Some(&lower), upper: &upper };
        let layer = write_layer(store.blobs(), source, compression).unwrap();
        assert_eq!(store.blobs().info(layer.blob.digest()).unwrap().unwrap().size, layer.blob.size());
        let out = dir.sub(&format!("out-{}", compression.kind.as_str()));
        let applied = unpack_layer(layer.blob.open().unwrap(), &out, OVERLAY, Some(&layer.diff_id)).unwrap();
        assert!(applied.implied.is_empty(), "every directory is listed");
        let mounted =
            Overlay { lowers: vec![out.clone(), lower.clone()], ..Default::default() }.mount(&seen).unwrap();
        assert_eq!(listing(&seen), expected);
        assert_eq!(
            sys::xattr::get(&seen.join("capable"), "security.capability").unwrap().map(|v| v.len()),
            Some(20)
        );
        drop(mounted);
        // And once more: the layer of the layer is the layer.
        let source = DiffSource::Upper { lower: Some(&lower), upper: &out };
        diff_ids
            .push((layer.diff_id.clone(), write_layer(store.blobs(), source, compression).unwrap().diff_id));
    }
    assert!(diff_ids.iter().all(|(a, _)| *a == diff_ids[0].0));
    // Only the year before 1970 makes a difference.
    assert!(diff_ids.iter().all(|(_, b)| *b == diff_ids[0].1));
}

#[test]
fn without_overlays_the_same_layer_comes_out() {
    let dir = Dir::new();
    let store = dir.store();
    let (lower, upper, seen) = (dir.sub("lower"), dir.sub("upper"), dir.sub("seen"));
    trees::lower(&lower);
    trees::upper(&upper);
    let mounted =
        Overlay { lowers: vec![upper.clone(), lower.clone()], ..Default::default() }.mount(&seen).unwrap();
    let copy = dir.sub("copy");
    store::copy_tree(&seen, &copy).unwrap();
    drop(mounted);
    let plain = kinds()[0];
    let by_upper =
        write_layer(store.blobs(), DiffSource::Upper { lower: Some(&lower), upper: &upper }, plain).unwrap();
    let by_trees =
        write_layer(store.blobs(), DiffSource::Trees { lower: Some(&lower), upper: Some(&copy) }, plain)
            .unwrap();
    assert_eq!(by_upper.diff_id, by_trees.diff_id);

    // Unpacked onto a copy of what was below it is the whole tree.
    let onto = dir.sub("onto");
    store::copy_tree(&lower, &onto).unwrap();
    unpack_layer(by_upper.blob.open().unwrap(), &onto, Whiteouts::Remove, None).unwrap();
    let times = |lines: Vec<String>| -> Vec<String> {
        // Directories that lost entries have a time of their own.
        let without_time = |line: &String| {
            let fields: Vec<_> = line.split(' ').collect();
            let dir = fields.iter().any(|f| f.starts_with("40"));
            fields
                .iter()
                .enumerate()
                .filter(|(i, _)| !(dir && *i + 3 == fields.len()))
                .map(|(_, f)| *f)
                .collect::<Vec<_>>()
                .join(" ")
        };
        lines
            .iter()
            .filter(|l| !l.starts_with("socket "))
            .map(|l| without_time(&l.replace(" -5 n", " 0 n")))
            .collect()
    };
    assert_eq!(times(listing(&onto)), times(listing(&copy)));
}

#[test]
fn bytes_do_not_depend_on_when_they_are_made() {
    let dir = Dir::new();
    let store = dir.store();
    let lower = dir.sub("lower");
    trees::lower(&lower);
    for compression in kinds() {
        let make = || {
            write_layer(store.blobs(), DiffSource::Trees { lower: None, upper: Some(&lower) }, compression)
        };
        assert_eq!(make().unwrap().blob.digest(), make().unwrap().blob.digest());
    }
}

#[test]
fn converting_keeps_the_layer() {
    let dir = Dir::new();
    let store = dir.store();
    let tree = dir.sub("tree");
    trees::lower(&tree);
    let source = DiffSource::Trees { lower: None, upper: Some(&tree) };
    let first = write_layer(store.blobs(), source, kinds()[1]).unwrap();
    for compression in kinds() {
        let again = convert_layer(store.blobs(), first.blob.open().unwrap(), compression, None).unwrap();
        assert_eq!(again.diff_id, first.diff_id);
        let mut decompressor = Decompressor::new(again.blob.open().unwrap()).unwrap();
        assert_eq!(decompressor.kind(), compression.kind);
        let mut bytes = Vec::new();
        decompressor.read_to_end(&mut bytes).unwrap();
        assert_eq!(Digest::of(bytes), first.diff_id);
    }
    // With an upper bound for times it becomes another one, always the same.
    let epoch = |at| convert_layer(store.blobs(), first.blob.open().unwrap(), kinds()[0], Some(at)).unwrap();
    assert_eq!(epoch(2_000_000_000).diff_id, first.diff_id);
    let old = epoch(1_000_000_000);
    assert_ne!(old.diff_id, first.diff_id);
    let out = dir.sub("out");
    unpack_layer(old.blob.open().unwrap(), &out, Whiteouts::Remove, None).unwrap();
    assert_eq!(fs::metadata(out.join("etc/passwd")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn a_wrong_diff_id_is_noticed_and_padding_belongs_to_it() {
    let dir = Dir::new();
    let mut archive = Tar::new().file("f", "x").done();
    archive.extend_from_slice(&[0; 10_240]);
    let digest = Digest::of(&archive);
    for (n, bytes) in [archive.clone(), gzip(&archive)].into_iter().enumerate() {
        let out = dir.sub(&format!("good{n}"));
        unpack_layer(&bytes[..], &out, Whiteouts::Remove, Some(&digest)).unwrap();
        let out = dir.sub(&format!("bad{n}"));
        let wrong = unpack_layer(&bytes[..], &out, Whiteouts::Remove, Some(&Digest::of("")));
        assert!(matches!(wrong, Err(store::Error::Mismatch { what: "diff id", .. })));
    }
    let bytes = gzip(&archive);
    for cut in [1, 5, 20, bytes.len() - 1] {
        let out = dir.sub(&format!("cut{cut}"));
        assert!(unpack_layer(&bytes[..cut], &out, Whiteouts::Remove, Some(&digest)).is_err(), "{cut}");
    }
}

#[test]
fn implied_directories_inherit_from_below() {
    let dir = Dir::new();
    let (bottom, middle, top) = (dir.sub("bottom"), dir.sub("middle"), dir.sub("top"));
    let archive = Tar::new().dir("a/").dir("a/b/").done();
    unpack_layer(&archive[..], &bottom, Whiteouts::Remove, None).unwrap();
    sys::xattr::set(&bottom.join("a/b"), "user.note", b"below").unwrap();
    std::os::unix::fs::chown(bottom.join("a/b"), Some(12), Some(34)).unwrap();
    let archive = Tar::new().file("a/b/c/file", "x").file("new/dir/file", "x").done();
    let applied = unpack_layer(&archive[..], &top, OVERLAY, None).unwrap();
    assert_eq!(applied.implied, ["a", "a/b", "a/b/c", "new", "new/dir"].map(std::path::PathBuf::from));
    inherit(&top, &applied.implied, &[middle, bottom]).unwrap();
    let meta = fs::metadata(top.join("a/b")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()), (0o750, 12, 34, 1_600_000_000));
    assert_eq!(sys::xattr::get(&top.join("a/b"), "user.note").unwrap().unwrap(), b"below");
    assert_eq!(fs::metadata(top.join("new/dir")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn deletions_do_not_concern_what_the_layer_brings() {
    let dir = Dir::new();
    let lower = dir.sub("lower");
    for name in ["d/old", "e/old", "f", "g/old"] {
        fs::create_dir_all(lower.join(name)).unwrap();
    }
    // Before and after, in both ways it can be written.
    let archive = Tar::new()
        .file(".wh.d", "")
        .dir("d/")
        .file("d/new", "x")
        .dir("e/")
        .file("e/new", "x")
        .file("e/.wh..wh..opq", "")
        .file("f", "file")
        .file(".wh.f", "")
        .dir("g/")
        .file("g/new", "x")
        .file(".wh.g", "")
        .done();
    let top = dir.sub("top");
    unpack_layer(&archive[..], &top, OVERLAY, None).unwrap();
    let seen = dir.sub("seen");
    let mounted = Overlay { lowers: vec![top, lower.clone()], ..Default::default() }.mount(&seen).unwrap();
    let names = |root: &std::path::Path| -> Vec<String> {
        listing(root).iter().filter_map(|l| l.split(' ').next().map(str::to_owned)).collect()
    };
    let expected = ["d", "d/new", "e", "e/new", "f", "g", "g/new"];
    assert_eq!(names(&seen), expected);
    drop(mounted);
    // The same on a copy.
    unpack_layer(&archive[..], &lower, Whiteouts::Remove, None).unwrap();
    assert_eq!(names(&lower), expected);
}

#[test]
fn sparse_files_are_read_in_every_format() {
    let dir = Dir::new();
    // 0.1 and 1.0 of PAX: four bytes at 4096 of a file of 10000.
    let v01 = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.size", b"10000"),
            ("GNU.sparse.map", b"4096,4"),
        ])
        .file("GNUSparseFile.0/sparse", "data")
        .done();
    let mut map = "1\n4096\n4\n".to_owned();
    map.extend(std::iter::repeat_n('\0', 512 - map.len()));
    let v10 = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"10000"),
        ])
        .file("GNUSparseFile.0/sparse", &format!("{map}data"))
        .done();
    for (n, archive) in [v01, v10].iter().enumerate() {
        let out = dir.sub(&n.to_string());
        unpack_layer(&archive[..], &out, Whiteouts::Remove, None).unwrap();
        let bytes = fs::read(out.join("sparse")).unwrap();
        assert_eq!(bytes.len(), 10_000);
        assert_eq!(&bytes[4096..4100], b"data");
        assert_eq!(bytes.iter().filter(|b| **b != 0).count(), 4);
    }
    for bad in ["4096", "0,4,2,4", "0,4,9999,2", "x,y", "0,5"] {
        let archive = Tar::new()
            .pax(&[("GNU.sparse.size", b"10000"), ("GNU.sparse.map", bad.as_bytes())])
            .file("f", "data")
            .done();
        assert!(unpack_layer(&archive[..], &dir.sub("bad"), Whiteouts::Remove, None).is_err(), "{bad}");
    }
}

#[test]
fn snapshots_stack_and_go() {
    for snapshotter in [Snapshotter::Overlay, Snapshotter::Native] {
        let dir = Dir::new();
        let store = dir.store_as(snapshotter);
        let snapshots = store.snapshots();
        let mut parent: Option<String> = None;
        for name in ["a", "b", "c"] {
            snapshots.prepare(name, parent.as_deref()).unwrap();
            assert!(snapshots.prepare("x", Some(name)).is_err(), "not on what is being written");
            let at = store.mount_point().unwrap();
            let mounted = snapshots.writable(name, false).unwrap().mount(&at).unwrap();
            fs::write(at.join(name), name).unwrap();
            fs::write(at.join("last"), name).unwrap();
            mounted.unmount().unwrap();
            fs::remove_dir(&at).unwrap();
            store.db().write(|tx| snapshots.commit(tx, name)).unwrap();
            assert!(snapshots.writable(name, false).is_err());
            parent = Some(name.to_owned());
        }
        let at = store.mount_point().unwrap();
        let mounted = snapshots.view("c").unwrap().mount(&at).unwrap();
        assert_eq!(fs::read_to_string(at.join("last")).unwrap(), "c");
        assert!(at.join("a").exists() && at.join("b").exists());
        assert!(fs::write(at.join("x"), "").is_err());
        drop(mounted);
        assert!(snapshots.usage("c").unwrap().bytes > 0);

        // Left over: a directory without a row, a row without a directory, a mount.
        fs::create_dir_all(dir.0.join("store/snapshots/stray/fs")).unwrap();
        fs::remove_dir_all(dir.0.join("store/snapshots/b")).unwrap();
        snapshots.view("a").unwrap().mount(&at).unwrap().leave();
        drop(store);
        let store = dir.store_as(snapshotter);
        assert_eq!(store.snapshots().list().unwrap(), ["a"], "c went with b");
        assert_eq!(fs::read_dir(dir.0.join("store/snapshots")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.0.join("store/mounts")).unwrap().count(), 0);
        store.db().write(|tx| store.snapshots().remove(tx, "a")).unwrap().discard().unwrap();
        store.empty_trash().unwrap();
        assert_eq!(fs::read_dir(dir.0.join("store/trash")).unwrap().count(), 0);
    }
}
