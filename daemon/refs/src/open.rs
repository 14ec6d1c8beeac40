//! All refs of a store, and putting them in order at the start.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::Failure;
use base::once::Flight;
use base::task::{Scope, blocking};
use store::{Read, Store};
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::held::{Mount, Ref};
use crate::ledger::{INDEX, Ledger, META, RECORDS};
use crate::model::{Content, Record};

/// How long a new ref may be nowhere but in memory. To have it on disk takes longer than all
/// else that is done for a step, and steps that follow each other would each wait for it. Who is
/// killed loses the steps of this time, not what comes before; what ends a build is written
/// down before anybody is told.
const SETTLE: Duration = Duration::from_millis(100);

/// What the owner decides.
#[derive(Clone)]
pub struct Options {
    /// Deleting and unmounting goes on in here after a guard is gone; close it
    /// to wait for that.
    pub scope: Scope,
    /// Mount writable overlays `volatile`: faster to unmount, and a power cut
    /// may lose what was committed shortly before.
    pub volatile: bool,
    /// Layers unpacked at the same time.
    pub unpacks: usize,
    /// Layers compressed at the same time.
    pub compressions: usize,
}

impl Default for Options {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { scope: Scope::root(), volatile: false, unpacks: cores.max(3), compressions: cores }
    }
}

/// All refs of one store. Clones are the same.
#[derive(Clone)]
pub struct Refs {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) ledger: Ledger,
    pub(crate) options: Options,
    /// Layers being unpacked, by record.
    pub(crate) unlazy: Flight<String, ()>,
    /// Mounts being made, by record.
    pub(crate) mounts: Flight<String, Arc<Mount>>,
    /// Blobs being fetched or written.
    pub(crate) blobs: Flight<String, store::Pin>,
    pub(crate) unpacks: Semaphore,
    pub(crate) compressions: Semaphore,
    /// One prune at a time.
    pub(crate) pruning: tokio::sync::Mutex<()>,
    /// Somebody is about to write down what is not yet.
    settling: AtomicBool,
}

impl Inner {
    /// Runs what takes long after the present caller has gone. Outside of a
    /// runtime there is nobody to hand it to, so it is done at once.
    pub(crate) fn later(&self, work: impl FnOnce() + Send + 'static) {
        if tokio::runtime::Handle::try_current().is_ok() {
            drop(self.options.scope.spawn_blocking(work));
        } else {
            work();
        }
    }
}

impl Refs {
    /// Opens the refs of `store`: reconciles records with snapshots and blobs,
    /// removes what was half made.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn open(store: Store, options: Options) -> Result<Self, Failure> {
        let (unpacks, compressions) = (options.unpacks.max(1), options.compressions.max(1));
        let ledger = blocking(move || Ok(reconcile(store)?)).await?;
        let refs = Self {
            inner: Arc::new(Inner {
                ledger,
                options,
                unlazy: Flight::default(),
                mounts: Flight::default(),
                blobs: Flight::default(),
                unpacks: Semaphore::new(unpacks),
                compressions: Semaphore::new(compressions),
                pruning: tokio::sync::Mutex::default(),
                settling: AtomicBool::new(false),
            }),
        };
        refs.inner.empty_trash();
        Ok(refs)
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.inner.ledger.store
    }

    /// The immutable ref `id`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Sort`] when it is mutable.
    pub fn get(&self, id: &str) -> Result<Ref, Error> {
        if self.inner.ledger.record(id)?.mutable {
            return Err(Error::Sort { id: id.to_owned(), wanted: "immutable" });
        }
        Ok(Ref::new(self.inner.hold(id)?))
    }

    /// The ids of refs under which `key` was noted, in no particular order.
    pub fn search(&self, key: &str) -> Vec<String> {
        let state = self.inner.ledger.lock();
        let Some(ids) = state.index.get(key) else { return Vec::new() };
        ids.iter().filter(|id| state.entries.get(*id).is_some_and(|e| !e.dying)).cloned().collect()
    }

    /// The ids of refs under which a key was noted that begins with `prefix`,
    /// in no particular order.
    pub fn search_below(&self, prefix: &str) -> Vec<String> {
        let state = self.inner.ledger.lock();
        let found = state.index.iter().filter(|(key, _)| key.starts_with(prefix)).flat_map(|(_, ids)| ids);
        found.filter(|id| state.entries.get(*id).is_some_and(|e| !e.dying)).cloned().collect()
    }

    /// Writes down what is not yet, and waits until what goes on in the
    /// background is done: what was dropped is unmounted and deleted.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn close(&self) -> Result<(), Failure> {
        self.inner.options.scope.close().await;
        self.flush().await
    }

    /// Writes down when refs were last used. Otherwise it is with the next change.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn flush(&self) -> Result<(), Failure> {
        let inner = self.inner.clone();
        blocking(move || Ok(inner.ledger.change(true, |_| Ok(()))?)).await
    }
}

impl Inner {
    /// Has what was changed lazily on disk after [`SETTLE`].
    pub(crate) fn settle(self: &Arc<Self>) {
        if self.settling.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = self.clone();
        let write = move || {
            // First: a change from here on may be too late for this write.
            inner.settling.store(false, Ordering::Release);
            if let Err(e) = inner.ledger.change(true, |_| Ok(())) {
                tracing::warn!(error = %e, "write down new refs");
            }
        };
        if tokio::runtime::Handle::try_current().is_err() {
            return write();
        }
        let scope = self.options.scope.clone();
        drop(self.options.scope.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(SETTLE) => {}
                _ = scope.cancelled() => {}
            }
            _ = tokio::task::spawn_blocking(write).await;
        }));
    }

    /// Deletes what was thrown away, in the background.
    pub(crate) fn empty_trash(&self) {
        let store = self.ledger.store.clone();
        self.later(move || {
            if let Err(e) = store.empty_trash() {
                tracing::warn!(error = %e, "cannot delete what was thrown away");
            }
        });
    }
}

/// What a record is worth after a restart.
enum Verdict {
    Keep,
    Edit(Box<Record>),
    Drop,
}

/// Reads the records and makes them agree with snapshots and blobs.
fn reconcile(store: Store) -> Result<Ledger, Error> {
    let (ledger, broken) = Ledger::load(store)?;
    let store = &ledger.store;
    let snapshots: HashSet<String> = store.snapshots().list()?.into_iter().collect();
    let blobs: HashSet<_> = store.blobs().list()?.into_iter().map(|b| b.digest).collect();
    let here = |blob: &crate::model::Blob| blobs.contains(&blob.descriptor.digest);
    let mut records: Vec<(String, Record)> = {
        let state = ledger.lock();
        state.entries.iter().map(|(id, e)| (id.clone(), Record::clone(&e.record))).collect()
    };
    // An entry without a row stands for a parent that is missing.
    let rows: HashSet<String> = store
        .db()
        .read(|tx| RECORDS.all(tx))?
        .into_iter()
        .filter(|(_, r)| r.is_ok())
        .map(|(id, _)| id)
        .collect();
    records.retain(|(id, _)| rows.contains(id));
    let mut gone: HashSet<String> = broken.into_iter().collect();
    let mut edited = Vec::new();
    let judge = |record: &Record, gone: &HashSet<String>| {
        if record.parents().iter().any(|id| gone.contains(*id) || !rows.contains(*id)) {
            return Verdict::Drop;
        }
        // Whoever made it was killed.
        if record.mutable && !record.retain {
            return Verdict::Drop;
        }
        let mut new = record.clone();
        if record.snapshots().any(|s| !snapshots.contains(s)) {
            (new.snapshot, new.parts, new.size) = (None, Vec::new(), None);
            let layer = matches!(record.content, Content::Layer { .. });
            if record.mutable || (layer && record.blob.is_none()) {
                return Verdict::Drop;
            }
        }
        new.variants.retain(here);
        if new.snapshot.is_some() && new.blob.as_ref().is_some_and(|blob| !here(blob)) {
            // It can be written again from the files.
            (new.blob, new.chain, new.blob_chain) = (None, None, None);
        }
        for other in [&mut new.committed_as, &mut new.committed_from] {
            if other.as_ref().is_some_and(|id| gone.contains(id) || !rows.contains(id)) {
                *other = None;
            }
        }
        if new == *record { Verdict::Keep } else { Verdict::Edit(Box::new(new)) }
    };
    loop {
        let before = gone.len();
        for (id, record) in &records {
            if !gone.contains(id) && matches!(judge(record, &gone), Verdict::Drop) {
                gone.insert(id.clone());
            }
        }
        if gone.len() == before {
            break;
        }
    }
    for (id, record) in &records {
        if !gone.contains(id)
            && let Verdict::Edit(new) = judge(record, &gone)
        {
            edited.push((id.clone(), *new));
        }
    }
    let named: HashSet<&String> = records
        .iter()
        .filter(|(id, _)| !gone.contains(id))
        .flat_map(|(_, record)| record.snapshots())
        .collect();
    let orphans: Vec<&String> = snapshots.iter().filter(|id| !named.contains(id)).collect();
    let removed = store.db().write(|tx| {
        for id in &gone {
            RECORDS.delete(tx, id)?;
            tx.delete_prefix(META, &crate::ledger::pair(id, ""))?;
            store.blobs().release(tx, &crate::ledger::owner(id))?;
        }
        for key in tx.keys(INDEX, b"")? {
            let id = String::from_utf8_lossy(&key).split_once('\0').map(|(_, id)| id.to_owned());
            if !id.is_some_and(|id| rows.contains(&id) && !gone.contains(&id)) {
                tx.delete(INDEX, &key)?;
            }
        }
        for (id, record) in &edited {
            RECORDS.put(tx, id, record)?;
        }
        orphans.iter().map(|id| store.snapshots().remove(tx, id)).collect::<Result<Vec<_>, store::Error>>()
    })?;
    if !gone.is_empty() || !removed.is_empty() {
        tracing::info!(records = gone.len(), snapshots = removed.len(), "removed what was left half made");
    }
    for snapshot in removed {
        snapshot.discard()?;
    }
    // Once more, now that the rows are right.
    let (ledger, _) = Ledger::load(store.clone())?;
    Ok(ledger)
}
