//! Builds that ended, for those who ask later.
//!
//! A record per build in the store's database, and a blob with its progress.
//! Records leave when they are both old and many; pinned ones stay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::task::Scope;
use base::{Descriptor, Failure, Kind, Timestamp};
use parking_lot::Mutex;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use store::{Read as _, Store, Table};
use tokio::sync::{Notify, broadcast, watch};

use crate::{Counts, Error, ExporterSpec};

const TABLE: Table = Table("history");

/// What is known of a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The client's name for it.
    pub id: String,
    /// Its frontend; empty when the client was its own.
    pub frontend: String,
    /// The frontend's options.
    pub attrs: BTreeMap<String, String>,
    /// Where its results went.
    pub exporters: Vec<(String, BTreeMap<String, String>)>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// Why it failed: the code of gRPC, and the message.
    pub error: Option<(i32, String)>,
    /// The same with all that is known, as a blob.
    #[serde(default)]
    pub external_error: Option<Descriptor>,
    /// What its frontend said of the result.
    pub response: BTreeMap<String, String>,
    /// Its progress: a blob of length-prefixed status messages.
    pub logs: Option<Descriptor>,
    /// What happened within it, as spans: a blob.
    #[serde(default)]
    pub trace: Option<Descriptor>,
    /// What its exporters made, by their place in the request.
    pub results: BTreeMap<i64, Descriptor>,
    /// How the result was made: blobs with provenance.
    #[serde(default)]
    pub attestations: Vec<Descriptor>,
    /// The same for results that are for one platform each.
    #[serde(default)]
    pub by_platform: BTreeMap<String, Vec<Descriptor>>,
    /// Stays until somebody deletes it.
    pub pinned: bool,
    /// Counts changes.
    pub generation: i32,
    /// Steps in all, cached, completed, and warnings.
    pub counts: [u32; 4],
}

impl Record {
    /// A build that begins now.
    pub fn begin(
        id: &str,
        frontend: &str,
        attrs: &BTreeMap<String, String>,
        exporters: &[ExporterSpec],
    ) -> Self {
        Self {
            id: id.to_owned(),
            frontend: frontend.to_owned(),
            attrs: attrs.clone(),
            exporters: exporters.iter().map(|e| (e.kind.clone(), e.attrs.clone())).collect(),
            created: Timestamp::now(),
            completed: None,
            error: None,
            external_error: None,
            response: BTreeMap::new(),
            logs: None,
            trace: None,
            results: BTreeMap::new(),
            attestations: Vec::new(),
            by_platform: BTreeMap::new(),
            pinned: false,
            generation: 0,
            counts: [0; 4],
        }
    }

    /// Every blob it names.
    fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let single = [&self.logs, &self.trace, &self.external_error].into_iter().flatten();
        let said = self.attestations.iter().chain(self.by_platform.values().flatten());
        single.chain(said).chain(self.results.values())
    }

    pub(crate) fn count(&mut self, counts: Counts) {
        self.counts = [counts.total, counts.cached, counts.completed, counts.warnings];
    }
}

/// What happened to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HistoryKind {
    Started,
    Complete,
    Deleted,
}

/// A change of the history.
#[derive(Debug, Clone)]
pub struct HistoryEvent {
    /// What happened.
    pub kind: HistoryKind,
    /// To which record.
    pub record: Arc<Record>,
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    /// Younger records stay.
    pub max_age: Duration,
    /// So many records stay.
    pub max_entries: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(48 * 3600), max_entries: 50 }
    }
}

/// The history of one daemon.
pub struct History {
    store: Store,
    limits: HistoryLimits,
    /// How this program was started.
    cmdline: Vec<String>,
    active: Mutex<BTreeMap<String, Arc<Record>>>,
    events: broadcast::Sender<HistoryEvent>,
    /// One change of a record at a time.
    changing: tokio::sync::Mutex<()>,
    watched: Mutex<BTreeMap<String, Watched>>,
    finalizing: Mutex<BTreeMap<String, Arc<Finalizing>>>,
    scope: Scope,
}

impl History {
    /// The history in `store`. What is left to do when nobody waits, `scope`
    /// does. `cmdline` is how this program was started.
    pub fn new(store: Store, limits: HistoryLimits, cmdline: Vec<String>, scope: Scope) -> Arc<Self> {
        Arc::new(Self {
            store,
            limits,
            cmdline,
            active: Mutex::default(),
            events: broadcast::Sender::new(256),
            changing: tokio::sync::Mutex::default(),
            watched: Mutex::default(),
            finalizing: Mutex::default(),
            scope,
        })
    }

    /// What is done when nobody waits is done in here.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// What happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<HistoryEvent> {
        self.events.subscribe()
    }

    /// Builds that run now.
    pub fn active(&self) -> Vec<Arc<Record>> {
        self.active.lock().values().cloned().collect()
    }

    /// Builds that ended, the oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn ended(&self) -> Result<Vec<Arc<Record>>, Failure> {
        let db = self.store.db().clone();
        base::task::blocking(move || {
            let mut records = db.read(|tx| {
                let mut records = Vec::new();
                tx.scan(TABLE, b"", &mut |_, value| {
                    // What an older version wrote and this one cannot read is no record.
                    records.extend(serde_json::from_slice::<Record>(value).ok().map(Arc::new));
                    true
                })?;
                Ok::<_, store::Error>(records)
            })?;
            records.sort_by_key(|r| r.created);
            Ok(records)
        })
        .await
        .map(|mut records: Vec<Arc<Record>>| {
            records.retain(|record| !self.is_going(&record.id));
            records
        })
    }

    /// Whether a record is hidden: it goes when nobody looks at it any more.
    fn is_going(&self, id: &str) -> bool {
        self.watched.lock().get(id).is_some_and(|entry| entry.deleted)
    }

    /// One build that ended.
    ///
    /// # Errors
    /// When there is none, or the database cannot be read.
    pub async fn get(&self, id: &str) -> Result<Arc<Record>, Failure> {
        let found = self.ended().await?.into_iter().find(|r| r.id == id);
        found.ok_or_else(|| Error::UnknownJob(id.to_owned()).into())
    }

    pub(crate) fn start(&self, record: Record) {
        let record = Arc::new(record);
        self.active.lock().insert(record.id.clone(), record.clone());
        self.tell(HistoryKind::Started, record);
    }

    /// Keeps bytes until a record holds them.
    ///
    /// # Errors
    /// When the store refuses.
    pub(crate) async fn keep(&self, media_type: &'static str, bytes: Vec<u8>) -> Result<Kept, Failure> {
        let store = self.store.clone();
        base::task::blocking(move || {
            let pin = store.blobs().write(&bytes, BTreeMap::new())?;
            Ok(Kept { descriptor: Descriptor::new(media_type, pin.digest().clone(), pin.size()), pin })
        })
        .await
    }

    /// Keeps all that is known of why a build failed, and says it in `record`.
    pub(crate) async fn keep_error(&self, record: &mut Record, failure: &Failure) -> Result<Kept, Failure> {
        let mut status = session::status::to_rpc(failure);
        status.details.extend(session::status::origin(&proto::stack::Stack {
            cmdline: self.cmdline.clone(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            version: base::version::VERSION.to_owned(),
            revision: base::version::REVISION.to_owned(),
            frames: Vec::new(),
        }));
        let kept = self.keep(ERROR, status.encode_to_vec()).await?;
        record.error = Some((status.code, status.message));
        record.external_error = Some(kept.descriptor.clone());
        Ok(kept)
    }

    /// Keeps `record`, of a build that has ended, and with it the blobs it names.
    pub(crate) async fn complete(&self, mut record: Record) -> Result<(), Failure> {
        record.generation += 1;
        let store = self.store.clone();
        let saved = record.clone();
        let outcome = base::task::blocking(move || save(&store, &saved)).await;
        self.active.lock().remove(&record.id);
        outcome?;
        self.tell(HistoryKind::Complete, Arc::new(record));
        self.collect().await
    }

    /// Adds the spans of a build to its record.
    pub(crate) async fn add_trace(&self, id: &str, trace: Kept) -> Result<(), Failure> {
        self.change(id, |record| record.trace = Some(trace.descriptor.clone())).await
    }

    /// Changes a record that is kept.
    async fn change(&self, id: &str, change: impl FnOnce(&mut Record)) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        let mut record = (*self.get(id).await?).clone();
        change(&mut record);
        record.generation += 1;
        let (store, saved) = (self.store.clone(), record.clone());
        base::task::blocking(move || save(&store, &saved)).await?;
        self.tell(HistoryKind::Complete, Arc::new(record));
        Ok(())
    }

    /// Pins or unpins a record.
    ///
    /// # Errors
    /// When there is none, or the database refuses.
    pub async fn pin(&self, id: &str, pinned: bool) -> Result<(), Failure> {
        self.change(id, |record| record.pinned = pinned).await
    }

    /// Waits until all that is to be known of a build is in its record.
    pub async fn finalize(&self, id: &str) {
        let waiting = self.finalizing.lock().get(id).cloned();
        if let Some(waiting) = waiting {
            waiting.asked.notify_one();
            // The sender goes with what we hold.
            _ = waiting.done.subscribe().wait_for(|done| *done).await;
        }
    }

    /// What the record of a build still waits for, until the answer is dropped.
    pub(crate) fn finalizer(self: &Arc<Self>, id: &str) -> Finalizer {
        let state = Arc::new(Finalizing { asked: Notify::new(), done: watch::Sender::new(false) });
        self.finalizing.lock().insert(id.to_owned(), state.clone());
        Finalizer { history: self.clone(), id: id.to_owned(), state }
    }

    /// Somebody looks at a record: it stays until they have done so.
    ///
    /// # Errors
    /// When it is on its way out.
    pub fn watch(self: &Arc<Self>, id: &str) -> Result<Watching, Failure> {
        let mut watched = self.watched.lock();
        let entry = watched.entry(id.to_owned()).or_default();
        if entry.deleted {
            return Err(Error::DeletedRecord(id.to_owned()).into());
        }
        entry.watchers += 1;
        Ok(Watching { history: self.clone(), id: id.to_owned() })
    }

    /// Forgets a record and its blobs.
    ///
    /// # Errors
    /// When there is none, or the database refuses.
    pub async fn delete(&self, id: &str) -> Result<(), Failure> {
        let record = self.get(id).await?;
        if let Some(entry) = self.watched.lock().get_mut(id) {
            // Whoever looks last removes it.
            entry.deleted = true;
            return Ok(());
        }
        self.remove(record).await
    }

    async fn remove(&self, record: Arc<Record>) -> Result<(), Failure> {
        let (store, gone) = (self.store.clone(), record.clone());
        base::task::blocking(move || {
            let owner = owner(&gone.id);
            store.db().write(|tx| {
                store.blobs().release(tx, &owner)?;
                tx.delete(TABLE, gone.id.as_bytes())?;
                Ok::<_, store::Error>(())
            })?;
            Ok(())
        })
        .await?;
        self.tell(HistoryKind::Deleted, record);
        Ok(())
    }

    /// Removes records that are both old and too many.
    async fn collect(&self) -> Result<(), Failure> {
        let records = self.ended().await?;
        let loose: Vec<_> = records.into_iter().filter(|r| !r.pinned).collect();
        let surplus = loose.len().saturating_sub(self.limits.max_entries);
        let now = Timestamp::now();
        for record in &loose[..surplus] {
            if now.since(record.completed.unwrap_or(record.created)) >= self.limits.max_age {
                match self.delete(&record.id).await {
                    Ok(()) => {}
                    Err(e) if e.kind() == Kind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    fn tell(&self, kind: HistoryKind, record: Arc<Record>) {
        // Nobody listening is fine.
        _ = self.events.send(HistoryEvent { kind, record });
    }
}

/// Media type of a build's progress.
pub(crate) const LOGS: &str = "application/vnd.buildkit.status.v0";
/// Media type of why a build failed; misspelled as clients know it.
const ERROR: &str = "application/vnd.googeapis.google.rpc.status+proto";

/// A blob that stays until it is dropped, or longer when a record holds it.
pub(crate) struct Kept {
    pub(crate) descriptor: Descriptor,
    #[allow(dead_code)] // held for what its end does
    pin: store::Pin,
}

#[derive(Default)]
struct Watched {
    watchers: usize,
    deleted: bool,
}

/// See [`History::watch`].
pub struct Watching {
    history: Arc<History>,
    id: String,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let deleted = {
            let mut watched = self.history.watched.lock();
            let Some(entry) = watched.get_mut(&self.id) else { return };
            entry.watchers -= 1;
            if entry.watchers > 0 {
                return;
            }
            watched.remove(&self.id).is_some_and(|entry| entry.deleted)
        };
        if deleted {
            let (history, id) = (self.history.clone(), self.id.clone());
            self.history.scope.spawn(async move {
                if let Err(error) = history.delete(&id).await {
                    tracing::warn!(%error, id, "remove the record of a build");
                }
            });
        }
    }
}

struct Finalizing {
    asked: Notify,
    done: watch::Sender<bool>,
}

/// See [`History::finalizer`].
pub(crate) struct Finalizer {
    history: Arc<History>,
    id: String,
    state: Arc<Finalizing>,
}

impl Finalizer {
    /// Waits until somebody cannot wait any longer.
    pub(crate) async fn asked(&self) {
        self.state.asked.notified().await;
    }
}

impl Drop for Finalizer {
    fn drop(&mut self) {
        let mut all = self.history.finalizing.lock();
        if all.get(&self.id).is_some_and(|state| Arc::ptr_eq(state, &self.state)) {
            all.remove(&self.id);
        }
        self.state.done.send_replace(true);
    }
}

fn owner(id: &str) -> String {
    format!("history/{id}")
}

fn save(store: &Store, record: &Record) -> Result<(), Failure> {
    let value = serde_json::to_vec(record).map_err(|e| Failure::internal(e.to_string()))?;
    let owner = owner(&record.id);
    store.db().write(|tx| {
        for blob in record.blobs() {
            store.blobs().hold(tx, &owner, &blob.digest)?;
        }
        tx.put(TABLE, record.id.as_bytes(), &value)
    })?;
    Ok(())
}
