//! The solver's key graph, in the one database.
//!
//! Owns the tables named `keys.*`. Everything in them can be found out again by
//! building, so nothing waits for the disk: what is saved is visible at once,
//! in memory, and written behind in batches. A process that is killed loses the
//! last of them. That is harmless, because a key is only ever used together
//! with a result of which [`solver::ResultStore::exists`] says that it is
//! there, and because a batch is written as a whole.
//!
//! Rows are texts joined by NUL; of results also the time at which they were
//! made, in nanoseconds since 1970, eight bytes little-endian.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `keys.links` | from, input, output, digest, selector, to | |
//! | `keys.backlinks` | to, from, input, output, digest, selector | |
//! | `keys.results` | key, result | created |
//! | `keys.holders` | result, key | |

mod error;
mod rows;

use std::collections::BTreeSet;
use std::sync::Arc;

use base::Failure;
use base::task::Scope;
use parking_lot::{Mutex, RwLock};
use solver::{Change, KeyId, KeyIndex, Link, MemoryIndex, Record};
use store::Db;
use tokio::sync::Notify;

pub use error::Error;

/// The key graph of everything that was ever built here. Clones are the same.
#[derive(Clone)]
pub struct Keys(Arc<Inner>);

struct Inner {
    db: Db,
    /// What is not in the database yet, the newest last.
    layers: RwLock<Vec<Arc<Layer>>>,
    /// Held while writing, so that batches stay in order.
    writing: Mutex<()>,
    wake: Notify,
}

/// Changes that are written together.
#[derive(Default)]
struct Layer {
    seen: MemoryIndex,
    changes: Mutex<Vec<Change>>,
}

/// More changes than this are written by whoever brings them.
const BACKLOG: usize = 4096;

impl Keys {
    /// The keys in `db`. Writes behind as long as `scope` lives, and once more
    /// when it ends.
    pub fn open(db: Db, scope: &Scope) -> Self {
        let inner = Inner { db, layers: RwLock::default(), writing: Mutex::default(), wake: Notify::new() };
        let keys = Self(Arc::new(inner));
        let (behind, ending) = (keys.clone(), scope.clone());
        scope.spawn(async move {
            loop {
                let last = tokio::select! {
                    _ = ending.cancelled() => true,
                    () = behind.0.wake.notified() => false,
                };
                let keys = behind.clone();
                let written = base::task::blocking(move || Ok(keys.flush()?)).await;
                if let Err(failure) = written {
                    tracing::warn!(%failure, "keys of recent builds are lost");
                }
                if last {
                    break;
                }
            }
        });
        keys
    }

    /// Writes what is not in the database yet. It is on disk with the next
    /// durable write of anyone.
    ///
    /// # Errors
    /// When the database cannot be written; what was to be written is lost.
    pub fn flush(&self) -> Result<(), Error> {
        let _writing = self.0.writing.lock();
        self.write_behind()
    }

    /// To be called with `writing` held.
    fn write_behind(&self) -> Result<(), Error> {
        let batch = {
            let mut layers = self.0.layers.write();
            let Some(layer) = layers.last().cloned() else { return Ok(()) };
            // From here on changes go to a new layer; this one stays visible.
            layers.push(Arc::default());
            layer
        };
        let changes = std::mem::take(&mut *batch.changes.lock());
        let written = self.0.db.write_lazily(|tx| rows::apply(tx, &changes));
        let mut layers = self.0.layers.write();
        layers.retain(|layer| !Arc::ptr_eq(layer, &batch));
        if layers.iter().all(|layer| layer.changes.lock().is_empty()) {
            layers.clear();
        }
        written
    }

    /// What the database and all layers say, joined.
    fn gather<T: Ord>(
        &self,
        stored: impl FnOnce(&store::ReadTx) -> Result<Vec<T>, Error>,
        fresh: impl Fn(&MemoryIndex) -> Result<Vec<T>, Failure>,
    ) -> Result<Vec<T>, Failure> {
        // Layers first: one that is written meanwhile is then seen twice
        // rather than not at all.
        let layers = self.0.layers.read().clone();
        let mut all: BTreeSet<T> = self.0.db.read(stored)?.into_iter().collect();
        for layer in &layers {
            all.extend(fresh(&layer.seen)?);
        }
        Ok(all.into_iter().collect())
    }
}

impl KeyIndex for Keys {
    fn exists(&self, key: &str) -> Result<bool, Failure> {
        for layer in self.0.layers.read().iter() {
            if layer.seen.exists(key)? {
                return Ok(true);
            }
        }
        Ok(self.0.db.read(|tx| rows::exists(tx, key))?)
    }

    fn links(&self, key: &str, link: &Link) -> Result<Vec<KeyId>, Failure> {
        self.gather(|tx| rows::links(tx, key, link), |seen| seen.links(key, link))
    }

    fn backlinks(&self, key: &str) -> Result<Vec<(KeyId, Link)>, Failure> {
        self.gather(|tx| rows::backlinks(tx, key), |seen| seen.backlinks(key))
    }

    fn results(&self, key: &str) -> Result<Vec<Record>, Failure> {
        let layers = self.0.layers.read().clone();
        let mut all = self.0.db.read(|tx| rows::results(tx, key))?;
        for layer in &layers {
            for record in layer.seen.results(key)? {
                all.retain(|known| known.id != record.id);
                all.push(record);
            }
        }
        Ok(all)
    }

    fn keys_of(&self, result: &str) -> Result<Vec<KeyId>, Failure> {
        self.gather(|tx| rows::keys_of(tx, result), |seen| seen.keys_of(result))
    }

    fn all_results(&self) -> Result<Vec<Arc<str>>, Failure> {
        self.gather(rows::all_results, MemoryIndex::all_results)
    }

    fn save(&self, changes: &[Change]) -> Result<(), Failure> {
        rows::check(changes)?;
        let backlog = {
            let mut layers = self.0.layers.write();
            if layers.is_empty() {
                layers.push(Arc::default());
            }
            let Some(layer) = layers.last() else { return Ok(()) };
            layer.seen.save(changes)?;
            let mut waiting = layer.changes.lock();
            waiting.extend_from_slice(changes);
            waiting.len()
        };
        if backlog > BACKLOG {
            self.flush()?;
        } else {
            self.0.wake.notify_one();
        }
        Ok(())
    }

    fn release(&self, result: &str) -> Result<(), Failure> {
        let _writing = self.0.writing.lock();
        self.write_behind()?;
        Ok(self.0.db.write_lazily(|tx| rows::release(tx, result))?)
    }
}

#[cfg(test)]
mod tests {
    use base::{Digest, Timestamp};
    use proptest::prelude::*;
    use solver::KeyDigest;
    use store::{Options, Store};

    use super::*;

    fn open() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        (dir, store)
    }

    fn still(db: &Db) -> Keys {
        let inner = Inner {
            db: db.clone(),
            layers: RwLock::default(),
            writing: Mutex::default(),
            wake: Notify::new(),
        };
        Keys(Arc::new(inner))
    }

    fn key(n: usize) -> KeyId {
        format!("key{n}").into()
    }

    fn link(n: usize) -> Link {
        let digest = match n % 3 {
            0 => KeyDigest::Random(format!("r{n}").into()),
            _ => Digest::of(n.to_string()).into(),
        };
        Link { input: n % 2, output: 0, digest, selector: (n % 4 == 1).then(|| Digest::of("part")) }
    }

    fn record(n: usize) -> Record {
        Record { id: format!("result{n}").into(), created: Timestamp::from_secs(n as i64) }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Link(usize, usize, usize),
        Result(usize, usize),
        Release(usize),
        Flush,
        Reopen,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0..4usize, 0..6usize, 4..8usize).prop_map(|(a, l, b)| Act::Link(a, l, b)),
            2 => (4..8usize, 0..6usize, 8..10usize).prop_map(|(a, l, b)| Act::Link(a, l, b)),
            4 => (0..10usize, 0..5usize).prop_map(|(k, r)| Act::Result(k, r)),
            1 => (0..5usize).prop_map(Act::Release),
            1 => Just(Act::Flush),
            1 => Just(Act::Reopen),
        ]
    }

    fn compare(keys: &Keys, model: &MemoryIndex) {
        for n in 0..10 {
            let k = key(n);
            assert_eq!(keys.exists(&k).unwrap(), model.exists(&k).unwrap(), "{k}");
            assert_eq!(keys.backlinks(&k).unwrap(), model.backlinks(&k).unwrap());
            for l in 0..6 {
                assert_eq!(keys.links(&k, &link(l)).unwrap(), model.links(&k, &link(l)).unwrap());
            }
            let sorted = |mut records: Vec<Record>| {
                records.sort_by(|a, b| a.id.cmp(&b.id));
                records
            };
            assert_eq!(sorted(keys.results(&k).unwrap()), sorted(model.results(&k).unwrap()));
        }
        for n in 0..5 {
            let id = record(n).id;
            assert_eq!(keys.keys_of(&id).unwrap(), model.keys_of(&id).unwrap());
        }
        assert_eq!(keys.all_results().unwrap(), model.all_results().unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn is_what_memory_would_be(acts in proptest::collection::vec(act(), 1..60)) {
            let (_dir, store) = open();
            let (mut keys, model) = (still(store.db()), MemoryIndex::new());
            for act in acts {
                let change = match act {
                    Act::Link(a, l, b) => Change::Link { from: key(a), link: link(l), to: key(b) },
                    Act::Result(k, r) => Change::Result { key: key(k), record: record(r) },
                    Act::Release(r) => {
                        keys.release(&record(r).id).unwrap();
                        model.release(&record(r).id).unwrap();
                        continue;
                    }
                    Act::Flush => {
                        keys.flush().unwrap();
                        continue;
                    }
                    Act::Reopen => {
                        keys.flush().unwrap();
                        keys = still(store.db());
                        continue;
                    }
                };
                keys.save(std::slice::from_ref(&change)).unwrap();
                model.save(&[change]).unwrap();
            }
            compare(&keys, &model);
            keys.flush().unwrap();
            compare(&keys, &model);
            assert!(keys.0.layers.read().is_empty());
        }
    }

    #[tokio::test]
    async fn the_end_of_the_scope_writes_what_is_left() {
        let (_dir, store) = open();
        let scope = Scope::root();
        let keys = Keys::open(store.db().clone(), &scope);
        let record = record(1);
        keys.save(&[Change::Result { key: key(1), record: record.clone() }]).unwrap();
        scope.cancel(Failure::canceled("the end"));
        scope.close().await;
        assert_eq!(still(store.db()).results("key1").unwrap(), [record]);
    }

    #[test]
    fn names_cannot_run_into_each_other() {
        let (_dir, store) = open();
        let change = Change::Result { key: "a\0b".into(), record: record(1) };
        assert!(still(store.db()).save(&[change]).is_err());
    }

    #[test]
    fn sweeping_releases_what_is_gone() {
        let (_dir, store) = open();
        let keys = still(store.db());
        let saved: Vec<_> = (0..4).map(|n| Change::Result { key: key(n), record: record(n) }).collect();
        keys.save(&saved).unwrap();
        let gone = solver::sweep(&keys, |id| id == "result2").unwrap();
        assert_eq!((gone, keys.all_results().unwrap()), (3, vec!["result2".into()]));
    }
}
