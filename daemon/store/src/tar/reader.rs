//! Reading archives nobody vouches for.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::BLOCK;
use super::header::{Header, Kind, checksums, field, number, text};
use crate::{Error, Result};

/// PAX records, long names and sparse maps are read into memory up to this.
const MAX_SPECIAL: u64 = 1 << 20;

/// Reads the entries of an archive one after the other.
pub struct Reader<R> {
    input: R,
    /// Bytes of the current entry still to come, without padding.
    left: u64,
    /// Zeros after them.
    padding: u64,
    /// The parts of a sparse file that are stored: offset and length.
    sparse: Option<Vec<(u64, u64)>>,
    entry: String,
    done: bool,
}

/// What precedes an entry and changes its meaning.
#[derive(Default)]
struct Pending {
    pax: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Pairs of PAX sparse format 0.0, which repeats its keys.
    sparse_map: Vec<(u64, u64)>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Reads from `input`, which should be buffered.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, sparse: None, entry: String::new(), done: false }
    }

    /// What is left of the input.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The input, of which nothing was read ahead.
    pub fn input_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// Whether the current entry is a file with holes.
    pub fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }

    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::archive(&self.entry, reason)
    }

    fn input_error(&self, e: io::Error) -> Error {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => self.bad("unexpected end of the archive"),
            // Decompressors report damage this way.
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => self.bad(e.to_string()),
            _ => Error::io("read", "archive")(e),
        }
    }

    /// The next entry, after skipping what was not read of the current one.
    ///
    /// # Errors
    /// [`Error::Archive`] when the archive is broken.
    pub fn next_entry(&mut self) -> Result<Option<Header>> {
        let mut pending = Pending::default();
        loop {
            self.skip()?;
            let Some(block) = self.header_block()? else { return Ok(None) };
            let mut header = self.parse(&block)?;
            self.entry = String::from_utf8_lossy(&header.name).into_owned();
            let flag = block[field::FLAG];
            match flag {
                b'x' => {
                    let data = self.special(header.size)?;
                    (pending.pax, pending.sparse_map) = self.pax_records(&data)?;
                    continue;
                }
                b'L' | b'K' => {
                    let data = self.special(header.size)?;
                    let name = Some(text(&data).to_vec());
                    if flag == b'L' {
                        pending.name = name
                    } else {
                        pending.link = name
                    }
                    continue;
                }
                b'g' => {
                    let data = self.special(header.size)?;
                    header.pax = self.pax_records(&data)?.0;
                    return Ok(Some(header));
                }
                _ => {}
            }
            if let Some(name) = pending.name.take() {
                header.name = name;
            }
            if let Some(link) = pending.link.take() {
                header.link = link;
            }
            self.apply_pax(&mut header, std::mem::take(&mut pending.pax))?;
            self.entry = String::from_utf8_lossy(&header.name).into_owned();
            if matches!(block[field::FLAG], 0 | b'0') && header.name.ends_with(b"/") {
                header.kind = Kind::Directory;
            }
            let stored = if header.kind.is_header_only() { 0 } else { header.size };
            self.left = stored;
            self.padding = padding(stored);
            self.sparse = None;
            if flag == b'S' {
                self.gnu_sparse(&block, &mut header)?;
            } else if header.kind == Kind::Regular {
                self.pax_sparse(&mut header, &pending.sparse_map)?;
            }
            if header.kind.is_header_only() {
                header.size = 0;
            }
            return Ok(Some(header));
        }
    }

    /// A header, or nothing at the end: two blocks of zeros, or just no more.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.done {
            return Ok(None);
        }
        let mut zeros = 0;
        loop {
            let mut block = [0; BLOCK];
            match self.fill(&mut block)? {
                0 => {
                    self.done = true;
                    return Ok(None);
                }
                BLOCK => {}
                _ => return Err(self.bad("unexpected end of the archive")),
            }
            if block.iter().any(|b| *b != 0) {
                if zeros > 0 {
                    return Err(self.bad("data after the end mark"));
                }
                return Ok(Some(block));
            }
            zeros += 1;
            if zeros == 2 {
                self.done = true;
                return Ok(None);
            }
        }
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut n = 0;
        while let Some(rest) = buf.get_mut(n..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.input_error(e)),
            }
        }
        Ok(n)
    }

    fn skip(&mut self) -> Result<()> {
        let mut left = self.left + std::mem::take(&mut self.padding);
        self.left = 0;
        let mut buf = [0; 16 << 10];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let got = self.fill(&mut buf[..want])?;
            if got < want {
                return Err(self.bad("unexpected end of the archive"));
            }
            left -= want as u64;
        }
        Ok(())
    }

    /// The data of an entry that is about other entries.
    fn special(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_SPECIAL {
            return Err(self.bad("extended header too large"));
        }
        let mut data = vec![0; size as usize];
        if self.fill(&mut data)? < data.len() {
            return Err(self.bad("unexpected end of the archive"));
        }
        (self.left, self.padding) = (0, padding(size));
        Ok(data)
    }

    fn parse(&self, block: &[u8; BLOCK]) -> Result<Header> {
        let name = text(&block[field::NAME]);
        let bad = |what: &str| Error::archive(name, format!("invalid {what}"));
        let sum = number(&block[field::CHECKSUM]).ok_or_else(|| bad("checksum"))?;
        let (unsigned, signed) = checksums(block);
        if sum != unsigned && sum != signed {
            return Err(bad("header checksum"));
        }
        let field = |range, what| number(&block[range]).ok_or_else(|| bad(what));
        let positive = |range, what| field(range, what).and_then(|n| u64::try_from(n).map_err(|_| bad(what)));
        let mut header = Header::new(Kind::from_flag(block[field::FLAG]), name);
        header.link = text(&block[field::LINK]).to_vec();
        header.mode = field(field::MODE, "mode")? as u32;
        header.uid = positive(field::UID, "uid")?;
        header.gid = positive(field::GID, "gid")?;
        header.size = positive(field::SIZE, "size")?;
        header.mtime = field(field::MTIME, "mtime")?;
        let magic = &block[field::MAGIC];
        if magic.starts_with(b"ustar") {
            header.uname = text(&block[field::UNAME]).to_vec();
            header.gname = text(&block[field::GNAME]).to_vec();
            let device = |range, what| {
                number(&block[range]).and_then(|n| u32::try_from(n).ok()).ok_or_else(|| bad(what))
            };
            header.dev_major = device(field::DEV_MAJOR, "device")?;
            header.dev_minor = device(field::DEV_MINOR, "device")?;
            let prefix = text(&block[field::PREFIX]);
            if magic == b"ustar\x0000" && !prefix.is_empty() {
                header.name = [prefix, b"/", name].concat();
            }
        }
        Ok(header)
    }

    #[allow(clippy::type_complexity)]
    fn pax_records(&self, data: &[u8]) -> Result<(BTreeMap<Vec<u8>, Vec<u8>>, Vec<(u64, u64)>)> {
        let bad = || self.bad("invalid PAX record");
        let (mut records, mut map) = (BTreeMap::new(), Vec::new());
        let mut offset = None;
        let mut rest = data;
        while !rest.is_empty() {
            let blank = rest.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let digits = std::str::from_utf8(&rest[..blank]).map_err(|_| bad())?;
            let len: usize = Some(digits)
                .filter(|d| d.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|d| d.parse().ok())
                .ok_or_else(bad)?;
            let record = rest.get(blank + 1..len).ok_or_else(bad)?;
            rest = &rest[len..];
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|b| *b == b'=').filter(|at| *at > 0).ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let text_key = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
            if key.contains(&0) || (text_key && value.contains(&0)) {
                return Err(bad());
            }
            match key {
                b"GNU.sparse.offset" => offset = Some(decimal(value).ok_or_else(bad)?),
                b"GNU.sparse.numbytes" => {
                    map.push((offset.take().ok_or_else(bad)?, decimal(value).ok_or_else(bad)?));
                }
                _ => {
                    records.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        Ok((records, map))
    }

    fn apply_pax(&self, header: &mut Header, pax: BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
        for (key, value) in &pax {
            if value.is_empty() {
                // As if the record were not there.
                continue;
            }
            let bad = || self.bad(format!("invalid PAX record {}", String::from_utf8_lossy(key)));
            match key.as_slice() {
                b"path" => header.name.clone_from(value),
                b"linkpath" => header.link.clone_from(value),
                b"uname" => header.uname.clone_from(value),
                b"gname" => header.gname.clone_from(value),
                b"uid" => header.uid = decimal(value).ok_or_else(bad)?,
                b"gid" => header.gid = decimal(value).ok_or_else(bad)?,
                b"size" => header.size = decimal(value).ok_or_else(bad)?,
                b"mtime" => (header.mtime, header.mtime_nanos) = pax_time(value).ok_or_else(bad)?,
                _ => {}
            }
        }
        header.pax = pax;
        Ok(())
    }

    fn gnu_sparse(&mut self, block: &[u8; BLOCK], header: &mut Header) -> Result<()> {
        let real = self.sparse_number(&block[field::GNU_REAL_SIZE])?;
        let mut map = Vec::new();
        let mut more = block[field::GNU_EXTENDED] != 0;
        self.sparse_pairs(&block[field::GNU_SPARSE], &mut map)?;
        while more {
            let mut block = [0; BLOCK];
            if self.fill(&mut block)? < BLOCK {
                return Err(self.bad("unexpected end of the archive"));
            }
            self.sparse_pairs(&block[..504], &mut map)?;
            more = block[504] != 0;
            if map.len() as u64 * 24 > MAX_SPECIAL {
                return Err(self.bad("sparse map too large"));
            }
        }
        self.set_sparse(header, real, map)
    }

    fn sparse_pairs(&self, bytes: &[u8], map: &mut Vec<(u64, u64)>) -> Result<()> {
        for pair in bytes.chunks_exact(24) {
            if pair[0] == 0 {
                break;
            }
            map.push((self.sparse_number(&pair[..12])?, self.sparse_number(&pair[12..])?));
        }
        Ok(())
    }

    fn sparse_number(&self, field: &[u8]) -> Result<u64> {
        number(field).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| self.bad("invalid sparse map"))
    }

    /// Formats 0.0 and 0.1 have the map in the records, 1.0 before the data.
    fn pax_sparse(&mut self, header: &mut Header, pairs: &[(u64, u64)]) -> Result<()> {
        let bad = |this: &Self| this.bad("invalid sparse map");
        let get = |key: &[u8]| header.pax.get(key).map(Vec::as_slice);
        let version = (get(b"GNU.sparse.major"), get(b"GNU.sparse.minor"));
        let real = get(b"GNU.sparse.realsize").or(get(b"GNU.sparse.size"));
        let map = match version {
            (Some(b"1"), Some(b"0")) => None,
            (None | Some(b"0"), None | Some(b"0" | b"1")) => match get(b"GNU.sparse.map") {
                Some(text) => {
                    let numbers: Option<Vec<u64>> = text.split(|b| *b == b',').map(decimal).collect();
                    let numbers = numbers.filter(|n| n.len() % 2 == 0).ok_or_else(|| bad(self))?;
                    Some(numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect())
                }
                None if !pairs.is_empty() => Some(pairs.to_vec()),
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        let real = real.and_then(decimal).ok_or_else(|| bad(self))?;
        if let Some(name) = get(b"GNU.sparse.name") {
            header.name = name.to_vec();
        }
        let map = match map {
            Some(map) => map,
            None => self.inline_map()?,
        };
        self.set_sparse(header, real, map)
    }

    /// Decimal numbers, one per line, padded to a block: how many pairs, then those.
    fn inline_map(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut text = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 || self.fill(&mut block)? < BLOCK {
                return Err(self.bad("invalid sparse map"));
            }
            self.left -= BLOCK as u64;
            text.extend_from_slice(&block);
            while let Some(end) = text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let number = decimal(&line[..end]).ok_or_else(|| self.bad("invalid sparse map"))?;
                numbers.push(number);
                let pairs = numbers[0];
                if pairs > MAX_SPECIAL / 16 {
                    return Err(self.bad("sparse map too large"));
                }
                if numbers.len() as u64 == 1 + 2 * pairs {
                    return Ok(numbers[1..].chunks_exact(2).map(|p| (p[0], p[1])).collect());
                }
            }
            if text.len() > 32 {
                return Err(self.bad("invalid sparse map"));
            }
        }
    }

    fn set_sparse(&mut self, header: &mut Header, real: u64, map: Vec<(u64, u64)>) -> Result<()> {
        let (mut end, mut stored) = (0u64, 0u64);
        for (offset, len) in &map {
            let next = offset.checked_add(*len);
            match next {
                Some(next) if *offset >= end && next <= real => end = next,
                _ => return Err(self.bad("invalid sparse map")),
            }
            stored += len;
        }
        if stored > self.left {
            return Err(self.bad("sparse map beyond the data"));
        }
        header.size = real;
        self.sparse = Some(map);
        Ok(())
    }

    /// Hands the data of the current entry to `write` with their offsets;
    /// holes are left out.
    ///
    /// # Errors
    /// [`Error::Archive`] when the archive ends too early, and those of `write`.
    pub fn copy_data(&mut self, mut write: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let parts = self.sparse.take().unwrap_or_else(|| vec![(0, self.left)]);
        let mut buf = vec![0; 128 << 10];
        for (mut offset, mut len) in parts {
            while len > 0 {
                let want = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
                let part = &mut buf[..want];
                let got = match self.input.read(part) {
                    Ok(0) => return Err(self.bad("unexpected end of the archive")),
                    Ok(got) => got,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(self.input_error(e)),
                };
                write(offset, &part[..got])?;
                (offset, len) = (offset + got as u64, len - got as u64);
                self.left = self.left.saturating_sub(got as u64);
            }
        }
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn decimal(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let value: u64 = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())??;
    // The kernel counts file sizes with a sign.
    (value <= i64::MAX as u64).then_some(value)
}

/// Seconds with a fraction, possibly negative.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let secs: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match (negative, nanos) {
        (true, 1..) => Some((secs.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((secs, nanos)),
    }
}
