//! `portmap`: ports of the host that lead to a container.

use std::net::IpAddr;
use std::sync::Weak;

use cni::{Call, Code, Command, NetworkResult, Plugin, PluginError};
use serde::Deserialize;

use crate::bundled::Plugins;
use crate::conf::{chained, read};
use crate::nft::Family;
use crate::rules::{Backend, Port};

pub(crate) struct Portmap(pub Weak<Plugins>);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Conf {
    runtime_config: Runtime,
    snat: Option<bool>,
    backend: Backend,
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
            Command::Del => {
                let conf: Conf = read(call)?;
                plugins.rules.close_ports(conf.backend, &container).map(|()| None)
            }
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
    let mut ports = Vec::new();
    for mapping in conf.runtime_config.port_mappings.iter().filter(|m| m.host_port != 0) {
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            other => {
                return Err(PluginError::new(Code::InvalidConfig, format!("unknown protocol {other:?}")));
            }
        };
        let mut only = None;
        if !mapping.host_ip.is_empty() {
            let ip: IpAddr = mapping.host_ip.parse().map_err(|_| {
                PluginError::new(Code::InvalidConfig, format!("invalid address {:?}", mapping.host_ip))
            })?;
            if Family::of(ip) != family {
                continue;
            }
            only = Some(ip).filter(|ip| !ip.is_unspecified());
        }
        ports.push(Port { protocol, only, port: mapping.host_port, to: mapping.container_port });
    }
    if ports.is_empty() {
        return Ok(());
    }
    let hairpin = conf.snat.unwrap_or(true);
    plugins.rules.forward_ports(conf.backend, container, address.addr, &ports, hairpin)
}
