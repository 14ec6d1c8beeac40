//! Rules for packets: source addresses hidden behind the host's, sandboxes shut off from
//! each other and from outside.
//!
//! Each network has tables of its own with a set of its containers' addresses; a table
//! goes with its last address. Where the kernel has no nftables the `iptables` program
//! makes rules of the same meaning.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use cni::{Cidr, Code, PluginError};
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::Deserialize;

use crate::iptables::{self, Args};
use crate::netlink::Socket;
use crate::nft::{Chain, Family, Hook, Step, Table};

const SOURCES: &str = "sources";
const SANDBOXES: &str = "sandboxes";

const FAMILIES: [(IpAddr, Family); 2] =
    [(IpAddr::V4(Ipv4Addr::UNSPECIFIED), Family::V4), (IpAddr::V6(Ipv6Addr::UNSPECIFIED), Family::V6)];

/// What may reach containers from elsewhere. What they have asked for may always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Ingress {
    /// Everything.
    #[default]
    Open,
    /// What comes from the same bridge.
    SameBridge,
    /// Nothing.
    Isolated,
}

/// Who makes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    /// nftables, and the `iptables` program where the kernel has none.
    #[default]
    #[serde(alias = "")]
    Auto,
    Nftables,
    Iptables,
}

/// A port of this host that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// Number of the transport protocol.
    pub(crate) protocol: u8,
    /// Only at this address of the host.
    pub(crate) only: Option<IpAddr>,
    pub(crate) port: u16,
    /// The container's port.
    pub(crate) to: u16,
}

/// Rules, and the connection by which they are made. It is kept open: the kernel lets
/// whoever closes one after a removal wait.
#[derive(Default)]
pub(crate) struct Rules {
    socket: Mutex<Option<Socket>>,
    /// Bridges for which forwarding has been looked after.
    forwarded: Mutex<HashSet<String>>,
    /// Some have been made by nftables.
    by_nft: AtomicBool,
    /// Some have been made by the program.
    by_program: AtomicBool,
}

/// Why nftables did not do it.
enum Trouble {
    /// The kernel has none, or not enough of it; `None` when it is not wanted.
    Missing(Option<Errno>),
    /// Something else.
    Real(Errno),
}

impl Rules {
    /// Hides a container's address behind the host's in whatever leaves its network.
    pub(crate) fn masquerade(
        &self,
        backend: Backend,
        network: &str,
        address: Cidr,
    ) -> Result<(), PluginError> {
        let rule = vec![
            Step::SourceIn(SOURCES),
            Step::Destination { net: address.network(), within: false },
            Step::Masquerade,
        ];
        let table = Table {
            family: Family::of(address.addr),
            name: &table_name("masquerade", network),
            set: Some(SOURCES),
            chains: vec![Chain { name: "postrouting", hook: Hook::SourceNat, rules: vec![rule] }],
        };
        let instead = || vec![iptables::masquerade(network, address)];
        self.make("masquerade", backend, &table, address.addr, instead)
    }

    /// Undoes [`Self::masquerade`].
    pub(crate) fn no_masquerade(
        &self,
        backend: Backend,
        network: &str,
        address: Cidr,
    ) -> Result<(), PluginError> {
        let name = table_name("masquerade", network);
        self.unmake(
            "end masquerade",
            backend,
            |s| s.withdraw(Family::of(address.addr), &name, SOURCES, address.addr),
            || iptables::delete(address.addr, &iptables::masquerade(network, address)),
        )
    }

    /// Shuts a container off from what `ingress` does not allow.
    pub(crate) fn protect(
        &self,
        backend: Backend,
        network: &str,
        bridge: &str,
        ingress: Ingress,
        address: IpAddr,
    ) -> Result<(), PluginError> {
        if ingress == Ingress::Open {
            return Ok(());
        }
        let to = || Step::To { interface: bridge.to_owned(), equal: true };
        let from = |equal| Step::From { interface: bridge.to_owned(), equal };
        let mine = || Step::DestinationIn(SANDBOXES);
        let mut rules = vec![
            vec![to(), mine(), from(false), Step::Established, Step::Accept],
            vec![to(), mine(), from(false), Step::Redirected, Step::Accept],
            vec![to(), mine(), from(false), Step::Drop],
        ];
        if ingress == Ingress::Isolated {
            rules.push(vec![to(), mine(), from(true), Step::Drop]);
        }
        let table = Table {
            family: Family::of(address),
            name: &table_name("firewall", network),
            set: Some(SANDBOXES),
            chains: vec![Chain { name: "forward", hook: Hook::Forward, rules }],
        };
        let instead = || iptables::protect(network, bridge, ingress, address);
        self.make("protect containers", backend, &table, address, instead)
    }

    /// Undoes [`Self::protect`].
    pub(crate) fn unprotect(
        &self,
        backend: Backend,
        network: &str,
        bridge: &str,
        ingress: Ingress,
        address: IpAddr,
    ) -> Result<(), PluginError> {
        if ingress == Ingress::Open {
            return Ok(());
        }
        let name = table_name("firewall", network);
        self.unmake(
            "end protection",
            backend,
            |s| s.withdraw(Family::of(address), &name, SANDBOXES, address),
            || {
                let rules = iptables::protect(network, bridge, ingress, address);
                rules.iter().for_each(|args| iptables::delete(address, args));
            },
        )
    }

    /// Sends what arrives at ports of this host to a container. One table for each container.
    /// With `hairpin` the container reaches itself by them: it must then see the host's address.
    pub(crate) fn forward_ports(
        &self,
        backend: Backend,
        container: &str,
        address: IpAddr,
        ports: &[Port],
        hairpin: bool,
    ) -> Result<(), PluginError> {
        let name = table_name("ports", container);
        let whole = |addr: IpAddr| Cidr::new(addr, if addr.is_ipv4() { 32 } else { 128 });
        let rules: Vec<Vec<Step>> = ports
            .iter()
            .map(|port| {
                let mut rule = vec![Step::ToThisHost];
                let only = port.only.and_then(whole);
                rule.extend(only.map(|net| Step::Destination { net, within: true }));
                rule.push(Step::Port { protocol: port.protocol, port: port.port });
                rule.push(Step::Redirect { to: address, port: port.to });
                rule
            })
            .collect();
        let itself = whole(address)
            .filter(|_| hairpin)
            .map(|net| vec![Step::Source { net }, Step::Destination { net, within: true }, Step::Masquerade]);
        let table = Table {
            family: Family::of(address),
            name: &name,
            set: None,
            chains: vec![
                Chain { name: "prerouting", hook: Hook::DestinationNat, rules: rules.clone() },
                Chain { name: "output", hook: Hook::OutputNat, rules },
                Chain { name: "postrouting", hook: Hook::SourceNat, rules: itself.into_iter().collect() },
            ],
        };
        let instead = || iptables::ports(&name, address, ports, hairpin);
        self.make("forward ports", backend, &table, address, instead)
    }

    /// Undoes [`Self::forward_ports`].
    pub(crate) fn close_ports(&self, backend: Backend, container: &str) -> Result<(), PluginError> {
        let name = table_name("ports", container);
        FAMILIES.into_iter().try_for_each(|(any, family)| {
            self.unmake(
                "end port forwarding",
                backend,
                |s| s.delete_table(family, &name),
                || iptables::sweep(any, &name),
            )
        })
    }

    /// Shuts the host's loopback off from what arrives at a bridge, for as long as `address`
    /// or another is on it. It takes a bridge with `route_localnet` to need that.
    #[cfg(feature = "netavark")]
    pub(crate) fn guard_loopback(&self, bridge: &str, address: IpAddr) -> Result<(), PluginError> {
        let from = Step::From { interface: bridge.to_owned(), equal: true };
        let Some(net) = Cidr::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8) else { return Ok(()) };
        let rule = vec![from, Step::Destination { net, within: true }, Step::Drop];
        let table = Table {
            family: Family::V4,
            name: &table_name("loopback", bridge),
            set: Some(SANDBOXES),
            chains: vec![Chain { name: "prerouting", hook: Hook::Arrival, rules: vec![rule] }],
        };
        let instead = || vec![iptables::loopback(bridge)];
        self.make("guard the loopback", Backend::Auto, &table, address, instead)
    }

    /// Undoes [`Self::guard_loopback`] for `address`; for all when the bridge is gone, which
    /// is `None`.
    #[cfg(feature = "netavark")]
    pub(crate) fn leave_loopback(&self, bridge: &str, address: Option<IpAddr>) -> Result<(), PluginError> {
        let name = table_name("loopback", bridge);
        self.unmake(
            "end guarding the loopback",
            Backend::Auto,
            |s| match address {
                Some(address) => s.withdraw(Family::V4, &name, SANDBOXES, address),
                None => s.delete_table(Family::V4, &name),
            },
            // The rule of the program knows no addresses and goes with the bridge.
            || {
                if address.is_none() {
                    iptables::delete(Ipv4Addr::LOCALHOST.into(), &iptables::loopback(bridge));
                }
            },
        )
    }

    /// Lets nothing pass from a bridge's port but frames of one hardware address. One table
    /// for each container.
    pub(crate) fn hold_mac(&self, container: &str, port: &str, mac: [u8; 6]) -> Result<(), PluginError> {
        let from = Step::From { interface: port.to_owned(), equal: true };
        let rules = vec![vec![from, Step::HardwareNot(mac), Step::Drop]];
        let table = Table {
            family: Family::Bridge,
            name: &table_name("mac", container),
            set: None,
            chains: vec![Chain { name: "prerouting", hook: Hook::BridgeArrival, rules }],
        };
        self.nft(Backend::Nftables, |s| s.describe(&table, None)).map_err(|e| match e {
            Trouble::Missing(Some(e)) | Trouble::Real(e) => refused("macspoofchk", e),
            Trouble::Missing(None) => refused("macspoofchk", Errno::OPNOTSUPP),
        })
    }

    /// Undoes [`Self::hold_mac`].
    pub(crate) fn free_mac(&self, container: &str) -> Result<(), PluginError> {
        match self.nft(Backend::Auto, |s| s.delete_table(Family::Bridge, &table_name("mac", container))) {
            Ok(_) | Err(Trouble::Missing(_)) => Ok(()),
            Err(Trouble::Real(e)) => Err(refused("end macspoofchk", e)),
        }
    }

    /// Removes all tables of a network.
    pub(crate) fn remove(&self, network: &str) -> Result<(), PluginError> {
        for what in ["masquerade", "firewall"] {
            let name = table_name(what, network);
            for (_, family) in FAMILIES {
                match self.nft(Backend::Auto, |s| s.delete_table(family, &name)) {
                    Ok(_) | Err(Trouble::Missing(_)) => {}
                    Err(Trouble::Real(e)) => return Err(refused("remove rules", e)),
                }
            }
        }
        Ok(())
    }

    /// Where packets between interfaces are dropped unless somebody allows them, as Docker
    /// sets it up, allows those of a bridge. Looked for once for each bridge.
    pub(crate) fn allow_forwarding(&self, bridge: &str) -> Result<(), PluginError> {
        if !self.forwarded.lock().insert(bridge.to_owned()) {
            return Ok(());
        }
        for (any, family) in FAMILIES {
            let by_nft =
                self.nft(Backend::Auto, |s| s.drops_by_default(family, "filter", "FORWARD")).unwrap_or(false);
            if by_nft || iptables::legacy_drops(any) {
                for args in iptables::forwarding(bridge) {
                    iptables::add(any, &args, None)?;
                }
            }
        }
        Ok(())
    }

    /// Undoes [`Self::allow_forwarding`], whoever did it.
    pub(crate) fn forbid_forwarding(&self, bridge: &str) {
        self.forwarded.lock().remove(bridge);
        for (any, family) in FAMILIES {
            let by_nft =
                self.nft(Backend::Auto, |s| s.drops_by_default(family, "filter", "FORWARD")).unwrap_or(false);
            if by_nft || iptables::legacy_drops(any) {
                iptables::forwarding(bridge).iter().for_each(|args| iptables::delete(any, args));
            }
        }
    }

    /// Makes rules for `address`: a table with it as a member of its set, if it has one, or
    /// those of the program `instead`. `what` is for errors.
    fn make(
        &self,
        what: &str,
        backend: Backend,
        table: &Table<'_>,
        address: IpAddr,
        instead: impl FnOnce() -> Vec<Args>,
    ) -> Result<(), PluginError> {
        match self.nft(backend, |s| s.describe(table, Some(address))) {
            Ok(()) => {
                self.by_nft.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(Trouble::Missing(e)) => {
                self.by_program.store(true, Ordering::Relaxed);
                instead().iter().try_for_each(|args| iptables::add(address, args, e))
            }
            Err(Trouble::Real(e)) => Err(refused(what, e)),
        }
    }

    /// Removes rules: `remove` says whether there were any, and `instead` removes those of the
    /// program. A kernel can know of nftables and still not have had what it took to make them.
    fn unmake(
        &self,
        what: &str,
        backend: Backend,
        remove: impl FnOnce(&mut Socket) -> Result<bool, Errno>,
        instead: impl FnOnce(),
    ) -> Result<(), PluginError> {
        let [by_nft, by_program] = [&self.by_nft, &self.by_program].map(|by| by.load(Ordering::Relaxed));
        let only_nft = backend == Backend::Nftables || by_nft && !by_program;
        match self.nft(backend, remove) {
            Ok(found) if found || only_nft => Ok(()),
            Ok(_) | Err(Trouble::Missing(_)) => {
                instead();
                Ok(())
            }
            Err(Trouble::Real(e)) => Err(refused(what, e)),
        }
    }

    fn nft<T>(
        &self,
        backend: Backend,
        work: impl FnOnce(&mut Socket) -> Result<T, Errno>,
    ) -> Result<T, Trouble> {
        if backend == Backend::Iptables {
            return Err(Trouble::Missing(None));
        }
        let trouble = |e| match (backend, trouble(e)) {
            (Backend::Nftables, _) => Trouble::Real(e),
            (_, trouble) => trouble,
        };
        let mut slot = self.socket.lock();
        let socket = match &mut *slot {
            Some(socket) => socket,
            None => {
                let opened = Socket::netfilter().map_err(|e| {
                    let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
                    trouble(errno)
                })?;
                slot.insert(opened)
            }
        };
        work(socket).map_err(trouble)
    }
}

fn trouble(e: Errno) -> Trouble {
    match e {
        Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::NOENT | Errno::NOSYS => {
            Trouble::Missing(Some(e))
        }
        e => Trouble::Real(e),
    }
}

fn refused(what: &str, e: Errno) -> PluginError {
    PluginError::new(Code::Io, format!("nftables: {what}: {}", std::io::Error::from(e)))
}

/// Names in the kernel are limited; a long one is replaced by its digest.
fn table_name(what: &str, of: &str) -> String {
    if of.len() <= 64 {
        format!("cni-{what}-{of}")
    } else {
        format!("cni-{what}-{}", base::Digest::of(of.as_bytes()).hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_stay_apart() {
        let (a, b) = ("a".repeat(300), format!("{}b", "a".repeat(299)));
        assert_ne!(table_name("x", &a), table_name("x", &b));
        assert!(table_name("x", &a).len() < 100);
    }
}
