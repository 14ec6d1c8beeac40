//! `ptp`: a container at the other end of a cable from the host, and nobody else on it.

use std::sync::Weak;

use cni::result::{Address, Dns, Route};
use cni::{Call, Cidr, Code, Command, NetworkResult, Plugin, PluginError};
use serde::Deserialize;

use crate::bundled::Plugins;
use crate::conf::{failed, failed_sys, netns, netns_path, network, read};
use crate::container::{
    add_routes, allow_ipv6, check_addresses, enable_forwarding, end_masquerade, existing, interface,
    known_addresses, open, pair, remove_link_beside, undo_link,
};
use crate::ipam;
use crate::link::{Link, NewRoute};
use crate::rules::Backend;

pub(crate) struct Ptp(pub Weak<Plugins>);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Conf {
    ip_masq: bool,
    ip_masq_backend: Backend,
    mtu: u32,
    dns: Dns,
}

impl Plugin for Ptp {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        let plugins = self.0.upgrade().ok_or_else(|| PluginError::other("plugins are gone"))?;
        let conf: Conf = read(call)?;
        match call.command {
            Command::Add => {
                let mut result = ipam::needed(plugins.as_ref(), call, "ptp")?;
                match connect(&plugins, call, &conf, &mut result) {
                    Ok(()) => Ok(Some(result)),
                    Err(e) => {
                        undo_link(call);
                        ipam::undo(plugins.as_ref(), call);
                        if conf.ip_masq {
                            let of = result.ips.iter().map(|ip| ip.address);
                            end_masquerade(&plugins, call, conf.ip_masq_backend, of);
                        }
                        Err(e)
                    }
                }
            }
            Command::Del => {
                let of = if conf.ip_masq { known_addresses(call)? } else { Vec::new() };
                // The link also where the namespace ends: the host's route to the address goes
                // with it, and must be gone before somebody else has the address.
                let end = || end_masquerade(&plugins, call, conf.ip_masq_backend, of.into_iter());
                remove_link_beside(call, end).0?;
                ipam::pass_on(plugins.as_ref(), call).map(|()| None)
            }
            Command::Check => {
                ipam::pass_on(plugins.as_ref(), call)?;
                check_addresses(call).map(|()| None)
            }
            Command::Gc | Command::Status => ipam::pass_on(plugins.as_ref(), call).map(|()| None),
            Command::Version => Ok(None),
        }
    }
}

/// The address alone, as a network.
fn alone(address: std::net::IpAddr) -> Result<Cidr, PluginError> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    Cidr::new(address, bits).ok_or_else(|| PluginError::other("impossible prefix"))
}

fn connect(
    plugins: &Plugins,
    call: &Call<'_>,
    conf: &Conf,
    result: &mut NetworkResult,
) -> Result<(), PluginError> {
    for ip in &mut result.ips {
        ip.interface = Some(1);
        if ip.gateway.is_none() {
            return Err(PluginError::new(
                Code::InvalidConfig,
                format!("ptp: IPAM gave no gateway for {}", ip.address),
            ));
        }
        enable_forwarding(ip.address.addr)?;
    }
    let mut host = open()?;
    let ns = netns(call)?;
    let ifname = &call.attachment.ifname;
    let veth = pair(&mut host, &ns, ifname, None, conf.mtu, 0)?;
    let (ips, routes) = (result.ips.clone(), result.routes.clone());
    let inside = ns.run(|| configure(ifname, &ips, &routes)).map_err(failed_sys)??;
    allow_ipv6(&veth.name, &ips)?;
    for ip in &ips {
        if let Some(gateway) = ip.gateway {
            host.add_address(veth.index, alone(gateway)?).map_err(failed("add address"))?;
        }
        let to = NewRoute::direct(alone(ip.address.addr)?);
        host.add_route(veth.index, &to).map_err(failed("add route to the container"))?;
        if conf.ip_masq {
            plugins.rules.masquerade(conf.ip_masq_backend, network(call), ip.address)?;
        }
    }
    let veth = existing(&mut host, &veth.name)?;
    result.interfaces =
        vec![interface(&veth, std::path::Path::new("")), interface(&inside, netns_path(call)?)];
    if conf.dns != Dns::default() {
        result.dns = conf.dns.clone();
    }
    Ok(())
}

/// Everything goes through the gateway, the container's own network too: nobody else of it
/// is on this cable. Runs in the container's namespace.
fn configure(ifname: &str, ips: &[Address], routes: &[Route]) -> Result<Link, PluginError> {
    let mut socket = open()?;
    let link = existing(&mut socket, ifname)?;
    allow_ipv6(ifname, ips)?;
    for ip in ips {
        socket.add_address_alone(link.index, ip.address).map_err(failed("add address"))?;
    }
    socket.set_up(link.index).map_err(failed("set interface up"))?;
    for ip in ips {
        let Some(gateway) = ip.gateway else { continue };
        let gateway_itself = NewRoute::direct(alone(gateway)?);
        let network = NewRoute { gateway: Some(gateway), ..NewRoute::direct(ip.address.network()) };
        for route in [gateway_itself, network] {
            socket.add_route(link.index, &route).map_err(failed(&format!("add route to {}", route.dst)))?;
        }
    }
    add_routes(&mut socket, link.index, ips, routes)?;
    existing(&mut socket, ifname)
}
