//! Images in registries: resolve, fetch, push.
//!
//! [`Registries`] holds what all builds share: the configuration, connections,
//! tokens and the limits per host. A [`Repository`] is one image name on behalf
//! of one build's [`Access`]. Credentials come through a trait; bytes go out as
//! streams and are stored elsewhere.
//!
//! Nothing a registry says is believed without need: sizes are limited, digests
//! of documents verified, and what is meant for one host is not shown to another.

mod attestations;
mod auth;
mod challenge;
pub mod config;
mod download;
mod error;
mod fetch;
mod host;
pub mod image;
mod limit;
mod push;
mod tls;
mod token;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;

use base::Failure;
use base::once::Flight;
use parking_lot::Mutex;

pub use attestations::Chain;
pub use auth::{Access, Anonymous, Credentials, Login, Token, TokenRequest};
pub use base::reference::{ParseError, Reference};
pub use config::{Config, HostConfig, KeyPair, Retry};
pub use download::Downloads;
pub use error::{Error, Problem, Result};
pub use fetch::{BlobReader, MAX_CONFIG, MAX_MANIFEST};
pub use image::{Document, Image, Index, Manifest, select};
pub use push::{File, Pushed, Source, Watch};
pub use tls::client_tls;

use auth::Tokens;
use host::Host;
use limit::Limits;
use wire::Wire;

/// All registries. Clones are the same.
#[derive(Clone)]
pub struct Registries(Arc<Shared>);

type Hosts = Arc<[Arc<Host>]>;
type HostsKey = (String, bool);

pub(crate) struct Shared {
    /// What is the same for all hosts, as it was in the beginning.
    pub(crate) config: Arc<Config>,
    /// Hosts as they are configured now.
    current: Mutex<Current>,
    pub(crate) limits: Limits,
    tokens: Tokens,
    hosts: Mutex<HashMap<HostsKey, Hosts>>,
    making: Flight<(HostsKey, u64), Hosts>,
}

/// A configuration, and how many there were before it.
#[derive(Clone)]
struct Current {
    config: Arc<Config>,
    generation: u64,
}

impl Shared {
    /// The hosts for `domain`; their certificates are read when it is first used.
    pub(crate) async fn hosts(&self, domain: &str, insecure: bool) -> Result<Hosts, Problem> {
        let key = (domain.to_owned(), insecure);
        if let Some(hosts) = self.hosts.lock().get(&key) {
            return Ok(hosts.clone());
        }
        let Current { config, generation } = self.current.lock().clone();
        let make = || {
            let (config, key) = (config.clone(), key.clone());
            async move {
                let make = move || Ok(host::hosts(&config, &tls::system_roots(), &key.0, key.1));
                let made = base::task::blocking(make).await.map_err(Problem::Credentials)??;
                Ok::<Hosts, Problem>(made.into())
            }
        };
        let hosts = self.making.run((key.clone(), generation), make).await?;
        let mut known = self.hosts.lock();
        // Not those of a configuration that was replaced meanwhile.
        if self.current.lock().generation == generation {
            known.insert(key, hosts.clone());
        }
        Ok(hosts)
    }

    pub(crate) fn wire<'a>(&'a self, access: &'a Access) -> Wire<'a> {
        Wire { tokens: &self.tokens, retry: &self.config.retry, access }
    }
}

impl Registries {
    /// All registries, reached as `config` says.
    pub fn new(config: Config) -> Self {
        let config = Arc::new(config);
        Self(Arc::new(Shared {
            limits: Limits::new(config.max_concurrency),
            current: Mutex::new(Current { config: config.clone(), generation: 0 }),
            config,
            tokens: Tokens::default(),
            hosts: Mutex::default(),
            making: Flight::default(),
        }))
    }

    /// Reaches hosts as `config` says from now on; their certificates are read
    /// again. Transfers that run go on as they began. Limits and everything that is
    /// the same for all hosts stay as they are.
    pub fn reconfigure(&self, config: Config) {
        let mut known = self.0.hosts.lock();
        let mut current = self.0.current.lock();
        *current = Current { config: Arc::new(config), generation: current.generation.wrapping_add(1) };
        known.clear();
    }

    /// One image name, on behalf of `access`.
    ///
    /// # Errors
    /// When a certificate or key configured for the host cannot be read.
    pub async fn repository(&self, reference: &Reference, access: &Access) -> Result<Repository> {
        let hosts = self.0.hosts(reference.domain(), access.insecure).await;
        let hosts = hosts.map_err(|problem| problem.of(reference))?;
        let (reference, access) = (reference.clone(), access.clone());
        Ok(Repository(Arc::new(Inner { shared: self.0.clone(), hosts, reference, access })))
    }
}

/// One image name on behalf of one build. Clones are the same.
#[derive(Clone)]
pub struct Repository(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    hosts: Hosts,
    reference: Reference,
    access: Access,
}

impl Repository {
    /// The name.
    pub fn reference(&self) -> &Reference {
        &self.0.reference
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }

    fn wire(&self) -> Wire<'_> {
        self.0.shared.wire(&self.0.access)
    }

    /// The hosts in the order in which they are asked, and whether it is the last.
    fn hosts_and_last(&self) -> impl Iterator<Item = (&Host, bool)> {
        let count = self.0.hosts.len();
        self.0.hosts.iter().enumerate().map(move |(i, host)| (&**host, i + 1 == count))
    }
}

/// A [`Failure`] of an image name that cannot be read.
///
/// # Errors
/// Always when `text` is no image name.
pub fn parse(text: &str) -> std::result::Result<Reference, Failure> {
    text.parse::<Reference>()
        .map_err(|e| Failure::from(e).context(format!("failed to parse reference {text:?}")))
}
