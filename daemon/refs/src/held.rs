//! Guards: who holds a ref keeps it and everything below.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use base::progress::VertexSink;
use base::task::blocking;
use base::{Failure, Timestamp};
use parking_lot::Mutex;
use store::MountSpec;
use sys::mount::Mounted;

use crate::fetch::{BlobSource, Provider};
use crate::lazy::Unpacked;
use crate::ledger::{META, pair};
use crate::model::{Blob, Content, Record, RecordType};
use crate::open::Inner;
use crate::{Error, Refs};

/// What all guards of one record share.
pub(crate) struct Held {
    pub(crate) refs: Arc<Inner>,
    pub(crate) id: String,
    /// In the order of the record.
    pub(crate) parents: Vec<Arc<Held>>,
    /// Where its blob comes from while it is lazy.
    provider: Mutex<Option<Provider>>,
    /// The layer unpacked, waiting for those below.
    pub(crate) unpacked: Mutex<Option<Unpacked>>,
    /// The mount, shared by all who want one: read-only of what is immutable,
    /// else writable. Two overlays with one upper directory do not see each
    /// other's files.
    mount: Mutex<Weak<Mount>>,
}

impl Held {
    pub(crate) fn new(refs: Arc<Inner>, id: &str, parents: Vec<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            refs,
            id: id.to_owned(),
            parents,
            provider: Mutex::default(),
            unpacked: Mutex::default(),
            mount: Mutex::default(),
        })
    }

    pub(crate) fn record(&self) -> Result<Arc<Record>, Error> {
        self.refs.ledger.record(&self.id)
    }

    /// It and everything below, each once.
    fn with_ancestors(self: &Arc<Self>) -> Vec<&Arc<Self>> {
        let (mut seen, mut all, mut rest) = (HashSet::new(), Vec::new(), vec![self]);
        while let Some(held) = rest.pop() {
            if seen.insert(&held.id) {
                all.push(held);
                rest.extend(&held.parents);
            }
        }
        all
    }

    /// The blob it is known by, unless that cannot be had any more while its
    /// files are here: then it is forgotten, and can be written again.
    pub(crate) fn usable_blob(&self) -> Result<Option<Blob>, Error> {
        let record = self.record()?;
        let Some(blob) = &record.blob else { return Ok(None) };
        let store = &self.refs.ledger.store;
        if record.snapshot.is_none()
            || self.provider().is_some()
            || store.blobs().info(&blob.descriptor.digest)?.is_some()
        {
            return Ok(Some(blob.clone()));
        }
        self.refs.ledger.update(&self.id, false, |record| {
            (record.blob, record.chain, record.blob_chain) = (None, None, None);
        })?;
        Ok(None)
    }

    pub(crate) fn attach(&self, provider: Provider) {
        *self.provider.lock() = Some(provider);
    }

    pub(crate) fn provider(&self) -> Option<Provider> {
        self.provider.lock().clone()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.refs.ledger.touch(&self.id);
    }
}

impl Inner {
    /// Holds `id` and everything below.
    pub(crate) fn hold(self: &Arc<Self>, id: &str) -> Result<Arc<Held>, Error> {
        // Guards that turn out superfluous must not be dropped under the lock.
        let mut spare = Vec::new();
        let mut state = self.ledger.lock();
        let result = self.hold_locked(&mut state, id, &mut spare);
        drop(state);
        drop(spare);
        result
    }

    pub(crate) fn hold_locked(
        self: &Arc<Self>,
        state: &mut crate::ledger::State,
        id: &str,
        spare: &mut Vec<Arc<Held>>,
    ) -> Result<Arc<Held>, Error> {
        let missing = || Error::NotFound { id: id.to_owned() };
        let entry = state.entries.get(id).filter(|entry| !entry.dying).ok_or_else(missing)?;
        if let Some(held) = entry.held.upgrade() {
            return Ok(held);
        }
        let ids: Vec<String> = entry.record.parents().into_iter().cloned().collect();
        let mut parents = Vec::with_capacity(ids.len());
        for id in ids {
            match self.hold_locked(state, &id, spare) {
                Ok(held) => parents.push(held),
                Err(e) => {
                    spare.append(&mut parents);
                    return Err(e);
                }
            }
        }
        let held = Held::new(self.clone(), id, parents);
        if let Some(entry) = state.entries.get_mut(id) {
            entry.held = Arc::downgrade(&held);
        }
        Ok(held)
    }
}

/// An immutable result. Holding it keeps it. Clones are the same.
#[derive(Clone)]
pub struct Ref {
    pub(crate) held: Arc<Held>,
}

impl std::fmt::Debug for Ref {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ref({})", self.held.id)
    }
}

impl Ref {
    pub(crate) fn new(held: Arc<Held>) -> Self {
        Self { held }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.held.id
    }

    /// The refs it belongs to.
    pub fn refs(&self) -> Refs {
        Refs { inner: self.held.refs.clone() }
    }

    /// What it is made of: the layer below, the inputs of a merge, lower and upper.
    pub fn parents(&self) -> Vec<Self> {
        self.held.parents.iter().cloned().map(Self::new).collect()
    }

    fn record(&self) -> Arc<Record> {
        // A record that is held is not removed.
        self.held.record().unwrap_or_else(|_| Arc::new(Record::new(Content::Layer { parent: None })))
    }

    /// Its description.
    pub fn description(&self) -> String {
        self.record().description.clone()
    }

    /// What it is for.
    pub fn record_type(&self) -> RecordType {
        self.record().record_type
    }

    /// Changes what it is for.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn set_record_type(&self, to: RecordType) -> Result<(), Failure> {
        let held = self.held.clone();
        blocking(move || Ok(held.refs.ledger.update(&held.id, false, |r| r.record_type = to)?)).await
    }

    /// When it was made.
    pub fn created_at(&self) -> Timestamp {
        self.record().created_at
    }

    /// Whether files of it, or of what is below, must still be fetched.
    pub fn is_lazy(&self) -> bool {
        let lazy = |held: &Arc<Held>| held.record().is_ok_and(|r| r.snapshot.is_none() && r.blob.is_some());
        self.held.with_ancestors().into_iter().any(lazy)
    }

    /// Whether its files are here or there is a source for what is missing.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn can_be_had(&self) -> Result<bool, Error> {
        let store = &self.held.refs.ledger.store;
        for held in self.held.with_ancestors() {
            let record = held.record()?;
            if let Some(blob) = record.blob.as_ref().filter(|_| record.snapshot.is_none())
                && held.provider().is_none()
                && store.blobs().info(&blob.descriptor.digest)?.is_none()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the blob of one of its layers, or of what is below, is not here,
    /// whether or not its files are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn lacks_blobs(&self) -> Result<bool, Error> {
        let blobs = self.held.refs.ledger.store.blobs();
        for held in self.held.with_ancestors() {
            if let Some(blob) = &held.record()?.blob
                && blobs.info(&blob.descriptor.digest)?.is_none()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where its missing blobs, and those of what is below, can be fetched
    /// from now on.
    pub fn attach(&self, source: Arc<dyn BlobSource>, progress: VertexSink) {
        for held in self.held.with_ancestors() {
            if held.record().is_ok_and(|r| r.blob.is_some()) {
                held.attach(Provider { source: source.clone(), progress: progress.clone() });
            }
        }
    }

    /// Mounts it read-only; shared with others who have it mounted.
    ///
    /// # Errors
    /// Those of [`Self::ensure`] and of mounting.
    pub async fn mount(&self) -> Result<MountGuard, Failure> {
        self.ensure().await?;
        let view = |held: &Arc<Held>| {
            let snapshot = snapshot_of(held)?;
            Ok(held.refs.ledger.store.snapshots().view(&snapshot)?)
        };
        self.held.mount_once(view).await
    }

    /// The directories it is stacked of, topmost first; one directory with
    /// everything in it without overlays.
    ///
    /// # Errors
    /// Those of [`Self::ensure`].
    pub async fn lowers(&self) -> Result<Vec<PathBuf>, Failure> {
        self.ensure().await?;
        let held = self.held.clone();
        blocking(move || {
            let snapshot = snapshot_of(&held)?;
            Ok(held.refs.ledger.store.snapshots().chain(&snapshot)?)
        })
        .await
    }

    /// What was noted under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn get_meta(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.held.get_meta(key)
    }

    /// Notes `value` under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.held.set_meta(key, value)
    }

    /// Makes it found by [`Refs::search`] under `key`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_index(&self, key: &str) -> Result<(), Error> {
        self.held.set_index(key)
    }
}

/// The snapshot of a ref that was ensured.
pub(crate) fn snapshot_of(held: &Held) -> Result<String, Error> {
    held.record()?.snapshot.clone().ok_or_else(|| Error::Invalid(format!("{} is still lazy", held.id)))
}

impl Held {
    /// The one mount of this, made as `spec` says when there is none.
    pub(crate) async fn mount_once(
        self: &Arc<Self>,
        spec: impl FnOnce(&Arc<Self>) -> Result<MountSpec, Error> + Send + 'static,
    ) -> Result<MountGuard, Failure> {
        if let Some(mount) = self.mount.lock().upgrade() {
            return Ok(MountGuard(mount));
        }
        let work = || async {
            if let Some(mount) = self.mount.lock().upgrade() {
                return Ok(mount);
            }
            let held = self.clone();
            let mount = blocking(move || {
                let spec = spec(&held)?;
                Mount::new(held, &spec)
            })
            .await?;
            let mount = Arc::new(mount);
            *self.mount.lock() = Arc::downgrade(&mount);
            Ok::<_, Failure>(mount)
        };
        let key = format!("mount/{}", self.id);
        Ok(MountGuard(self.refs.mounts.run(key, work).await?))
    }

    pub(crate) fn get_meta(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        use store::Read;
        Ok(self.refs.ledger.store.db().read(|tx| tx.get(META, &pair(&self.id, key)))?)
    }

    pub(crate) fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.refs.ledger.change(false, |change| Ok(change.tx.put(META, &pair(&self.id, key), value)?))
    }

    pub(crate) fn set_index(&self, key: &str) -> Result<(), Error> {
        self.refs.ledger.change(false, |change| change.index(&self.id, key))
    }
}

/// A mounted tree; unmounted when the last clone is gone. Keeps the ref.
#[derive(Clone)]
pub struct MountGuard(pub(crate) Arc<Mount>);

impl MountGuard {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Unmounts it now, unless others have it mounted too, and waits for that.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn unmount(self) -> Result<(), Failure> {
        match Arc::try_unwrap(self.0) {
            Ok(mut mount) => blocking(move || mount.end().map_err(Failure::from)).await,
            Err(_) => Ok(()),
        }
    }
}

impl std::fmt::Debug for MountGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MountGuard({})", self.0.path.display())
    }
}

pub(crate) struct Mount {
    mounted: Option<Mounted>,
    path: PathBuf,
    held: Arc<Held>,
}

impl Mount {
    /// Blocks.
    pub(crate) fn new(held: Arc<Held>, spec: &MountSpec) -> Result<Self, Failure> {
        let path = held.refs.ledger.store.mount_point()?;
        // Owns the directory from here on, whether or not mounting works.
        let mut mount = Self { mounted: None, path, held };
        mount.mounted = Some(spec.mount(&mount.path)?);
        Ok(mount)
    }

    fn end(&mut self) -> Result<(), sys::Error> {
        end(self.mounted.take(), &self.path)
    }
}

fn end(mounted: Option<Mounted>, path: &Path) -> Result<(), sys::Error> {
    if let Some(mounted) = mounted {
        mounted.unmount()?;
    }
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(sys::Error::new("remove mount point", path, e))
        }
        _ => Ok(()),
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(mounted) = self.mounted.take() else {
            _ = std::fs::remove_dir(&self.path);
            return;
        };
        // Unmounting may write everything out first. The ref is let go at once:
        // nobody looks at the mount any more, so its files may go away.
        let path = self.path.clone();
        self.held.refs.later(move || {
            if let Err(e) = end(Some(mounted), &path) {
                tracing::warn!(error = %e, "leaving a mount behind");
            }
        });
    }
}
