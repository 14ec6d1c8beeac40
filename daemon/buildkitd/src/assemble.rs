//! Puts the daemon together: every part is made here, once, lowest first.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use base::task::Scope;
use base::{Failure, Kind, Platform};
use build::{Builder, History, Traces, WorkerInfo};
use control::Collector;
use ops::source::git::Repositories;
use ops::source::http::Http;
use ops::source::image::Images;
use ops::{CacheMounts, Contents, Results, Worker};
use refs::{PrunePolicy, Refs};
use registry::Registries;
use session::Sessions;
use solver::Solver;
use store::Store;
use sys::directory::{self, PRIVATE};
use tokio::sync::{Semaphore, watch};

use crate::listen::{RELEASE, RETRY};
use crate::network;
use crate::settings::{Places, Settings};
use crate::status::{Because as _, Status, refusal};

/// The parts that are used after everything is put together.
pub(crate) struct Daemon {
    pub(crate) builder: Arc<Builder>,
    pub(crate) sessions: Sessions,
    pub(crate) policies: watch::Sender<Vec<PrunePolicy>>,
    pub(crate) registries: Registries,
    /// Size of the disk with the root, in bytes.
    pub(crate) disk: u64,
    pub(crate) network: network::Provider,
    /// Held as long as the daemon runs: no second one on the same root.
    pub(crate) lock: File,
}

fn failed(what: &'static str, status: Status) -> impl FnOnce(Failure) -> anyhow::Error {
    // What the machine lacks, rather than the disk.
    let status = move |failure: &Failure| match failure.kind() {
        Kind::FailedPrecondition => Status::Unavailable,
        _ => status,
    };
    move |failure| match failure.hint() {
        Some(hint) => refusal(status(&failure), format!("{what}: {failure}; {hint}")),
        None => refusal(status(&failure), format!("{what}: {failure}")),
    }
}

/// Makes the daemon. `scope` owns all its work.
///
/// # Errors
/// The first part that cannot be made, and why.
pub(crate) async fn daemon(settings: &Settings, scope: &Scope) -> Result<Daemon> {
    let places = Places(&settings.root);
    let lock = take_root(&settings.root)?;

    // Three things take time, and none of them needs another.
    let (records, network, host) =
        tokio::join!(open(settings, scope), network::Provider::new(settings, scope), prepare(settings));
    let ((store, refs), host) = match (records, host) {
        (Ok(records), Ok(host)) => (records, host),
        (Err(error), _) | (_, Err(error)) => {
            if let Ok(network) = network {
                network.close().await;
            }
            return Err(error);
        }
    };
    let network = network?;
    let executor = exec::Executor::new(host, network.network());

    let scratch = places.scratch();
    directory::own(&scratch, PRIVATE)?;
    let sessions = Sessions::new(scope.child());
    let images = Images::new(Registries::new(settings.registries.clone()), sessions.clone(), store.clone());
    let images = Arc::new(images);
    let platforms = match settings.platforms.as_slice() {
        [] => vec![Platform::host()],
        given => given.to_vec(),
    };
    let info = WorkerInfo { id: worker_id(&places.worker_id())?, labels: labels(settings, &store, &network) };
    let worker = Arc::new(Worker {
        refs: refs.clone(),
        executor,
        sessions: sessions.clone(),
        git: Repositories::default(),
        http: Http::new(images.registries().clone()),
        images: images.clone(),
        platforms,
        parallelism: settings.parallelism.map(|n| Arc::new(Semaphore::new(n))),
        contents: Contents::default(),
        cache_mounts: CacheMounts::default(),
        devices: settings.devices.clone(),
        scratch,
        log_limits: settings.log_limits,
    });

    let keys: Arc<dyn solver::KeyIndex> = Arc::new(keys::Keys::open(store.db().clone(), scope));
    let results = Arc::new(Results::new(refs, images.clone()));
    let solver = Solver::new(solver::Deps { keys: keys.clone(), results, scope: scope.clone() });
    let disk = store.disk().map_or(0, |disk| disk.total);
    let policies = watch::Sender::new(settings.policies.on(disk));
    let registries = images.registries().clone();
    let exporters =
        export::Deps { store: store.clone(), registries: registries.clone(), sessions: sessions.clone() };
    let collector = Collector::from_env(|name| std::env::var(name).ok(), images.registries())
        .await
        .map_err(failed("find the collector of traces", Status::Config))?;
    let traces = collector.map_or_else(Traces::default, |collector| collector.start(scope));
    let cmdline = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let builder = Builder::new(build::Deps {
        worker,
        solver,
        keys,
        exporters,
        allowed: settings.entitlements.clone(),
        proxy: settings.proxy,
        frontends: settings.frontends.clone(),
        info,
        history: History::new(store, settings.history, cmdline, scope.child()),
        traces,
        environment: settings.provenance_environment.clone(),
        encode: control::encode_progress,
        scope: scope.clone(),
    });
    builder.forget_pruned().map_err(failed("tidy the key index", Status::Disk))?;
    Ok(Daemon { builder, sessions, policies, registries, disk, network, lock })
}

/// Opens the store, and what is known of its content.
async fn open(settings: &Settings, scope: &Scope) -> Result<(Store, Refs)> {
    let options = store::Options { snapshotter: settings.snapshotter, sync_blobs: false };
    let root = settings.root.clone();
    let opened = async {
        let store = base::task::blocking(move || Ok(Store::open(root, options)?)).await?;
        let options = refs::Options { scope: scope.child(), ..refs::Options::default() };
        let refs = Refs::open(store.clone(), options).await?;
        Ok((store, refs))
    };
    opened.await.map_err(failed("open the store", Status::Disk))
}

/// Finds out how containers are run here.
async fn prepare(settings: &Settings) -> Result<exec::Prepared> {
    let prepared = exec::prepare(exec::Config {
        runtimes: settings.runtime.clone().into_iter().collect(),
        search_path: std::env::var("PATH").unwrap_or_default(),
        state: Places(&settings.root).executor(),
        in_memory: settings.own_mounts && !settings.rootless,
        cgroup_parent: settings.cgroup_parent.clone(),
        apparmor_profile: settings.apparmor_profile.clone(),
        process_sandbox: settings.process_sandbox,
        rootless: settings.rootless,
        oom_score_adj: None,
        dns: settings.dns.clone(),
    });
    prepared.await.map_err(failed("prepare to run containers", Status::Unavailable))
}

/// Makes the root directory and makes sure that this is the only daemon in it.
fn take_root(root: &Path) -> Result<File> {
    directory::make(root, PRIVATE).context("make the root directory").because(Status::Disk)?;
    let path = Places(root).lock();
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let deadline = Instant::now() + RELEASE;
    let locked = loop {
        match lock.try_lock() {
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(RETRY),
            outcome => break outcome,
        }
    };
    match locked {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => {
            let message = format!(
                "could not lock {}, another instance running? Stop it, or use another directory with --root",
                path.display()
            );
            Err(refusal(Status::Busy, message))
        }
        Err(fs::TryLockError::Error(e)) => Err(e).with_context(|| format!("lock {}", path.display())),
    }
}

/// The name of this worker, made at the first start.
fn worker_id(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        _ => {
            let id = base::id::fresh();
            let options = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
            options
                .and_then(|mut file| file.write_all(id.as_bytes()))
                .with_context(|| format!("write {}", path.display()))?;
            Ok(id)
        }
    }
}

fn labels(settings: &Settings, store: &Store, network: &network::Provider) -> BTreeMap<String, String> {
    const PREFIX: &str = "org.mobyproject.buildkit.worker.";
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mode = if settings.process_sandbox { "sandbox" } else { "no-sandbox" };
    let mut labels: BTreeMap<String, String> = [
        ("executor", "oci"),
        ("hostname", &hostname),
        ("network", network.label()),
        ("oci.process-mode", mode),
        ("selinux.enabled", "false"),
        ("snapshotter", store.snapshots().name()),
    ]
    .map(|(key, value)| (format!("{PREFIX}{key}"), value.to_owned()))
    .into();
    if let Some(profile) = &settings.apparmor_profile {
        labels.insert(format!("{PREFIX}apparmor.profile"), profile.clone());
    }
    labels.extend(settings.labels.clone());
    labels
}
