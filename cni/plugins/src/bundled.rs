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

type Make = fn(Weak<Plugins>) -> Arc<dyn Plugin>;

/// Every plugin there is, by the name its program is called, and how it is made.
const ALL: [(&str, Make); 12] = [
    ("bandwidth", |_| Arc::new(Bandwidth)),
    ("bridge", |own| Arc::new(Bridge(own))),
    ("dummy", |own| Arc::new(Dummy(own))),
    ("firewall", |own| Arc::new(Firewall(own))),
    ("host-local", |_| Arc::new(HostLocal)),
    ("ipvlan", |own| Arc::new(LanPlugin(own, Kind::Ipvlan))),
    ("loopback", |_| Arc::new(Loopback)),
    ("macvlan", |own| Arc::new(LanPlugin(own, Kind::Macvlan))),
    ("portmap", |own| Arc::new(Portmap(own))),
    ("ptp", |own| Arc::new(Ptp(own))),
    ("static", |_| Arc::new(Static)),
    ("tuning", |_| Arc::new(Tuning)),
];

/// The names of all plugins.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(name, _)| *name)
}

impl Bundled for Plugins {
    fn plugin(&self, kind: &str) -> Option<Arc<dyn Plugin>> {
        // The names under which programs are installed that other daemons look for.
        let kind = kind.strip_prefix("buildkit-cni-").unwrap_or(kind);
        let (_, make) = ALL.iter().find(|(name, _)| *name == kind)?;
        Some(make(self.own.clone()))
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
        assert!(names().all(|name| plugins.plugin(name).is_some()));
        assert!(plugins.plugin("vlan").is_none());
    }
}
