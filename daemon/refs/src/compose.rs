//! Merges and diffs.
//!
//! With overlays neither copies anything as a rule: a merge is the layers of
//! its inputs stacked on each other, and the diff between a ref and one it was
//! built on is the layers in between. Only a diff of two strangers is computed
//! and written as a layer of its own.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use base::Failure;
use base::task::blocking;
use store::{Store, Whiteouts};

use crate::held::{Held, MountGuard, Ref, snapshot_of};
use crate::model::{Content, MAX_LAYERS, NewRef, Record};
use crate::{Error, Refs};

/// The refs whose blobs, bottom first, make up `held`: layers, and diffs that
/// are layers of their own.
pub(crate) fn layers_of(held: &Arc<Held>) -> Result<Vec<Arc<Held>>, Error> {
    Layers::default().of(held)
}

/// Layers of refs already looked at: the same ref may be in a merge of merges
/// many times.
#[derive(Default)]
struct Layers(HashMap<String, Vec<Arc<Held>>>);

impl Layers {
    fn of(&mut self, held: &Arc<Held>) -> Result<Vec<Arc<Held>>, Error> {
        if let Some(known) = self.0.get(&held.id) {
            return Ok(known.clone());
        }
        // Chains of layers may be long, so they are a loop.
        let mut top = Vec::new();
        let mut next = Some(held);
        let mut list = Vec::new();
        while let Some(held) = next {
            if !matches!(held.record()?.content, Content::Layer { .. }) {
                list = self.composed(held)?;
                break;
            }
            top.push(held.clone());
            next = held.parents.first();
        }
        list.extend(top.into_iter().rev());
        if list.len() > MAX_LAYERS {
            return Err(Error::Invalid(format!("more than {MAX_LAYERS} layers in a merge")));
        }
        self.0.insert(held.id.clone(), list.clone());
        Ok(list)
    }

    fn composed(&mut self, held: &Arc<Held>) -> Result<Vec<Arc<Held>>, Error> {
        if let Content::Merge { .. } = held.record()?.content {
            let mut list = Vec::new();
            for input in &held.parents {
                list.extend(self.of(input)?);
                if list.len() > MAX_LAYERS {
                    break;
                }
            }
            return Ok(list);
        }
        let [lower, upper] = held.parents.as_slice() else { return Ok(vec![held.clone()]) };
        let (below, mut all) = (self.of(lower)?, self.of(upper)?);
        let is_below = below.len() < all.len() && below.iter().zip(&all).all(|(a, b)| a.id == b.id);
        Ok(if is_below { all.split_off(below.len()) } else { vec![held.clone()] })
    }
}

/// What a layer turns into what; either may be nothing.
pub(crate) fn sides(layer: &Arc<Held>) -> Result<(Option<Ref>, Option<Ref>), Error> {
    let parent = |n: usize| layer.parents.get(n).cloned().map(Ref::new);
    Ok(match layer.record()?.content {
        Content::Diff { .. } => (parent(0), parent(1)),
        _ => (parent(0), Some(Ref::new(layer.clone()))),
    })
}

impl Refs {
    /// The trees of `inputs` laid over each other, the first at the bottom.
    /// One input is that input.
    ///
    /// # Errors
    /// Without inputs, or when the database refuses.
    pub async fn merge(&self, inputs: &[Ref], new: NewRef) -> Result<Ref, Failure> {
        let mut flat: Vec<Arc<Held>> = Vec::new();
        for input in inputs {
            match input.held.record()?.content {
                // A merge within a merge is its inputs.
                Content::Merge { .. } => flat.extend(input.held.parents.iter().cloned()),
                _ => flat.push(input.held.clone()),
            }
        }
        match flat.as_slice() {
            [] => return Err(Error::Invalid("a merge needs inputs".into()).into()),
            [one] => return Ok(Ref::new(one.clone())),
            many if many.len() > MAX_LAYERS => {
                return Err(Error::Invalid(format!("more than {MAX_LAYERS} inputs of a merge")).into());
            }
            _ => {}
        }
        let content = Content::Merge { inputs: flat.iter().map(|held| held.id.clone()).collect() };
        self.compose(content, flat, new).await
    }

    /// What `upper` has and `lower` has not, deletions included. Without
    /// `lower` it is `upper`; without `upper`, everything in `lower` deleted.
    ///
    /// # Errors
    /// Without both, or when the database refuses.
    pub async fn diff(&self, lower: Option<&Ref>, upper: Option<&Ref>, new: NewRef) -> Result<Ref, Failure> {
        let (lower, upper) = match (lower, upper) {
            (Some(lower), upper) => (lower.held.clone(), upper.map(|upper| upper.held.clone())),
            (None, Some(upper)) => return Ok(upper.clone()),
            (None, None) => return Err(Error::Invalid("a diff needs something to compare".into()).into()),
        };
        let content =
            Content::Diff { lower: lower.id.clone(), upper: upper.as_ref().map(|upper| upper.id.clone()) };
        let parents = std::iter::once(lower).chain(upper).collect();
        self.compose(content, parents, new).await
    }

    async fn compose(&self, content: Content, parents: Vec<Arc<Held>>, new: NewRef) -> Result<Ref, Failure> {
        for parent in &parents {
            Ref::new(parent.clone()).finalize().await?;
        }
        let inner = self.inner.clone();
        blocking(move || {
            let below = parents.iter().map(|p| p.record()).collect::<Result<Vec<_>, _>>()?;
            let record = Record { retain: false, ..Record::described(content, &new) }.on(&below)?;
            Ok(Ref::new(inner.begin(&base::id::fresh(), record, parents, true)?))
        })
        .await
    }
}

/// Makes the files of a merge or diff whose parents are here.
pub(crate) async fn build(held: &Arc<Held>) -> Result<(), Failure> {
    let mut layers = layers_of(held)?;
    let overlay = held.refs.ledger.store.snapshots().is_overlay();
    if overlay {
        keep_topmost(&mut layers);
    }
    // Without overlays every layer is computed, with them only strangers.
    let mut parts = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        parts.push(if layer.id == held.id || !overlay {
            Part::Computed(Sides::mount(layer).await?)
        } else {
            let (stacked, below) = (layer.clone(), layers[..at].to_vec());
            match blocking(move || place(&stacked, &below)).await? {
                Place::AsMade => Part::AsMade,
                Place::Elsewhere(made_on) => Part::Moved(Box::pin(made_on.mount()).await?),
            }
        });
    }
    let held = held.clone();
    blocking(move || if overlay { build_stack(&held, &layers, &parts) } else { build_copy(&held, &parts) })
        .await
}

/// How a layer becomes part of a stack.
enum Part {
    /// As it is.
    AsMade,
    /// Just what it did to the tree it was made on.
    Moved(MountGuard),
    /// Compared.
    Computed(Sides),
}

/// Drops a layer that comes again further up: nothing of it shows, and the
/// kernel does not stack a directory twice.
fn keep_topmost(layers: &mut Vec<Arc<Held>>) {
    let mut seen = HashSet::new();
    layers.reverse();
    layers.retain(|layer| seen.insert(layer.id.clone()));
    layers.reverse();
}

/// Both sides of a layer, mounted.
struct Sides {
    lower: Option<MountGuard>,
    upper: Option<MountGuard>,
}

impl Sides {
    async fn mount(layer: &Arc<Held>) -> Result<Self, Failure> {
        let (lower, upper) = sides(layer)?;
        let mounted = async |side: Option<Ref>| match side {
            Some(side) => Box::pin(side.mount()).await.map(Some),
            None => Ok(None),
        };
        Ok(Self { lower: mounted(lower).await?, upper: mounted(upper).await? })
    }

    fn apply(&self, to: &std::path::Path, whiteouts: Whiteouts) -> Result<(), store::Error> {
        let path = |side: &Option<MountGuard>| side.as_ref().map(|mount| mount.path().to_owned());
        store::apply_changes(path(&self.lower).as_deref(), path(&self.upper).as_deref(), to, whiteouts)
    }
}

/// The snapshot that is the layer alone, with its whiteouts.
fn layer_snapshot(layer: &Held) -> Result<String, Error> {
    let record = layer.record()?;
    match (&record.content, record.parts.first()) {
        (Content::Diff { .. }, Some(own)) => Ok(own.clone()),
        _ => snapshot_of(layer),
    }
}

fn build_stack(held: &Arc<Held>, layers: &[Arc<Held>], parts: &[Part]) -> Result<(), Failure> {
    let store = &held.refs.ledger.store;
    let whiteouts = Whiteouts::Overlay { userxattr: store.snapshots().userxattr() };
    let mut made = Vec::new();
    let (mut stack, mut dirs): (Vec<String>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    for (layer, part) in layers.iter().zip(parts) {
        let (mut id, mut dir);
        if let Part::Computed(sides) = part {
            let own = store.snapshots().begin_layer(&base::id::fresh())?;
            sides.apply(&own.dir(), whiteouts)?;
            (id, dir) = (own.id().to_owned(), own.dir());
            made.push(own);
        } else {
            id = layer_snapshot(layer)?;
            dir = store.snapshots().dir(&id);
        }
        let made_on = match part {
            Part::AsMade => None,
            Part::Moved(made_on) => Some(made_on),
            Part::Computed(sides) => sides.lower.as_ref(),
        };
        if let Some(made_on) = made_on {
            let beneath: Vec<PathBuf> = dirs.iter().rev().cloned().collect();
            let doings = store::doings(&dir, made_on.path(), &beneath)?;
            if !doings.is_exact() {
                let clean = store.snapshots().begin_layer(&base::id::fresh())?;
                store::link_layer(&dir, &clean.dir(), &doings)?;
                (id, dir) = (clean.id().to_owned(), clean.dir());
                made.push(clean);
            }
        }
        stack.push(id);
        dirs.push(dir);
    }
    stack.reverse();
    held.refs.ledger.change(false, |change| {
        for part in &made {
            store.snapshots().adopt(change.tx, part, None)?;
        }
        let id = base::id::fresh();
        store.snapshots().put_stack(change.tx, &id, stack)?;
        let mut record = change.get(&held.id)?;
        record.snapshot = Some(id);
        record.parts = made.iter().map(|part| part.id().to_owned()).collect();
        record.size = None;
        change.put(&held.id, record)
    })?;
    for part in made {
        part.keep();
    }
    Ok(())
}

/// Where a layer is put.
enum Place {
    /// On what it was made on, or where that makes no difference.
    AsMade,
    /// On something else than this, which it was made on.
    Elsewhere(Ref),
}

fn place(layer: &Arc<Held>, below: &[Arc<Held>]) -> Result<Place, Failure> {
    // Made on nothing, it deletes nothing.
    let Some(parent) = layer.parents.first() else { return Ok(Place::AsMade) };
    let elsewhere = Place::Elsewhere(Ref::new(parent.clone()));
    if !matches!(layer.record()?.content, Content::Layer { .. }) {
        return Ok(elsewhere);
    }
    let made_on = layers_of(parent)?;
    let tail = below.len().checked_sub(made_on.len()).and_then(|at| below.get(at..));
    if !tail.is_some_and(|tail| tail.iter().zip(&made_on).all(|(a, b)| a.id == b.id)) {
        return Ok(elsewhere);
    }
    // On more than it was made on it must not hide all that is below.
    let dir = layer.refs.ledger.store.snapshots().dir(&layer_snapshot(layer)?);
    if below.len() > made_on.len() && store::has_opaque(&dir)? {
        return Ok(elsewhere);
    }
    Ok(Place::AsMade)
}

fn build_copy(held: &Arc<Held>, parts: &[Part]) -> Result<(), Failure> {
    let store: &Store = &held.refs.ledger.store;
    let id = base::id::fresh();
    store.snapshots().prepare(&id, None)?;
    let build = || -> Result<(), Failure> {
        let dir = store.snapshots().dir(&id);
        for part in parts {
            if let Part::Computed(sides) = part {
                sides.apply(&dir, Whiteouts::Remove)?;
            }
        }
        Ok(held.refs.ledger.change(false, |change| {
            store.snapshots().commit(change.tx, &id)?;
            let mut record = change.get(&held.id)?;
            record.snapshot = Some(id.clone());
            record.size = None;
            change.put(&held.id, record)
        })?)
    };
    build().inspect_err(|_| held.refs.drop_snapshot(&id))
}
