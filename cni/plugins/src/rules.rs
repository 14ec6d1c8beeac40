//! Rules for packets: source addresses hidden behind the host's, sandboxes shut off from
//! each other and from outside.
//!
//! Each network has tables of its own with a set of its containers' addresses; a table
//! goes with its last address. Where the kernel has no nftables the `iptables` program
//! makes rules of the same meaning.

use std::collections::HashSet;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use cni::{Cidr, Code, PluginError};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::netlink::Socket;
use crate::nft::{Chain, Family, Hook, Step, Table};

const SOURCES: &str = "sources";
const SANDBOXES: &str = "sandboxes";

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

/// Rules, and the connection by which they are made. It is kept open: the kernel lets
/// whoever closes one after a removal wait.
#[derive(Default)]
pub(crate) struct Rules {
    socket: Mutex<Option<Socket>>,
    /// Bridges for which forwarding has been looked after.
    forwarded: Mutex<HashSet<String>>,
}

/// Why nftables did not do it.
enum Trouble {
    /// The kernel has none, or not enough of it.
    Missing(Errno),
    /// Something else.
    Real(Errno),
}

impl Rules {
    /// Hides a container's address behind the host's in whatever leaves its network.
    pub(crate) fn masquerade(&self, network: &str, address: Cidr) -> Result<(), PluginError> {
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
        match self.nft(|s| s.describe(&table, Some(address.addr))) {
            Ok(()) => Ok(()),
            Err(Trouble::Missing(e)) => {
                iptables_add(address.addr, &masquerade_args(network, address), "-A", e)
            }
            Err(Trouble::Real(e)) => Err(refused("masquerade", e)),
        }
    }

    /// Undoes [`Self::masquerade`].
    pub(crate) fn no_masquerade(&self, network: &str, address: Cidr) -> Result<(), PluginError> {
        let name = table_name("masquerade", network);
        match self.nft(|s| s.withdraw(Family::of(address.addr), &name, SOURCES, address.addr)) {
            Ok(()) => Ok(()),
            Err(Trouble::Missing(_)) => {
                iptables_delete(address.addr, &masquerade_args(network, address));
                Ok(())
            }
            Err(Trouble::Real(e)) => Err(refused("end masquerade", e)),
        }
    }

    /// Shuts a container off from what `ingress` does not allow.
    pub(crate) fn protect(
        &self,
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
        match self.nft(|s| s.describe(&table, Some(address))) {
            Ok(()) => Ok(()),
            Err(Trouble::Missing(e)) => protect_args(network, bridge, ingress, address)
                .iter()
                .try_for_each(|args| iptables_add(address, args, "-I", e)),
            Err(Trouble::Real(e)) => Err(refused("protect containers", e)),
        }
    }

    /// Undoes [`Self::protect`].
    pub(crate) fn unprotect(
        &self,
        network: &str,
        bridge: &str,
        ingress: Ingress,
        address: IpAddr,
    ) -> Result<(), PluginError> {
        if ingress == Ingress::Open {
            return Ok(());
        }
        let name = table_name("firewall", network);
        match self.nft(|s| s.withdraw(Family::of(address), &name, SANDBOXES, address)) {
            Ok(()) => Ok(()),
            Err(Trouble::Missing(_)) => {
                for args in protect_args(network, bridge, ingress, address) {
                    iptables_delete(address, &args);
                }
                Ok(())
            }
            Err(Trouble::Real(e)) => Err(refused("end protection", e)),
        }
    }

    /// Sends what arrives at ports of this host to a container. One table for each container.
    pub(crate) fn forward_ports(
        &self,
        container: &str,
        family: Family,
        rules: &[Vec<Step>],
        hairpin: Vec<Vec<Step>>,
    ) -> Result<(), PluginError> {
        let table = Table {
            family,
            name: &table_name("ports", container),
            set: None,
            chains: vec![
                Chain { name: "prerouting", hook: Hook::DestinationNat, rules: rules.to_vec() },
                Chain { name: "output", hook: Hook::OutputNat, rules: rules.to_vec() },
                Chain { name: "postrouting", hook: Hook::SourceNat, rules: hairpin },
            ],
        };
        self.nft(|s| s.describe(&table, None)).map_err(|e| match e {
            Trouble::Missing(e) | Trouble::Real(e) => refused("forward ports", e),
        })
    }

    /// Undoes [`Self::forward_ports`].
    pub(crate) fn close_ports(&self, container: &str) -> Result<(), PluginError> {
        let name = table_name("ports", container);
        for family in [Family::V4, Family::V6] {
            match self.nft(|s| s.delete_table(family, &name)) {
                Ok(()) | Err(Trouble::Missing(_)) => {}
                Err(Trouble::Real(e)) => return Err(refused("end port forwarding", e)),
            }
        }
        Ok(())
    }

    /// Removes all tables of a network.
    pub(crate) fn remove(&self, network: &str) -> Result<(), PluginError> {
        for what in ["masquerade", "firewall"] {
            let name = table_name(what, network);
            for family in [Family::V4, Family::V6] {
                match self.nft(|s| s.delete_table(family, &name)) {
                    Ok(()) | Err(Trouble::Missing(_)) => {}
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
        for (any, family) in [(IpAddr::from([0; 4]), Family::V4), (IpAddr::from([0; 16]), Family::V6)] {
            let by_nft = self.nft(|s| s.drops_by_default(family, "filter", "FORWARD")).unwrap_or(false);
            if by_nft || legacy_drops(any) {
                for args in forwarding_args(bridge) {
                    iptables_add(any, &args, "-I", Errno::OPNOTSUPP)?;
                }
            }
        }
        Ok(())
    }

    /// Undoes [`Self::allow_forwarding`], whoever did it.
    pub(crate) fn forbid_forwarding(&self, bridge: &str) {
        self.forwarded.lock().remove(bridge);
        for (any, family) in [(IpAddr::from([0; 4]), Family::V4), (IpAddr::from([0; 16]), Family::V6)] {
            let by_nft = self.nft(|s| s.drops_by_default(family, "filter", "FORWARD")).unwrap_or(false);
            if by_nft || legacy_drops(any) {
                forwarding_args(bridge).iter().for_each(|args| iptables_delete(any, args));
            }
        }
    }

    fn nft<T>(&self, work: impl FnOnce(&mut Socket) -> Result<T, Errno>) -> Result<T, Trouble> {
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
            Trouble::Missing(e)
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

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// The table, then the chain, then the rule.
struct Args {
    table: &'static str,
    chain: &'static str,
    rule: Vec<String>,
}

fn masquerade_args(network: &str, address: Cidr) -> Args {
    let Cidr { addr, .. } = address;
    let mut rule = words(&format!("-s {addr} ! -d {} -m comment --comment", address.network()));
    rule.push(format!("cni {network}"));
    rule.extend(words("-j MASQUERADE"));
    Args { table: "nat", chain: "POSTROUTING", rule }
}

fn protect_args(network: &str, bridge: &str, ingress: Ingress, addr: IpAddr) -> Vec<Args> {
    let rule = |text: String| {
        let mut rule = words(&text);
        rule.extend(["-m".into(), "comment".into(), "--comment".into(), format!("cni {network}")]);
        rule.extend(words("-j DROP"));
        Args { table: "filter", chain: "FORWARD", rule }
    };
    let mut list = vec![rule(format!(
        "! -i {bridge} -o {bridge} -d {addr} -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"
    ))];
    if ingress == Ingress::Isolated {
        list.push(rule(format!("-i {bridge} -o {bridge} -d {addr}")));
    }
    list
}

fn forwarding_args(bridge: &str) -> [Args; 2] {
    [
        format!("-i {bridge} -j ACCEPT"),
        format!("-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ]
    .map(|text| Args { table: "filter", chain: "FORWARD", rule: words(&text) })
}

/// The older iptables are in use for packets that pass, and their policy is to drop.
fn legacy_drops(any: IpAddr) -> bool {
    let names = if any.is_ipv4() { "/proc/net/ip_tables_names" } else { "/proc/net/ip6_tables_names" };
    let used = std::fs::read_to_string(names).is_ok_and(|text| text.lines().any(|l| l == "filter"));
    used && iptables(any)
        .args(["-S", "FORWARD"])
        .output()
        .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).starts_with("-P FORWARD DROP"))
}

fn iptables(family: IpAddr) -> Command {
    let mut command = Command::new(if family.is_ipv4() { "iptables" } else { "ip6tables" });
    command.arg("-w").stdin(Stdio::null());
    command
}

/// Adds a rule unless it is there. `why` is why nftables was not used.
fn iptables_add(family: IpAddr, args: &Args, how: &str, why: Errno) -> Result<(), PluginError> {
    let call =
        |verb: &str| iptables(family).args(["-t", args.table, verb, args.chain]).args(&args.rule).output();
    if call("-C").is_ok_and(|out| out.status.success()) {
        return Ok(());
    }
    let said = match call(how) {
        Ok(out) if out.status.success() => return Ok(()),
        Ok(out) => String::from_utf8_lossy(&out.stderr).trim().to_owned(),
        Err(e) => e.to_string(),
    };
    let why = std::io::Error::from(why);
    Err(PluginError::new(
        Code::Unavailable,
        format!("no rules for packets can be made: nftables: {why}; iptables: {said}"),
    ))
}

fn iptables_delete(family: IpAddr, args: &Args) {
    let done = iptables(family).args(["-t", args.table, "-D", args.chain]).args(&args.rule).output();
    if let Ok(out) = done
        && !out.status.success()
    {
        tracing::debug!(said = %String::from_utf8_lossy(&out.stderr).trim(), "remove iptables rule");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::netns::NetNs;

    fn listed(table: &str) -> usize {
        let out = iptables([10, 0, 0, 1].into()).args(["-t", table, "-S"]).output().unwrap();
        String::from_utf8(out.stdout).unwrap().lines().filter(|l| l.starts_with("-A")).count()
    }

    #[test]
    fn iptables_can_do_it_too() {
        NetNs::create(|| {
            let address: Cidr = "10.0.0.2/24".parse().unwrap();
            let masquerade = masquerade_args("net", address);
            let mut all = protect_args("net", "br0", Ingress::Isolated, address.addr);
            all.extend(forwarding_args("br0"));
            for _ in 0..2 {
                iptables_add(address.addr, &masquerade, "-A", Errno::OPNOTSUPP).unwrap();
                for args in &all {
                    iptables_add(address.addr, args, "-I", Errno::OPNOTSUPP).unwrap();
                }
            }
            assert_eq!((listed("nat"), listed("filter")), (1, 4));
            iptables_delete(address.addr, &masquerade);
            all.iter().for_each(|args| iptables_delete(address.addr, args));
            assert_eq!((listed("nat"), listed("filter")), (0, 0));
        })
        .unwrap();
    }

    #[test]
    fn forwarding_is_allowed_where_it_is_not() {
        NetNs::create(|| {
            let rules = Rules::default();
            rules.allow_forwarding("br0").unwrap();
            assert_eq!(listed("filter"), 0, "nobody forbids it");
            let any = IpAddr::from([0; 4]);
            assert!(iptables(any).args(["-P", "FORWARD", "DROP"]).status().unwrap().success());
            rules.forwarded.lock().clear();
            rules.allow_forwarding("br0").unwrap();
            assert_eq!(listed("filter"), 2);
            rules.forbid_forwarding("br0");
            assert_eq!(listed("filter"), 0);
        })
        .unwrap();
    }

    #[test]
    fn long_names_stay_apart() {
        let (a, b) = ("a".repeat(300), format!("{}b", "a".repeat(299)));
        assert_ne!(table_name("x", &a), table_name("x", &b));
        assert!(table_name("x", &a).len() < 100);
    }
}
