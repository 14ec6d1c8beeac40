//! Tables, chains, sets and rules of nftables, sent to the kernel as one transaction.
//!
//! All or nothing takes effect. What exists already is no error, so a table can be
//! described again and again; its chains are emptied first and so never hold a rule twice.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::netlink::{ACK, APPEND, CREATE, DUMP, Message, Socket, attribute, text_of};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
const VERDICT_REGISTER: u32 = 0;
const IFNAMSIZ: usize = 16;
const NETWORK_HEADER: u32 = 1;

/// An address family of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    /// Frames on bridges.
    Bridge,
}

impl Family {
    pub(crate) fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
            Self::Bridge => 7,
        }
    }

    /// Length of an address, where the source and the destination stand in a packet,
    /// and the number of the type for those who list the set.
    fn layout(self) -> (u32, u32, u32, u32) {
        match self {
            Self::V4 => (4, 12, 16, 7),
            Self::V6 => (16, 8, 24, 8),
            Self::Bridge => (6, 6, 0, 9),
        }
    }
}

/// A hook of the packet path.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    /// Source addresses are changed.
    SourceNat,
    /// Packets pass from one interface to another.
    Forward,
    /// Destinations of what arrives are changed.
    DestinationNat,
    /// Destinations of what this host sends are changed.
    OutputNat,
    /// Packets arrive, before anything else is done with them.
    #[cfg(feature = "netavark")]
    Arrival,
    /// Frames arrive at a bridge.
    BridgeArrival,
}

impl Hook {
    /// Type of the chain, number of the hook, priority.
    fn layout(self) -> (&'static str, u32, i32) {
        match self {
            Self::SourceNat => ("nat", 4, 100),
            Self::Forward => ("filter", 2, 0),
            Self::DestinationNat => ("nat", 0, -100),
            Self::OutputNat => ("nat", 3, -100),
            #[cfg(feature = "netavark")]
            Self::Arrival => ("filter", 0, -300),
            Self::BridgeArrival => ("filter", 0, -300),
        }
    }
}

/// A condition, or what happens when all conditions before it hold.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The source is in the set.
    SourceIn(&'static str),
    /// The destination is in the set.
    DestinationIn(&'static str),
    /// The source is in the network.
    Source { net: cni::Cidr },
    /// The destination is (not) in the network.
    Destination { net: cni::Cidr, within: bool },
    /// It came in by this interface, or not.
    From { interface: String, equal: bool },
    /// It goes out by this interface, or not.
    To { interface: String, equal: bool },
    /// It was sent by another hardware address.
    HardwareNot([u8; 6]),
    /// It belongs to something that was allowed before.
    Established,
    /// Its destination was changed by [`Self::Redirect`] or the like.
    Redirected,
    /// It is for an address of this host.
    ToThisHost,
    /// It is of this transport protocol, for this port.
    Port { protocol: u8, port: u16 },
    /// Let it pass.
    Accept,
    /// Let it vanish.
    Drop,
    /// Give it the address of the interface by which it leaves.
    Masquerade,
    /// Send it to another place.
    Redirect { to: IpAddr, port: u16 },
}

/// A chain with its rules.
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
    pub(crate) rules: Vec<Vec<Step>>,
}

/// A table, described.
pub(crate) struct Table<'a> {
    pub(crate) family: Family,
    pub(crate) name: &'a str,
    /// A set of addresses.
    pub(crate) set: Option<&'static str>,
    pub(crate) chains: Vec<Chain>,
}

fn message(kind: u16, flags: u16, family: Family) -> Message {
    Message::new((SUBSYSTEM << 8) | kind, flags, &[family.number(), 0, 0, 0])
}

fn batch(mut messages: Vec<Message>) -> Vec<Message> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    messages.insert(0, Message::new(BATCH_BEGIN, 0, &[0, 0, high, low]));
    messages.push(Message::new(BATCH_END, 0, &[0, 0, high, low]));
    // The one whose answer says that all is done.
    messages
}

impl Socket {
    /// Makes the table be as described, and puts `address` into its set if it has one.
    pub(crate) fn describe(&mut self, table: &Table<'_>, address: Option<IpAddr>) -> Result<(), Errno> {
        let family = table.family;
        let mut list = Vec::new();
        let mut m = message(NEWTABLE, CREATE, family);
        m.text(1, table.name);
        list.push(m);
        if let Some(set) = table.set {
            let (length, _, _, kind) = family.layout();
            let mut m = message(NEWSET, CREATE, family);
            m.text(1, table.name).text(2, set).be32(4, kind).be32(5, length).be32(10, 1);
            list.push(m);
        }
        for chain in &table.chains {
            let (kind, number, priority) = chain.hook.layout();
            let mut m = message(NEWCHAIN, CREATE, family);
            m.text(1, table.name).text(3, chain.name).nest(4, |m| {
                m.be32(1, number).be32(2, priority.cast_unsigned());
            });
            m.text(7, kind);
            list.push(m);
            let mut m = message(DELRULE, 0, family);
            m.text(1, table.name).text(2, chain.name);
            list.push(m);
            for rule in &chain.rules {
                let mut m = message(NEWRULE, CREATE | APPEND, family);
                m.text(1, table.name).text(2, chain.name).nest(4, |m| {
                    rule.iter().for_each(|step| step.write(m, family));
                });
                list.push(m);
            }
        }
        if let (Some(set), Some(address)) = (table.set, address) {
            list.push(element(NEWSETELEM, CREATE, family, table.name, set, address));
        }
        self.commit(list)
    }

    /// Takes an address out of a set, and the whole table away when it was the last one. Says
    /// whether it was there.
    pub(crate) fn withdraw(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        address: IpAddr,
    ) -> Result<bool, Errno> {
        let found = found(self.commit(vec![element(DELSETELEM, 0, family, table, set, address)]))?;
        if self.is_empty(family, table, set)? {
            self.delete_table(family, table)?;
        }
        Ok(found)
    }

    fn is_empty(&mut self, family: Family, table: &str, set: &str) -> Result<bool, Errno> {
        let mut m = message(GETSETELEM, DUMP, family);
        m.text(1, table).text(2, set);
        match self.request(m) {
            Ok(answers) => Ok(answers
                .iter()
                .all(|body| attribute(body.get(4..).unwrap_or_default(), 3).is_none_or(<[u8]>::is_empty))),
            // No table, no set: nothing to remove.
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes a table with all that is in it. Says whether it was there.
    pub(crate) fn delete_table(&mut self, family: Family, table: &str) -> Result<bool, Errno> {
        let mut m = message(DELTABLE, 0, family);
        m.text(1, table);
        found(self.commit(vec![m]))
    }

    /// The policy of a chain is to drop. `false` when there is no such chain.
    pub(crate) fn drops_by_default(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
    ) -> Result<bool, Errno> {
        const POLICY: u16 = 5;
        let answers = match self.request(message(GETCHAIN, DUMP, family)) {
            Ok(answers) => answers,
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(e),
        };
        Ok(answers.iter().filter_map(|body| body.get(4..)).any(|attrs| {
            let is = |kind, name: &str| attribute(attrs, kind).is_some_and(|v| text_of(v) == name);
            is(1, table) && is(3, chain) && attribute(attrs, POLICY) == Some(&[0; 4])
        }))
    }

    fn commit(&mut self, mut list: Vec<Message>) -> Result<(), Errno> {
        if let Some(last) = list.last_mut() {
            last.add_flags(ACK);
        }
        self.transaction(batch(list))
    }
}

/// Whether there was what should be removed.
fn found(removed: Result<(), Errno>) -> Result<bool, Errno> {
    match removed {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn element(kind: u16, flags: u16, family: Family, table: &str, set: &str, address: IpAddr) -> Message {
    let mut m = message(kind, flags, family);
    m.text(1, table).text(2, set).nest(3, |m| {
        m.nest(1, |m| {
            m.nest(1, |m| {
                m.attr(1, &octets(address));
            });
        });
    });
    m
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Adds one expression to a rule.
fn expression(m: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    m.nest(1, |m| {
        m.text(1, name).nest(2, fill);
    });
}

fn load_payload(m: &mut Message, base: u32, offset: u32, length: u32) {
    expression(m, "payload", |m| {
        m.be32(1, REGISTER).be32(2, base).be32(3, offset).be32(4, length);
    });
}

fn load_meta(m: &mut Message, key: u32) {
    expression(m, "meta", |m| {
        m.be32(1, REGISTER).be32(2, key);
    });
}

fn compare(m: &mut Message, equal: bool, value: &[u8]) {
    expression(m, "cmp", |m| {
        m.be32(1, REGISTER).be32(2, u32::from(!equal)).nest(3, |m| {
            m.attr(1, value);
        });
    });
}

fn mask(m: &mut Message, mask: &[u8]) {
    let length = u32::try_from(mask.len()).unwrap_or_default();
    expression(m, "bitwise", |m| {
        m.be32(1, REGISTER).be32(2, REGISTER).be32(3, length);
        m.nest(4, |m| {
            m.attr(1, mask);
        });
        m.nest(5, |m| {
            m.attr(1, &vec![0; mask.len()]);
        });
    });
}

/// The address at `offset` is (not) in the network.
fn within_network(m: &mut Message, offset: u32, net: cni::Cidr, within: bool) {
    let network = octets(net.network().addr);
    let length = u32::try_from(network.len()).unwrap_or_default();
    load_payload(m, NETWORK_HEADER, offset, length);
    let bits = u32::from(net.prefix);
    let masked: Vec<u8> = (0..length)
        .map(|at| match bits.saturating_sub(at * 8) {
            8.. => 0xff,
            left => 0xff_u8.checked_shl(8 - left).unwrap_or(0),
        })
        .collect();
    mask(m, &masked);
    compare(m, within, &network);
}

/// One of the bits is set in what is known of the connection.
fn connection_has(m: &mut Message, key: u32, bits: u32) {
    expression(m, "ct", |m| {
        m.be32(1, REGISTER).be32(2, key);
    });
    mask(m, &bits.to_ne_bytes());
    compare(m, false, &[0; 4]);
}

fn look_up(m: &mut Message, set: &str) {
    expression(m, "lookup", |m| {
        m.text(1, set).be32(2, REGISTER);
    });
}

fn verdict(m: &mut Message, code: u32) {
    expression(m, "immediate", |m| {
        m.be32(1, VERDICT_REGISTER).nest(2, |m| {
            m.nest(2, |m| {
                m.be32(1, code);
            });
        });
    });
}

fn load_value(m: &mut Message, register: u32, value: &[u8]) {
    expression(m, "immediate", |m| {
        m.be32(1, register).nest(2, |m| {
            m.attr(1, value);
        });
    });
}

fn interface_bytes(name: &str) -> [u8; IFNAMSIZ] {
    let mut bytes = [0; IFNAMSIZ];
    for (slot, byte) in bytes.iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    bytes
}

impl Step {
    fn write(&self, m: &mut Message, family: Family) {
        const TRANSPORT_HEADER: u32 = 2;
        const META_IN: u32 = 6;
        const META_OUT: u32 = 7;
        const META_PROTOCOL: u32 = 16;
        let (length, source, destination, _) = family.layout();
        match self {
            Self::SourceIn(set) => {
                load_payload(m, NETWORK_HEADER, source, length);
                look_up(m, set);
            }
            Self::DestinationIn(set) => {
                load_payload(m, NETWORK_HEADER, destination, length);
                look_up(m, set);
            }
            Self::Source { net } => within_network(m, source, *net, true),
            Self::Destination { net, within } => within_network(m, destination, *net, *within),
            Self::From { interface, equal } => {
                load_meta(m, META_IN);
                compare(m, *equal, &interface_bytes(interface));
            }
            Self::To { interface, equal } => {
                load_meta(m, META_OUT);
                compare(m, *equal, &interface_bytes(interface));
            }
            Self::HardwareNot(mac) => {
                const LINK_HEADER: u32 = 0;
                load_payload(m, LINK_HEADER, source, length);
                compare(m, false, mac);
            }
            Self::Established => {
                const STATE: u32 = 0;
                const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
                connection_has(m, STATE, ESTABLISHED_OR_RELATED);
            }
            Self::Redirected => {
                const STATUS: u32 = 2;
                const DESTINATION_CHANGED: u32 = 1 << 5;
                connection_has(m, STATUS, DESTINATION_CHANGED);
            }
            Self::ToThisHost => {
                const DESTINATION_TYPE: (u32, u32) = (3, 1 << 1);
                const LOCAL: u32 = 2;
                expression(m, "fib", |m| {
                    m.be32(1, REGISTER).be32(2, DESTINATION_TYPE.0).be32(3, DESTINATION_TYPE.1);
                });
                compare(m, true, &LOCAL.to_ne_bytes());
            }
            Self::Port { protocol, port } => {
                load_meta(m, META_PROTOCOL);
                compare(m, true, &[*protocol]);
                load_payload(m, TRANSPORT_HEADER, 2, 2);
                compare(m, true, &port.to_be_bytes());
            }
            Self::Accept => verdict(m, 1),
            Self::Drop => verdict(m, 0),
            Self::Masquerade => expression(m, "masq", |_| {}),
            Self::Redirect { to, port } => {
                const DESTINATION: u32 = 1;
                load_value(m, REGISTER, &octets(*to));
                // A register holds 16 bytes, an address as many at most.
                load_value(m, SECOND_REGISTER, &port.to_be_bytes());
                expression(m, "nat", |m| {
                    m.be32(1, DESTINATION).be32(2, family.number().into());
                    m.be32(3, REGISTER).be32(5, SECOND_REGISTER);
                });
            }
        }
    }
}
