//! A sandbox that a frontend or a client holds open, to run processes in.
//!
//! Its first process makes it; others join while that one runs. What is written
//! in it goes with it: nothing becomes a result.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base::progress::VertexSink;
use base::task::Scope;
use base::{Failure, Platform};
use exec::{HostAddress, Io, NetworkMode, Process, Security};
use parking_lot::Mutex;
use proto::pb;
use proxy::Terms;
use solver::{JobValues, OpContext};
use tokio::sync::{RwLock, oneshot, watch};

use crate::exec::{extra_hosts, network, secret_env, security};
use crate::mounts::Prepared;
use crate::proxied::proxy_terms;
use crate::{Behalf, BuildValues, Cx, Entitlement, Error, Output, Worker};

/// What programs are looked for in by default on Windows.
const WINDOWS_PATH: &str =
    "PATH=c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0";

/// A sandbox to be made.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    /// Its name, for people.
    pub name: String,
    /// What is mounted, and on what; inputs and outputs in the mounts do not count.
    pub mounts: Vec<(pb::Mount, Output)>,
    /// The number of the network mode.
    pub network: i32,
    /// Its host name; empty for the usual one.
    pub hostname: String,
    /// More lines of `/etc/hosts`.
    pub extra_hosts: Vec<pb::HostIp>,
    /// What runs in it; this machine without.
    pub platform: Option<Platform>,
}

/// A process to be started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Arguments, environment, directory and user; nothing else counts.
    pub meta: pb::Meta,
    /// On a terminal.
    pub tty: bool,
    /// The number of the security mode.
    pub security: i32,
    /// Variables whose values are secrets.
    pub secret_env: Vec<pb::SecretEnv>,
}

/// An open sandbox. [`Self::release`] it.
pub struct Container {
    worker: Arc<Worker>,
    build: JobValues,
    id: String,
    scope: Scope,
    network: NetworkMode,
    hostname: String,
    extra_hosts: Vec<HostAddress>,
    windows: bool,
    rootfs: std::path::PathBuf,
    mounts: Vec<exec::Mount>,
    /// Gone when it was released.
    prepared: RwLock<Option<Prepared>>,
    taken: AtomicBool,
    state: watch::Sender<State>,
    failure: Mutex<Option<Failure>>,
}

/// How far the first process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Runs,
    Ended,
}

impl Container {
    /// Mounts everything. `build` is whose container it is; it ends with `scope`.
    ///
    /// # Errors
    /// What is wrong with a mount, an address or the network mode.
    pub async fn new(
        worker: &Arc<Worker>,
        build: JobValues,
        sandbox: Sandbox,
        scope: Scope,
    ) -> Result<Arc<Self>, Failure> {
        let network = network(sandbox.network)?;
        let extra_hosts = extra_hosts(&sandbox.extra_hosts)?;
        let mut op = pb::ExecOp::default();
        let mut inputs = Vec::new();
        for (mut mount, tree) in sandbox.mounts {
            mount.input = -1;
            mount.output = -1;
            if tree.is_some() {
                mount.input = inputs.len() as i64;
                inputs.push(tree);
            }
            op.mounts.push(mount);
        }
        if !op.mounts.iter().any(|m| m.dest == "/") {
            let reason = "the container has no root file system".to_owned();
            return Err(Error::Mount { dest: "/".to_owned(), reason }.into());
        }
        // An empty tree that cannot be written to is of no use, and no error.
        let cx = context(&scope, &build);
        let description = format!("container {}", sandbox.name);
        let prepared = Prepared::new(worker, &cx, &op, "/", &inputs, &description).await?;
        Ok(Arc::new(Self {
            worker: worker.clone(),
            build,
            id: base::id::fresh(),
            scope,
            network,
            hostname: sandbox.hostname,
            extra_hosts,
            windows: sandbox.platform.is_some_and(|p| p.os == "windows"),
            rootfs: prepared.rootfs.clone(),
            mounts: prepared.mounts.clone(),
            prepared: RwLock::new(Some(prepared)),
            taken: AtomicBool::new(false),
            state: watch::Sender::new(State::New),
            failure: Mutex::default(),
        }))
    }

    /// Runs a process to its end: the first, or another beside it. It goes on
    /// when the future is dropped, until the container is released.
    ///
    /// # Errors
    /// When the build is not entitled to what it needs, when it cannot be
    /// started, or it ended with anything but zero.
    pub async fn run(self: &Arc<Self>, start: Start, io: Io) -> Result<(), Failure> {
        let this = self.clone();
        let task = self.scope.spawn(async move {
            let outcome = this.run_here(start, io).await;
            if let Err(e) = &outcome {
                this.failure.lock().get_or_insert_with(|| e.clone());
            }
            outcome
        });
        task.await.unwrap_or_else(|e| Err(Failure::internal(format!("the task of a process: {e}"))))
    }

    async fn run_here(&self, start: Start, mut io: Io) -> Result<(), Failure> {
        let security = security(start.security)?;
        self.check_entitlements(security)?;
        let mut env = start.meta.env;
        let mut default = |variable: &str| {
            let name = variable.split_inclusive('=').next().unwrap_or_default();
            if !env.iter().any(|given| given.starts_with(name)) {
                env.push(variable.to_owned());
            }
        };
        default(if self.windows { WINDOWS_PATH } else { exec::DEFAULT_PATH });
        if start.tty {
            default("TERM=xterm");
        }
        env.extend(secret_env(&self.worker, &context(&self.scope, &self.build), &start.secret_env).await?);
        let process = Process {
            id: self.id.clone(),
            args: start.meta.args,
            env,
            cwd: if start.meta.cwd.is_empty() { "/".to_owned() } else { start.meta.cwd },
            user: start.meta.user,
            tty: start.tty,
            rootfs: self.rootfs.clone(),
            mounts: self.mounts.clone(),
            network: self.network,
            proxy: self.proxy(),
            security,
            hostname: self.hostname.clone(),
            extra_hosts: self.extra_hosts.clone(),
            remove_mount_stubs_recursive: start.meta.remove_mount_stubs_recursive,
            ..Process::default()
        };
        let executor = &self.worker.executor;
        let exit = if self.taken.swap(true, Ordering::SeqCst) {
            let mut state = self.state.subscribe();
            let up = async { Ok(state.wait_for(|s| *s != State::New).await.is_ok()) };
            self.scope.run(up).await?;
            executor.exec(&self.id, process, io, &self.scope).await
        } else {
            let (tell, told) = oneshot::channel();
            let caller = io.started.replace(tell);
            let up = async {
                if told.await.is_ok() {
                    self.state.send_replace(State::Runs);
                    caller.map(|caller| caller.send(()));
                }
            };
            let (exit, ()) = tokio::join!(executor.run(process, io, &self.scope), up);
            self.state.send_replace(State::Ended);
            exit
        };
        exit?.check()
    }

    /// What its processes fetch is nobody's result, and so is not noted.
    fn proxy(&self) -> Option<Terms> {
        let cx = context(&self.scope, &self.build);
        let values = self.build.values.downcast_ref::<BuildValues>();
        values.is_some_and(|v| v.proxy).then(|| proxy_terms(&self.worker, Behalf::of(&cx), None))
    }

    fn check_entitlements(&self, security: Security) -> Result<(), Failure> {
        let values = self.build.values.downcast_ref::<BuildValues>();
        let host = (self.network == NetworkMode::Host).then_some(Entitlement::NetworkHost);
        let insecure = (security == Security::Insecure).then_some(Entitlement::SecurityInsecure);
        let missing = |e: &Entitlement| !values.is_some_and(|v| v.entitlements.contains(e));
        match host.into_iter().chain(insecure).find(missing) {
            Some(entitlement) => Err(Error::Entitlement(entitlement).into()),
            None => Ok(()),
        }
    }

    /// Reads from where the tree of the mount with this index is mounted.
    ///
    /// # Errors
    /// When there is no such mount, or no tree on it; those of `read`.
    pub async fn read<T: Send + 'static>(
        &self,
        mount: usize,
        read: impl FnOnce(&Path) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let prepared = self.prepared.read().await;
        let place = prepared.as_ref().and_then(|p| p.place(mount)).map(Path::to_owned);
        let place = place.ok_or(Error::Place(mount))?;
        base::task::blocking(move || read(&place)).await
    }

    /// Ends every process and lets go of the mounts. Nothing is left when this
    /// returns.
    ///
    /// # Errors
    /// That of the first process that did not end well, being ended now included.
    pub async fn release(&self) -> Result<(), Failure> {
        self.scope.cancel(Failure::canceled("context canceled"));
        self.scope.close().await;
        let unmounted = match self.prepared.write().await.take() {
            Some(prepared) => prepared.discard().await,
            None => Ok(()),
        };
        match self.failure.lock().take() {
            Some(failure) => Err(failure),
            None => unmounted,
        }
    }
}

fn context(scope: &Scope, build: &JobValues) -> Cx {
    OpContext::alone(scope.clone(), VertexSink::none(), vec![build.clone()])
}
