//! What is written down about a ref.

use std::sync::Arc;

use base::{Descriptor, Digest, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Error;

/// What a ref is for, as disk usage shows it and collection treats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum RecordType {
    /// A step's result.
    #[default]
    #[serde(rename = "regular")]
    Regular,
    /// The daemon's own.
    #[serde(rename = "internal")]
    Internal,
    /// A frontend's image.
    #[serde(rename = "frontend")]
    Frontend,
    /// A client's directory.
    #[serde(rename = "source.local")]
    LocalSource,
    /// A working copy of a git repository.
    #[serde(rename = "source.git.checkout")]
    GitCheckout,
    /// A cache mount.
    #[serde(rename = "exec.cachemount")]
    CacheMount,
}

impl RecordType {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Internal => "internal",
            Self::Frontend => "frontend",
            Self::LocalSource => "source.local",
            Self::GitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
        }
    }
}

impl std::fmt::Display for RecordType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a new ref is to be.
#[derive(Debug, Clone, Default)]
pub struct NewRef {
    /// For people, in disk usage.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// Keep the mutable ref after it was dropped or committed, so that
    /// [`crate::Refs::get_mutable`] finds it again. Otherwise dropping it
    /// uncommitted removes it.
    pub retain: bool,
}

/// What a ref is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Content {
    /// A tree on top of another.
    Layer {
        /// The one below.
        parent: Option<String>,
    },
    /// Trees laid over each other, the first at the bottom.
    Merge {
        /// The trees.
        inputs: Vec<String>,
    },
    /// What one tree has and another has not.
    Diff {
        /// The one that has not.
        lower: String,
        /// The one that has; nothing at all when there is none.
        upper: Option<String>,
    },
}

/// A layer as a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Blob {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
}

/// Everything that is written down about a ref.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) content: Content,
    pub(crate) mutable: bool,
    /// A mutable one that outlives its guard.
    #[serde(default)]
    pub(crate) retain: bool,
    #[serde(default)]
    pub(crate) record_type: RecordType,
    #[serde(default)]
    pub(crate) description: String,
    pub(crate) created_at: Timestamp,
    pub(crate) last_used_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) usage_count: u64,
    /// Where the files are; none while it is lazy.
    pub(crate) snapshot: Option<String>,
    /// Snapshots made for this ref alone that `snapshot` is stacked of.
    #[serde(default)]
    pub(crate) parts: Vec<String>,
    /// Bytes on disk, once somebody asked.
    pub(crate) size: Option<u64>,
    /// The layer as it came or was first written.
    pub(crate) blob: Option<Blob>,
    /// The same layer compressed in other ways.
    #[serde(default)]
    pub(crate) variants: Vec<Blob>,
    /// The chain of uncompressed layers up to here.
    pub(crate) chain: Option<Digest>,
    /// The chain of blobs up to here.
    pub(crate) blob_chain: Option<Digest>,
    /// The retained mutable this was committed from; they share a snapshot.
    pub(crate) committed_from: Option<String>,
    /// What this retained mutable was last committed as.
    pub(crate) committed_as: Option<String>,
    /// The longest way down through parents.
    #[serde(default)]
    pub(crate) depth: u32,
    /// Merges and diffs on the way down with the most of them.
    #[serde(default)]
    pub(crate) nesting: u32,
}

/// Chains of layers may be that long. Kernels stack 500.
pub(crate) const MAX_DEPTH: u32 = 1000;

/// Merges and diffs within each other.
pub(crate) const MAX_NESTING: u32 = 100;

/// Layers in a stack, those named twice counted twice.
pub(crate) const MAX_LAYERS: usize = 4096;

impl Record {
    pub(crate) fn new(content: Content) -> Self {
        Self {
            content,
            mutable: false,
            retain: false,
            record_type: RecordType::Regular,
            description: String::new(),
            created_at: Timestamp::now(),
            last_used_at: None,
            usage_count: 0,
            snapshot: None,
            parts: Vec::new(),
            size: None,
            blob: None,
            variants: Vec::new(),
            chain: None,
            blob_chain: None,
            committed_from: None,
            committed_as: None,
            depth: 0,
            nesting: 0,
        }
    }

    /// Places it on top of `parents`.
    pub(crate) fn on(mut self, parents: &[Arc<Self>]) -> Result<Self, Error> {
        let composed = u32::from(!matches!(self.content, Content::Layer { .. }));
        self.depth = parents.iter().map(|p| p.depth + 1).max().unwrap_or(0);
        self.nesting = composed + parents.iter().map(|p| p.nesting).max().unwrap_or(0);
        if self.depth > MAX_DEPTH {
            return Err(Error::Invalid(format!("more than {MAX_DEPTH} layers on top of each other")));
        }
        if self.nesting > MAX_NESTING {
            return Err(Error::Invalid(format!(
                "more than {MAX_NESTING} merges and diffs within each other"
            )));
        }
        Ok(self)
    }

    pub(crate) fn described(content: Content, new: &NewRef) -> Self {
        Self {
            description: new.description.clone(),
            record_type: new.record_type,
            retain: new.retain,
            ..Self::new(content)
        }
    }

    /// The records this one cannot be without.
    pub(crate) fn parents(&self) -> Vec<&String> {
        match &self.content {
            Content::Layer { parent } => parent.iter().collect(),
            Content::Merge { inputs } => inputs.iter().collect(),
            Content::Diff { lower, upper } => std::iter::once(lower).chain(upper).collect(),
        }
    }

    pub(crate) fn snapshots(&self) -> impl Iterator<Item = &String> {
        self.snapshot.iter().chain(&self.parts)
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.blob.iter().chain(&self.variants)
    }
}

/// The chain that `next` makes on top of `below`: the sha256 of both texts
/// with a blank in between, as OCI images define it.
pub(crate) fn chain(below: Option<&Digest>, next: &Digest) -> Digest {
    match below {
        Some(below) => Digest::of(format!("{below} {next}")),
        None => next.clone(),
    }
}
