//! A key index that lives as long as the process: for tests, and for caches
//! that are imported for one build.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::Failure;
use parking_lot::Mutex;

use crate::index::{Change, KeyId, KeyIndex, Link, Record};

/// A key index in memory.
#[derive(Default)]
pub struct MemoryIndex(Mutex<Keys>);

#[derive(Default)]
struct Keys {
    keys: BTreeMap<KeyId, Node>,
    /// The keys of a result.
    holders: BTreeMap<Arc<str>, BTreeSet<KeyId>>,
}

#[derive(Default)]
struct Node {
    links: BTreeSet<(Link, KeyId)>,
    backlinks: BTreeSet<(KeyId, Link)>,
    results: Vec<Record>,
}

impl MemoryIndex {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }
}

impl KeyIndex for MemoryIndex {
    fn exists(&self, key: &str) -> Result<bool, Failure> {
        Ok(self.0.lock().keys.contains_key(key))
    }

    fn links(&self, key: &str, link: &Link) -> Result<Vec<KeyId>, Failure> {
        let keys = self.0.lock();
        let Some(node) = keys.keys.get(key) else { return Ok(Vec::new()) };
        let from = (link.clone(), KeyId::from(""));
        Ok(node.links.range(from..).take_while(|(l, _)| l == link).map(|(_, to)| to.clone()).collect())
    }

    fn backlinks(&self, key: &str) -> Result<Vec<(KeyId, Link)>, Failure> {
        Ok(self.0.lock().keys.get(key).map(|n| n.backlinks.iter().cloned().collect()).unwrap_or_default())
    }

    fn results(&self, key: &str) -> Result<Vec<Record>, Failure> {
        Ok(self.0.lock().keys.get(key).map(|n| n.results.clone()).unwrap_or_default())
    }

    fn keys_of(&self, result: &str) -> Result<Vec<KeyId>, Failure> {
        Ok(self.0.lock().holders.get(result).map(|k| k.iter().cloned().collect()).unwrap_or_default())
    }

    fn all_results(&self) -> Result<Vec<Arc<str>>, Failure> {
        Ok(self.0.lock().holders.keys().cloned().collect())
    }

    fn save(&self, changes: &[Change]) -> Result<(), Failure> {
        let keys = &mut *self.0.lock();
        for change in changes {
            match change {
                Change::Link { from, link, to } => {
                    keys.keys.entry(from.clone()).or_default().links.insert((link.clone(), to.clone()));
                    keys.keys.entry(to.clone()).or_default().backlinks.insert((from.clone(), link.clone()));
                }
                Change::Result { key, record } => {
                    let results = &mut keys.keys.entry(key.clone()).or_default().results;
                    results.retain(|r| r.id != record.id);
                    results.push(record.clone());
                    keys.holders.entry(record.id.clone()).or_default().insert(key.clone());
                }
            }
        }
        Ok(())
    }

    fn release(&self, result: &str) -> Result<(), Failure> {
        let keys = &mut *self.0.lock();
        let mut dead: Vec<KeyId> = Vec::new();
        for key in keys.holders.remove(result).unwrap_or_default() {
            if let Some(node) = keys.keys.get_mut(&key) {
                node.results.retain(|r| &*r.id != result);
                dead.push(key);
            }
        }
        while let Some(key) = dead.pop() {
            match keys.keys.get(&key) {
                Some(node) if node.links.is_empty() && node.results.is_empty() => {}
                _ => continue,
            }
            let Some(node) = keys.keys.remove(&key) else { continue };
            for (from, link) in node.backlinks {
                if let Some(parent) = keys.keys.get_mut(&from) {
                    parent.links.remove(&(link, key.clone()));
                    dead.push(from);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base::{Digest, Timestamp};

    use super::*;
    use crate::keys::{Selected, Spec, commit, query};

    fn record(id: &str) -> Record {
        Record { id: id.into(), created: Timestamp::EPOCH }
    }

    fn spec(name: &str, deps: &[&[KeyId]]) -> Spec {
        let select = |k: &KeyId| Selected { key: k.clone(), selector: None };
        let deps = deps.iter().map(|keys| keys.iter().map(select).collect()).collect();
        Spec { digests: vec![Digest::of(name).into()], output: 0, deps }
    }

    #[test]
    fn root_keys_follow_from_the_digest() {
        let index = MemoryIndex::new();
        let keys = commit(&index, &spec("a", &[]), &[], &record("r")).unwrap();
        let expected = Digest::of(format!("{}@0", Digest::of("a")));
        assert_eq!(&*keys[0], expected.as_str());
        assert!(index.exists(&keys[0]).unwrap());
    }

    #[test]
    fn equal_inputs_lead_to_the_same_key() {
        let index = MemoryIndex::new();
        let a = commit(&index, &spec("a", &[]), &[], &record("a")).unwrap();
        let b = commit(&index, &spec("b", &[]), &[], &record("b")).unwrap();
        let first = commit(&index, &spec("c", &[&a, &b]), &[], &record("1")).unwrap();
        let second = commit(&index, &spec("c", &[&a, &b]), &[], &record("2")).unwrap();
        assert_eq!(first, second);
        let swapped = commit(&index, &spec("c", &[&b, &a]), &[], &record("3")).unwrap();
        assert_ne!(first, swapped);
    }

    #[test]
    fn a_query_joins_the_names_of_an_input() {
        let index = MemoryIndex::new();
        let a = commit(&index, &spec("a", &[]), &[], &record("a")).unwrap();
        let other: KeyId = "other".into();
        let made = commit(&index, &spec("c", &[&a]), &[], &record("c")).unwrap();
        let both = spec("c", &[&[a[0].clone(), other.clone()]]);
        assert!(query(&index, &both, 0, &[]).unwrap().contains(&made[0]));
        assert!(query(&index, &spec("c", &[&[other]]), 0, &[]).unwrap().contains(&made[0]));
    }

    #[test]
    fn releasing_forgets_what_leads_nowhere() {
        let index = MemoryIndex::new();
        let a = commit(&index, &spec("a", &[]), &[], &record("a")).unwrap();
        let c = commit(&index, &spec("c", &[&a]), &[], &record("c")).unwrap();
        index.release("a").unwrap();
        assert!(index.exists(&a[0]).unwrap(), "it still leads to c");
        index.release("c").unwrap();
        assert!(!index.exists(&c[0]).unwrap() && !index.exists(&a[0]).unwrap());
        assert!(index.all_results().unwrap().is_empty());
    }
}
