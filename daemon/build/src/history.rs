//! Builds that ended, for those who ask later.
//!
//! A record per build in the store's database, and a blob with its progress.
//! Records leave when they are both old and many; pinned ones stay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{Descriptor, Failure, Kind, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use store::{Read as _, Store, Table};
use tokio::sync::broadcast;

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
    /// What its exporters said.
    pub response: BTreeMap<String, String>,
    /// Its progress: a blob of length-prefixed status messages.
    pub logs: Option<Descriptor>,
    /// What its exporters made, by their place in the request.
    pub results: BTreeMap<i64, Descriptor>,
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
            response: BTreeMap::new(),
            logs: None,
            results: BTreeMap::new(),
            pinned: false,
            generation: 0,
            counts: [0; 4],
        }
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
    active: Mutex<BTreeMap<String, Arc<Record>>>,
    events: broadcast::Sender<HistoryEvent>,
}

impl History {
    /// The history in `store`.
    pub fn new(store: Store, limits: HistoryLimits) -> Self {
        Self { store, limits, active: Mutex::default(), events: broadcast::Sender::new(256) }
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

    /// Keeps `record` and, as a blob, `progress`.
    pub(crate) async fn complete(&self, mut record: Record, progress: Vec<u8>) -> Result<(), Failure> {
        self.active.lock().remove(&record.id);
        record.generation += 1;
        let store = self.store.clone();
        let record = base::task::blocking(move || {
            let pin = store.blobs().write(&progress, BTreeMap::new())?;
            record.logs = Some(Descriptor::new(LOGS, pin.digest().clone(), pin.size()));
            save(&store, &record)?;
            drop(pin);
            Ok(record)
        })
        .await?;
        self.tell(HistoryKind::Complete, Arc::new(record));
        self.collect().await
    }

    /// Pins or unpins a record.
    ///
    /// # Errors
    /// When there is none, or the database refuses.
    pub async fn pin(&self, id: &str, pinned: bool) -> Result<(), Failure> {
        let mut record = (*self.get(id).await?).clone();
        record.pinned = pinned;
        record.generation += 1;
        let (store, saved) = (self.store.clone(), record.clone());
        base::task::blocking(move || save(&store, &saved)).await?;
        self.tell(HistoryKind::Complete, Arc::new(record));
        Ok(())
    }

    /// Forgets a record and its blobs.
    ///
    /// # Errors
    /// When there is none, or the database refuses.
    pub async fn delete(&self, id: &str) -> Result<(), Failure> {
        let record = self.get(id).await?;
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
const LOGS: &str = "application/vnd.buildkit.status.v0";

fn owner(id: &str) -> String {
    format!("history/{id}")
}

fn save(store: &Store, record: &Record) -> Result<(), Failure> {
    let value = serde_json::to_vec(record).map_err(|e| Failure::internal(e.to_string()))?;
    let owner = owner(&record.id);
    store.db().write(|tx| {
        for blob in record.logs.iter().chain(record.results.values()) {
            store.blobs().hold(tx, &owner, &blob.digest)?;
        }
        tx.put(TABLE, record.id.as_bytes(), &value)
    })?;
    Ok(())
}
