//! Images in registries: resolve, fetch, push.
//!
//! [`Registries`] holds what all builds share: the configuration, connections,
//! tokens and the limits per host. A [`Repository`] is one image name on behalf
//! of one build's [`Access`]. Credentials come through a trait; bytes go out as
//! streams and are stored elsewhere.
//!
//! Nothing a registry says is believed without need: sizes are limited, digests
//! of documents verified, and what is meant for one host is not shown to another.

mod auth;
mod challenge;
pub mod config;
mod error;
mod fetch;
mod host;
pub mod image;
mod limit;
mod push;
pub mod reference;
mod tls;
mod token;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;

use base::Failure;
use base::once::Flight;
use parking_lot::Mutex;

pub use auth::{Access, Anonymous, Credentials, Login, Token, TokenRequest};
pub use config::{Config, HostConfig, KeyPair, Retry};
pub use error::{Error, Problem, Result};
pub use fetch::{BlobReader, MAX_CONFIG, MAX_MANIFEST};
pub use image::{Document, Image, Index, Manifest, select};
pub use push::{File, Pushed, Source, Watch};
pub use reference::{ParseError, Reference};

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
    pub(crate) config: Arc<Config>,
    pub(crate) limits: Limits,
    tokens: Tokens,
    hosts: Mutex<HashMap<HostsKey, Hosts>>,
    making: Flight<HostsKey, Hosts>,
}

impl Shared {
    /// The hosts for `domain`; their certificates are read when it is first used.
    pub(crate) async fn hosts(&self, domain: &str, insecure: bool) -> Result<Hosts, Problem> {
        let key = (domain.to_owned(), insecure);
        if let Some(hosts) = self.hosts.lock().get(&key) {
            return Ok(hosts.clone());
        }
        let make = || {
            let (config, key) = (self.config.clone(), key.clone());
            async move {
                let make = move || Ok(host::hosts(&config, &tls::system_roots(), &key.0, key.1));
                let made = base::task::blocking(make).await.map_err(Problem::Credentials)??;
                Ok::<Hosts, Problem>(made.into())
            }
        };
        let hosts = self.making.run(key.clone(), make).await?;
        self.hosts.lock().insert(key, hosts.clone());
        Ok(hosts)
    }

    pub(crate) fn wire<'a>(&'a self, access: &'a Access) -> Wire<'a> {
        Wire { tokens: &self.tokens, retry: &self.config.retry, access }
    }
}

impl Registries {
    /// All registries, reached as `config` says.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Shared {
            limits: Limits::new(config.max_concurrency),
            config: Arc::new(config),
            tokens: Tokens::default(),
            hosts: Mutex::default(),
            making: Flight::default(),
        }))
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
