//! Processes.

use std::sync::Arc;

use base::Platform;
use proto::pb;

use super::marshal::{Defaults, Written};
use super::node::{Node, NodeKind, Options, Output};
use super::state::{Context, State};
use crate::{Error, attr, caps};

/// `PATH` where nobody set one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process to run.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The command; without, that of the state.
    pub args: Option<Vec<String>>,
    /// What else it sees, beside the files of the state.
    pub mounts: Vec<Mount>,
    /// The files of the state cannot be changed.
    pub readonly_root: bool,
    /// Proxies, which are not part of what it does.
    pub proxy: Option<ProxyEnv>,
    /// Secrets.
    pub secrets: Vec<Secret>,
    /// Forwarded agents.
    pub ssh: Vec<Ssh>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Name and metadata.
    pub options: Options,
}

/// Proxy settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ProxyEnv {
    pub http: String,
    pub https: String,
    pub ftp: String,
    pub no: String,
    pub all: String,
}

/// Something a process sees at a path.
#[derive(Debug, Clone)]
pub struct Mount {
    target: String,
    source: Option<Output>,
    /// The surroundings of the state that is mounted, for the result.
    surroundings: State,
    selector: String,
    readonly: bool,
    no_output: bool,
    cache: Option<(String, CacheSharing)>,
    tmpfs: Option<i64>,
    content_cache: pb::MountContentCache,
}

/// Who may use a cache mount at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheSharing {
    /// Everybody.
    #[default]
    Shared,
    /// Nobody: others get one of their own.
    Private,
    /// Nobody: others wait.
    Locked,
}

/// A secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secret {
    /// Its id.
    pub id: String,
    /// The file it is put into.
    pub target: Option<String>,
    /// The variable it is put into.
    pub env: Option<String>,
    /// Owner, group and mode of the file.
    pub owner: (u32, u32, u32),
    /// It may be missing.
    pub optional: bool,
}

/// A forwarded agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ssh {
    /// Its id.
    pub id: String,
    /// The socket; empty: one is made up.
    pub target: String,
    /// Owner, group and mode of the socket.
    pub owner: (u32, u32, u32),
    /// It may be missing.
    pub optional: bool,
}

/// A device by its CDI name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// It may be missing.
    pub optional: bool,
}

impl Mount {
    /// The files of `state` at `target`.
    pub fn new(target: impl Into<String>, state: &State) -> Self {
        Self {
            target: target.into(),
            source: state.output.clone(),
            surroundings: state.clone(),
            selector: String::new(),
            readonly: false,
            no_output: false,
            cache: None,
            tmpfs: None,
            content_cache: pb::MountContentCache::Default,
        }
    }

    /// Which cannot be changed.
    #[must_use]
    pub fn readonly(mut self) -> Self {
        self.readonly = true;
        self
    }

    /// Of which only this path is shown.
    #[must_use]
    pub fn selector(mut self, path: impl Into<String>) -> Self {
        self.selector = path.into();
        self
    }

    /// Whose changes are thrown away.
    #[must_use]
    pub fn no_output(mut self) -> Self {
        self.no_output = true;
        self
    }

    /// Which is kept between builds.
    #[must_use]
    pub fn cache(mut self, id: impl Into<String>, sharing: CacheSharing) -> Self {
        self.cache = Some((id.into(), sharing));
        self
    }

    /// Which is in memory and holds `size` bytes; zero: no limit.
    #[must_use]
    pub fn tmpfs(mut self, size: i64) -> Self {
        self.tmpfs = Some(size);
        self
    }

    /// Whether its content may stand for it.
    #[must_use]
    pub fn content_cache(mut self, mode: pb::MountContentCache) -> Self {
        self.content_cache = mode;
        self
    }

    fn is_cache(&self) -> bool {
        self.cache.as_ref().is_some_and(|(id, _)| !id.is_empty())
    }

    fn has_output(&self) -> bool {
        !self.no_output && !self.readonly && !self.is_cache() && self.tmpfs.is_none()
    }
}

/// A process and what becomes of its files.
#[derive(Debug, Clone)]
pub struct Exec {
    root: State,
    mounts: Vec<(String, Option<State>)>,
}

impl Exec {
    pub(super) fn new(base: &State, run: Run) -> Self {
        let base_state = match run.args {
            Some(args) => base.args(args),
            None => base.clone(),
        };
        let mut root = Mount::new("/", base);
        root.readonly = run.readonly_root;
        let mut mounts = vec![root];
        mounts.extend(run.mounts);
        mounts.sort_by(|a, b| a.target.cmp(&b.target));
        let platform = run.options.platform.clone();
        let node = Node::new(
            NodeKind::Exec(Box::new(ExecNode {
                context: Arc::clone(&base_state.context),
                mounts: mounts.clone(),
                proxy: run.proxy,
                secrets: run.secrets,
                ssh: run.ssh,
                devices: run.devices,
            })),
            run.options,
        );

        let mut index = 0;
        let mut results = Vec::with_capacity(mounts.len());
        for mount in &mounts {
            let state = if mount.has_output() {
                let output = Output::Of { node: Arc::clone(&node), index, platform: platform.clone() };
                index += 1;
                Some(mount.surroundings.with_output(Some(output)))
            } else {
                mount.readonly.then(|| mount.surroundings.clone())
            };
            results.push((mount.target.clone(), state));
        }
        let root = results.iter().find(|(t, _)| t == "/").and_then(|(_, s)| s.clone());
        Self { root: root.unwrap_or_else(|| base.clone()), mounts: results }
    }

    /// The files of the state, as the process left them.
    pub fn root(&self) -> &State {
        &self.root
    }

    /// The files of a mount, as the process left them; `None` when there is no
    /// such mount or it leaves nothing.
    pub fn mount(&self, target: &str) -> Option<&State> {
        self.mounts.iter().find(|(t, _)| t == target)?.1.as_ref()
    }
}

/// A process as a vertex.
pub(super) struct ExecNode {
    context: Arc<Context>,
    /// Sorted by target.
    mounts: Vec<Mount>,
    proxy: Option<ProxyEnv>,
    secrets: Vec<Secret>,
    ssh: Vec<Ssh>,
    devices: Vec<Device>,
}

impl ExecNode {
    pub(super) fn inputs(&self) -> Vec<&Output> {
        self.mounts.iter().filter_map(|m| m.source.as_ref()).collect()
    }

    pub(super) fn take_inputs(&mut self) -> Vec<Output> {
        let mut taken = Vec::new();
        for mut mount in std::mem::take(&mut self.mounts) {
            taken.extend(mount.source.take());
            taken.extend(mount.surroundings.output.take());
        }
        taken
    }

    /// The operation and the options it is written with.
    pub(super) fn write(
        &self,
        options: &Options,
        defaults: &Defaults,
        inputs: &mut Vec<pb::Input>,
        written: &Written,
    ) -> Result<(pb::ExecOp, Options), Error> {
        let context = &*self.context;
        if context.args.is_empty() {
            return Err(Error::invalid("arguments are required"));
        }
        if context.dir.is_empty() {
            return Err(Error::invalid("working directory is required"));
        }
        let mut options = options.clone();
        if options.platform.is_none() {
            options.platform.clone_from(&context.platform);
        }
        let meta = self.meta(&mut options, defaults);
        self.note_caps(&mut options);

        let mut mounts = Vec::new();
        let mut outputs = 0;
        for mount in &self.mounts {
            mounts.push(write_mount(mount, &mut outputs, inputs, written)?);
        }
        let mut secretenv = Vec::new();
        for secret in &self.secrets {
            if let Some(name) = &secret.env {
                secretenv.push(pb::SecretEnv {
                    id: secret.id.clone(),
                    name: name.clone(),
                    optional: secret.optional,
                });
            }
            if let Some(target) = &secret.target {
                let (uid, gid, mode) = secret.owner;
                mounts.push(pb::Mount {
                    input: attr::NONE,
                    dest: target.clone(),
                    mount_type: pb::MountType::Secret.into(),
                    secret_opt: Some(pb::SecretOpt {
                        id: secret.id.clone(),
                        uid,
                        gid,
                        mode,
                        optional: secret.optional,
                    }),
                    ..pb::Mount::default()
                });
            }
        }
        for (at, ssh) in self.ssh.iter().enumerate() {
            let (uid, gid, mode) = ssh.owner;
            mounts.push(pb::Mount {
                input: attr::NONE,
                dest: socket(at, ssh),
                mount_type: pb::MountType::Ssh.into(),
                ssh_opt: Some(pb::SshOpt { id: ssh.id.clone(), uid, gid, mode, optional: ssh.optional }),
                ..pb::Mount::default()
            });
        }
        let devices = self
            .devices
            .iter()
            .map(|d| pb::CdiDevice { name: d.name.clone(), optional: d.optional })
            .collect();
        let op = pb::ExecOp {
            meta: Some(meta),
            mounts,
            network: context.network.into(),
            security: context.security.into(),
            secretenv,
            cdi_devices: devices,
        };
        Ok((op, options))
    }

    fn meta(&self, options: &mut Options, defaults: &Defaults) -> pb::Meta {
        let context = &*self.context;
        let mut env = context.env.clone();
        if let Some(first) = self.ssh.first()
            && env.get("SSH_AUTH_SOCK").is_none()
        {
            env.set("SSH_AUTH_SOCK", socket(0, first));
        }
        match &defaults.caps {
            Some(caps) if caps.has(caps::EXEC_META_SETSDEFAULTPATH) => {
                options.cap(caps::EXEC_META_SETSDEFAULTPATH);
            }
            Some(_) => {
                let platform = defaults.platform.as_ref().or(options.platform.as_ref());
                let os = platform.map_or("linux", |p: &Platform| &p.os);
                if os != "windows" && env.get("PATH").is_none() {
                    env.set("PATH", DEFAULT_PATH);
                }
            }
            None => {}
        }
        let proxy_env = self.proxy.as_ref().map(|p| pb::ProxyEnv {
            http_proxy: p.http.clone(),
            https_proxy: p.https.clone(),
            ftp_proxy: p.ftp.clone(),
            no_proxy: p.no.clone(),
            all_proxy: p.all.clone(),
        });
        pb::Meta {
            args: context.args.clone(),
            env: env.to_vec(),
            cwd: context.dir.clone(),
            user: context.user.clone(),
            proxy_env,
            extra_hosts: context.extra_hosts.clone(),
            hostname: context.hostname.clone(),
            ulimit: context.ulimits.clone(),
            cgroup_parent: context.cgroup_parent.clone(),
            remove_mount_stubs_recursive: true,
            valid_exit_codes: context.valid_exit_codes.clone().unwrap_or_default(),
        }
    }

    fn note_caps(&self, options: &mut Options) {
        let context = &*self.context;
        let mut note = |needed: bool, cap: &str| {
            if needed {
                options.cap(cap);
            }
        };
        note(context.valid_exit_codes.is_some(), caps::EXEC_VALIDEXITCODE);
        note(!context.ulimits.is_empty(), caps::EXEC_META_ULIMIT);
        note(context.network != pb::NetMode::Unset, caps::EXEC_META_NETWORK);
        note(context.security != pb::SecurityMode::Sandbox, caps::EXEC_META_SECURITY);
        note(self.proxy.is_some(), caps::EXEC_META_PROXYENV);
        note(true, caps::EXEC_META_BASE);
        for mount in &self.mounts {
            note(!mount.selector.is_empty(), caps::EXEC_MOUNT_SELECTOR);
            if mount.is_cache() {
                note(true, caps::EXEC_MOUNT_CACHE);
                note(true, caps::EXEC_MOUNT_CACHE_SHARING);
            } else if let Some(size) = mount.tmpfs {
                note(true, caps::EXEC_MOUNT_TMPFS);
                note(size > 0, caps::EXEC_MOUNT_TMPFS_SIZE);
            } else {
                note(mount.source.is_some(), caps::EXEC_MOUNT_BIND);
            }
            note(mount.content_cache != pb::MountContentCache::Default, caps::EXEC_MOUNT_CACHE_CONTENT);
        }
        note(!self.secrets.is_empty(), caps::EXEC_MOUNT_SECRET);
        note(self.secrets.iter().any(|s| s.env.is_some()), caps::EXEC_SECRETENV);
        note(!self.ssh.is_empty(), caps::EXEC_MOUNT_SSH);
        note(!self.devices.is_empty(), caps::EXEC_META_CDI);
        let limited = options.meta.linux_resources.is_some();
        if limited {
            options.cap(caps::EXEC_META_LINUX_RESOURCES);
        }
    }
}

fn socket(at: usize, ssh: &Ssh) -> String {
    if ssh.target.is_empty() { format!("/run/buildkit/ssh_agent.{at}") } else { ssh.target.clone() }
}

fn write_mount(
    mount: &Mount,
    outputs: &mut i64,
    inputs: &mut Vec<pb::Input>,
    written: &Written,
) -> Result<pb::Mount, Error> {
    let input = match &mount.source {
        Some(_) if mount.tmpfs.is_some() => return Err(Error::invalid("tmpfs mounts must use scratch")),
        Some(source) => written.add_input(source, inputs)?,
        None => attr::NONE,
    };
    let mut output = attr::NONE;
    if mount.has_output() {
        output = *outputs;
        *outputs += 1;
    }
    let mut kind = pb::MountType::Bind;
    let mut cache_opt = None;
    if let Some((id, sharing)) = mount.cache.as_ref().filter(|(id, _)| !id.is_empty()) {
        kind = pb::MountType::Cache;
        let sharing = match sharing {
            CacheSharing::Shared => pb::CacheSharingOpt::Shared,
            CacheSharing::Private => pb::CacheSharingOpt::Private,
            CacheSharing::Locked => pb::CacheSharingOpt::Locked,
        };
        cache_opt = Some(pb::CacheOpt { id: id.clone(), sharing: sharing.into() });
    }
    if mount.tmpfs.is_some() {
        kind = pb::MountType::Tmpfs;
    }
    Ok(pb::Mount {
        input,
        selector: mount.selector.clone(),
        dest: mount.target.clone(),
        output,
        readonly: mount.readonly,
        mount_type: kind.into(),
        tmpfs_opt: mount.tmpfs.map(|size| pb::TmpfsOpt { size }),
        cache_opt,
        content_cache: mount.content_cache.into(),
        ..pb::Mount::default()
    })
}
