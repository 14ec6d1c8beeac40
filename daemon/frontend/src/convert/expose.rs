//! `EXPOSE`: ports, ranges and what should not be there.

use std::net::IpAddr;

use base::gotext::{parse_int, quote};

use super::error::{Failed, Result};
use crate::dockerfile::Lines;
use crate::dockerfile::lint::{Linter, Violation};

/// Every port of every protocol, and then some: ranges that repeat each other
/// fill memory.
const MAX_PORTS: usize = 4 * 65_536;

/// `port/protocol` of every port in `[ip:]public:private/protocol`.
pub(super) fn ports(words: &[String], lines: Lines, lint: &Linter) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for word in words {
        all.extend(port(word, lines, lint)?);
        if all.len() > MAX_PORTS {
            return Err(Failed::new(format!("EXPOSE of more than {MAX_PORTS} ports")));
        }
    }
    Ok(all)
}

fn port(word: &str, lines: Lines, lint: &Linter) -> Result<Vec<String>> {
    let mut parts = word.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let host = parts.next().unwrap_or_default();
    let ip = parts.next().unwrap_or_default();
    let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
    let invalid = |why: String| Failed::new(format!("invalid port: {}: {why}", quote(word)));
    if container.is_empty() {
        return Err(invalid("no port specified".to_owned()));
    }
    let protocol = if protocol.is_empty() { "tcp" } else { protocol };
    let lower = protocol.to_lowercase();
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err(invalid(format!("invalid proto: {protocol}")));
    }
    if lower != protocol {
        lint.report(lines, &Violation::ExposeProtoCasing { port: word.to_owned() });
    }
    if !ip.is_empty() || !host.is_empty() {
        lint.report(lines, &Violation::ExposeInvalidFormat { port: word.to_owned() });
    }
    check_ip(ip)?;
    let (first, last) =
        range(container).ok_or_else(|| Failed::new(format!("invalid containerPort: {container}")))?;
    if !host.is_empty() {
        let (low, high) = range(host).ok_or_else(|| Failed::new(format!("invalid hostPort: {host}")))?;
        // A range of the host may stand for one port of the container.
        if last - first != high - low && first != last {
            return Err(Failed::new(format!(
                "invalid ranges specified for container and host Ports: {container} and {host}"
            )));
        }
    }
    Ok((first..=last).map(|p| format!("{p}/{lower}")).collect())
}

fn check_ip(ip: &str) -> Result<()> {
    let bare = match ip.strip_prefix('[') {
        Some(rest) => match rest.strip_suffix(']') {
            Some(bare) => bare,
            None => {
                return Err(Failed::new(format!(
                    "invalid IP address {ip}: address {ip}:: missing ']' in address"
                )));
            }
        },
        None => ip,
    };
    if bare.is_empty() || bare.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(Failed::new(format!("invalid IP address: {bare}")))
}

fn range(text: &str) -> Option<(i64, i64)> {
    let number = |t: &str| parse_int(t, 64).ok().filter(|n| (0..=65535).contains(n));
    match text.split_once('-') {
        None => number(text).map(|n| (n, n)),
        Some((first, last)) if first == last => number(first).map(|n| (n, n)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some((first, last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ports() {
        let read = |w: &str| port(w, Lines::default(), &Linter::off()).map_err(|e| e.failure.to_string());
        assert_eq!(read("80").unwrap(), ["80/tcp"]);
        assert_eq!(read("80-82/UDP").unwrap(), ["80/udp", "81/udp", "82/udp"]);
        assert_eq!(read("127.0.0.1:8080:80").unwrap(), ["80/tcp"]);
        assert_eq!(read("[::1]:8080:80").unwrap(), ["80/tcp"]);
        assert_eq!(read("8000-8010:80").unwrap(), ["80/tcp"]);
        assert_eq!(read("80/x").unwrap_err(), "invalid port: \"80/x\": invalid proto: x");
        assert_eq!(read("70000").unwrap_err(), "invalid containerPort: 70000");
        assert!(read("/tcp").is_err() && read("1-3:5").is_ok() && read("1-3:1-2").is_err());
    }
}
