//! The remote caches of one build: read while it begins, written at its end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base::progress::Sink;
use base::task::Scope;
use base::{Digest, Failure};
use ops::{BuildValues, Output, Results, Worker};
use parking_lot::Mutex;
use remotecache::{Context, Deps, Exporter, Imported, Inline, Known};
use solver::{JobValues, KeyIndex, OpContext, Solved, Source};
use tokio::sync::watch;

use crate::CacheEntry;
use crate::builder::{Step, step};

/// Results of a build; without a name when there is only one.
pub(crate) type Made = Vec<(Option<String>, Arc<Solved<Output>>)>;

fn deps(worker: &Worker) -> Deps {
    Deps {
        store: worker.refs.store().clone(),
        refs: worker.refs.clone(),
        images: worker.images.clone(),
        sessions: worker.sessions.clone(),
    }
}

fn context(worker: &Worker, session: &str) -> Context {
    let access = worker.images.access(&[session.to_owned()]);
    Context { session: session.to_owned(), access }
}

/// The caches a build looks in. Each is read once, beside everything else.
pub(crate) struct Imports {
    worker: Arc<Worker>,
    session: String,
    sink: Sink,
    scope: Scope,
    known: Mutex<BTreeMap<String, Import>>,
}

/// A cache that is being read. The inner none: it cannot be.
#[derive(Clone)]
pub(crate) struct Import {
    id: Arc<str>,
    read: watch::Receiver<Option<Option<Arc<Imported>>>>,
}

impl Imports {
    /// Of a build that ends with `scope`.
    pub(crate) fn new(worker: Arc<Worker>, session: String, sink: Sink, scope: Scope) -> Self {
        Self { worker, session, sink, scope, known: Mutex::default() }
    }

    /// Begins to read a cache, unless that was done.
    pub(crate) fn begin(&self, kind: &str, attrs: &BTreeMap<String, String>) -> Import {
        let name = remotecache::id(kind, attrs);
        let mut known = self.known.lock();
        if let Some(import) = known.get(&name) {
            return import.clone();
        }
        let (done, read) = watch::channel(None);
        // What a name stands for may change between builds.
        let import = Import { id: format!("{name} {}", base::id::fresh()).into(), read };
        let (kind, attrs) = (kind.to_owned(), attrs.clone());
        let (deps, context) = (deps(&self.worker), context(&self.worker, &self.session));
        let (sink, scope) = (self.sink.clone(), self.scope.clone());
        let title = format!("importing cache manifest from {name}");
        self.scope.spawn(async move {
            let digest = Digest::of(&title);
            let progress = sink.vertex(digest.clone());
            let work = scope.run(remotecache::import(&kind, &attrs, &deps, &context, &progress));
            // A cache that cannot be read never fails a build; people see why.
            let read = step(&sink, digest, title, work).await;
            if let Err(failure) = &read {
                tracing::debug!(%failure, "import cache");
            }
            done.send_replace(Some(read.ok().map(Arc::new)));
        });
        known.insert(name, import.clone());
        import
    }

    /// Those that were read, by the names of their sources.
    fn there(&self) -> HashMap<Arc<str>, Arc<Imported>> {
        let known = self.known.lock();
        let there = known.values().filter_map(|i| Some((i.id.clone(), i.read.borrow().clone().flatten()?)));
        there.collect()
    }
}

impl Import {
    /// A place to look in, as soon as it was read; none if it cannot be.
    pub(crate) async fn source(&self) -> Option<Source<Output>> {
        let mut read = self.read.clone();
        let imported = read.wait_for(Option::is_some).await.ok()?.clone().flatten()?;
        Some(Source { id: self.id.clone(), keys: imported.clone(), results: imported })
    }
}

/// The caches a build leaves behind.
pub(crate) struct Exports {
    worker: Arc<Worker>,
    values: Arc<BuildValues>,
    build: Arc<str>,
    known: Known,
    sink: Sink,
    scope: Scope,
}

impl Exports {
    /// Of a build with these imports.
    pub(crate) fn new(
        imports: &Imports,
        keys: Arc<dyn KeyIndex>,
        values: Arc<BuildValues>,
        build: &str,
        scope: &Scope,
    ) -> Self {
        let worker = imports.worker.clone();
        let results = Arc::new(Results::new(worker.refs.clone(), worker.images.clone()));
        let known = Known { keys, results, imports: imports.there() };
        let (sink, scope) = (imports.sink.clone(), scope.clone());
        Self { worker, values, build: build.into(), known, sink, scope }
    }

    fn operation(&self, vertex: Digest) -> OpContext<Output> {
        let jobs = vec![JobValues { id: self.build.clone(), values: self.values.clone() }];
        OpContext::alone(self.scope.child(), self.sink.vertex(vertex), jobs)
    }

    /// What images exported as step `vertex` are to be told.
    pub(crate) fn inline(&self, made: &Made, vertex: Digest) -> Arc<Inline> {
        Arc::new(Inline { known: self.known.clone(), results: made.clone(), context: self.operation(vertex) })
    }

    /// Writes all caches at once. What the client is told.
    pub(crate) async fn write(
        &self,
        exporters: &[Exporter],
        made: &Made,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let session = &self.values.session;
        let keys: Vec<_> = made.iter().map(|(_, solved)| solved.keys.clone()).collect();
        let (deps, context) = (deps(&self.worker), context(&self.worker, session));
        let (keys, deps, context) = (&keys, &deps, &context);
        let work = exporters.iter().enumerate().map(|(at, exporter)| async move {
            let digest = Digest::of(format!("{session}-cache-{at}"));
            let op = self.operation(digest.clone());
            let shown = Step::begin(&self.sink, digest, exporter.name().to_owned());
            let work = exporter.export(keys, &self.known, deps, context, &op);
            let outcome = shown.end(self.scope.run(work).await);
            match outcome {
                Err(failure) if exporter.ignores_errors() && !self.scope.is_cancelled() => {
                    tracing::warn!(%failure, "export cache");
                    Ok(BTreeMap::new())
                }
                outcome => outcome,
            }
        });
        let all = futures_util::future::try_join_all(work).await?;
        Ok(all.into_iter().flatten().collect())
    }
}

/// What is to be written.
///
/// # Errors
/// A type nobody knows, or attributes that make no sense.
pub(crate) fn wanted(entries: &[CacheEntry], session: &str) -> Result<remotecache::Exports, Failure> {
    remotecache::exports(entries.iter().map(|e| (e.kind.as_str(), &e.attrs)), session)
}
