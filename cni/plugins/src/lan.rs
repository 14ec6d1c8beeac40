//! `macvlan` and `ipvlan`: containers that are stations of their own on an interface of the
//! host, with a hardware address of their own or with the interface's.

use std::sync::Weak;

use cni::result::Dns;
use cni::{Call, Code, Command, NetworkResult, Plugin, PluginError};
use rustix::io::Errno;
use serde::Deserialize;

use crate::bundled::Plugins;
use crate::conf::{failed, failed_sys, netns, netns_path, previous, read};
use crate::container::{
    MacConf, allow_ipv6, check_addresses, configure, existing, interface, open, remove_link, undo_link,
};
use crate::default_network::uplink;
use crate::devices::{Lan, NewLan};
use crate::ipam;
use crate::link::Link;
use crate::netlink::Socket;

/// The two are one but for what the kernel is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Macvlan,
    Ipvlan,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }

    /// What the configuration's `mode` means.
    fn mode(self, conf: &Conf) -> Option<Lan> {
        let broadcast_queue = conf.bc_queue_len;
        let macvlan = |mode| Some(Lan::Macvlan { mode, broadcast_queue });
        match (self, conf.mode.as_str()) {
            (Self::Macvlan, "private") => macvlan(1),
            (Self::Macvlan, "vepa") => macvlan(2),
            (Self::Macvlan, "" | "bridge") => macvlan(4),
            (Self::Macvlan, "passthru") => macvlan(8),
            (Self::Ipvlan, "" | "l2") => Some(Lan::Ipvlan { mode: 0 }),
            (Self::Ipvlan, "l3") => Some(Lan::Ipvlan { mode: 1 }),
            (Self::Ipvlan, "l3s") => Some(Lan::Ipvlan { mode: 2 }),
            _ => None,
        }
    }
}

pub(crate) struct LanPlugin(pub Weak<Plugins>, pub Kind);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Conf {
    master: String,
    mode: String,
    mtu: u32,
    link_in_container: bool,
    #[serde(rename = "bcqueuelen")]
    bc_queue_len: Option<u32>,
    dns: Dns,
    #[serde(flatten)]
    mac: MacConf,
}

impl Plugin for LanPlugin {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        let plugins = self.0.upgrade().ok_or_else(|| PluginError::other("plugins are gone"))?;
        match call.command {
            Command::Add => {
                let conf: Conf = read(call)?;
                let mode = self.1.mode(&conf).ok_or_else(|| {
                    let text = format!("{}: unknown mode {:?}", self.1.name(), conf.mode);
                    PluginError::new(Code::InvalidConfig, text)
                })?;
                let before = previous(call)?;
                let mut result = match (ipam::add(plugins.as_ref(), call)?, &before) {
                    (Some(result), _) => result,
                    // Addresses that somebody before has taken.
                    (None, Some(before)) if self.1 == Kind::Ipvlan && !before.ips.is_empty() => {
                        NetworkResult { interfaces: Vec::new(), ..before.clone() }
                    }
                    // Without addresses a station can still ask for one itself; not by the
                    // hardware address it shares.
                    (None, _) if self.1 == Kind::Macvlan => NetworkResult::default(),
                    (None, _) => {
                        let text = "ipvlan: ipam settings are missing";
                        return Err(PluginError::new(Code::InvalidConfig, text));
                    }
                };
                match self.connect(call, &conf, mode, before.as_ref(), &mut result) {
                    Ok(()) => Ok(Some(result)),
                    Err(e) => {
                        undo_link(call);
                        ipam::undo(plugins.as_ref(), call);
                        Err(e)
                    }
                }
            }
            Command::Del => {
                let given_back = ipam::pass_on(plugins.as_ref(), call);
                if !call.namespace_ends {
                    remove_link(call)?;
                }
                given_back.map(|()| None)
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

impl LanPlugin {
    fn connect(
        &self,
        call: &Call<'_>,
        conf: &Conf,
        mode: Lan,
        before: Option<&NetworkResult>,
        result: &mut NetworkResult,
    ) -> Result<(), PluginError> {
        let ns = netns(call)?;
        let mut socket = if conf.link_in_container { ns.run(open).map_err(failed_sys)?? } else { open()? };
        let master = self.master(&mut socket, conf, before)?;
        if conf.mtu > master.mtu {
            let text = format!(
                "{}: mtu {} is larger than that of {}, {}",
                self.1.name(),
                conf.mtu,
                master.name,
                master.mtu
            );
            return Err(PluginError::new(Code::InvalidConfig, text));
        }
        let mac = if self.1 == Kind::Macvlan { conf.mac.wanted(call)? } else { None };
        let ifname = &call.attachment.ifname;
        let new = NewLan {
            name: ifname,
            netns: std::os::fd::AsFd::as_fd(&ns),
            master: master.index,
            mtu: if conf.mtu > 0 { conf.mtu } else { master.mtu },
            mac,
            kind: mode,
        };
        socket.create_lan(&new).map_err(|e| match e {
            Errno::OPNOTSUPP => PluginError::new(
                Code::Unavailable,
                format!("this kernel has no {} interfaces: {}", self.1.name(), std::io::Error::from(e)),
            ),
            e => failed(&format!("create interface {ifname} on {}", master.name))(e),
        })?;
        for ip in &mut result.ips {
            ip.interface = Some(0);
        }
        let (ips, routes) = (result.ips.clone(), result.routes.clone());
        let inside = ns
            .run(|| {
                allow_ipv6(ifname, &ips)?;
                configure(ifname, &ips, &routes)
            })
            .map_err(failed_sys)??;
        result.interfaces = vec![interface(&inside, netns_path(call)?)];
        if conf.dns != Dns::default() {
            result.dns = conf.dns.clone();
        }
        Ok(())
    }

    /// The interface below: as configured, else that of the plugin before (ipvlan), else the
    /// one by which packets leave.
    fn master(
        &self,
        socket: &mut Socket,
        conf: &Conf,
        before: Option<&NetworkResult>,
    ) -> Result<Link, PluginError> {
        let chained = before.filter(|_| self.1 == Kind::Ipvlan).and_then(|r| r.interfaces.first());
        let name = match chained {
            _ if !conf.master.is_empty() => &conf.master,
            Some(first) => &first.name,
            None => {
                let routes = socket.routes().map_err(failed("list routes"))?;
                let links = socket.links().map_err(failed("list links"))?;
                let default = uplink(&routes, &links, true).or_else(|| uplink(&routes, &links, false));
                return default.cloned().ok_or_else(|| {
                    let text = format!("{}: no master, and no default route to tell it", self.1.name());
                    PluginError::new(Code::InvalidConfig, text)
                });
            }
        };
        existing(socket, name)
    }
}
