//! `firewall`: shuts containers off from what has not been asked for.

use std::net::IpAddr;
use std::sync::Weak;

use cni::{Call, Code, Command, NetworkResult, Plugin, PluginError};
use serde::Deserialize;

use crate::bundled::Plugins;
use crate::conf::{chained, network, previous, read};
use crate::container::addresses_inside;
use crate::rules::{Backend, Ingress};

pub(crate) struct Firewall(pub Weak<Plugins>);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Conf {
    backend: Backend,
    ingress_policy: String,
}

impl Plugin for Firewall {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        let plugins = self.0.upgrade().ok_or_else(|| PluginError::other("plugins are gone"))?;
        let conf: Conf = read(call)?;
        let ingress = match conf.ingress_policy.as_str() {
            "" | "open" => Ingress::Open,
            "same-bridge" => Ingress::SameBridge,
            "isolated" => Ingress::Isolated,
            other => {
                return Err(PluginError::new(
                    Code::InvalidConfig,
                    format!("unknown ingressPolicy {other:?}"),
                ));
            }
        };
        match call.command {
            Command::Add => {
                let result = chained(call, "firewall")?;
                let bridge = bridge(&result, ingress)?;
                if !bridge.is_empty() {
                    plugins.rules.allow_forwarding(&bridge)?;
                }
                for address in addresses(&result) {
                    plugins.rules.protect(conf.backend, network(call), &bridge, ingress, address)?;
                }
                Ok(Some(result))
            }
            Command::Del => {
                let (bridge, known) = match previous(call)? {
                    Some(result) => {
                        if let Some(own) = only_ours(&result) {
                            plugins.rules.forbid_forwarding(own);
                        }
                        (bridge(&result, ingress).unwrap_or_default(), addresses(&result).collect())
                    }
                    // Before 0.4.0 nobody says what there was; while the interface is there it can be seen.
                    None => (String::new(), inside(call)),
                };
                for address in known {
                    plugins.rules.unprotect(conf.backend, network(call), &bridge, ingress, address)?;
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

fn inside(call: &Call<'_>) -> Vec<IpAddr> {
    addresses_inside(call).unwrap_or_default().into_iter().map(|a| a.addr).collect()
}

fn addresses(result: &NetworkResult) -> impl Iterator<Item = IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr)
}

/// The host's end of a cable to this container alone, which goes with it: a bridge has the
/// bridge and a port.
fn only_ours(result: &NetworkResult) -> Option<&str> {
    let mut here = result.interfaces.iter().filter(|i| i.sandbox.is_empty());
    let first = here.next()?;
    here.next().is_none().then_some(first.name.as_str())
}

/// The first interface on the host is the bridge.
fn bridge(result: &NetworkResult, ingress: Ingress) -> Result<String, PluginError> {
    let found = result.interfaces.iter().find(|i| i.sandbox.is_empty()).map(|i| i.name.clone());
    match found {
        Some(name) => Ok(name),
        None if ingress == Ingress::Open => Ok(String::new()),
        None => Err(PluginError::new(
            Code::InvalidConfig,
            "firewall: an ingressPolicy needs a plugin before it that names its bridge",
        )),
    }
}
