//! Answers the core's questions from the solver's own index and from further
//! sources.

use std::collections::BTreeSet;

use base::Failure;

use crate::core::{Found, Probe};
use crate::index::{KeyId, KeyIndex, ResultStore, Source};
use crate::keys;

/// Per input, the keys it leads to; and the results of those that every input
/// leads to, the best first: the newest, and of equally old ones our own.
pub(crate) fn probe<R>(
    own: &dyn KeyIndex,
    stored: &dyn ResultStore<R>,
    sources: &[Source<R>],
    probe: &Probe,
) -> Result<(Vec<BTreeSet<KeyId>>, Vec<Found>), Failure> {
    let mut found = reach(own, probe)?;
    for source in sources {
        let theirs = reach(&*source.keys, probe)?;
        let foreign: BTreeSet<KeyId> =
            common(&theirs).into_iter().filter(|id| found.iter().any(|ours| !ours.contains(id))).collect();
        if !probe.spec.deps.is_empty() {
            // What hangs on these keys is saved in our index, so it must know
            // how they are reached.
            keys::adopt(own, &probe.spec, &foreign)?;
        }
        for (ours, theirs) in found.iter_mut().zip(theirs) {
            ours.extend(theirs);
        }
    }
    let mut records = Vec::new();
    for key in common(&found) {
        for record in own.results(&key)? {
            if stored.exists(&record.id) {
                records.push(Found { record, key: key.clone(), source: None });
            } else {
                own.release(&record.id)?;
            }
        }
        for source in sources {
            for record in source.keys.results(&key)? {
                if source.results.exists(&record.id) {
                    records.push(Found { record, key: key.clone(), source: Some(source.id.clone()) });
                }
            }
        }
    }
    records.sort_by(|a, b| b.record.created.cmp(&a.record.created).then_with(|| a.source.cmp(&b.source)));
    Ok((found, records))
}

fn reach(index: &dyn KeyIndex, probe: &Probe) -> Result<Vec<BTreeSet<KeyId>>, Failure> {
    if probe.spec.deps.is_empty() {
        let mut known = BTreeSet::new();
        for key in keys::root_keys(&probe.spec) {
            if index.exists(&key)? {
                known.insert(key);
            }
        }
        return Ok(vec![known]);
    }
    let unseen = |input: usize| probe.unseen.get(input).map(Vec::as_slice).unwrap_or_default();
    (0..probe.spec.deps.len()).map(|i| keys::query(index, &probe.spec, i, unseen(i))).collect()
}

fn common(found: &[BTreeSet<KeyId>]) -> BTreeSet<KeyId> {
    let Some((first, rest)) = found.split_first() else { return BTreeSet::new() };
    first.iter().filter(|id| rest.iter().all(|ids| ids.contains(*id))).cloned().collect()
}
