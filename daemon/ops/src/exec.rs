//! `exec`: one process in a sandbox.

use std::sync::Arc;

use async_trait::async_trait;
use base::progress::Stream;
use base::{Digest, Failure};
use exec::{HostAddress, Io, NetworkMode, Output as IoOutput, Process, Resources, Security, Ulimit};
use proto::pb;
use solver::{CacheMap, Operation};

use crate::keyed::Keyed;
use crate::logs::StepLog;
use crate::mounts::{Prepared, fetch_secret, output_count};
use crate::{BuildValues, Cx, Entitlement, Error, Output, Worker};

/// An exec operation.
pub(crate) struct ExecOp {
    worker: Arc<Worker>,
    op: pb::ExecOp,
    keyed: Keyed,
    limits: Option<pb::LinuxResources>,
}

impl ExecOp {
    pub(crate) fn new(worker: Arc<Worker>, vertex: &llb::Vertex, op: &pb::ExecOp) -> Result<Self, Failure> {
        if let Some(device) = op.cdi_devices.first() {
            return Err(Error::Unsupported { what: format!("the CDI device {}", device.name) }.into());
        }
        Ok(Self {
            keyed: Keyed::new(vertex, true)?,
            limits: vertex.meta.linux_resources.clone(),
            op: op.clone(),
            worker,
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
        for secret in &self.op.secretenv {
            if let Some(data) = fetch_secret(&self.worker, cx, &secret.id, secret.optional).await? {
                let value = String::from_utf8(data).map_err(|_| {
                    Failure::invalid(format!("secret {} is not text and cannot be a variable", secret.id))
                })?;
                env.push(format!("{}={value}", secret.name));
            }
        }
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
        let extra_hosts = meta.extra_hosts.iter().map(|h| {
            let ip = h.ip.parse().map_err(|_| {
                Failure::invalid(format!("extra host {}: {:?} is not an IP address", h.host, h.ip))
            })?;
            Ok(HostAddress { host: h.host.clone(), ip })
        });
        Ok(Process {
            extra_hosts: extra_hosts.collect::<Result<_, Failure>>()?,
            args: meta.args,
            env,
            cwd: meta.cwd,
            user: meta.user,
            rootfs: mounts.rootfs.clone(),
            readonly_rootfs: mounts.readonly_rootfs,
            mounts: mounts.mounts.clone(),
            network: match self.op.network() {
                pb::NetMode::Unset => NetworkMode::Sandbox,
                pb::NetMode::Host => NetworkMode::Host,
                pb::NetMode::None => NetworkMode::None,
            },
            security: match self.op.security() {
                pb::SecurityMode::Sandbox => Security::Sandbox,
                pb::SecurityMode::Insecure => Security::Insecure,
            },
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
        let process = self.process(pb::Meta { cwd, ..meta }, env, &mounts)?;
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
        let (out, err) = (log.clone(), log);
        let io = Io {
            stdout: IoOutput::Log(Box::new(move |data| out.write(Stream::Stdout, data))),
            stderr: IoOutput::Log(Box::new(move |data| err.write(Stream::Stderr, data))),
            ..Io::default()
        };
        let ended = self.worker.executor.run(process, io, &cx.scope).await;
        drop(permit);
        ended?.check_process(&args)?;
        mounts.finish(output_count(&self.op)).await
    }
}
