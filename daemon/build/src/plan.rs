//! A definition that may be built, and the errors that point into its source.

use std::sync::Arc;

use base::{Detail, Digest, Failure};
use ops::{BuildValues, Output, Worker};
use proto::pb;
use solver::{Edge, Graph, Job, Solved};
use tokio::sync::OnceCell;

use crate::caches::Import;

/// A definition, planned. Built when somebody needs it, once.
pub(crate) struct Plan {
    /// As it came.
    pub(crate) definition: Arc<pb::Definition>,
    llb: llb::Graph,
    graph: Graph<Output>,
    edge: Edge,
    worker: Arc<Worker>,
    imports: Vec<Import>,
    solved: OnceCell<Result<Arc<Solved<Output>>, Failure>>,
}

impl Plan {
    /// Plans `llb`, which is `definition` after its sources were looked at.
    pub(crate) fn new(
        worker: &Arc<Worker>,
        values: &BuildValues,
        definition: &pb::Definition,
        llb: llb::Graph,
        imports: Vec<Import>,
    ) -> Result<Self, Failure> {
        let graph =
            ops::graph(worker, &llb, &values.entitlements, values.proxy).map_err(|e| locate(&llb, e))?;
        let result = llb.result();
        let vertex = llb.vertex(result).ok_or_else(|| Failure::invalid("invalid LLB: no result"))?;
        let edge = Edge::new(vertex.digest.clone(), result.output);
        Ok(Self {
            definition: Arc::new(definition.clone()),
            llb,
            graph,
            edge,
            worker: worker.clone(),
            imports,
            solved: OnceCell::new(),
        })
    }

    /// Builds it, unless that was done, well or not. An error tells which
    /// operation failed, and where in the source it stands.
    pub(crate) async fn build(&self, job: &Job<Output>) -> Result<Arc<Solved<Output>>, Failure> {
        let solve = async || {
            self.worker.prepare(&self.llb).await?;
            let mut sources = Vec::new();
            for import in &self.imports {
                sources.extend(job.scope().run(async { Ok(import.source().await) }).await?);
            }
            let graph = self.graph.clone().with_sources(sources);
            match job.build(graph, self.edge.clone()).await {
                Ok(solved) => Ok(Ok(Arc::new(solved))),
                // Who asks again may have more patience.
                Err(e) if e.is_canceled() => Err(e),
                Err(e) => Ok(Err(self.describe(e))),
            }
        };
        self.solved.get_or_try_init(solve).await.map_err(|e| locate(&self.llb, e))?.clone()
    }

    /// What it came to, if it was built.
    pub(crate) fn solved(&self) -> Option<&Arc<Solved<Output>>> {
        self.solved.get()?.as_ref().ok()
    }

    /// The digests of the vertices as they are built, each with the one it has in the
    /// definition. Policies, and a network that only leads to a proxy, change them.
    pub(crate) fn vertices(&self) -> impl Iterator<Item = (&Digest, &Digest)> {
        self.llb.vertices().iter().map(|vertex| (&vertex.digest, &vertex.received))
    }

    fn describe(&self, failure: Failure) -> Failure {
        let failure = locate(&self.llb, failure);
        let vertices = self.llb.vertices();
        let Some(vertex) = failed(&failure).and_then(|d| vertices.iter().find(|v| v.digest == *d)) else {
            return failure;
        };
        let (bytes, meta) = (vertex.bytes.to_vec(), &vertex.meta);
        let bare = Detail::Solve {
            inputs: Vec::new(),
            mounts: Vec::new(),
            op: Vec::new(),
            subject: None,
            description: Vec::new(),
        };
        failure.with(bare).amended(|detail| {
            if let Detail::Solve { op, description, .. } = detail
                && op.is_empty()
            {
                op.clone_from(&bytes);
                *description = meta.description.clone().into_iter().collect();
            }
        })
    }
}

/// The vertex that failed.
fn failed(failure: &Failure) -> Option<&Digest> {
    failure.details().iter().find_map(|d| match d {
        Detail::Vertex(digest) => Some(digest),
        _ => None,
    })
}

/// Says where in the author's files the vertex stands that failed: all places,
/// the one given last first. A failure that knows its places keeps them.
fn locate(llb: &llb::Graph, failure: Failure) -> Failure {
    if failure.details().iter().any(|d| matches!(d, Detail::Source(_))) {
        return failure;
    }
    let excerpts = failed(&failure).map(|digest| llb.excerpts(digest)).unwrap_or_default();
    excerpts.into_iter().rev().fold(failure, |failure, excerpt| failure.also(Detail::Source(excerpt)))
}
