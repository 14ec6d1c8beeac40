//! Rules by the `iptables` program, where it is wanted or the kernel has no nftables. They
//! mean the same as those of [`crate::rules`].

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use cni::{Cidr, Code, PluginError};
use rustix::io::Errno;

use crate::rules::{Ingress, Port};

/// The table, then the chain, then the rule.
pub(crate) struct Args {
    table: &'static str,
    chain: &'static str,
    rule: Vec<String>,
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Hides an address behind the host's in whatever leaves its network.
pub(crate) fn masquerade(network: &str, address: Cidr) -> Args {
    let Cidr { addr, .. } = address;
    let mut rule = words(&format!("-s {addr} ! -d {} -m comment --comment", address.network()));
    rule.push(format!("cni {network}"));
    rule.extend(words("-j MASQUERADE"));
    Args { table: "nat", chain: "POSTROUTING", rule }
}

/// Shuts a container off from what `ingress` does not allow.
pub(crate) fn protect(network: &str, bridge: &str, ingress: Ingress, addr: IpAddr) -> Vec<Args> {
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

/// Shuts the host's loopback off from what arrives at a bridge.
#[cfg(feature = "netavark")]
pub(crate) fn loopback(bridge: &str) -> Args {
    Args { table: "raw", chain: "PREROUTING", rule: words(&format!("-i {bridge} -d 127.0.0.0/8 -j DROP")) }
}

/// Allows what a bridge sends and the answers to it.
pub(crate) fn forwarding(bridge: &str) -> [Args; 2] {
    [
        format!("-i {bridge} -j ACCEPT"),
        format!("-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ]
    .map(|text| Args { table: "filter", chain: "FORWARD", rule: words(&text) })
}

/// Sends what arrives at ports of this host to a container. `mark` is one word, by which
/// [`sweep`] finds the rules again.
pub(crate) fn ports(mark: &str, address: IpAddr, ports: &[Port], hairpin: bool) -> Vec<Args> {
    let mut list = Vec::new();
    for port in ports {
        let protocol = match port.protocol {
            17 => "udp",
            132 => "sctp",
            _ => "tcp",
        };
        let only = port.only.map(|ip| format!("-d {ip}")).unwrap_or_default();
        let to = SocketAddr::new(address, port.to);
        for chain in ["PREROUTING", "OUTPUT"] {
            let rule = words(&format!(
                "{only} -p {protocol} --dport {} -m addrtype --dst-type LOCAL \
                 -m comment --comment {mark} -j DNAT --to-destination {to}",
                port.port
            ));
            list.push(Args { table: "nat", chain, rule });
        }
    }
    if hairpin && !list.is_empty() {
        let rule = words(&format!("-s {address} -d {address} -m comment --comment {mark} -j MASQUERADE"));
        list.push(Args { table: "nat", chain: "POSTROUTING", rule });
    }
    list
}

/// The older iptables are in use for packets that pass, and their policy is to drop.
pub(crate) fn legacy_drops(any: IpAddr) -> bool {
    let names = if any.is_ipv4() { "/proc/net/ip_tables_names" } else { "/proc/net/ip6_tables_names" };
    let used = std::fs::read_to_string(names).is_ok_and(|text| text.lines().any(|l| l == "filter"));
    used && program(any)
        .args(["-S", "FORWARD"])
        .output()
        .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).starts_with("-P FORWARD DROP"))
}

fn program(family: IpAddr) -> Command {
    let mut command = Command::new(if family.is_ipv4() { "iptables" } else { "ip6tables" });
    command.arg("-w").stdin(Stdio::null());
    command
}

/// Adds a rule unless it is there. `why` is why nftables was not used; `None` when it was
/// not wanted.
pub(crate) fn add(family: IpAddr, args: &Args, why: Option<Errno>) -> Result<(), PluginError> {
    let call =
        |verb: &str| program(family).args(["-t", args.table, verb, args.chain]).args(&args.rule).output();
    if call("-C").is_ok_and(|out| out.status.success()) {
        return Ok(());
    }
    // Packets are dropped before others can accept them; addresses are changed after others
    // have had their say.
    let said = match call(if args.table == "nat" { "-A" } else { "-I" }) {
        Ok(out) if out.status.success() => return Ok(()),
        Ok(out) => String::from_utf8_lossy(&out.stderr).trim().to_owned(),
        Err(e) => e.to_string(),
    };
    let nftables = why.map_or_else(String::new, |e| format!("nftables: {}; ", std::io::Error::from(e)));
    Err(PluginError::new(
        Code::Unavailable,
        format!("no rules for packets can be made: {nftables}iptables: {said}"),
    ))
}

/// Removes a rule; that it is not there is fine.
pub(crate) fn delete(family: IpAddr, args: &Args) {
    let done = program(family).args(["-t", args.table, "-D", args.chain]).args(&args.rule).output();
    if let Ok(out) = done
        && !out.status.success()
    {
        tracing::debug!(said = %String::from_utf8_lossy(&out.stderr).trim(), "remove iptables rule");
    }
}

/// Removes all rules of the table `nat` with a mark.
pub(crate) fn sweep(family: IpAddr, mark: &str) {
    let Ok(out) = program(family).args(["-t", "nat", "-S"]).output() else { return };
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        // A comment of one word is listed as it is, or in quotes.
        let words: Vec<&str> = line.split_ascii_whitespace().map(|w| w.trim_matches('"')).collect();
        if let ["-A", chain, rule @ ..] = words.as_slice()
            && rule.contains(&mark)
        {
            let done = program(family).args(["-t", "nat", "-D", chain]).args(rule).output();
            if !done.is_ok_and(|out| out.status.success()) {
                tracing::warn!(rule = line, "remove iptables rule");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::netns::NetNs;

    fn listed(table: &str) -> usize {
        let out = program([10, 0, 0, 1].into()).args(["-t", table, "-S"]).output().unwrap();
        String::from_utf8(out.stdout).unwrap().lines().filter(|l| l.starts_with("-A")).count()
    }

    #[test]
    fn rules_come_once_and_go() {
        NetNs::create(|| {
            let address: Cidr = "10.0.0.2/24".parse().unwrap();
            let hidden = masquerade("net", address);
            let mut all = protect("net", "br0", Ingress::Isolated, address.addr);
            all.extend(forwarding("br0"));
            let two = [8080, 8081].map(|port| Port { protocol: 6, only: None, port, to: 80 });
            for _ in 0..2 {
                add(address.addr, &hidden, None).unwrap();
                for args in &all {
                    add(address.addr, args, None).unwrap();
                }
                for (mark, port) in ["mark-1", "mark-12"].iter().zip(&two) {
                    for args in ports(mark, address.addr, std::slice::from_ref(port), true) {
                        add(address.addr, &args, None).unwrap();
                    }
                }
            }
            assert_eq!((listed("nat"), listed("filter")), (7, 4));
            sweep(address.addr, "mark-1");
            assert_eq!(listed("nat"), 4, "and only those");
            sweep(address.addr, "mark-12");
            delete(address.addr, &hidden);
            all.iter().for_each(|args| delete(address.addr, args));
            assert_eq!((listed("nat"), listed("filter")), (0, 0));
        })
        .unwrap();
    }

    #[test]
    fn forwarding_is_allowed_where_it_is_not() {
        NetNs::create(|| {
            let rules = crate::rules::Rules::default();
            rules.allow_forwarding("br0").unwrap();
            assert_eq!(listed("filter"), 0, "nobody forbids it");
            rules.forbid_forwarding("br0");
            let any = IpAddr::from([0; 4]);
            assert!(program(any).args(["-P", "FORWARD", "DROP"]).status().unwrap().success());
            rules.allow_forwarding("br0").unwrap();
            assert_eq!(listed("filter"), 2);
            rules.forbid_forwarding("br0");
            assert_eq!(listed("filter"), 0);
        })
        .unwrap();
    }
}
