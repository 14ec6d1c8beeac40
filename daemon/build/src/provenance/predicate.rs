//! The document itself, in both versions of SLSA.

use std::collections::BTreeMap;

use base::gourl::redacted;
use base::{Descriptor, Digest, Failure, Platform, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llb::GoJson;
use ops::used::Material;
use proto::pb;
use serde::Serialize;
use serde_json::{Map, Value, json, to_value};

use super::Run;
use super::capture::{self, Capture, ConfigSource, Local, Parameters, commit_digest, digest_set};
use super::steps::{mapping, steps};
use super::terms::Version;

const BUILD_TYPE_V1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";
/// The frontend whose version is told.
const DOCKERFILE: &str = "dockerfile.v0";

/// What is to be said, before it has a form.
#[derive(Debug, Clone)]
pub(crate) struct Predicate {
    config_source: ConfigSource,
    request: Parameters,
    materials: Vec<Resource>,
    vcs: BTreeMap<String, String>,
    build_config: Option<Value>,
    source: Option<Value>,
    request_complete: bool,
    materials_complete: bool,
    hermetic: bool,
    /// How steps reached the network, where they had to ask a proxy.
    network: Option<Value>,
    environment: std::sync::Arc<Map<String, Value>>,
}

/// What is known only when the build is done.
pub(crate) struct Details<'a> {
    pub(crate) builder_id: &'a str,
    pub(crate) run: &'a Run,
    pub(crate) completed: Timestamp,
    pub(crate) reproducible: bool,
    pub(crate) layers: BTreeMap<String, Vec<Vec<Descriptor>>>,
}

/// Something by its address and digests.
#[derive(Debug, Clone, Serialize)]
struct Resource {
    uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    digest: BTreeMap<String, String>,
}

fn resources(material: &Material) -> Result<Vec<Resource>, Failure> {
    let kind = |local: &bool| if *local { "oci" } else { "docker" };
    Ok(match material {
        Material::Image { reference, platform, digest, local } => {
            let uri = export::package_url(kind(local), reference, platform.as_ref(), &[])?;
            vec![Resource { uri, digest: digest_set(digest) }]
        }
        Material::Blob { reference, digest, local } => {
            let uri = export::package_url(kind(local), reference, None, &[("ref_type", "blob")])?;
            vec![Resource { uri, digest: digest_set(digest) }]
        }
        Material::Git { url, commit, bundle } => {
            let mut out = vec![Resource { uri: url.clone(), digest: commit_digest(commit) }];
            let parts = bundle.as_ref().and_then(|bundle| {
                let (scheme, rest) = bundle.split_once("://")?;
                let (name, digest) = rest.rsplit_once('@')?;
                Some((scheme, name, digest.parse::<Digest>().ok()?))
            });
            if let Some((scheme, name, digest)) = parts {
                let further = [("ref_type", "bundle"), ("vcs_url", url.as_str())];
                let local = scheme == "oci-layout+blob";
                let uri = export::package_url(kind(&local), name, None, &further)?;
                out.push(Resource { uri, digest: digest_set(&digest) });
            }
            out
        }
        Material::Http { url, digest } => vec![Resource { uri: url.clone(), digest: digest_set(digest) }],
        Material::Local { .. } => Vec::new(),
    })
}

impl Predicate {
    /// Of what `capture` says.
    ///
    /// # Errors
    /// When an image's name is none.
    pub(crate) fn new(capture: &Capture, run: &Run) -> Result<Self, Failure> {
        let mut materials = Vec::new();
        for material in &capture.materials {
            materials.extend(resources(material)?);
        }
        let asked =
            capture::request(&capture.request.frontend, capture.request.args.clone(), &capture.materials);
        let mut request = Parameters {
            args: asked.request.args,
            locals: capture.locals().map(|name| Local { name: name.to_owned() }).collect(),
            compatibility_version: Some(run.compatibility.number()),
            ..capture.request.clone()
        };
        let mut vcs = BTreeMap::new();
        request.args.retain(|key, value| {
            let Some(name) = key.strip_prefix("vcs:") else { return true };
            if !value.is_empty() {
                let value = if name == "source" { redacted(value) } else { value.clone() };
                vcs.insert(name.to_owned(), value);
            }
            false
        });
        let materials_complete = !capture.incomplete && request.locals.is_empty();
        Ok(Self {
            config_source: asked.config_source,
            request_complete: !request.frontend.is_empty(),
            request,
            materials,
            vcs,
            build_config: None,
            source: None,
            materials_complete,
            hermetic: materials_complete && !capture.network,
            network: capture.proxied.then(|| {
                let mut network = json!({ "mode": "proxy" });
                if !capture.uncaptured.is_empty() {
                    network["proxy"] = json!({ "incomplete": capture.uncaptured });
                }
                network
            }),
            environment: run.environment.clone(),
        })
    }

    /// Whether all that was used is told.
    pub(crate) fn is_complete(&self) -> bool {
        self.materials_complete
    }

    /// Leaves out what the author may want to keep.
    pub(crate) fn scrub(&mut self) {
        if scrub(&mut self.request) {
            self.request_complete = false;
        }
    }

    /// Tells the definition, and where in the author's files its steps stand.
    /// Gives the places of its vertices.
    ///
    /// # Errors
    /// When it is no definition.
    pub(crate) fn add_definition(
        &mut self,
        definition: &pb::Definition,
    ) -> Result<BTreeMap<Digest, usize>, Failure> {
        let (list, places) = steps(definition)?;
        self.build_config = Some(config(list, &places));
        let Some(source) = &definition.source else { return Ok(places) };
        if source.infos.is_empty() {
            self.source = Some(json!({}));
            return Ok(places);
        }
        let mut infos = Vec::new();
        for info in &source.infos {
            let (list, inner) = match &info.definition {
                Some(definition) => steps(definition)?,
                None => Default::default(),
            };
            let mut value = config(list, &inner);
            put(&mut value, "filename", &info.filename);
            put(&mut value, "language", &info.language);
            put(&mut value, "data", &STANDARD.encode(&info.data));
            infos.push(value);
        }
        let mut locations = Map::new();
        for (digest, found) in &source.locations {
            let place = digest.parse::<Digest>().ok().and_then(|digest| places.get(&digest).copied());
            if let Some(at) = place {
                let value = to_value(GoJson(found)).map_err(|e| Failure::internal(e.to_string()))?;
                locations.insert(format!("step{at}"), value);
            }
        }
        let mut value = json!({ "infos": infos });
        if !locations.is_empty() {
            value["locations"] = locations.into();
        }
        self.source = Some(value);
        Ok(places)
    }

    /// The document.
    ///
    /// # Errors
    /// Never in fact.
    pub(crate) fn write(&self, version: Version, details: &Details<'_>) -> serde_json::Result<Value> {
        match version {
            Version::V1 => self.v1(details),
            Version::V02 => self.v02(details),
        }
    }

    fn v1(&self, details: &Details<'_>) -> serde_json::Result<Value> {
        let mut internal = self.surroundings("builderPlatform");
        if let Some(config) = &self.build_config {
            internal.entry("buildConfig").or_insert_with(|| config.clone());
        }
        let mut definition = json!({
            "buildType": BUILD_TYPE_V1,
            "externalParameters": { "configSource": self.config_source, "request": self.request },
            "internalParameters": internal,
        });
        if !self.materials.is_empty() {
            definition["resolvedDependencies"] = to_value(&self.materials)?;
        }
        let mut metadata = json!({
            "invocationId": details.run.id,
            "startedOn": details.run.started,
            "finishedOn": details.completed,
            "buildkit_metadata": self.metadata(details)?,
            "buildkit_completeness": {
                "request": self.request_complete,
                "resolvedDependencies": self.materials_complete,
            },
        });
        for (key, set) in
            [("buildkit_hermetic", self.hermetic), ("buildkit_reproducible", details.reproducible)]
        {
            if set {
                metadata[key] = true.into();
            }
        }
        Ok(json!({
            "buildDefinition": definition,
            "runDetails": { "builder": { "id": details.builder_id }, "metadata": metadata },
        }))
    }

    fn v02(&self, details: &Details<'_>) -> serde_json::Result<Value> {
        let mut source = to_value(&self.config_source)?;
        if let Some(path) = source.as_object_mut().and_then(|source| source.remove("path")) {
            source["entryPoint"] = path;
        }
        let mut metadata = json!({
            "buildInvocationID": details.run.id,
            "buildStartedOn": details.run.started,
            "buildFinishedOn": details.completed,
            "completeness": {
                "parameters": self.request_complete,
                "environment": true,
                "materials": self.materials_complete,
            },
            "reproducible": details.reproducible,
            "https://mobyproject.org/buildkit@v1#metadata": self.metadata(details)?,
        });
        if self.hermetic {
            metadata["https://mobyproject.org/buildkit@v1#hermetic"] = true.into();
        }
        let mut document = json!({
            "builder": { "id": details.builder_id },
            "buildType": BUILD_TYPE_V02,
            "invocation": {
                "configSource": source,
                "parameters": self.request,
                "environment": self.surroundings("platform"),
            },
            "metadata": metadata,
        });
        if let Some(config) = &self.build_config {
            document["buildConfig"] = config.clone();
        }
        if !self.materials.is_empty() {
            document["materials"] = to_value(&self.materials)?;
        }
        Ok(document)
    }

    /// What it ran on. What the daemon's owner says counts more.
    fn surroundings(&self, platform: &str) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert(platform.to_owned(), Platform::host().normalized().to_string().into());
        if self.request.frontend == DOCKERFILE {
            map.insert("dockerfileVersion".to_owned(), base::version::DOCKERFILE.into());
        }
        map.extend((*self.environment).clone());
        map
    }

    fn metadata(&self, details: &Details<'_>) -> serde_json::Result<Value> {
        let mut map = Map::new();
        if !self.vcs.is_empty() {
            map.insert("vcs".to_owned(), to_value(&self.vcs)?);
        }
        if let Some(source) = &self.source {
            map.insert("source".to_owned(), source.clone());
        }
        if !details.layers.is_empty() {
            map.insert("layers".to_owned(), to_value(&details.layers)?);
        }
        if let Some(network) = &self.network {
            map.insert("network".to_owned(), network.clone());
        }
        Ok(map.into())
    }
}

fn config(steps: Vec<Value>, places: &BTreeMap<Digest, usize>) -> Value {
    let mut value = json!({});
    if !steps.is_empty() {
        value["llbDefinition"] = steps.into();
    }
    if !places.is_empty() {
        value["digestMapping"] = json!(mapping(places));
    }
    value
}

fn put(value: &mut Value, key: &str, text: &str) {
    if !text.is_empty() {
        value[key] = text.into();
    }
}

/// Whether anything was left out that makes the request incomplete.
fn scrub(request: &mut Parameters) -> bool {
    let before = request.args.len();
    request.args.retain(|key, _| !key.starts_with("build-arg:") && !key.starts_with("label:"));
    let mut incomplete = request.args.len() < before;
    request.secrets.clear();
    request.ssh.clear();
    let nested = request.inputs.values_mut().chain(request.root.as_deref_mut());
    for inner in nested {
        incomplete |= scrub(&mut inner.request);
    }
    incomplete
}
