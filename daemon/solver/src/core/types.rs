//! Events, effects and the parts of the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{Digest, Failure};

use crate::graph::{CacheMap, KeyDigest};
use crate::index::{KeyId, Record};
use crate::keys::{Selected, Spec};
use crate::solver::Keys;

pub(crate) type NodeId = u64;
pub(crate) type JobId = u64;
pub(crate) type BuildId = u64;
pub(crate) type WorkId = u64;
pub(crate) type ResultId = u64;

/// An edge: output `output` of `node`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct At {
    pub(crate) node: NodeId,
    pub(crate) output: usize,
}

/// What happened.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A job wants an edge. `vertices` has the inputs before their consumers;
    /// `edge` and inputs are positions in it. `parent` runs the build, if it is
    /// a nested one.
    Submitted {
        build: BuildId,
        job: JobId,
        parent: Option<NodeId>,
        vertices: Vec<Submit>,
        edge: (usize, usize),
    },
    /// Nobody waits for a build any more.
    Withdrawn { build: BuildId, cause: Failure },
    /// A job is over.
    Left { job: JobId, cause: Failure },
    /// The index answered: the keys that each input leads to, and the results
    /// of those that all of them lead to.
    Probed { work: WorkId, found: Vec<BTreeSet<KeyId>>, records: Vec<Found> },
    /// An operation described a stage.
    Keyed { work: WorkId, map: CacheMap },
    /// An input's contents were named.
    ContentKeyed { work: WorkId, digest: Option<Digest> },
    /// A result was loaded; `None` when it is gone.
    Loaded { work: WorkId, result: Option<ResultId> },
    /// An operation ran.
    Ran { work: WorkId, results: Vec<ResultId> },
    /// A result was saved.
    Saved { work: WorkId, keys: Vec<KeyId>, record: Record },
    /// Work failed, or ended because it was cancelled.
    Failed { work: WorkId, failure: Failure },
}

/// A vertex of a request.
#[derive(Debug, Clone)]
pub(crate) struct Submit {
    pub(crate) digest: Digest,
    /// Position and output.
    pub(crate) inputs: Vec<(usize, usize)>,
    pub(crate) ignore_cache: bool,
    pub(crate) export: Option<bool>,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    /// Vertex number `index` of `build` is `node`; its operation is the node's
    /// when it is fresh.
    Adopt { build: BuildId, job: JobId, index: usize, node: NodeId, fresh: bool },
    /// Ask the index.
    Probe { work: WorkId, node: NodeId, probe: Probe },
    /// Ask the operation for stage `stage`.
    Key { work: WorkId, node: NodeId, stage: usize },
    /// Have the contents of an input named.
    ContentKey { work: WorkId, node: NodeId, input: usize, result: ResultId },
    /// Get a result back.
    Load { work: WorkId, node: NodeId, found: Found },
    /// Run the operation.
    Run { work: WorkId, node: NodeId, inputs: Vec<ResultId> },
    /// Save a result. Keys that have to be made take the first of `names`.
    Save { work: WorkId, result: ResultId, spec: Spec, names: Vec<KeyId>, from: Option<Found> },
    /// Work is not needed any more. It answers nevertheless, in its time.
    Cancel { work: WorkId, cause: Failure },
    /// `node` waits for the run of `host`.
    Join { node: NodeId, host: NodeId },
    /// It does so no longer.
    Part { node: NodeId, host: NodeId },
    /// Work on a vertex begins.
    Started { node: NodeId, cached: bool },
    /// Work on a vertex ended.
    Ended { node: NodeId, cached: bool, failure: Option<Failure> },
    /// A build is done.
    Finish { build: BuildId, outcome: Result<Outcome, Failure> },
    /// A result is not needed any more.
    Forget { result: ResultId },
    /// A job does not want a node any more.
    Release { node: NodeId, job: JobId },
    /// A node is gone.
    Drop { node: NodeId },
}

/// What a build gives.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) result: ResultId,
    pub(crate) keys: Arc<Keys>,
    pub(crate) nodes: Vec<NodeId>,
}

/// A question to the index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Probe {
    pub(crate) spec: Spec,
    /// Per input, keys that name it but find nothing.
    pub(crate) unseen: Vec<Vec<Selected>>,
    /// The last question before a run.
    pub(crate) last: bool,
}

/// A known result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) record: Record,
    /// The key that has it.
    pub(crate) key: KeyId,
    /// Where it was found; `None` for the solver's own index.
    pub(crate) source: Option<Arc<str>>,
}

/// How much is wanted of an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Want {
    #[default]
    Nothing,
    /// Keys that follow from definitions.
    Fast,
    /// All keys that can be known without its result.
    Slow,
    /// The result.
    Result,
}

/// How far the search for keys of an edge went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Level {
    #[default]
    Unknown,
    Fast,
    Slow,
}

/// One output of a node.
#[derive(Debug, Default)]
pub(crate) struct EdgeState {
    pub(crate) consumers: BTreeMap<At, Want>,
    pub(crate) builds: BTreeSet<BuildId>,
    pub(crate) level: Level,
    pub(crate) keys: Vec<KeyId>,
    /// The last question to the index, and whether it was answered.
    pub(crate) asked: Option<Probe>,
    pub(crate) answered: bool,
    /// Per input, the keys it leads to.
    pub(crate) found: Vec<BTreeSet<KeyId>>,
    /// Results of the keys all inputs lead to, the best first.
    pub(crate) records: Vec<Found>,
    /// Those that could not be loaded.
    pub(crate) bad: BTreeSet<Arc<str>>,
    pub(crate) needs: Needs,
    pub(crate) load: Option<(Work, Found)>,
    pub(crate) save: Option<WorkId>,
    /// What is being saved.
    pub(crate) pending: Option<ResultId>,
    pub(crate) result: Option<ResultId>,
    /// The stored form of the result.
    pub(crate) record: Option<Record>,
}

impl EdgeState {
    pub(crate) fn want(&self) -> Want {
        if !self.builds.is_empty() {
            return Want::Result;
        }
        self.consumers.values().copied().max().unwrap_or_default()
    }
}

/// What an edge needs besides other edges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Needs {
    /// The next stage.
    pub(crate) map: bool,
    /// Contents of inputs, by position.
    pub(crate) content: BTreeSet<usize>,
    pub(crate) load: Option<Found>,
    pub(crate) run: bool,
    pub(crate) save: bool,
}

/// Work under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) id: WorkId,
    /// It was cancelled but has not ended.
    pub(crate) dying: Dying,
}

/// Whether and why work was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dying {
    No,
    /// Somebody gave it up.
    GivenUp,
    /// A better result was found.
    Spared,
}

impl Work {
    pub(crate) fn new(id: WorkId) -> Self {
        Self { id, dying: Dying::No }
    }

    pub(crate) fn is_dying(self) -> bool {
        self.dying != Dying::No
    }
}

/// A vertex that is wanted.
#[derive(Debug)]
pub(crate) struct NodeState {
    pub(crate) key: NodeKey,
    pub(crate) inputs: Vec<At>,
    pub(crate) export: Option<bool>,
    pub(crate) jobs: BTreeSet<JobId>,
    pub(crate) maps: Vec<CacheMap>,
    pub(crate) last_map: bool,
    pub(crate) map_work: Option<Work>,
    pub(crate) content: Vec<Content>,
    pub(crate) run: Run,
    /// Nodes that wait for the run of this one.
    pub(crate) joined: BTreeSet<NodeId>,
    pub(crate) edges: BTreeMap<usize, EdgeState>,
}

impl NodeState {
    pub(crate) fn ignores_cache(&self) -> bool {
        self.key.ignore_cache
    }

    pub(crate) fn digests(&self) -> Vec<KeyDigest> {
        self.maps.iter().map(|m| m.digest.clone()).collect()
    }
}

/// What makes two vertices one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeKey {
    pub(crate) digest: Digest,
    pub(crate) inputs: Vec<At>,
    pub(crate) ignore_cache: bool,
}

/// The contents of an input.
#[derive(Debug, Clone, Default)]
pub(crate) enum Content {
    #[default]
    Unknown,
    Underway(Work),
    Known(Option<Digest>),
}

/// The run of a node.
#[derive(Debug, Default)]
pub(crate) enum Run {
    #[default]
    Idle,
    Underway(Work),
    /// Waits for that of another node.
    Joined(NodeId),
    Done(Vec<ResultId>),
}

/// A job.
#[derive(Debug, Default)]
pub(crate) struct Job {
    /// The node whose run it serves.
    pub(crate) parent: Option<NodeId>,
    pub(crate) builds: BTreeSet<BuildId>,
    pub(crate) nodes: BTreeSet<NodeId>,
}

/// Whom work is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Map(NodeId),
    Content(NodeId, usize),
    Load(At),
    Run(NodeId),
    Save(At),
    /// Of a node that is gone.
    Orphan,
}
