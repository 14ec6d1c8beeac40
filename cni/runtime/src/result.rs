//! What plugins answer: interfaces, addresses, routes, name servers.
//!
//! In memory a result has everything that version 1.1.0 knows. What older versions
//! lack is left out when it is written for them, and the address family, which they
//! want spelled out, is put in.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::error::{Code, PluginError};

/// Versions of the specification that are spoken, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// An address and the length of its network's prefix, or a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// The address.
    pub addr: IpAddr,
    /// Bits of it that name the network; not more than it has.
    pub prefix: u8,
}

impl Cidr {
    /// `None` when the prefix is longer than the address.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= bits(addr)).then_some(Self { addr, prefix })
    }

    /// The address as a number, in the upper bits for IPv4 too.
    fn number(addr: IpAddr) -> u128 {
        match addr {
            IpAddr::V4(a) => u128::from(a.to_bits()) << 96,
            IpAddr::V6(a) => a.to_bits(),
        }
    }

    fn mask(self) -> u128 {
        if self.prefix == 0 { 0 } else { u128::MAX << (128 - u32::from(self.prefix)) }
    }

    /// The network's first address, with the prefix.
    #[must_use]
    pub fn network(self) -> Self {
        let number = Self::number(self.addr) & self.mask();
        Self { addr: self.like(number), prefix: self.prefix }
    }

    /// The `n`th address of the network, if it has as many.
    pub fn nth(self, n: u128) -> Option<IpAddr> {
        let n = if self.addr.is_ipv4() { n.checked_mul(1 << 96)? } else { n };
        if n & self.mask() != 0 {
            return None;
        }
        Some(self.like(Self::number(self.addr) & self.mask() | n))
    }

    /// How many addresses the network has, as far as can be counted.
    pub fn size(self) -> u128 {
        1_u128.checked_shl(u32::from(bits(self.addr) - self.prefix)).unwrap_or(u128::MAX)
    }

    /// The network's last address.
    pub fn last(self) -> IpAddr {
        let v4 = if self.addr.is_ipv4() { u128::MAX << 96 } else { u128::MAX };
        self.like(Self::number(self.addr) | (!self.mask() & v4))
    }

    /// The address is in this network.
    pub fn contains(self, addr: IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4()
            && (Self::number(self.addr) ^ Self::number(addr)) & self.mask() == 0
    }

    /// The two networks have addresses in common.
    pub fn overlaps(self, other: Self) -> bool {
        if self.prefix <= other.prefix { self.contains(other.addr) } else { other.contains(self.addr) }
    }

    /// An address of the same family.
    fn like(self, number: u128) -> IpAddr {
        match self.addr {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(number >> 96).unwrap_or_default().into()),
            IpAddr::V6(_) => IpAddr::V6(number.into()),
        }
    }
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// A text is no address with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with a prefix, such as 10.0.0.1/24")]
pub struct NoCidr(String);

impl FromStr for Cidr {
    type Err = NoCidr;

    fn from_str(text: &str) -> Result<Self, NoCidr> {
        text.split_once('/')
            .and_then(|(addr, prefix)| Self::new(addr.parse().ok()?, prefix.parse().ok()?))
            .ok_or_else(|| NoCidr(text.into()))
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a network gave to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkResult {
    /// Version of the specification.
    #[serde(default)]
    pub cni_version: String,
    /// Interfaces that were made, on both sides.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub ips: Vec<Address>,
    /// Routes in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub routes: Vec<Route>,
    /// Name servers.
    #[serde(default, deserialize_with = "or_default")]
    pub dns: Dns,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Largest packet in bytes. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace it is in; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket that stands for it. Since 1.1.0.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The device behind it. Since 1.1.0.
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Index into the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with its prefix.
    pub address: Cidr,
    /// The gateway of its network.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: Cidr,
    /// Through whom; nobody = the interface's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gw: Option<IpAddr>,
    /// Largest packet. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest TCP segment. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Lower is better. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Settings of the resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub options: Vec<String>,
}

/// `null` is like nothing: plugins written in Go print it for empty lists.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

fn empty_is_none<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(d)? {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

impl NetworkResult {
    /// Reads a result of any version that is spoken.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn read(value: Value) -> Result<Self, PluginError> {
        let result: Self = serde_json::from_value(value)
            .map_err(|e| PluginError::new(Code::Decode, format!("result: {e}")))?;
        check_version(&result.cni_version)?;
        Ok(result)
    }

    /// Writes the result as `version` has it.
    ///
    /// # Errors
    /// When the version is not spoken.
    pub fn write(&self, version: &str) -> Result<Value, PluginError> {
        let rank = check_version(version)?;
        let mut result = self.clone();
        version.clone_into(&mut result.cni_version);
        if rank < 4 {
            for interface in &mut result.interfaces {
                (interface.mtu, interface.socket_path, interface.pci_id) =
                    (None, String::new(), String::new());
            }
            for route in &mut result.routes {
                *route = Route {
                    dst: route.dst,
                    gw: route.gw,
                    mtu: None,
                    advmss: None,
                    priority: None,
                    table: None,
                    scope: None,
                };
            }
        }
        let mut value =
            serde_json::to_value(&result).map_err(|e| PluginError::new(Code::Decode, e.to_string()))?;
        if rank < 3
            && let Some(ips) = value.get_mut("ips").and_then(Value::as_array_mut)
        {
            for (ip, address) in ips.iter_mut().zip(&result.ips) {
                if let Some(ip) = ip.as_object_mut() {
                    let family = if address.address.addr.is_ipv4() { "4" } else { "6" };
                    ip.insert("version".into(), family.into());
                }
            }
        }
        Ok(value)
    }
}

/// The place of a version among those that are spoken.
///
/// # Errors
/// When it is not among them.
pub fn check_version(version: &str) -> Result<usize, PluginError> {
    VERSIONS.iter().position(|v| *v == version).ok_or_else(|| PluginError {
        details: format!("config is {version:?}, plugin supports {VERSIONS:?}"),
        ..PluginError::new(Code::IncompatibleVersion, "incompatible CNI versions")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn networks_are_arithmetic() {
        let net: Cidr = "10.1.2.3/20".parse().unwrap();
        assert_eq!(net.network().to_string(), "10.1.0.0/20");
        assert_eq!(net.last().to_string(), "10.1.15.255");
        assert_eq!((net.size(), net.nth(5).unwrap().to_string()), (4096, "10.1.0.5".into()));
        assert_eq!(net.nth(4096), None);
        assert!(net.contains("10.1.15.1".parse().unwrap()) && !net.contains("10.1.16.0".parse().unwrap()));
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.overlaps(net) && net.overlaps(all));
        assert!(!net.overlaps("fd00::/8".parse().unwrap()));
        let six: Cidr = "fd00:1::5/64".parse().unwrap();
        assert_eq!(six.last().to_string(), "fd00:1::ffff:ffff:ffff:ffff");
        for bad in ["10.0.0.0/33", "10.0.0.0", "x/8", "::/129", "1.2.3.4/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_version_gets_its_own_form() {
        let old = json!({
            "cniVersion": "0.4.0", "interfaces": null,
            "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64", "gateway": ""}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": null},
        });
        let mut result = NetworkResult::read(old).unwrap();
        result.routes[0].mtu = Some(1400);
        result.interfaces.push(Interface { name: "eth0".into(), mtu: Some(9000), ..Interface::default() });
        let new = result.write("1.1.0").unwrap();
        assert_eq!(new["routes"][0]["mtu"], 1400);
        assert_eq!(new["ips"][0].get("version"), None);
        let middle = result.write("1.0.0").unwrap();
        assert_eq!((middle["routes"][0].get("mtu"), middle["interfaces"][0].get("mtu")), (None, None));
        let old = result.write("0.3.1").unwrap();
        assert_eq!((&old["ips"][0]["version"], &old["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert!(result.write("0.2.0").is_err());
    }
}
