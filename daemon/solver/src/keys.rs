//! The algebra of the key graph, over any [`KeyIndex`].
//!
//! * [`query`] walks from the keys of one input to the keys of an operation. A
//!   key that one of the given keys leads to is from then on reached from all of
//!   them: they name the same thing.
//! * [`commit`] finds or makes the key of an operation that has run, and gives
//!   it its result.
//!
//! An operation without inputs has as many keys as stages, each of a name that
//! follows from its digest.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::{Digest, Failure};

use crate::graph::KeyDigest;
use crate::index::{Change, KeyId, KeyIndex, Link, Record};

/// A key of an input, and which part of the input matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Selected {
    pub(crate) key: KeyId,
    pub(crate) selector: Option<Digest>,
}

impl Selected {
    fn link(&self, input: usize, output: usize, digest: &KeyDigest) -> Link {
        Link { input, output, digest: digest.clone(), selector: self.selector.clone() }
    }
}

/// The keys of an edge, as far as they follow from those of its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Spec {
    /// Digests of the cache maps; more than one only without inputs.
    pub(crate) digests: Vec<KeyDigest>,
    /// Which output.
    pub(crate) output: usize,
    /// Per input.
    pub(crate) deps: Vec<Vec<Selected>>,
}

/// The key of the contents of an input.
pub(crate) fn content_key(digest: &Digest) -> KeyId {
    KeyDigest::Stable(digest.clone()).root_key(-1)
}

/// Names of the keys of an operation without inputs.
pub(crate) fn root_keys(spec: &Spec) -> Vec<KeyId> {
    let output = i64::try_from(spec.output).unwrap_or(i64::MAX);
    spec.digests.iter().map(|d| d.root_key(output)).collect()
}

/// Where the keys of input number `input` lead. `unseen` are keys that name the
/// input too, but must not find anything.
pub(crate) fn query(
    index: &dyn KeyIndex,
    spec: &Spec,
    input: usize,
    unseen: &[Selected],
) -> Result<BTreeSet<KeyId>, Failure> {
    let (Some(digest), Some(keys)) = (spec.digests.last(), spec.deps.get(input)) else {
        return Ok(BTreeSet::new());
    };
    let mut found = BTreeSet::new();
    let mut reached = Vec::with_capacity(keys.len());
    for key in keys {
        let ids = index.links(&key.key, &key.link(input, spec.output, digest))?;
        found.extend(ids.iter().cloned());
        reached.push(ids);
    }
    if found.is_empty() {
        return Ok(found);
    }
    let mut changes = Vec::new();
    let nothing = Vec::new();
    let known = keys.iter().zip(&reached).chain(unseen.iter().map(|key| (key, &nothing)));
    for (key, ids) in known {
        for to in found.iter().filter(|id| !ids.contains(id)) {
            let link = key.link(input, spec.output, digest);
            changes.push(Change::Link { from: key.key.clone(), link, to: to.clone() });
        }
    }
    if !changes.is_empty() {
        index.save(&changes)?;
    }
    Ok(found)
}

/// Links `ids`, found elsewhere, to the keys of all inputs.
pub(crate) fn adopt(index: &dyn KeyIndex, spec: &Spec, ids: &BTreeSet<KeyId>) -> Result<(), Failure> {
    let changes: Vec<_> = ids.iter().flat_map(|id| links(spec, id)).collect();
    if changes.is_empty() { Ok(()) } else { index.save(&changes) }
}

/// The keys of an edge whose result is known. Keys that do not exist are made;
/// an inner one takes the first of `names`, if any is given.
pub(crate) fn commit(
    index: &dyn KeyIndex,
    spec: &Spec,
    names: &[KeyId],
    record: &Record,
) -> Result<Vec<KeyId>, Failure> {
    let mut changes = Vec::new();
    let keys = if spec.deps.is_empty() { root_keys(spec) } else { vec![find(index, spec, names)?] };
    for key in &keys {
        changes.extend(links(spec, key));
        changes.push(Change::Result { key: key.clone(), record: record.clone() });
    }
    index.save(&changes)?;
    Ok(keys)
}

fn links(spec: &Spec, to: &KeyId) -> Vec<Change> {
    let Some(digest) = spec.digests.last() else { return Vec::new() };
    let all = spec.deps.iter().enumerate().flat_map(|(input, keys)| keys.iter().map(move |key| (input, key)));
    all.map(|(input, key)| Change::Link {
        from: key.key.clone(),
        link: key.link(input, spec.output, digest),
        to: to.clone(),
    })
    .collect()
}

fn find(index: &dyn KeyIndex, spec: &Spec, names: &[KeyId]) -> Result<KeyId, Failure> {
    let mut common: Option<BTreeSet<KeyId>> = None;
    if let Some(digest) = spec.digests.last() {
        for (input, keys) in spec.deps.iter().enumerate() {
            let mut reached = BTreeSet::new();
            for key in keys {
                reached.extend(index.links(&key.key, &key.link(input, spec.output, digest))?);
            }
            common = Some(match common {
                None => reached,
                Some(common) => common.intersection(&reached).cloned().collect(),
            });
        }
    }
    let common = common.unwrap_or_default();
    // One that this build already knows, so that what it told others stays true.
    let known = names.iter().find(|name| common.contains(*name)).or_else(|| common.first());
    Ok(known.or_else(|| names.first()).cloned().unwrap_or_else(|| Arc::from(base::id::fresh())))
}
