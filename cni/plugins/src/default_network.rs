//! The network that is used when nobody has configured one: a bridge with a private range
//! of addresses that nothing else here uses, hidden behind the host's addresses.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use cni::{BridgeConfig, Cidr, DefaultNetwork, Error};
use serde_json::json;

use crate::bundled::Plugins;
use crate::link::{Link, Route};
use crate::netlink::Socket;

const VERSION: &str = "1.0.0";

/// Links of namespaces that have ended go a moment later: how often and how long is looked.
const WAIT: (u32, Duration) = (100, Duration::from_millis(20));

fn failed(what: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |e| Error::Sys(sys::Error::new(what, "netlink", e))
}

fn open() -> Result<Socket, Error> {
    Socket::route().map_err(|e| Error::Sys(sys::Error::new("open", "netlink socket", e)))
}

/// Chooses addresses and names the plugins; makes nothing yet.
pub(crate) fn prepare(wanted: &BridgeConfig) -> Result<DefaultNetwork, Error> {
    let mut socket = open()?;
    let routes = socket.routes().map_err(failed("list routes"))?;
    let addresses = socket.addresses().map_err(failed("list addresses"))?;
    let links = socket.links().map_err(failed("list links"))?;
    let bridge = links.iter().find(|l| l.name == wanted.name);
    if let Some(other) = bridge.filter(|l| l.kind != "bridge") {
        return Err(Error::Config {
            place: "bridge".into(),
            message: format!("{:?} already exists but is not a bridge", other.name),
        });
    }
    let mut subnets: Vec<Cidr> = Vec::new();
    if let Some(subnet) = wanted.subnet {
        let others = |link: u32| link != 0 && bridge.is_none_or(|b| b.index != link);
        let taken = routes.iter().find(|r| others(r.link) && r.dst.prefix > 0 && r.dst.overlaps(subnet));
        if let Some(route) = taken {
            let by = links.iter().find(|l| l.index == route.link).map_or("?", |l| l.name.as_str());
            return Err(Error::Config {
                place: "bridgeSubnet".into(),
                message: format!("{subnet} is taken: {by} leads to {}", route.dst),
            });
        }
        subnets.push(subnet.network());
    } else if let Some(bridge) = bridge {
        // What it has been given, by somebody or by an earlier daemon.
        let own = addresses.iter().filter(|(link, a)| *link == bridge.index && !is_link_local(a.addr));
        subnets.extend(own.map(|(_, a)| a.network()));
    }
    if subnets.is_empty() {
        let in_use = |candidate: &Cidr| {
            let others = |link: u32| bridge.is_none_or(|b| b.index != link);
            routes.iter().any(|r| others(r.link) && r.dst.prefix > 0 && r.dst.overlaps(*candidate))
                || addresses.iter().any(|(link, a)| others(*link) && a.overlaps(*candidate))
                || wanted.avoid.iter().any(|a| candidate.contains(*a))
        };
        let free =
            candidates().find(|c| !in_use(c)).ok_or_else(|| Error::NoFreeRange(wanted.name.clone()))?;
        subnets.push(free);
        subnets.extend(ipv6_range(&routes, &links).filter(|c| !in_use(c)));
    }
    subnets.sort_unstable();
    subnets.dedup();
    let gateways: Vec<IpAddr> = subnets.iter().filter_map(|s| s.nth(1)).collect();
    let name = network_name(&wanted.name);
    let ranges: Vec<_> = subnets.iter().map(|s| json!([{"subnet": s}])).collect();
    let config = json!({
        "cniVersion": VERSION,
        "name": name,
        "plugins": [
            {
                "type": "bridge",
                "bridge": wanted.name,
                "isDefaultGateway": true,
                "ipMasq": true,
                "portIsolation": true,
                "mtu": uplink(&routes, &links, true).map_or(0, |l| l.mtu),
                "ipam": {"type": "host-local", "ranges": ranges, "dataDir": wanted.addresses},
            },
            {"type": "firewall", "ingressPolicy": "isolated"},
        ],
    });
    Ok(DefaultNetwork {
        config,
        bridge: wanted.name.clone(),
        existed: bridge.is_some(),
        subnets,
        gateways,
        addresses: wanted.addresses.clone(),
    })
}

fn network_name(bridge: &str) -> String {
    format!("buildkit-{bridge}")
}

/// Private ranges, from large to small.
fn candidates() -> impl Iterator<Item = Cidr> {
    let tens = (10..64).map(|n| (Ipv4Addr::new(10, n, 0, 0), 16));
    let middle = (20..32).map(|n| (Ipv4Addr::new(172, n, 0, 0), 16));
    let small = (100..255).map(|n| (Ipv4Addr::new(192, 168, n, 0), 24));
    tens.chain(middle).chain(small).filter_map(|(addr, prefix)| Cidr::new(addr.into(), prefix))
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// The link by which packets leave this host.
pub(crate) fn uplink<'a>(routes: &[Route], links: &'a [Link], v4: bool) -> Option<&'a Link> {
    let default = routes.iter().find(|r| r.dst.prefix == 0 && r.dst.addr.is_ipv4() == v4 && r.link != 0)?;
    links.iter().find(|l| l.index == default.link)
}

/// A range of IPv6, where this host has IPv6 and can pass it on. To become a router would
/// take a host that configures itself by router advertisements off the net: there is none
/// then.
fn ipv6_range(routes: &[Route], links: &[Link]) -> impl Iterator<Item = Cidr> {
    let usable = uplink(routes, links, false).is_some_and(|link| {
        let setting = |name: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/{name}");
            std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        setting("all/forwarding") == "1"
            || matches!(setting(&format!("{}/accept_ra", link.name)).as_str(), "0" | "2")
    });
    let range = || {
        // A unique local prefix: fd, then 40 bits nobody else has chosen.
        let random = base::Digest::of(base::id::fresh());
        let digits: String = random.hex().chars().take(10).collect();
        let bits = u128::from_str_radix(&digits, 16).ok()?;
        Cidr::new(IpAddr::from(((0xfd_u128 << 120) | (bits << 80)).to_be_bytes()), 64)
    };
    usable.then(range).flatten().into_iter()
}

/// Removes those of the links that are ends of pairs here.
pub(crate) fn remove_links(names: &[String]) -> Result<(), Error> {
    let mut socket = open()?;
    let links = socket.links().map_err(failed("list links"))?;
    let pairs = links.iter().filter(|l| l.kind == "veth" && names.contains(&l.name));
    let doomed: Vec<u32> = pairs.map(|l| l.index).collect();
    socket.delete_all(&doomed).map_err(failed("remove links"))
}

/// Removes the bridge and its rules, unless somebody else uses it.
pub(crate) fn remove(plugins: &Plugins, network: &DefaultNetwork) -> Result<(), Error> {
    let mut socket = open()?;
    let bridge = socket.link(&network.bridge).map_err(failed("look for bridge"))?;
    if let Some(bridge) = bridge {
        let mut ports = true;
        for _ in 0..WAIT.0 {
            let links = socket.links().map_err(failed("list links"))?;
            ports = links.iter().any(|l| l.master == bridge.index);
            if !ports {
                break;
            }
            std::thread::sleep(WAIT.1);
        }
        if ports {
            tracing::info!(bridge = network.bridge, "bridge is in use, it stays");
            return Ok(());
        }
        if !network.existed {
            socket.delete(&network.bridge).map_err(failed("remove bridge"))?;
        }
    }
    plugins.rules.remove(&network_name(&network.bridge)).map_err(|source| Error::Plugin {
        kind: "bridge".into(),
        command: "DEL",
        source,
    })?;
    plugins.rules.forbid_forwarding(&network.bridge);
    remove_dir(&network.addresses)
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::File { action: "remove", path: dir.into(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_many_and_apart() {
        let all: Vec<Cidr> = candidates().collect();
        assert_eq!(all[0].to_string(), "10.10.0.0/16");
        for (at, a) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|b| !a.overlaps(*b)), "{a}");
        }
    }
}
