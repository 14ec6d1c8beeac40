//! `bandwidth`: limits to how much a container receives and sends.
//!
//! What it receives leaves the host by the host's end of its pair of interfaces, and is held
//! back there. What it sends is led through a device of its own, `bwp…`, which holds it back.

use cni::{Call, Code, Command, NetworkResult, Plugin, PluginError};
use serde::Deserialize;

use crate::conf::{chained, failed, failed_sys, netns, network, previous, read};
use crate::container::{existing, interface, open};
use crate::devices::Limit;
use crate::link::Link;
use crate::netlink::Socket;

pub(crate) struct Bandwidth;

/// Bits in a second, and bits.
#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct Rates {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Conf {
    #[serde(flatten)]
    rates: Rates,
    runtime_config: Runtime,
    shaped_subnets: Vec<String>,
    unshaped_subnets: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Runtime {
    bandwidth: Option<Rates>,
}

struct Limits {
    to_container: Option<Limit>,
    from_container: Option<Limit>,
}

impl Conf {
    /// What the file says goes before what the runtime says, as it does in the plugin everyone
    /// knows.
    fn limits(&self) -> Result<Limits, PluginError> {
        if !self.shaped_subnets.is_empty() || !self.unshaped_subnets.is_empty() {
            let text = "bandwidth: shapedSubnets and unshapedSubnets are not supported";
            return Err(PluginError::new(Code::UnsupportedField, text));
        }
        let rates = match self.runtime_config.bandwidth {
            Some(said) if self.rates == Rates::default() => said,
            _ => self.rates,
        };
        Ok(Limits {
            to_container: limit("ingress", rates.ingress_rate, rates.ingress_burst)?,
            from_container: limit("egress", rates.egress_rate, rates.egress_burst)?,
        })
    }
}

fn limit(which: &str, rate: u64, burst: u64) -> Result<Option<Limit>, PluginError> {
    let invalid = |what: &str| PluginError::new(Code::InvalidConfig, format!("bandwidth: {which}{what}"));
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err(invalid("Burst is set, its rate is not")),
        (_, 0) => Err(invalid("Rate is set, its burst is not")),
        (..8, _) | (_, ..8) => Err(invalid("Rate and burst are at least 8 bits")),
        _ => {
            let burst = u32::try_from(burst / 8).ok().filter(|b| *b <= u32::MAX / 8);
            let burst = burst.ok_or_else(|| invalid("Burst is more than 4 GB"))?;
            Ok(Some(Limit { rate: rate / 8, burst }))
        }
    }
}

/// Name of the device for what the container sends; the same at DEL as at ADD.
fn device(call: &Call<'_>) -> String {
    let attachment = call.attachment;
    let of = format!("{}\n{}\n{}", network(call), attachment.container_id, attachment.ifname);
    let digest = base::Digest::of(of.as_bytes());
    format!("bwp{}", digest.hex().chars().take(12).collect::<String>())
}

impl Plugin for Bandwidth {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        match call.command {
            Command::Add => {
                let limits = read::<Conf>(call)?.limits()?;
                let mut result = chained(call, "bandwidth")?;
                if limits.to_container.is_none() && limits.from_container.is_none() {
                    return Ok(Some(result));
                }
                match shape(call, &limits, &mut result) {
                    Ok(()) => Ok(Some(result)),
                    Err(e) => {
                        if let Err(undo) = open().and_then(|mut host| remove(&mut host, call)) {
                            tracing::warn!(error = %undo, "remove half-made limits");
                        }
                        Err(e)
                    }
                }
            }
            // The limit on the pair goes with the pair.
            Command::Del => remove(&mut open()?, call).map(|()| None),
            Command::Check => check(call).map(|()| None),
            _ => Ok(None),
        }
    }
}

fn remove(host: &mut Socket, call: &Call<'_>) -> Result<(), PluginError> {
    host.delete(&device(call)).map_err(failed("remove device for limits"))
}

/// The host's end of the container's pair of interfaces.
fn host_end(host: &mut Socket, call: &Call<'_>, result: &NetworkResult) -> Result<Link, PluginError> {
    let ifname = &call.attachment.ifname;
    let other = netns(call)?.run(|| existing(&mut open()?, ifname)).map_err(failed_sys)??.peer;
    let links = host.links().map_err(failed("list links"))?;
    let named = |link: &Link| result.interfaces.iter().any(|i| i.sandbox.is_empty() && i.name == link.name);
    links.into_iter().find(|l| l.index == other && l.kind == "veth" && named(l)).ok_or_else(|| {
        let text = format!("bandwidth: interface {ifname} has no other end on the host");
        PluginError::new(Code::InvalidConfig, text)
    })
}

fn shape(call: &Call<'_>, limits: &Limits, result: &mut NetworkResult) -> Result<(), PluginError> {
    let mut host = open()?;
    let end = host_end(&mut host, call, result)?;
    if let Some(limit) = limits.to_container {
        host.limit(end.index, limit).map_err(failed("limit what the container receives"))?;
    }
    if let Some(limit) = limits.from_container {
        let name = device(call);
        host.create(&name, "ifb", end.mtu).map_err(failed(&format!("create device {name}")))?;
        let device = existing(&mut host, &name)?;
        host.set_up(device.index).map_err(failed("set device for limits up"))?;
        host.divert(end.index, device.index).map_err(failed("divert what the container sends"))?;
        host.limit(device.index, limit).map_err(failed("limit what the container sends"))?;
        let device = existing(&mut host, &name)?;
        result.interfaces.push(interface(&device, std::path::Path::new("")));
    }
    Ok(())
}

fn check(call: &Call<'_>) -> Result<(), PluginError> {
    let limits = read::<Conf>(call)?.limits()?;
    let result = previous(call)?.unwrap_or_default();
    let mut host = open()?;
    let mut limited = |link: Link| -> Result<(), PluginError> {
        if host.is_limited(link.index).map_err(failed("list limits"))? {
            return Ok(());
        }
        Err(PluginError::other(format!("interface {} has lost its limit", link.name)))
    };
    let mut other = open()?;
    if limits.to_container.is_some() {
        limited(host_end(&mut other, call, &result)?)?;
    }
    if limits.from_container.is_some() {
        limited(existing(&mut other, &device(call))?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_whole_or_refused() {
        let read = |text: &str| serde_json::from_str::<Conf>(text).unwrap().limits();
        let both = read(r#"{"ingressRate":8000,"ingressBurst":16000,"egressRate":800,"egressBurst":80}"#);
        let both = both.unwrap();
        assert_eq!(both.to_container, Some(Limit { rate: 1000, burst: 2000 }));
        assert_eq!(both.from_container, Some(Limit { rate: 100, burst: 10 }));
        let runtime = r#"{"runtimeConfig":{"bandwidth":{"egressRate":80,"egressBurst":80}}}"#;
        let runtime = read(runtime).unwrap();
        assert_eq!((runtime.to_container, runtime.from_container.is_some()), (None, true));
        let both = r#"{"ingressRate":8,"ingressBurst":8,
            "runtimeConfig":{"bandwidth":{"egressRate":80,"egressBurst":80}}}"#;
        let both = read(both).unwrap();
        assert_eq!((both.to_container.is_some(), both.from_container), (true, None));
        for bad in [
            r#"{"ingressRate":8000}"#,
            r#"{"egressBurst":8000}"#,
            r#"{"egressBurst":8000,"egressRate":7}"#,
            r#"{"egressRate":8000,"egressBurst":99999999999999}"#,
            r#"{"unshapedSubnets":["10.0.0.0/8"]}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
