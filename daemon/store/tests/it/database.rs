//! The database file: versions, damage, transactions.

use std::fs;

use store::{Db, Error, Options, Read, Rows, Store, Table};

use crate::support::Dir;

const T: Table = Table("test");

fn put(db: &Db, key: &str, value: &str) {
    db.write(|tx| tx.put(T, key.as_bytes(), value.as_bytes())).unwrap();
}

#[test]
fn all_or_nothing() {
    let dir = Dir::new();
    let store = dir.store();
    let db = store.db();
    put(db, "a/1", "x");
    put(db, "a/2", "y");
    put(db, "b", "z");
    let failed = db.write(|tx| {
        tx.put(T, b"a/3", b"!")?;
        tx.delete(T, b"a/1")?;
        Err::<(), _>(Error::Canceled)
    });
    assert!(matches!(failed, Err(Error::Canceled)));
    assert_eq!(db.read(|tx| tx.keys(T, b"a/")).unwrap(), [b"a/1".to_vec(), b"a/2".to_vec()]);
    assert_eq!(db.read(|tx| tx.get(Table("none"), b"a")).unwrap(), None);
    db.write(|tx| tx.delete_prefix(T, b"a/")).unwrap();
    assert_eq!(db.read(|tx| tx.keys(T, b"")).unwrap(), [b"b".to_vec()]);
}

#[test]
fn rows_that_do_not_parse_are_errors() {
    let dir = Dir::new();
    let store = dir.store();
    const ROWS: Rows<u32> = Rows::new("test");
    put(store.db(), "bad", "{");
    store.db().write(|tx| ROWS.put(tx, "good", &7)).unwrap();
    assert_eq!(store.db().read(|tx| ROWS.get(tx, "good")).unwrap(), Some(7));
    assert!(matches!(store.db().read(|tx| ROWS.get(tx, "bad")), Err(Error::Row { table: "test", .. })));
    assert_eq!(store.db().read(|tx| ROWS.all(tx)).unwrap().len(), 2);
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = Dir::new();
    let store = dir.store();
    store.db().write(|tx| tx.put(Table("meta"), b"schema", &99u64.to_le_bytes())).unwrap();
    drop(store);
    let opened = Store::open(dir.0.join("store"), Options::default());
    assert!(matches!(opened.map(drop), Err(Error::Newer { found: 99, .. })));
}

#[test]
fn a_damaged_file_is_put_aside() {
    let dir = Dir::new();
    let store = dir.store();
    let blob = store.blobs().write(b"x", Default::default()).unwrap().digest().clone();
    put(store.db(), "a", "b");
    drop(store);
    let path = dir.0.join("store/store.db");
    for damage in [b"not a database".to_vec(), vec![0xff; 64 << 10]] {
        fs::write(&path, &damage).unwrap();
        let store = dir.store();
        assert_eq!(store.db().read(|tx| tx.get(T, b"a")).unwrap(), None);
        assert!(store.blobs().info(&blob).unwrap().is_none());
        assert_eq!(fs::read(dir.0.join("store/store.db.bak")).unwrap(), damage);
    }
}

#[test]
fn only_one_at_a_time() {
    let dir = Dir::new();
    let _store = dir.store();
    assert!(matches!(Store::open(dir.0.join("store"), Options::default()).map(drop), Err(Error::Db { .. })));
}
