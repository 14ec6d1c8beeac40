//! The way from a request to results that have left: the frontend, what is said
//! about its result, the exporters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::progress::{Event, Sink, Warning};
use base::task::Scope;
use base::{Digest, Failure};
use export::{Exporter, MakeContent as _};
use frontend::dockerui::{self, Sbom};
use frontend::gateway::{CacheImport, FrontendResult, Gateway as _, RefId, Refs, Solve};
use ops::BuildValues;

use crate::bridge::Bridge;
use crate::builder::{Builder, Step};
use crate::caches::{Exports, Made};
use crate::history::Kept;
use crate::provenance::{Document, Mode, Run, Terms};
use crate::results::{Subject, Subjects};
use crate::{Record, Request};

/// How long a client may take to say where results go, or that it knows.
const PATIENCE: Duration = Duration::from_secs(5);
/// Media type of provenance in the history.
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// What is to be said about the result.
pub(crate) struct Attest {
    sbom: Option<Sbom>,
    provenance: Option<Terms>,
    /// Who the client says builds.
    builder_id: String,
}

impl Attest {
    /// Reads a frontend's options.
    ///
    /// # Errors
    /// A value that makes no sense.
    pub(crate) fn read(opts: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let wanted = dockerui::attestations(opts)?;
        let provenance = wanted.get("provenance").map(Terms::read).transpose()?;
        let builder_id = provenance.as_ref().map(|t| t.builder_id.clone()).unwrap_or_default();
        Ok(Self { sbom: dockerui::sbom(opts)?, provenance, builder_id })
    }
}

/// One build on its way.
pub(crate) struct Work<'a> {
    pub(crate) builder: &'a Builder,
    pub(crate) request: &'a Request,
    pub(crate) bridge: &'a Bridge,
    pub(crate) values: Arc<BuildValues>,
    pub(crate) sink: &'a Sink,
    pub(crate) scope: &'a Scope,
    pub(crate) attest: &'a Attest,
    /// The remote caches to write.
    pub(crate) caches: &'a remotecache::Exports,
    pub(crate) run: &'a Arc<Run>,
}

/// What is known of the result by the time something fails.
#[derive(Default)]
pub(crate) struct Told {
    subjects: Subjects,
    metadata: BTreeMap<String, Vec<u8>>,
    builder_id: String,
}

/// What came out.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) response: BTreeMap<String, String>,
    pub(crate) results: BTreeMap<i64, base::Descriptor>,
    /// Keeps the results' blobs until the history holds them.
    pub(crate) pins: Vec<store::Pin>,
}

impl Work<'_> {
    /// Builds, attests and exports.
    pub(crate) async fn run(
        &self,
        mut exporters: Vec<Box<dyn Exporter>>,
        told: &mut Told,
    ) -> Result<Done, Failure> {
        let (request, bridge, attest) = (self.request, self.bridge, self.attest);
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
        let mut source = bridge.resolve(&result).await?;
        let made = bridge.made(&result).await?;
        *told = Told {
            subjects: bridge.subjects(&result)?,
            metadata: result.metadata.clone(),
            builder_id: attest.builder_id.clone(),
        };
        if let Some(wanted) = &attest.sbom {
            for (platform, said) in bridge.scan(&result, wanted).await? {
                source.attestations.entry(platform).or_default().push(said);
            }
        }
        if let Some(terms) = &attest.provenance {
            for platform in export::platforms(&result.metadata)? {
                let Some(subject) = told.subjects.find(&platform.id) else { continue };
                let said = self.attestation(terms, subject)?;
                source.attestations.entry(platform.id).or_default().push(said);
            }
        }
        if request.session_exporters {
            exporters.extend(self.session_exporters(&result, exporters.len()).await?);
        }
        let done = self.export(&result, &source, &made, &exporters).await?;
        if request.session_exporters {
            let response = done.response.clone();
            self.with_client(async |client| Ok(client.finalize_export(response).await?)).await?;
        }
        Ok(done)
    }

    fn document(&self, terms: Terms, subject: &Subject) -> Result<Document, Failure> {
        let refs = &self.builder.worker().refs;
        Document::new(terms, &subject.capture, &subject.plan, refs, self.run.clone())
    }

    fn attestation(&self, terms: &Terms, subject: &Subject) -> Result<export::Attestation, Failure> {
        let document = self.document(terms.clone(), subject)?;
        let metadata =
            [("reason", "provenance"), ("inline-only", if terms.inline_only { "true" } else { "false" })];
        Ok(export::Attestation {
            kind: export::AttestationKind::InToto,
            metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect(),
            path: terms.filename.clone(),
            predicate_type: document.predicate_type().to_owned(),
            predicate: export::Predicate::Made(Arc::new(document)),
            subjects: Vec::new(),
        })
    }

    /// Asks the client, which has to answer within a moment.
    async fn with_client<T>(
        &self,
        ask: impl AsyncFnOnce(session::Caller) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let sessions = &self.builder.worker().sessions;
        let caller = sessions.get(&self.request.session, PATIENCE).await?;
        ask(caller).await
    }

    /// The exporters that the client names now that there is a result.
    async fn session_exporters(
        &self,
        result: &FrontendResult,
        already: usize,
    ) -> Result<Vec<Box<dyn Exporter>>, Failure> {
        let ids: Vec<&RefId> = match &result.refs {
            Refs::Single(id) => id.iter().collect(),
            Refs::ByPlatform(refs) => refs.values().flatten().collect(),
        };
        let ids = ids.into_iter().map(ToString::to_string).collect();
        let metadata = result.metadata.clone();
        let specs = self.with_client(async |c| Ok(c.find_exporters(metadata, ids).await?)).await?;
        let first = i64::try_from(already).unwrap_or(i64::MAX);
        (first..).zip(specs).map(|(id, spec)| self.builder.exporter(id, &spec.kind, spec.attrs)).collect()
    }

    async fn export(
        &self,
        result: &FrontendResult,
        source: &export::Source,
        made: &Made,
        exporters: &[Box<dyn Exporter>],
    ) -> Result<Done, Failure> {
        let (session, caches) = (&self.request.session, self.caches);
        let remote = Exports::new(
            self.bridge.imports(),
            self.builder.keys().clone(),
            self.values.clone(),
            &self.request.id,
            self.scope,
        );
        let access = self.builder.worker().images.access(std::slice::from_ref(session));
        let asked = self.request.attrs.get("platform").map(String::as_str);
        let mut warnings = export::platform_warnings(source, asked)?;
        if exporters.is_empty() && !warnings.is_empty() {
            let digest = Digest::of(base::id::fresh());
            let step = Step::begin(self.sink, digest.clone(), "Verifying build result".to_owned());
            self.warn(&digest, std::mem::take(&mut warnings));
            step.end(Ok(()))?;
        }
        let sites = exporters.iter().map(|exporter| {
            let digest = Digest::of(format!("{session}-export-{}", exporter.id()));
            let inline = caches.inline.then(|| remote.inline(made, digest.clone()) as Arc<_>);
            let cx = export::Context {
                session: session.clone(),
                build: self.request.id.clone(),
                access: access.clone(),
                inline_cache: inline,
                compatibility: self.request.compatibility,
                progress: self.sink.vertex(digest.clone()),
                scope: self.scope.clone(),
            };
            let step = Step::begin(self.sink, digest.clone(), exporter.name());
            self.warn(&digest, std::mem::take(&mut warnings));
            (exporter, step, cx)
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
        let (exported, written) = tokio::try_join!(work, remote.write(&caches.exporters, made))?;
        let mut done = Done { response: frontend_response(result), ..Done::default() };
        done.response.extend(written);
        for (id, exported) in exported {
            done.response.extend(exported.response);
            done.results.extend(exported.descriptor.map(|d| (id, d)));
            done.pins.extend(exported.pins);
        }
        Ok(done)
    }

    /// Tells the author of the build, with the step `vertex`.
    fn warn(&self, vertex: &Digest, warnings: Vec<String>) {
        for short in warnings {
            self.sink.send(Event::Warning(Warning {
                vertex: vertex.clone(),
                level: 0,
                short: short.into_bytes(),
                detail: Vec::new(),
                url: String::new(),
                source: None,
                ranges: Vec::new(),
            }));
        }
    }

    /// Puts into the record what is known of the result: what its frontend said
    /// and how it was made. Gives the blobs that the record names.
    pub(crate) async fn record(&self, told: &Told, record: &mut Record) -> Vec<Kept> {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        record.response = told.metadata.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        let mut blobs = Vec::new();
        for (platform, subject) in told.subjects.each() {
            let terms = Terms { mode: Mode::Max, builder_id: told.builder_id.clone(), ..Terms::default() };
            let kept = async {
                let document = self.document(terms, subject)?;
                let mut kept = self.builder.history().keep(IN_TOTO, document.make().await?).await?;
                let annotation =
                    ("in-toto.io/predicate-type".to_owned(), document.predicate_type().to_owned());
                kept.descriptor.annotations.extend([annotation]);
                Ok::<_, Failure>(kept)
            };
            match kept.await {
                Ok(kept) => {
                    let list = match platform {
                        None => &mut record.attestations,
                        Some(platform) => record.by_platform.entry(platform.to_owned()).or_default(),
                    };
                    list.push(kept.descriptor.clone());
                    blobs.push(kept);
                }
                Err(error) => tracing::warn!(%error, id = record.id, "keep the provenance of a build"),
            }
        }
        blobs
    }
}

/// What of a frontend's metadata the client gets to see.
fn frontend_response(result: &FrontendResult) -> BTreeMap<String, String> {
    let ours = result.metadata.iter().filter(|(key, _)| key.starts_with("frontend."));
    ours.map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned())).collect()
}
