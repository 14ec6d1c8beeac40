//! Refs as layers.

use std::sync::atomic::Ordering;

use base::descriptor::media;
use refs::{Compression, CompressionKind};
use store::Snapshotter;

use crate::support::{Dir, Registry, close, file, step, tree};

fn plain() -> Compression {
    Compression { kind: CompressionKind::Uncompressed, ..Compression::default() }
}

#[tokio::test]
async fn layers_come_back_as_the_same_refs() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let a = file(&refs, None, "a", "1").await;
    let b = file(&refs, Some(&a), "b", "2").await;
    assert!(b.known_layers().unwrap().is_none());
    let (one, two) = tokio::join!(b.layers(Compression::default()), b.layers(plain()));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.len(), 2);
    for (x, y) in one.iter().zip(&two) {
        assert_eq!(x.descriptor, y.descriptor, "made once");
        assert!(x.is_local().unwrap());
    }
    assert_eq!(one[1].ref_id, b.id());
    assert_eq!(b.known_layers().unwrap().unwrap().len(), 2);
    // An image with these layers is these refs.
    let layers: Vec<_> = one
        .iter()
        .map(|l| refs::Layer {
            descriptor: l.descriptor.clone(),
            diff_id: l.diff_id.clone(),
            created_at: None,
            description: String::new(),
        })
        .collect();
    let registry = Registry::new();
    assert_eq!(registry.image(&refs, &layers).await.id(), b.id());
}

#[tokio::test]
async fn snapshotters_agree_on_the_bytes() {
    let mut chains = Vec::new();
    for snapshotter in [Snapshotter::Overlay, Snapshotter::Native] {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let times = |root: &std::path::Path, names: &[&str]| {
            use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
            let time = Timespec { tv_sec: 1_600_000_000, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            for name in names {
                rustix::fs::utimensat(CWD, root.join(name), &times, AtFlags::empty()).unwrap();
            }
        };
        let a = step(&refs, None, |root| {
            std::fs::create_dir(root.join("d")).unwrap();
            std::fs::write(root.join("d/x"), "1").unwrap();
            std::fs::write(root.join("d/y"), "1").unwrap();
            times(root, &["d/x", "d/y", "d"]);
        })
        .await;
        let b = step(&refs, Some(&a), |root| {
            std::fs::remove_file(root.join("d/x")).unwrap();
            std::fs::write(root.join("z"), "2").unwrap();
            times(root, &["z", "d"]);
        })
        .await;
        let layers = b.layers(Compression::default()).await.unwrap();
        chains.push(layers.into_iter().map(|l| (l.diff_id, l.descriptor.digest)).collect::<Vec<_>>());
    }
    assert_eq!(chains[0], chains[1]);
}

#[tokio::test]
async fn force_converts_what_is_there_and_remembers_it() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let base = registry.image(&refs, &[registry.layer(&[("a", "1")])]).await;
    let top = file(&refs, Some(&base), "b", "2").await;
    let kinds = |layers: &[refs::LayerBlob]| -> Vec<String> {
        layers.iter().map(|l| l.descriptor.media_type.clone()).collect()
    };
    let zstd = Compression { kind: CompressionKind::Zstd, ..Compression::default() };
    let first = top.layers(zstd).await.unwrap();
    assert_eq!(kinds(&first), [media::OCI_LAYER_GZIP, media::OCI_LAYER_ZSTD]);
    let forced = top.layers(Compression { force: true, ..zstd }).await.unwrap();
    assert_eq!(kinds(&forced), [media::OCI_LAYER_ZSTD, media::OCI_LAYER_ZSTD]);
    assert_eq!(first[0].diff_id, forced[0].diff_id);
    assert_eq!(first[1].descriptor, forced[1].descriptor);
    let again = top.layers(Compression { force: true, ..zstd }).await.unwrap();
    assert_eq!(forced[0].descriptor, again[0].descriptor);
    // Blobs of refs are not collected, after a restart neither.
    let id = top.id().to_owned();
    drop((first, forced, again, base, top));
    close(refs).await;
    let refs = dir.refs().await;
    refs.store().blobs().collect().unwrap();
    let top = refs.get(&id).unwrap();
    for layer in top.layers(Compression { force: true, ..zstd }).await.unwrap() {
        assert!(layer.is_local().unwrap());
    }
}

#[tokio::test]
async fn lazy_layers_are_exported_without_being_fetched() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let registry = Registry::new();
    let image = registry.image(&refs, &[registry.layer(&[("a", "1")]), registry.layer(&[("b", "2")])]).await;
    let layers = image.layers(Compression::default()).await.unwrap();
    assert_eq!(layers.len(), 2);
    assert!(!layers[0].is_local().unwrap());
    assert_eq!(registry.opened.load(Ordering::SeqCst), 0);
    let pin = layers[0].fetch().await.unwrap();
    assert_eq!(pin.size(), layers[0].descriptor.size);
    assert_eq!(registry.opened.load(Ordering::SeqCst), 1);
    drop(pin);
    refs.store().blobs().collect().unwrap();
    assert!(layers[0].is_local().unwrap(), "the ref holds it");
    // Unpacking uses what is there.
    assert_eq!(tree(&image).await, ["a=1", "b=2"]);
    assert_eq!(registry.opened.load(Ordering::SeqCst), 2);
}
