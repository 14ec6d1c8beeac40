//! The front: solver, jobs and what a build gives.

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base::progress::Sink;
use base::task::Scope;
use base::{Digest, Failure};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::audience::{Audience, Who};
use crate::context::JobValues;
use crate::driver::Driver;
use crate::error::Error;
use crate::graph::{Edge, Graph, KeyDigest, Operation};
use crate::index::{KeyId, KeyIndex, Record, ResultStore};
use crate::stream::Stream;

/// What a solver needs.
pub struct Deps<R> {
    /// Keys of everything that was built before.
    pub keys: Arc<dyn KeyIndex>,
    /// Results of everything that was built before.
    pub results: Arc<dyn ResultStore<R>>,
    /// Owns the solver's task and all work. Cancelling it cancels every job.
    pub scope: Scope,
}

/// Builds graphs. Clones are the same solver.
pub struct Solver<R>(Handle<R>);

impl<R> Clone for Solver<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A way to speak to the solver's task.
pub(crate) struct Handle<R>(Arc<Shared<R>>);

impl<R> Clone for Handle<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<R> {
    commands: mpsc::Sender<Command<R>>,
    scope: Scope,
    jobs: Mutex<HashSet<Arc<str>>>,
    last_id: AtomicU64,
}

/// What the solver's task is asked to do.
pub(crate) enum Command<R> {
    /// Build something.
    Build(Build<R>),
    /// Nobody waits for a build any more.
    Withdraw { build: u64, cause: Failure },
    /// A job is over.
    Leave { job: Arc<JobInner>, cause: Failure, done: oneshot::Sender<()> },
    /// Say how much there is.
    Census { reply: oneshot::Sender<Census> },
}

/// A request to build something.
pub(crate) struct Build<R> {
    pub(crate) id: u64,
    pub(crate) job: Arc<JobInner>,
    pub(crate) graph: Graph<R>,
    pub(crate) edge: Edge,
    pub(crate) reply: oneshot::Sender<Result<Solved<R>, Failure>>,
}

/// A job, as the solver's task knows it.
pub(crate) struct JobInner {
    pub(crate) id: u64,
    pub(crate) who: Who,
    pub(crate) stream: Arc<Stream>,
    ended: AtomicBool,
}

impl JobInner {
    /// The node whose run this job serves.
    pub(crate) fn parent(&self) -> Option<u64> {
        match &self.who {
            Who::Job(_) => None,
            Who::Those(audience) => Some(audience.node()),
        }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.stream.end();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

/// How much a solver has in hand. All is zero when there is no job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Jobs that built something.
    pub jobs: usize,
    /// Vertices they want.
    pub vertices: usize,
    /// Calls of operations and stores under way.
    pub tasks: usize,
}

impl<R: Clone + Send + Sync + 'static> Solver<R> {
    /// Starts a solver.
    pub fn new(deps: Deps<R>) -> Self {
        let (commands, inbox) = mpsc::channel(64);
        let scope = deps.scope.clone();
        let shared =
            Shared { commands, scope: scope.clone(), jobs: Mutex::default(), last_id: AtomicU64::new(0) };
        let handle = Handle(Arc::new(shared));
        let driver = Driver::run(handle.clone(), scope.clone(), deps.keys, deps.results, inbox);
        scope.spawn(driver);
        Self(handle)
    }

    /// Begins a job. Its progress goes to `sink`; its operations see `values`.
    ///
    /// # Errors
    /// When there is a job of this identifier.
    pub fn job(&self, id: &str, sink: Sink, values: Arc<dyn Any + Send + Sync>) -> Result<Job<R>, Failure> {
        let id: Arc<str> = id.into();
        if !self.0.0.jobs.lock().insert(id.clone()) {
            return Err(Error::JobExists { id: id.to_string() }.into());
        }
        let who = Who::Job(JobValues { id: id.clone(), values });
        Ok(self.0.start(Some(id), sink, who, &self.0.0.scope))
    }

    /// How much there is to do.
    ///
    /// # Errors
    /// When the solver is shut down.
    pub async fn census(&self) -> Result<Census, Failure> {
        let (reply, answer) = oneshot::channel();
        self.0.0.commands.send(Command::Census { reply }).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed.into())
    }
}

impl<R: Clone + Send + Sync + 'static> Handle<R> {
    /// A job on behalf of those who wait for a vertex.
    pub(crate) fn nested(&self, scope: &Scope, audience: &Arc<Audience>) -> Result<Job<R>, Failure> {
        scope.check()?;
        Ok(self.start(None, audience.sink(), Who::Those(audience.clone()), scope))
    }

    /// A number nothing else has.
    pub(crate) fn fresh(&self) -> u64 {
        self.0.last_id.fetch_add(1, Ordering::Relaxed)
    }

    fn start(&self, name: Option<Arc<str>>, sink: Sink, who: Who, scope: &Scope) -> Job<R> {
        let inner = Arc::new(JobInner {
            id: self.fresh(),
            who,
            stream: Stream::new(sink),
            ended: AtomicBool::new(false),
        });
        let scope = scope.child();
        let (gone, left) = oneshot::channel();
        let (handle, job, watched) = (self.clone(), inner.clone(), scope.clone());
        self.0.scope.spawn(async move {
            let cause = watched.cancelled().await;
            let (done, confirmed) = oneshot::channel();
            let leave = Command::Leave { job: job.clone(), cause, done };
            if handle.0.commands.send(leave).await.is_ok() {
                _ = confirmed.await;
            }
            job.end();
            if let Some(name) = name {
                handle.0.jobs.lock().remove(&name);
            }
            _ = gone.send(());
        });
        Job { handle: self.clone(), inner, scope, left: tokio::sync::Mutex::new(Some(left)) }
    }
}

/// One build as the client sees it: any number of graphs, solved one after
/// another or at once. What it built stays known until it is left or dropped.
pub struct Job<R> {
    handle: Handle<R>,
    inner: Arc<JobInner>,
    scope: Scope,
    left: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
}

impl<R: Clone + Send + Sync + 'static> Job<R> {
    /// Builds `edge` of `graph`. Dropping the future gives the build up.
    ///
    /// # Errors
    /// That of the first vertex that failed, with [`base::Detail::Vertex`]; or
    /// the cause for which the job was left.
    pub async fn build(&self, graph: Graph<R>, edge: Edge) -> Result<Solved<R>, Failure> {
        self.scope.check()?;
        let (reply, answer) = oneshot::channel();
        let id = self.handle.fresh();
        let build = Build { id, job: self.inner.clone(), graph, edge, reply };
        let shared = &self.handle.0;
        shared.commands.send(Command::Build(build)).await.map_err(|_| Error::Closed)?;
        // Cancelled on every way out of here; the solver ignores it when the
        // build is done.
        let waiting = Waiting(self.scope.child());
        let (watched, commands) = (waiting.0.clone(), shared.commands.clone());
        shared.scope.spawn(async move {
            let cause = watched.cancelled().await;
            _ = commands.send(Command::Withdraw { build: id, cause }).await;
        });
        answer.await.unwrap_or_else(|_| Err(Error::Closed.into()))
    }

    /// Ends the job: gives up what only it wanted, for `cause`, and waits until
    /// the solver knows nothing of it any more.
    pub async fn leave(&self, cause: Failure) {
        self.scope.cancel(cause);
        // Whoever comes second waits here until it is done.
        let mut left = self.left.lock().await;
        if let Some(gone) = left.take() {
            _ = gone.await;
        }
    }

    /// Cancelled when the job is left. Children of it end with the job.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
}

impl<R> Drop for Job<R> {
    fn drop(&mut self) {
        self.scope.cancel(Failure::canceled("context canceled"));
    }
}

struct Waiting(Scope);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.cancel(Failure::canceled("context canceled"));
    }
}

/// What came out of a build.
pub struct Solved<R> {
    /// The result.
    pub result: R,
    /// How the result is keyed, for the export of caches.
    pub keys: Arc<Keys>,
    /// Every vertex below the result, inputs first, with the operation that
    /// keyed and ran it: that of the first who asked for an equal vertex.
    pub vertices: Vec<(Digest, Arc<dyn Operation<R>>)>,
}

/// The keys of a result and of all it is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Every key, inputs before consumers.
    pub nodes: Vec<KeyNode>,
    /// The keys of the result itself, by position in `nodes`.
    pub roots: Vec<usize>,
}

/// A key and its surroundings, as far as this build got to know them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyNode {
    /// Its names in the solver's index. Empty when nothing is stored under it.
    pub ids: Vec<KeyId>,
    /// What is done.
    pub digest: KeyDigest,
    /// Which output; -1 for the contents of an input.
    pub output: i64,
    /// The vertex; `None` for the contents of an input.
    pub vertex: Option<Digest>,
    /// What the vertex says about being exported.
    pub export: Option<bool>,
    /// Per input, the keys it is known by.
    pub deps: Vec<Vec<KeyUse>>,
    /// Known results, the newest first.
    pub results: Vec<KeyResult>,
}

/// A result of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyResult {
    /// The result.
    pub record: Record,
    /// The further source it was found in, [`crate::Source::id`]; `None` for the
    /// solver's own store.
    pub source: Option<Arc<str>>,
}

/// A key as the input of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// Position in [`Keys::nodes`].
    pub node: usize,
    /// Which part of it matters.
    pub selector: Option<Digest>,
}
