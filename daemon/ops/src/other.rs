//! The small operations: merge, diff, passthrough and build.

use std::sync::Arc;

use async_trait::async_trait;
use base::{Digest, Failure};
use prost::Message as _;
use proto::pb;
use refs::NewRef;
use solver::{CacheMap, Edge, Operation};
use sys::path::Root;

use crate::keyed::Keyed;
use crate::{Behalf, Cx, Entitlements, Error, Output, Worker};

/// Trees laid over each other.
pub(crate) struct MergeOp {
    worker: Arc<Worker>,
    op: pb::MergeOp,
    keyed: Keyed,
}

impl MergeOp {
    pub(crate) fn new(worker: Arc<Worker>, vertex: &llb::Vertex, op: &pb::MergeOp) -> Result<Self, Failure> {
        Ok(Self { worker, op: op.clone(), keyed: Keyed::new(vertex, false)? })
    }
}

#[async_trait]
impl Operation<Output> for MergeOp {
    async fn cache_map(&self, _: usize, _: &Cx) -> Result<CacheMap, Failure> {
        Ok(self.keyed.cache_map())
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, inputs: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let mut trees = Vec::new();
        for input in &self.op.inputs {
            let Ok(at) = usize::try_from(input.input) else { continue };
            trees.extend(inputs.get(at).ok_or(Error::Input(input.input))?.clone());
        }
        if trees.is_empty() {
            return Ok(vec![None]);
        }
        let new = NewRef { description: "merge".to_owned(), ..NewRef::default() };
        Ok(vec![Some(cx.scope.run(self.worker.refs.merge(&trees, new)).await?)])
    }
}

/// What one tree has and another has not.
pub(crate) struct DiffOp {
    worker: Arc<Worker>,
    op: pb::DiffOp,
    keyed: Keyed,
}

impl DiffOp {
    pub(crate) fn new(worker: Arc<Worker>, vertex: &llb::Vertex, op: &pb::DiffOp) -> Result<Self, Failure> {
        Ok(Self { worker, op: *op, keyed: Keyed::new(vertex, false)? })
    }
}

#[async_trait]
impl Operation<Output> for DiffOp {
    async fn cache_map(&self, _: usize, _: &Cx) -> Result<CacheMap, Failure> {
        Ok(self.keyed.cache_map())
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, inputs: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let pick = |input: i64| match usize::try_from(input) {
            Ok(at) => inputs.get(at).cloned().ok_or(Error::Input(input)),
            Err(_) => Ok(None),
        };
        let lower = pick(self.op.lower.as_ref().map_or(-1, |l| l.input))?;
        let upper = pick(self.op.upper.as_ref().map_or(-1, |u| u.input))?;
        let same = lower.as_ref().map(refs::Ref::id) == upper.as_ref().map(refs::Ref::id);
        if same {
            return Ok(vec![None]);
        }
        let new = NewRef { description: "diff".to_owned(), ..NewRef::default() };
        let made = self.worker.refs.diff(lower.as_ref(), upper.as_ref(), new);
        Ok(vec![Some(cx.scope.run(made).await?)])
    }
}

/// Its inputs under another name.
pub(crate) struct PassthroughOp {
    op: pb::PassthroughOp,
    keyed: Keyed,
}

impl PassthroughOp {
    pub(crate) fn new(vertex: &llb::Vertex, op: &pb::PassthroughOp) -> Result<Self, Failure> {
        Ok(Self { op: op.clone(), keyed: Keyed::new(vertex, false)? })
    }
}

#[async_trait]
impl Operation<Output> for PassthroughOp {
    async fn cache_map(&self, _: usize, _: &Cx) -> Result<CacheMap, Failure> {
        Ok(self.keyed.cache_map())
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, inputs: Vec<Output>, _: &Cx) -> Result<Vec<Output>, Failure> {
        let pick = |at: &i64| {
            let found = usize::try_from(*at).ok().and_then(|at| inputs.get(at));
            found.cloned().ok_or_else(|| Error::Input(*at).into())
        };
        self.op.outputs.iter().map(pick).collect()
    }
}

/// A build whose definition is a file in a result.
pub(crate) struct BuildOp {
    worker: Arc<Worker>,
    op: pb::BuildOp,
    keyed: Keyed,
}

/// The input with the definition, and the file in it unless an attribute names another.
const DEFINITION_INPUT: &str = "buildkit.llb.definition";
/// More than any definition needs.
const MAX_DEFINITION: u64 = 64 << 20;

impl BuildOp {
    pub(crate) fn new(worker: Arc<Worker>, vertex: &llb::Vertex, op: &pb::BuildOp) -> Result<Self, Failure> {
        if op.builder != -1 {
            return Err(Error::Unsupported { what: format!("builder {}", op.builder) }.into());
        }
        Ok(Self { worker, op: op.clone(), keyed: Keyed::new(vertex, false)? })
    }
}

#[async_trait]
impl Operation<Output> for BuildOp {
    async fn cache_map(&self, _: usize, _: &Cx) -> Result<CacheMap, Failure> {
        Ok(self.keyed.cache_map())
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, inputs: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let missing = || Failure::invalid(format!("no {DEFINITION_INPUT} input found"));
        let input = self.op.inputs.get(DEFINITION_INPUT).ok_or_else(missing)?.input;
        let at = usize::try_from(input).map_err(|_| Error::Input(input))?;
        let tree = inputs.get(at).ok_or(Error::Input(input))?.clone().ok_or_else(missing)?;
        let name = self.op.attrs.get(llb::attr::DEFINITION_FILENAME).map_or(DEFINITION_INPUT, String::as_str);
        let mounted = tree.mount().await?;
        let file = name.to_owned();
        let bytes = base::task::blocking(move || {
            use std::io::Read as _;
            let mut bytes = Vec::new();
            let file_error = |e| sys::Error::new("read", &file, e);
            let opened = Root::open(mounted.path())?.open_read(&file)?;
            opened.take(MAX_DEFINITION).read_to_end(&mut bytes).map_err(file_error)?;
            Ok(bytes)
        })
        .await?;
        let definition = pb::Definition::decode(&bytes[..])
            .map_err(|e| Failure::invalid(format!("failed to parse LLB definition {name}: {e}")))?;
        let mut nested = llb::Graph::load(&definition)?;
        let behalf = Behalf::of(cx);
        for policy in behalf.builds.iter().filter_map(|build| build.policy.as_ref()) {
            nested = policy.apply(nested, &self.worker, &behalf).await?;
        }
        let proxy = behalf.builds.iter().any(|build| build.proxy);
        if proxy {
            nested = crate::proxied(&nested)?;
        }
        let result = nested.result();
        let vertex = nested.vertex(result).ok_or_else(missing)?.digest.clone();
        let mut entitlements = Entitlements::default();
        behalf.builds.iter().for_each(|build| entitlements.join(&build.entitlements));
        let graph = crate::graph(&self.worker, &nested, &entitlements, proxy)?;
        Ok(vec![cx.build(graph, Edge::new(vertex, result.output)).await?.result])
    }
}
