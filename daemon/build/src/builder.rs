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
use frontend::gateway::Options;
use ops::{BuildValues, Entitlement, Entitlements, Output, Results, Worker};
use parking_lot::Mutex;
use solver::{Job, KeyIndex, ResultStore as _, Solver};
use tokio::sync::watch;

use crate::bridge::{self, Bridge, Frontends};
use crate::caches;
use crate::export_step::{Attest, Told, Work};
use crate::history::Kept;
use crate::policy::Policies;
use crate::provenance::Run;
use crate::provenance::asked::{Asked, Call};
use crate::provenance::producers::Producers;
use crate::traces::{Recording, Traces};
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
    /// Steps of all builds reach the network only through a proxy.
    pub proxy: bool,
    /// Which frontends there are.
    pub frontends: Frontends,
    /// What is said about the worker.
    pub info: WorkerInfo,
    /// Builds that ended.
    pub history: Arc<History>,
    /// What clients tell of their part in a build.
    pub traces: Traces,
    /// What provenance says of this daemon, by key.
    pub environment: serde_json::Map<String, serde_json::Value>,
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
    producers: Producers,
    environment: Arc<serde_json::Map<String, serde_json::Value>>,
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
    pub fn new(mut deps: Deps) -> Arc<Self> {
        let environment = Arc::new(std::mem::take(&mut deps.environment));
        Arc::new(Self {
            deps,
            builds: Mutex::default(),
            begun: watch::Sender::new(()),
            ended: watch::Sender::new(()),
            draining: AtomicBool::new(false),
            producers: Producers::default(),
            environment,
        })
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
    pub fn history(&self) -> &Arc<History> {
        &self.deps.history
    }

    /// What clients tell of their part in a build.
    pub fn traces(&self) -> &Traces {
        &self.deps.traces
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
        let request = built_in(request);
        let recorder = Recorder::default();
        let begun = self.begin(&request, &recorder);
        let Begun { values, policies, attest, exporters, caches, job } =
            begun.inspect_err(|_| self.stillborn(&request.id, &recorder))?;
        let options = self.options(&request);
        let (frontend, opts) = (request.frontend.clone(), request.attrs.clone());
        let call = Call { frontend, opts, inputs: request.inputs.clone() };
        let asked = Asked::client(call, self.producers.clone());
        let bridge = Bridge::new(&self.deps, job, values.clone(), policies, recorder.sink(), options, asked);
        let own_frontend = request.frontend.is_empty() && request.definition.is_none();
        let build =
            Build { recorder: recorder.clone(), bridge: own_frontend.then(|| bridge.clone()), running: true };
        self.builds.lock().insert(request.id.clone(), build);
        self.begun.send_replace(());
        let mut record = Record::begin(&request.id, &request.frontend, &request.attrs, &request.exporters);
        let trace = self.deps.traces.record(request.parent);
        if !request.internal {
            self.deps.history.start(record.clone());
        }

        let sink = recorder.sink();
        for import in &request.cache_imports {
            bridge.imports().begin(&import.kind, &import.attrs);
        }
        let run = Arc::new(Run::begin(self.environment.clone(), request.compatibility));
        let work = Work {
            builder: self,
            request: &request,
            bridge: &bridge,
            values,
            sink: &sink,
            scope,
            attest: &attest,
            caches: &caches,
            run: &run,
        };
        let (mut told, mut blobs) = (Told::default(), Vec::new());
        let outcome = scope.run(work.run(exporters, &mut told)).await;
        if !request.internal {
            blobs = work.record(&told, &mut record).await;
        }

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
                (Ok(done.response), done.pins)
            }
            Err(e) => (Err(e), Vec::new()),
        };
        let failure = outcome.as_ref().err().cloned();
        self.end(&request, record, &recorder, failure, trace, &mut blobs).await;
        drop((pins, blobs));
        outcome
    }

    fn begin(&self, request: &Request, recorder: &Recorder) -> Result<Begun, Failure> {
        let (values, policies) = self.check(request)?;
        let values = Arc::new(values);
        let attest = Attest::read(&request.attrs)?;
        let exporters = self.exporters(&request.exporters)?;
        let caches = caches::wanted(&request.cache_exports, &request.session)?;
        let job = self.deps.solver.job(&request.id, recorder.sink(), values.clone())?;
        Ok(Begun { values, policies, attest, exporters, caches, job })
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
    fn check(&self, request: &Request) -> Result<(BuildValues, Arc<Policies>), Failure> {
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
        let policies = Arc::new(Policies::new(request.policy.as_ref(), &request.policy_session)?);
        let values = BuildValues {
            session: request.session.clone(),
            entitlements,
            policy: Some(policies.clone()),
            proxy: request.proxy || self.deps.proxy,
            compatibility: request.compatibility,
            ..BuildValues::default()
        };
        Ok((values, policies))
    }

    fn exporters(&self, specs: &[ExporterSpec]) -> Result<Vec<Box<dyn Exporter>>, Failure> {
        (0..).zip(specs).map(|(id, spec)| self.exporter(id, &spec.kind, spec.attrs.clone())).collect()
    }

    /// The solver's memory.
    pub(crate) fn keys(&self) -> &Arc<dyn KeyIndex> {
        &self.deps.keys
    }

    pub(crate) fn exporter(
        &self,
        id: i64,
        kind: &str,
        attrs: BTreeMap<String, String>,
    ) -> Result<Box<dyn Exporter>, Failure> {
        Ok(export::resolve(kind, id, attrs, self.deps.exporters.clone())?)
    }

    fn options(&self, request: &Request) -> Options {
        crate::capabilities::options(&self.deps, &request.session, request.attrs.clone())
    }

    /// Keeps what is to be known of a build that ended. `blobs` keeps what the
    /// record names until it is written.
    async fn end(
        self: &Arc<Self>,
        request: &Request,
        mut record: Record,
        recorder: &Recorder,
        failure: Option<Failure>,
        trace: Recording,
        blobs: &mut Vec<Kept>,
    ) {
        let id = request.id.clone();
        if let Some(build) = self.builds.lock().get_mut(&id) {
            build.bridge = None;
            build.running = false;
        }
        self.ended.send_replace(());
        if !request.internal {
            let mut events = Vec::new();
            let mut all = recorder.follow();
            while let Some(batch) = all.next().await {
                events.extend(batch);
            }
            let history = &self.deps.history;
            let spans = crate::traces::spans(&trace, &record, &events, failure.as_ref());
            let finalizer = history.finalizer(&id);
            let kept = async || {
                let logs = history.keep(crate::history::LOGS, (self.deps.encode)(events)).await?;
                record.logs = Some(logs.descriptor.clone());
                blobs.push(logs);
                if let Some(failure) = failure {
                    blobs.push(history.keep_error(&mut record, &failure).await?);
                }
                history.complete(record).await
            };
            match kept().await {
                Ok(()) => {
                    let add = crate::record::trace(history.clone(), id.clone(), trace, spans, finalizer);
                    _ = self.deps.scope.spawn(add);
                }
                Err(error) => tracing::error!(%error, id, "keep the history of a build"),
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
    policies: Arc<Policies>,
    attest: Attest,
    exporters: Vec<Box<dyn Exporter>>,
    caches: remotecache::Exports,
    job: Job<Output>,
}

/// A request for the built-in frontend by the name of a frontend in a container,
/// as what it is. A context may stand for that container.
fn built_in(mut request: Request) -> Request {
    let asked = request.attrs.get("source").is_some_and(|source| source == bridge::BUILT_IN);
    if request.frontend == "gateway.v0" && asked && !bridge::replaced(bridge::BUILT_IN, &request.attrs) {
        bridge::BUILT_IN.clone_into(&mut request.frontend);
        request.attrs.remove("source");
    }
    request
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
