//! The one task that owns the core: feeds it events and performs its effects.
//!
//! It never waits for anything but its inboxes. Questions to the index are
//! answered on the spot; everything an operation or a store does runs in a task
//! of its own and reports back.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use base::task::Scope;
use base::{Digest, Failure, Timestamp};
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use crate::audience::{Audience, Listener, Who};
use crate::context::OpContext;
use crate::core::{BuildId, Core, Effect, Event, Found, JobId, NodeId, Probe, ResultId, Submit, WorkId};
use crate::error::Error;
use crate::graph::{CacheMap, Operation, Vertex};
use crate::index::{KeyId, KeyIndex, Record, ResultStore, Source};
use crate::keys::{self, Spec};
use crate::lookup;
use crate::solver::{Build, Census, Command, Handle, JobInner, Solved};
use crate::views::Views;

/// The task's state.
pub(crate) struct Driver<R> {
    core: Core,
    events: VecDeque<Event>,
    handle: Handle<R>,
    scope: Scope,
    keys: Arc<dyn KeyIndex>,
    stored: Arc<dyn ResultStore<R>>,
    nodes: HashMap<NodeId, Node<R>>,
    jobs: HashMap<JobId, Arc<JobInner>>,
    views: Views,
    builds: HashMap<BuildId, Asked<R>>,
    works: HashMap<WorkId, Scope>,
    saves: HashMap<WorkId, Saving>,
    results: HashMap<ResultId, R>,
    last_result: ResultId,
    done: mpsc::Sender<Done<R>>,
}

struct Node<R> {
    digest: Digest,
    op: Arc<dyn Operation<R>>,
    audience: Arc<Audience>,
    sources: Vec<Source<R>>,
}

/// A build that is waited for.
struct Asked<R> {
    job: Arc<JobInner>,
    vertices: Vec<Arc<Vertex<R>>>,
    sources: Vec<Source<R>>,
    /// As they are adopted.
    nodes: HashMap<Digest, NodeId>,
    reply: oneshot::Sender<Result<Solved<R>, Failure>>,
}

struct Saving {
    spec: Spec,
    names: Vec<KeyId>,
    created: Option<Timestamp>,
}

/// What a task of work reports.
pub(crate) struct Done<R> {
    work: WorkId,
    yielded: Result<Yield<R>, Failure>,
}

enum Yield<R> {
    Key(CacheMap),
    Content(Option<Digest>),
    Loaded(Option<R>),
    Ran(Vec<R>),
    Saved(String),
}

impl<R: Clone + Send + Sync + 'static> Driver<R> {
    /// Runs until `scope` is cancelled and every job is over.
    pub(crate) async fn run(
        handle: Handle<R>,
        scope: Scope,
        keys: Arc<dyn KeyIndex>,
        stored: Arc<dyn ResultStore<R>>,
        mut inbox: mpsc::Receiver<Command<R>>,
    ) {
        let (done, mut reports) = mpsc::channel(64);
        let mut driver = Self {
            core: Core::default(),
            events: VecDeque::new(),
            handle,
            scope: scope.clone(),
            keys,
            stored,
            nodes: HashMap::new(),
            jobs: HashMap::new(),
            views: Views::default(),
            builds: HashMap::new(),
            works: HashMap::new(),
            saves: HashMap::new(),
            results: HashMap::new(),
            last_result: 0,
            done,
        };
        let mut ending = false;
        while !(ending && driver.is_idle()) {
            tokio::select! {
                biased;
                Some(report) = reports.recv() => driver.report(report),
                Some(command) = inbox.recv() => driver.command(command),
                _ = scope.cancelled(), if !ending => ending = true,
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.core.is_empty() && self.works.is_empty()
    }

    fn command(&mut self, command: Command<R>) {
        match command {
            Command::Build(build) => self.build(build),
            Command::Withdraw { build, cause } => self.step(Event::Withdrawn { build, cause }),
            Command::Leave { job, cause, done } => {
                self.step(Event::Left { job: job.id, cause });
                self.jobs.remove(&job.id);
                job.end();
                _ = done.send(());
            }
            Command::Census { reply } => {
                let census =
                    Census { jobs: self.jobs.len(), vertices: self.nodes.len(), tasks: self.works.len() };
                _ = reply.send(census);
            }
        }
    }

    fn build(&mut self, build: Build<R>) {
        let Build { id, job, graph, edge, reply } = build;
        if job.has_ended() {
            _ = reply.send(Err(Failure::canceled("context canceled")));
            return;
        }
        let vertices = match graph.below(&edge) {
            Ok(vertices) => vertices,
            Err(failure) => {
                _ = reply.send(Err(failure));
                return;
            }
        };
        let at: HashMap<&Digest, usize> = vertices.iter().enumerate().map(|(i, v)| (&v.digest, i)).collect();
        // `below` is closed under inputs and has the inputs first.
        let position = |digest: &Digest| at.get(digest).copied().unwrap_or(usize::MAX);
        let submit = |v: &Arc<Vertex<R>>| Submit {
            digest: v.digest.clone(),
            inputs: v.inputs.iter().map(|e| (position(&e.vertex), e.output)).collect(),
            ignore_cache: v.ignore_cache,
            export: v.export_cache,
        };
        let event = Event::Submitted {
            build: id,
            job: job.id,
            parent: job.parent(),
            vertices: vertices.iter().map(submit).collect(),
            edge: (position(&edge.vertex), edge.output),
        };
        self.jobs.insert(job.id, job.clone());
        let sources = graph.sources().to_vec();
        self.builds.insert(id, Asked { job, vertices, sources, nodes: HashMap::new(), reply });
        self.step(event);
    }

    fn report(&mut self, done: Done<R>) {
        let Done { work, yielded } = done;
        self.works.remove(&work);
        let event = match yielded {
            Ok(Yield::Key(map)) => Event::Keyed { work, map },
            Ok(Yield::Content(digest)) => Event::ContentKeyed { work, digest },
            Ok(Yield::Loaded(result)) => Event::Loaded { work, result: result.map(|r| self.keep(r)) },
            Ok(Yield::Ran(results)) => {
                Event::Ran { work, results: results.into_iter().map(|r| self.keep(r)).collect() }
            }
            Ok(Yield::Saved(id)) => self.commit(work, &id),
            Err(failure) => Event::Failed { work, failure },
        };
        self.saves.remove(&work);
        self.step(event);
    }

    fn keep(&mut self, result: R) -> ResultId {
        self.last_result += 1;
        self.results.insert(self.last_result, result);
        self.last_result
    }

    fn commit(&mut self, work: WorkId, id: &str) -> Event {
        let Some(saving) = self.saves.remove(&work) else {
            return Event::Failed { work, failure: Failure::internal("saved what was not asked for") };
        };
        let record = Record { id: id.into(), created: saving.created.unwrap_or_else(Timestamp::now) };
        match keys::commit(&*self.keys, &saving.spec, &saving.names, &record) {
            Ok(keys) => Event::Saved { work, keys, record },
            Err(failure) => Event::Failed { work, failure: failure.context("save cache key") },
        }
    }

    fn step(&mut self, event: Event) {
        self.events.push_back(event);
        let mut effects = Vec::new();
        while let Some(event) = self.events.pop_front() {
            self.core.step(event, &mut effects);
            for effect in effects.drain(..) {
                self.perform(effect);
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Adopt { build, job, index, node, fresh } => self.adopt(build, job, index, node, fresh),
            Effect::Probe { work, node, probe } => {
                let (found, records) = self.probe(node, &probe);
                self.events.push_back(Event::Probed { work, found, records });
            }
            Effect::Key { work, node, stage } => {
                let Some((op, cx)) = self.prepare(work, node) else { return };
                self.spawn(work, async move { op.cache_map(stage, &cx).await.map(Yield::Key) });
            }
            Effect::ContentKey { work, node, input, result } => {
                let Some((op, cx)) = self.prepare(work, node) else { return };
                let Some(result) = self.results.get(&result).cloned() else { return self.lost(work) };
                self.spawn(
                    work,
                    async move { op.content_key(input, &result, &cx).await.map(Yield::Content) },
                );
            }
            Effect::Load { work, node, found } => self.load(work, node, &found),
            Effect::Run { work, node, inputs } => {
                let Some((op, cx)) = self.prepare(work, node) else { return };
                let inputs: Option<Vec<R>> = inputs.iter().map(|id| self.results.get(id).cloned()).collect();
                let Some(inputs) = inputs else { return self.lost(work) };
                self.spawn(work, async move { op.run(inputs, &cx).await.map(Yield::Ran) });
            }
            Effect::Save { work, result, spec, names, from } => {
                let Some(result) = self.results.get(&result).cloned() else { return self.lost(work) };
                self.works.insert(work, self.scope.child());
                let created = from.map(|found| found.record.created);
                self.saves.insert(work, Saving { spec, names, created });
                let stored = self.stored.clone();
                self.spawn(work, async move { stored.save(&result).await.map(Yield::Saved) });
            }
            Effect::Cancel { work, cause } => {
                if let Some(scope) = self.works.get(&work) {
                    scope.cancel(cause);
                }
            }
            Effect::Join { node, host } => {
                let (Some(node), Some(host)) = (self.nodes.get(&node), self.nodes.get(&host)) else { return };
                host.audience.join(Listener {
                    id: listener(node.audience.node()),
                    digest: node.digest.clone(),
                    sink: node.audience.sink(),
                    who: Who::Those(node.audience.clone()),
                });
            }
            Effect::Part { node, host } => {
                if let Some(host) = self.nodes.get(&host) {
                    host.audience.leave(listener(node));
                }
            }
            Effect::Started { node, cached } => self.views.started(node, cached),
            Effect::Ended { node, cached, failure } => self.views.ended(node, cached, failure.as_ref()),
            Effect::Finish { build, outcome } => {
                let Some(asked) = self.builds.remove(&build) else { return };
                let solved = outcome.and_then(|outcome| {
                    let lost = || Failure::internal("a result was lost");
                    let result = self.results.get(&outcome.result).cloned().ok_or_else(lost)?;
                    let vertex = |id: &NodeId| self.nodes.get(id).map(|n| (n.digest.clone(), n.op.clone()));
                    let vertices = outcome.nodes.iter().filter_map(vertex).collect();
                    Ok(Solved { result, keys: outcome.keys, vertices })
                });
                _ = asked.reply.send(solved);
            }
            Effect::Forget { result } => {
                self.results.remove(&result);
            }
            Effect::Release { node, job } => {
                if let Some(node) = self.nodes.get(&node) {
                    node.audience.leave(job);
                }
                self.views.release(node, job);
            }
            Effect::Drop { node } => {
                self.nodes.remove(&node);
                self.views.forget(node);
            }
        }
    }

    fn adopt(&mut self, build: BuildId, job: JobId, index: usize, node: NodeId, fresh: bool) {
        let Some(asked) = self.builds.get_mut(&build) else { return };
        let Some(vertex) = asked.vertices.get(index) else { return };
        asked.nodes.insert(vertex.digest.clone(), node);
        if fresh {
            let audience = Audience::new(node, vertex.digest.clone());
            let (digest, op) = (vertex.digest.clone(), vertex.op.clone());
            self.nodes.insert(node, Node { digest, op, audience, sources: Vec::new() });
        }
        let Some(state) = self.nodes.get_mut(&node) else { return };
        for source in &asked.sources {
            if !state.sources.iter().any(|known| known.id == source.id) {
                state.sources.push(source.clone());
            }
        }
        let inputs: Vec<NodeId> =
            vertex.inputs.iter().filter_map(|e| asked.nodes.get(&e.vertex).copied()).collect();
        if let Some(digest) = self.views.adopt(node, &asked.job, vertex, &inputs) {
            state.audience.join(Listener {
                id: job,
                digest,
                sink: asked.job.stream.sink(),
                who: asked.job.who.clone(),
            });
        }
    }

    fn probe(&self, node: NodeId, probe: &Probe) -> (Vec<BTreeSet<KeyId>>, Vec<Found>) {
        let sources = self.nodes.get(&node).map(|n| n.sources.as_slice()).unwrap_or_default();
        lookup::probe(&*self.keys, &*self.stored, sources, probe).unwrap_or_else(|failure| {
            // Work is done again rather than not at all.
            tracing::warn!(%failure, "looking up keys");
            (vec![BTreeSet::new(); probe.spec.deps.len().max(1)], Vec::new())
        })
    }

    fn load(&mut self, work: WorkId, node: NodeId, found: &Found) {
        let Some((_, cx)) = self.prepare(work, node) else { return };
        let elsewhere = found.source.as_ref().and_then(|id| {
            let node = self.nodes.get(&node)?;
            node.sources.iter().find(|source| source.id == *id).map(|source| source.results.clone())
        });
        let store = elsewhere.unwrap_or_else(|| self.stored.clone());
        let id = found.record.id.clone();
        self.spawn(work, async move {
            let loaded = store.load(&id, &cx).await;
            if let Err(failure) = &loaded {
                tracing::debug!(%failure, %id, "loading a known result");
            }
            loaded.map(Yield::Loaded)
        });
    }

    fn prepare(&mut self, work: WorkId, node: NodeId) -> Option<(Arc<dyn Operation<R>>, OpContext<R>)> {
        let Some(node) = self.nodes.get(&node) else {
            self.lost(work);
            return None;
        };
        let scope = self.scope.child();
        self.works.insert(work, scope.clone());
        Some((node.op.clone(), OpContext::new(scope, node.audience.clone(), self.handle.clone())))
    }

    fn lost(&mut self, work: WorkId) {
        self.works.remove(&work);
        let failure = Failure::internal("the solver lost track of a result");
        self.events.push_back(Event::Failed { work, failure });
    }

    fn spawn(&self, work: WorkId, task: impl Future<Output = Result<Yield<R>, Failure>> + Send + 'static) {
        let done = self.done.clone();
        self.scope.spawn(async move {
            let yielded = AssertUnwindSafe(task).catch_unwind().await.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
                let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                Err(Error::Panicked { message }.into())
            });
            _ = done.send(Done { work, yielded }).await;
        });
    }
}

/// Nodes listen to nodes under numbers that no job has.
fn listener(node: NodeId) -> u64 {
    node | 1 << 63
}
