//! `tuning`: settings of an interface and of the kernel in a container.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use cni::{Call, Code, Command, NetworkResult, Plugin, PluginError};
use serde::Deserialize;

use crate::conf::{argument, chained, failed, failed_io, failed_sys, netns, read};
use crate::link::parse_mac;
use crate::netlink::Socket;

pub(crate) struct Tuning;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Conf {
    sysctl: BTreeMap<String, String>,
    mac: String,
    promisc: bool,
    allmulti: Option<bool>,
    mtu: u32,
    #[serde(rename = "txQLen")]
    tx_queue_length: Option<u32>,
    #[serde(rename = "runtimeConfig")]
    runtime_config: Runtime,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Runtime {
    mac: String,
}

impl Plugin for Tuning {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        match call.command {
            Command::Add => add(call).map(Some),
            Command::Check => {
                let conf: Conf = read(call)?;
                let settings = settings(&conf, &call.attachment.ifname)?;
                netns(call)?.run(|| check(&settings)).map_err(failed_sys)?.map(|()| None)
            }
            // All of it ends with the interface.
            _ => Ok(None),
        }
    }
}

fn add(call: &Call<'_>) -> Result<NetworkResult, PluginError> {
    let mut conf: Conf = read(call)?;
    let mut result = chained(call, "tuning")?;
    let ifname = &call.attachment.ifname;
    if let Some(mac) = argument(call, "MAC") {
        mac.clone_into(&mut conf.mac);
    }
    if !conf.runtime_config.mac.is_empty() {
        conf.mac.clone_from(&conf.runtime_config.mac);
    }
    let mac = match conf.mac.as_str() {
        "" => None,
        text => Some(parse_mac(text).ok_or_else(|| {
            PluginError::new(Code::InvalidConfig, format!("invalid hardware address {text:?}"))
        })?),
    };
    let settings = settings(&conf, ifname)?;
    let link = netns(call)?
        .run(|| {
            for (path, value) in &settings {
                std::fs::write(path, value).map_err(failed_io(&path.to_string_lossy()))?;
            }
            let mut socket = Socket::route().map_err(failed_io("open netlink socket"))?;
            let look = |socket: &mut Socket| {
                socket
                    .link(ifname)
                    .map_err(failed("look for interface"))?
                    .ok_or_else(|| PluginError::other(format!("interface {ifname} is missing")))
            };
            let index = look(&mut socket)?.index;
            if let Some(mac) = mac {
                socket.set_mac(index, mac).map_err(failed("set hardware address"))?;
            }
            if conf.mtu > 0 {
                socket.set_mtu(index, conf.mtu).map_err(failed("set MTU"))?;
            }
            if conf.promisc {
                socket.set_promiscuous(index, true).map_err(failed("set promiscuous"))?;
            }
            if let Some(on) = conf.allmulti {
                socket.set_all_multicast(index, on).map_err(failed("set multicast"))?;
            }
            if let Some(length) = conf.tx_queue_length {
                socket.set_queue_length(index, length).map_err(failed("set queue length"))?;
            }
            look(&mut socket)
        })
        .map_err(failed_sys)??;
    for interface in result.interfaces.iter_mut().filter(|i| !i.sandbox.is_empty() && i.name == *ifname) {
        interface.mac.clone_from(&link.mac);
        interface.mtu = Some(link.mtu);
    }
    Ok(result)
}

/// Kernel settings as files; only those of the network, which has its own in a namespace.
fn settings(conf: &Conf, ifname: &str) -> Result<Vec<(PathBuf, String)>, PluginError> {
    conf.sysctl
        .iter()
        .map(|(name, value)| {
            // Written with dots or slashes, as sysctl takes them.
            let relative = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
            let relative = relative.replace("IFNAME", ifname);
            let clean = Path::new(&relative).components().all(|c| matches!(c, Component::Normal(_)));
            if !clean || !relative.starts_with("net/") {
                return Err(PluginError::new(
                    Code::InvalidConfig,
                    format!("sysctl {name:?} is not of the network"),
                ));
            }
            Ok((Path::new("/proc/sys").join(relative), value.clone()))
        })
        .collect()
}

fn check(settings: &[(PathBuf, String)]) -> Result<(), PluginError> {
    for (path, value) in settings {
        let now = std::fs::read_to_string(path).map_err(failed_io(&path.to_string_lossy()))?;
        if now.trim() != value.trim() {
            return Err(PluginError::other(format!("{} is {:?}, not {value:?}", path.display(), now.trim())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_networks_settings() {
        let one = |name: &str| {
            let conf = Conf { sysctl: [(name.to_owned(), "1".to_owned())].into(), ..Conf::default() };
            settings(&conf, "eth0").map(|list| list[0].0.display().to_string()).ok()
        };
        assert_eq!(one("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            one("net/ipv4/conf/IFNAME/arp_filter").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0/arp_filter")
        );
        for bad in ["kernel.hostname", "net/../kernel/hostname", "/net/x", "vm.swappiness"] {
            assert_eq!(one(bad), None, "{bad}");
        }
    }
}
