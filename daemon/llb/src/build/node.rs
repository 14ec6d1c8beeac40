//! The vertices of a graph in the making.

use std::fmt;
use std::sync::{Arc, OnceLock};

use base::Platform;
use proto::pb;

use super::exec::ExecNode;
use super::file::FileNode;
use super::state::State;

/// What every vertex may say beside what it does.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What it is made for.
    pub platform: Option<Platform>,
    /// Which workers may do it.
    pub filters: Vec<String>,
    /// Metadata: name, cache, progress group, limits, capabilities.
    pub meta: pb::OpMetadata,
    /// Makes a local source without a session unique.
    pub local_unique_id: String,
    /// Where its author wrote it.
    pub locations: Vec<SourceLocation>,
}

impl Options {
    /// Nothing special.
    pub fn new() -> Self {
        Self::default()
    }

    /// Made for `platform`.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// Called `name`.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        self.description(crate::attr::CUSTOM_NAME, name)
    }

    /// Described by `key`.
    #[must_use]
    pub fn description(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.meta.description.insert(key.into(), value.into());
        self
    }

    /// Done again even when its result is known.
    #[must_use]
    pub fn ignore_cache(mut self) -> Self {
        self.meta.ignore_cache = true;
        self
    }

    /// Whether its result goes into an exported cache.
    #[must_use]
    pub fn export_cache(mut self, value: bool) -> Self {
        self.meta.export_cache = Some(pb::ExportCache { value });
        self
    }

    /// Shown together with others of the same id.
    #[must_use]
    pub fn group(mut self, id: impl Into<String>, name: impl Into<String>, weak: bool) -> Self {
        self.meta.progress_group = Some(pb::ProgressGroup { id: id.into(), name: name.into(), weak });
        self
    }

    /// With limits, for a process.
    #[must_use]
    pub fn linux_resources(mut self, resources: pb::LinuxResources) -> Self {
        self.meta.linux_resources = Some(resources);
        self
    }

    /// Written at `ranges` of `map`.
    #[must_use]
    pub fn location(mut self, map: &Arc<SourceMap>, ranges: Vec<pb::Range>) -> Self {
        self.locations.push(SourceLocation { map: Arc::clone(map), ranges });
        self
    }

    pub(super) fn cap(&mut self, id: &str) {
        self.meta.caps.insert(id.to_owned(), true);
    }
}

/// A file somebody wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceMap {
    /// Its name.
    pub filename: String,
    /// Its language, such as `Dockerfile`.
    pub language: String,
    /// All of it.
    pub data: Vec<u8>,
    /// How it was loaded.
    pub definition: Option<pb::Definition>,
}

/// Places in a file.
#[derive(Debug, Clone)]
pub struct SourceLocation {
    /// The file.
    pub map: Arc<SourceMap>,
    /// The places.
    pub ranges: Vec<pb::Range>,
}

/// An output of a vertex.
#[derive(Clone)]
pub enum Output {
    /// Of a vertex that is there.
    Of {
        /// The vertex.
        node: Arc<Node>,
        /// Which output.
        index: i64,
        /// What it is made for, when the vertex was told.
        platform: Option<Platform>,
    },
    /// Of a vertex that will be there when the graph is written.
    Later(Arc<Later>),
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of { index, .. } => write!(f, "Output({index})"),
            Self::Later(_) => f.write_str("Output(later)"),
        }
    }
}

/// A place for a state that is known only at the end, such as a context whose
/// paths are those that some instruction turns out to use.
#[derive(Debug, Default)]
pub struct Later(OnceLock<State>);

impl Later {
    /// Nothing is known yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// This is what it was to be. Only the first call counts.
    pub fn set(&self, state: State) {
        _ = self.0.set(state);
    }

    /// What it was to be.
    pub fn get(&self) -> Option<&State> {
        self.0.get()
    }
}

/// A vertex. Immutable; made by the calls of [`State`].
pub struct Node {
    pub(super) kind: NodeKind,
    pub(super) options: Options,
}

pub(super) enum NodeKind {
    Source {
        id: String,
        attrs: std::collections::BTreeMap<String, String>,
    },
    Exec(Box<ExecNode>),
    File(FileNode),
    Merge(Vec<Output>),
    Diff {
        lower: Option<Output>,
        upper: Option<Output>,
    },
    Passthrough {
        id: String,
        inputs: Vec<Output>,
        outputs: Vec<i64>,
    },
    /// From a definition that was received: written as it came.
    Received {
        bytes: Vec<u8>,
        meta: Option<pb::OpMetadata>,
        inputs: Vec<Output>,
    },
}

impl Node {
    pub(super) fn new(kind: NodeKind, options: Options) -> Arc<Self> {
        Arc::new(Self { kind, options })
    }

    /// What it needs, in the order in which the reference's client writes it.
    pub(super) fn inputs(&self) -> Vec<&Output> {
        match &self.kind {
            NodeKind::Source { .. } => Vec::new(),
            NodeKind::Exec(exec) => exec.inputs(),
            NodeKind::File(file) => file.inputs(),
            NodeKind::Merge(inputs)
            | NodeKind::Passthrough { inputs, .. }
            | NodeKind::Received { inputs, .. } => inputs.iter().collect(),
            NodeKind::Diff { lower, upper } => lower.iter().chain(upper).collect(),
        }
    }

    fn take_inputs(&mut self) -> Vec<Output> {
        match &mut self.kind {
            NodeKind::Source { .. } => Vec::new(),
            NodeKind::Exec(exec) => exec.take_inputs(),
            NodeKind::File(file) => file.take_inputs(),
            NodeKind::Merge(inputs)
            | NodeKind::Passthrough { inputs, .. }
            | NodeKind::Received { inputs, .. } => std::mem::take(inputs),
            NodeKind::Diff { lower, upper } => lower.take().into_iter().chain(upper.take()).collect(),
        }
    }
}

// A chain of vertices may be as long as a hostile Dockerfile: dropping it must
// not recurse once per vertex.
impl Drop for Node {
    fn drop(&mut self) {
        let mut pending = self.take_inputs();
        while let Some(output) = pending.pop() {
            if let Output::Of { node, .. } = output
                && let Some(mut node) = Arc::into_inner(node)
            {
                pending.extend(node.take_inputs());
            }
        }
    }
}
