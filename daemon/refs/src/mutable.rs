//! Refs in the making.

use std::sync::Arc;

use base::Failure;
use base::task::blocking;
use store::WriteTx;

use crate::held::{Held, MountGuard, Ref, snapshot_of};
use crate::model::{Content, NewRef, Record};
use crate::open::Inner;
use crate::{Error, Refs};

/// A result in the making; exclusive. Dropped without commit it is removed,
/// unless it is retained.
pub struct Mutable {
    /// Taken by commit and by drop.
    held: Option<Arc<Held>>,
    id: String,
}

impl std::fmt::Debug for Mutable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mutable({})", self.id)
    }
}

impl Refs {
    /// An empty directory, or one with what is in `parent`, to write into.
    ///
    /// # Errors
    /// When the parent cannot be brought here or the disk refuses.
    pub async fn new_mutable(&self, parent: Option<&Ref>, new: NewRef) -> Result<Mutable, Failure> {
        if let Some(parent) = parent {
            parent.ensure().await?;
            parent.finalize().await?;
        }
        let (inner, parent) = (self.inner.clone(), parent.map(|p| p.held.clone()));
        blocking(move || {
            let id = base::id::fresh();
            let below = parent.as_deref().map(snapshot_of).transpose()?;
            let content = Content::Layer { parent: parent.as_ref().map(|p| p.id.clone()) };
            let record =
                Record { mutable: true, snapshot: Some(id.clone()), ..Record::described(content, &new) };
            inner.ledger.store.snapshots().prepare(&id, below.as_deref())?;
            // Nobody misses it after a kill, so it need not be on disk yet.
            let held = inner.begin(&id, record, parent.into_iter().collect(), false).inspect_err(|_| {
                inner.drop_snapshot(&id);
            })?;
            Ok(Mutable { held: Some(held), id })
        })
        .await
    }

    /// The mutable ref `id` that was retained. What it was committed as
    /// earlier is forgotten.
    ///
    /// # Errors
    /// [`Error::Locked`] when it, or what it was committed as, is in use;
    /// [`Error::NotFound`], [`Error::Sort`].
    pub async fn get_mutable(&self, id: &str) -> Result<Mutable, Error> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        let work = tokio::task::spawn_blocking(move || take(&inner, &id));
        work.await.unwrap_or_else(|e| Err(Error::Invalid(format!("worker gone: {e}"))))
    }
}

impl Refs {
    /// Retains `id` no longer and lets nobody find it: it goes with the last
    /// who has it, or at once. One that is gone already is fine.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn disown(&self, id: &str) -> Result<(), Failure> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        blocking(move || {
            let disowned = inner.ledger.change(true, |change| {
                let mut record = change.get(&id)?;
                record.retain = false;
                change.unindex(&id)?;
                change.put(&id, record)
            });
            match disowned {
                Err(Error::NotFound { .. }) => return Ok(()),
                other => other?,
            }
            match inner.ledger.lock().entries.get_mut(&id) {
                Some(entry) if entry.is_free() => entry.dying = true,
                // Whoever has it removes it.
                _ => return Ok(()),
            }
            inner.ledger.remove(&[id], true)?;
            inner.empty_trash();
            Ok(())
        })
        .await
    }
}

fn take(inner: &Arc<Inner>, id: &str) -> Result<Mutable, Error> {
    let mut spare = Vec::new();
    let mut state = inner.ledger.lock();
    let locked = || Error::Locked { id: id.to_owned() };
    let (record, held) = match state.entries.get(id).filter(|entry| !entry.dying) {
        Some(entry) => (entry.record.clone(), entry.is_held()),
        None => return Err(Error::NotFound { id: id.to_owned() }),
    };
    if !record.mutable {
        return Err(Error::Sort { id: id.to_owned(), wanted: "mutable" });
    }
    if held {
        return Err(locked());
    }
    let committed = record.committed_as.clone();
    let result = inner.hold_locked(&mut state, id, &mut spare);
    if let (Ok(held), Some(committed)) = (&result, &committed)
        && let Some(entry) = state.entries.get_mut(committed)
    {
        if !entry.is_free() {
            // Not under the lock.
            spare.push(held.clone());
            drop(state);
            return Err(locked());
        }
        entry.dying = true;
    }
    drop(state);
    drop(spare);
    let mutable = Mutable { held: Some(result?), id: id.to_owned() };
    if let Some(committed) = committed {
        let forgot = inner.ledger.change(true, |change| {
            let mut record = change.get(id)?;
            record.committed_as = None;
            record.size = None;
            change.put(id, record)?;
            match change.delete(&committed) {
                Err(Error::NotFound { .. }) => Ok(()),
                other => other,
            }
        });
        if let Err(e) = forgot {
            if let Some(entry) = inner.ledger.lock().entries.get_mut(&committed) {
                entry.dying = false;
            }
            return Err(e);
        }
    }
    Ok(mutable)
}

impl Inner {
    /// Writes a new record and holds it. Blocks.
    pub(crate) fn begin(
        self: &Arc<Self>,
        id: &str,
        record: Record,
        parents: Vec<Arc<Held>>,
        durable: bool,
    ) -> Result<Arc<Held>, Error> {
        let held = Held::new(self.clone(), id, parents);
        self.ledger.change(durable, |change| change.put_held(&held, record))?;
        Ok(held)
    }

    /// Removes a snapshot that never got a record. What fails here is found
    /// at the next start.
    pub(crate) fn drop_snapshot(&self, id: &str) {
        let store = &self.ledger.store;
        match store.db().write_lazily(|tx| store.snapshots().remove(tx, id)).and_then(store::Removed::discard)
        {
            Ok(()) => self.empty_trash(),
            Err(e) => tracing::warn!(error = %e, snapshot = id, "leaving a snapshot behind"),
        }
    }
}

impl Mutable {
    fn held(&self) -> Result<&Arc<Held>, Error> {
        // Only commit and drop take it, and they take all of it.
        self.held.as_ref().ok_or_else(|| Error::NotFound { id: self.id.clone() })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it stands on.
    pub fn parent(&self) -> Option<Ref> {
        self.held.as_ref()?.parents.first().cloned().map(Ref::new)
    }

    /// Mounts it writable; shared with others who have it mounted.
    ///
    /// # Errors
    /// Those of mounting.
    pub async fn mount(&self) -> Result<MountGuard, Failure> {
        let writable = |held: &Arc<Held>| {
            let snapshot = snapshot_of(held)?;
            let volatile = held.refs.options.volatile;
            Ok(held.refs.ledger.store.snapshots().writable(&snapshot, volatile)?)
        };
        self.held()?.mount_once(writable).await
    }

    /// Makes it immutable, in one transaction with its snapshot. A retained
    /// one stays and can be had again by its id. It is on disk a moment later,
    /// or with whatever is written durably before.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn commit(self) -> Result<Ref, Failure> {
        self.commit_with(|_, _| Ok(())).await
    }

    /// As [`Self::commit`], and `also` in the same transaction with the id of
    /// the new ref.
    ///
    /// # Errors
    /// When the database refuses, or those of `also`; the mutable is as if
    /// dropped then.
    pub async fn commit_with(
        self,
        also: impl FnOnce(&WriteTx, &str) -> Result<(), store::Error> + Send + 'static,
    ) -> Result<Ref, Failure> {
        blocking(move || Ok(self.commit_now(also)?)).await
    }

    fn commit_now(
        mut self,
        also: impl FnOnce(&WriteTx, &str) -> Result<(), store::Error>,
    ) -> Result<Ref, Error> {
        let held = self.held()?.clone();
        let inner = held.refs.clone();
        let store = &inner.ledger.store;
        let id = base::id::fresh();
        let committed = Held::new(inner.clone(), &id, held.parents.clone());
        store.fail().pass("ref.commit")?;
        inner.ledger.change(false, |change| {
            let mut old = change.get(&self.id)?;
            let mut new = Record {
                record_type: old.record_type,
                description: old.description.clone(),
                snapshot: old.snapshot.clone(),
                depth: old.depth,
                nesting: old.nesting,
                ..Record::new(old.content.clone())
            };
            if old.retain {
                new.committed_from = Some(self.id.clone());
                old.committed_as = Some(id.clone());
                old.size = None;
                change.put_held(&committed, new)?;
                change.put(&self.id, old)?;
            } else {
                if let Some(snapshot) = &new.snapshot {
                    store.snapshots().commit(change.tx, snapshot)?;
                }
                change.put_held(&committed, new)?;
                change.delete(&self.id)?;
            }
            Ok(also(change.tx, &id)?)
        })?;
        inner.settle();
        store.fail().pass("ref.committed")?;
        // Committed: nothing for drop to remove.
        self.held = None;
        Ok(Ref::new(committed))
    }

    /// What was noted under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn get_meta(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.held()?.get_meta(key)
    }

    /// Notes `value` under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.held()?.set_meta(key, value)
    }

    /// Makes it found by [`Refs::search`] under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_index(&self, key: &str) -> Result<(), Error> {
        self.held()?.set_index(key)
    }
}

impl Drop for Mutable {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let inner = held.refs.clone();
        {
            let mut state = inner.ledger.lock();
            match state.entries.get_mut(&self.id) {
                Some(entry) if !entry.record.retain => entry.dying = true,
                _ => {
                    drop(state);
                    return;
                }
            }
        }
        let id = self.id.clone();
        inner.clone().later(move || {
            drop(held);
            match inner.ledger.remove(&[id], false) {
                Ok(()) => inner.empty_trash(),
                Err(e) => tracing::warn!(error = %e, "cannot remove what was not committed"),
            }
        });
    }
}

impl Ref {
    /// Takes the snapshot away from the retained mutable this was committed
    /// from, which ends that one. Done before others are built on this.
    pub(crate) async fn finalize(&self) -> Result<(), Failure> {
        if self.held.record()?.committed_from.is_none() {
            return Ok(());
        }
        let held = self.held.clone();
        blocking(move || {
            let store = &held.refs.ledger.store;
            Ok(held.refs.ledger.change(true, |change| {
                let mut record = change.get(&held.id)?;
                let Some(mutable) = record.committed_from.take() else { return Ok(()) };
                if let Some(snapshot) = &record.snapshot {
                    store.snapshots().commit(change.tx, snapshot)?;
                }
                change.put(&held.id, record)?;
                match change.delete(&mutable) {
                    Err(Error::NotFound { .. }) => Ok(()),
                    other => other,
                }
            })?)
        })
        .await
    }
}
