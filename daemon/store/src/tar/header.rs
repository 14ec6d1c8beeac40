//! What an archive says about one entry, and the numbers and strings it says it in.

use std::collections::BTreeMap;

/// The prefix of PAX records that hold extended attributes.
pub const XATTR: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Regular,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
    /// A PAX global header; its records say nothing about files.
    Global,
    /// Any other type flag.
    Other(u8),
}

impl Kind {
    pub(crate) fn from_flag(flag: u8) -> Self {
        match flag {
            b'0' | 0 | b'S' => Self::Regular,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::Character,
            b'4' => Self::Block,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            b'g' => Self::Global,
            other => Self::Other(other),
        }
    }

    pub(crate) fn flag(self) -> u8 {
        match self {
            Self::Regular => b'0',
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::Character => b'3',
            Self::Block => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
            Self::Global => b'g',
            Self::Other(flag) => flag,
        }
    }

    /// Whether no data follows, whatever the size says.
    pub(crate) fn is_header_only(self) -> bool {
        matches!(
            self,
            Self::HardLink | Self::Symlink | Self::Character | Self::Block | Self::Directory | Self::Fifo
        )
    }
}

/// What an archive says about one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The name; directories mostly end with a slash.
    pub name: Vec<u8>,
    /// Where a link points.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, and whatever else was written there.
    pub mode: u32,
    /// The owner.
    pub uid: u64,
    /// The group.
    pub gid: u64,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds beyond them.
    pub mtime_nanos: u32,
    /// The owner's name.
    pub uname: Vec<u8>,
    /// The group's name.
    pub gname: Vec<u8>,
    /// Of a device.
    pub dev_major: u32,
    /// Of a device.
    pub dev_minor: u32,
    /// The PAX records as they stand, attributes among them.
    pub pax: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Header {
    /// An entry with nothing but a name.
    pub fn new(kind: Kind, name: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            link: Vec::new(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            mtime_nanos: 0,
            uname: Vec::new(),
            gname: Vec::new(),
            dev_major: 0,
            dev_minor: 0,
            pax: BTreeMap::new(),
        }
    }

    /// The extended attributes.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pax.iter().filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?, value.as_slice())))
    }

    /// Adds an extended attribute.
    pub fn set_xattr(&mut self, name: &[u8], value: &[u8]) {
        self.pax.insert([XATTR, name].concat(), value.to_vec());
    }
}

/// The places of the fields in a block.
pub(crate) mod field {
    use std::ops::Range;

    pub(crate) const NAME: Range<usize> = 0..100;
    pub(crate) const MODE: Range<usize> = 100..108;
    pub(crate) const UID: Range<usize> = 108..116;
    pub(crate) const GID: Range<usize> = 116..124;
    pub(crate) const SIZE: Range<usize> = 124..136;
    pub(crate) const MTIME: Range<usize> = 136..148;
    pub(crate) const CHECKSUM: Range<usize> = 148..156;
    pub(crate) const FLAG: usize = 156;
    pub(crate) const LINK: Range<usize> = 157..257;
    pub(crate) const MAGIC: Range<usize> = 257..265;
    pub(crate) const UNAME: Range<usize> = 265..297;
    pub(crate) const GNAME: Range<usize> = 297..329;
    pub(crate) const DEV_MAJOR: Range<usize> = 329..337;
    pub(crate) const DEV_MINOR: Range<usize> = 337..345;
    pub(crate) const PREFIX: Range<usize> = 345..500;
    /// GNU: four pairs, then whether more follow, then the real size.
    pub(crate) const GNU_SPARSE: Range<usize> = 386..482;
    pub(crate) const GNU_EXTENDED: usize = 482;
    pub(crate) const GNU_REAL_SIZE: Range<usize> = 483..495;
}

/// The text of a field, up to its NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number: octal, or base-256 with the top bit set. Negative ones and those
/// beyond 63 bits are none; an empty field is zero.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn base256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    // Two's complement over the whole field, the top bit being the marker.
    let negative = first & 0x40 != 0;
    let mut value: i128 = if negative { i128::from(first & 0x7f) - 0x80 } else { i128::from(first & 0x7f) };
    for b in rest {
        value = value.checked_mul(256)?.checked_add(i128::from(*b))?;
    }
    i64::try_from(value).ok()
}

fn octal(field: &[u8]) -> Option<i64> {
    let field = text(field).trim_ascii();
    if field.is_empty() {
        return Some(0);
    }
    let digits = std::str::from_utf8(field).ok()?;
    if !digits.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
        return None;
    }
    i64::from_str_radix(digits, 8).ok()
}

/// The sum of a block's bytes with its checksum field blank, as unsigned and
/// as signed bytes: old programs wrote the latter.
pub(crate) fn checksums(block: &[u8; super::BLOCK]) -> (i64, i64) {
    let (mut unsigned, mut signed) = (0, 0);
    for (i, b) in block.iter().enumerate() {
        let b = if field::CHECKSUM.contains(&i) { b' ' } else { *b };
        unsigned += i64::from(b);
        signed += i64::from(b as i8);
    }
    (unsigned, signed)
}
