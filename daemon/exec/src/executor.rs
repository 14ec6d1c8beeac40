//! Runs processes, and removes what an earlier daemon left running.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::Failure;
use base::task::{Scope, blocking};
use cni::dns::Overrides;
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bundle::{Bundle, Machine, Seen};
use crate::filter::Filter;
use crate::ledger::Ledger;
use crate::network::NoNetwork;
use crate::places::Places;
use crate::process::is_id;
use crate::proxied::Proxied;
use crate::reap::reap;
use crate::run::{Ended, Run};
use crate::runtime::{Runtime, complaint, exit_code};
use crate::{
    Error, Exit, HostNetwork, Io, Namespace, Network, NetworkMode, Process, Reason, Security, cgroup,
    lookup_user,
};

/// How often is looked whether a container has started, for whoever waits for it.
const POLL: Duration = Duration::from_millis(10);

/// What an executor is made of.
pub struct Config {
    /// Runtime to use: the first that exists. Empty = `buildkit-runc`, `crun` or `runc`, the
    /// first that works here.
    pub runtimes: Vec<PathBuf>,
    /// Directories in which programs are looked for, as in `PATH`.
    pub search_path: String,
    /// Directory for what is known of containers; created when missing.
    pub state: PathBuf,
    /// Keeps in memory what ends with the containers. The mounts this process makes have to be
    /// its own, and containers need cgroups: by those, the next daemon finds what one that was
    /// killed has left.
    pub in_memory: bool,
    /// Parent of the containers' cgroups; empty = `/`.
    pub cgroup_parent: String,
    /// AppArmor profile of sandboxed processes.
    pub apparmor_profile: Option<String>,
    /// `false`: processes share the pid namespace of the daemon. For rootless daemons that
    /// may not mount `/proc`.
    pub process_sandbox: bool,
    /// No cgroups and no `/sys`, as an unprivileged daemon has to.
    pub rootless: bool,
    /// Adjustment of the out-of-memory score.
    pub oom_score_adj: Option<i32>,
    /// DNS settings that replace the host's where no network is asked.
    pub dns: Overrides,
}

/// All an executor needs but a network.
pub struct Prepared {
    runtime: Runtime,
    machine: Machine,
    dns: Overrides,
}

/// Finds a runtime, and removes containers that an earlier daemon left behind.
///
/// # Errors
/// When no runtime works here, or the state directory cannot be used.
pub async fn prepare(config: Config) -> Result<Prepared, Failure> {
    blocking(move || Ok(Prepared::new(config)?)).await
}

/// Runs processes. Clones are the same executor.
#[derive(Clone)]
pub struct Executor(Arc<Inner>);

struct Inner {
    host: Prepared,
    network: Arc<dyn Network>,
    running: Mutex<HashMap<String, Started>>,
    tasks: TaskTracker,
}

/// A container that has been started.
#[derive(Clone)]
struct Started {
    dir: PathBuf,
    rootfs: PathBuf,
    /// Variables by which its processes find the network.
    env: Vec<String>,
    ended: CancellationToken,
}

impl Executor {
    /// With `network` for the processes that ask for nothing special.
    pub fn new(prepared: Prepared, network: Arc<dyn Network>) -> Self {
        let (running, tasks) = (Mutex::default(), TaskTracker::new());
        Self(Arc::new(Inner { host: prepared, network, running, tasks }))
    }

    /// The program of the runtime in use.
    pub fn runtime(&self) -> &Path {
        self.0.host.runtime.program()
    }

    /// Runs a process in a container of its own and waits for its end. A process that
    /// failed is no error here: see [`Exit::check_process`].
    ///
    /// Cancelling `scope`, or dropping the future, kills the process; everything that was
    /// set up for it is removed in either case, by a task of `scope`.
    ///
    /// # Errors
    /// When it could not be run at all, or the cause of the cancellation.
    pub async fn run(&self, mut process: Process, io: Io, scope: &Scope) -> Result<Exit, Failure> {
        scope.check()?;
        if process.id.is_empty() {
            process.id = base::id::fresh();
        }
        check(&mut process)?;
        let inner = self.0.clone();
        let tasks = self.0.tasks.clone();
        let run = move |scope| tasks.track_future(async move { inner.run(process, io, &scope).await });
        supervised(scope, run).await
    }

    /// Waits until everything is removed that was set up for processes. Those that run have to be
    /// cancelled before.
    pub async fn idle(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Runs a process in a container that [`Self::run`] has started or is about to start.
    /// What `process` leaves empty is as the container's first process has it; its mounts,
    /// network and the like do not count.
    ///
    /// # Errors
    /// When there is no such container (any more), or the cause of the cancellation.
    pub async fn exec(&self, id: &str, process: Process, io: Io, scope: &Scope) -> Result<Exit, Failure> {
        scope.check()?;
        let (inner, id) = (self.0.clone(), id.to_owned());
        supervised(scope, move |scope| async move { inner.exec(&id, process, io, &scope).await }).await
    }
}

/// Runs `work` as a task of `scope`; when whoever waits for it is gone, it is cancelled
/// but not dropped.
async fn supervised<F>(scope: &Scope, work: impl FnOnce(Scope) -> F) -> Result<Exit, Failure>
where
    F: Future<Output = Result<Exit, Failure>> + Send + 'static,
{
    struct Waiting(Scope);
    impl Drop for Waiting {
        fn drop(&mut self) {
            self.0.cancel(Failure::canceled("nobody waits for the process"));
        }
    }
    let child = scope.child();
    let task = scope.spawn(work(child.clone()));
    let _waiting = Waiting(child);
    match task.await {
        Ok(result) => result,
        Err(e) => Err(Failure::internal(format!("the task that ran the process: {e}"))),
    }
}

fn check(process: &mut Process) -> Result<(), Error> {
    if !is_id(&process.id) {
        return Err(Error::Id(process.id.clone()));
    }
    if process.args.is_empty() {
        return Err(Error::Invalid("process without arguments".into()));
    }
    if !process.rootfs.is_absolute() {
        return Err(Error::Invalid(format!("root file system {} is not absolute", process.rootfs.display())));
    }
    for text in process.args.iter().chain(&process.env).chain([&process.cwd, &process.hostname]) {
        if text.contains('\0') {
            return Err(Error::Invalid(format!("NUL character in {text:?}")));
        }
    }
    if !process.cwd.starts_with('/') {
        process.cwd.insert(0, '/');
    }
    for mount in &mut process.mounts {
        if !mount.dest.starts_with('/') {
            mount.dest.insert(0, '/');
        }
        if Path::new(&mount.dest).components().nth(1).is_none() {
            return Err(Error::Invalid("mount on the root of the sandbox".into()));
        }
    }
    Ok(())
}

impl Prepared {
    fn new(config: Config) -> Result<Self, Error> {
        let state = &config.state;
        sys::directory::own(state, sys::directory::PRIVATE)?;
        let state = std::fs::canonicalize(state).map_err(Error::file("open", state))?;
        if let Some(profile) = &config.apparmor_profile
            && !std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.starts_with('Y'))
        {
            return Err(Error::Invalid(format!(
                "AppArmor is not supported on this host, but the profile '{profile}' was specified"
            )));
        }
        let ledger = Ledger::open(&state)?;
        let mut places = Places::open(&state)?;
        let runtime = Runtime::find(&config, &state, &places, &ledger)?;
        reap(&runtime, &places, ledger.left());
        if config.in_memory {
            places.move_to_memory()?;
        }
        let capabilities = caps::read(None, caps::CapSet::Effective).unwrap_or_default();
        let mut capabilities: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
        capabilities.sort_unstable();
        let machine = Machine {
            places,
            ledger,
            cgroup_parent: config.cgroup_parent,
            unified_cgroup: cgroup::is_unified(),
            process_sandbox: config.process_sandbox,
            rootless: config.rootless,
            in_user_namespace: in_user_namespace(),
            apparmor_profile: config.apparmor_profile,
            filter: Filter::default(),
            seccomp: Path::new("/proc/sys/kernel/seccomp").exists(),
            oom_score_adj: config.oom_score_adj,
            capabilities,
        };
        Ok(Self { runtime, machine, dns: config.dns })
    }
}

impl Inner {
    async fn run(self: Arc<Self>, process: Process, io: Io, scope: &Scope) -> Result<Exit, Failure> {
        // Nobody waits for it: it makes a difference only while other things are done.
        tokio::task::spawn_blocking(cgroup::expect_move);
        let network = self.network(&process, scope).await?;
        let result = self.run_in(network.as_ref(), process, io, scope).await;
        if let Err(e) = network.release().await {
            tracing::warn!(error = %e, "release network");
        }
        result
    }

    async fn network(&self, process: &Process, scope: &Scope) -> Result<Box<dyn Namespace>, Failure> {
        let namespace = match process.network {
            NetworkMode::Host => HostNetwork::new(self.host.dns.clone()).new_namespace("").await?,
            NetworkMode::None => return Ok(Box::new(NoNetwork(self.host.dns.clone()))),
            NetworkMode::Sandbox => scope.run(self.network.new_namespace(&process.hostname)).await?,
        };
        match &process.proxy {
            Some(terms) => {
                let proxied = Proxied::open(&*self.network, namespace, terms.clone(), scope);
                Ok(Box::new(scope.run(proxied).await?))
            }
            None => Ok(namespace),
        }
    }

    async fn run_in(
        self: &Arc<Self>,
        network: &dyn Namespace,
        mut process: Process,
        io: Io,
        scope: &Scope,
    ) -> Result<Exit, Failure> {
        let seen = Seen {
            attachment: network.attachment(),
            resolv_conf: network.resolv_conf().to_string(),
            authority: network.authority().map(str::to_owned),
        };
        process.env.extend(network.env());
        let process = Arc::new(process);
        let (inner, described) = (self.clone(), process.clone());
        let bundle = blocking(move || Ok(Bundle::create(&inner.host.machine, &described, &seen)?));
        let mut bundle = bundle.await?;
        let running = Started {
            dir: bundle.dir.clone(),
            rootfs: process.rootfs.clone(),
            env: network.env(),
            ended: CancellationToken::new(),
        };
        let taken = self.running.lock().insert(process.id.clone(), running.clone());
        debug_assert!(taken.is_none(), "the bundle's directory is unique");
        let systemd =
            cgroup::is_slice(&self.host.machine.cgroup_parent) || cgroup::is_slice(&process.cgroup_parent);
        let run = Run {
            command: self.host.runtime.run(&bundle.dir, &process.id, systemd),
            program: self.host.runtime.program(),
            pid_file: bundle.dir.join("pid"),
        };
        let learns = self.host.machine.filter.annotation().is_none() && process.security == Security::Sandbox;
        let (notes, pid_file) = (self.host.runtime.notes(&process.id), run.pid_file.clone());
        let mut ended = std::pin::pin!(run.drive(process.tty, io, scope));
        let ended = tokio::select! {
            ended = &mut ended => ended,
            () = self.host.machine.filter.learn(&notes, &pid_file), if learns => ended.await,
        };
        self.running.lock().remove(&process.id);
        running.ended.cancel();
        let inner = self.clone();
        blocking(move || {
            let exit = ended.map(|ended| inner.exit(ended, &process, &bundle.dir, "log.json", Some(&bundle)));
            // A runtime that was stopped halfway has not cleaned up.
            if inner.host.runtime.knows(&process.id) {
                bundle.cgroup.kill();
                inner.host.runtime.delete(&process.id);
                if !bundle.cgroup.end(&process.id) {
                    bundle.give_up();
                }
            }
            let restored = bundle.restore();
            drop(bundle);
            let exit = exit?;
            restored?;
            Ok(exit)
        })
        .await
    }

    fn exit(&self, ended: Ended, process: &Process, dir: &Path, log: &str, bundle: Option<&Bundle>) -> Exit {
        let code = exit_code(ended.status);
        let success = match &process.valid_exit_codes {
            None => code == 0,
            Some(codes) => codes.iter().any(|c| c.cast_unsigned() == code),
        };
        // Some runtimes note the pid before they try to start the program.
        let not_started = || match code {
            0 => None,
            1 | 126 | 127 => complaint(&dir.join(log)),
            _ if !ended.started => complaint(&dir.join(log)),
            _ => None,
        };
        let reason = if success {
            None
        } else if let Some(text) = not_started() {
            Some(Reason::NotStarted(text))
        } else if code != 0 && bundle.is_some_and(|b| b.cgroup.out_of_memory()) {
            Some(Reason::OutOfMemory)
        } else {
            None
        };
        Exit { code, success, reason }
    }

    async fn exec(
        self: Arc<Self>,
        id: &str,
        mut process: Process,
        io: Io,
        scope: &Scope,
    ) -> Result<Exit, Failure> {
        let container =
            self.running.lock().get(id).cloned().ok_or_else(|| Error::NoContainer(id.to_owned()))?;
        while !tokio::fs::try_exists(container.dir.join("pid")).await.unwrap_or(false) {
            tokio::select! {
                () = container.ended.cancelled() => {
                    return Err(Error::NoContainer(id.to_owned()).into());
                }
                cause = scope.cancelled() => return Err(cause),
                () = tokio::time::sleep(POLL) => {}
            }
        }
        process.id = id.to_owned();
        // Without variables of its own it has those of the first process, these among them.
        if !process.env.is_empty() {
            process.env.extend(container.env.iter().cloned());
        }
        let name = format!("exec{}", base::id::fresh());
        let (dir, rootfs, described) = (container.dir.clone(), container.rootfs.clone(), process.clone());
        let file = dir.join(format!("{name}.json"));
        blocking(move || Ok(describe_exec(&dir, &rootfs, &described, &file)?)).await?;
        let run = Run {
            command: self.host.runtime.exec(&container.dir, id, &name),
            program: self.host.runtime.program(),
            pid_file: container.dir.join(format!("{name}.pid")),
        };
        let ended = run.drive(process.tty, io, scope).await;
        let inner = self.clone();
        blocking(move || Ok(inner.exit(ended?, &process, &container.dir, &format!("{name}.log"), None))).await
    }
}

/// Writes the description of another process of a container.
fn describe_exec(dir: &Path, rootfs: &Path, process: &Process, file: &Path) -> Result<(), Error> {
    let config = dir.join("config.json");
    let text = std::fs::read(&config).map_err(Error::file("read", &config))?;
    let mut spec: Value =
        serde_json::from_slice(&text).map_err(|e| Error::Invalid(format!("config of container: {e}")))?;
    let mut words = spec.get_mut("process").map(Value::take).unwrap_or_default();
    let user = lookup_user(rootfs, &process.user)?;
    let asked = crate::spec::process(process, &user);
    if let (Some(words), Value::Object(asked)) = (words.as_object_mut(), asked) {
        for (key, value) in asked {
            let given = match key.as_str() {
                "user" => !process.user.is_empty(),
                "env" => !process.env.is_empty(),
                "cwd" => !process.cwd.is_empty(),
                "args" => !process.args.is_empty(),
                _ => true,
            };
            if given {
                words.insert(key, value);
            }
        }
    }
    std::fs::write(file, words.to_string()).map_err(Error::file("write", file))
}

/// Whether the ids of this process are others outside.
pub fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_ascii_whitespace();
    // All ids, mapped onto themselves: that is how it looks outside.
    !matches!((words.next(), words.next(), words.next()), (Some("0"), Some("0"), Some("4294967295")))
}
