//! `RUN`.

use base::gopath;
use llb::build::{
    CacheSharing, Device, EnvList, FileAction, FileOwner, Mount, Run as Process, Secret, Ssh, State,
};
use llb::caps;
use proto::pb;

use super::dispatch::used_path;
use super::error::{Failed, Result};
use super::names;
use super::outline::Mounted;
use super::plan::{Converter, SCRATCH};
use super::stage::Id;
use crate::dockerfile::Lines;
use crate::dockerfile::instructions::{self, Instruction, MountKind, Network, Run, Security, Sharing};
use crate::dockerfile::parser::{chomp, heredoc};
use crate::dockerfile::shell::Lex;
use crate::dockerui::internal;

/// Where a script given inline is put.
const PIPES: &str = "/dev/pipes/";

/// What is mounted for a process.
#[derive(Default)]
struct Mounts {
    plain: Vec<Mount>,
    secrets: Vec<Secret>,
    ssh: Vec<Ssh>,
}

impl Converter<'_> {
    pub(super) fn run_step(
        &mut self,
        id: Id,
        place: &Instruction<()>,
        run: &Run,
        sources: &[Id],
    ) -> Result<()> {
        // A process may read anything.
        self.stages.use_path(id, "/".to_owned());
        let mut mounts = Mounts::default();
        let mut title = place.code.clone();
        let mut args = self.command(id, run, &mut title, &mut mounts)?;
        if run.line.shell {
            args = self.with_shell(id, &args);
        }
        self.add_mounts(id, run, sources, place.lines, &mut mounts)?;
        let devices = self.devices(run)?;

        let config = self.options.client.config();
        let stage = &self.stages[id];
        let env = stage.state.get_env().clone();
        let mut state = stage.state.clone();
        state = match run.security {
            Security::Sandbox => state.security(pb::SecurityMode::Sandbox),
            Security::Insecure => state.security(pb::SecurityMode::Insecure),
        };
        state = match run.network {
            Network::Default => state,
            Network::None => state.network(pb::NetMode::None),
            Network::Host => state.network(pb::NetMode::Host),
        };
        let can = |cap: &str| self.llb_caps().has(cap);
        if can(caps::EXEC_META_ULIMIT) {
            for limit in &config.ulimits {
                state = state.ulimit(&limit.name, limit.soft, limit.hard);
            }
        }
        for (host, ip) in &config.extra_hosts {
            state = state.extra_host(host, *ip);
        }
        if can(caps::EXEC_META_CGROUP_PARENT) && !config.cgroup_parent.is_empty() {
            state = state.cgroup_parent(&config.cgroup_parent);
        }
        if can(caps::EXEC_MOUNT_TMPFS_SIZE) && config.shm_size > 0 {
            mounts.plain.push(Mount::new("/dev/shm", &State::scratch()).tmpfs(config.shm_size));
        }

        let lex = Lex { raw_quotes: true, keep_unset: true, ..self.lex };
        let title = names::expanded(&lex, &title, &masked(&env, run));
        let with_platform = config.multi_platform;
        let platform = stage.state.get_platform().cloned();
        let name = {
            let stage = &mut self.stages[id];
            names::step(stage, &names::uppercase(&title), with_platform, platform.as_ref(), &env)
        };
        let mut options = names::located(names::command(&place.code), &self.options.source, place.lines);
        options = options.name(name);
        if self.stages[id].ignore_cache {
            options = options.ignore_cache();
        }
        if let Some(resources) = &config.linux_resources
            && self.llb_caps().has(caps::EXEC_META_LINUX_RESOURCES)
        {
            options = options.linux_resources(resources.clone());
        }
        let exec = state.run(Process {
            args: Some(args.clone()),
            mounts: mounts.plain,
            proxy: self.proxy.clone(),
            secrets: mounts.secrets,
            ssh: mounts.ssh,
            devices,
            options,
            ..Process::default()
        });
        let stage = &mut self.stages[id];
        stage.state = stage.state.with_output(exec.root().output().cloned());
        let text = format!("RUN {} # buildkit", names::run_history(&args, &stage.args, &env));
        stage.image.add_history(text, true, self.epoch.as_ref());
        Ok(())
    }

    /// The command with documents given inline: a script is mounted and run,
    /// other text is for the shell.
    fn command(&self, id: Id, run: &Run, title: &mut String, mounts: &mut Mounts) -> Result<Vec<String>> {
        let args = &run.line.args;
        let Some(first) = run.line.files.first() else { return Ok(args.clone()) };
        let [line] = args.as_slice() else {
            return Err(Failed::new(format!(
                "parsing produced an invalid run command: [{}]",
                args.join(" ")
            )));
        };
        if heredoc(line).is_none() {
            // Several documents, or more than one: the shell reads them itself.
            let mut text = line.clone();
            for file in &run.line.files {
                text.push('\n');
                text.push_str(&utf8(&file.data)?);
                text.push_str(&file.name);
            }
            return Ok(vec![text]);
        }
        let data = if first.chomp { chomp(&first.data) } else { first.data.clone() };
        *title = format!("{title} ({})", names::summary(&String::from_utf8_lossy(&first.data)));
        let stage = &self.stages[id];
        if stage.image.platform.os == "windows" || !data.starts_with(b"#!") {
            return Ok(vec![utf8(&data)?]);
        }
        let mut options = internal("preparing inline document");
        options.platform.clone_from(&stage.platform);
        let script =
            FileAction::Mkfile { path: first.name.clone(), mode: 0o755, data, owner: None, created: None };
        let state = State::scratch().dir("/").file(vec![script], options);
        mounts.plain.push(Mount::new(PIPES, &state).selector("/").readonly());
        Ok(vec![gopath::join([PIPES, first.name.as_str()])])
    }

    fn add_mounts(
        &mut self,
        id: Id,
        run: &Run,
        sources: &[Id],
        lines: Lines,
        mounts: &mut Mounts,
    ) -> Result<()> {
        for (at, mount) in run.mounts.iter().enumerate() {
            let from = match (mount.from.as_str(), mount.kind) {
                ("", MountKind::Cache) => SCRATCH,
                (from, _) => from,
            };
            let source = if from.is_empty() { None } else { sources.get(at).copied() };
            let mut state = match source {
                None => State::later(&self.context),
                Some(source) if self.stages[source].dispatched => self.stages[source].state.clone(),
                Some(_) => {
                    return Err(Failed::new(format!(
                        "cannot mount from stage {} to {}, stage needs to be defined before current command",
                        base::gotext::quote(from),
                        base::gotext::quote(&mount.target)
                    )));
                }
            };
            match mount.kind {
                MountKind::Secret => {
                    let secret = self.secret(id, mount, lines)?;
                    mounts.secrets.push(secret);
                    continue;
                }
                MountKind::Ssh => {
                    let ssh = self.ssh(id, mount, lines)?;
                    mounts.ssh.push(ssh);
                    continue;
                }
                MountKind::Tmpfs => state = State::scratch(),
                MountKind::Bind | MountKind::Cache => {}
            }
            let target = self.mount_target(id, &mount.target)?;
            let path = used_path(&mount.source);
            let owned = mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some();
            let selector = match path.as_str() {
                "/" if owned => {
                    state = owned_cache(mount, &state);
                    "/cache".to_owned()
                }
                "/" => String::new(),
                path => path.to_owned(),
            };
            let mut made = Mount::new(target, &state).selector(selector);
            if mount.kind == MountKind::Tmpfs {
                made = made.tmpfs(mount.size_limit);
            }
            if mount.read_only {
                made = made.readonly();
            } else if mount.kind == MountKind::Bind
                && self.llb_caps().has(caps::EXEC_MOUNT_BIND_READWRITE_NOOUTPUT)
            {
                made = made.no_output();
            }
            if mount.kind == MountKind::Cache {
                let sharing = match mount.sharing {
                    None | Some(Sharing::Shared) => CacheSharing::Shared,
                    Some(Sharing::Private) => CacheSharing::Private,
                    Some(Sharing::Locked) => CacheSharing::Locked,
                };
                let own = if mount.id.is_empty() { gopath::clean(&mount.target) } else { mount.id.clone() };
                let namespace = &self.options.client.config().cache_namespace;
                made = made.cache(format!("{namespace}/{own}"), sharing);
            }
            mounts.plain.push(made);
            match source {
                None => _ = self.stages[id].context_paths.insert(path),
                Some(source) => self.stages.use_path(source, path),
            }
        }
        Ok(())
    }

    fn mount_target(&self, id: Id, given: &str) -> Result<String> {
        let target = if gopath::is_abs(&gopath::clean(given)) {
            given.to_owned()
        } else {
            gopath::join(["/", self.stages[id].state.get_dir(), given])
        };
        if target == "/" {
            return Err(Failed::new(format!("invalid mount target {}", base::gotext::quote(&target))));
        }
        Ok(target)
    }

    fn secret(&mut self, id: Id, mount: &instructions::Mount, lines: Lines) -> Result<Secret> {
        let mut name = if mount.source.is_empty() { mount.id.clone() } else { mount.source.clone() };
        if name.is_empty() {
            if mount.target.is_empty() {
                return Err(Failed::new("one of source, target required"));
            }
            gopath::base(&mount.target).clone_into(&mut name);
        }
        let target = match (mount.target.as_str(), &mount.env) {
            ("", Some(_)) => None,
            ("", None) => Some(format!("/run/secrets/{}", gopath::base(&name))),
            (target, _) => Some(target.to_owned()),
        };
        let seen = Mounted { required: mount.required, lines };
        self.stages[id].outline.secrets.entry(name.clone()).or_insert(seen);
        Ok(Secret {
            id: name,
            target,
            env: mount.env.clone(),
            owner: (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0), mount.mode.unwrap_or(0o400)),
            optional: !mount.required,
        })
    }

    fn ssh(&mut self, id: Id, mount: &instructions::Mount, lines: Lines) -> Result<Ssh> {
        if !mount.source.is_empty() {
            return Err(Failed::new("ssh does not support source"));
        }
        let shown = if mount.id.is_empty() { "default" } else { &mount.id };
        let seen = Mounted { required: mount.required, lines };
        self.stages[id].outline.ssh.entry(shown.to_owned()).or_insert(seen);
        Ok(Ssh {
            id: mount.id.clone(),
            target: mount.target.clone(),
            owner: (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0), mount.mode.unwrap_or(0o600)),
            optional: !mount.required,
        })
    }

    fn devices(&self, run: &Run) -> Result<Vec<Device>> {
        if !self.llb_caps().has(caps::EXEC_META_CDI) {
            return Ok(Vec::new());
        }
        if !run.devices.is_empty() {
            return Err(Failed::new(
                "device feature is only supported in Dockerfile frontend 1.14.0-labs or later",
            ));
        }
        let devices = &self.options.client.config().devices;
        Ok(devices.iter().map(|d| Device { name: d.name.clone(), optional: d.optional }).collect())
    }
}

/// A cache mount's directory, with owner and mode.
fn owned_cache(mount: &instructions::Mount, state: &State) -> State {
    let action = FileAction::Mkdir {
        path: "/cache".to_owned(),
        mode: mount.mode.unwrap_or(0o755),
        parents: false,
        owner: Some(FileOwner::ids(mount.uid.unwrap_or(0), mount.gid.unwrap_or(0))),
        created: None,
    };
    state.file(vec![action], internal("setting cache mount permissions"))
}

/// Variables as a title shows them: those that hold secrets as stars.
fn masked(env: &EnvList, run: &Run) -> EnvList {
    let mut env = env.clone();
    let secrets = run.mounts.iter().filter(|m| m.kind == MountKind::Secret);
    for name in secrets.filter_map(|m| m.env.as_ref()) {
        env.set(name, "****");
    }
    env
}

/// Only text can be part of an operation.
fn utf8(data: &[u8]) -> Result<String> {
    String::from_utf8(data.to_vec()).map_err(|_| Failed::new("string field contains invalid UTF-8"))
}
