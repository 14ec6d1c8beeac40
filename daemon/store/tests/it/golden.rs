//! Layers are the bytes everybody else writes.

use std::path::Path;

use base::Digest;
use store::{Change, ChangeWriter, double_walk, overlay_walk};
use sys::mount::Overlay;

use crate::support::Dir;
use crate::trees;

type Walk<'a> = dyn Fn(&mut dyn FnMut(&Change<'_>) -> store::Result<()>) -> store::Result<()> + 'a;

fn archive(source: &Path, walk: &Walk<'_>) -> Vec<u8> {
    let mut writer = ChangeWriter::new(Vec::new(), source);
    walk(&mut |change| writer.change(change)).unwrap();
    writer.finish().unwrap()
}

/// Digests that containerd's archive writer and moby/buildkit's overlay walk
/// produce for the same trees.
#[test]
fn archives_are_those_of_other_builders() {
    let dir = Dir::new();
    let (lower, upper, merged) = (dir.sub("lower"), dir.sub("upper"), dir.sub("merged"));
    trees::lower(&lower);
    trees::upper(&upper);
    let overlay = Overlay { lowers: vec![upper.clone(), lower.clone()], ..Overlay::default() };
    let mounted = overlay.mount(&merged).unwrap();

    let from_upper = archive(&upper, &|each| overlay_walk(Some(&lower), &upper, each));
    let from_trees = archive(&merged, &|each| double_walk(Some(&lower), &merged, each));
    let whole = archive(&lower, &|each| double_walk(None, &lower, each));
    drop(mounted);
    let digests = [from_upper, from_trees, whole].map(|bytes| Digest::of(bytes).to_string());
    let layer = "sha256:88b67b7478890bdc429cb36dc4f6144ead7ed031807ee228efcb3dd38c738dd7";
    let whole = "sha256:9a115908d97dcdbba98ef2cc56d3c423eca02a3b45271fd319cf3c8384ac1702";
    assert_eq!(digests, [layer, layer, whole]);
}
