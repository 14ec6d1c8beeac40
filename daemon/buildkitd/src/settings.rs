//! What is to be done: flags over configuration over defaults, checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base::Platform;
use ops::Entitlement;
use refs::PrunePolicy;

use crate::config::{self, Config, DiskSpace};
use crate::flags::Flags;
use crate::listen::Owner;
use crate::rootless;
use crate::tls::TlsFiles;

/// Everything the program needs to know, once.
pub(crate) struct Settings {
    pub(crate) root: PathBuf,
    /// What is mounted is seen by nobody else, and ends with the daemon.
    pub(crate) own_mounts: bool,
    pub(crate) addresses: Vec<String>,
    pub(crate) owner: Owner,
    pub(crate) tls: TlsFiles,
    /// TCP listeners serve clients that do not show who they are.
    pub(crate) anybody: bool,
    /// How long builds may go on after the daemon was told to stop.
    pub(crate) grace: Duration,
    pub(crate) entitlements: BTreeSet<Entitlement>,
    /// Steps reach the network only through a proxy.
    pub(crate) proxy: bool,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) platforms: Vec<Platform>,
    pub(crate) snapshotter: store::Snapshotter,
    pub(crate) network: Network,
    pub(crate) dns: cni::dns::Overrides,
    pub(crate) runtime: Option<PathBuf>,
    pub(crate) process_sandbox: bool,
    /// No control groups and no networks can be made.
    pub(crate) rootless: bool,
    pub(crate) cgroup_parent: String,
    pub(crate) apparmor_profile: Option<String>,
    pub(crate) parallelism: Option<usize>,
    pub(crate) collect: bool,
    pub(crate) policies: Policies,
    pub(crate) registries: registry::Config,
    pub(crate) history: build::HistoryLimits,
    pub(crate) frontends: build::Frontends,
    pub(crate) log_limits: ops::LogLimits,
    pub(crate) devices: exec::Devices,
    /// What provenance says of this daemon.
    pub(crate) provenance_environment: serde_json::Map<String, serde_json::Value>,
}

/// The network of build steps, as asked for.
pub(crate) struct Network {
    pub(crate) mode: String,
    pub(crate) config: Option<PathBuf>,
    pub(crate) plugins: Option<PathBuf>,
    pub(crate) pool: usize,
    pub(crate) bridge: Option<String>,
    pub(crate) subnet: Option<String>,
}

/// Garbage collection, before the size of the disk is known.
pub(crate) enum Policies {
    /// Made from these limits, where they are given.
    Default { reserved: Option<DiskSpace>, max_used: Option<DiskSpace>, min_free: Option<DiskSpace> },
    /// These and no others.
    Given(Vec<config::GcPolicy>),
}

impl Policies {
    /// For a disk of `total` bytes.
    pub(crate) fn on(&self, total: u64) -> Vec<PrunePolicy> {
        let bytes = |space: &Option<DiskSpace>| space.map(|s| s.bytes(total));
        match self {
            Self::Default { reserved, max_used, min_free } => {
                let mut policies = refs::default_policies(total);
                // The first rule has a limit of its own.
                for policy in policies.iter_mut().skip(1) {
                    policy.reserved = bytes(reserved).unwrap_or(policy.reserved);
                    policy.max_used = bytes(max_used).unwrap_or(policy.max_used);
                    policy.min_free = bytes(min_free).unwrap_or(policy.min_free);
                }
                policies
            }
            Self::Given(given) => given
                .iter()
                .map(|g| PrunePolicy {
                    all: g.all,
                    filters: g.filters.clone(),
                    keep_duration: g.keep_duration.map(|d| d.0).filter(|d| !d.is_zero()),
                    reserved: bytes(&g.reserved_space.or(g.keep_bytes)).unwrap_or(0),
                    max_used: bytes(&g.max_used_space).unwrap_or(0),
                    min_free: bytes(&g.min_free_space).unwrap_or(0),
                })
                .collect(),
        }
    }
}

const PROVENANCE_DIR: &str = "/etc/buildkit/provenance.d";
const CDI_DIRS: [&str; 3] = ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"];

/// What builds may be granted; devices, wherever they can be had.
fn entitlements(allowed: &[String], devices: bool) -> Result<BTreeSet<Entitlement>> {
    let allowed = allowed.iter().map(|e| e.parse::<Entitlement>().map_err(to_anyhow));
    allowed.chain(devices.then_some(Ok(Entitlement::Device))).collect()
}

impl Settings {
    /// Flags over configuration over defaults.
    ///
    /// # Errors
    /// What is wrong with the first value that is, and where it came from.
    pub(crate) fn new(flags: Flags, config: Config) -> Result<Self> {
        let oci = config.worker.oci;
        check_workers(&flags, oci.enabled, config.worker.containerd.as_ref())?;
        check_caches(&config.cache)?;
        let mode = rootless::Mode::new(&flags, oci.rootless, oci.no_process_sandbox)?;
        let root = flags.root.or(config.root).unwrap_or_else(rootless::root);
        let root = std::path::absolute(&root).with_context(|| format!("root {}", root.display()))?;
        let mut labels = oci.labels;
        for label in &flags.oci_worker_labels {
            let (key, value) =
                label.split_once('=').with_context(|| format!("label {label:?} is not KEY=VALUE"))?;
            labels.insert(key.to_owned(), value.to_owned());
        }
        let platforms =
            if flags.oci_worker_platform.is_empty() { oci.platforms } else { flags.oci_worker_platform };
        let allowed = match flags.allow_insecure_entitlement.as_slice() {
            [] => config.insecure_entitlements,
            flags => flags.to_vec(),
        };
        let runtime = flags.oci_worker_binary.or(oci.binary);
        let cdi = !flags.cdi_disabled.or(config.cdi.disabled).unwrap_or(false);
        Ok(Self {
            root,
            own_mounts: false,
            addresses: first(vec![flags.addr, config.grpc.address, vec![rootless::address()]]),
            owner: Owner {
                uid: config.grpc.uid,
                gid: flags.group.as_deref().map(group).transpose()?.or(config.grpc.gid),
            },
            tls: TlsFiles {
                cert: flags.tlscert.or(config.grpc.tls.cert),
                key: flags.tlskey.or(config.grpc.tls.key),
                ca: flags.tlscacert.or(config.grpc.tls.ca),
            },
            anybody: flags.allow_unauthenticated_tcp || config.grpc.allow_unauthenticated_tcp,
            grace: grace(flags.shutdown_grace.as_deref(), config.system.shutdown_grace)?,
            entitlements: entitlements(&allowed, cdi)?,
            proxy: flags.proxy_network.unwrap_or(config.proxy_network),
            devices: if cdi {
                let dirs = first(vec![
                    flags.cdi_spec_dir,
                    config.cdi.spec_dirs,
                    CDI_DIRS.iter().map(PathBuf::from).collect(),
                ]);
                exec::Devices::new(dirs, config.cdi.auto_allowed)
            } else {
                exec::Devices::default()
            },
            labels,
            platforms: platforms.iter().map(|p| Ok(p.parse::<Platform>()?)).collect::<Result<_>>()?,
            snapshotter: snapshotter(flags.oci_worker_snapshotter.or(oci.snapshotter).as_deref())?,
            network: Network {
                mode: flags.oci_worker_net.or(oci.network_mode).unwrap_or_else(|| "auto".to_owned()),
                config: flags.oci_cni_config_path.or(oci.cni_config_path),
                plugins: flags.oci_cni_binary_dir.or(oci.cni_binary_path),
                pool: flags.oci_cni_pool_size.or(oci.cni_pool_size).unwrap_or(0),
                bridge: oci.bridge_name,
                subnet: oci.bridge_subnet,
            },
            dns: dns(config.dns)?,
            runtime: runtime.map(PathBuf::from),
            process_sandbox: mode.process_sandbox,
            rootless: mode.rootless,
            cgroup_parent: oci.default_cgroup_parent.unwrap_or_default(),
            apparmor_profile: flags
                .oci_worker_apparmor_profile
                .or(oci.apparmor_profile)
                .filter(|p| !p.is_empty()),
            parallelism: flags.oci_max_parallelism.or(oci.max_parallelism).filter(|n| *n > 0),
            collect: flags.oci_worker_gc.or(oci.gc).unwrap_or(true),
            policies: policies(
                oci.gcpolicy,
                flags.oci_worker_gc_keepstorage.as_deref(),
                [oci.reserved_space.or(oci.gc_keep_storage), oci.min_free_space, oci.max_used_space],
            )?,
            registries: registries(config.registry, config.system.max_registry_concurrency)?,
            history: {
                let default = build::HistoryLimits::default();
                build::HistoryLimits {
                    max_age: config.history.max_age.map_or(default.max_age, |s| s.0),
                    max_entries: config
                        .history
                        .max_entries
                        .map_or(default.max_entries, |n| usize::try_from(n).unwrap_or(0)),
                }
            },
            frontends: frontends(&config.frontend)?,
            log_limits: log_limits()?,
            provenance_environment: provenance_environment(
                config.provenance_env_dir.as_deref().unwrap_or(Path::new(PROVENANCE_DIR)),
            )?,
        })
    }
}

fn to_anyhow(failure: base::Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure}")
}

/// The first list that is not empty.
fn first<T>(lists: Vec<Vec<T>>) -> Vec<T> {
    lists.into_iter().find(|list| !list.is_empty()).unwrap_or_default()
}

fn check_workers(flags: &Flags, enabled: Option<bool>, containerd: Option<&toml::Table>) -> Result<()> {
    match flags.oci_worker.as_str() {
        "true" | "auto" => {}
        "false" => bail!("no worker found: --oci-worker=false leaves this daemon nothing to build with"),
        other => bail!("--oci-worker={other}: expected true, false or auto"),
    }
    if flags.oci_worker == "auto" && enabled == Some(false) {
        bail!("no worker found: [worker.oci] enabled = false leaves this daemon nothing to build with");
    }
    let wanted = containerd.and_then(|t| t.get("enabled")).and_then(toml::Value::as_bool) == Some(true);
    match flags.containerd_worker.as_str() {
        "auto" if wanted => {
            tracing::warn!("[worker.containerd] is not served by this daemon; it builds with the OCI worker")
        }
        "false" | "auto" => {}
        other => bail!("--containerd-worker={other}: this daemon builds with the OCI worker only"),
    }
    Ok(())
}

/// A cache that is neither signed nor verified would pass for one that is.
fn check_caches(cache: &config::Cache) -> Result<()> {
    if cache.gha.sign.is_some() || cache.gha.verify.required {
        bail!("[cache.gha] sign and verify: this daemon neither signs caches nor verifies their signatures");
    }
    Ok(())
}

/// The flag over the configuration over ten seconds.
fn grace(flag: Option<&str>, configured: Option<config::Span>) -> Result<Duration> {
    match flag {
        None => Ok(configured.map_or(Duration::from_secs(10), |span| span.0)),
        Some(text) => {
            let span = config::Span::parse(text);
            Ok(span.with_context(|| format!("--shutdown-grace {text:?} is not a duration such as 30s"))?.0)
        }
    }
}

fn snapshotter(name: Option<&str>) -> Result<store::Snapshotter> {
    Ok(match name {
        None | Some("" | "auto") => store::Snapshotter::Auto,
        Some("overlayfs" | "overlay") => store::Snapshotter::Overlay,
        Some("native") => store::Snapshotter::Native,
        Some(other) => bail!("unknown snapshotter {other:?}: expected auto, overlayfs or native"),
    })
}

/// A group by name or number.
fn group(name: &str) -> Result<u32> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let groups = std::fs::read_to_string("/etc/group").context("read /etc/group")?;
    let line = groups.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|l| l.first() == Some(&name));
    let gid = line.and_then(|l| l.get(2).and_then(|gid| gid.parse().ok()));
    gid.with_context(|| format!("--group {name}: no such group"))
}

fn dns(dns: config::Dns) -> Result<cni::dns::Overrides> {
    let address = |text: &String| {
        text.parse().with_context(|| format!("dns.nameservers: {text:?} is not an IP address"))
    };
    Ok(cni::dns::Overrides {
        nameservers: dns.nameservers.iter().map(address).collect::<Result<_>>()?,
        options: dns.options,
        search: dns.search_domains,
    })
}

/// `limits` are reserved, free and maximal space, as configured.
fn policies(
    given: Vec<config::GcPolicy>,
    flag: Option<&str>,
    limits: [Option<DiskSpace>; 3],
) -> Result<Policies> {
    if !given.is_empty() {
        return Ok(Policies::Given(given));
    }
    let [mut reserved, mut min_free, mut max_used] = limits;
    for (slot, part) in [&mut reserved, &mut min_free, &mut max_used]
        .into_iter()
        .zip(flag.into_iter().flat_map(|f| f.split(',')))
    {
        let part = part.trim();
        let space = match part.parse::<u64>() {
            Ok(megabytes) => Some(DiskSpace::Bytes(megabytes.saturating_mul(1_000_000))),
            Err(_) => DiskSpace::parse(part),
        };
        *slot = Some(space.with_context(|| format!("--oci-worker-gc-keepstorage: {part:?} is not a size"))?);
    }
    Ok(Policies::Default { reserved, max_used, min_free })
}

fn registries(
    hosts: BTreeMap<String, config::Registry>,
    concurrency: Option<usize>,
) -> Result<registry::Config> {
    let mut config = registry::Config {
        // As servers know the reference, and then who it is.
        user_agent: format!("buildkit/v0.32 buildkit-cni/{}", env!("CARGO_PKG_VERSION")),
        ..registry::Config::default()
    };
    if let Some(concurrency) = concurrency {
        if concurrency == 0 {
            bail!("system.maxRegistryConcurrency: must be above zero");
        }
        config.max_concurrency = concurrency;
    }
    for (host, r) in hosts {
        let key_pairs = r.keypair.into_iter().map(|k| registry::KeyPair { certificate: k.cert, key: k.key });
        let host_config = registry::HostConfig {
            mirrors: r.mirrors,
            http: r.http,
            insecure: r.insecure.unwrap_or(false),
            ca: r.ca,
            key_pairs: key_pairs.collect(),
            tls_config_dirs: r.tlsconfigdir,
        };
        config.hosts.insert(host, host_config);
    }
    Ok(config)
}

fn frontends(configured: &BTreeMap<String, config::Frontend>) -> Result<build::Frontends> {
    let known = ["dockerfile.v0", "gateway.v0"];
    if let Some(name) = configured.keys().find(|name| !known.contains(&name.as_str())) {
        bail!("[frontend.{name:?}]: no such frontend; there are {}", known.join(" and "));
    }
    let enabled = |name: &&str| configured.get(*name).and_then(|f| f.enabled) != Some(false);
    let repositories =
        configured.get("gateway.v0").map(|f| f.allowed_repositories.clone()).unwrap_or_default();
    for name in &repositories {
        name.parse::<base::reference::Reference>()
            .with_context(|| format!("[frontend.\"gateway.v0\"] allowedRepositories: {name:?}"))?;
    }
    let enabled = known.into_iter().filter(enabled).map(str::to_owned).collect();
    Ok(build::Frontends { enabled, repositories })
}

/// What provenance says of this daemon: the objects in all `.json` files of a
/// directory, in order of their names. None when it is not there.
fn provenance_environment(dir: &Path) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut all = serde_json::Map::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(all),
        Err(e) => return Err(e).with_context(|| format!("provenanceEnvDir: read {}", dir.display())),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.with_context(|| format!("provenanceEnvDir: read {}", dir.display()))?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "json") && !path.is_dir());
    paths.sort();
    for path in paths {
        let text =
            std::fs::read(&path).with_context(|| format!("provenanceEnvDir: read {}", path.display()))?;
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text)
            .with_context(|| format!("provenanceEnvDir: failed to parse {}", path.display()))?;
        all.extend(object);
    }
    Ok(all)
}

/// How much a step may print, from the environment as the reference has it.
fn log_limits() -> Result<ops::LogLimits> {
    let limit = |name: &str, default: Option<u64>| match std::env::var(name) {
        Err(_) => Ok(default),
        Ok(text) if text == "-1" => Ok(None),
        Ok(text) => {
            text.parse().map(Some).with_context(|| format!("{name}={text}: expected a number of bytes or -1"))
        }
    };
    let default = ops::LogLimits::default();
    Ok(ops::LogLimits {
        size: limit("BUILDKIT_STEP_LOG_MAX_SIZE", default.size)?,
        speed: limit("BUILDKIT_STEP_LOG_MAX_SPEED", default.speed)?,
    })
}

/// Directories below the root.
pub(crate) struct Places<'a>(pub(crate) &'a Path);

impl Places<'_> {
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("buildkitd.lock")
    }
    pub(crate) fn worker_id(&self) -> PathBuf {
        self.0.join("workerid")
    }
    pub(crate) fn executor(&self) -> PathBuf {
        self.0.join("executor")
    }
    pub(crate) fn scratch(&self) -> PathBuf {
        self.0.join("tmp")
    }
}
