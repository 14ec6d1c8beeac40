//! Who uses the disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::filter::Filters;
use base::task::blocking;
use base::{Failure, Timestamp};

use crate::ledger::Entry;
use crate::model::{Record, RecordType};
use crate::open::Inner;
use crate::{Error, Refs};

/// A record as disk usage shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// Its id.
    pub id: String,
    /// What it is made of.
    pub parents: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last let go.
    pub last_used_at: Option<Timestamp>,
    /// How often it was used.
    pub usage_count: u64,
    /// Bytes on disk: its snapshot and its blobs. Zero while it is being written.
    pub size: u64,
    /// Somebody holds it.
    pub in_use: bool,
    /// It can be written to.
    pub mutable: bool,
    /// An image outside of this crate's care has its content too.
    pub shared: bool,
    /// For people.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
}

/// Owners of blobs that begin like this are images kept for their own sake.
const IMAGES: &str = "image/";

impl Usage {
    /// The fields of filters. Those that are true or false are there or not.
    pub(crate) fn field(&self, path: &[&str]) -> Option<String> {
        let flag = |set: bool| set.then(String::new);
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let [name] = path else { return None };
        match *name {
            "id" => text(&self.id),
            "parents" => text(&self.parents.join(";")),
            "description" => text(&self.description),
            "inuse" => flag(self.in_use),
            "mutable" => flag(self.mutable),
            "immutable" => flag(!self.mutable),
            "type" => text(self.record_type.as_str()),
            "shared" => flag(self.shared),
            "private" => flag(!self.shared),
            _ => None,
        }
    }
}

impl Refs {
    /// What every record takes. With `unused_for` only those that were not
    /// used for as long.
    ///
    /// # Errors
    /// A filter that does not parse, or the disk.
    pub async fn usage(
        &self,
        filters: &[String],
        unused_for: Option<Duration>,
    ) -> Result<Vec<Usage>, Failure> {
        let filters = Filters::parse(filters).map_err(Error::from)?;
        let inner = self.inner.clone();
        blocking(move || {
            let now = Timestamp::now();
            let recent = |usage: &Usage| {
                let limit = unused_for.filter(|limit| !limit.is_zero());
                limit.is_some_and(|limit| usage.last_used_at.is_some_and(|at| now.since(at) < limit))
            };
            let mut list = inner.list();
            inner.mark_shared(&mut list)?;
            list.retain(|usage| filters.matches(|path| usage.field(path)) && !recent(usage));
            for usage in &mut list {
                usage.size = inner.size_of(usage)?;
            }
            Ok(list)
        })
        .await
    }
}

impl Inner {
    /// All records that count, without sizes.
    pub(crate) fn list(&self) -> Vec<Usage> {
        let records: BTreeMap<String, (Arc<Record>, bool)> = {
            let state = self.ledger.lock();
            let used = |id: &String| state.entries.get(id).is_some_and(|e| e.is_held() || e.children > 0);
            // Two that share a snapshot count once: as what was committed
            // while that is used, else as the mutable.
            let counts = |entry: &Entry| {
                let busy = entry.is_held() || entry.children > 0;
                !entry.dying
                    && !entry.record.committed_as.as_ref().is_some_and(used)
                    && (entry.record.committed_from.is_none() || busy)
            };
            let entries = state.entries.iter().filter(|(_, entry)| counts(entry));
            entries.map(|(id, entry)| (id.clone(), (entry.record.clone(), entry.is_held()))).collect()
        };
        records.into_iter().map(|(id, (record, in_use))| self.describe(&id, &record, in_use)).collect()
    }

    pub(crate) fn describe(&self, id: &str, record: &Record, in_use: bool) -> Usage {
        let (last_used_at, usage_count) = self.ledger.used(id, record);
        Usage {
            id: id.to_owned(),
            parents: record.parents().into_iter().cloned().collect(),
            created_at: record.created_at,
            last_used_at,
            usage_count,
            size: 0,
            in_use,
            mutable: record.mutable,
            shared: false,
            description: record.description.clone(),
            record_type: record.record_type,
        }
    }

    /// Marks what images elsewhere have too, and what that stands on.
    pub(crate) fn mark_shared(&self, list: &mut [Usage]) -> Result<(), Error> {
        let store = &self.ledger.store;
        let mut shared = Vec::new();
        store.db().read(|tx| {
            for usage in list.iter() {
                let Ok(record) = self.ledger.record(&usage.id) else { continue };
                for blob in record.blobs() {
                    let holders = store.blobs().holders(tx, &blob.descriptor.digest)?;
                    if holders.iter().any(|owner| owner.starts_with(IMAGES)) {
                        shared.push(usage.id.clone());
                    }
                }
            }
            Ok::<_, store::Error>(())
        })?;
        while let Some(id) = shared.pop() {
            if let Some(usage) = list.iter_mut().find(|usage| usage.id == id && !usage.shared) {
                usage.shared = true;
                shared.extend(usage.parents.iter().cloned());
            }
        }
        Ok(())
    }

    /// Bytes on disk, remembered until the record changes.
    pub(crate) fn size_of(&self, usage: &Usage) -> Result<u64, Error> {
        if usage.mutable && usage.in_use {
            return Ok(0);
        }
        let Ok(record) = self.ledger.record(&usage.id) else { return Ok(0) };
        if let Some(size) = record.size {
            return Ok(size);
        }
        let size = self.count(&record)?;
        match self.ledger.update(&usage.id, false, |now| {
            // Unless it changed while we were counting.
            if now.snapshot == record.snapshot && now.blob == record.blob && now.variants == record.variants {
                now.size = Some(size);
            }
        }) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(size),
            Err(e) => Err(e),
        }
    }

    fn count(&self, record: &Record) -> Result<u64, Error> {
        let store = &self.ledger.store;
        let mut size = 0;
        for snapshot in record.snapshots() {
            match store.snapshots().usage(snapshot) {
                Ok(used) => size += used.bytes,
                // Removed meanwhile.
                Err(store::Error::Snapshot { .. }) => {}
                Err(store::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
        for blob in record.blobs() {
            size += store.blobs().info(&blob.descriptor.digest)?.map_or(0, |info| info.size);
        }
        Ok(size)
    }
}
