//! Disk usage, pruning, garbage collection.

use std::time::Duration;

use refs::{Compression, NewRef, PrunePolicy, RecordType, Refs};

use crate::support::{Dir, Registry, close, file};

async fn ids(refs: &Refs, filters: &[&str]) -> Vec<String> {
    let filters: Vec<String> = filters.iter().map(|&f| f.to_owned()).collect();
    let mut ids: Vec<_> = refs.usage(&filters, None).await.unwrap().into_iter().map(|u| u.id).collect();
    ids.sort();
    ids
}

async fn prune(refs: &Refs, policy: PrunePolicy) -> Vec<String> {
    let mut removed = Vec::new();
    let told = |usage: refs::Usage| {
        removed.push(usage.id);
        std::future::ready(())
    };
    refs.prune(&[policy], told).await.unwrap();
    removed
}

#[tokio::test]
async fn usage_says_what_is_there() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let a = file(&refs, None, "a", &"x".repeat(100_000)).await;
    let b = file(&refs, Some(&a), "b", "1").await;
    let (a_id, b_id) = (a.id().to_owned(), b.id().to_owned());
    drop(a);
    let all = refs.usage(&[], None).await.unwrap();
    let of = |id: &str| all.iter().find(|u| u.id == id).unwrap();
    assert!(of(&a_id).in_use && of(&b_id).in_use, "b needs a");
    assert_eq!(of(&b_id).parents, std::slice::from_ref(&a_id));
    assert!(of(&a_id).size >= 100_000 && of(&b_id).size < 100_000);
    assert_eq!(of(&a_id).usage_count, 0);
    assert_eq!(of(&b_id).description, "a step");
    // A layer's blob counts as well.
    b.layers(Compression { kind: refs::CompressionKind::Uncompressed, ..Default::default() }).await.unwrap();
    assert!(refs.usage(&[format!("id=={a_id}")], None).await.unwrap()[0].size >= 200_000);
    drop(b);
    let mutable = refs
        .new_mutable(None, NewRef { record_type: RecordType::CacheMount, ..NewRef::default() })
        .await
        .unwrap();
    assert_eq!(ids(&refs, &["inuse"]).await, [mutable.id()]);
    assert_eq!(ids(&refs, &["type==exec.cachemount"]).await, [mutable.id()]);
    assert_eq!(ids(&refs, &["mutable", &format!("id=={b_id}")]).await.len(), 2);
    assert_eq!(ids(&refs, &[&format!("parents=={a_id}")]).await, std::slice::from_ref(&b_id));
    assert_eq!(ids(&refs, &["immutable,private"]).await.len(), 2);
    assert!(refs.usage(&["=".into()], None).await.is_err());
    let unused = refs.usage(&[], Some(Duration::from_secs(3600))).await.unwrap();
    assert!(unused.iter().all(|u| u.id != b_id), "just used");
    // Counted, and written down.
    drop((mutable, refs.get(&b_id).unwrap()));
    refs.flush().await.unwrap();
    close(refs).await;
    let refs = dir.refs().await;
    let usage = &refs.usage(&[format!("id=={b_id}")], None).await.unwrap()[0];
    assert_eq!(usage.usage_count, 2);
    assert!(usage.last_used_at.is_some() && !usage.in_use);
}

#[tokio::test]
async fn prune_takes_what_nobody_holds_leaves_first() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let a = file(&refs, None, "a", "1").await;
    let b = file(&refs, Some(&a), "b", "1").await;
    let c = file(&refs, Some(&a), "c", "1").await;
    c.layers(Compression::default()).await.unwrap();
    b.layers(Compression::default()).await.unwrap();
    let (a_id, b_id, c_id) = (a.id().to_owned(), b.id().to_owned(), c.id().to_owned());
    let mount = c.mount().await.unwrap();
    drop((a, b, c));
    assert_eq!(
        prune(&refs, PrunePolicy::default()).await,
        std::slice::from_ref(&b_id),
        "a mount holds its ref"
    );
    assert_eq!(dir.count("content/blobs/sha256"), 2);
    mount.unmount().await.unwrap();
    assert_eq!(prune(&refs, PrunePolicy::default()).await, [c_id, a_id]);
    assert!(refs.get(&b_id).is_err());
    let left = ["snapshots", "content/blobs/sha256", "trash", "mounts"].map(|d| dir.count(d));
    assert_eq!(left, [0, 0, 0, 0]);
    close(refs).await;
    assert!(dir.refs().await.usage(&[], None).await.unwrap().is_empty());
}

#[tokio::test]
async fn prune_spares_what_it_is_told_to() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let of_type = async |record_type| {
        let new = NewRef { record_type, ..NewRef::default() };
        refs.new_mutable(None, new).await.unwrap().commit().await.unwrap().id().to_owned()
    };
    let regular = of_type(RecordType::Regular).await;
    let internal = of_type(RecordType::Internal).await;
    let frontend = of_type(RecordType::Frontend).await;
    let recent = PrunePolicy { keep_duration: Some(Duration::from_secs(60)), ..PrunePolicy::default() };
    assert!(prune(&refs, recent).await.is_empty());
    let filtered = PrunePolicy { filters: vec!["type==frontend".into()], ..PrunePolicy::default() };
    assert!(prune(&refs, filtered.clone()).await.is_empty());
    assert_eq!(prune(&refs, PrunePolicy::default()).await, [regular]);
    assert_eq!(prune(&refs, PrunePolicy { all: true, ..filtered }).await, [frontend]);
    assert_eq!(prune(&refs, PrunePolicy { all: true, ..PrunePolicy::default() }).await, [internal]);
}

#[tokio::test]
async fn limits_stop_it() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let text = "x".repeat(1 << 20);
    let mut made = Vec::new();
    for name in ["a", "b", "c", "d"] {
        made.push(file(&refs, None, name, &text).await.id().to_owned());
    }
    // Used again, the first is worth more.
    for _ in 0..5 {
        drop(refs.get(&made[0]).unwrap());
    }
    let policy = PrunePolicy { max_used: 5 << 19, ..PrunePolicy::default() };
    let gone = prune(&refs, policy).await;
    assert_eq!(gone, [made[1].clone(), made[2].clone()]);
    let policy = PrunePolicy { max_used: 1, reserved: 10 << 20, ..PrunePolicy::default() };
    assert!(prune(&refs, policy).await.is_empty());
    let policy = PrunePolicy { min_free: 1, ..PrunePolicy::default() };
    assert!(prune(&refs, policy).await.is_empty());
    let policy = PrunePolicy { min_free: u64::MAX, ..PrunePolicy::default() };
    assert_eq!(prune(&refs, policy).await.len(), 2);
}

#[tokio::test]
async fn a_retained_mutable_goes_with_what_it_was_committed_as() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let new = NewRef { retain: true, record_type: RecordType::LocalSource, ..NewRef::default() };
    let mutable = refs.new_mutable(None, new).await.unwrap();
    let id = mutable.id().to_owned();
    let committed = mutable.commit().await.unwrap();
    assert!(prune(&refs, PrunePolicy::default()).await.is_empty());
    drop(committed);
    assert_eq!(prune(&refs, PrunePolicy::default()).await, [id]);
    assert_eq!(dir.count("snapshots"), 0);
    assert!(refs.usage(&[], None).await.unwrap().is_empty());
}

#[tokio::test]
async fn building_and_pruning_at_once_never_meet_halfway() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let layers = [registry.layer(&[("a", "1")]), registry.layer(&[("b", "2")])];
    let build = async |n: usize| {
        for round in 0..5 {
            let image = registry.image(&refs, &layers).await;
            let step = file(&refs, Some(&image), "c", &format!("{n}-{round}")).await;
            let blobs = step.layers(Compression::default()).await.unwrap();
            assert_eq!(blobs.len(), 3);
            for blob in &blobs {
                blob.fetch().await.unwrap();
            }
            step.mount().await.unwrap().unmount().await.unwrap();
        }
    };
    let collect = async {
        for _ in 0..30 {
            refs.prune(&[PrunePolicy { all: true, ..PrunePolicy::default() }], |_| async {}).await.unwrap();
        }
    };
    tokio::join!(build(0), build(1), build(2), collect);
    prune(&refs, PrunePolicy::default()).await;
    assert!(refs.usage(&[], None).await.unwrap().is_empty());
    assert_eq!(dir.count("snapshots"), 0);
}
