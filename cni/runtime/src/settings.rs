//! What networks are asked for, and which were chosen.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::NetworkConfig;
use crate::dns::Overrides;
use crate::result::Cidr;

/// Which networks runs get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The configuration file if there is one, else the default network, else the host's.
    #[default]
    Auto,
    /// What the configuration file says.
    Cni,
    /// The default network: a bridge.
    Bridge,
    /// The daemon's own.
    Host,
    /// None: a loopback interface.
    None,
}

/// Settings.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Which networks.
    pub mode: Mode,
    /// The daemon's state directory; `net` in it is used.
    pub root: PathBuf,
    /// The user's network configuration.
    pub config_path: PathBuf,
    /// What was made of that file already, for bundled plugins.
    pub network: Option<NetworkConfig>,
    /// Directories with plugins.
    pub plugin_path: Vec<PathBuf>,
    /// Namespaces kept ready.
    pub pool_size: usize,
    /// Name of the default network's bridge; empty = `buildkit0`.
    pub bridge_name: String,
    /// Addresses of the default network; none = a free private range.
    pub bridge_subnet: Option<Cidr>,
    /// DNS settings that replace the host's.
    pub dns: Overrides,
    /// The daemon has no privileges on the host's network.
    pub rootless: bool,
}

/// What the default network should be.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// Name of the bridge.
    pub name: String,
    /// Its addresses; none = a free private range.
    pub subnet: Option<Cidr>,
    /// Directory in which addresses are remembered.
    pub addresses: PathBuf,
    /// Addresses that must stay reachable, such as those of name servers.
    pub avoid: Vec<IpAddr>,
}

/// The default network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DefaultNetwork {
    /// Its configuration, as a list of plugins.
    pub config: serde_json::Value,
    /// Its bridge.
    pub bridge: String,
    /// The bridge was there before.
    pub existed: bool,
    /// Its networks.
    pub subnets: Vec<Cidr>,
    /// Addresses of the host in them.
    pub gateways: Vec<IpAddr>,
    /// Where its addresses are remembered.
    pub addresses: PathBuf,
}

/// Which networks runs get, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What they are.
    pub network: String,
    /// Why these and no others.
    pub reason: String,
    /// Something better was tried and does not work here.
    pub fallback: bool,
}

impl Choice {
    /// The network that is said to be wanted.
    pub(crate) fn asked_for(network: impl Into<String>) -> Self {
        Self { network: network.into(), reason: "it is configured".into(), fallback: false }
    }

    pub(crate) fn because(self, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..self }
    }
}
