//! `bridge`: a container on a bridge of the host.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Weak;

use cni::result::{Dns, Route};
use cni::{Call, Cidr, Code, Command, NetworkResult, Plugin, PluginError};
use rustix::io::Errno;
use serde::Deserialize;
use sys::netns::NetNs;

use crate::bundled::Plugins;
use crate::conf::{failed, failed_sys, netns, netns_path, network, read};
use crate::container::{
    MacConf, check_addresses, configure, enable_forwarding, end_masquerade, existing, interface,
    known_addresses, open, pair, remove_link_beside, undo_link, wait_for,
};
use crate::ipam;
use crate::link::{Link, parse_mac};
use crate::netlink::Socket;
use crate::rules::Backend;

/// The VLAN every port of a bridge is in unless it is taken out.
const DEFAULT_VLAN: u16 = 1;
const VLANS: std::ops::RangeInclusive<i64> = 1..=4094;

pub(crate) struct Bridge(pub Weak<Plugins>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Conf {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    ip_masq: bool,
    ip_masq_backend: Backend,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    port_isolation: bool,
    vlan: i64,
    vlan_trunk: Vec<Trunk>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    dns: Dns,
    #[serde(flatten)]
    mac: MacConf,
}

/// VLANs whose packets say to which they belong: one, or all between two.
#[derive(Deserialize)]
struct Trunk {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
}

impl Default for Conf {
    fn default() -> Self {
        Self {
            bridge: "cni0".into(),
            is_gateway: false,
            is_default_gateway: false,
            ip_masq: false,
            ip_masq_backend: Backend::Auto,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            port_isolation: false,
            vlan: 0,
            vlan_trunk: Vec::new(),
            preserve_default_vlan: true,
            macspoofchk: false,
            dns: Dns::default(),
            mac: MacConf::default(),
        }
    }
}

/// The VLANs a container is in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Vlans {
    /// The one it does not know of.
    own: Option<u16>,
    /// Those it names itself.
    trunk: Vec<u16>,
    keep_default: bool,
}

impl Vlans {
    fn new(conf: &Conf) -> Result<Self, PluginError> {
        let checked = |id: i64| {
            u16::try_from(id).ok().filter(|_| VLANS.contains(&id)).ok_or_else(|| {
                let text = format!("bridge: invalid VLAN {id}, must be between 1 and 4094");
                PluginError::new(Code::InvalidConfig, text)
            })
        };
        let own = if conf.vlan == 0 { None } else { Some(checked(conf.vlan)?) };
        let mut trunk = Vec::new();
        for entry in &conf.vlan_trunk {
            match (entry.id, entry.min, entry.max) {
                (Some(id), None, None) => trunk.push(checked(id)?),
                (None, Some(min), Some(max)) if min <= max => trunk.extend(checked(min)?..=checked(max)?),
                _ => {
                    let text = "bridge: an entry of vlanTrunk is either an id, or minID and maxID in order";
                    return Err(PluginError::new(Code::InvalidConfig, text));
                }
            }
        }
        trunk.sort_unstable();
        trunk.dedup();
        if own.is_some() && !trunk.is_empty() {
            let text = "bridge: vlan and vlanTrunk exclude each other";
            return Err(PluginError::new(Code::InvalidConfig, text));
        }
        Ok(Self { own, trunk, keep_default: conf.preserve_default_vlan })
    }

    fn any(&self) -> bool {
        self.own.is_some() || !self.trunk.is_empty()
    }

    fn apply(&self, host: &mut Socket, port: u32) -> Result<(), PluginError> {
        if self.any() && !self.keep_default {
            host.leave_vlan(port, DEFAULT_VLAN).map_err(failed("leave the default VLAN"))?;
        }
        for (vlan, untagged) in
            self.own.iter().map(|v| (*v, true)).chain(self.trunk.iter().map(|v| (*v, false)))
        {
            host.join_vlan(port, vlan, untagged).map_err(failed(&format!("join VLAN {vlan}")))?;
        }
        Ok(())
    }
}

impl Plugin for Bridge {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        let plugins = self.0.upgrade().ok_or_else(|| PluginError::other("plugins are gone"))?;
        let conf: Conf = read(call)?;
        match call.command {
            Command::Add => {
                let vlans = Vlans::new(&conf)?;
                let mut result = ipam::add(plugins.as_ref(), call)?.unwrap_or_default();
                match connect(&plugins, call, &conf, &vlans, &mut result) {
                    Ok(()) => Ok(Some(result)),
                    Err(e) => {
                        undo(&plugins, call, &conf, &result);
                        Err(e)
                    }
                }
            }
            Command::Del => disconnect(&plugins, call, &conf).map(|()| None),
            Command::Check => {
                ipam::pass_on(plugins.as_ref(), call)?;
                check_addresses(call).map(|()| None)
            }
            Command::Gc | Command::Status => ipam::pass_on(plugins.as_ref(), call).map(|()| None),
            Command::Version => Ok(None),
        }
    }
}

/// Names what is kept for one container.
fn container(call: &Call<'_>) -> String {
    format!("{}-{}", call.attachment.container_id, call.attachment.ifname)
}

fn connect(
    plugins: &Plugins,
    call: &Call<'_>,
    conf: &Conf,
    vlans: &Vlans,
    result: &mut NetworkResult,
) -> Result<(), PluginError> {
    let mut host = open()?;
    let bridge = ensure_bridge(&mut host, conf, vlans)?;
    let ns = netns(call)?;
    let ifname = &call.attachment.ifname;
    let mac = conf.mac.wanted(call)?;
    let veth = pair(&mut host, &ns, ifname, mac, conf.mtu, bridge.index)?;
    if conf.hairpin_mode || conf.port_isolation {
        host.set_port(veth.index, conf.hairpin_mode, conf.port_isolation)
            .map_err(failed("set up bridge port"))?;
    }
    vlans.apply(&mut host, veth.index)?;

    let gateway = conf.is_gateway || conf.is_default_gateway;
    for ip in &mut result.ips {
        ip.interface = Some(2);
        if gateway && ip.gateway.is_none() {
            ip.gateway = ip.address.nth(1);
        }
    }
    if conf.is_default_gateway {
        add_default_routes(result)?;
    }
    let (ips, routes) = (result.ips.clone(), result.routes.clone());
    let inside = ns.run(|| configure(ifname, &ips, &routes)).map_err(failed_sys)??;
    if conf.macspoofchk {
        let mac = parse_mac(&inside.mac).ok_or_else(|| PluginError::other("the interface has no address"))?;
        plugins.rules.hold_mac(&container(call), &veth.name, mac)?;
    }

    if gateway {
        let leads_out = gateway_link(&mut host, &bridge, vlans)?;
        for ip in &result.ips {
            let Some(address) = ip.gateway.and_then(|g| Cidr::new(g, ip.address.prefix)) else { continue };
            host.add_address(leads_out.index, address).map_err(failed("give bridge an address"))?;
            enable_forwarding(address.addr)?;
        }
        plugins.rules.allow_forwarding(&leads_out.name)?;
    }
    if conf.ip_masq {
        for ip in &result.ips {
            plugins.rules.masquerade(conf.ip_masq_backend, network(call), ip.address)?;
        }
    }

    for name in [&veth.name, &bridge.name] {
        wait_for(&mut host, name)?;
    }
    let here = Path::new("");
    result.interfaces =
        vec![interface(&bridge, here), interface(&veth, here), interface(&inside, netns_path(call)?)];
    if conf.dns != Dns::default() {
        result.dns = conf.dns.clone();
    }
    Ok(())
}

/// The bridge, made when it is missing.
fn ensure_bridge(host: &mut Socket, conf: &Conf, vlans: &Vlans) -> Result<Link, PluginError> {
    let name = &conf.bridge;
    let look = |host: &mut Socket| host.link(name).map_err(failed("look for bridge"));
    let bridge = match look(host)? {
        Some(bridge) => bridge,
        None => {
            let made = if vlans.any() {
                host.create_vlan_bridge(name, conf.mtu)
            } else {
                host.create(name, "bridge", conf.mtu)
            };
            match made {
                Ok(()) => keep_address(host, name)?,
                // Somebody else was faster.
                Err(Errno::EXIST) => {}
                Err(Errno::OPNOTSUPP) if vlans.any() => {
                    let text = format!("create bridge {name}: this kernel has no bridges with VLANs");
                    return Err(PluginError::new(Code::Unavailable, text));
                }
                Err(e) => return Err(failed(&format!("create bridge {name}"))(e)),
            }
            look(host)?.ok_or_else(|| PluginError::other(format!("bridge {name} is gone")))?
        }
    };
    if bridge.kind != "bridge" {
        return Err(PluginError::other(format!("{name:?} already exists but is not a bridge")));
    }
    if vlans.any() {
        host.filter_vlans(bridge.index).map_err(failed(&format!("keep VLANs apart on bridge {name}")))?;
    }
    if !bridge.up {
        host.set_up(bridge.index).map_err(failed("set bridge up"))?;
    }
    if conf.promisc_mode {
        host.set_promiscuous(bridge.index, true).map_err(failed("set bridge promiscuous"))?;
    }
    Ok(bridge)
}

/// Makes a new bridge keep the hardware address it has. Otherwise it has the lowest of its
/// ports, another one whenever they come and go, and containers speak to an address that
/// is gone for as long as they remember it: their connections hang for up to a minute.
fn keep_address(host: &mut Socket, name: &str) -> Result<(), PluginError> {
    let made = host.link(name).map_err(failed("look for bridge"))?;
    match made.and_then(|bridge| Some((bridge.index, parse_mac(&bridge.mac)?))) {
        Some((index, mac)) => host.set_mac(index, mac).map_err(failed("set the address of the bridge")),
        None => Err(PluginError::other(format!("bridge {name} is gone"))),
    }
}

/// What the gateway's address belongs to: the bridge, or, where the container is in a VLAN of
/// its own, an interface of the host in that VLAN, `BRIDGE.VLAN`.
fn gateway_link(host: &mut Socket, bridge: &Link, vlans: &Vlans) -> Result<Link, PluginError> {
    let Some(vlan) = vlans.own else { return Ok(bridge.clone()) };
    let name = format!("{}.{vlan}", bridge.name);
    if let Some(link) = host.link(&name).map_err(failed("look for interface"))? {
        return Ok(link);
    }
    let here = NetNs::current().map_err(failed_sys)?;
    let port = pair(host, &here, &name, None, bridge.mtu, bridge.index)?;
    vlans.apply(host, port.index)?;
    let link = existing(host, &name)?;
    host.set_up(link.index).map_err(failed(&format!("set {name} up")))?;
    wait_for(host, &port.name)?;
    existing(host, &name)
}

fn add_default_routes(result: &mut NetworkResult) -> Result<(), PluginError> {
    for ip in &result.ips {
        let any: IpAddr = if ip.address.addr.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let all = Cidr::new(any, 0).ok_or_else(|| PluginError::other("no default route"))?;
        if !result.routes.iter().any(|r| r.dst == all) {
            result.routes.push(Route {
                dst: all,
                gw: ip.gateway,
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            });
        }
    }
    Ok(())
}

fn undo(plugins: &Plugins, call: &Call<'_>, conf: &Conf, result: &NetworkResult) {
    ipam::undo(plugins, call);
    undo_link(call);
    if conf.ip_masq {
        end_masquerade(plugins, call, conf.ip_masq_backend, result.ips.iter().map(|ip| ip.address));
    }
    if conf.macspoofchk
        && let Err(e) = plugins.rules.free_mac(&container(call))
    {
        tracing::warn!(error = %e, "remove the rule for a hardware address");
    }
}

fn disconnect(plugins: &Plugins, call: &Call<'_>, conf: &Conf) -> Result<(), PluginError> {
    let known = if conf.ip_masq { known_addresses(call)? } else { Vec::new() };
    let free = || {
        // Rules first: the address must not be somebody else's while they are there.
        end_masquerade(plugins, call, conf.ip_masq_backend, known.into_iter());
        let freed = if conf.macspoofchk { plugins.rules.free_mac(&container(call)) } else { Ok(()) };
        freed.and(ipam::pass_on(plugins, call))
    };
    if call.namespace_ends {
        return free();
    }
    let (removed, freed) = remove_link_beside(call, free);
    removed.and(freed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_are_read_and_checked() {
        let read = |text: &str| Vlans::new(&serde_json::from_str(text).unwrap());
        assert_eq!(read("{}").unwrap(), Vlans { keep_default: true, ..Vlans::default() });
        let trunk = r#"{"vlanTrunk":[{"id":7},{"minID":5,"maxID":8}],"preserveDefaultVlan":false}"#;
        assert_eq!(read(trunk).unwrap(), Vlans { own: None, trunk: vec![5, 6, 7, 8], keep_default: false });
        assert_eq!(read(r#"{"vlan":100}"#).unwrap().own, Some(100));
        for bad in [
            r#"{"vlan":4095}"#,
            r#"{"vlan":-1}"#,
            r#"{"vlanTrunk":[{"id":0}]}"#,
            r#"{"vlanTrunk":[{"minID":9,"maxID":8}]}"#,
            r#"{"vlanTrunk":[{"minID":9}]}"#,
            r#"{"vlan":5,"vlanTrunk":[{"id":6}]}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
