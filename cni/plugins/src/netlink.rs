//! Netlink messages, written and read by hand: the few that are needed do not change.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Answers are read in pieces of this size; the kernel's are not larger.
const BUFFER: usize = 64 << 10;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE: u16 = 0x3fff;

/// Flags of requests.
pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

/// A message being written.
#[derive(Debug, Clone)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Begins with the header and what follows it for this kind.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        put(&mut bytes, 4, &kind.to_ne_bytes());
        put(&mut bytes, 6, &(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Self(bytes);
        message.pad();
        message
    }

    /// Adds an attribute.
    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds a text with its terminating zero.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Adds a number in the machine's order.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Adds an attribute made of others.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        put(&mut self.0, start, &length.to_ne_bytes());
        self
    }

    /// Adds flags to the header.
    pub(crate) fn add_flags(&mut self, flags: u16) {
        let now = u16_at(&self.0, 6).unwrap_or_default();
        put(&mut self.0, 6, &(now | flags).to_ne_bytes());
    }

    /// Adds bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// The finished message with its number.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        put(&mut self.0, 0, &length.to_ne_bytes());
        put(&mut self.0, 8, &sequence.to_ne_bytes());
        self.0
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(slot) = bytes.get_mut(at..at + value.len()) {
        slot.copy_from_slice(value);
    }
}

/// The attributes in a piece of a message, by kind.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn text_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// A connection to a part of the kernel, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// To what knows links, addresses and routes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn route() -> std::io::Result<Self> {
        Self::open(None)
    }

    /// To the firewall.
    pub(crate) fn netfilter() -> std::io::Result<Self> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> std::io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends a request and gives what follows the headers of the answers. A request that
    /// is not a dump must ask for an acknowledgement.
    pub(crate) fn request(&mut self, message: Message) -> Result<Vec<Vec<u8>>, Errno> {
        let sequence = self.next();
        self.send(&message.finish(sequence))?;
        let mut answers = Vec::new();
        loop {
            let size = self.receive()?;
            let mut bytes = self.buffer.get(..size).unwrap_or_default();
            while let Some((kind, number, body, rest)) = split(bytes) {
                bytes = rest;
                if number != sequence {
                    continue;
                }
                match kind {
                    NLMSG_ERROR => return error_of(body).map(|()| answers),
                    NLMSG_DONE => return Ok(answers),
                    _ => answers.push(body.to_vec()),
                }
            }
        }
    }

    /// Sends several messages of which all or none take effect, and whose last but one
    /// asks for an acknowledgement. Gives the first error.
    pub(crate) fn transaction(&mut self, messages: Vec<Message>) -> Result<(), Errno> {
        let mut bytes = Vec::new();
        let first = self.sequence + 1;
        let last = messages.len().saturating_sub(2);
        let mut wanted = 0;
        for (at, message) in messages.into_iter().enumerate() {
            let sequence = self.next();
            if at == last {
                wanted = sequence;
            }
            bytes.extend(message.finish(sequence));
        }
        self.send(&bytes)?;
        loop {
            let size = self.receive()?;
            let mut bytes = self.buffer.get(..size).unwrap_or_default();
            while let Some((kind, number, body, rest)) = split(bytes) {
                bytes = rest;
                if kind == NLMSG_ERROR && number >= first {
                    error_of(body)?;
                    if number == wanted {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        loop {
            match rustix::net::send(&self.fd, bytes, SendFlags::empty()) {
                Err(Errno::INTR) => {}
                other => return other.map(drop),
            }
        }
    }

    fn receive(&mut self) -> Result<usize, Errno> {
        loop {
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Ok((size, _)) => return Ok(size),
                Err(e) => return Err(e),
            }
        }
    }
}

/// The first message: kind, number, body; and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let body = bytes.get(HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16_at(bytes, 4)?, u32_at(bytes, 8)?, body, rest))
}

fn error_of(body: &[u8]) -> Result<(), Errno> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(-code)),
        None => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_nested() {
        let mut message = Message::new(7, ACK, &[1, 2, 3]);
        message.text(3, "eth0").nest(18, |m| {
            m.text(1, "veth").u32(2, 9);
        });
        let bytes = message.finish(5);
        assert_eq!(bytes.len() % 4, 0);
        let (kind, number, body, rest) = split(&bytes).unwrap();
        assert_eq!((kind, number, rest.len()), (7, 5, 0));
        let attrs = &body[4..];
        assert_eq!(text_of(attribute(attrs, 3).unwrap()), "eth0");
        let inner = attribute(attrs, 18).unwrap();
        assert_eq!(
            (text_of(attribute(inner, 1).unwrap()), u32_at(attribute(inner, 2).unwrap(), 0)),
            ("veth".into(), Some(9))
        );
    }

    #[test]
    fn cut_off_messages_end_quietly() {
        let bytes = Message::new(7, 0, &[0; 8]).finish(1);
        for length in 0..bytes.len() {
            assert!(split(&bytes[..length]).is_none());
        }
        assert_eq!(attributes(&[8, 0, 1]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0, 9, 9]).count(), 0);
    }
}
