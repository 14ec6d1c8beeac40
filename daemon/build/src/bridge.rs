//! What a frontend may ask, answered for one build.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use base::progress::{Event, Sink, Warning as ProgressWarning};
use base::{Digest, Failure};
use frontend::gateway::{
    FileRange, FrontendResult, Gateway, ImageMeta, Options, RefId, Refs, ResolveSource, Solve, SolveWhat,
    SourceMeta, Stat, Warning,
};
use ops::source::image::Wanted;
use ops::{BuildValues, Output, Worker};
use parking_lot::Mutex;
use proto::pb;
use solver::{Job, Solved};
use tokio::sync::watch;

use crate::Error;
use crate::builder::step;
use crate::plan::Plan;

/// How a client that is its own frontend ends its build.
pub type Returned = Result<FrontendResult, Failure>;

/// The gateway of one build. Clones are the same build, perhaps with other options.
#[derive(Clone)]
pub struct Bridge {
    core: Arc<Core>,
    options: Arc<Options>,
    inputs: Arc<BTreeMap<String, pb::Definition>>,
}

struct Core {
    worker: Arc<Worker>,
    job: Job<Output>,
    values: Arc<BuildValues>,
    sink: Sink,
    frontends: Vec<String>,
    plans: Mutex<HashMap<RefId, Arc<Plan>>>,
    returned: watch::Sender<Option<Returned>>,
}

impl Bridge {
    pub(crate) fn new(
        worker: Arc<Worker>,
        job: Job<Output>,
        values: Arc<BuildValues>,
        sink: Sink,
        frontends: Vec<String>,
        options: Options,
        inputs: BTreeMap<String, pb::Definition>,
    ) -> Self {
        let core = Core {
            worker,
            job,
            values,
            sink,
            frontends,
            plans: Mutex::default(),
            returned: watch::Sender::new(None),
        };
        Self { core: Arc::new(core), options: Arc::new(options), inputs: Arc::new(inputs) }
    }

    /// Ends the build of a client that is its own frontend.
    ///
    /// # Errors
    /// When it was ended before.
    pub fn finish(&self, outcome: Returned) -> Result<(), Failure> {
        let mut twice = false;
        self.core.returned.send_modify(|slot| {
            twice = slot.is_some();
            if !twice {
                *slot = Some(outcome);
            }
        });
        if twice { Err(Error::ReturnedTwice.into()) } else { Ok(()) }
    }

    /// Waits for [`Self::finish`].
    pub(crate) async fn finished(&self) -> Returned {
        let mut returned = self.core.returned.subscribe();
        match returned.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Error::EmptyReturn.into())),
            Err(_) => Err(Failure::canceled("context canceled")),
        }
    }

    /// Ends the job in the solver: what only it wanted is given up.
    pub(crate) async fn leave(&self, cause: Failure) {
        self.core.plans.lock().clear();
        self.core.job.leave(cause).await;
    }

    /// The result `id` stands for, made if it is not yet.
    ///
    /// # Errors
    /// Those of the build.
    pub async fn result(&self, id: &RefId) -> Result<Arc<Solved<Output>>, Failure> {
        let plan = self.core.plans.lock().get(id).cloned();
        let plan = plan.ok_or_else(|| Error::UnknownRef(id.to_string()))?;
        plan.build(&self.core.job).await
    }

    /// The definition behind `id`; none of scratch and what is not known.
    pub fn definition(&self, id: &RefId) -> Option<pb::Definition> {
        self.core.plans.lock().get(id).map(|plan| plan.definition().clone())
    }

    fn plan(&self, definition: &pb::Definition) -> Result<Option<RefId>, Failure> {
        let Some(plan) = Plan::new(&self.core.worker, &self.core.values, definition)? else {
            return Ok(None);
        };
        let id = RefId::new(base::id::fresh());
        self.core.plans.lock().insert(id.clone(), Arc::new(plan));
        Ok(Some(id))
    }

    async fn frontend(
        &self,
        name: &str,
        opts: BTreeMap<String, String>,
        inputs: BTreeMap<String, pb::Definition>,
    ) -> Result<FrontendResult, Failure> {
        let built_in = match name {
            "gateway.v0" => {
                let source = opts.get("source").map_or("", String::as_str);
                if !speaks_dockerfile(source) {
                    let (name, source_image) = (name.to_owned(), source.to_owned());
                    return Err(Error::ExternalFrontend { name, source_image }.into());
                }
                "dockerfile.v0"
            }
            name => name,
        };
        if built_in != "dockerfile.v0" || !self.core.frontends.iter().any(|f| f == name) {
            return Err(Error::UnknownFrontend(name.to_owned()).into());
        }
        let options = Options { opts, ..(*self.options).clone() };
        let bridge = Self { core: self.core.clone(), options: Arc::new(options), inputs: Arc::new(inputs) };
        self.core.job.scope().run(frontend::build(Arc::new(bridge))).await
    }

    /// Shows `work` to people as a step of its own.
    async fn step<T>(
        &self,
        name: String,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let digest = Digest::of(base::id::fresh());
        step(&self.core.sink, digest, name, self.core.job.scope().run(work)).await
    }

    /// Reads from the tree behind `id`, which is mounted for that.
    async fn read<T: Send + 'static>(
        &self,
        id: &RefId,
        path: &str,
        read: impl FnOnce(&Path, &str) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let solved = self.result(id).await?;
        let tree = solved.result.as_ref().ok_or_else(|| Error::Empty { path: path.to_owned() })?;
        let mounted = self.core.job.scope().run(tree.mount()).await?;
        let (root, path) = (mounted.path().to_owned(), path.to_owned());
        let outcome = base::task::blocking(move || read(&root, &path)).await;
        mounted.unmount().await?;
        outcome
    }
}

/// Whether the built-in frontend speaks what this image would: the stable
/// releases of the Dockerfile frontend, up to the one it is equal to.
fn speaks_dockerfile(source: &str) -> bool {
    let source = source.strip_prefix("docker.io/").unwrap_or(source);
    let Some(rest) = source.strip_prefix("docker/dockerfile") else { return source == "dockerfile.v0" };
    let version = match rest.split_once('@').map_or(rest, |(tag, _)| tag).strip_prefix(':') {
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
        if !request.policies.is_empty() {
            return Err(Error::Unsupported { what: "source policies" }.into());
        }
        for import in &request.cache_imports {
            // A cache that cannot be read never fails a build; people see why.
            let name =
                format!("importing cache manifest from {}", import.attrs.get("ref").unwrap_or(&import.kind));
            let missing = Error::UnknownCache { direction: "importer", kind: import.kind.clone() };
            _ = self.step(name, async { Err::<(), _>(missing.into()) }).await;
        }
        let result = match request.what {
            SolveWhat::Scratch => FrontendResult::default(),
            SolveWhat::Definition(definition) => FrontendResult::single(self.plan(&definition)?),
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

    async fn resolve_source_meta(&self, request: ResolveSource) -> Result<SourceMeta, Failure> {
        if !request.policies.is_empty() {
            return Err(Error::Unsupported { what: "source policies" }.into());
        }
        let mut source = request.source.clone();
        if !request.resolve_mode.is_empty() {
            source.attrs.insert(llb::attr::IMAGE_RESOLVE_MODE.to_owned(), request.resolve_mode);
        }
        let platform = request.platform.unwrap_or_else(|| self.core.worker.platform());
        let wanted = Wanted::parse(&source, &platform)?;
        let name = match request.log_name.as_str() {
            "" => format!("resolve image config for {}", request.source.identifier),
            name => name.to_owned(),
        };
        let images = &self.core.worker.images;
        let sessions = [self.core.values.session.clone()];
        let resolved = self.step(name, images.resolve(&wanted, &sessions)).await?;
        let image = ImageMeta {
            digest: resolved.root.digest.clone(),
            config: if request.image.no_config { Vec::new() } else { resolved.config.clone() },
            attestation_chain: None,
        };
        Ok(SourceMeta { source: request.source, image: Some(image), ..SourceMeta::default() })
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

impl Bridge {
    /// The results of a frontend, built, for the exporters.
    ///
    /// # Errors
    /// Those of the build.
    pub(crate) async fn resolve(&self, result: &FrontendResult) -> Result<export::Source, Failure> {
        let mut source = export::Source { metadata: result.metadata.clone(), ..export::Source::default() };
        match &result.refs {
            Refs::Single(id) => source.single = self.output(id.as_ref()).await?,
            Refs::ByPlatform(refs) => {
                // All at once: platforms do not wait for each other.
                let work = refs.iter().map(|(platform, id)| async move {
                    Ok::<_, Failure>((platform.clone(), self.output(id.as_ref()).await?))
                });
                source.refs = futures_util::future::try_join_all(work).await?.into_iter().collect();
            }
        }
        Ok(source)
    }

    async fn output(&self, id: Option<&RefId>) -> Result<Output, Failure> {
        match id {
            Some(id) => Ok(self.result(id).await?.result.clone()),
            None => Ok(None),
        }
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
        for no in
            ["docker/dockerfile:1.99", "docker/dockerfile-upstream:1", "docker/dockerfile:1-labs", "x/y"]
        {
            assert!(!speaks_dockerfile(no), "{no}");
        }
    }
}
