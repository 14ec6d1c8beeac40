//! What a frontend may ask, answered for one build.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use base::progress::{Event, Sink, VertexSink, Warning as ProgressWarning};
use base::reference::Reference;
use base::task::Scope;
use base::{Detail, Digest, Failure};
use frontend::gateway::{
    CacheImport, FileRange, FrontendResult, Gateway, Options, RefId, ResolveSource, Solve, SolveWhat,
    SourceMeta, Stat, Warning,
};
use ops::source::image::Wanted;
use ops::{Behalf, BuildValues, Kept, Output, Worker};
use parking_lot::Mutex;
use proto::moby::buildkit::v1::sourcepolicy::Policy;
use proto::pb;
use refs::Ref;
use solver::{Job, JobValues, Solved};
use tokio::sync::watch;

use crate::builder::{Deps, step};
use crate::caches::{Import, Imports};
use crate::containers::Containers;
use crate::external::check_allowed;
use crate::plan::Plan;
use crate::policy::Policies;
use crate::provenance::asked::{Asked, Call};
use crate::provenance::producers::Producers;
use crate::{Error, meta};

/// Options of a frontend.
type Opts = BTreeMap<String, String>;

/// How a frontend that is not built in ends.
pub type Returned = Result<FrontendResult, Failure>;

/// The gateway of one build. Clones are the same build, perhaps with other options.
#[derive(Clone)]
pub struct Bridge {
    core: Arc<Core>,
    run: Arc<Run>,
    options: Arc<Options>,
    inputs: Arc<BTreeMap<String, pb::Definition>>,
    asked: Arc<Asked>,
}

struct Core {
    imports: Imports,
    worker: Arc<Worker>,
    job: Job<Output>,
    values: Arc<BuildValues>,
    policies: Arc<Policies>,
    sink: Sink,
    frontends: Frontends,
    plans: Mutex<HashMap<RefId, Arc<Plan>>>,
    /// Trees of operations that failed, by their ids.
    kept: Mutex<HashMap<String, Ref>>,
}

/// One run of a frontend that is not built in: the client, or one in a container.
struct Run {
    returned: watch::Sender<Option<Returned>>,
    containers: Containers,
}

impl Run {
    fn new() -> Arc<Self> {
        Arc::new(Self { returned: watch::Sender::new(None), containers: Containers::default() })
    }
}

/// Which frontends there are.
#[derive(Debug, Clone, Default)]
pub struct Frontends {
    /// The names of those that may be used.
    pub enabled: Vec<String>,
    /// The repositories of images from which `gateway.v0` takes frontends; all when empty.
    pub repositories: Vec<String>,
}

impl Bridge {
    pub(crate) fn new(
        deps: &Deps,
        job: Job<Output>,
        values: Arc<BuildValues>,
        policies: Arc<Policies>,
        sink: Sink,
        options: Options,
        asked: Arc<Asked>,
    ) -> Self {
        let (worker, frontends) = (deps.worker.clone(), deps.frontends.clone());
        let scope = job.scope().clone();
        let imports = Imports::new(worker.clone(), values.session.clone(), sink.clone(), scope);
        let (plans, kept) = (Mutex::default(), Mutex::default());
        let core = Core { imports, worker, job, values, policies, sink, frontends, plans, kept };
        let (options, inputs) = (Arc::new(options), Arc::new(asked.root().inputs.clone()));
        Self { core: Arc::new(core), run: Run::new(), options, inputs, asked }
    }

    /// The same build on behalf of the daemon: what it asks for is no part of
    /// what provenance tells.
    pub(crate) fn apart(&self) -> Self {
        Self { asked: Asked::client(Call::default(), Producers::default()), ..self.clone() }
    }

    /// The same build for another frontend.
    fn nested(
        &self,
        run: Arc<Run>,
        opts: Opts,
        inputs: BTreeMap<String, pb::Definition>,
        asked: Arc<Asked>,
    ) -> Self {
        let options = Arc::new(Options { opts, ..(*self.options).clone() });
        Self { core: self.core.clone(), run, options, inputs: Arc::new(inputs), asked }
    }

    /// Takes what the frontend says in the end.
    ///
    /// # Errors
    /// When it said something before, or its results are not known.
    pub fn finish(&self, outcome: Returned) -> Result<(), Failure> {
        if let Ok(result) = &outcome
            && let Some(id) = result.each_ref().find(|id| self.known(id.as_str()).is_none())
        {
            return Err(Error::ReturnRef(id.to_string()).into());
        }
        let mut twice = false;
        self.run.returned.send_modify(|slot| {
            twice = slot.is_some();
            if !twice {
                *slot = Some(outcome);
            }
        });
        if twice { Err(Error::ReturnedTwice.into()) } else { Ok(()) }
    }

    /// Waits for [`Self::finish`].
    pub(crate) async fn finished(&self) -> Returned {
        let mut returned = self.run.returned.subscribe();
        match returned.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Error::EmptyReturn.into())),
            Err(_) => Err(Failure::canceled("context canceled")),
        }
    }

    /// What [`Self::finish`] was given, if it was.
    pub(crate) fn returned(&self) -> Option<Returned> {
        self.run.returned.borrow().clone()
    }

    /// Who asked for what.
    pub(crate) fn asked(&self) -> &Arc<Asked> {
        &self.asked
    }

    /// The remote caches the build looks in.
    pub(crate) fn imports(&self) -> &Imports {
        &self.core.imports
    }

    /// Ends the job in the solver: what only it wanted is given up.
    pub(crate) async fn leave(&self, cause: Failure) {
        self.run.containers.release().await;
        self.asked.release();
        self.core.plans.lock().clear();
        self.core.kept.lock().clear();
        self.core.job.leave(cause).await;
    }

    /// Cancelled when the build ends.
    pub(crate) fn scope(&self) -> &Scope {
        self.core.job.scope()
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.core.worker
    }

    pub(crate) fn containers(&self) -> &Containers {
        &self.run.containers
    }

    /// The build, as operations see it.
    pub(crate) fn job_values(&self) -> JobValues {
        JobValues { id: base::id::fresh().into(), values: self.core.values.clone() }
    }

    /// The result called `id`, if there is one.
    pub(crate) fn known(&self, id: &str) -> Option<RefId> {
        self.core.plans.lock().get_key_value(&RefId::new(id)).map(|(id, _)| id.clone())
    }

    /// The tree of an operation that failed.
    pub(crate) fn kept(&self, id: &str) -> Option<Ref> {
        self.core.kept.lock().get(id).cloned()
    }

    /// What the result called `id` is made from.
    pub(crate) fn definition(&self, id: &RefId) -> Option<Arc<pb::Definition>> {
        self.core.plans.lock().get(id).map(|plan| plan.definition.clone())
    }

    /// The result `id` stands for, made if it is not yet.
    ///
    /// # Errors
    /// Those of the build.
    pub async fn result(&self, id: &RefId) -> Result<Arc<Solved<Output>>, Failure> {
        self.planned(id)?.build(&self.core.job).await.inspect_err(|failure| {
            let Some(kept) = failure.kept::<Kept>() else { return };
            let trees = kept.trees().map(|tree| (tree.id().to_owned(), tree.clone()));
            self.core.kept.lock().extend(trees);
        })
    }

    /// What is known by `id`.
    pub(crate) fn planned(&self, id: &RefId) -> Result<Arc<Plan>, Failure> {
        let plan = self.core.plans.lock().get(id).cloned();
        Ok(plan.ok_or_else(|| Error::UnknownRef(id.to_string()))?)
    }

    /// Checks `definition`; `policies` have a say in its sources beside those of
    /// the build.
    pub(crate) async fn plan(
        &self,
        definition: &pb::Definition,
        imports: Vec<Import>,
        policies: &[Policy],
    ) -> Result<Option<RefId>, Failure> {
        if definition.def.is_empty() {
            return Ok(None);
        }
        let core = &self.core;
        let graph = llb::Graph::load(definition)?;
        let behalf = self.behalf(core.sink.vertex(Digest::of(base::id::fresh())));
        let mut graph = core.policies.graph(policies, graph, &core.worker, &behalf).await?;
        if core.values.proxy {
            graph = ops::proxied(&graph)?;
        }
        let plan = Plan::new(&core.worker, &core.values, definition, graph, imports)?;
        let id = RefId::new(base::id::fresh());
        self.core.plans.lock().insert(id.clone(), Arc::new(plan));
        self.asked.planned(id.clone(), definition);
        Ok(Some(id))
    }

    async fn frontend(
        &self,
        name: &str,
        opts: Opts,
        inputs: BTreeMap<String, pb::Definition>,
    ) -> Result<FrontendResult, Failure> {
        let source = opts.get("source").cloned().unwrap_or_default();
        let describe = |e: Failure| {
            let detail = Detail::Frontend { name: name.to_owned(), source: source.clone() };
            e.with(detail)
        };
        if !self.core.frontends.enabled.iter().any(|f| f == name) {
            return Err(Error::UnknownFrontend(name.to_owned()).into());
        }
        let built_in = match name {
            "dockerfile.v0" => true,
            "gateway.v0" => {
                if source != BUILT_IN {
                    check_allowed(&source, &self.core.frontends.repositories).map_err(describe)?;
                }
                speaks_dockerfile(&source) && !replaced(&source, &opts)
            }
            name => return Err(Error::UnknownFrontend(name.to_owned()).into()),
        };
        let run = if built_in { self.run.clone() } else { Run::new() };
        let call = Call { frontend: name.to_owned(), opts: opts.clone(), inputs: inputs.clone() };
        let asked = self.asked.nested(call);
        let bridge = self.nested(run, opts, inputs, asked.clone());
        let made = if built_in {
            self.scope().run(frontend::build(Arc::new(bridge))).await
        } else {
            // Cancelled in its own time: the container is taken down first.
            crate::external::run(bridge).await
        };
        let made = made.map_err(describe)?;
        self.asked.adopt(asked);
        Ok(made)
    }

    /// The terms on which a frontend of this build may use the network, where it may
    /// do so only through a proxy.
    pub(crate) fn proxy(&self) -> Option<proxy::Terms> {
        let terms = || ops::proxy_terms(&self.core.worker, self.behalf(VertexSink::none()), None);
        self.core.values.proxy.then(terms)
    }

    /// What is looked up for this build, and shown to `progress`.
    fn behalf(&self, progress: VertexSink) -> Behalf {
        let builds = vec![self.core.values.clone()];
        Behalf { builds, scope: self.core.job.scope().clone(), progress }
    }

    /// Reads from the tree behind `id`, which is mounted for that.
    async fn read<T: Send + 'static>(
        &self,
        id: &RefId,
        path: &str,
        read: impl FnOnce(&Path, &str) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let solved = self.result(id).await?;
        let path = path.to_owned();
        let Some(tree) = solved.result.as_ref() else {
            let scratch = self.core.worker.scratch.clone();
            return base::task::blocking(move || {
                crate::files::with_nothing(&scratch, |root| read(root, &path))
            })
            .await;
        };
        let mounted = self.core.job.scope().run(tree.mount()).await?;
        let root = mounted.path().to_owned();
        let outcome = base::task::blocking(move || read(&root, &path)).await;
        mounted.unmount().await?;
        outcome
    }
}

/// The name of the built-in frontend where the name of an image is expected.
pub(crate) const BUILT_IN: &str = "dockerfile.v0";

/// Whether the client put something of its own in the place of this image.
pub(crate) fn replaced(source: &str, opts: &Opts) -> bool {
    let Ok(reference) = source.parse::<Reference>() else { return false };
    let familiar = reference.familiar();
    let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
    opts.keys().filter_map(|k| k.strip_prefix("context:")).any(|k| k.split("::").next() == Some(name))
}

/// Whether the built-in frontend speaks what this image would: the stable
/// releases of the Dockerfile frontend, up to the one it is equal to. One that
/// is pinned by its digest is taken as it is.
fn speaks_dockerfile(source: &str) -> bool {
    let source = source.strip_prefix("docker.io/").unwrap_or(source);
    let Some(rest) = source.strip_prefix("docker/dockerfile") else { return source == BUILT_IN };
    if rest.contains('@') {
        return false;
    }
    let version = match rest.strip_prefix(':') {
        None => return rest.is_empty(),
        Some(version) => version,
    };
    let newest = base::version::DOCKERFILE.split('.').nth(1).and_then(|m| m.parse::<u32>().ok());
    match version.split('.').collect::<Vec<_>>()[..] {
        ["latest" | "1"] => true,
        ["1", minor] | ["1", minor, _] => minor.parse::<u32>().ok() <= newest,
        _ => false,
    }
}

#[async_trait]
impl Gateway for Bridge {
    fn options(&self) -> &Options {
        &self.options
    }

    async fn inputs(&self) -> Result<BTreeMap<String, pb::Definition>, Failure> {
        Ok((*self.inputs).clone())
    }

    async fn solve(&self, request: Solve) -> Result<FrontendResult, Failure> {
        let begin = |import: &CacheImport| self.core.imports.begin(&import.kind, &import.attrs);
        let imports: Vec<Import> = request.cache_imports.iter().map(begin).collect();
        let result = match request.what {
            SolveWhat::Scratch => FrontendResult::default(),
            SolveWhat::Definition(definition) => {
                FrontendResult::single(self.plan(&definition, imports, &request.policies).await?)
            }
            SolveWhat::Frontend { name, opts, inputs } => {
                // A frontend may run another, which may run another.
                Box::pin(self.frontend(&name, opts, inputs)).await?
            }
        };
        if request.evaluate {
            for id in result.each_ref() {
                self.result(id).await?;
            }
        }
        Ok(result)
    }

    async fn evaluate(&self, reference: &RefId) -> Result<(), Failure> {
        let solved = self.result(reference).await?;
        match &solved.result {
            Some(tree) => self.core.job.scope().run(tree.ensure()).await,
            None => Ok(()),
        }
    }

    async fn read_file(
        &self,
        reference: &RefId,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Vec<u8>, Failure> {
        let range = range.map(|r| (r.offset, r.length));
        self.read(reference, path, move |root, path| crate::files::read(root, path, range)).await
    }

    async fn read_dir(&self, reference: &RefId, path: &str, include: &str) -> Result<Vec<Stat>, Failure> {
        let include = include.to_owned();
        self.read(reference, path, move |root, path| crate::files::list(root, path, &include)).await
    }

    async fn stat_file(&self, reference: &RefId, path: &str) -> Result<Stat, Failure> {
        self.read(reference, path, crate::files::stat).await
    }

    async fn resolve_source_meta(&self, mut request: ResolveSource) -> Result<SourceMeta, Failure> {
        let core = &self.core;
        let name = meta::step_name(&request);
        let digest = Digest::of(base::id::fresh());
        let behalf = self.behalf(core.sink.vertex(digest.clone()));
        let platform = request.platform.as_ref().map(crate::service::platform_to_wire);
        let policies = std::mem::take(&mut request.policies);
        core.policies.source(&policies, &mut request.source, platform, &core.worker, &behalf).await?;
        let platform = request.platform.clone().unwrap_or_else(|| core.worker.platform());
        let told = step(&core.sink, digest, name, meta::resolve(&core.worker, request, &behalf)).await?;
        if let Some(image) = &told.image {
            let wanted = Wanted::parse(&told.source, &platform)?;
            self.asked.looked_up(wanted.material(image.digest.clone()));
        }
        Ok(told)
    }

    async fn warn(&self, warning: Warning) -> Result<(), Failure> {
        let Some(vertex) = warning.vertex else { return Ok(()) };
        self.core.sink.send(Event::Warning(ProgressWarning {
            vertex,
            level: warning.level,
            short: warning.short,
            detail: warning.detail,
            url: warning.url,
            source: warning.source.as_ref().map(llb::graph::excerpt),
            ranges: warning.ranges,
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::speaks_dockerfile;

    #[test]
    fn knows_which_syntax_it_speaks() {
        for yes in [
            "docker/dockerfile:1",
            "docker.io/docker/dockerfile:1.7",
            "docker/dockerfile:1.4.0",
            "docker/dockerfile",
        ] {
            assert!(speaks_dockerfile(yes), "{yes}");
        }
        for no in [
            "docker/dockerfile:1.99",
            "docker/dockerfile-upstream:1",
            "docker/dockerfile:1-labs",
            "docker/dockerfile:1@sha256:00",
            "x/y",
        ] {
            assert!(!speaks_dockerfile(no), "{no}");
        }
    }
}
