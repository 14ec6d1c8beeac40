//! `portmap`: ports of the host that lead to a container.

use std::net::IpAddr;
use std::sync::Weak;

use cni::{Call, Code, Command, NetworkResult, Plugin, PluginError};
use serde::Deserialize;

use crate::bundled::Plugins;
use crate::conf::{chained, read};
use crate::nft::{Family, Step};

pub(crate) struct Portmap(pub Weak<Plugins>);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Conf {
    runtime_config: Runtime,
    snat: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Runtime {
    port_mappings: Vec<Mapping>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

impl Plugin for Portmap {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        let plugins = self.0.upgrade().ok_or_else(|| PluginError::other("plugins are gone"))?;
        let container = format!("{}-{}", call.attachment.container_id, call.attachment.ifname);
        match call.command {
            Command::Add => {
                let conf: Conf = read(call)?;
                let result = chained(call, "portmap")?;
                for family in [Family::V4, Family::V6] {
                    forward(&plugins, &container, &conf, &result, family)?;
                }
                Ok(Some(result))
            }
            Command::Del => plugins.rules.close_ports(&container).map(|()| None),
            _ => Ok(None),
        }
    }
}

fn forward(
    plugins: &Plugins,
    container: &str,
    conf: &Conf,
    result: &NetworkResult,
    family: Family,
) -> Result<(), PluginError> {
    let Some(address) = result.ips.iter().map(|ip| ip.address).find(|a| Family::of(a.addr) == family) else {
        return Ok(());
    };
    let mut rules = Vec::new();
    for mapping in conf.runtime_config.port_mappings.iter().filter(|m| m.host_port != 0) {
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            other => {
                return Err(PluginError::new(Code::InvalidConfig, format!("unknown protocol {other:?}")));
            }
        };
        let mut rule = vec![Step::ToThisHost];
        if !mapping.host_ip.is_empty() {
            let ip: IpAddr = mapping.host_ip.parse().map_err(|_| {
                PluginError::new(Code::InvalidConfig, format!("invalid address {:?}", mapping.host_ip))
            })?;
            if Family::of(ip) != family {
                continue;
            }
            if !ip.is_unspecified() {
                let whole = if ip.is_ipv4() { 32 } else { 128 };
                rule.extend(cni::Cidr::new(ip, whole).map(|net| Step::Destination { net, within: true }));
            }
        }
        rule.push(Step::Port { protocol, port: mapping.host_port });
        rule.push(Step::Redirect { to: address.addr, port: mapping.container_port });
        rules.push(rule);
    }
    if rules.is_empty() {
        return Ok(());
    }
    // A container that reaches itself by the host's port must see the host's address.
    let whole = if address.addr.is_ipv4() { 32 } else { 128 };
    let own = cni::Cidr::new(address.addr, whole);
    let mut hairpin = Vec::new();
    if let Some(net) = own
        && conf.snat.unwrap_or(true)
    {
        hairpin.push(vec![Step::Source { net }, Step::Destination { net, within: true }, Step::Masquerade]);
    }
    plugins.rules.forward_ports(container, family, &rules, hairpin)
}
