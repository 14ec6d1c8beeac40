//! What `/etc/resolv.conf` says inside a sandbox.
//!
//! The host's own resolvers are used as they are. A resolver on a loopback
//! address cannot be reached from another namespace: it is left out, and where
//! no other is left the network offers a [forwarder](crate::forward) instead.
//! No public resolver is ever put in: nobody asked for one.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

/// Size above which a `resolv.conf` is not believed.
const LIMIT: u64 = 1 << 20;

/// Settings that replace what the host says; empty = the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
    /// Resolver options.
    pub options: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
}

/// The settings of a resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers: IP addresses, an IPv6 one possibly with `%interface`.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options, such as `ndots:1`.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of a `resolv.conf`. What it does not understand it skips,
    /// as resolvers do; the last `search` or `domain` and all `options` count.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    if let Some(server) = words.next().filter(|s| address(s).is_some()) {
                        conf.nameservers.push(server.into());
                    }
                }
                Some("search" | "domain") => {
                    conf.search = words.filter(|w| *w != ".").map(str::to_owned).collect();
                }
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// Reads a file; one that is missing or unreadable says nothing.
    pub fn load(path: &Path) -> Self {
        let small = std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= LIMIT);
        let text = if small { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
        Self::parse(&String::from_utf8_lossy(&text))
    }

    /// With the settings of the configuration in place of the host's.
    #[must_use]
    pub fn overridden(mut self, by: &Overrides) -> Self {
        if !by.nameservers.is_empty() {
            self.nameservers = by.nameservers.iter().map(ToString::to_string).collect();
        }
        if !by.search.is_empty() {
            self.search.clone_from(&by.search);
        }
        if !by.options.is_empty() {
            self.options.clone_from(&by.options);
        }
        self
    }

    /// For a namespace that is not the host's: without loopback resolvers.
    #[must_use]
    pub fn without_loopback(mut self) -> Self {
        self.nameservers.retain(|s| !is_loopback(s));
        self
    }

    /// There are name servers, and all of them are on loopback addresses.
    pub fn is_loopback_only(&self) -> bool {
        !self.nameservers.is_empty() && self.nameservers.iter().all(|s| is_loopback(s))
    }
}

impl fmt::Display for ResolvConf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in &self.nameservers {
            writeln!(f, "nameserver {server}")?;
        }
        if !self.search.is_empty() {
            writeln!(f, "search {}", self.search.join(" "))?;
        }
        if !self.options.is_empty() {
            writeln!(f, "options {}", self.options.join(" "))?;
        }
        Ok(())
    }
}

/// The address of a name server without its zone.
pub(crate) fn address(server: &str) -> Option<IpAddr> {
    server.split('%').next().and_then(|a| a.parse().ok())
}

fn is_loopback(server: &str) -> bool {
    match address(server) {
        Some(IpAddr::V4(a)) => a.is_loopback(),
        Some(IpAddr::V6(a)) => a.is_loopback() || a.to_ipv4_mapped().is_some_and(|a| a.is_loopback()),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# made by hand\nsearch old.example\nnameserver 127.0.0.53\nnameserver 10.0.0.2 ; ours\n\
                        nameserver nonsense\nnameserver fe80::1%eth0\noptions edns0\noptions trust-ad\n\
                        search a.example b.example\n";

    #[test]
    fn reads_what_resolvers_read() {
        let conf = ResolvConf::parse(HOST);
        assert_eq!(conf.nameservers, ["127.0.0.53", "10.0.0.2", "fe80::1%eth0"]);
        assert_eq!(
            conf.without_loopback().to_string(),
            "nameserver 10.0.0.2\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions edns0 trust-ad\n"
        );
    }

    #[test]
    fn overrides_replace_only_what_they_name() {
        let by = Overrides { nameservers: vec!["127.0.0.1".parse().unwrap()], ..Overrides::default() };
        let conf = ResolvConf::parse(HOST).overridden(&by);
        assert_eq!(conf.nameservers, ["127.0.0.1"]);
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert!(conf.is_loopback_only());
    }

    #[test]
    fn never_invents_a_resolver() {
        let conf = ResolvConf::parse("nameserver ::1\nnameserver 127.0.0.1\n");
        assert!(conf.is_loopback_only());
        assert_eq!(conf.without_loopback().to_string(), "");
    }
}
