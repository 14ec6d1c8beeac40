//! What operations share.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use base::{Failure, Kind, Platform};
use refs::Refs;
use session::{Caller, Sessions};
use tokio::sync::Semaphore;

use crate::cachemount::CacheMounts;
use crate::content::Contents;
use crate::logs::LogLimits;
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
    /// What this machine builds for, natively or emulated; the first is the default.
    pub platforms: Vec<Platform>,
    /// Permits for processes that run at once; `None` is no limit.
    pub parallelism: Option<Arc<Semaphore>>,
    /// Content digests of results.
    pub contents: Contents,
    /// Persistent directories of `RUN --mount=type=cache`.
    pub cache_mounts: CacheMounts,
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
        let ids = sessions(cx);
        if ids.is_empty() {
            return Err(Error::NoSession.into());
        }
        self.sessions.any(&ids, ask).await
    }
}

/// The sessions of the builds that want this.
pub(crate) fn sessions(cx: &Cx) -> Vec<String> {
    cx.values::<BuildValues>().iter().map(|b| b.session.clone()).filter(|s| !s.is_empty()).collect()
}

/// What a build brings along, attached to its job in the solver.
#[derive(Debug, Clone, Default)]
pub struct BuildValues {
    /// The client's session; empty when there is none.
    pub session: String,
    /// What it may do beyond the sandbox.
    pub entitlements: BTreeSet<Entitlement>,
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
