//! Runs builds.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::progress::{Event, Sink, Vertex};
use base::task::Scope;
use base::{Digest, Failure, Kind, Timestamp};
use export::Exporter;
use frontend::gateway::{CacheImport, FrontendResult, Gateway as _, Options, Solve};
use ops::{BuildValues, Entitlement, Entitlements, Output, Results, Worker};
use parking_lot::Mutex;
use solver::{Job, KeyIndex, ResultStore as _, Solver};
use tokio::sync::watch;

use crate::bridge::{Bridge, Frontends};
use crate::caches::{self, Exports};
use crate::{Error, ExporterSpec, Follower, History, Record, Recorder, Request};

/// What is said about this daemon's one worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerInfo {
    /// Its name, the same for as long as its root directory lives.
    pub id: String,
    /// For people and clients that look for something.
    pub labels: BTreeMap<String, String>,
}

/// What a builder needs.
pub struct Deps {
    /// What operations share.
    pub worker: Arc<Worker>,
    /// Decides what runs.
    pub solver: Solver<Output>,
    /// The solver's memory.
    pub keys: Arc<dyn KeyIndex>,
    /// What exporters share.
    pub exporters: export::Deps,
    /// What builds may be allowed to do beyond the sandbox.
    pub allowed: BTreeSet<Entitlement>,
    /// Which frontends there are.
    pub frontends: Frontends,
    /// What is said about the worker.
    pub info: WorkerInfo,
    /// Builds that ended.
    pub history: History,
    /// Turns progress into the bytes that the history keeps.
    pub encode: fn(Vec<Event>) -> Vec<u8>,
    /// Owns every build.
    pub scope: Scope,
}

/// Runs builds. One per daemon.
pub struct Builder {
    deps: Deps,
    builds: Mutex<HashMap<String, Build>>,
    /// Told whenever a build begins.
    begun: watch::Sender<()>,
    /// Told whenever a build has ended.
    ended: watch::Sender<()>,
    draining: AtomicBool,
}

/// A build that runs, or ended a moment ago.
#[derive(Clone)]
struct Build {
    recorder: Recorder,
    /// While it runs and the client is its own frontend.
    bridge: Option<Bridge>,
    running: bool,
}

/// How long a client may ask for a build before it has begun.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long progress of a build that ended can be read without the history.
const AFTERGLOW: Duration = Duration::from_secs(10);

impl Builder {
    /// A builder.
    pub fn new(deps: Deps) -> Arc<Self> {
        let (begun, ended) = (watch::Sender::new(()), watch::Sender::new(()));
        Arc::new(Self { deps, builds: Mutex::default(), begun, ended, draining: AtomicBool::new(false) })
    }

    /// What builds share.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.deps.worker
    }

    /// What is said about the worker.
    pub fn info(&self) -> &WorkerInfo {
        &self.deps.info
    }

    /// Builds that ended.
    pub fn history(&self) -> &History {
        &self.deps.history
    }

    /// The daemon's scope.
    pub fn scope(&self) -> &Scope {
        &self.deps.scope
    }

    /// How many builds run.
    pub fn running(&self) -> usize {
        self.builds.lock().values().filter(|b| b.running).count()
    }

    /// Forgets the keys of results that were pruned.
    ///
    /// # Errors
    /// Those of the index.
    pub fn forget_pruned(&self) -> Result<(), Failure> {
        let results = Results::new(self.worker().refs.clone(), self.worker().images.clone());
        let forgotten = solver::sweep(&*self.deps.keys, |id| results.exists(id))?;
        tracing::debug!(forgotten, "keys without results");
        Ok(())
    }

    /// Changes whenever a build has begun.
    pub fn begun(&self) -> watch::Receiver<()> {
        self.begun.subscribe()
    }

    /// Changes whenever a build has ended.
    pub fn ended(&self) -> watch::Receiver<()> {
        self.ended.subscribe()
    }

    /// Waits until no build runs.
    pub async fn idle(&self) {
        let mut ended = self.ended();
        while self.running() > 0 && ended.changed().await.is_ok() {}
    }

    /// Refuses builds from now on, with an error that says to try again.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The gateway of a build whose client is its own frontend. Waits a moment
    /// for a build that has not begun.
    ///
    /// # Errors
    /// When there is no such build.
    pub async fn bridge(&self, id: &str) -> Result<Bridge, Failure> {
        self.wait(id, |build| build.bridge.clone()).await
    }

    /// The progress of a build, from its beginning. Waits a moment for a build
    /// that has not begun.
    ///
    /// # Errors
    /// When there is no such build, or it ended long ago: see the history.
    pub async fn progress(&self, id: &str) -> Result<Follower, Failure> {
        self.wait(id, |build| Some(build.recorder.follow())).await
    }

    async fn wait<T>(&self, id: &str, pick: impl Fn(&Build) -> Option<T>) -> Result<T, Failure> {
        let mut begun = self.begun.subscribe();
        let find = async {
            loop {
                if let Some(found) = self.builds.lock().get(id).and_then(&pick) {
                    return Ok(found);
                }
                if begun.changed().await.is_err() {
                    return Err(Failure::canceled("shutting down"));
                }
            }
        };
        match tokio::time::timeout(PATIENCE, find).await {
            Ok(found) => found,
            Err(_) => Err(Error::UnknownJob(id.to_owned()).into()),
        }
    }

    /// Runs a build and answers with what its exporters say. Cancelling `scope`
    /// cancels it with the same cause.
    ///
    /// # Errors
    /// Whatever went wrong first.
    pub async fn build(
        self: &Arc<Self>,
        request: Request,
        scope: &Scope,
    ) -> Result<BTreeMap<String, String>, Failure> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::ShuttingDown.into());
        }
        let recorder = Recorder::default();
        let begun = self.begin(&request, &recorder);
        let Begun { values, exporters, caches, job } =
            begun.inspect_err(|_| self.stillborn(&request.id, &recorder))?;
        let options = self.options(&request);
        let bridge = Bridge::new(
            self.deps.worker.clone(),
            job,
            values.clone(),
            recorder.sink(),
            self.deps.frontends.clone(),
            options,
            request.inputs.clone(),
        );
        let own_frontend = request.frontend.is_empty() && request.definition.is_none();
        let build =
            Build { recorder: recorder.clone(), bridge: own_frontend.then(|| bridge.clone()), running: true };
        self.builds.lock().insert(request.id.clone(), build);
        self.begun.send_replace(());
        let mut record = Record::begin(&request.id, &request.frontend, &request.attrs, &request.exporters);
        if !request.internal {
            self.deps.history.start(record.clone());
        }

        let sink = recorder.sink();
        for import in &request.cache_imports {
            bridge.imports().begin(&import.kind, &import.attrs);
        }
        let work = self.work(&request, &bridge, &sink, values, exporters, caches, scope);
        let outcome = scope.run(work).await;

        let cause = match &outcome {
            Ok(_) => Failure::canceled("the build has ended"),
            Err(e) => e.clone(),
        };
        bridge.leave(cause).await;
        recorder.close();
        record.completed = Some(Timestamp::now());
        record.count(recorder.counts());
        let (outcome, pins) = match outcome {
            Ok(done) => {
                record.results = done.results;
                record.response = done.response.clone();
                (Ok(done.response), done.pins)
            }
            Err(e) => (Err(e), Vec::new()),
        };
        if let Err(e) = &outcome {
            record.error = Some((e.kind() as i32, e.to_string()));
        }
        self.end(record, &recorder, request.internal).await;
        drop(pins);
        outcome
    }

    fn begin(&self, request: &Request, recorder: &Recorder) -> Result<Begun, Failure> {
        let values = Arc::new(self.check(request)?);
        let exporters = self.exporters(&request.exporters)?;
        let caches = caches::wanted(&request.cache_exports, &request.session)?;
        let job = self.deps.solver.job(&request.id, recorder.sink(), values.clone())?;
        Ok(Begun { values, exporters, caches, job })
    }

    /// Ends the progress of a build that never began, for clients that ask for
    /// it at the same time and would wait.
    fn stillborn(self: &Arc<Self>, id: &str, recorder: &Recorder) {
        recorder.close();
        let build = Build { recorder: recorder.clone(), bridge: None, running: false };
        // A build that runs under this name keeps it.
        if let Entry::Vacant(place) = self.builds.lock().entry(id.to_owned()) {
            place.insert(build);
            self.begun.send_replace(());
            self.fade(id.to_owned());
        }
    }

    /// What the request may do, if it may be done at all.
    fn check(&self, request: &Request) -> Result<BuildValues, Failure> {
        if request.id.is_empty() {
            return Err(Error::NoRef.into());
        }
        let mut entitlements = Entitlements::default();
        for text in &request.entitlements {
            let entitlement = entitlements.grant(text)?;
            if !self.deps.allowed.contains(&entitlement) {
                return Err(Error::Entitlement(entitlement).into());
            }
        }
        Ok(BuildValues { session: request.session.clone(), entitlements })
    }

    fn exporters(&self, specs: &[ExporterSpec]) -> Result<Vec<Box<dyn Exporter>>, Failure> {
        let resolve = |(id, spec): (i64, &ExporterSpec)| {
            Ok(export::resolve(&spec.kind, id, spec.attrs.clone(), self.deps.exporters.clone())?)
        };
        (0..).zip(specs).map(resolve).collect()
    }

    fn options(&self, request: &Request) -> Options {
        crate::capabilities::options(&self.deps, &request.session, request.attrs.clone())
    }

    #[allow(clippy::too_many_arguments)] // the parts of one build
    async fn work(
        &self,
        request: &Request,
        bridge: &Bridge,
        sink: &Sink,
        values: Arc<BuildValues>,
        exporters: Vec<Box<dyn Exporter>>,
        caches: remotecache::Exports,
        scope: &Scope,
    ) -> Result<Done, Failure> {
        let result = match (&request.definition, request.frontend.as_str()) {
            (None, "") => bridge.finished().await?,
            (Some(definition), "") => {
                let imports = request.cache_imports.iter();
                let imports = imports.map(|i| CacheImport { kind: i.kind.clone(), attrs: i.attrs.clone() });
                let solve = Solve::definition(definition.clone());
                bridge.solve(Solve { cache_imports: imports.collect(), ..solve }).await?
            }
            (_, name) => {
                let solve = Solve::frontend(name, request.attrs.clone(), request.inputs.clone());
                bridge.solve(solve).await?
            }
        };
        let source = bridge.resolve(&result).await?;
        let made = bridge.made(&result).await?;
        let remote = Exports::new(bridge.imports(), self.deps.keys.clone(), values, &request.id, scope);
        let mut done = Done { response: frontend_response(&result), ..Done::default() };
        let access = self.deps.worker.images.access(std::slice::from_ref(&request.session));
        let (source, access) = (&source, &access);
        let sites = exporters.iter().map(|exporter| {
            let digest = Digest::of(format!("{}-export-{}", request.session, exporter.id()));
            let inline = caches.inline.then(|| remote.inline(&made, digest.clone()) as Arc<_>);
            let cx = export::Context {
                session: request.session.clone(),
                build: request.id.clone(),
                access: access.clone(),
                inline_cache: inline,
                compatibility: export::CURRENT_COMPATIBILITY,
                progress: sink.vertex(digest.clone()),
                scope: scope.clone(),
            };
            (exporter, Step::begin(sink, digest, exporter.name()), cx)
        });
        // Each is one step to people, and two to us: what leaves the machine for
        // good leaves when all of them have succeeded.
        let work = sites.map(|(exporter, step, cx)| async move {
            match exporter.export(source, &cx).await {
                Ok(exported) => Ok((exporter.id(), step, exported)),
                Err(e) => step.end(Err(e)),
            }
        });
        let exported = futures_util::future::try_join_all(work).await?;
        let work = exported.into_iter().map(|(id, step, mut exported)| async move {
            let finalized = match exported.finalize.take() {
                Some(finalize) => finalize.await,
                None => Ok(()),
            };
            step.end(finalized).map(|()| (id, exported))
        });
        let work = futures_util::future::try_join_all(work);
        let (exported, told) = tokio::try_join!(work, remote.write(&caches.exporters, &made))?;
        done.response.extend(told);
        for (id, exported) in exported {
            done.response.extend(exported.response);
            done.results.extend(exported.descriptor.map(|d| (id, d)));
            done.pins.extend(exported.pins);
        }
        Ok(done)
    }

    /// Keeps what is to be known of a build that ended.
    async fn end(self: &Arc<Self>, record: Record, recorder: &Recorder, internal: bool) {
        let id = record.id.clone();
        if let Some(build) = self.builds.lock().get_mut(&id) {
            build.bridge = None;
            build.running = false;
        }
        self.ended.send_replace(());
        if !internal {
            let mut events = Vec::new();
            let mut all = recorder.follow();
            while let Some(batch) = all.next().await {
                events.extend(batch);
            }
            if let Err(error) = self.deps.history.complete(record, (self.deps.encode)(events)).await {
                tracing::error!(%error, id, "keep the history of a build");
            }
        }
        self.fade(id);
    }

    /// Forgets the progress of a build that has ended, after a while.
    fn fade(self: &Arc<Self>, id: String) {
        let this = self.clone();
        self.deps.scope.spawn(async move {
            tokio::select! {
                _ = this.deps.scope.cancelled() => {}
                () = tokio::time::sleep(AFTERGLOW) => {}
            }
            let mut builds = this.builds.lock();
            if builds.get(&id).is_some_and(|b| !b.running) {
                builds.remove(&id);
            }
        });
    }
}

/// The parts of a build.
struct Begun {
    values: Arc<BuildValues>,
    exporters: Vec<Box<dyn Exporter>>,
    caches: remotecache::Exports,
    job: Job<Output>,
}

/// What came out.
#[derive(Default)]
struct Done {
    response: BTreeMap<String, String>,
    results: BTreeMap<i64, base::Descriptor>,
    /// Keeps the results' blobs until the history holds them.
    pins: Vec<store::Pin>,
}

/// What of a frontend's metadata the client gets to see.
fn frontend_response(result: &FrontendResult) -> BTreeMap<String, String> {
    let ours = result.metadata.iter().filter(|(key, _)| key.starts_with("frontend."));
    ours.map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned())).collect()
}

/// Shows `work` to people as a step.
pub(crate) async fn step<T>(
    sink: &Sink,
    digest: Digest,
    name: String,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let step = Step::begin(sink, digest, name);
    step.end(work.await)
}

/// A step that has begun. One that never ends is ended with its build.
pub(crate) struct Step {
    sink: Sink,
    vertex: Vertex,
}

impl Step {
    pub(crate) fn begin(sink: &Sink, digest: Digest, name: String) -> Self {
        let vertex = Vertex {
            digest,
            inputs: Vec::new(),
            name,
            cached: false,
            started: Some(Timestamp::now()),
            completed: None,
            error: String::new(),
            group: None,
        };
        sink.send(Event::Vertex(vertex.clone()));
        Self { sink: sink.clone(), vertex }
    }

    pub(crate) fn end<T>(mut self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        self.vertex.completed = Some(Timestamp::now());
        if let Err(e) = &outcome {
            let canceled = e.kind() == Kind::Canceled;
            self.vertex.error = if canceled { "context canceled".to_owned() } else { e.to_string() };
        }
        self.sink.send(Event::Vertex(self.vertex));
        outcome
    }
}
