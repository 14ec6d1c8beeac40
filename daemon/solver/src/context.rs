//! What an operation is given besides its inputs.

use std::any::Any;
use std::sync::Arc;

use base::Failure;
use base::progress::VertexSink;
use base::task::Scope;

use crate::audience::Audience;
use crate::error::Error;
use crate::graph::{Edge, Graph};
use crate::solver::{Handle, Solved};

/// A job, as an operation sees it.
#[derive(Clone)]
pub struct JobValues {
    /// The job's identifier.
    pub id: Arc<str>,
    /// What the owner of the job attached to it.
    pub values: Arc<dyn Any + Send + Sync>,
}

/// The surroundings of one call of an operation.
pub struct OpContext<R> {
    /// Cancelled when the last job that wanted the outcome left, with its cause.
    pub scope: Scope,
    /// Goes to every interested job, also to those that come later.
    pub progress: VertexSink,
    audience: Arc<Audience>,
    solver: Option<Handle<R>>,
}

impl<R: Clone + Send + Sync + 'static> OpContext<R> {
    /// A context outside a solver, for whoever calls an operation himself.
    /// [`Self::build`] does not work in it.
    pub fn alone(scope: Scope, progress: VertexSink, jobs: Vec<JobValues>) -> Self {
        let audience = Audience::fixed(progress.digest().clone(), jobs);
        Self { scope, progress, audience, solver: None }
    }

    pub(crate) fn new(scope: Scope, audience: Arc<Audience>, solver: Handle<R>) -> Self {
        let progress = audience.sink().vertex(audience.digest().clone());
        Self { scope, progress, audience, solver: Some(solver) }
    }

    /// The jobs that want the outcome at this moment, in no particular order.
    /// May change while the operation runs, may be empty just before it is
    /// cancelled.
    pub fn jobs(&self) -> Vec<JobValues> {
        self.audience.jobs()
    }

    /// What is attached to the jobs, where it is a `T`.
    pub fn values<T: Send + Sync + 'static>(&self) -> Vec<Arc<T>> {
        self.jobs().into_iter().filter_map(|job| job.values.downcast::<T>().ok()).collect()
    }

    /// Builds something on behalf of the jobs that want this operation, as long
    /// as any of them does.
    ///
    /// # Errors
    /// Those of the build.
    pub async fn build(&self, graph: Graph<R>, edge: Edge) -> Result<Solved<R>, Failure> {
        let Some(solver) = &self.solver else { return Err(Error::Closed.into()) };
        solver.nested(&self.scope, &self.audience)?.build(graph, edge).await
    }
}
