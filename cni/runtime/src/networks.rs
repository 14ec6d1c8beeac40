//! Network namespaces for runs: made, handed out once, destroyed.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::Failure;
use base::task::{Scope, blocking};
use parking_lot::{Mutex, RwLock};
use sys::netns::NetNs;
use tokio::sync::Notify;

use crate::chain::Chain;
use crate::config::NetworkConfig;
use crate::dns::{Overrides, ResolvConf};
use crate::forward::Forwarder;
use crate::ledger::Ledger;
use crate::plugin::{Attachment, Bundled};
use crate::pool::{self, Pool};
use crate::result::{Dns, NetworkResult};
use crate::settings::{BridgeConfig, Choice, Config, DefaultNetwork, Mode};
use crate::{Call, Command, Error};

/// Name of the interface in a namespace.
const IFNAME: &str = "eth0";

const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// The networks of a daemon. Clones are the same.
#[derive(Clone)]
pub struct Networks(Arc<Inner>);

pub(crate) struct Inner {
    kind: Kind,
    choice: Choice,
    ledger: Ledger,
    bundled: Arc<dyn Bundled>,
    dns: Overrides,
    /// How many are always ready.
    pub(crate) pool_size: usize,
    pub(crate) pool: Mutex<Pool>,
    /// Whether it is closed. Held for reading while a namespace is made.
    closed: RwLock<bool>,
    /// One was taken.
    pub(crate) wake: Notify,
    /// Some were given up.
    pub(crate) sweep: Notify,
    /// Held while one is made ahead of its use, or destroyed after it.
    pub(crate) turn: tokio::sync::Mutex<()>,
    forwarder: tokio::sync::Mutex<Option<Forwarder>>,
    pub(crate) scope: Scope,
}

enum Kind {
    Host,
    None,
    Plugins { chain: Chain, default: Option<Box<DefaultNetwork>> },
}

/// A namespace that exists.
#[derive(Default)]
pub(crate) struct Made {
    attachment: Attachment,
    path: PathBuf,
    /// None: nothing connects it.
    result: Option<NetworkResult>,
}

/// The network of one run.
pub struct Namespace {
    inner: Arc<Inner>,
    made: Option<Made>,
    resolv_conf: ResolvConf,
}

impl Networks {
    /// Removes what an earlier daemon left, sets up the network and tries it once.
    /// Namespaces are prepared in tasks of `scope`.
    ///
    /// # Errors
    /// When the network that was asked for does not work.
    pub async fn open(config: Config, bundled: Arc<dyn Bundled>, scope: &Scope) -> Result<Self, Failure> {
        let scope = scope.child();
        let inner = blocking(move || Ok(Arc::new(Inner::open(config, bundled, scope)?))).await?;
        if matches!(inner.kind, Kind::Plugins { .. }) {
            inner.scope.spawn(pool::fill(inner.clone()));
        }
        inner.scope.spawn(pool::sweep(inner.clone()));
        Ok(Self(inner))
    }

    /// What clients are told: `cni`, `host` or `none`.
    pub fn mode(&self) -> &'static str {
        match self.0.kind {
            Kind::Host => "host",
            Kind::None => "none",
            Kind::Plugins { .. } => "cni",
        }
    }

    /// Which networks runs get, and why.
    pub fn choice(&self) -> &Choice {
        &self.0.choice
    }

    /// A network for one run. One with a host name of its own is made for it, since
    /// plugins may want to know the name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn namespace(&self, hostname: &str) -> Result<Namespace, Failure> {
        let inner = self.0.clone();
        let ready = if hostname.is_empty() { inner.pool.lock().take() } else { None };
        inner.wake.notify_waiters();
        let surplus = inner.pool.lock().too_many();
        if let Some(surplus) = surplus {
            pool::destroy(&inner, surplus).await;
        }
        let mut namespace = match (&inner.kind, ready) {
            (Kind::Host | Kind::None, _) => Namespace::new(inner, None),
            (Kind::Plugins { .. }, Some(made)) => Namespace::new(inner, Some(made)),
            (Kind::Plugins { .. }, None) => inner.make_room(hostname).await?,
        };
        namespace.resolv_conf = namespace.settle_dns().await?;
        Ok(namespace)
    }

    /// A namespace that is connected to nothing, with `address` on its loopback interface
    /// for what serves in it. What its `/etc/resolv.conf` says is for its owner to know.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn enclosed(&self, address: Ipv4Addr) -> Result<Namespace, Failure> {
        let inner = self.0.clone();
        blocking(move || {
            let made = inner.enclose(address)?;
            Ok(Namespace::new(inner, Some(made)))
        })
        .await
    }

    /// Destroys namespaces that are ready and what is left of the default network.
    /// Those in use are destroyed by their owners, who are to be gone by now.
    pub async fn close(&self) {
        let inner = &self.0;
        inner.scope.cancel(Failure::canceled("networks are closed"));
        inner.wake.notify_waiters();
        *inner.forwarder.lock().await = None;
        inner.scope.close().await;
        let left = inner.clone();
        let done = blocking(move || {
            left.close();
            Ok(())
        });
        if let Err(e) = done.await {
            tracing::warn!(error = %e, "close networks");
        }
    }
}

impl Inner {
    fn open(config: Config, bundled: Arc<dyn Bundled>, scope: Scope) -> Result<Self, Error> {
        let net = config.root.join("net");
        let ledger = Ledger::open(&net)?;
        ledger.reap(&bundled);
        let build = |kind, choice| Self {
            kind,
            choice,
            ledger: ledger.clone(),
            bundled: bundled.clone(),
            dns: config.dns.clone(),
            pool_size: config.pool_size,
            pool: Mutex::default(),
            closed: RwLock::default(),
            wake: Notify::new(),
            sweep: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            forwarder: tokio::sync::Mutex::default(),
            scope: scope.clone(),
        };
        let file = config.config_path.display();
        let user = || -> Result<(Kind, Choice), Error> {
            // No path for one that was made for plugins of our own.
            let (network, path) = match &config.network {
                Some(network) => (network.clone(), Vec::new()),
                None => (NetworkConfig::load(&config.config_path)?, config.plugin_path.clone()),
            };
            let choice = Choice::asked_for(format!("network {:?} of {file}", network.name));
            let chain = Chain::new(network, path, bundled.clone());
            Ok((Kind::Plugins { chain, default: None }, choice))
        };
        let bridge = || -> Result<(Kind, Choice), Error> {
            let name = if config.bridge_name.is_empty() { "buildkit0" } else { &config.bridge_name };
            let resolvers = ResolvConf::load(Path::new(HOST_RESOLV_CONF)).overridden(&config.dns);
            let wanted = BridgeConfig {
                name: name.to_owned(),
                subnet: config.bridge_subnet,
                addresses: net.join("ipam"),
                avoid: resolvers.nameservers.iter().filter_map(|s| crate::dns::address(s)).collect(),
            };
            let default = bundled.default_network(&wanted)?;
            ledger.note_default(&default)?;
            let network = NetworkConfig::parse(default.config.to_string().as_bytes(), "default network")?;
            let subnets: Vec<String> = default.subnets.iter().map(ToString::to_string).collect();
            let choice = Choice::asked_for(format!("bridge {name}, {}", subnets.join(", ")));
            // No path: these are always our own plugins.
            let chain = Chain::new(network, Vec::new(), bundled.clone());
            Ok((Kind::Plugins { chain, default: Some(Box::new(default)) }, choice))
        };
        let tried = |(kind, choice)| build(kind, choice).tried();
        let host = || Choice::asked_for("the daemon's own");
        match config.mode {
            Mode::Host => Ok(build(Kind::Host, host())),
            Mode::None => Ok(build(Kind::None, Choice::asked_for("none"))),
            Mode::Cni => user().and_then(tried),
            Mode::Bridge => bridge().and_then(tried),
            Mode::Auto if config.config_path.exists() => {
                let reason = |(kind, choice): (_, Choice)| (kind, choice.because("the file is there"));
                user().map(reason).and_then(tried)
            }
            Mode::Auto if config.rootless => {
                Ok(build(Kind::Host, host().because("without root no others can be made")))
            }
            Mode::Auto => {
                let reason = format!("there is no {file}, and the daemon may make networks");
                let isolated = bridge().map(|(kind, choice)| (kind, choice.because(reason))).and_then(tried);
                isolated.or_else(|e| {
                    let choice = host().because(format!("no network can be made here: {e}"));
                    Ok(build(Kind::Host, Choice { fallback: true, ..choice }))
                })
            }
        }
    }

    /// Whether one is made ahead while steps follow each other, though nobody said so:
    /// only where it costs nobody else an address.
    pub(crate) fn ahead(&self) -> bool {
        matches!(self.kind, Kind::Plugins { default: Some(_), .. })
    }

    /// Makes one namespace and keeps it for the first run, or destroys it.
    fn tried(self) -> Result<Self, Error> {
        let tried = self.make("").and_then(|made| {
            if self.pool_size == 0 && !self.ahead() {
                return self.destroy(&made);
            }
            self.pool.lock().begin(made);
            Ok(())
        });
        match tried {
            Ok(()) => Ok(self),
            Err(e) => {
                self.close();
                Err(e)
            }
        }
    }

    /// Makes one for a run that waits. Where that fails, what is ahead of its use or was
    /// given up may have what it takes, such as the last address, and goes first.
    async fn make_room(self: &Arc<Self>, hostname: &str) -> Result<Namespace, Failure> {
        // Whole before it is handed over: should nobody wait any more, it is released.
        let make = || {
            let (inner, hostname) = (self.clone(), hostname.to_owned());
            blocking(move || {
                let made = inner.make(&hostname)?;
                Ok(Namespace::new(inner, Some(made)))
            })
        };
        let error = match make().await {
            Ok(namespace) => return Ok(namespace),
            Err(e) => e,
        };
        let under_way = self.turn.try_lock().is_err();
        let _turn = self.turn.lock().await;
        let spare = self.pool.lock().take_all();
        if spare.is_empty() && !under_way {
            return Err(error);
        }
        for made in spare {
            pool::destroy(self, made).await;
        }
        make().await
    }

    pub(crate) fn make(&self, hostname: &str) -> Result<Made, Error> {
        let Kind::Plugins { chain, .. } = &self.kind else {
            return Err(Error::config("network", "there are no plugins in this mode"));
        };
        let closed = self.closed.read();
        if *closed {
            return Err(Error::config("network", "it has been taken down"));
        }
        let id = base::id::fresh();
        let path = self.ledger.namespace(&id);
        let mut args = Vec::new();
        // A name that could be mistaken for something else is not passed on.
        if !hostname.is_empty() && !hostname.contains([';', '=']) {
            args.push(("K8S_POD_NAME".to_owned(), hostname.to_owned()));
            args.push(("IgnoreUnknown".to_owned(), "1".to_owned()));
        }
        let attachment = Attachment {
            container_id: id.clone(),
            netns: Some(path.clone()),
            ifname: IFNAME.into(),
            args,
            ..Attachment::default()
        };
        self.ledger.note(chain, &attachment, None)?;
        let result = NetNs::create(|| {}).and_then(|(ns, ())| ns.bind(&path)).map_err(Error::from);
        let result = result.and_then(|()| self.loopback(&path, None)).and_then(|()| chain.add(&attachment));
        match result {
            Ok(result) => {
                self.ledger.note(chain, &attachment, Some(&result))?;
                Ok(Made { attachment, path, result: Some(result) })
            }
            Err(e) => {
                // The chain has undone its part.
                let undone = sys::netns::unbind(&path).map_err(Error::from);
                if let Err(undo) = undone.and_then(|()| self.ledger.forget(&id)) {
                    tracing::warn!(id, error = %undo, "remove half-made network namespace");
                }
                Err(e)
            }
        }
    }

    /// The ledger needs no entry for what the file alone keeps alive.
    fn enclose(&self, address: Ipv4Addr) -> Result<Made, Error> {
        let closed = self.closed.read();
        if *closed {
            return Err(Error::config("network", "it has been taken down"));
        }
        let id = base::id::fresh();
        let path = self.ledger.namespace(&id);
        let (namespace, ()) = NetNs::create(|| {})?;
        namespace.bind(&path)?;
        if let Err(e) = self.loopback(&path, Some(address)) {
            if let Err(undo) = sys::netns::unbind(&path) {
                tracing::warn!(id, error = %undo, "remove half-made network namespace");
            }
            return Err(e);
        }
        let attachment = Attachment { container_id: id, netns: Some(path.clone()), ..Attachment::default() };
        Ok(Made { attachment, path, result: None })
    }

    /// Sets the loopback interface up, with a further address if one is given.
    fn loopback(&self, netns: &Path, address: Option<Ipv4Addr>) -> Result<(), Error> {
        const KIND: &str = "loopback";
        let plugin = self
            .bundled
            .plugin(KIND)
            .ok_or_else(|| Error::NoPlugin { kind: KIND.into(), searched: PathBuf::new() })?;
        let attachment =
            Attachment { netns: Some(netns.to_owned()), ifname: "lo".into(), ..Attachment::default() };
        let ips: Vec<String> = address.iter().map(|address| format!("{address}/32")).collect();
        let config = serde_json::json!({
            "cniVersion": "1.0.0", "name": "lo", "type": KIND, "runtimeConfig": {"ips": ips},
        });
        let call = Call {
            command: Command::Add,
            attachment: &attachment,
            path: &[],
            config: &config,
            namespace_ends: true,
        };
        plugin.call(&call).map(drop).map_err(|source| Error::Plugin {
            kind: KIND.into(),
            command: "ADD",
            source,
        })
    }

    /// What the namespace ends with need not be removed from it first.
    fn destroy(&self, made: &Made) -> Result<(), Error> {
        let (Kind::Plugins { chain, .. }, Some(result)) = (&self.kind, &made.result) else {
            return Ok(sys::netns::unbind(&made.path)?);
        };
        let disconnected = chain.del(&made.attachment, Some(result), true);
        sys::netns::unbind(&made.path)?;
        let ends = result.interfaces.iter().filter(|i| i.sandbox.is_empty());
        self.pool.lock().leave(ends.map(|i| i.name.clone()));
        disconnected?;
        self.ledger.forget(&made.attachment.container_id)
    }

    pub(crate) fn destroy_logged(&self, made: Made) {
        if let Err(e) = self.destroy(&made) {
            tracing::warn!(id = made.attachment.container_id, error = %e, "destroy network namespace");
        }
    }

    fn close(&self) {
        *self.closed.write() = true;
        let left = self.pool.lock().take_all();
        left.into_iter().for_each(|made| self.destroy_logged(made));
        if let Kind::Plugins { default: Some(network), .. } = &self.kind {
            // A bridge with ports counts as one that somebody uses. Under load the kernel lets
            // links of namespaces that have ended stand for seconds.
            let leaving = self.pool.lock().take_leaving();
            if let Err(e) = self.bundled.remove_links(&leaving) {
                tracing::warn!(error = %e, "remove links of network namespaces that have ended");
            }
            let removed =
                self.bundled.remove_default_network(network).and_then(|()| self.ledger.forget_default());
            if let Err(e) = removed {
                tracing::warn!(error = %e, "remove the default network");
            }
        }
    }
}

impl Namespace {
    fn new(inner: Arc<Inner>, made: Option<Made>) -> Self {
        Self { inner, made, resolv_conf: ResolvConf::default() }
    }

    /// The file the namespace is bound to. None for the host's network, and where there
    /// is to be none at all: see [`Self::is_host`].
    pub fn path(&self) -> Option<&Path> {
        self.made.as_ref().map(|m| m.path.as_path())
    }

    /// It is the daemon's own network.
    pub fn is_host(&self) -> bool {
        matches!(self.inner.kind, Kind::Host)
    }

    /// What plugins said of it.
    pub fn result(&self) -> Option<&NetworkResult> {
        self.made.as_ref().and_then(|m| m.result.as_ref())
    }

    /// What its `/etc/resolv.conf` says.
    pub fn resolv_conf(&self) -> &ResolvConf {
        &self.resolv_conf
    }

    /// Destroys it and waits until that is done; when it is dropped nobody waits.
    ///
    /// # Errors
    /// When something of it stays; the next start of the daemon tries again.
    pub async fn release(mut self) -> Result<(), Failure> {
        let Some(made) = self.made.take() else { return Ok(()) };
        let inner = self.inner.clone();
        blocking(move || Ok(inner.destroy(&made)?)).await
    }

    /// The configuration's settings before the plugins' before the host's. Where only
    /// loopback resolvers are left, the gateway forwards to them.
    async fn settle_dns(&self) -> Result<ResolvConf, Failure> {
        let dns = self.inner.dns.clone();
        let host = blocking(move || Ok(ResolvConf::load(Path::new(HOST_RESOLV_CONF)))).await?;
        if self.is_host() {
            return Ok(host.overridden(&dns));
        }
        let loopback_only = dns.nameservers.is_empty() && host.is_loopback_only();
        let servers: Vec<IpAddr> = host.nameservers.iter().filter_map(|s| crate::dns::address(s)).collect();
        let mut conf = host.without_loopback();
        if let Some(Dns { nameservers, search, options, .. }) = self.result().map(|r| &r.dns) {
            for (ours, theirs) in [
                (&mut conf.nameservers, nameservers),
                (&mut conf.search, search),
                (&mut conf.options, options),
            ] {
                if !theirs.is_empty() {
                    ours.clone_from(theirs);
                }
            }
        }
        if loopback_only
            && conf.nameservers.is_empty()
            && let Kind::Plugins { default: Some(network), .. } = &self.inner.kind
        {
            conf.nameservers = self.inner.forwarders(network, servers).await;
        }
        Ok(conf.overridden(&dns))
    }
}

impl Inner {
    /// Addresses of the DNS forwarder, which is started when it is first needed.
    async fn forwarders(&self, network: &DefaultNetwork, servers: Vec<IpAddr>) -> Vec<String> {
        let mut slot = self.forwarder.lock().await;
        let forwarder = match &*slot {
            Some(forwarder) => forwarder,
            None => {
                // Something else may serve there already, as name servers do that listen on all
                // addresses; then it answers.
                match Forwarder::start(&network.gateways, &network.subnets, &self.scope).await {
                    Ok(forwarder) => slot.insert(forwarder),
                    Err(e) => {
                        tracing::info!(error = %e, "no DNS forwarder on the gateway");
                        return network.gateways.iter().map(ToString::to_string).collect();
                    }
                }
            }
        };
        forwarder.set_servers(servers);
        network.gateways.iter().map(ToString::to_string).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let Some(made) = self.made.take() else { return };
        let closed = self.inner.closed.read();
        if *closed {
            self.inner.destroy_logged(made);
        } else {
            self.inner.pool.lock().give_up(made);
            self.inner.sweep.notify_waiters();
        }
    }
}
