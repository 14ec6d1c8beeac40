//! The records: in the database, and the same in memory.
//!
//! Every change is one transaction of the database ([`Ledger::change`]); what
//! is in memory follows when it went through. Changes wait for each other, so
//! memory never shows an order of things the file does not know. Readers only
//! take the short lock on memory.
//!
//! A record that is being removed is `dying`: nobody can get hold of it any
//! more, while its files are deleted without any lock.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use base::{Digest, Timestamp};
use parking_lot::{Mutex, MutexGuard};
use store::{Read, Removed, Rows, Store, Table, WriteTx};

use crate::Error;
use crate::held::Held;
use crate::model::Record;

pub(crate) const RECORDS: Rows<Record> = Rows::new("refs");
/// `id NUL key`.
pub(crate) const META: Table = Table("refs.meta");
/// `key NUL id`.
pub(crate) const INDEX: Table = Table("refs.index");

pub(crate) struct Ledger {
    pub(crate) store: Store,
    /// Held while a change goes from the database to memory.
    changes: Mutex<()>,
    state: Mutex<State>,
    /// Who was let go when, and how often, since the last change.
    used: Mutex<HashMap<String, (Timestamp, u64)>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) entries: HashMap<String, Entry>,
    pub(crate) index: HashMap<String, BTreeSet<String>>,
    pub(crate) blob_chains: HashMap<Digest, BTreeSet<String>>,
    pub(crate) chains: HashMap<Digest, BTreeSet<String>>,
    /// How many records name a snapshot.
    snapshots: HashMap<String, usize>,
}

pub(crate) struct Entry {
    pub(crate) record: Arc<Record>,
    /// How many records cannot be without this one.
    pub(crate) children: usize,
    pub(crate) held: Weak<Held>,
    pub(crate) dying: bool,
}

impl Entry {
    pub(crate) fn is_held(&self) -> bool {
        self.held.strong_count() > 0
    }

    /// Nobody would miss it.
    pub(crate) fn is_free(&self) -> bool {
        !self.dying && self.children == 0 && !self.is_held()
    }
}

/// What a change does, to be repeated in memory.
#[derive(Default)]
pub(crate) struct Batch {
    put: Vec<(String, Record)>,
    deleted: Vec<String>,
    indexed: Vec<(String, String)>,
    /// Ids that are found under no key any more.
    unindexed: Vec<String>,
    /// Guards of new records: they are held from the moment they are seen.
    held: Vec<Arc<Held>>,
    removed: Vec<Removed>,
}

pub(crate) fn pair(a: &str, b: &str) -> Vec<u8> {
    [a.as_bytes(), b"\0", b.as_bytes()].concat()
}

/// The name under which a ref holds its blobs.
pub(crate) fn owner(id: &str) -> String {
    format!("ref/{id}")
}

/// One transaction, as the code that makes a change sees it.
pub(crate) struct Change<'a> {
    pub(crate) tx: &'a WriteTx,
    ledger: &'a Ledger,
    batch: Batch,
}

impl Change<'_> {
    /// The record as it is in this transaction.
    pub(crate) fn get(&self, id: &str) -> Result<Record, Error> {
        RECORDS.get(self.tx, id)?.ok_or_else(|| Error::NotFound { id: id.to_owned() })
    }

    /// Writes the record and makes it hold the blobs it names that are here.
    pub(crate) fn put(&mut self, id: &str, record: Record) -> Result<(), Error> {
        let blobs = self.ledger.store.blobs();
        for blob in record.blobs() {
            match blobs.hold(self.tx, &owner(id), &blob.descriptor.digest) {
                // A lazy one.
                Err(store::Error::NoBlob { .. }) => {}
                other => other?,
            }
        }
        RECORDS.put(self.tx, id, &record)?;
        self.batch.put.push((id.to_owned(), record));
        Ok(())
    }

    /// Writes a record nobody has heard of yet, together with its guard.
    pub(crate) fn put_held(&mut self, held: &Arc<Held>, record: Record) -> Result<(), Error> {
        self.put(&held.id, record)?;
        self.batch.held.push(held.clone());
        Ok(())
    }

    /// Removes the record, what was noted about it and the snapshots no other
    /// record names.
    pub(crate) fn delete(&mut self, id: &str) -> Result<(), Error> {
        let record = self.get(id)?;
        RECORDS.delete(self.tx, id)?;
        self.tx.delete_prefix(META, &pair(id, ""))?;
        self.unindex(id)?;
        self.ledger.store.blobs().release(self.tx, &owner(id))?;
        self.batch.deleted.push(id.to_owned());
        for snapshot in record.snapshots() {
            if !self.is_named(snapshot) {
                self.batch.removed.push(self.ledger.store.snapshots().remove(self.tx, snapshot)?);
            }
        }
        Ok(())
    }

    /// Whether a record other than those deleted here names the snapshot.
    fn is_named(&self, snapshot: &String) -> bool {
        let names = |record: &Record| record.snapshots().any(|s| s == snapshot);
        if self.batch.put.iter().any(|(id, record)| !self.batch.deleted.contains(id) && names(record)) {
            return true;
        }
        let state = self.ledger.lock();
        let known = state.snapshots.get(snapshot).copied().unwrap_or(0);
        let here = self.batch.deleted.iter().filter_map(|id| state.entries.get(id));
        known > here.filter(|entry| names(&entry.record)).count()
    }

    /// Makes `id` found under no key any more.
    pub(crate) fn unindex(&mut self, id: &str) -> Result<(), Error> {
        let keys: Vec<String> = {
            let state = self.ledger.lock();
            state.index.iter().filter(|(_, ids)| ids.contains(id)).map(|(key, _)| key.clone()).collect()
        };
        for key in keys {
            self.tx.delete(INDEX, &pair(&key, id))?;
        }
        self.batch.unindexed.push(id.to_owned());
        Ok(())
    }

    /// Makes `id` found under `key`.
    pub(crate) fn index(&mut self, id: &str, key: &str) -> Result<(), Error> {
        if key.contains('\0') {
            return Err(Error::Invalid(format!("index key {key:?}")));
        }
        self.tx.put(INDEX, &pair(key, id), b"")?;
        self.batch.indexed.push((key.to_owned(), id.to_owned()));
        Ok(())
    }
}

impl Ledger {
    /// Reads what is written down. Rows that make no sense are given as ids.
    pub(crate) fn load(store: Store) -> Result<(Self, Vec<String>), Error> {
        let mut state = State::default();
        let mut broken = Vec::new();
        let rows = store.db().read(|tx| RECORDS.all(tx))?;
        let mut found = Vec::new();
        for (id, row) in rows {
            match row {
                Ok(record) => found.push((id, record)),
                Err(_) => broken.push(id),
            }
        }
        let mut index = Vec::new();
        store.db().read(|tx| {
            tx.scan(INDEX, b"", &mut |key, _| {
                if let Some((key, id)) = String::from_utf8_lossy(key).split_once('\0') {
                    index.push((key.to_owned(), id.to_owned()));
                }
                true
            })
        })?;
        state.follow(Batch { put: found, indexed: index, ..Batch::default() });
        let ledger =
            Self { store, changes: Mutex::default(), state: Mutex::new(state), used: Mutex::default() };
        Ok((ledger, broken))
    }

    /// The records in memory. Keep it short, and drop no guards meanwhile.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The record, unless it is on its way out.
    pub(crate) fn record(&self, id: &str) -> Result<Arc<Record>, Error> {
        let state = self.lock();
        state
            .entries
            .get(id)
            .filter(|entry| !entry.dying)
            .map(|entry| entry.record.clone())
            .ok_or_else(|| Error::NotFound { id: id.to_owned() })
    }

    /// Makes a change: all of it, or nothing. Blocks. With `durable` it is on
    /// disk afterwards.
    pub(crate) fn change<T>(
        &self,
        durable: bool,
        make: impl FnOnce(&mut Change<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let serial = self.changes.lock();
        let used = std::mem::take(&mut *self.used.lock());
        let write = |tx: &WriteTx| {
            let mut change = Change { tx, ledger: self, batch: Batch::default() };
            for (id, (at, count)) in &used {
                // It may have been removed since.
                if let Ok(mut record) = change.get(id) {
                    record.last_used_at = Some(*at);
                    record.usage_count += count;
                    change.put(id, record)?;
                }
            }
            let value = make(&mut change)?;
            Ok((value, change.batch))
        };
        let db = self.store.db();
        let result = if durable { db.write(write) } else { db.write_lazily(write) };
        let (value, mut batch) = match result {
            Ok(done) => done,
            Err(e) => {
                let mut back = self.used.lock();
                for (id, (at, count)) in used {
                    let entry = back.entry(id).or_insert((at, 0));
                    entry.1 += count;
                }
                return Err(e);
            }
        };
        let removed = std::mem::take(&mut batch.removed);
        // Guards must not be dropped under the lock.
        let held = std::mem::take(&mut batch.held);
        {
            let mut state = self.lock();
            state.follow(batch);
            for held in &held {
                state.entry(&held.id).held = Arc::downgrade(held);
            }
        }
        drop(serial);
        for snapshot in removed {
            snapshot.discard()?;
        }
        Ok(value)
    }

    /// Changes one record; the others may have changed it in between.
    pub(crate) fn update(
        &self,
        id: &str,
        durable: bool,
        edit: impl FnOnce(&mut Record),
    ) -> Result<(), Error> {
        self.change(durable, |change| {
            let mut record = change.get(id)?;
            edit(&mut record);
            change.put(id, record)
        })
    }

    /// Notes that a guard was let go. Written down with the next change.
    pub(crate) fn touch(&self, id: &str) {
        let mut used = self.used.lock();
        let entry = used.entry(id.to_owned()).or_insert((Timestamp::EPOCH, 0));
        *entry = (Timestamp::now(), entry.1 + 1);
    }

    /// Last use and count, those not written down yet included.
    pub(crate) fn used(&self, id: &str, record: &Record) -> (Option<Timestamp>, u64) {
        match self.used.lock().get(id) {
            Some((at, count)) => (Some(*at), record.usage_count + count),
            None => (record.last_used_at, record.usage_count),
        }
    }

    /// Removes records that are dying.
    pub(crate) fn remove(&self, ids: &[String], durable: bool) -> Result<(), Error> {
        self.change(durable, |change| ids.iter().try_for_each(|id| change.delete(id)))
    }
}

impl State {
    /// Does in memory what a change did in the database.
    fn follow(&mut self, batch: Batch) {
        for (id, record) in batch.put {
            self.forget(&id);
            for snapshot in record.snapshots() {
                *self.snapshots.entry(snapshot.clone()).or_default() += 1;
            }
            for parent in record.parents() {
                self.entry(parent).children += 1;
            }
            if let Some(chain) = &record.chain {
                self.chains.entry(chain.clone()).or_default().insert(id.clone());
            }
            if let Some(chain) = &record.blob_chain {
                self.blob_chains.entry(chain.clone()).or_default().insert(id.clone());
            }
            let entry = self.entry(&id);
            entry.record = Arc::new(record);
        }
        for (key, id) in batch.indexed {
            self.index.entry(key).or_default().insert(id);
        }
        for id in batch.unindexed {
            self.index.retain(|_, ids| {
                ids.remove(&id);
                !ids.is_empty()
            });
        }
        for id in batch.deleted {
            self.forget(&id);
            self.entries.remove(&id);
        }
    }

    /// An entry; while records are loaded, children may come before parents.
    fn entry(&mut self, id: &str) -> &mut Entry {
        self.entries.entry(id.to_owned()).or_insert_with(|| Entry {
            record: Arc::new(Record::new(crate::model::Content::Merge { inputs: Vec::new() })),
            children: 0,
            held: Weak::new(),
            dying: false,
        })
    }

    /// Takes back what the record of `id` counts for elsewhere.
    fn forget(&mut self, id: &str) {
        let Some(record) = self.entries.get(id).map(|entry| entry.record.clone()) else { return };
        for snapshot in record.snapshots() {
            if let Some(count) = self.snapshots.get_mut(snapshot) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.snapshots.remove(snapshot);
                }
            }
        }
        for parent in record.parents() {
            if let Some(entry) = self.entries.get_mut(parent) {
                entry.children = entry.children.saturating_sub(1);
            }
        }
        for (map, chain) in [(&mut self.chains, &record.chain), (&mut self.blob_chains, &record.blob_chain)] {
            if let Some(chain) = chain
                && let Some(ids) = map.get_mut(chain)
            {
                ids.remove(id);
                if ids.is_empty() {
                    map.remove(chain);
                }
            }
        }
    }
}
