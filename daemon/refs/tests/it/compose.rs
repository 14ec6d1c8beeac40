//! Merges and diffs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use refs::{Compression, NewRef, Ref, Refs};
use store::Snapshotter;

use crate::support::{Dir, close, file, step, tree};

const BOTH: [Snapshotter; 2] = [Snapshotter::Overlay, Snapshotter::Native];

async fn merge(refs: &Refs, inputs: &[&Ref]) -> Ref {
    let inputs: Vec<Ref> = inputs.iter().map(|&r| r.clone()).collect();
    refs.merge(&inputs, NewRef::default()).await.unwrap()
}

async fn diff(refs: &Refs, lower: &Ref, upper: Option<&Ref>) -> Ref {
    refs.diff(Some(lower), upper, NewRef::default()).await.unwrap()
}

async fn names(of: &Ref) -> Vec<String> {
    of.layers(Compression::default()).await.unwrap().into_iter().map(|l| l.ref_id).collect()
}

#[tokio::test]
async fn merges_lay_trees_over_each_other() {
    for snapshotter in BOTH {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let a = file(&refs, None, "dir/a", "1").await;
        let b = file(&refs, None, "dir/b", "2").await;
        let b2 = step(&refs, Some(&b), |root| {
            fs::write(root.join("dir/a"), "3").unwrap();
            fs::remove_file(root.join("dir/b")).unwrap();
        })
        .await;
        let ab = merge(&refs, &[&a, &b]).await;
        assert_eq!(tree(&ab).await, ["dir/", "dir/a=1", "dir/b=2"]);
        let ab2 = merge(&refs, &[&a, &b2]).await;
        assert_eq!(tree(&ab2).await, ["dir/", "dir/a=3"]);
        assert_eq!(names(&ab2).await, [a.id(), b.id(), b2.id()]);
        // On top of it, within another, of one, of none.
        let top = file(&refs, Some(&ab), "dir/c", "4").await;
        assert_eq!(tree(&top).await, ["dir/", "dir/a=1", "dir/b=2", "dir/c=4"]);
        assert_eq!(names(&top).await, [a.id(), b.id(), top.id()]);
        let c = file(&refs, None, "c", "5").await;
        let nested = merge(&refs, &[&ab, &c]).await;
        assert_eq!(nested.parents().len(), 3);
        assert_eq!(tree(&nested).await, ["c=5", "dir/", "dir/a=1", "dir/b=2"]);
        assert_eq!(merge(&refs, &[&a]).await.id(), a.id());
        assert!(refs.merge(&[], NewRef::default()).await.is_err());
        let id = top.id().to_owned();
        drop((a, b, b2, c, ab, ab2, top, nested));
        close(refs).await;
        let refs = dir.refs_as(snapshotter).await;
        assert_eq!(tree(&refs.get(&id).unwrap()).await.len(), 4);
    }
}

#[tokio::test]
async fn what_merged_trees_share_is_stacked_once() {
    for snapshotter in BOTH {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let base = file(&refs, None, "dir/base", "1").await;
        let a = step(&refs, Some(&base), |root| {
            fs::remove_file(root.join("dir/base")).unwrap();
            fs::write(root.join("dir/a"), "2").unwrap();
        })
        .await;
        let b = file(&refs, Some(&base), "dir/b", "3").await;
        // What `a` deleted comes again with `b`.
        let both = merge(&refs, &[&a, &b]).await;
        assert_eq!(tree(&both).await, ["dir/", "dir/a=2", "dir/b=3", "dir/base=1"]);
        assert_eq!(names(&both).await, [base.id(), a.id(), base.id(), b.id()]);
        let other = merge(&refs, &[&b, &a]).await;
        assert_eq!(tree(&other).await, ["dir/", "dir/a=2", "dir/b=3"]);
        let top = file(&refs, Some(&merge(&refs, &[&both, &other, &a]).await), "top", "4").await;
        assert_eq!(tree(&top).await, ["dir/", "dir/a=2", "dir/b=3", "top=4"]);
    }
}

#[tokio::test]
async fn a_directory_made_anew_deletes_only_what_was_in_it() {
    for snapshotter in BOTH {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let base = step(&refs, Some(&file(&refs, None, "dir/gone", "1").await), |root| {
            fs::create_dir_all(root.join("dir/sub/deep")).unwrap();
            fs::write(root.join("dir/sub/kept"), "2").unwrap();
        })
        .await;
        let anew = step(&refs, Some(&base), |root| {
            fs::remove_dir_all(root.join("dir")).unwrap();
            fs::create_dir_all(root.join("dir/sub")).unwrap();
            fs::write(root.join("dir/sub/kept"), "3").unwrap();
            // Nothing below yet; the kernel says all the same that it hides all.
            fs::create_dir(root.join("new")).unwrap();
        })
        .await;
        let other = step(&refs, None, |root| {
            fs::create_dir_all(root.join("dir/sub/deep")).unwrap();
            for (name, text) in [("dir/gone", "4"), ("dir/other", "5"), ("dir/sub/own", "6"), ("new", "")] {
                match name {
                    "new" => fs::create_dir(root.join(name)).unwrap(),
                    _ => fs::write(root.join(name), text).unwrap(),
                }
            }
            fs::write(root.join("new/own"), "7").unwrap();
        })
        .await;
        let merged = merge(&refs, &[&other, &anew]).await;
        let want =
            ["dir/", "dir/other=5", "dir/sub/", "dir/sub/kept=3", "dir/sub/own=6", "new/", "new/own=7"];
        assert_eq!(tree(&merged).await, want);
        let diff = diff(&refs, &base, Some(&anew)).await;
        let merged = merge(&refs, &[&other, &diff]).await;
        assert_eq!(tree(&merged).await, want);
    }
}

#[tokio::test]
async fn what_a_layer_only_touched_is_no_part_of_a_diff() {
    for snapshotter in BOTH {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let base = step(&refs, None, |root| {
            fs::create_dir_all(root.join("dir/sub")).unwrap();
            fs::create_dir(root.join("other")).unwrap();
            fs::create_dir(root.join("emptied")).unwrap();
            fs::write(root.join("emptied/gone"), "1").unwrap();
            fs::write(root.join("other/opened"), "1").unwrap();
        })
        .await;
        // The kernel copies all of these into the layer.
        let touched = step(&refs, Some(&base), |root| {
            fs::write(root.join("dir/sub/passing"), "").unwrap();
            fs::remove_file(root.join("dir/sub/passing")).unwrap();
            fs::OpenOptions::new().append(true).open(root.join("other/opened")).unwrap();
            fs::write(root.join("new"), "2").unwrap();
            fs::remove_file(root.join("emptied/gone")).unwrap();
        })
        .await;
        let only = diff(&refs, &base, Some(&touched)).await;
        // The way to what was deleted is there, as with moby/buildkit.
        assert_eq!(tree(&only).await, ["emptied/", "new=2"]);
        // On another tree the directories keep what they are there.
        let closed = step(&refs, None, |root| {
            fs::create_dir_all(root.join("dir/sub")).unwrap();
            fs::set_permissions(root.join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
        })
        .await;
        let merged = merge(&refs, &[&closed, &only]).await;
        let mount = merged.mount().await.unwrap();
        assert_eq!(fs::metadata(mount.path().join("dir")).unwrap().mode() & 0o777, 0o700);
        drop(mount);
        assert_eq!(tree(&merged).await, ["dir/", "dir/sub/", "emptied/", "new=2"]);
    }
}

#[tokio::test]
async fn a_diff_is_the_layers_in_between() {
    for snapshotter in BOTH {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let base = step(&refs, None, |root| {
            fs::create_dir_all(root.join("d/e")).unwrap();
            fs::write(root.join("d/e/old"), "1").unwrap();
            fs::write(root.join("d/keep"), "1").unwrap();
        })
        .await;
        let one = step(&refs, Some(&base), |root| {
            fs::remove_file(root.join("d/e/old")).unwrap();
            fs::write(root.join("d/new"), "2").unwrap();
        })
        .await;
        let two = file(&refs, Some(&one), "d/newer", "3").await;

        let last = diff(&refs, &one, Some(&two)).await;
        assert_eq!(names(&last).await, [two.id()]);
        assert_eq!(tree(&last).await, ["d/", "d/newer=3"]);
        let both = diff(&refs, &base, Some(&two)).await;
        assert_eq!(names(&both).await, [one.id(), two.id()]);
        // What was deleted must not show, in whatever directory it was.
        let shown = tree(&both).await;
        assert!(shown.iter().all(|n| !n.contains("old")), "{shown:?}");
        assert!(shown.contains(&"d/new=2".into()) && shown.contains(&"d/newer=3".into()));
        // Laid over what it was made from, it is that again; deletions included.
        assert_eq!(tree(&merge(&refs, &[&base, &both]).await).await, tree(&two).await);
        // Over something else, they delete there.
        let other = file(&refs, None, "d/e/old", "other").await;
        let moved = tree(&merge(&refs, &[&other, &both]).await).await;
        assert!(moved.iter().all(|n| !n.contains("old")), "{moved:?}");
        assert!(refs.diff(None, Some(&two), NewRef::default()).await.unwrap().id() == two.id());
    }
}

#[tokio::test]
async fn strangers_are_compared() {
    let mut digests = Vec::new();
    for snapshotter in BOTH {
        let dir = Dir::new();
        let refs = dir.refs_as(snapshotter).await;
        let write = |names: &'static [(&str, &str)]| {
            move |root: &std::path::Path| {
                for (name, text) in names {
                    let path = root.join(name);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(&path, text).unwrap();
                    let file = fs::File::options().write(true).open(&path).unwrap();
                    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000)).unwrap();
                }
            }
        };
        let a = step(&refs, None, write(&[("same", "1"), ("d/gone", "1"), ("changed", "1")])).await;
        let b = step(&refs, None, write(&[("same", "1"), ("changed", "22"), ("e/new", "1")])).await;
        let d = diff(&refs, &a, Some(&b)).await;
        let shown = tree(&d).await;
        assert_eq!(shown, ["changed=22", "e/", "e/new=1"]);
        assert_eq!(names(&d).await, [d.id()]);
        assert_eq!(tree(&merge(&refs, &[&a, &d]).await).await, tree(&b).await);
        let top = file(&refs, Some(&d), "top", "x").await;
        assert_eq!(tree(&top).await, ["changed=22", "e/", "e/new=1", "top=x"]);

        let nothing = diff(&refs, &a, None).await;
        assert!(tree(&nothing).await.is_empty());
        assert!(tree(&merge(&refs, &[&a, &nothing]).await).await.is_empty());
        digests.push(nothing.layers(Compression::default()).await.unwrap()[0].diff_id.clone());
        let id = d.id().to_owned();
        drop((a, b, d, top, nothing));
        close(refs).await;
        let refs = dir.refs_as(snapshotter).await;
        assert_eq!(tree(&refs.get(&id).unwrap()).await, shown);
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test]
async fn trees_within_trees_have_an_end() {
    let dir = Dir::new();
    let refs = dir.refs().await;
    let (a, b) = (file(&refs, None, "a", "1").await, file(&refs, None, "b", "1").await);
    let mut doubled = merge(&refs, &[&a, &b]).await;
    let refused = loop {
        match refs.merge(&[doubled.clone(), doubled.clone()], NewRef::default()).await {
            Ok(next) => doubled = next,
            Err(e) => break e,
        }
    };
    assert_eq!(refused.kind(), base::Kind::InvalidArgument);
    // Both sides hold all that came before, in ever deeper comparisons.
    let mut deep = diff(&refs, &a, Some(&b)).await;
    let refused = loop {
        match refs.diff(Some(&deep), Some(&deep), NewRef::default()).await {
            Ok(next) => deep = next,
            Err(e) => break e,
        }
    };
    assert_eq!(refused.kind(), base::Kind::InvalidArgument);
    assert!(tree(&deep).await.is_empty());
}
