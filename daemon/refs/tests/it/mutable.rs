//! Refs in the making.

use std::fs;

use refs::{Error, NewRef, RecordType};
use store::Snapshotter;

use crate::support::{Dir, close, file, step, tree};

#[tokio::test]
async fn steps_build_on_each_other() {
    for snapshotter in [Snapshotter::Overlay, Snapshotter::Native] {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let a = file(&refs, None, "dir/a", "1").await;
        let b = step(&refs, Some(&a), |root| {
            fs::remove_file(root.join("dir/a")).unwrap();
            fs::write(root.join("b"), "2").unwrap();
        })
        .await;
        assert_eq!(tree(&a).await, ["dir/", "dir/a=1"]);
        assert_eq!(tree(&b).await, ["b=2", "dir/"]);
        assert_eq!(b.parents()[0].id(), a.id());
        assert_eq!(b.description(), "a step");
        assert_eq!(b.record_type(), RecordType::Regular);
        assert!(!b.is_lazy());
        assert_eq!(b.lowers().await.unwrap().len(), if snapshotter == Snapshotter::Native { 1 } else { 2 });
        // Found by id, also after a restart.
        let ids = (a.id().to_owned(), b.id().to_owned());
        b.set_meta("note", b"kept").unwrap();
        b.set_index("key").unwrap();
        drop((a, b));
        close(refs).await;
        let refs = dir.refs_as(snapshotter).await;
        let b = refs.get(&ids.1).unwrap();
        assert_eq!(tree(&b).await, ["b=2", "dir/"]);
        assert_eq!(b.get_meta("note").unwrap().unwrap(), b"kept");
        assert_eq!(refs.search("key"), [ids.1]);
        assert!(refs.search("other").is_empty());
        assert!(matches!(refs.get("nope"), Err(Error::NotFound { .. })));
    }
}

#[tokio::test]
async fn what_is_not_committed_is_gone() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let mutable = refs.new_mutable(None, NewRef::default()).await.unwrap();
    let id = mutable.id().to_owned();
    let mount = mutable.mount().await.unwrap();
    fs::write(mount.path().join("x"), "x").unwrap();
    assert!(matches!(refs.get(&id), Err(Error::Sort { .. })));
    assert!(matches!(refs.get_mutable(&id).await, Err(Error::Locked { .. })));
    drop(mutable);
    // The mount keeps the record, but nobody gets hold of it any more.
    assert!(matches!(refs.get(&id), Err(Error::NotFound { .. })));
    drop(mount);
    while dir.count("snapshots") + dir.count("trash") + dir.count("mounts") > 0 {
        tokio::task::yield_now().await;
    }
    assert!(refs.usage(&[], None).await.unwrap().is_empty());
}

fn retained() -> NewRef {
    NewRef { description: "local".into(), record_type: RecordType::LocalSource, retain: true }
}

#[tokio::test]
async fn a_retained_one_can_be_had_again() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let mutable = refs.new_mutable(None, retained()).await.unwrap();
    let id = mutable.id().to_owned();
    mutable.set_index("local.sharedKey:x").unwrap();
    let mount = mutable.mount().await.unwrap();
    fs::write(mount.path().join("x"), "1").unwrap();
    mount.unmount().await.unwrap();
    let first = mutable.commit().await.unwrap();
    assert_eq!(tree(&first).await, ["x=1"]);
    assert_eq!(refs.search("local.sharedKey:x"), std::slice::from_ref(&id));
    assert!(matches!(refs.get_mutable(&id).await, Err(Error::Locked { .. })));

    let first_id = first.id().to_owned();
    drop(first);
    // While it is not in use, the two count once.
    let usage = refs.usage(&[], None).await.unwrap();
    assert_eq!(usage.len(), 1);
    assert!(usage[0].mutable && !usage[0].in_use);

    let again = refs.get_mutable(&id).await.unwrap();
    assert!(matches!(refs.get(&first_id), Err(Error::NotFound { .. })), "its content may change now");
    assert!(matches!(refs.get_mutable(&id).await, Err(Error::Locked { .. })));
    let mount = again.mount().await.unwrap();
    assert_eq!(fs::read_to_string(mount.path().join("x")).unwrap(), "1");
    mount.unmount().await.unwrap();
    drop(again);
    let again = refs.get_mutable(&id).await.unwrap();

    // Building on what it was committed as ends it.
    let second = again.commit().await.unwrap();
    let child = file(&refs, Some(&second), "y", "2").await;
    assert_eq!(tree(&child).await, ["x=1", "y=2"]);
    assert!(matches!(refs.get_mutable(&id).await, Err(Error::NotFound { .. })));
    assert!(refs.search("local.sharedKey:x").is_empty());
    let second_id = second.id().to_owned();
    drop((second, child));
    assert_eq!(tree(&refs.get(&second_id).unwrap()).await, ["x=1"]);
    assert!(matches!(refs.get_mutable(&second_id).await, Err(Error::Sort { .. })));
}

#[tokio::test]
async fn a_retained_one_survives_a_restart_and_others_do_not() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let kept = refs.new_mutable(None, retained()).await.unwrap();
    let lost = refs.new_mutable(None, NewRef::default()).await.unwrap();
    let ids = (kept.id().to_owned(), lost.id().to_owned());
    refs.flush().await.unwrap();
    drop(kept);
    // As if killed: nothing gets to clean up.
    let copy = Dir::new();
    store::copy_tree(&dir.0, &copy.0).unwrap();
    let after = copy.refs().await;
    assert!(matches!(after.get_mutable(&ids.1).await, Err(Error::NotFound { .. })));
    after.get_mutable(&ids.0).await.unwrap();
    assert_eq!(copy.count("snapshots"), 1);
}

#[tokio::test]
async fn a_commit_is_one_transaction() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    const KEYS: store::Table = store::Table("test.keys");
    let mutable = refs.new_mutable(None, NewRef::default()).await.unwrap();
    let made = mutable.commit_with(|tx, id| tx.put(KEYS, b"key", id.as_bytes())).await.unwrap();
    use store::Read;
    let noted = refs.store().db().read(|tx| tx.get(KEYS, b"key")).unwrap().unwrap();
    assert_eq!(noted, made.id().as_bytes());

    let mutable = refs.new_mutable(None, NewRef::default()).await.unwrap();
    let failed = mutable.commit_with(|tx, _| {
        tx.put(KEYS, b"other", b"x")?;
        Err(store::Error::Canceled)
    });
    failed.await.unwrap_err();
    assert_eq!(refs.store().db().read(|tx| tx.get(KEYS, b"other")).unwrap(), None);
    while dir.count("snapshots") > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(refs.usage(&[], None).await.unwrap().len(), 1);
}
