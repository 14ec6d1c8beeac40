//! Values of single options.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base::gotext::{parse_int, parse_uint, quote};
use base::{Failure, Kind, Platform};
use llb::build::ResolveMode;
use proto::pb;

use crate::convert::{BadPlatform, parse_platform};
use crate::dockerfile::instructions::csv;

type Opts = BTreeMap<String, String>;

fn bad(text: impl Into<String>) -> Failure {
    Failure::new(Kind::Unknown, text)
}

/// Options with a prefix, without it.
pub(super) fn with_prefix(opts: &Opts, prefix: &str) -> Opts {
    opts.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone()))).collect()
}

/// The value of an option; empty text counts as none.
pub(super) fn get<'a>(opts: &'a Opts, key: &str) -> Option<&'a str> {
    opts.get(key).map(String::as_str).filter(|v| !v.is_empty())
}

pub(super) fn platforms(text: &str) -> Result<Vec<Platform>, Failure> {
    text.split(',')
        .map(|p| {
            let parsed = parse_platform(p);
            let wrong =
                |e: BadPlatform| bad(e.to_string()).context(format!("failed to parse target platform {p}"));
            parsed.map(Platform::normalized).map_err(wrong)
        })
        .collect()
}

pub(super) fn resolve_mode(text: &str) -> Result<ResolveMode, Failure> {
    match text {
        "default" | "" => Ok(ResolveMode::Default),
        "pull" => Ok(ResolveMode::ForcePull),
        "local" => Ok(ResolveMode::PreferLocal),
        other => Err(bad(format!("invalid image-resolve-mode: {other}"))),
    }
}

pub(super) fn network(text: &str) -> Result<pb::NetMode, Failure> {
    match text {
        "" | "sandbox" => Ok(pb::NetMode::Unset),
        "none" => Ok(pb::NetMode::None),
        "host" => Ok(pb::NetMode::Host),
        other => Err(bad(format!("invalid netmode {other}"))),
    }
}

fn fields(text: &str) -> Result<Vec<String>, Failure> {
    csv::fields(text).map_err(|e| bad(e.to_string()))
}

pub(super) fn extra_hosts(text: &str) -> Result<Vec<(String, IpAddr)>, Failure> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    fields(text)?
        .into_iter()
        .map(|field| {
            let lower = field.to_lowercase();
            let (host, ip) =
                lower.split_once('=').ok_or_else(|| bad(format!("invalid key-value pair {field}")))?;
            let ip = ip.parse().map_err(|_| bad(format!("failed to parse IP {ip}")))?;
            Ok((host.to_owned(), ip))
        })
        .collect()
}

pub(super) fn shm_size(text: &str) -> Result<i64, Failure> {
    if text.is_empty() { Ok(0) } else { parse_int(text, 64).map_err(|e| bad(e.to_string())) }
}

pub(super) fn ulimits(text: &str) -> Result<Vec<pb::Ulimit>, Failure> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    fields(text)?.iter().map(|f| ulimit(f)).collect()
}

fn ulimit(text: &str) -> Result<pb::Ulimit, Failure> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let (name, limits) =
        text.split_once('=').ok_or_else(|| bad(format!("invalid ulimit argument: {text}")))?;
    if !NAMES.contains(&name) {
        return Err(bad(format!("invalid ulimit type: {name}")));
    }
    let number = |t: &str| parse_int(t, 64).map_err(|e| bad(e.to_string()));
    let parts: Vec<&str> = limits.split(':').collect();
    let (soft, hard) = match parts.as_slice() {
        [both] => (number(both)?, number(both)?),
        [soft, hard] => {
            let hard = number(hard)?;
            (number(soft)?, hard)
        }
        _ => {
            return Err(bad(format!(
                "too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
            )));
        }
    };
    if hard != -1 {
        let must = "ulimit soft limit must be less than or equal to hard limit";
        if soft == -1 {
            return Err(bad(format!("{must}: soft: -1 (unlimited), hard: {hard}")));
        }
        if soft > hard {
            return Err(bad(format!("{must}: {soft} > {hard}")));
        }
    }
    Ok(pb::Ulimit { name: name.to_owned(), soft, hard })
}

/// Limits of memory and processors; `None` when none is set.
pub(super) fn linux_resources(opts: &Opts) -> Result<Option<pb::LinuxResources>, Failure> {
    let positive = "must be > 0";
    let signed = |key: &str, ok: fn(i64) -> bool, must: &str| -> Result<i64, Failure> {
        let Some(text) = get(opts, key) else { return Ok(0) };
        let n = parse_int(text, 64)
            .map_err(|e| bad(e.to_string()).context(format!("invalid {key} value: {text}")))?;
        if ok(n) { Ok(n) } else { Err(bad(format!("invalid {key} value: {text}: {must}"))) }
    };
    let unsigned = |key: &str| -> Result<u64, Failure> {
        let Some(text) = get(opts, key) else { return Ok(0) };
        match parse_uint(text, 10, 64) {
            None => Err(bad(format!(
                "invalid {key} value: {text}: strconv.ParseUint: parsing {}: invalid syntax",
                quote(text)
            ))),
            Some(0) => Err(bad(format!("invalid {key} value: {text}: {positive}"))),
            Some(n) => Ok(n),
        }
    };
    let set = |key: &str| -> Result<String, Failure> {
        let text = get(opts, key).unwrap_or_default();
        cpu_set(text).map_err(|e| e.context(format!("invalid {key} value: {text}")))?;
        Ok(text.to_owned())
    };
    let resources = pb::LinuxResources {
        memory: signed("memory", |n| n > 0, positive)?,
        memory_swap: signed("memswap", |n| n == -1 || n > 0, "must be -1 (unlimited) or > 0")?,
        cpu_shares: unsigned("cpushares")?,
        cpu_period: unsigned("cpuperiod")?,
        cpu_quota: signed("cpuquota", |n| n > 0, positive)?,
        cpuset_cpus: set("cpusetcpus")?,
        cpuset_mems: set("cpusetmems")?,
    };
    Ok((resources != pb::LinuxResources::default()).then_some(resources))
}

/// Checks `0-3,5`.
fn cpu_set(text: &str) -> Result<(), Failure> {
    const MAX: i64 = 8192;
    let number = |t: &str| parse_int(t.trim(), 64).ok().filter(|n| *n >= 0);
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.split_once('-') {
            None => match number(part) {
                None => return Err(bad(format!("invalid cpuset element {}", quote(part)))),
                Some(n) if n > MAX => {
                    return Err(bad(format!("cpuset element {} exceeds maximum {MAX}", quote(part))));
                }
                Some(_) => {}
            },
            Some((low, high)) => match (number(low), number(high)) {
                (Some(low), Some(high)) if low <= high => {
                    if high > MAX {
                        return Err(bad(format!("cpuset range {} exceeds maximum {MAX}", quote(part))));
                    }
                }
                _ => return Err(bad(format!("invalid cpuset range {}", quote(part)))),
            },
        }
    }
    Ok(())
}

/// `attest:sbom=…` and their like, by kind: `sbom` or `provenance`.
///
/// # Errors
/// When there is no such kind, or its options are not read.
pub fn attestations(opts: &Opts) -> Result<BTreeMap<String, Opts>, Failure> {
    let mut found: BTreeMap<String, Opts> = BTreeMap::new();
    for (key, value) in opts {
        let Some(kind) =
            key.strip_prefix("attest:").or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_"))
        else {
            continue;
        };
        let kind = kind.to_lowercase();
        let mut attrs = Opts::new();
        match kind.as_str() {
            "sbom" => {
                attrs.insert("generator".to_owned(), "docker/buildkit-syft-scanner:stable-1".to_owned());
            }
            "provenance" => {
                attrs.insert("version".to_owned(), "v1".to_owned());
            }
            _ => return Err(bad(format!("unknown attestation type {}", quote(&kind)))),
        }
        if !value.is_empty() {
            let fields = fields(value).map_err(|e| e.context(format!("failed to parse {kind}")))?;
            for field in fields {
                let (key, value) = field.split_once('=').unwrap_or((&field, ""));
                attrs.insert(key.to_owned(), value.to_owned());
            }
        }
        found.insert(kind, attrs);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opts(pairs: &[(&str, &str)]) -> Opts {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn reads_limits() {
        assert_eq!(linux_resources(&Opts::new()).unwrap(), None);
        let set = linux_resources(&opts(&[("memory", "10"), ("memswap", "-1"), ("cpusetcpus", "0-3, 5")]));
        let set = set.unwrap().unwrap();
        assert_eq!((set.memory, set.memory_swap, set.cpuset_cpus.as_str()), (10, -1, "0-3, 5"));
        for (key, value) in [("memory", "0"), ("memswap", "0"), ("cpushares", "x"), ("cpusetmems", "9-1")] {
            assert!(linux_resources(&opts(&[(key, value)])).is_err(), "{key}={value}");
        }
        assert_eq!(ulimits("nofile=1:2,cpu=3").unwrap().len(), 2);
        assert!(ulimits("nofile=2:1").is_err() && ulimits("x=1").is_err());
    }

    #[test]
    fn reads_attestations() {
        let found = attestations(&opts(&[("attest:sbom", "generator=x,A=b")])).unwrap();
        assert_eq!(found["sbom"]["generator"], "x");
        assert!(attestations(&opts(&[("attest:other", "")])).is_err());
    }
}
