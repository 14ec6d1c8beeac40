//! What operations share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use base::progress::VertexSink;
use base::task::Scope;
use base::{Compatibility, Failure, Kind, Platform};
use proto::pb;
use refs::Refs;
use session::{Caller, Sessions};
use tokio::sync::Semaphore;

use crate::cachemount::CacheMounts;
use crate::content::Contents;
use crate::logs::LogLimits;
use crate::source::Resolved;
use crate::source::git::Repositories;
use crate::source::http::Http;
use crate::source::image::Images;
use crate::{Cx, Error};

/// The store, the sandbox and the ways out.
pub struct Worker {
    /// Results on disk.
    pub refs: Refs,
    /// Runs processes.
    pub executor: exec::Executor,
    /// Clients that can be asked for things.
    pub sessions: Sessions,
    /// Images in registries and layouts.
    pub images: Arc<Images>,
    /// Files by URL.
    pub http: Http,
    /// Repositories that are worked on.
    pub git: Repositories,
    /// What this machine builds for, natively or emulated; the first is the default.
    pub platforms: Vec<Platform>,
    /// Permits for processes that run at once; `None` is no limit.
    pub parallelism: Option<Arc<Semaphore>>,
    /// Content digests of results.
    pub contents: Contents,
    /// Persistent directories of `RUN --mount=type=cache`.
    pub cache_mounts: CacheMounts,
    /// Devices that processes may ask for.
    pub devices: exec::Devices,
    /// A directory for secrets and sockets of running steps.
    pub scratch: PathBuf,
    /// How much a step may print.
    pub log_limits: LogLimits,
}

impl Worker {
    /// The platform builds are for unless they say otherwise.
    pub fn platform(&self) -> Platform {
        self.platforms.first().cloned().unwrap_or_else(Platform::host)
    }

    /// Readies this for a build of `graph`: persistent directories whose steps
    /// are to ignore what was kept begin anew.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn prepare(&self, graph: &llb::Graph) -> Result<(), Failure> {
        self.cache_mounts.forget(&self.refs, graph).await
    }

    /// Asks each session of the builds that want this in turn, until one answers.
    pub(crate) async fn any_session<T, F>(&self, cx: &Cx, ask: impl FnMut(Caller) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.ask(&sessions(cx), ask).await
    }

    /// Asks each of the sessions `ids` in turn, until one answers.
    pub(crate) async fn ask<T, F>(&self, ids: &[String], ask: impl FnMut(Caller) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if ids.is_empty() {
            return Err(Error::NoSession.into());
        }
        self.sessions.any(ids, ask).await
    }
}

/// The sessions of the builds that want this.
pub(crate) fn sessions(cx: &Cx) -> Vec<String> {
    Behalf::of(cx).sessions()
}

/// On whose behalf a source is looked up, and to whom that is shown.
#[derive(Clone)]
pub struct Behalf {
    /// The builds that want it.
    pub builds: Vec<Arc<BuildValues>>,
    /// As long as it is wanted.
    pub scope: Scope,
    /// Who is told how far it got.
    pub progress: VertexSink,
}

impl Behalf {
    /// Of the builds that want an operation.
    pub(crate) fn of(cx: &Cx) -> Self {
        Self { builds: cx.values(), scope: cx.scope.clone(), progress: cx.progress.clone() }
    }

    /// The release whose results the builds want.
    ///
    /// # Errors
    /// When they do not want those of the same one.
    pub(crate) fn compatibility(&self) -> Result<Compatibility, Failure> {
        let mut versions = self.builds.iter().map(|build| build.compatibility);
        let first = versions.next().unwrap_or_default();
        match versions.find(|version| *version != first) {
            Some(other) => Err(Error::Compatibility(first.number(), other.number()).into()),
            None => Ok(first),
        }
    }

    /// The builds' sessions.
    pub fn sessions(&self) -> Vec<String> {
        self.builds.iter().map(|b| b.session.clone()).filter(|s| !s.is_empty()).collect()
    }
}

/// Has a say in which sources a build may use, and may put others in their place.
#[async_trait]
pub trait SourcePolicy: Send + Sync {
    /// Looks at every source of `graph`.
    ///
    /// # Errors
    /// When one of them is denied.
    async fn apply(&self, graph: llb::Graph, worker: &Worker, behalf: &Behalf)
    -> Result<llb::Graph, Failure>;

    /// Looks at one source.
    ///
    /// # Errors
    /// When it is denied.
    async fn check(&self, source: &mut pb::SourceOp, worker: &Worker, behalf: &Behalf)
    -> Result<(), Failure>;
}

/// What a build brings along, attached to its job in the solver.
#[derive(Clone, Default)]
pub struct BuildValues {
    /// The client's session; empty when there is none.
    pub session: String,
    /// What it may do beyond the sandbox.
    pub entitlements: Entitlements,
    /// What sources turned out to be.
    pub resolved: Arc<Resolved>,
    /// Asked about the sources of definitions that turn up within the build.
    pub policy: Option<Arc<dyn SourcePolicy>>,
    /// Its steps reach the network only through a proxy.
    pub proxy: bool,
    /// The release whose results are wanted.
    pub compatibility: Compatibility,
}

/// What a build may do beyond the sandbox.
#[derive(Debug, Clone, Default)]
pub struct Entitlements {
    granted: BTreeSet<Entitlement>,
    /// Whether that is all devices.
    all_devices: bool,
    /// The names of devices, as steps ask for them, and those they stand for.
    devices: BTreeMap<String, Option<String>>,
}

impl Entitlements {
    /// Grants what `text` says, as clients write it: `network.host`,
    /// `device=NAME,alias=OTHER`.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn grant(&mut self, text: &str) -> Result<Entitlement, Failure> {
        let entitlement: Entitlement = text.parse()?;
        if entitlement == Entitlement::Device {
            match text.split_once('=').map(|(_, device)| device).filter(|device| !device.is_empty()) {
                None => self.all_devices = true,
                Some(device) => self.grant_device(device)?,
            }
        }
        self.granted.insert(entitlement);
        Ok(entitlement)
    }

    fn grant_device(&mut self, text: &str) -> Result<(), Failure> {
        let mut fields = text.split(',');
        let name = fields.next().unwrap_or_default().to_owned();
        let mut alias = None;
        for field in fields {
            match field.split_once('=') {
                Some(("alias", value)) => alias = Some(value.to_owned()),
                Some((key, _)) => {
                    let key = base::gotext::quote(key);
                    return Err(Failure::invalid(format!("unknown device config key {key}")));
                }
                None => {
                    let field = base::gotext::quote(field);
                    return Err(Failure::invalid(format!("invalid device config {field}")));
                }
            }
        }
        match alias.filter(|alias| !alias.is_empty()) {
            Some(alias) => self.devices.insert(alias, Some(name)),
            None => self.devices.insert(name, None),
        };
        Ok(())
    }

    /// Whether it is among them.
    pub fn contains(&self, entitlement: &Entitlement) -> bool {
        self.granted.contains(entitlement)
    }

    /// These and those of another build.
    pub(crate) fn join(&mut self, other: &Self) {
        self.granted.extend(&other.granted);
        self.all_devices |= other.all_devices;
        self.devices.extend(other.devices.clone());
    }

    /// The devices that a step gets that asks for `wanted`, each by its own name.
    ///
    /// # Errors
    /// When there is none for what is not optional, or it is neither granted
    /// nor free for all.
    pub(crate) fn permit(
        &self,
        devices: &exec::Devices,
        wanted: &[pb::CdiDevice],
    ) -> Result<Vec<pb::CdiDevice>, Failure> {
        if self.all_devices {
            return Ok(wanted.to_vec());
        }
        let mut permitted = Vec::new();
        let mut named = Vec::new();
        for device in wanted {
            match self.devices.get(&device.name) {
                Some(Some(own)) => permitted.push(pb::CdiDevice { name: own.clone(), ..device.clone() }),
                _ => named.push((device.name.as_str(), device.optional)),
            }
        }
        let found = devices.find(named)?;
        if found.is_empty() {
            return Ok(permitted);
        }
        let granted: BTreeSet<String> = devices
            .find(self.devices.keys().map(|name| (name.as_str(), false)))?
            .into_iter()
            .map(|device| device.name)
            .collect();
        let (allowed, forbidden): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|device| device.auto_allow || granted.contains(&device.name));
        if !forbidden.is_empty() {
            return Err(Error::Devices(forbidden.into_iter().map(|device| device.name).collect()).into());
        }
        permitted.extend(allowed.into_iter().map(|d| pb::CdiDevice { name: d.name, optional: false }));
        Ok(permitted)
    }
}

/// Something a build may do only when client and daemon both say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entitlement {
    /// The host's network.
    NetworkHost,
    /// All privileges of the daemon.
    SecurityInsecure,
    /// Devices.
    Device,
}

impl fmt::Display for Entitlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetworkHost => "network.host",
            Self::SecurityInsecure => "security.insecure",
            Self::Device => "device",
        })
    }
}

impl FromStr for Entitlement {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        // Devices may be named: `device=vendor/class=name,alias=x`.
        match text.split_once('=').map_or(text, |(kind, _)| kind) {
            "network.host" => Ok(Self::NetworkHost),
            "security.insecure" => Ok(Self::SecurityInsecure),
            "device" => Ok(Self::Device),
            _ => Err(Failure::new(Kind::InvalidArgument, format!("invalid entitlement : {text}"))),
        }
    }
}
