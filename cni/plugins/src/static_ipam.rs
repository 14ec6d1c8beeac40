//! `static`: the addresses that stand in the configuration.

use cni::result::{Address, Dns, Route};
use cni::{Call, Cidr, Code, Command, NetworkResult, Plugin, PluginError};
use serde::Deserialize;

use crate::conf::{argument, read};

pub(crate) struct Static;

#[derive(Deserialize)]
struct Conf {
    #[serde(default)]
    ipam: Ipam,
}

#[derive(Deserialize, Default)]
struct Ipam {
    #[serde(default)]
    addresses: Vec<Address>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    dns: Dns,
}

impl Plugin for Static {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        if call.command != Command::Add {
            return Ok(None);
        }
        let mut ipam = read::<Conf>(call)?.ipam;
        let invalid = |text: &str| PluginError::new(Code::InvalidConfig, format!("invalid address {text:?}"));
        for text in argument(call, "IP").into_iter().flat_map(|text| text.split(',')) {
            let address: Cidr = text.trim().parse().map_err(|_| invalid(text))?;
            ipam.addresses.push(Address { interface: None, address, gateway: None });
        }
        for text in argument(call, "GATEWAY").into_iter().flat_map(|text| text.split(',')) {
            let gateway = text.trim().parse().map_err(|_| invalid(text))?;
            for address in ipam.addresses.iter_mut().filter(|a| a.address.contains(gateway)) {
                address.gateway = Some(gateway);
            }
        }
        Ok(Some(NetworkResult {
            ips: ipam.addresses,
            routes: ipam.routes,
            dns: ipam.dns,
            ..NetworkResult::default()
        }))
    }
}
