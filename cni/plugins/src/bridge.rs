//! `bridge`: a container on a bridge of the host.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use cni::result::{Address, Dns, Interface, Route};
use cni::{Call, Cidr, Code, Command, NetworkResult, Plugin, PluginError};
use rustix::io::Errno;
use serde::Deserialize;

use crate::bundled::Plugins;
use crate::conf::{
    argument, failed, failed_io, failed_sys, netns, netns_path, network, previous, read, remaining_netns,
};
use crate::ipam;
use crate::link::{Link, NewRoute, Veth, parse_mac};
use crate::netlink::Socket;

/// The kernel joins a new port to its bridge a moment later. Until then packets are lost, and
/// whoever sent them tries again after a second: how often and how long is looked.
const WAIT: (u32, Duration) = (4000, Duration::from_micros(500));

/// Attempts to find a name that no other interface has.
const NAMES: usize = 8;

pub(crate) struct Bridge(pub Weak<Plugins>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Conf {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    ip_masq: bool,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    port_isolation: bool,
    vlan: i64,
    macspoofchk: bool,
    mac: String,
    dns: Dns,
    runtime_config: Runtime,
    args: Arguments,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Runtime {
    mac: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Arguments {
    cni: Runtime,
}

impl Default for Conf {
    fn default() -> Self {
        Self {
            bridge: "cni0".into(),
            is_gateway: false,
            is_default_gateway: false,
            ip_masq: false,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            port_isolation: false,
            vlan: 0,
            macspoofchk: false,
            mac: String::new(),
            dns: Dns::default(),
            runtime_config: Runtime::default(),
            args: Arguments::default(),
        }
    }
}

impl Plugin for Bridge {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        let plugins = self.0.upgrade().ok_or_else(|| PluginError::other("plugins are gone"))?;
        let conf: Conf = read(call)?;
        if conf.vlan != 0 || conf.macspoofchk {
            return Err(PluginError::new(
                Code::UnsupportedField,
                "bridge: vlan and macspoofchk are not supported",
            ));
        }
        match call.command {
            Command::Add => {
                let mut result = ipam::add(plugins.as_ref(), call)?.unwrap_or_default();
                match connect(&plugins, call, &conf, &mut result) {
                    Ok(()) => Ok(Some(result)),
                    Err(e) => {
                        undo(&plugins, call, &conf, &result);
                        Err(e)
                    }
                }
            }
            Command::Del => disconnect(&plugins, call, &conf).map(|()| None),
            Command::Check => check(&plugins, call).map(|()| None),
            Command::Gc | Command::Status => ipam::pass_on(plugins.as_ref(), call).map(|()| None),
            Command::Version => Ok(None),
        }
    }
}

fn host_socket() -> Result<Socket, PluginError> {
    Socket::route().map_err(failed_io("open netlink socket"))
}

fn connect(
    plugins: &Plugins,
    call: &Call<'_>,
    conf: &Conf,
    result: &mut NetworkResult,
) -> Result<(), PluginError> {
    let mut host = host_socket()?;
    let bridge = ensure_bridge(&mut host, conf)?;
    let ns = netns(call)?;
    let ifname = &call.attachment.ifname;
    let mac = wanted_mac(call, conf)?;

    let veth = {
        let mut tries = 0;
        loop {
            let name = format!("veth{}", &base::id::fresh()[..8]);
            let wanted = Veth {
                name: &name,
                peer: ifname,
                peer_netns: std::os::fd::AsFd::as_fd(&ns),
                peer_mac: mac,
                mtu: conf.mtu,
                master: bridge.index,
            };
            match host.create_veth(&wanted) {
                Ok(()) => break name,
                // On either side; inside it will stay.
                Err(Errno::EXIST) if tries < NAMES => tries += 1,
                Err(e) => return Err(failed(&format!("create interface {ifname}"))(e)),
            }
        }
    };
    let veth = host
        .link(&veth)
        .map_err(failed("look for interface"))?
        .ok_or_else(|| PluginError::other("the new interface is gone"))?;
    if conf.hairpin_mode || conf.port_isolation {
        host.set_port(veth.index, conf.hairpin_mode, conf.port_isolation)
            .map_err(failed("set up bridge port"))?;
    }

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

    if gateway {
        for ip in &result.ips {
            let Some(address) = ip.gateway.and_then(|g| Cidr::new(g, ip.address.prefix)) else { continue };
            host.add_address(bridge.index, address).map_err(failed("give bridge an address"))?;
            enable_forwarding(address.addr)?;
        }
        plugins.rules.allow_forwarding(&conf.bridge)?;
    }
    if conf.ip_masq {
        for ip in &result.ips {
            plugins.rules.masquerade(network(call), ip.address)?;
        }
    }

    for name in [&veth.name, &bridge.name] {
        wait_for(&mut host, name)?;
    }

    let sandbox = netns_path(call)?.to_string_lossy().into_owned();
    let interface = |link: &Link, sandbox: String| Interface {
        name: link.name.clone(),
        mac: link.mac.clone(),
        mtu: Some(link.mtu),
        sandbox,
        ..Interface::default()
    };
    result.interfaces =
        vec![interface(&bridge, String::new()), interface(&veth, String::new()), interface(&inside, sandbox)];
    if conf.dns != Dns::default() {
        result.dns = conf.dns.clone();
    }
    Ok(())
}

/// Waits until packets pass.
fn wait_for(host: &mut Socket, name: &str) -> Result<(), PluginError> {
    for _ in 0..WAIT.0 {
        match host.link(name).map_err(failed("look for interface"))? {
            Some(link) if link.works => return Ok(()),
            Some(_) => std::thread::sleep(WAIT.1),
            None => return Err(PluginError::other(format!("interface {name} is gone"))),
        }
    }
    Err(PluginError::new(Code::TryAgain, format!("interface {name} does not come up")))
}

/// The bridge, made when it is missing.
fn ensure_bridge(host: &mut Socket, conf: &Conf) -> Result<Link, PluginError> {
    let name = &conf.bridge;
    let look = |host: &mut Socket| host.link(name).map_err(failed("look for bridge"));
    let bridge = match look(host)? {
        Some(bridge) => bridge,
        None => {
            match host.create(name, "bridge", conf.mtu) {
                // Somebody else was faster.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(failed(&format!("create bridge {name}"))(e)),
            }
            look(host)?.ok_or_else(|| PluginError::other(format!("bridge {name} is gone")))?
        }
    };
    if bridge.kind != "bridge" {
        return Err(PluginError::other(format!("{name:?} already exists but is not a bridge")));
    }
    if !bridge.up {
        host.set_up(bridge.index).map_err(failed("set bridge up"))?;
    }
    if conf.promisc_mode {
        host.set_promiscuous(bridge.index, true).map_err(failed("set bridge promiscuous"))?;
    }
    Ok(bridge)
}

fn wanted_mac(call: &Call<'_>, conf: &Conf) -> Result<Option<[u8; 6]>, PluginError> {
    let given =
        [argument(call, "MAC").unwrap_or_default(), &conf.mac, &conf.args.cni.mac, &conf.runtime_config.mac];
    // The last that says something wins.
    let Some(text) = given.into_iter().rfind(|t| !t.is_empty()) else { return Ok(None) };
    parse_mac(text)
        .map(Some)
        .ok_or_else(|| PluginError::new(Code::InvalidConfig, format!("invalid hardware address {text:?}")))
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

/// Sets the interface in the container up. Runs in its namespace.
pub(crate) fn configure(ifname: &str, ips: &[Address], routes: &[Route]) -> Result<Link, PluginError> {
    let mut socket = host_socket()?;
    let look = |socket: &mut Socket| {
        socket
            .link(ifname)
            .map_err(failed("look for interface"))?
            .ok_or_else(|| PluginError::other(format!("interface {ifname} is gone")))
    };
    let link = look(&mut socket)?;
    if ips.iter().any(|ip| ip.address.addr.is_ipv6()) {
        // Often switched off for new interfaces.
        let switch = format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6");
        std::fs::write(switch, "0").map_err(failed_io("switch IPv6 on"))?;
    }
    for ip in ips {
        socket.add_address(link.index, ip.address).map_err(failed("add address"))?;
    }
    socket.set_up(link.index).map_err(failed("set interface up"))?;
    for route in routes {
        let same_family = |gw: &IpAddr| gw.is_ipv4() == route.dst.addr.is_ipv4();
        let by_address = || ips.iter().filter_map(|ip| ip.gateway).find(same_family);
        let new = NewRoute {
            dst: route.dst,
            gateway: route.gw.or_else(by_address),
            mtu: route.mtu,
            advmss: route.advmss,
            priority: route.priority,
            table: route.table,
            scope: route.scope,
        };
        socket.add_route(link.index, &new).map_err(failed(&format!("add route to {}", route.dst)))?;
    }
    look(&mut socket)
}

/// Lets the host pass packets on.
fn enable_forwarding(family: IpAddr) -> Result<(), PluginError> {
    let switch = if family.is_ipv4() {
        Path::new("/proc/sys/net/ipv4/ip_forward")
    } else {
        Path::new("/proc/sys/net/ipv6/conf/all/forwarding")
    };
    // Writing it resets other settings, and /proc/sys may be read-only.
    if std::fs::read_to_string(switch).is_ok_and(|text| text.trim() == "1") {
        return Ok(());
    }
    std::fs::write(switch, "1").map_err(failed_io("enable IP forwarding"))
}

fn undo(plugins: &Plugins, call: &Call<'_>, conf: &Conf, result: &NetworkResult) {
    ipam::undo(plugins, call);
    if let Err(e) = remove_link(call) {
        tracing::warn!(error = %e, "remove half-made interface");
    }
    end_masquerade(plugins, call, conf, result.ips.iter().map(|ip| ip.address));
}

fn end_masquerade(plugins: &Plugins, call: &Call<'_>, conf: &Conf, of: impl Iterator<Item = Cidr>) {
    if !conf.ip_masq {
        return;
    }
    for address in of {
        if let Err(e) = plugins.rules.no_masquerade(network(call), address) {
            tracing::warn!(%address, error = %e, "end masquerade");
        }
    }
}

fn disconnect(plugins: &Plugins, call: &Call<'_>, conf: &Conf) -> Result<(), PluginError> {
    let known: Vec<Cidr> = match previous(call)? {
        Some(result) => result.ips.iter().map(|ip| ip.address).collect(),
        None => addresses_inside(call).unwrap_or_default(),
    };
    // Rules first: the address must not be somebody else's while they are there.
    end_masquerade(plugins, call, conf, known.into_iter());
    let given_back = ipam::pass_on(plugins, call);
    if !call.namespace_ends {
        remove_link(call)?;
    }
    given_back
}

/// The addresses that the container's interface has, if it still exists.
pub(crate) fn addresses_inside(call: &Call<'_>) -> Option<Vec<Cidr>> {
    let mut socket = remaining_netns(call)?.run(Socket::route).ok()?.ok()?;
    let link = socket.link(&call.attachment.ifname).ok()??;
    let all = socket.addresses().ok()?;
    Some(all.into_iter().filter(|(index, _)| *index == link.index).map(|(_, address)| address).collect())
}

/// Removes the pair of interfaces by its end in the container.
pub(crate) fn remove_link(call: &Call<'_>) -> Result<(), PluginError> {
    let Some(ns) = remaining_netns(call) else { return Ok(()) };
    let mut socket = ns.run(Socket::route).map_err(failed_sys)?.map_err(failed_io("open netlink socket"))?;
    socket.delete(&call.attachment.ifname).map_err(failed("remove interface"))
}

fn check(plugins: &Plugins, call: &Call<'_>) -> Result<(), PluginError> {
    ipam::pass_on(plugins, call)?;
    let expected = previous(call)?.unwrap_or_default();
    let ifname = &call.attachment.ifname;
    let has =
        addresses_inside(call).ok_or_else(|| PluginError::other(format!("interface {ifname} is missing")))?;
    for ip in &expected.ips {
        let inside = ip.interface.and_then(|i| expected.interfaces.get(i));
        if inside.is_none_or(|i| i.name == *ifname) && !has.contains(&ip.address) {
            return Err(PluginError::other(format!("interface {ifname} has lost address {}", ip.address)));
        }
    }
    Ok(())
}
