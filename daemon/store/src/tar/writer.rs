//! Writing archives byte for byte as Go's `archive/tar` does.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::BLOCK;
use super::header::{Header, Kind, checksums, field};

/// Writes entries one after the other.
pub struct Writer<W> {
    output: W,
    left: u64,
    padding: usize,
}

/// Keys that say what the header itself says.
const BASIC: [&[u8]; 9] =
    [b"path", b"linkpath", b"size", b"uid", b"gid", b"uname", b"gname", b"mtime", b"atime"];

impl<W: Write> Writer<W> {
    /// Writes to `output`, which should be buffered.
    pub fn new(output: W) -> Self {
        Self { output, left: 0, padding: 0 }
    }

    /// Begins an entry; its data follow with [`Write`], exactly `size` bytes
    /// when it is a regular file.
    ///
    /// # Errors
    /// When the data of the one before are incomplete, a value cannot be
    /// written in any format, or the output refuses.
    pub fn header(&mut self, header: &Header) -> io::Result<()> {
        self.finish_entry()?;
        let (records, ustar) = formats(header)?;
        if ustar {
            let (prefix, name) = split_path(&header.name).unwrap_or((b"", &header.name));
            let mut block = template(header, name, put_text);
            put_text(&mut block[field::PREFIX], prefix);
            self.block(&mut block)?;
        } else {
            self.extended(&header.name, &records, header.kind == Kind::Global)?;
            if header.kind == Kind::Global {
                return Ok(());
            }
            let mut block = template(header, &header.name, |b, s| put_text(b, &to_ascii(s)));
            self.block(&mut block)?;
        }
        let size = if header.kind.is_header_only() { 0 } else { header.size };
        self.begin_data(size);
        Ok(())
    }

    fn begin_data(&mut self, size: u64) {
        self.left = size;
        self.padding = (size.wrapping_neg() % BLOCK as u64) as usize;
    }

    fn extended(&mut self, name: &[u8], records: &Records, global: bool) -> io::Result<()> {
        let mut data = Vec::new();
        for (key, value) in records {
            put_record(&mut data, key, value);
        }
        let name = if global {
            if name.is_empty() { b"GlobalHead.0.0".to_vec() } else { name.to_vec() }
        } else {
            pax_name(name)
        };
        let name = to_ascii(&name);
        let mut name = &name[..name.len().min(field::NAME.len())];
        while let Some(shorter) = name.strip_suffix(b"/") {
            name = shorter;
        }
        let mut block = [0; BLOCK];
        block[field::FLAG] = if global { b'g' } else { b'x' };
        put_text(&mut block[field::NAME], name);
        for range in [field::MODE, field::UID, field::GID, field::MTIME] {
            put_octal(&mut block[range], 0);
        }
        put_octal(&mut block[field::SIZE], data.len() as i64);
        self.block(&mut block)?;
        self.begin_data(data.len() as u64);
        self.write_all(&data)?;
        self.finish_entry()
    }

    fn block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<()> {
        block[field::MAGIC].copy_from_slice(b"ustar\x0000");
        let (sum, _) = checksums(block);
        put_octal(&mut block[field::CHECKSUM.start..field::CHECKSUM.end - 1], sum);
        block[field::CHECKSUM.end - 1] = b' ';
        self.output.write_all(block)
    }

    fn finish_entry(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other(format!("{} bytes of an entry are missing", self.left)));
        }
        self.output.write_all(&[0; BLOCK][..std::mem::take(&mut self.padding)])
    }

    /// Writes the end mark and gives the output back.
    ///
    /// # Errors
    /// When the data of the last entry are incomplete, or the output refuses.
    pub fn finish(mut self) -> io::Result<W> {
        self.finish_entry()?;
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.output)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let fits = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        if fits == 0 && !buf.is_empty() {
            return Err(io::Error::other("more data than the entry's size"));
        }
        let n = self.output.write(&buf[..fits])?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// The records PAX needs, and whether USTAR does without.
fn formats(header: &Header) -> io::Result<(Records, bool)> {
    let mut records = Records::new();
    // A record that was read and still says the same stays, needed or not.
    let keep = |records: &mut Records, key: &[u8], value: &[u8]| {
        if header.pax.get(key).is_some_and(|v| v == value) {
            records.insert(key.to_vec(), value.to_vec());
        }
    };
    let (mut ustar, mut possible) = (header.kind != Kind::Global, true);
    let strings: [(&[u8], usize, &[u8]); 4] = [
        (&header.name, field::NAME.len(), b"path"),
        (&header.link, field::LINK.len(), b"linkpath"),
        (&header.uname, field::UNAME.len(), b"uname"),
        (&header.gname, field::GNAME.len(), b"gname"),
    ];
    for (value, size, key) in strings {
        if value.len() > size || !is_ascii(value) {
            ustar &= key == b"path" && split_path(value).is_some();
            records.insert(key.to_vec(), value.to_vec());
        }
        keep(&mut records, key, value);
    }
    let numbers: [(u64, usize, Option<&[u8]>); 6] = [
        (header.mode.into(), field::MODE.len(), None),
        (header.uid, field::UID.len(), Some(b"uid")),
        (header.gid, field::GID.len(), Some(b"gid")),
        (header.size, field::SIZE.len(), Some(b"size")),
        (header.dev_major.into(), field::DEV_MAJOR.len(), None),
        (header.dev_minor.into(), field::DEV_MINOR.len(), None),
    ];
    for (value, size, key) in numbers {
        if !fits_octal(size, i64::try_from(value).unwrap_or(-1)) {
            ustar = false;
            match key {
                Some(key) => _ = records.insert(key.to_vec(), value.to_string().into_bytes()),
                None => possible = false,
            }
        }
        if let Some(key) = key {
            keep(&mut records, key, value.to_string().as_bytes());
        }
    }
    // A fraction alone makes PAX the better choice.
    let mtime_fits = fits_octal(field::MTIME.len(), header.mtime);
    if !mtime_fits || header.mtime_nanos != 0 {
        ustar = false;
        records.insert(b"mtime".to_vec(), format_time(header.mtime, header.mtime_nanos));
    }
    keep(&mut records, b"mtime", &format_time(header.mtime, header.mtime_nanos));
    for (key, value) in &header.pax {
        let own = BASIC.contains(&key.as_slice()) || key == b"ctime" || key.starts_with(b"GNU.sparse.");
        if header.kind == Kind::Global || !own {
            records.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    // Records that were read keep the format they were read from.
    ustar &= header.pax.is_empty();
    let clean = records.iter().all(|(key, value)| {
        let text = matches!(key.as_slice(), b"path" | b"linkpath" | b"uname" | b"gname");
        !key.is_empty() && !key.contains(&b'=') && !if text { value.contains(&0) } else { key.contains(&0) }
    });
    let slash = header.name.ends_with(b"/")
        && matches!(header.kind, Kind::Regular | Kind::Character | Kind::Block | Kind::Fifo);
    if !clean || !possible || slash {
        let name = String::from_utf8_lossy(&header.name);
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} cannot be written to an archive"),
        ));
    }
    Ok((records, ustar))
}

fn template(header: &Header, name: &[u8], put: impl Fn(&mut [u8], &[u8])) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[field::FLAG] = header.kind.flag();
    put(&mut block[field::NAME], name);
    put(&mut block[field::LINK], &header.link);
    put_octal(&mut block[field::MODE], header.mode.into());
    put_octal(&mut block[field::UID], i64::try_from(header.uid).unwrap_or(-1));
    put_octal(&mut block[field::GID], i64::try_from(header.gid).unwrap_or(-1));
    put_octal(&mut block[field::SIZE], i64::try_from(header.size).unwrap_or(-1));
    put_octal(&mut block[field::MTIME], header.mtime);
    put(&mut block[field::UNAME], &header.uname);
    put(&mut block[field::GNAME], &header.gname);
    put_octal(&mut block[field::DEV_MAJOR], header.dev_major.into());
    put_octal(&mut block[field::DEV_MINOR], header.dev_minor.into());
    block
}

fn fits_octal(size: usize, value: i64) -> bool {
    let bits = (size - 1) * 3;
    value >= 0 && (bits >= 63 || value < 1 << bits)
}

/// A number that does not fit is written as zero; a PAX record says it then.
fn put_octal(field: &mut [u8], value: i64) {
    let value = if fits_octal(field.len(), value) { value } else { 0 };
    let width = field.len() - 1;
    put_text(field, format!("{value:0width$o}").as_bytes());
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text[..n]);
    if text.len() > field.len() && field.ends_with(b"/") {
        // A name cut at a slash would look like a directory to old readers.
        let keep = field.len() - field.iter().rev().take_while(|b| **b == b'/').count();
        if let Some(cut) = field.get_mut(keep) {
            *cut = 0;
        }
    }
}

fn is_ascii(text: &[u8]) -> bool {
    text.iter().all(|b| (1..0x80).contains(b))
}

fn to_ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|b| (1..0x80).contains(b)).collect()
}

/// Prefix and name of USTAR, split at a slash.
fn split_path(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name_size, prefix_size) = (field::NAME.len(), field::PREFIX.len());
    if name.len() <= name_size || !is_ascii(name) {
        return None;
    }
    let mut length = name.len();
    if length > prefix_size + 1 {
        length = prefix_size + 1;
    } else if name.ends_with(b"/") {
        length -= 1;
    }
    let at = name.get(..length)?.iter().rposition(|b| *b == b'/').filter(|at| *at > 0)?;
    let rest = name.len() - at - 1;
    (rest > 0 && rest <= name_size && at <= prefix_size).then(|| (&name[..at], &name[at + 1..]))
}

/// `dir/PaxHeaders.0/file`, cleaned.
fn pax_name(name: &[u8]) -> Vec<u8> {
    let (dir, file) = match name.iter().rposition(|b| *b == b'/') {
        Some(at) => name.split_at(at + 1),
        None => (&b""[..], name),
    };
    let rooted = name.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    let all = dir.split(|b| *b == b'/').chain([&b"PaxHeaders.0"[..], file]);
    for part in all {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|p| *p != b"..") => _ = parts.pop(),
            b".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join(&b"/"[..]);
    if rooted { [b"/", joined.as_slice()].concat() } else { joined }
}

/// `length key=value\n`, the length counting itself.
fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut size = rest + decimal_len(rest);
    if rest + decimal_len(size) != size {
        size = rest + decimal_len(size);
    }
    out.extend_from_slice(format!("{size} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn decimal_len(n: usize) -> usize {
    n.checked_ilog10().unwrap_or(0) as usize + 1
}

fn format_time(secs: i64, nanos: u32) -> Vec<u8> {
    if nanos == 0 {
        return secs.to_string().into_bytes();
    }
    // Below zero the fraction counts away from the whole seconds shown.
    let (sign, secs, nanos) = match secs {
        ..0 => ("-", -i128::from(secs) - 1, 1_000_000_000 - nanos),
        _ => ("", i128::from(secs), nanos),
    };
    let text = format!("{sign}{secs}.{nanos:09}");
    text.trim_end_matches('0').as_bytes().to_vec()
}
