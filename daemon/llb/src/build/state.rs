//! A tree of files to be, and what the next process in it starts with.

use std::sync::Arc;

use base::{Platform, gopath};
use proto::pb;
use serde::Deserialize;

use super::exec::{Exec, Run};
use super::file::{FileAction, FileNode};
use super::node::{Later, Node, NodeKind, Options, Output};
use crate::{Error, caps};

/// A tree of files to be. Cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    pub(super) output: Option<Output>,
    pub(super) context: Arc<Context>,
}

/// What the next process starts with.
#[derive(Debug, Clone, Default)]
pub(super) struct Context {
    pub(super) args: Vec<String>,
    pub(super) env: EnvList,
    pub(super) dir: String,
    pub(super) user: String,
    pub(super) hostname: String,
    pub(super) extra_hosts: Vec<pb::HostIp>,
    pub(super) ulimits: Vec<pb::Ulimit>,
    pub(super) cgroup_parent: String,
    pub(super) valid_exit_codes: Option<Vec<i32>>,
    pub(super) platform: Option<Platform>,
    pub(super) network: pb::NetMode,
    pub(super) security: pb::SecurityMode,
}

/// Environment variables, the most recently set last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvList(Vec<(String, String)>);

impl EnvList {
    /// Sets a variable; one that was set before moves to the end.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.0.retain(|(k, _)| k != key);
        self.0.push((key.to_owned(), value.into()));
    }

    /// Takes a variable away.
    pub fn unset(&mut self, key: &str) {
        self.0.retain(|(k, _)| k != key);
    }

    /// The value of a variable.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// As a process gets them.
    pub fn to_vec(&self) -> Vec<String> {
        self.0.iter().map(|(k, v)| format!("{k}={v}")).collect()
    }
}

impl State {
    /// No files.
    pub fn scratch() -> Self {
        Self::from_output(None)
    }

    /// The files of an output.
    pub fn from_output(output: Option<Output>) -> Self {
        let context = Context { dir: "/".to_owned(), ..Context::default() };
        Self { output: None, context: Arc::new(context) }.with_output(output)
    }

    /// Files that are known only when the graph is written.
    pub fn later(later: &Arc<Later>) -> Self {
        Self::from_output(Some(Output::Later(Arc::clone(later))))
    }

    /// Other files, the same surroundings.
    #[must_use]
    pub fn with_output(&self, output: Option<Output>) -> Self {
        let mut state = Self { output, context: Arc::clone(&self.context) };
        if let Some(Output::Of { platform: Some(platform), .. }) = &state.output {
            let platform = platform.clone().normalized();
            state.context_mut().platform = Some(platform);
        }
        state
    }

    /// The same files in the surroundings of `other`. The directory becomes the
    /// root, unless the output brings its own platform: then that is what changes.
    #[must_use]
    pub fn reset(&self, other: &Self) -> Self {
        let mut state = Self { output: self.output.clone(), context: Arc::clone(&other.context) };
        match &self.output {
            Some(Output::Of { platform: Some(platform), .. }) => {
                let platform = platform.clone().normalized();
                state.context_mut().platform = Some(platform);
            }
            _ => "/".clone_into(&mut state.context_mut().dir),
        }
        state
    }

    /// The output; `None` when there are no files.
    pub fn output(&self) -> Option<&Output> {
        self.output.as_ref()
    }

    fn context_mut(&mut self) -> &mut Context {
        Arc::make_mut(&mut self.context)
    }

    fn edit(&self, change: impl FnOnce(&mut Context)) -> Self {
        let mut state = self.clone();
        change(state.context_mut());
        state
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(&self, key: &str, value: &str) -> Self {
        self.edit(|c| c.env.set(key, value))
    }

    /// All environment variables.
    pub fn get_env(&self) -> &EnvList {
        &self.context.env
    }

    /// In another directory; a relative one is relative to the one before.
    #[must_use]
    pub fn dir(&self, dir: &str) -> Self {
        self.edit(|c| {
            c.dir = if gopath::is_abs(dir) {
                dir.to_owned()
            } else {
                gopath::join([if c.dir.is_empty() { "/" } else { c.dir.as_str() }, dir])
            };
        })
    }

    /// The directory.
    pub fn get_dir(&self) -> &str {
        &self.context.dir
    }

    /// As another user.
    #[must_use]
    pub fn user(&self, user: &str) -> Self {
        self.edit(|c| user.clone_into(&mut c.user))
    }

    /// With a name for the machine.
    #[must_use]
    pub fn hostname(&self, name: &str) -> Self {
        self.edit(|c| name.clone_into(&mut c.hostname))
    }

    /// With a command.
    #[must_use]
    pub fn args(&self, args: Vec<String>) -> Self {
        self.edit(|c| c.args = args)
    }

    /// With a line in `/etc/hosts`.
    #[must_use]
    pub fn extra_host(&self, host: &str, ip: std::net::IpAddr) -> Self {
        // An IPv4 address in IPv6 clothes is written as IPv4.
        let ip = ip.to_canonical().to_string();
        self.edit(|c| c.extra_hosts.push(pb::HostIp { host: host.to_owned(), ip }))
    }

    /// With a limit.
    #[must_use]
    pub fn ulimit(&self, name: &str, soft: i64, hard: i64) -> Self {
        self.edit(|c| c.ulimits.push(pb::Ulimit { name: name.to_owned(), soft, hard }))
    }

    /// Below another control group.
    #[must_use]
    pub fn cgroup_parent(&self, parent: &str) -> Self {
        self.edit(|c| parent.clone_into(&mut c.cgroup_parent))
    }

    /// Exit statuses that count as success.
    #[must_use]
    pub fn valid_exit_codes(&self, codes: Vec<i32>) -> Self {
        self.edit(|c| c.valid_exit_codes = Some(codes))
    }

    /// For another platform.
    #[must_use]
    pub fn platform(&self, platform: Platform) -> Self {
        self.edit(|c| c.platform = Some(platform.normalized()))
    }

    /// The platform, if it was said.
    pub fn get_platform(&self) -> Option<&Platform> {
        self.context.platform.as_ref()
    }

    /// On another network.
    #[must_use]
    pub fn network(&self, mode: pb::NetMode) -> Self {
        self.edit(|c| c.network = mode)
    }

    /// The network.
    pub fn get_network(&self) -> pb::NetMode {
        self.context.network
    }

    /// With other privileges.
    #[must_use]
    pub fn security(&self, mode: pb::SecurityMode) -> Self {
        self.edit(|c| c.security = mode)
    }

    /// With the environment, directory and platform of an image's configuration.
    ///
    /// # Errors
    /// When it is not the JSON of one.
    pub fn with_image_config(&self, config: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize, Default)]
        struct Config {
            #[serde(default, rename = "Env", deserialize_with = "base::gojson::nullable")]
            env: Vec<String>,
            #[serde(default, rename = "WorkingDir", deserialize_with = "base::gojson::nullable")]
            dir: String,
        }
        #[derive(Deserialize)]
        struct Image {
            #[serde(flatten)]
            platform: Platform,
            #[serde(default)]
            config: Option<Config>,
        }
        let image: Image = serde_json::from_slice(config)
            .map_err(|e| Error::Invalid(format!("failed to parse image config: {e}")))?;
        let config = image.config.unwrap_or_default();
        let mut state = self.clone();
        for env in &config.env {
            let (key, value) = env.split_once('=').unwrap_or((env, ""));
            if !key.is_empty() {
                state.context_mut().env.set(key, value);
            }
        }
        let state = state.dir(&config.dir);
        let platform = image.platform;
        if platform.architecture.is_empty() || platform.os.is_empty() {
            return Ok(state);
        }
        Ok(state.platform(platform))
    }

    /// Runs a process.
    pub fn run(&self, run: Run) -> Exec {
        Exec::new(self, run)
    }

    /// Changes files.
    #[must_use]
    pub fn file(&self, actions: Vec<FileAction>, options: Options) -> Self {
        let node = FileNode { base: self.output.clone(), dir: self.context.dir.clone(), actions };
        self.with_output(Some(Output::Of {
            node: Node::new(NodeKind::File(node), options),
            index: 0,
            platform: None,
        }))
    }

    /// Lays trees on top of each other; empty ones do not count.
    #[must_use]
    pub fn merge(states: &[Self], mut options: Options) -> Self {
        let filled: Vec<&Self> = states.iter().filter(|s| s.output.is_some()).collect();
        match filled.as_slice() {
            [] => Self::scratch(),
            [only] => (*only).clone(),
            [first, ..] => {
                options.cap(caps::MERGEOP);
                let inputs = filled.iter().filter_map(|s| s.output.clone()).collect();
                let node = Node::new(NodeKind::Merge(inputs), options);
                first.with_output(Some(Output::Of { node, index: 0, platform: None }))
            }
        }
    }

    /// What `upper` has that `lower` has not.
    #[must_use]
    pub fn diff(lower: &Self, upper: &Self, mut options: Options) -> Self {
        if lower.output.is_none() {
            return if upper.output.is_none() { Self::scratch() } else { upper.clone() };
        }
        options.cap(caps::DIFFOP);
        let kind = NodeKind::Diff { lower: lower.output.clone(), upper: upper.output.clone() };
        lower.with_output(Some(Output::Of { node: Node::new(kind, options), index: 0, platform: None }))
    }

    /// The same files, made only when `others` are.
    #[must_use]
    pub fn requires(&self, id: &str, others: &[Self]) -> Self {
        if others.is_empty() {
            return self.clone();
        }
        let mut options = Options::new();
        options.cap(caps::PASSTHROUGHOP);
        let outputs = if self.output.is_some() { vec![0] } else { Vec::new() };
        let inputs = std::iter::once(self).chain(others).filter_map(|s| s.output.clone()).collect();
        let kind = NodeKind::Passthrough { id: id.to_owned(), inputs, outputs };
        self.with_output(Some(Output::Of { node: Node::new(kind, options), index: 0, platform: None }))
    }
}
