//! What plugins have in common: the interface in the container with its addresses and
//! routes, and the host's part in passing its packets on.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use cni::result::{Address, Interface, Route};
use cni::{Call, Cidr, Code, NetworkResult, PluginError};
use rustix::io::Errno;
use serde::Deserialize;
use sys::netns::NetNs;

use crate::bundled::Plugins;
use crate::conf::{argument, failed, failed_io, failed_sys, network, previous, remaining_netns};
use crate::link::{Link, NewRoute, Veth, parse_mac};
use crate::netlink::Socket;
use crate::rules::Backend;

/// The kernel joins a new port to its bridge a moment later. Until then packets are lost, and
/// whoever sent them tries again after a second: how long is looked, and how often at first and
/// in the end. What looks holds the lock that joining takes.
const WAIT: Duration = Duration::from_secs(10);
const PAUSES: [Duration; 2] = [Duration::from_micros(500), Duration::from_millis(50)];

/// Attempts to find a name that no other interface has.
const NAMES: usize = 8;

/// Where a hardware address may be asked for besides the plugin's own field.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct MacConf {
    pub(crate) mac: String,
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

impl MacConf {
    /// The hardware address that is wanted, if one is.
    pub(crate) fn wanted(&self, call: &Call<'_>) -> Result<Option<[u8; 6]>, PluginError> {
        let given = [
            argument(call, "MAC").unwrap_or_default(),
            &self.mac,
            &self.args.cni.mac,
            &self.runtime_config.mac,
        ];
        // The last that says something wins.
        let Some(text) = given.into_iter().rfind(|t| !t.is_empty()) else { return Ok(None) };
        parse_mac(text).map(Some).ok_or_else(|| {
            PluginError::new(Code::InvalidConfig, format!("invalid hardware address {text:?}"))
        })
    }
}

/// A connection to the namespace this thread is in.
pub(crate) fn open() -> Result<Socket, PluginError> {
    Socket::route().map_err(failed_io("open netlink socket"))
}

/// The link of a name, which must be there.
pub(crate) fn existing(socket: &mut Socket, name: &str) -> Result<Link, PluginError> {
    socket
        .link(name)
        .map_err(failed("look for interface"))?
        .ok_or_else(|| PluginError::other(format!("interface {name} is missing")))
}

/// As a result tells of it.
pub(crate) fn interface(link: &Link, sandbox: &Path) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.clone(),
        mtu: Some(link.mtu),
        sandbox: sandbox.to_string_lossy().into_owned(),
        ..Interface::default()
    }
}

/// Makes a pair of interfaces: one of a new name here, `peer` in `ns`. Gives the one here.
pub(crate) fn pair(
    host: &mut Socket,
    ns: &NetNs,
    peer: &str,
    peer_mac: Option<[u8; 6]>,
    mtu: u32,
    master: u32,
) -> Result<Link, PluginError> {
    let mut tries = 0;
    let name = loop {
        let name = format!("veth{}", &base::id::fresh()[..8]);
        let wanted = Veth { name: &name, peer, peer_netns: ns.as_fd(), peer_mac, mtu, master };
        match host.create_veth(&wanted) {
            Ok(()) => break name,
            // On either side; inside it will stay.
            Err(Errno::EXIST) if tries < NAMES => tries += 1,
            Err(e) => return Err(failed(&format!("create interface {peer}"))(e)),
        }
    };
    existing(host, &name)
}

/// Waits until packets pass.
pub(crate) fn wait_for(host: &mut Socket, name: &str) -> Result<(), PluginError> {
    let (deadline, mut pause) = (Instant::now() + WAIT, PAUSES[0]);
    while !existing(host, name)?.works {
        if Instant::now() > deadline {
            return Err(PluginError::new(Code::TryAgain, format!("interface {name} does not come up")));
        }
        std::thread::sleep(pause);
        pause = PAUSES[1].min(pause * 2);
    }
    Ok(())
}

/// Switches IPv6 on where an address needs it: often it is off for new interfaces.
pub(crate) fn allow_ipv6(ifname: &str, ips: &[Address]) -> Result<(), PluginError> {
    if ips.iter().any(|ip| ip.address.addr.is_ipv6()) {
        let switch = format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6");
        std::fs::write(switch, "0").map_err(failed_io("switch IPv6 on"))?;
    }
    Ok(())
}

/// Sets the interface in the container up. Runs in its namespace.
pub(crate) fn configure(ifname: &str, ips: &[Address], routes: &[Route]) -> Result<Link, PluginError> {
    let mut socket = open()?;
    let link = existing(&mut socket, ifname)?;
    allow_ipv6(ifname, ips)?;
    for ip in ips {
        socket.add_address(link.index, ip.address).map_err(failed("add address"))?;
    }
    socket.set_up(link.index).map_err(failed("set interface up"))?;
    add_routes(&mut socket, link.index, ips, routes)?;
    existing(&mut socket, ifname)
}

/// Adds routes, those without a gateway through that of the addresses.
pub(crate) fn add_routes(
    socket: &mut Socket,
    link: u32,
    ips: &[Address],
    routes: &[Route],
) -> Result<(), PluginError> {
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
        socket.add_route(link, &new).map_err(failed(&format!("add route to {}", route.dst)))?;
    }
    Ok(())
}

/// Lets the host pass packets on.
pub(crate) fn enable_forwarding(family: IpAddr) -> Result<(), PluginError> {
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

/// Ends the masquerade of addresses; what cannot be ended is logged.
pub(crate) fn end_masquerade(
    plugins: &Plugins,
    call: &Call<'_>,
    backend: Backend,
    of: impl Iterator<Item = Cidr>,
) {
    for address in of {
        if let Err(e) = plugins.rules.no_masquerade(backend, network(call), address) {
            tracing::warn!(%address, error = %e, "end masquerade");
        }
    }
}

/// The addresses the container was given: those of the earlier result, or, before 0.4.0,
/// what can still be seen inside.
pub(crate) fn known_addresses(call: &Call<'_>) -> Result<Vec<Cidr>, PluginError> {
    Ok(match previous(call)? {
        Some(result) => result.ips.iter().map(|ip| ip.address).collect(),
        None => addresses_inside(call).unwrap_or_default(),
    })
}

/// The addresses that the container's interface has, if it still exists.
pub(crate) fn addresses_inside(call: &Call<'_>) -> Option<Vec<Cidr>> {
    let mut socket = remaining_netns(call)?.run(Socket::route).ok()?.ok()?;
    let link = socket.link(&call.attachment.ifname).ok()??;
    let all = socket.addresses().ok()?;
    Some(all.into_iter().filter(|(index, _)| *index == link.index).map(|(_, address)| address).collect())
}

/// Removes the interface in the container, and with it the other end of a pair.
pub(crate) fn remove_link(call: &Call<'_>) -> Result<(), PluginError> {
    let Some(ns) = remaining_netns(call) else { return Ok(()) };
    let mut socket = ns.run(Socket::route).map_err(failed_sys)?.map_err(failed_io("open netlink socket"))?;
    socket.delete(&call.attachment.ifname).map_err(failed("remove interface"))
}

/// [`remove_link`] while `other` is done: the kernel takes about as long to let a link go as
/// to let rules go, and waits for each on its own.
pub(crate) fn remove_link_beside<T>(
    call: &Call<'_>,
    other: impl FnOnce() -> T,
) -> (Result<(), PluginError>, T) {
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| remove_link(call));
        let done = other();
        let removed = removal.join().unwrap_or_else(|_| Err(PluginError::other("remove interface: panic")));
        (removed, done)
    })
}

/// As [`remove_link`], after something else has failed.
pub(crate) fn undo_link(call: &Call<'_>) {
    if let Err(e) = remove_link(call) {
        tracing::warn!(error = %e, "remove half-made interface");
    }
}

/// The interface in the container still has the addresses of the result.
pub(crate) fn check_addresses(call: &Call<'_>) -> Result<(), PluginError> {
    let expected: NetworkResult = previous(call)?.unwrap_or_default();
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
