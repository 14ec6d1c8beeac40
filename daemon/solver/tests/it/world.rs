//! Operations that do what a test tells them to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use base::progress::{Event, Report, Sink, Stream};
use base::task::Scope;
use base::{Digest, Failure};
use parking_lot::Mutex;
use solver::{
    CacheMap, Dep, Deps, Edge, Graph, Job, MemoryIndex, OpContext, Operation, ResultStore, Solver, Vertex,
};
use tokio::sync::Semaphore;

pub(crate) type Value = Arc<str>;

#[derive(Default)]
pub(crate) struct Results(Mutex<HashMap<String, Value>>);

impl Results {
    pub(crate) fn lose_all(&self) {
        self.0.lock().clear();
    }
}

#[async_trait]
impl ResultStore<Value> for Results {
    async fn save(&self, result: &Value) -> Result<String, Failure> {
        let id = base::id::fresh();
        self.0.lock().insert(id.clone(), result.clone());
        Ok(id)
    }

    async fn load(&self, id: &str, _: &OpContext<Value>) -> Result<Option<Value>, Failure> {
        Ok(self.0.lock().get(id).cloned())
    }

    fn exists(&self, id: &str) -> bool {
        self.0.lock().contains_key(id)
    }
}

/// What a run does.
#[derive(Clone, Default)]
pub(crate) enum Act {
    #[default]
    Work,
    /// Says so, and waits for a permit or its end.
    Wait(Arc<Gate>),
    Fail(&'static str),
    FailKey(&'static str),
    FailContent(&'static str),
    Panic,
    /// Builds something.
    Build(Later),
}

/// What to build; known when the graph is.
pub(crate) type Later = Arc<Mutex<Option<(Graph<Value>, Edge)>>>;

pub(crate) struct Gate {
    pub(crate) entered: Semaphore,
    pub(crate) open: Semaphore,
    pub(crate) cause: Mutex<Option<Failure>>,
    pub(crate) jobs: Mutex<Vec<String>>,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            entered: Semaphore::new(0),
            open: Semaphore::new(0),
            cause: Mutex::default(),
            jobs: Mutex::default(),
        })
    }

    pub(crate) async fn entered(&self) {
        self.entered.acquire().await.unwrap().forget();
    }

    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }
}

pub(crate) struct Op {
    name: String,
    content: bool,
    act: Act,
    pub(crate) runs: Arc<AtomicUsize>,
}

#[async_trait]
impl Operation<Value> for Op {
    async fn cache_map(&self, _: usize, _: &OpContext<Value>) -> Result<CacheMap, Failure> {
        if let Act::FailKey(text) = self.act {
            return Err(Failure::invalid(text));
        }
        let inputs = self.name.matches('<').count();
        let dep = Dep { content: self.content, ..Dep::default() };
        Ok(CacheMap { digest: Digest::of(&self.name).into(), deps: vec![dep; inputs], last: true })
    }

    async fn content_key(
        &self,
        _: usize,
        result: &Value,
        _: &OpContext<Value>,
    ) -> Result<Option<Digest>, Failure> {
        if let Act::FailContent(text) = self.act {
            return Err(Failure::invalid(text));
        }
        // Contents are what follows the colon.
        Ok(Some(Digest::of(result.rsplit(':').next().unwrap())))
    }

    async fn run(&self, inputs: Vec<Value>, cx: &OpContext<Value>) -> Result<Vec<Value>, Failure> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let mut made = format!("{}({})", self.name, inputs.join(","));
        match &self.act {
            Act::Work | Act::FailKey(_) | Act::FailContent(_) => {}
            Act::Wait(gate) => {
                cx.progress.log(Stream::Stdout, "working\n");
                gate.entered.add_permits(1);
                tokio::select! {
                    permit = gate.open.acquire() => permit.unwrap().forget(),
                    cause = cx.scope.cancelled() => {
                        *gate.cause.lock() = Some(cause.clone());
                        gate.entered.add_permits(1);
                        return Err(cause);
                    }
                }
                let mut jobs: Vec<String> = cx.jobs().iter().map(|j| j.id.to_string()).collect();
                jobs.sort();
                *gate.jobs.lock() = jobs;
            }
            Act::Fail(text) => return Err(Failure::invalid(*text)),
            Act::Panic => panic!("oh dear"),
            Act::Build(what) => {
                let (graph, edge) = what.lock().clone().unwrap();
                let solved = cx.build(graph, edge).await?;
                made = format!("{made}[{}]", solved.result);
            }
        }
        Ok(vec![made.into(), "second".into()])
    }
}

/// A graph in the making.
#[derive(Default)]
pub(crate) struct Plan {
    vertices: Vec<Vertex<Value>>,
    pub(crate) runs: Arc<AtomicUsize>,
}

impl Plan {
    pub(crate) fn add(&mut self, name: &str, inputs: &[&Edge]) -> Edge {
        self.act(name, inputs, Act::Work)
    }

    pub(crate) fn act(&mut self, name: &str, inputs: &[&Edge], act: Act) -> Edge {
        self.full(name, name, inputs, act, false)
    }

    /// `key` is what equal operations have in common.
    pub(crate) fn full(&mut self, name: &str, key: &str, inputs: &[&Edge], act: Act, content: bool) -> Edge {
        let inputs: Vec<Edge> = inputs.iter().map(|e| (*e).clone()).collect();
        let digest = Digest::of(format!("{name} {inputs:?}"));
        let key = format!("{key}{}", "<".repeat(inputs.len()));
        let op = Arc::new(Op { name: key, content, act, runs: self.runs.clone() });
        self.vertices.push(Vertex {
            digest: digest.clone(),
            name: name.into(),
            inputs,
            op,
            ignore_cache: false,
            export_cache: None,
            group: None,
            description: Default::default(),
        });
        Edge::new(digest, 0)
    }

    pub(crate) fn ignoring_cache(mut self) -> Self {
        for vertex in &mut self.vertices {
            vertex.ignore_cache = true;
        }
        self
    }

    pub(crate) fn check(self) -> Result<Graph<Value>, Failure> {
        Graph::new(self.vertices)
    }

    pub(crate) fn graph(self) -> Graph<Value> {
        self.check().unwrap()
    }
}

#[derive(Clone, Default)]
pub(crate) struct Ear(Arc<Mutex<Vec<Event>>>);

impl Report for Ear {
    fn report(&self, event: Event) {
        self.0.lock().push(event);
    }
}

impl Ear {
    /// Everything heard, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut names = HashMap::new();
        let events = self.0.lock().clone();
        for event in &events {
            if let Event::Vertex(v) = event {
                names.insert(v.digest.clone(), v.name.clone());
            }
        }
        let line = |event: &Event| match event {
            Event::Vertex(v) => {
                let what = match (v.started, v.completed) {
                    (None, _) => "planned",
                    (Some(_), None) => "started",
                    (Some(_), Some(_)) => "completed",
                };
                let cached = if v.cached { " cached" } else { "" };
                let error = if v.error.is_empty() { String::new() } else { format!(": {}", v.error) };
                format!("{} {what}{cached}{error}", v.name)
            }
            Event::Log(log) => {
                let name = names.get(&log.vertex).cloned().unwrap_or_else(|| "?".into());
                format!("{name} says {}", String::from_utf8_lossy(&log.data).trim_end())
            }
            other => format!("{other:?}"),
        };
        events.iter().map(line).collect()
    }
}

pub(crate) struct House {
    pub(crate) solver: Solver<Value>,
    pub(crate) results: Arc<Results>,
    pub(crate) scope: Scope,
}

impl House {
    pub(crate) fn new() -> Self {
        let (results, scope) = (Arc::new(Results::default()), Scope::root());
        let keys = Arc::new(MemoryIndex::new());
        let solver = Solver::new(Deps { keys, results: results.clone(), scope: scope.clone() });
        Self { solver, results, scope }
    }

    pub(crate) fn job(&self, id: &str) -> Job<Value> {
        self.solver.job(id, Sink::none(), Arc::new(())).unwrap()
    }

    pub(crate) fn heard(&self, id: &str) -> (Job<Value>, Ear) {
        let ear = Ear::default();
        (self.solver.job(id, Sink::new(ear.clone()), Arc::new(())).unwrap(), ear)
    }

    /// Nothing is left, and everything ends.
    pub(crate) async fn close(self) {
        let census = self.solver.census().await.unwrap();
        assert_eq!((census.jobs, census.vertices), (0, 0));
        self.scope.cancel(Failure::canceled("the end"));
        self.scope.close().await;
    }
}

pub(crate) async fn leave(job: Job<Value>) {
    job.leave(Failure::canceled("done")).await;
}
