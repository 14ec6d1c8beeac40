//! Layers that arrive when they are needed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::Kind;
use base::progress::{Event, Report, Sink, VertexSink};
use parking_lot::Mutex;
use refs::{CompressionKind, RecordType};
use store::Snapshotter;

use crate::support::{Dir, Registry, close, file, tree};

#[tokio::test]
async fn nothing_is_fetched_until_needed_and_then_once() {
    for snapshotter in [Snapshotter::Overlay, Snapshotter::Native] {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let registry = Registry::new();
        let layers = [
            registry.layer(&[("etc/", ""), ("etc/a", "1"), ("gone", "x")]),
            registry.layer(&[("etc/b", "2"), (".wh.gone", "")]),
            registry.layer_as(CompressionKind::Zstd, &[("etc/a", "3")]),
        ];
        let image = registry.image(&refs, &layers).await;
        assert!(image.is_lazy());
        assert_eq!(registry.opened.load(Ordering::SeqCst), 0);
        let (a, b) = tokio::join!(image.ensure(), image.mount());
        a.unwrap();
        let mount = b.unwrap();
        assert_eq!(registry.opened.load(Ordering::SeqCst), 3);
        assert!(!image.is_lazy());
        assert_eq!(tree(&image).await, ["etc/", "etc/a=3", "etc/b=2"]);
        // The directory that two layers only imply is as the first one had it.
        let etc = fs::metadata(mount.path().join("etc")).unwrap();
        assert_eq!(etc.mode() & 0o777, 0o750);
        if snapshotter == Snapshotter::Overlay {
            assert_eq!(etc.mtime(), 1_600_000_000);
        }
        assert!(fs::write(mount.path().join("x"), "").is_err());
        assert_eq!(dir.count("mounts"), 1, "one mount for all");
        drop(mount);

        // The same image again is the same refs; one with fewer layers, too.
        let again = registry.image(&refs, &layers).await;
        assert_eq!(again.id(), image.id());
        let shorter = registry.image(&refs, &layers[..2]).await;
        assert_eq!(shorter.id(), image.parents()[0].id());
        assert_eq!(tree(&shorter).await, ["etc/", "etc/a=1", "etc/b=2"]);
        assert_eq!(registry.opened.load(Ordering::SeqCst), 3);
        let child = file(&refs, Some(&image), "etc/c", "4").await;
        assert_eq!(tree(&child).await, ["etc/", "etc/a=3", "etc/b=2", "etc/c=4"]);
    }
}

#[tokio::test]
async fn siblings_come_in_parallel() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let long = "x".repeat(300_000);
    let names = ["a", "b", "c", "d", "e"];
    let layers: Vec<_> =
        names.iter().map(|n| registry.layer_as(CompressionKind::Uncompressed, &[(n, &long)])).collect();
    let image = registry.image(&refs, &layers).await;
    image.ensure().await.unwrap();
    assert!(registry.most_running.load(Ordering::SeqCst) > 1);
    assert_eq!(tree(&image).await.len(), 5);
}

#[tokio::test]
async fn many_layers_are_fine_and_too_many_are_refused() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let names: Vec<String> = (0..1010).map(|n| n.to_string()).collect();
    let layers: Vec<_> = names
        .iter()
        .map(|n| registry.layer_as(CompressionKind::Uncompressed, &[(n, ""), ("last", n)]))
        .collect();
    let image = registry.image(&refs, &layers[..300]).await;
    let files = tree(&image).await;
    assert_eq!(files.len(), 301);
    assert!(files.contains(&"last=299".into()));
    let all = refs.image(layers, registry.source(), RecordType::Regular, VertexSink::none()).await;
    assert_eq!(all.unwrap_err().kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn a_broken_stream_is_taken_up_where_it_broke() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let layer = registry.layer_as(CompressionKind::Uncompressed, &[("a", &"x".repeat(20_000))]);
    *registry.breaks_after.lock() = Some(7000);
    let image = registry.image(&refs, &[layer]).await;
    image.ensure().await.unwrap();
    assert_eq!(registry.opened.load(Ordering::SeqCst), 4, "22016 bytes in pieces of 7000");
}

#[tokio::test]
async fn lies_leave_nothing_behind() {
    for snapshotter in [Snapshotter::Overlay, Snapshotter::Native] {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let registry = Registry::new();
        let good = registry.layer(&[("a", "1")]);
        let mut wrong_diff_id = registry.layer(&[("b", "2")]);
        wrong_diff_id.diff_id = base::Digest::of("other");
        let mut too_short = registry.layer(&[("c", "3")]);
        too_short.descriptor.size += 1;
        let mut too_long = registry.layer(&[("d", "4")]);
        too_long.descriptor.size -= 1;
        let mut unknown = registry.layer(&[("e", "5")]);
        unknown.descriptor.digest = base::Digest::of("unknown");
        for (layer, kind) in [
            (wrong_diff_id, Kind::DataLoss),
            (too_short, Kind::Unavailable),
            (too_long, Kind::DataLoss),
            (unknown, Kind::NotFound),
        ] {
            let failure = registry.image(&refs, &[layer]).await.ensure().await.unwrap_err();
            assert_eq!(failure.kind(), kind, "{failure}");
        }
        *registry.lies.lock() = true;
        let image = registry.image(&refs, std::slice::from_ref(&good)).await;
        let failure = image.ensure().await.unwrap_err();
        assert_eq!(failure.kind(), Kind::DataLoss, "{failure}");
        assert!(failure.to_string().contains(good.descriptor.digest.as_str()), "{failure}");
        while dir.count("trash") > 0 {
            refs.store().empty_trash().unwrap();
        }
        assert_eq!(dir.count("snapshots") + dir.count("content/ingest"), 0);
        // An honest answer later is taken.
        *registry.lies.lock() = false;
        assert_eq!(tree(&image).await, ["a=1"]);
    }
}

#[tokio::test]
async fn whoever_gives_up_leaves_it_to_the_next() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let layer = registry.layer(&[("a", "1")]);
    let image = registry.image(&refs, &[layer]).await;
    for _ in 0..20 {
        let mut first = Box::pin(image.ensure());
        // Somewhere in the middle of it.
        for _ in 0..3 {
            tokio::select! { biased; _ = &mut first => break, () = tokio::task::yield_now() => {} }
        }
    }
    assert_eq!(tree(&image).await, ["a=1"]);
}

#[tokio::test]
async fn lazy_refs_survive_a_restart_without_their_source() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let layers = [registry.layer(&[("a", "1")]), registry.layer(&[("b", "2")])];
    let image = registry.image(&refs, &layers).await;
    // The lower one is here, the upper one is not.
    image.parents()[0].ensure().await.unwrap();
    let id = image.id().to_owned();
    drop(image);
    close(refs).await;

    let refs = dir.refs().await;
    let image = refs.get(&id).unwrap();
    assert!(image.is_lazy());
    let failure = image.ensure().await.unwrap_err();
    assert_eq!(failure.kind(), Kind::NotFound);
    image.attach(registry.source(), VertexSink::none());
    assert_eq!(tree(&image).await, ["a=1", "b=2"]);
    assert_eq!(registry.opened.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn files_lost_are_unpacked_again_from_the_blob() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let image = registry.image(&refs, &[registry.layer(&[("a", "1")])]).await;
    image.ensure().await.unwrap();
    let id = image.id().to_owned();
    let place = image.lowers().await.unwrap()[0].clone();
    drop(image);
    close(refs).await;
    fs::remove_dir_all(place.parent().unwrap()).unwrap();
    let refs = dir.refs().await;
    assert_eq!(tree(&refs.get(&id).unwrap()).await, ["a=1"]);
    assert_eq!(registry.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_same_files_in_another_blob_are_not_unpacked_again() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let (a, b) = ([("a", "1")], [("b", "2")]);
    let first = registry.image(&refs, &[registry.layer(&a), registry.layer(&b)]).await;
    first.ensure().await.unwrap();
    let zstd = |entries: &[(&str, &str)]| registry.layer_as(CompressionKind::Zstd, entries);
    let second = registry.image(&refs, &[zstd(&a), zstd(&b)]).await;
    assert_ne!(first.id(), second.id());
    assert_eq!(second.lowers().await.unwrap(), first.lowers().await.unwrap());
    assert_eq!(registry.opened.load(Ordering::SeqCst), 2);
    // Each can go without the other.
    drop(first);
    let prune = refs::PrunePolicy::default();
    refs.prune(&[prune], |_| async {}).await.unwrap();
    assert_eq!(tree(&second).await, ["a=1", "b=2"]);
}

/// Id, current, total, done.
type Progress = (String, i64, i64, bool);

#[derive(Default, Clone)]
struct Seen(Arc<Mutex<Vec<Progress>>>);

impl Report for Seen {
    fn report(&self, event: Event) {
        if let Event::Status(status) = event {
            let done = status.completed.is_some();
            self.0.lock().push((status.id, status.current, status.total, done));
        }
    }
}

#[tokio::test]
async fn progress_says_what_is_fetched_and_unpacked() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let layer = registry.layer(&[("a", "1")]);
    let seen = Seen::default();
    let sink = Sink::new(seen.clone()).vertex(base::Digest::of("v"));
    let image = refs.image(vec![layer.clone()], registry.source(), RecordType::Regular, sink);
    image.await.unwrap().unwrap().ensure().await.unwrap();
    let seen = seen.0.lock();
    let ids: BTreeSet<_> = seen.iter().map(|(id, ..)| id.clone()).collect();
    let (digest, size) = (layer.descriptor.digest.to_string(), layer.descriptor.size as i64);
    assert_eq!(ids, BTreeSet::from([format!("extracting {digest}"), digest.clone()]));
    assert!(seen.contains(&(digest, size, size, true)));
}
