//! `exec`: one process in a sandbox.

use std::sync::Arc;

use async_trait::async_trait;
use base::failure::IncompleteMaterial;
use base::progress::Stream;
use base::{Digest, Failure, gotext};
use exec::{
    HostAddress, Io, NetworkMode, Output as IoOutput, Process, Resources, Security, Ulimit, unsuccessful,
};
use parking_lot::Mutex;
use proto::pb;
use proxy::{Capture, Terms};
use solver::{CacheMap, Operation};

use crate::keyed::Keyed;
use crate::logs::StepLog;
use crate::mounts::{Prepared, fetch_secret, output_count};
use crate::proxied::proxy_terms;
use crate::used::Material;
use crate::{Behalf, BuildValues, Cx, Entitlement, Error, Output, Worker};

/// An exec operation.
pub(crate) struct ExecOp {
    worker: Arc<Worker>,
    op: pb::ExecOp,
    keyed: Keyed,
    digest: Digest,
    limits: Option<pb::LinuxResources>,
    /// It reaches the network only through a proxy.
    proxy: bool,
    /// What passed that when it ran last.
    capture: Mutex<Option<Arc<Capture>>>,
}

impl ExecOp {
    pub(crate) fn new(
        worker: Arc<Worker>,
        vertex: &llb::Vertex,
        op: &pb::ExecOp,
        proxy: bool,
    ) -> Result<Self, Failure> {
        Ok(Self {
            keyed: Keyed::new(vertex, true)?,
            digest: vertex.digest.clone(),
            proxy,
            capture: Mutex::default(),
            limits: vertex.meta.linux_resources.clone(),
            op: op.clone(),
            worker,
        })
    }

    pub(crate) fn used(&self) -> crate::used::Used {
        let mut used = crate::used::of_exec(&self.op);
        used.proxied = self.proxy;
        let Some(capture) = self.capture.lock().clone() else { return used };
        let materials = capture.materials().into_iter();
        used.materials.extend(materials.map(|m| Material::Http { url: m.url, digest: m.digest }));
        let (op, name) = (self.digest.to_string(), self.meta().args.join(" "));
        let uncaptured = capture.incomplete().into_iter().map(|i| IncompleteMaterial {
            op: op.clone(),
            name: name.clone(),
            method: i.method,
            uri: i.url,
            reason: i.reason.to_owned(),
            ..IncompleteMaterial::default()
        });
        used.uncaptured.extend(uncaptured);
        used.incomplete |= !used.uncaptured.is_empty();
        used
    }

    /// The terms of the proxy, if there is one; with fresh notes of what passes it.
    fn terms(&self, cx: &Cx) -> Option<Terms> {
        self.proxy.then(|| {
            let capture = Arc::new(Capture::default());
            *self.capture.lock() = Some(capture.clone());
            proxy_terms(&self.worker, Behalf::of(cx), Some(capture))
        })
    }

    fn meta(&self) -> pb::Meta {
        self.op.meta.clone().unwrap_or_default()
    }

    /// Refuses what no interested build is entitled to.
    fn check_entitlements(&self, cx: &Cx) -> Result<(), Failure> {
        let builds = cx.values::<BuildValues>();
        match needed(&self.op).find(|e| !builds.iter().any(|b| b.entitlements.contains(e))) {
            Some(entitlement) => Err(Error::Entitlement(entitlement).into()),
            None => Ok(()),
        }
    }

    async fn env(&self, cx: &Cx, meta: &pb::Meta) -> Result<Vec<String>, Failure> {
        let mut env = meta.env.clone();
        if let Some(proxy) = &meta.proxy_env {
            for (name, value) in [
                ("HTTP_PROXY", &proxy.http_proxy),
                ("HTTPS_PROXY", &proxy.https_proxy),
                ("FTP_PROXY", &proxy.ftp_proxy),
                ("NO_PROXY", &proxy.no_proxy),
                ("ALL_PROXY", &proxy.all_proxy),
            ] {
                if !value.is_empty() {
                    env.push(format!("{name}={value}"));
                    env.push(format!("{}={value}", name.to_ascii_lowercase()));
                }
            }
        }
        env.extend(secret_env(&self.worker, cx, &self.op.secretenv).await?);
        Ok(env)
    }

    fn resources(&self) -> Resources {
        let Some(r) = &self.limits else { return Resources::default() };
        Resources {
            memory: r.memory,
            memory_swap: r.memory_swap,
            cpu_shares: r.cpu_shares,
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpuset_cpus: r.cpuset_cpus.clone(),
            cpuset_mems: r.cpuset_mems.clone(),
        }
    }

    fn process(&self, meta: pb::Meta, env: Vec<String>, mounts: &Prepared) -> Result<Process, Failure> {
        Ok(Process {
            extra_hosts: extra_hosts(&meta.extra_hosts)?,
            args: meta.args,
            env,
            cwd: meta.cwd,
            user: meta.user,
            rootfs: mounts.rootfs.clone(),
            readonly_rootfs: mounts.readonly_rootfs,
            mounts: mounts.mounts.clone(),
            network: network(self.op.network)?,
            security: security(self.op.security)?,
            hostname: meta.hostname,
            ulimits: meta
                .ulimit
                .into_iter()
                .map(|u| Ulimit { name: u.name, soft: u.soft, hard: u.hard })
                .collect(),
            resources: self.resources(),
            cgroup_parent: meta.cgroup_parent,
            valid_exit_codes: (!meta.valid_exit_codes.is_empty()).then_some(meta.valid_exit_codes),
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
            ..Process::default()
        })
    }
}

/// What is logged of the requests of a step, if there were any.
fn requests(capture: &Capture) -> Option<String> {
    let requests = capture.requests();
    let line = |r: &proxy::Request| format!("- {} {} -> {}\n", r.method, r.url, r.status);
    (!requests.is_empty())
        .then(|| format!("proxy network requests:\n{}", requests.iter().map(line).collect::<String>()))
}

/// The network mode with this number.
///
/// # Errors
/// When there is none.
pub(crate) fn network(mode: i32) -> Result<NetworkMode, Failure> {
    match pb::NetMode::try_from(mode) {
        Ok(pb::NetMode::Unset) => Ok(NetworkMode::Sandbox),
        Ok(pb::NetMode::Host) => Ok(NetworkMode::Host),
        Ok(pb::NetMode::None) => Ok(NetworkMode::None),
        Err(_) => Err(Failure::invalid(format!("invalid network mode {mode}"))),
    }
}

/// The security mode with this number.
///
/// # Errors
/// When there is none.
pub(crate) fn security(mode: i32) -> Result<Security, Failure> {
    match pb::SecurityMode::try_from(mode) {
        Ok(pb::SecurityMode::Sandbox) => Ok(Security::Sandbox),
        Ok(pb::SecurityMode::Insecure) => Ok(Security::Insecure),
        Err(_) => Err(Failure::invalid(format!("invalid security mode {mode}"))),
    }
}

/// Lines of `/etc/hosts`.
///
/// # Errors
/// What is no address.
pub(crate) fn extra_hosts(hosts: &[pb::HostIp]) -> Result<Vec<HostAddress>, Failure> {
    let one = |h: &pb::HostIp| {
        let bad = |_| Failure::invalid(format!("failed to parse IP {}", h.ip)).context(h.host.clone());
        Ok(HostAddress { host: h.host.clone(), ip: h.ip.parse().map_err(bad)? })
    };
    hosts.iter().map(one).collect()
}

/// Variables whose values are secrets of the client.
///
/// # Errors
/// When one is not there, though it must, or is not text.
pub(crate) async fn secret_env(
    worker: &Worker,
    cx: &Cx,
    wanted: &[pb::SecretEnv],
) -> Result<Vec<String>, Failure> {
    let mut env = Vec::with_capacity(wanted.len());
    for secret in wanted {
        if secret.id.is_empty() {
            let name = gotext::quote(&secret.name);
            return Err(Failure::invalid(format!("secret ID missing for {name} environment variable")));
        }
        if let Some(data) = fetch_secret(worker, cx, &secret.id, secret.optional).await? {
            let value = String::from_utf8(data).map_err(|_| {
                Failure::invalid(format!("secret {} is not text and cannot be a variable", secret.id))
            })?;
            env.push(format!("{}={value}", secret.name));
        }
    }
    Ok(env)
}

/// What a build must be entitled to for this operation.
pub(crate) fn needed(op: &pb::ExecOp) -> impl Iterator<Item = Entitlement> {
    let host = (op.network() == pb::NetMode::Host).then_some(Entitlement::NetworkHost);
    let insecure = (op.security() == pb::SecurityMode::Insecure).then_some(Entitlement::SecurityInsecure);
    host.into_iter().chain(insecure)
}

#[async_trait]
impl Operation<Output> for ExecOp {
    async fn cache_map(&self, _: usize, _: &Cx) -> Result<CacheMap, Failure> {
        Ok(self.keyed.cache_map())
    }

    async fn content_key(&self, input: usize, result: &Output, cx: &Cx) -> Result<Option<Digest>, Failure> {
        self.keyed.content_key(&self.worker, input, result, cx).await
    }

    async fn run(&self, inputs: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        self.check_entitlements(cx)?;
        let meta = self.meta();
        let cwd = if meta.cwd.is_empty() { "/".to_owned() } else { meta.cwd.clone() };
        let env = self.env(cx, &meta).await?;
        let line = meta.args.join(" ");
        let mounts = Prepared::new(&self.worker, cx, &self.op, &cwd, &inputs, &line).await?;
        let mut process = self.process(pb::Meta { cwd, ..meta }, env, &mounts)?;
        process.proxy = self.terms(cx);
        let capture = process.proxy.as_ref().and_then(|terms| terms.capture.clone());
        if !self.op.cdi_devices.is_empty() {
            let (devices, wanted) = (self.worker.devices.clone(), self.op.cdi_devices.clone());
            process = base::task::blocking(move || {
                devices.inject(wanted.iter().map(|d| (d.name.as_str(), d.optional)), &mut process)?;
                Ok(process)
            })
            .await?;
        }
        let args = process.args.clone();

        let permit = match &self.worker.parallelism {
            Some(slots) => {
                let acquire = slots.clone().acquire_owned();
                Some(
                    cx.scope
                        .run(async { acquire.await.map_err(|_| Failure::canceled("shutting down")) })
                        .await?,
                )
            }
            None => None,
        };
        let log = StepLog::new(cx.progress.clone(), self.worker.log_limits);
        let (out, err) = (log.clone(), log.clone());
        let io = Io {
            stdout: IoOutput::Log(Box::new(move |data| out.write(Stream::Stdout, data))),
            stderr: IoOutput::Log(Box::new(move |data| err.write(Stream::Stderr, data))),
            ..Io::default()
        };
        let ended = self.worker.executor.run(process, io, &cx.scope).await;
        drop(permit);
        if let Some(text) = capture.and_then(|capture| requests(&capture)) {
            log.write(Stream::Stderr, text.as_bytes());
        }
        let ended = match ended {
            Ok(exit) => exit.check_process(&args),
            Err(e) if e.is_canceled() => return Err(e),
            Err(e) => Err(e.context(unsuccessful(&args))),
        };
        match ended {
            Ok(()) => mounts.finish(output_count(&self.op)).await,
            Err(e) => Err(mounts.keep(&self.op, &inputs, e).await),
        }
    }
}
