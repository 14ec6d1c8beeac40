//! The network of build steps, as configured.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use base::task::Scope;
use cni::{Choice, Mode, Networks};

use crate::rootless;
use crate::settings::Settings;

const DEFAULT_PLUGINS: &str = "/opt/cni/bin";

/// Where podman writes down the network `buildkit`, for `podman network create buildkit`.
#[cfg(feature = "netavark")]
const PODMANS: &str = "/etc/containers/networks/buildkit.json";

/// What is the same for every kind of network.
fn common(settings: &Settings) -> cni::Config {
    cni::Config {
        root: settings.root.clone(),
        pool_size: settings.network.pool,
        dns: settings.dns.clone(),
        rootless: settings.rootless,
        ..cni::Config::default()
    }
}

/// The networks that steps are put into.
pub(crate) struct Provider(Networks);

impl Provider {
    /// Sets up what is configured, after tidying up what an earlier daemon left.
    ///
    /// # Errors
    /// When the network that was asked for does not work here.
    pub(crate) async fn new(settings: &Settings, scope: &Scope) -> Result<Self> {
        let wanted = &settings.network;
        let config_path =
            wanted.config.clone().unwrap_or_else(|| rootless::config_directory().join("cni.json"));
        let mode = match wanted.mode.as_str() {
            "netavark" => return Self::podmans(settings, scope).await,
            "" | "auto" => Mode::Auto,
            // Without a configuration file, the default network is the one that is wanted.
            "cni" if wanted.config.is_none() && !config_path.exists() => Mode::Bridge,
            "cni" => Mode::Cni,
            "bridge" => Mode::Bridge,
            "host" => Mode::Host,
            other => bail!("unknown network mode {other:?}: expected auto, cni, bridge, host or netavark"),
        };
        let subnet = wanted
            .subnet
            .as_deref()
            .map(|text| text.parse().map_err(|e| anyhow!("bridgeSubnet {text:?}: {e}")));
        let plugins = wanted.plugins.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PLUGINS));
        let config = cni::Config {
            mode,
            config_path,
            plugin_path: vec![plugins],
            bridge_name: wanted.bridge.clone().unwrap_or_default(),
            bridge_subnet: subnet.transpose()?,
            ..common(settings)
        };
        Self::open(settings, config, cni_plugins::Plugins::new(), scope).await
    }

    /// One of podman's networks, through netavark.
    #[cfg(feature = "netavark")]
    async fn podmans(settings: &Settings, scope: &Scope) -> Result<Self> {
        let path = settings.network.config.clone().unwrap_or_else(|| PathBuf::from(PODMANS));
        let network = cni_plugins::netavark::network(&path, &settings.root.join("net"));
        let network = network.map_err(|e| anyhow!("{e}")).context("set up the network of build steps")?;
        let config =
            cni::Config { mode: Mode::Cni, config_path: path, network: Some(network), ..common(settings) };
        let backend = cni_plugins::netavark::Backend::new(cni_plugins::Plugins::new());
        Self::open(settings, config, backend, scope).await
    }

    #[cfg(not(feature = "netavark"))]
    async fn podmans(_: &Settings, _: &Scope) -> Result<Self> {
        bail!(
            "network mode \"netavark\" is not in this buildkitd: it was built without the feature `netavark`"
        )
    }

    async fn open(
        settings: &Settings,
        config: cni::Config,
        bundled: Arc<dyn cni::Bundled>,
        scope: &Scope,
    ) -> Result<Self> {
        let networks = Networks::open(config, bundled, scope).await;
        let networks = networks.map_err(|e| anyhow!("{e}")).context("set up the network of build steps")?;
        let Choice { network, reason, fallback } = networks.choice();
        let (mode, asked) = (networks.mode(), &settings.network.mode);
        if *fallback {
            tracing::warn!(mode, asked, network, reason, "network of build steps");
        } else {
            tracing::info!(mode, asked, network, reason, "network of build steps");
        }
        Ok(Self(networks))
    }

    /// For the executor.
    pub(crate) fn network(&self) -> Arc<dyn exec::Network> {
        Arc::new(self.0.clone())
    }

    /// What clients are told.
    pub(crate) fn label(&self) -> &'static str {
        self.0.mode()
    }

    /// Takes the networks down.
    pub(crate) async fn close(&self) {
        self.0.close().await;
    }
}
