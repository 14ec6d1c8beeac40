//! All plugins together, for a daemon that calls them directly.

use std::path::Path;
use std::sync::{Arc, Weak};

use cni::{BridgeConfig, Bundled, DefaultNetwork, Error, Plugin};

use crate::bandwidth::Bandwidth;
use crate::bridge::Bridge;
use crate::default_network;
use crate::dummy::Dummy;
use crate::firewall::Firewall;
use crate::host_local::HostLocal;
use crate::lan::{Kind, LanPlugin};
use crate::loopback::Loopback;
use crate::portmap::Portmap;
use crate::ptp::Ptp;
use crate::rules::Rules;
use crate::static_ipam::Static;
use crate::tuning::Tuning;

/// Name of the program in which the plugins are.
pub(crate) const PROGRAM: &str = "buildkit-cni";

/// The bundled plugins, with what they share. One value serves one network namespace: the
/// one in which it is first used.
pub struct Plugins {
    own: Weak<Self>,
    pub(crate) rules: Rules,
}

impl Plugins {
    /// The plugins.
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|own| Self { own: own.clone(), rules: Rules::default() })
    }
}

/// Every plugin there is, by the name its program is called.
pub const NAMES: [&str; 12] = [
    "bandwidth",
    "bridge",
    "dummy",
    "firewall",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "static",
    "tuning",
];

impl Bundled for Plugins {
    fn plugin(&self, kind: &str) -> Option<Arc<dyn Plugin>> {
        let own = self.own.clone();
        // The names under which programs are installed that other daemons look for.
        let kind = kind.strip_prefix("buildkit-cni-").unwrap_or(kind);
        Some(match kind {
            "bandwidth" => Arc::new(Bandwidth),
            "bridge" => Arc::new(Bridge(own)),
            "dummy" => Arc::new(Dummy(own)),
            "firewall" => Arc::new(Firewall(own)),
            "host-local" => Arc::new(HostLocal),
            "ipvlan" => Arc::new(LanPlugin(own, Kind::Ipvlan)),
            "loopback" => Arc::new(Loopback),
            "macvlan" => Arc::new(LanPlugin(own, Kind::Macvlan)),
            "portmap" => Arc::new(Portmap(own)),
            "ptp" => Arc::new(Ptp(own)),
            "static" => Arc::new(Static),
            "tuning" => Arc::new(Tuning),
            _ => return None,
        })
    }

    fn is_own_program(&self, program: &Path) -> bool {
        std::fs::canonicalize(program).is_ok_and(|path| path.file_name().is_some_and(|n| n == PROGRAM))
    }

    fn remove_links(&self, names: &[String]) -> Result<(), Error> {
        default_network::remove_links(names)
    }

    fn default_network(&self, wanted: &BridgeConfig) -> Result<DefaultNetwork, Error> {
        default_network::prepare(wanted)
    }

    fn remove_default_network(&self, network: &DefaultNetwork) -> Result<(), Error> {
        default_network::remove(self, network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_plugin() {
        let plugins = Plugins::new();
        assert!(NAMES.iter().all(|name| plugins.plugin(name).is_some()));
        assert!(plugins.plugin("vlan").is_none());
    }
}
