//! Blobs: verified, pinned, held, collected.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use base::Digest;
use store::{Error, Store};

use crate::support::Dir;

fn ingest(store: &Store, bytes: &[u8], expected: Option<(&Digest, u64)>) -> store::Result<store::Pin> {
    let mut ingest = store.blobs().ingest().unwrap();
    ingest.write_all(bytes).unwrap();
    ingest.commit(expected, BTreeMap::new())
}

fn files(dir: &Dir, below: &str) -> usize {
    fs::read_dir(dir.0.join("store").join(below)).map_or(0, |d| d.count())
}

#[test]
fn what_is_not_as_promised_leaves_nothing() {
    let dir = Dir::new();
    let store = dir.store();
    let good = Digest::of("hello");
    for (bytes, size, what) in
        [("hullo", 5, "digest"), ("hell", 5, "size"), ("hello!", 5, "size"), ("hello", 6, "size")]
    {
        match ingest(&store, bytes.as_bytes(), Some((&good, size))) {
            Err(Error::Mismatch { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{bytes}: {:?}", other.err()),
        }
    }
    drop(store.blobs().ingest().unwrap());
    assert_eq!(files(&dir, "content/ingest"), 0);
    assert_eq!(files(&dir, "content/blobs/sha256"), 0);
    assert!(store.blobs().pin(&good).unwrap().is_none());

    let pin = ingest(&store, b"hello", Some((&good, 5))).unwrap();
    assert_eq!((pin.digest(), pin.size()), (&good, 5));
    assert_eq!(store.blobs().read(&good, 5).unwrap(), b"hello");
    assert!(store.blobs().read(&good, 4).is_err());
}

#[test]
fn rarer_digests_are_verified_too() {
    let dir = Dir::new();
    let store = dir.store();
    // Of the empty text.
    let text = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";
    let digest: Digest = text.parse().unwrap();
    assert_eq!(ingest(&store, b"", Some((&digest, 0))).unwrap().digest(), &digest);
    assert!(ingest(&store, b"x", Some((&digest, 1))).is_err());
}

#[test]
fn what_nobody_holds_is_collected() {
    let dir = Dir::new();
    let store = dir.store();
    let blobs = store.blobs();
    let pinned = ingest(&store, b"pinned", None).unwrap();
    let held = ingest(&store, b"held", None).unwrap().digest().clone();
    let loose = ingest(&store, b"loose", None).unwrap().digest().clone();
    store.db().write(|tx| blobs.hold(tx, "somebody", &held)).unwrap();
    assert!(store.db().write(|tx| blobs.hold(tx, "somebody", &Digest::of("no"))).is_err());

    assert_eq!(blobs.collect().unwrap(), 5);
    assert!(blobs.info(&loose).unwrap().is_none());
    assert!(matches!(blobs.open_blob(&loose), Err(Error::NoBlob { .. })));
    assert!(blobs.info(&held).unwrap().is_some());
    assert_eq!(store.db().read(|tx| blobs.held_by(tx, "somebody")).unwrap(), std::slice::from_ref(&held));

    drop(pinned);
    store.db().write(|tx| blobs.release(tx, "somebody")).unwrap();
    assert_eq!(blobs.collect().unwrap(), 10);
    assert!(store.db().read(|tx| blobs.holders(tx, &held)).unwrap().is_empty());
    store.empty_trash().unwrap();
    assert_eq!(files(&dir, "trash"), 0);
}

#[test]
fn labels_are_merged() {
    let dir = Dir::new();
    let store = dir.store();
    let label = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let pin = store.blobs().write(b"x", label(&[("a", "1"), ("b", "2")])).unwrap();
    store.blobs().write(b"x", label(&[("b", ""), ("c", "3")])).unwrap();
    let info = store.blobs().info(pin.digest()).unwrap().unwrap();
    assert_eq!(info.labels, label(&[("a", "1"), ("c", "3")]));
}

#[test]
fn a_start_puts_files_and_rows_in_order() {
    let dir = Dir::new();
    let store = dir.store();
    let kept = ingest(&store, b"kept", None).unwrap().digest().clone();
    let lost = ingest(&store, b"lost", None).unwrap().digest().clone();
    let cut = ingest(&store, b"cut short", None).unwrap().digest().clone();
    // Everything so far is lazily written; one durable change takes it along.
    store.db().write(|tx| store.blobs().hold(tx, "x", &lost)).unwrap();
    let path = |d: &Digest| store.blobs().path(d);
    fs::remove_file(path(&lost)).unwrap();
    fs::write(path(&cut), "cut").unwrap();
    let stray = path(&Digest::of("stray"));
    fs::write(&stray, "stray").unwrap();
    fs::write(dir.0.join("store/content/ingest/half"), "half").unwrap();
    drop(store);

    let store = dir.store();
    assert!(store.blobs().info(&kept).unwrap().is_some());
    assert!(store.blobs().info(&lost).unwrap().is_none());
    assert!(store.blobs().info(&cut).unwrap().is_none());
    assert!(!stray.exists());
    assert_eq!(files(&dir, "content/ingest"), 0);
    assert_eq!(files(&dir, "content/blobs/sha256"), 1);
}
