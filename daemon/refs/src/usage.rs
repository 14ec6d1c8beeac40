//! Who uses the disk, and what to remove when it is too much.

use std::time::Duration;

use base::Timestamp;

use crate::model::RecordType;

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
    /// Others than this crate need its content.
    pub shared: bool,
    /// For people.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
}

/// One rule of a prune or of garbage collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunePolicy {
    /// Also what is internal, of frontends or shared.
    pub all: bool,
    /// In containerd's syntax; a record must match one of them, or there are none.
    pub filters: Vec<String>,
    /// Spare what was used more recently.
    pub keep_duration: Option<Duration>,
    /// Bytes that are always allowed. With all three at zero there is no
    /// limit to reach: everything that matches goes.
    pub reserved: u64,
    /// Bytes the whole may take.
    pub max_used: u64,
    /// Bytes to leave free on the disk.
    pub min_free: u64,
}

/// The rules a daemon has when nothing is configured, for a disk of `total` bytes.
pub fn default_policies(total: u64) -> Vec<PrunePolicy> {
    let _ = total;
    todo!()
}
