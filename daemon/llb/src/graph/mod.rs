//! A definition somebody sent, decoded and checked.
//!
//! Loading keeps the bytes as they came: the digest of a vertex is the sha256
//! of its bytes, and whoever re-encodes a message may change them. A loaded
//! graph holds only what its result needs, inputs before the vertices that use
//! them, and every index in it is good: code that walks it need not check again.

mod load;
mod name;
mod rewrite;
mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use base::failure::{Position, Range, SourceExcerpt};
use base::progress::Group;
use base::{Digest, Platform};
use prost::Message;
use proto::pb;

pub(crate) use load::platform;
pub use rewrite::Change;
pub use validate::validate;

/// A checked definition.
#[derive(Debug, Clone)]
pub struct Graph {
    vertices: Vec<Vertex>,
    result: Edge,
    source: Option<Arc<pb::Source>>,
}

/// An output of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// The vertex, as an index into [`Graph::vertices`].
    pub vertex: usize,
    /// Which of its outputs.
    pub output: usize,
}

/// An operation with its inputs.
#[derive(Debug, Clone)]
pub struct Vertex {
    /// Its name to clients: of its bytes, or what a [`Change`] made of it.
    pub digest: Digest,
    /// Of its bytes as they came: the key of metadata and source locations.
    pub received: Digest,
    /// What to do.
    pub op: pb::op::Op,
    /// The serialised operation.
    pub bytes: Arc<[u8]>,
    /// What it needs, in the order that indices in the operation mean. Each
    /// vertex comes before this one.
    pub inputs: Vec<Edge>,
    /// What it is made for, normalised; this machine's where none was given.
    pub platform: Platform,
    /// Which workers may do it.
    pub constraints: Vec<String>,
    /// What is known of it beside its digest.
    pub meta: Meta,
    name: String,
}

/// What is known of a vertex beside its digest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meta {
    /// Do it again even when its result is known.
    pub ignore_cache: bool,
    /// For people and frontends.
    pub description: BTreeMap<String, String>,
    /// Whether its result goes into an exported cache; the build decides without.
    pub export_cache: Option<bool>,
    /// Vertices to be shown as one.
    pub group: Option<Group>,
    /// Limits of its process; of exec only.
    pub linux_resources: Option<pb::LinuxResources>,
}

impl Graph {
    /// Decodes and checks a definition.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn load(definition: &pb::Definition) -> Result<Self, crate::Error> {
        load::load(definition)
    }

    /// What the result needs, inputs first.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// The vertex an edge of this graph leads from.
    pub fn vertex(&self, edge: Edge) -> Option<&Vertex> {
        self.vertices.get(edge.vertex)
    }

    /// What the definition is there for.
    pub fn result(&self) -> Edge {
        self.result
    }

    /// Where in the author's files `vertex` was written, by its digest or the
    /// digest it was received with.
    pub fn excerpts(&self, vertex: &Digest) -> Vec<SourceExcerpt> {
        let Some(source) = &self.source else { return Vec::new() };
        let received = self.vertices.iter().find(|v| v.digest == *vertex).map_or(vertex, |v| &v.received);
        let Some(locations) = source.locations.get(received.as_str()) else { return Vec::new() };
        locations
            .locations
            .iter()
            .filter_map(|location| {
                let info = source.infos.get(usize::try_from(location.source_index).ok()?)?;
                Some(SourceExcerpt { ranges: ranges(&location.ranges), ..excerpt(info) })
            })
            .collect()
    }
}

/// A source file without places in it.
pub fn excerpt(info: &pb::SourceInfo) -> SourceExcerpt {
    SourceExcerpt {
        filename: info.filename.clone(),
        language: info.language.clone(),
        data: info.data.clone(),
        definition: info.definition.as_ref().map(Message::encode_to_vec),
        ranges: Vec::new(),
    }
}

fn ranges(ranges: &[pb::Range]) -> Vec<Range> {
    let position = |p: Option<pb::Position>| {
        let p = p.unwrap_or_default();
        Position { line: p.line, character: p.character }
    };
    ranges.iter().map(|r| Range { start: position(r.start), end: position(r.end) }).collect()
}

impl Vertex {
    /// What people see: the name its author gave it, or one made from what it does.
    pub fn name(&self) -> &str {
        self.meta.description.get(crate::attr::CUSTOM_NAME).map_or(&self.name, String::as_str)
    }

    /// How many outputs it has.
    pub fn outputs(&self) -> usize {
        validate::outputs(&self.op)
    }
}
