//! Links, addresses and routes.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use cni::Cidr;
use rustix::io::Errno;

use crate::netlink::{ACK, CREATE, DUMP, EXCL, Message, REPLACE, Socket, attribute, text_of, u32_at};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
pub(crate) const IFLA_LINKINFO: u16 = 18;
pub(crate) const IFLA_NET_NS_FD: u16 = 28;
const IFLA_CARRIER: u16 = 33;
const IFLA_CARRIER_CHANGES: u16 = 35;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// No search for others with the address: it is ours alone, and nobody waits.
const IFA_F_NODAD: u32 = 2;
/// No route to the network of the address.
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

pub(crate) const AF_BRIDGE: u8 = 7;
const IF_OPER_UNKNOWN: u8 = 0;
const IF_OPER_UP: u8 = 6;
const IFF_UP: u32 = 1;
const IFF_PROMISC: u32 = 0x100;
const IFF_ALLMULTI: u32 = 0x200;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Hardware address, `aa:bb:…`.
    pub mac: String,
    /// Largest packet.
    pub mtu: u32,
    /// What it is: `bridge`, `veth` …; empty for hardware.
    pub kind: String,
    /// The bridge it belongs to, or 0.
    pub master: u32,
    /// The other end of a pair, or the interface below; the number is that of its namespace. Or 0.
    pub peer: u32,
    /// It is set up.
    pub up: bool,
    /// Packets pass.
    pub works: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to; the whole family for a default route.
    pub dst: Cidr,
    /// Through which interface, or 0.
    pub link: u32,
}

/// A pair of connected interfaces.
pub struct Veth<'a> {
    /// Name on this side.
    pub name: &'a str,
    /// Name on the other.
    pub peer: &'a str,
    /// The namespace of the other.
    pub peer_netns: BorrowedFd<'a>,
    /// Hardware address of the other.
    pub peer_mac: Option<[u8; 6]>,
    /// Largest packet; zero = the kernel's default.
    pub mtu: u32,
    /// The bridge this side belongs to.
    pub master: u32,
}

/// A new route.
#[derive(Debug, Clone)]
pub struct NewRoute {
    /// Where to.
    pub dst: Cidr,
    /// Through whom; nobody = the link itself.
    pub gateway: Option<IpAddr>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// Largest TCP segment.
    pub advmss: Option<u32>,
    /// Lower is better.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// Scope; by default `link` without a gateway, `global` with one.
    pub scope: Option<u8>,
}

impl NewRoute {
    /// To a network on the link itself.
    pub fn direct(dst: Cidr) -> Self {
        Self { dst, gateway: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

pub(crate) fn header(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 2 } else { 10 }
}

fn address_of(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Reads `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().filter(|p| p.len() == 2)?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn format_mac(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    parts.join(":")
}

/// A link that has always had a carrier never gets a state, and works since it was set up.
fn works(attrs: &[u8]) -> bool {
    match attribute(attrs, IFLA_OPERSTATE) {
        Some(&[IF_OPER_UP]) => true,
        Some(&[IF_OPER_UNKNOWN]) => {
            attribute(attrs, IFLA_CARRIER) == Some(&[1])
                && attribute(attrs, IFLA_CARRIER_CHANGES) == Some(&[0; 4])
        }
        _ => false,
    }
}

fn read_link(body: &[u8]) -> Option<Link> {
    let attrs = body.get(16..)?;
    let info = attribute(attrs, IFLA_LINKINFO).unwrap_or_default();
    Some(Link {
        index: u32_at(body, 4)?,
        up: u32_at(body, 8)? & IFF_UP != 0,
        works: works(attrs),
        name: attribute(attrs, IFLA_IFNAME).map(text_of).unwrap_or_default(),
        mac: attribute(attrs, IFLA_ADDRESS).map(format_mac).unwrap_or_default(),
        mtu: attribute(attrs, IFLA_MTU).and_then(|v| u32_at(v, 0)).unwrap_or_default(),
        kind: attribute(info, IFLA_INFO_KIND).map(text_of).unwrap_or_default(),
        peer: attribute(attrs, IFLA_LINK).and_then(|v| u32_at(v, 0)).unwrap_or_default(),
        master: attribute(attrs, IFLA_MASTER).and_then(|v| u32_at(v, 0)).unwrap_or_default(),
    })
}

impl Socket {
    /// The link of a name, if there is one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Errno> {
        let mut message = Message::new(RTM_GETLINK, ACK, &header(0, 0, 0, 0));
        message.text(IFLA_IFNAME, name);
        match self.request(message) {
            Ok(answers) => Ok(answers.first().and_then(|body| read_link(body))),
            Err(Errno::NODEV | Errno::NOENT) => Ok(None),
            // The kernel takes no name this long.
            Err(Errno::RANGE | Errno::INVAL) if name.len() > 15 => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All links.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn links(&mut self) -> Result<Vec<Link>, Errno> {
        let answers = self.request(Message::new(RTM_GETLINK, DUMP, &header(0, 0, 0, 0)))?;
        Ok(answers.iter().filter_map(|body| read_link(body)).collect())
    }

    /// Makes a link of a kind without further settings, such as `bridge` or `dummy`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn create(&mut self, name: &str, kind: &str, mtu: u32) -> Result<(), Errno> {
        let mut message = Message::new(RTM_NEWLINK, ACK | CREATE | EXCL, &header(0, 0, 0, 0));
        message.text(IFLA_IFNAME, name);
        if mtu > 0 {
            message.u32(IFLA_MTU, mtu);
        }
        message.nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, kind);
        });
        self.request(message).map(drop)
    }

    /// Makes a pair of links, the other side at once in its namespace: to move it there
    /// later takes the kernel twenty times as long.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<(), Errno> {
        let mut message = Message::new(RTM_NEWLINK, ACK | CREATE | EXCL, &header(0, 0, IFF_UP, IFF_UP));
        message.text(IFLA_IFNAME, veth.name);
        if veth.mtu > 0 {
            message.u32(IFLA_MTU, veth.mtu);
        }
        if veth.master > 0 {
            message.u32(IFLA_MASTER, veth.master);
        }
        let netns = veth.peer_netns.as_raw_fd().cast_unsigned();
        message.nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&header(0, 0, 0, 0)).text(IFLA_IFNAME, veth.peer);
                    if veth.mtu > 0 {
                        m.u32(IFLA_MTU, veth.mtu);
                    }
                    if let Some(mac) = &veth.peer_mac {
                        m.attr(IFLA_ADDRESS, mac);
                    }
                    m.u32(IFLA_NET_NS_FD, netns);
                });
            });
        });
        self.request(message).map(drop)
    }

    /// Removes a link. A missing one is fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn delete(&mut self, name: &str) -> Result<(), Errno> {
        let Some(link) = self.link(name)? else { return Ok(()) };
        match self.request(Message::new(RTM_DELLINK, ACK, &header(0, link.index, 0, 0))) {
            Err(Errno::NODEV) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_up(&mut self, index: u32) -> Result<(), Errno> {
        self.set_flags(index, IFF_UP, true)
    }

    /// Sets a link to hear everything, or not.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_promiscuous(&mut self, index: u32, on: bool) -> Result<(), Errno> {
        self.set_flags(index, IFF_PROMISC, on)
    }

    /// Sets a link to hear all multicasts, or not.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_all_multicast(&mut self, index: u32, on: bool) -> Result<(), Errno> {
        self.set_flags(index, IFF_ALLMULTI, on)
    }

    fn set_flags(&mut self, index: u32, flag: u32, on: bool) -> Result<(), Errno> {
        let flags = if on { flag } else { 0 };
        self.request(Message::new(RTM_SETLINK, ACK, &header(0, index, flags, flag))).map(drop)
    }

    /// Sets the largest packet.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Errno> {
        let mut message = Message::new(RTM_SETLINK, ACK, &header(0, index, 0, 0));
        message.u32(IFLA_MTU, mtu);
        self.request(message).map(drop)
    }

    /// Sets the length of the queue for sending.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_queue_length(&mut self, index: u32, length: u32) -> Result<(), Errno> {
        let mut message = Message::new(RTM_SETLINK, ACK, &header(0, index, 0, 0));
        message.u32(IFLA_TXQLEN, length);
        self.request(message).map(drop)
    }

    /// Sets the hardware address.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> Result<(), Errno> {
        let mut message = Message::new(RTM_SETLINK, ACK, &header(0, index, 0, 0));
        message.attr(IFLA_ADDRESS, &mac);
        self.request(message).map(drop)
    }

    /// Sets how a bridge treats one of its ports: whether frames may leave by the port they
    /// came from, and whether isolated ports see each other.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_port(&mut self, index: u32, hairpin: bool, isolated: bool) -> Result<(), Errno> {
        let mut message = Message::new(RTM_SETLINK, ACK, &header(AF_BRIDGE, index, 0, 0));
        message.nest(IFLA_PROTINFO, |m| {
            m.attr(IFLA_BRPORT_MODE, &[hairpin.into()]);
            if isolated {
                m.attr(IFLA_BRPORT_ISOLATED, &[1]);
            }
        });
        self.request(message).map(drop)
    }

    /// Gives a link an address. One that it has is fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add_address(&mut self, index: u32, address: Cidr) -> Result<(), Errno> {
        self.new_address(index, address, 0)
    }

    /// As [`Self::add_address`], without a route to the address's network.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add_address_alone(&mut self, index: u32, address: Cidr) -> Result<(), Errno> {
        self.new_address(index, address, IFA_F_NOPREFIXROUTE)
    }

    fn new_address(&mut self, index: u32, address: Cidr, flags: u32) -> Result<(), Errno> {
        let mut fixed = [family(address.addr), address.prefix, 0, 0, 0, 0, 0, 0];
        fixed[4..].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, ACK | CREATE | EXCL, &fixed);
        let bytes = octets(address.addr);
        message.attr(IFA_LOCAL, &bytes).attr(IFA_ADDRESS, &bytes);
        if address.addr.is_ipv4() && address.prefix < 31 {
            message.attr(IFA_BROADCAST, &octets(address.last()));
        }
        let flags = flags | if address.addr.is_ipv6() { IFA_F_NODAD } else { 0 };
        if flags != 0 {
            message.u32(IFA_FLAGS, flags);
        }
        match self.request(message) {
            Err(Errno::EXIST) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The addresses of all links: number of the link, address.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn addresses(&mut self) -> Result<Vec<(u32, Cidr)>, Errno> {
        let answers = self.request(Message::new(RTM_GETADDR, DUMP, &[0; 8]))?;
        Ok(answers
            .iter()
            .filter_map(|body| {
                let attrs = body.get(8..)?;
                let value = attribute(attrs, IFA_LOCAL).or_else(|| attribute(attrs, IFA_ADDRESS))?;
                Some((u32_at(body, 4)?, Cidr::new(address_of(value)?, *body.get(1)?)?))
            })
            .collect())
    }

    /// Adds a route, in place of one to the same place.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add_route(&mut self, link: u32, route: &NewRoute) -> Result<(), Errno> {
        const TABLE_MAIN: u32 = 254;
        const PROTOCOL_STATIC: u8 = 4;
        const SCOPE_LINK: u8 = 253;
        const UNICAST: u8 = 1;
        let table = route.table.unwrap_or(TABLE_MAIN);
        let by_gateway = if route.gateway.is_some() { 0 } else { SCOPE_LINK };
        let scope = route.scope.unwrap_or(by_gateway);
        let dst = route.dst.network();
        let fixed = [
            family(dst.addr),
            dst.prefix,
            0,
            0,
            u8::try_from(table).unwrap_or_default(),
            PROTOCOL_STATIC,
            scope,
            UNICAST,
            0,
            0,
            0,
            0,
        ];
        let mut message = Message::new(RTM_NEWROUTE, ACK | CREATE | REPLACE, &fixed);
        if dst.prefix > 0 {
            message.attr(RTA_DST, &octets(dst.addr));
        }
        if let Some(gateway) = route.gateway {
            message.attr(RTA_GATEWAY, &octets(gateway));
        }
        message.u32(RTA_OIF, link).u32(RTA_TABLE, table);
        if let Some(priority) = route.priority {
            message.u32(RTA_PRIORITY, priority);
        }
        if route.mtu.is_some() || route.advmss.is_some() {
            message.nest(RTA_METRICS, |m| {
                if let Some(mtu) = route.mtu {
                    m.u32(RTAX_MTU, mtu);
                }
                if let Some(advmss) = route.advmss {
                    m.u32(RTAX_ADVMSS, advmss);
                }
            });
        }
        self.request(message).map(drop)
    }

    /// The routes of all tables, both families.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn routes(&mut self) -> Result<Vec<Route>, Errno> {
        let answers = self.request(Message::new(RTM_GETROUTE, DUMP, &[0; 12]))?;
        Ok(answers
            .iter()
            .filter_map(|body| {
                let attrs = body.get(12..)?;
                let any: IpAddr = match body.first()? {
                    2 => [0; 4].into(),
                    10 => [0; 16].into(),
                    _ => return None,
                };
                let addr = attribute(attrs, RTA_DST).and_then(address_of).unwrap_or(any);
                Some(Route {
                    dst: Cidr::new(addr, *body.get(1)?)?,
                    link: attribute(attrs, RTA_OIF).and_then(|v| u32_at(v, 0)).unwrap_or_default(),
                })
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses() {
        assert_eq!(
            parse_mac("02:00:5e:10:00:ff").map(|m| format_mac(&m)).as_deref(),
            Some("02:00:5e:10:00:ff")
        );
        for bad in ["", "02:00:5e:10:00", "02:00:5e:10:00:ff:00", "2:0:5e:10:0:f", "zz:00:5e:10:00:ff"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
