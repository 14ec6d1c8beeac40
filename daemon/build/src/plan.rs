//! A definition that may be built, and the errors that point into its source.

use std::sync::Arc;

use base::{Detail, Failure};
use ops::{BuildValues, Output, Worker};
use proto::pb;
use solver::{Edge, Graph, Job, Solved};
use tokio::sync::OnceCell;

/// A definition, planned. Built when somebody needs it, once.
pub(crate) struct Plan {
    llb: llb::Graph,
    graph: Graph<Output>,
    edge: Edge,
    worker: Arc<Worker>,
    definition: pb::Definition,
    solved: OnceCell<Arc<Solved<Output>>>,
}

impl Plan {
    /// Checks `definition`. `None` for an empty one: scratch.
    pub(crate) fn new(
        worker: &Arc<Worker>,
        values: &BuildValues,
        definition: &pb::Definition,
    ) -> Result<Option<Self>, Failure> {
        if definition.def.is_empty() {
            return Ok(None);
        }
        let llb = llb::Graph::load(definition)?;
        let graph = ops::graph(worker, &llb, &values.entitlements).map_err(|e| locate(&llb, e))?;
        let result = llb.result();
        let vertex = llb.vertex(result).ok_or_else(|| Failure::invalid("invalid LLB: no result"))?;
        let edge = Edge::new(vertex.digest.clone(), result.output);
        Ok(Some(Self {
            llb,
            graph,
            edge,
            worker: worker.clone(),
            definition: definition.clone(),
            solved: OnceCell::new(),
        }))
    }

    /// As it was received, for those who build on it.
    pub(crate) fn definition(&self) -> &pb::Definition {
        &self.definition
    }

    /// Builds it, unless that was done. An error tells where in the source the
    /// vertex stands that failed.
    pub(crate) async fn build(&self, job: &Job<Output>) -> Result<Arc<Solved<Output>>, Failure> {
        let solved = self
            .solved
            .get_or_try_init(|| async {
                self.worker.prepare(&self.llb).await?;
                job.build(self.graph.clone(), self.edge.clone()).await.map(Arc::new)
            })
            .await;
        solved.cloned().map_err(|e| locate(&self.llb, e))
    }
}

/// Says where in the author's files the vertex stands that failed: all places,
/// the one given last first. A failure that knows its places keeps them.
fn locate(llb: &llb::Graph, failure: Failure) -> Failure {
    if failure.details().iter().any(|d| matches!(d, Detail::Source(_))) {
        return failure;
    }
    let vertex = failure.details().iter().find_map(|d| match d {
        Detail::Vertex(digest) => Some(digest.clone()),
        _ => None,
    });
    let excerpts = vertex.map(|digest| llb.excerpts(&digest)).unwrap_or_default();
    excerpts.into_iter().rev().fold(failure, |failure, excerpt| failure.also(Detail::Source(excerpt)))
}
