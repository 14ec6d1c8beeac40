//! Killed at the worst moments. The process that is killed is this test
//! program, started again with the name of one test.

use std::process::Command;

use refs::{Compression, PrunePolicy};
use store::fail::Action;

use crate::support::{Dir, Registry, close, file, tree};

/// Set for the process that is to be killed.
const VICTIM: &str = "REFS_TEST_VICTIM";

/// Where to work and where to die.
fn victim() -> Option<(std::path::PathBuf, &'static str)> {
    let told = std::env::var(VICTIM).ok()?;
    let (dir, point) = told.split_once('|')?;
    Some((dir.into(), Box::leak(point.to_owned().into_boxed_str())))
}

/// Does everything once; somewhere in there it dies.
#[tokio::test]
async fn dies() {
    let Some((path, point)) = victim() else { return };
    let dir = Dir(path);
    let refs = dir.refs().await;
    let kept = file(&refs, None, "kept", "1").await;
    refs.flush().await.unwrap();
    refs.store().fail().arm(point, Action::Abort);
    let registry = Registry::new();
    let image = registry.image(&refs, &[registry.layer(&[("a", "1")]), registry.layer(&[("b", "2")])]).await;
    let step = file(&refs, Some(&image), "c", "3").await;
    step.layers(Compression::default()).await.unwrap();
    drop((image, step, kept));
    refs.prune(&[PrunePolicy::default()], |_| async {}).await.unwrap();
    // Nothing may run its destructors here that the killed would not run.
    std::process::abort();
}

#[tokio::test]
async fn whatever_is_left_is_whole() {
    for point in [
        "blob.verified",
        "blob.named",
        "snapshot.made",
        "layer.unpacked",
        "ref.commit",
        "ref.committed",
        "layer.written",
        "prune.chosen",
        "none",
    ] {
        let dir = Dir::new();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::dies", "--nocapture", "--quiet"])
            .env(VICTIM, format!("{}|{point}", dir.0.display()))
            .output()
            .unwrap();
        assert!(!status.status.success(), "{point}");

        let refs = dir.refs().await;
        let usage = refs.usage(&[], None).await.unwrap();
        let mut snapshots = 0;
        for record in &usage {
            let found = refs.get(&record.id).unwrap();
            if found.is_lazy() {
                continue;
            }
            snapshots += 1;
            // Its files are there, and so are the blobs it names.
            tree(&found).await;
            for layer in found.known_layers().unwrap().unwrap_or_default() {
                assert!(layer.is_local().unwrap(), "{point}");
            }
        }
        if !matches!(point, "none") {
            assert!(usage.iter().any(|u| u.description == "a step"), "{point}: {usage:?}");
        }
        let own = dir.count("snapshots");
        assert!(own <= usage.len() && own >= snapshots.min(1), "{point}: {own} of {usage:?}");
        assert_eq!(dir.count("content/ingest"), 0, "{point}");
        refs.prune(&[PrunePolicy::default()], |_| async {}).await.unwrap();
        let left = ["snapshots", "content/blobs/sha256", "trash"].map(|d| dir.count(d));
        assert_eq!(left, [0, 0, 0], "{point}");
        close(refs).await;
        assert_eq!(dir.refs().await.usage(&[], None).await.unwrap().len(), 0, "{point}");
    }
}
