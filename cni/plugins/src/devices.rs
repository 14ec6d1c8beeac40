//! Links with settings of their own kind: stations on an interface, bridges that know
//! VLANs, and limits to how fast a link sends.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::link::{
    AF_BRIDGE, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINKINFO, IFLA_MTU,
    IFLA_NET_NS_FD, RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK, header,
};
use crate::netlink::{ACK, CREATE, DUMP, EXCL, Message, REPLACE, Socket, attribute, text_of, u32_at};

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// Handle of the queue for what leaves a link, and of the place where what arrives can be seen.
const ROOT: (u32, u32) = (0xffff_ffff, 0x0001_0000);
const INGRESS: (u32, u32) = (0xffff_fff1, 0xffff_0000);

/// A kind of station, with the kernel's numbers for its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lan {
    /// With a hardware address of its own.
    Macvlan { mode: u32, broadcast_queue: Option<u32> },
    /// With that of the interface below.
    Ipvlan { mode: u16 },
}

/// A station on an interface.
pub(crate) struct NewLan<'a> {
    pub(crate) name: &'a str,
    /// The namespace it is to be in.
    pub(crate) netns: BorrowedFd<'a>,
    /// The interface it is on, in the socket's namespace.
    pub(crate) master: u32,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) kind: Lan,
}

/// A limit to how fast a link sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Bytes in a second.
    pub(crate) rate: u64,
    /// Bytes that may be sent at once after a pause.
    pub(crate) burst: u32,
}

impl Limit {
    /// Bytes that wait at most: what 25 ms of it take, and a burst.
    fn waiting(self) -> u32 {
        u32::try_from(self.rate / 40).unwrap_or(u32::MAX).saturating_add(self.burst)
    }
}

impl Socket {
    /// Makes a station, at once in its namespace.
    pub(crate) fn create_lan(&mut self, lan: &NewLan<'_>) -> Result<(), Errno> {
        let mut message = Message::new(RTM_NEWLINK, ACK | CREATE | EXCL, &header(0, 0, 0, 0));
        message.text(IFLA_IFNAME, lan.name).u32(IFLA_LINK, lan.master).u32(IFLA_MTU, lan.mtu);
        message.u32(IFLA_NET_NS_FD, lan.netns.as_raw_fd().cast_unsigned());
        if let Some(mac) = &lan.mac {
            message.attr(IFLA_ADDRESS, mac);
        }
        message.nest(IFLA_LINKINFO, |m| match lan.kind {
            Lan::Macvlan { mode, broadcast_queue } => {
                const MODE: u16 = 1;
                const BROADCAST_QUEUE: u16 = 7;
                m.text(IFLA_INFO_KIND, "macvlan").nest(IFLA_INFO_DATA, |m| {
                    m.u32(MODE, mode);
                    if let Some(length) = broadcast_queue {
                        m.u32(BROADCAST_QUEUE, length);
                    }
                });
            }
            Lan::Ipvlan { mode } => {
                const MODE: u16 = 1;
                m.text(IFLA_INFO_KIND, "ipvlan").nest(IFLA_INFO_DATA, |m| {
                    m.attr(MODE, &mode.to_ne_bytes());
                });
            }
        });
        self.request(message).map(drop)
    }

    /// Makes a bridge whose ports are in VLANs.
    pub(crate) fn create_vlan_bridge(&mut self, name: &str, mtu: u32) -> Result<(), Errno> {
        let mut message = Message::new(RTM_NEWLINK, ACK | CREATE | EXCL, &header(0, 0, 0, 0));
        message.text(IFLA_IFNAME, name);
        if mtu > 0 {
            message.u32(IFLA_MTU, mtu);
        }
        message.nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "bridge");
            filtering(m);
        });
        self.request(message).map(drop)
    }

    /// Has a bridge that exists keep VLANs apart.
    pub(crate) fn filter_vlans(&mut self, bridge: u32) -> Result<(), Errno> {
        let mut message = Message::new(RTM_NEWLINK, ACK, &header(0, bridge, 0, 0));
        message.nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "bridge");
            filtering(m);
        });
        self.request(message).map(drop)
    }

    /// Puts a port of a bridge into a VLAN: `untagged` as its own, of which the other side
    /// knows nothing, else as one of several whose packets say which.
    pub(crate) fn join_vlan(&mut self, port: u32, vlan: u16, untagged: bool) -> Result<(), Errno> {
        const OWN_AND_UNTAGGED: u16 = 2 | 4;
        self.port_vlan(RTM_SETLINK, port, vlan, if untagged { OWN_AND_UNTAGGED } else { 0 })
    }

    /// Takes a port of a bridge out of a VLAN.
    pub(crate) fn leave_vlan(&mut self, port: u32, vlan: u16) -> Result<(), Errno> {
        self.port_vlan(RTM_DELLINK, port, vlan, 0)
    }

    fn port_vlan(&mut self, kind: u16, port: u32, vlan: u16, flags: u16) -> Result<(), Errno> {
        const IFLA_AF_SPEC: u16 = 26;
        const VLAN_INFO: u16 = 2;
        let mut message = Message::new(kind, ACK, &header(AF_BRIDGE, port, 0, 0));
        message.nest(IFLA_AF_SPEC, |m| {
            let mut info = flags.to_ne_bytes().to_vec();
            info.extend(vlan.to_ne_bytes());
            m.attr(VLAN_INFO, &info);
        });
        self.request(message).map(drop)
    }

    /// Limits how fast a link sends.
    pub(crate) fn limit(&mut self, link: u32, limit: Limit) -> Result<(), Errno> {
        const PARAMETERS: u16 = 1;
        const RATE64: u16 = 4;
        const BURST: u16 = 6;
        const ETHERNET: u8 = 1;
        let mut message = Message::new(RTM_NEWQDISC, ACK | CREATE | REPLACE, &queue(link, ROOT.1, ROOT.0, 0));
        message.text(TCA_KIND, "tbf").nest(TCA_OPTIONS, |m| {
            // Two rates of 12 bytes of which the second is not used, then limit, buffer and
            // largest packet. The buffer in ticks is replaced by the burst in bytes.
            let mut parameters = [0; 36];
            parameters[1] = ETHERNET;
            let rate = u32::try_from(limit.rate).unwrap_or(u32::MAX);
            parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
            parameters[24..28].copy_from_slice(&limit.waiting().to_ne_bytes());
            m.attr(PARAMETERS, &parameters);
            if u32::try_from(limit.rate).is_err() {
                m.attr(RATE64, &limit.rate.to_ne_bytes());
            }
            m.u32(BURST, limit.burst);
        });
        self.request(message).map(drop)
    }

    /// The link has a limit.
    pub(crate) fn is_limited(&mut self, link: u32) -> Result<bool, Errno> {
        let answers = self.request(Message::new(RTM_GETQDISC, DUMP, &queue(link, 0, 0, 0)))?;
        Ok(answers.iter().any(|body| {
            let kind = attribute(body.get(20..).unwrap_or_default(), TCA_KIND).map(text_of);
            u32_at(body, 4) == Some(link) && kind.as_deref() == Some("tbf")
        }))
    }

    /// Lets everything that arrives at a link pass through another before it goes on.
    pub(crate) fn divert(&mut self, link: u32, through: u32) -> Result<(), Errno> {
        let mut message =
            Message::new(RTM_NEWQDISC, ACK | CREATE | EXCL, &queue(link, INGRESS.1, INGRESS.0, 0));
        message.text(TCA_KIND, "ingress");
        self.request(message)?;

        const SELECTOR: u16 = 5;
        const CLASS: u16 = 1;
        const ACTIONS: u16 = 7;
        const ACTION_KIND: u16 = 1;
        const ACTION_OPTIONS: u16 = 2;
        const MIRRED_PARAMETERS: u16 = 2;
        const PRIORITY: u32 = 1 << 16;
        const ALL: u16 = 3;
        let fixed = queue(link, 0, INGRESS.1, PRIORITY | u32::from(ALL.to_be()));
        let mut message = Message::new(RTM_NEWTFILTER, ACK | CREATE | EXCL, &fixed);
        message.text(TCA_KIND, "u32").nest(TCA_OPTIONS, |m| {
            // One key that compares nothing with nothing: it fits everything, and ends the search.
            let mut selector = [0; 32];
            selector[0] = 1;
            selector[2] = 1;
            m.u32(CLASS, 0x0001_0001).attr(SELECTOR, &selector);
            m.nest(ACTIONS, |m| {
                m.nest(1, |m| {
                    const STOLEN: u32 = 4;
                    const REDIRECT_OUT: u32 = 1;
                    m.text(ACTION_KIND, "mirred").nest(ACTION_OPTIONS, |m| {
                        let mut parameters = [0; 28];
                        parameters[8..12].copy_from_slice(&STOLEN.to_ne_bytes());
                        parameters[20..24].copy_from_slice(&REDIRECT_OUT.to_ne_bytes());
                        parameters[24..28].copy_from_slice(&through.to_ne_bytes());
                        m.attr(MIRRED_PARAMETERS, &parameters);
                    });
                });
            });
        });
        self.request(message).map(drop)
    }

    /// Removes links in one go: one by one the kernel waits for each.
    pub(crate) fn delete_all(&mut self, links: &[u32]) -> Result<(), Errno> {
        const IFLA_GROUP: u16 = 27;
        /// Nobody else puts links into it.
        const DOOMED: u32 = 0x626b_6e74;
        let mut any = false;
        for link in links {
            let mut message = Message::new(RTM_SETLINK, ACK, &header(0, *link, 0, 0));
            message.u32(IFLA_GROUP, DOOMED);
            match self.request(message) {
                Ok(_) => any = true,
                Err(Errno::NODEV) => {}
                Err(e) => return Err(e),
            }
        }
        let mut message = Message::new(RTM_DELLINK, ACK, &header(0, 0, 0, 0));
        message.u32(IFLA_GROUP, DOOMED);
        match self.request(message) {
            Err(Errno::NODEV) => Ok(()),
            other if any => other.map(drop),
            _ => Ok(()),
        }
    }
}

fn filtering(m: &mut Message) {
    const VLAN_FILTERING: u16 = 7;
    m.nest(IFLA_INFO_DATA, |m| {
        m.attr(VLAN_FILTERING, &[1]);
    });
}

/// What stands before the attributes of queues and filters.
fn queue(link: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    for (at, value) in [(4, link), (8, handle), (12, parent), (16, info)] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}
