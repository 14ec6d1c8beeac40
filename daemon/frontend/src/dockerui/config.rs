//! The options of a build, read.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base::gotext::{parse_bool, quote};
use base::reference::Reference;
use base::{Failure, Kind, Platform};
use llb::build::ResolveMode;
use proto::pb;
use serde::Deserialize;

use super::options::{self, get, with_prefix};
use crate::dockerfile::lint;
use crate::gateway::{CacheImport, Options};

/// The options of a build.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Build arguments.
    pub build_args: BTreeMap<String, String>,
    /// Prefix of the ids of cache mounts.
    pub cache_namespace: String,
    /// Control group of processes.
    pub cgroup_parent: String,
    /// Lines of `/etc/hosts`.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// Name of the machine.
    pub hostname: String,
    /// Whether to look for images here first.
    pub resolve_mode: ResolveMode,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Network of processes that do not say.
    pub network: pb::NetMode,
    /// Size of `/dev/shm` in bytes; zero: as usual.
    pub shm_size: i64,
    /// The stage to build; empty: the last.
    pub target: String,
    /// Limits of processes.
    pub ulimits: Vec<pb::Ulimit>,
    /// Limits of memory and processors.
    pub linux_resources: Option<pb::LinuxResources>,
    /// Devices of processes.
    pub devices: Vec<pb::CdiDevice>,
    /// Which lint rules count, instead of what the file says.
    pub lint: Option<lint::Config>,
    /// Remote caches to look in.
    pub cache_imports: Vec<CacheImport>,
    /// What to build for; empty: the default.
    pub target_platforms: Vec<Platform>,
    /// What can be built on.
    pub build_platforms: Vec<Platform>,
    /// The result is to be one per platform.
    pub multi_platform: bool,
    /// A list of the contents of the result is to be made.
    pub sbom: Option<Sbom>,
    /// Stages to build anew: `None` for none, empty for all.
    pub no_cache: Option<Vec<String>>,
    /// Sessions of local contexts, where it is not the build's.
    pub local_sessions: BTreeMap<String, String>,
}

/// A list of the contents of the result is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sbom {
    /// The image of the scanner.
    pub generator: String,
    /// For the scanner.
    pub parameters: BTreeMap<String, String>,
}

fn bad(text: impl Into<String>) -> Failure {
    Failure::new(Kind::Unknown, text)
}

impl Config {
    /// Reads options, those of the daemon's workers included.
    ///
    /// # Errors
    /// The option that makes no sense.
    pub fn new(options: &Options) -> Result<Self, Failure> {
        let opts = &options.opts;
        check_removed(options)?;
        let text = |key: &str| opts.get(key).cloned().unwrap_or_default();
        let context = |what: &'static str| move |e: Failure| e.context(what);

        let native = options.workers.first().and_then(|w| w.platforms.first());
        let target_platforms = match get(opts, "platform") {
            Some(list) => options::platforms(list)?,
            None => Vec::new(),
        };
        let several = target_platforms.len() > 1;
        let multi = get(opts, "build-arg:BUILDKIT_MULTI_PLATFORM").or_else(|| get(opts, "multi-platform"));
        let multi_platform = match multi {
            None => several,
            Some(text) => match parse_bool(text) {
                None => return Err(bad(format!("invalid boolean value for multi-platform: {text}"))),
                Some(false) if several => {
                    return Err(bad(
                        "conflicting config: returning multiple target platforms is not allowed",
                    ));
                }
                Some(value) => value,
            },
        };
        let lint = match opts.get("build-arg:BUILDKIT_DOCKERFILE_CHECK") {
            None => None,
            Some(text) => Some(lint::Config::parse(text).map_err(|e| {
                bad(e.to_string()).context("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK")
            })?),
        };
        Ok(Self {
            build_args: with_prefix(opts, "build-arg:"),
            cache_namespace: text("build-arg:BUILDKIT_CACHE_MOUNT_NS"),
            cgroup_parent: text("cgroup-parent"),
            extra_hosts: options::extra_hosts(&text("add-hosts"))
                .map_err(context("failed to parse additional hosts"))?,
            hostname: get(opts, "build-arg:BUILDKIT_SANDBOX_HOSTNAME")
                .map_or_else(|| text("hostname"), str::to_owned),
            resolve_mode: options::resolve_mode(&text("image-resolve-mode"))?,
            labels: with_prefix(opts, "label:"),
            network: options::network(&text("force-network-mode"))?,
            shm_size: options::shm_size(&text("shm-size")).map_err(context("failed to parse shm size"))?,
            target: text("target"),
            ulimits: options::ulimits(&text("ulimit")).map_err(context("failed to parse ulimit"))?,
            linux_resources: options::linux_resources(opts)
                .map_err(context("failed to parse resource limits"))?,
            devices: Vec::new(),
            lint,
            cache_imports: cache_imports(opts)?,
            target_platforms,
            build_platforms: vec![native.cloned().unwrap_or_else(Platform::host)],
            multi_platform,
            sbom: sbom(opts)?,
            no_cache: opts.get("no-cache").map(|list| match list.as_str() {
                "" => Vec::new(),
                list => list.split(',').map(str::to_owned).collect(),
            }),
            local_sessions: with_prefix(opts, "local-sessionid:"),
        })
    }

    /// Whether the stage `name` is to be built anew.
    pub fn is_no_cache(&self, name: &str) -> bool {
        self.no_cache
            .as_ref()
            .is_some_and(|stages| stages.is_empty() || stages.iter().any(|s| same_name(s, name)))
    }
}

/// Equal but for case.
pub(crate) fn same_name(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}

/// What a client asks for that has not worked for years.
fn check_removed(options: &Options) -> Result<(), Failure> {
    let opts = &options.opts;
    options
        .llb_caps
        .supports(llb::caps::FILE_BASE)
        .map_err(|e| bad(e.to_string()).context("needs BuildKit 0.5 or later"))?;
    if get(opts, "override-copy-image").is_some() {
        return Err(bad("support for \"override-copy-image\" was removed in BuildKit 0.11"));
    }
    let disabled = opts.get("build-arg:BUILDKIT_DISABLE_FILEOP").and_then(|v| parse_bool(v));
    if disabled == Some(true) {
        return Err(bad("support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11"));
    }
    Ok(())
}

fn cache_imports(opts: &BTreeMap<String, String>) -> Result<Vec<CacheImport>, Failure> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default, rename = "Type")]
        kind: String,
        #[serde(default, rename = "Attrs")]
        attrs: Option<BTreeMap<String, String>>,
    }
    let mut imports = Vec::new();
    if let Some(json) = get(opts, "cache-imports") {
        let entries: Vec<Entry> = serde_json::from_str(json).map_err(|e| {
            bad(e.to_string()).context(format!("failed to unmarshal cache-imports ({})", quote(json)))
        })?;
        imports.extend(
            entries.into_iter().map(|e| CacheImport { kind: e.kind, attrs: e.attrs.unwrap_or_default() }),
        );
    }
    if let Some(list) = get(opts, "cache-from") {
        imports.extend(list.split(',').map(|reference| CacheImport {
            kind: "registry".to_owned(),
            attrs: BTreeMap::from([("ref".to_owned(), reference.to_owned())]),
        }));
    }
    Ok(imports)
}

/// The scanner that `opts` ask for.
///
/// # Errors
/// When its image has no name.
pub fn sbom(opts: &BTreeMap<String, String>) -> Result<Option<Sbom>, Failure> {
    let Some(mut attrs) = options::attestations(opts)?.remove("sbom") else { return Ok(None) };
    let Some(generator) = attrs.remove("generator") else {
        return Err(bad("sbom scanner cannot be empty"));
    };
    if generator.is_empty() {
        return Err(bad("sbom scanner cannot be empty"));
    }
    let generator = generator
        .parse::<Reference>()
        .map_err(|e| bad(e.to_string()).context(format!("failed to parse sbom scanner {generator}")))?
        .tag_name_only()
        .to_string();
    Ok(Some(Sbom { generator, parameters: attrs }))
}
