//! eStargz: layers whose files can be fetched one by one.
//!
//! Such a layer is a gzipped tar to everybody. To those who know, every file
//! begins a member of its own, big ones several; the last member but one is a
//! tar with nothing but a table of contents, `stargz.index.json`; and an empty
//! member of 51 bytes at the very end says where that begins. The table is part
//! of the uncompressed layer too, so that the layer has another diff id. The
//! tar is kept as it is, byte for byte.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufWriter, Read, Write};
use std::time::{Duration, UNIX_EPOCH};

use base::digest::Hasher;
use base::{Digest, Timestamp};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

use crate::blobs::{Blobs, Ingest, Pin};
use crate::compress::{Compression, CompressionKind, Compressor, Decompressor};
use crate::layer::UNCOMPRESSED;
use crate::tar::{Header, Kind, Reader, Writer};
use crate::{Error, Result};

/// The name of the table of contents in its tar.
const TOC: &str = "stargz.index.json";
/// Bytes of a file that one member holds.
const CHUNK: u64 = 4 << 20;
/// So many entries fit into anybody's memory.
const MAX_ENTRIES: usize = 4 << 20;

/// A layer that was written this way.
#[derive(Clone)]
pub struct Estargz {
    /// The blob; its digest and size are of the compressed bytes.
    pub blob: Pin,
    /// The digest of the uncompressed bytes, the table of contents included.
    pub diff_id: Digest,
    /// How many those are.
    pub uncompressed_size: u64,
    /// The digest of the table of contents.
    pub toc: Digest,
}

/// An entry of the table of contents, in the order in which others write it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    modtime: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    user_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    group_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

#[derive(Serialize)]
struct Table<'a> {
    version: u32,
    entries: &'a [Entry],
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Names are told once for each id.
#[derive(Default)]
struct Names(HashMap<u64, Vec<u8>>);

impl Names {
    fn changed(&mut self, id: u64, name: &[u8]) -> String {
        if name.is_empty() || self.0.get(&id).is_some_and(|known| known == name) {
            return String::new();
        }
        self.0.insert(id, name.to_vec());
        lossy(name)
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn modtime(header: &Header) -> String {
    let secs = header.mtime.saturating_add(i64::from(header.mtime_nanos >= 500_000_000));
    match u64::try_from(secs) {
        Ok(1..) if header.mtime != 0 => {
            let at = UNIX_EPOCH.checked_add(Duration::from_secs(secs.unsigned_abs()));
            at.map(|at| Timestamp::from(at).to_string()).unwrap_or_default()
        }
        // None, or before there was one.
        _ => String::new(),
    }
}

impl Entry {
    fn new(header: &Header, users: &mut Names, groups: &mut Names) -> Result<Self> {
        let kind = match header.kind {
            Kind::HardLink => "hardlink",
            Kind::Symlink => "symlink",
            Kind::Directory => "dir",
            Kind::Regular => "reg",
            Kind::Character => "char",
            Kind::Block => "block",
            Kind::Fifo => "fifo",
            _ => return Err(Error::archive(&header.name, "not possible in an estargz layer")),
        };
        let of = |kinds: &[Kind], value: u64| if kinds.contains(&header.kind) { value } else { 0 };
        let devices = [Kind::Character, Kind::Block];
        let links = matches!(header.kind, Kind::HardLink | Kind::Symlink);
        Ok(Self {
            name: lossy(&header.name),
            r#type: kind,
            size: of(&[Kind::Regular], header.size),
            modtime: modtime(header),
            link_name: if links { lossy(&header.link) } else { String::new() },
            mode: u64::from(header.mode),
            uid: header.uid,
            gid: header.gid,
            user_name: users.changed(header.uid, &header.uname),
            group_name: groups.changed(header.gid, &header.gname),
            dev_major: of(&devices, u64::from(header.dev_major)),
            dev_minor: of(&devices, u64::from(header.dev_minor)),
            xattrs: header.xattrs().map(|(k, v)| (lossy(k), BASE64_STANDARD.encode(v))).collect(),
            ..Self::default()
        })
    }
}

/// Counts what is written to the blob.
struct Counting {
    inner: BufWriter<Ingest>,
    written: u64,
}

impl Write for Counting {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Where the output stands: between members, or in one.
enum State {
    Between(Counting),
    In(Box<Compressor<Counting>>),
    Broken,
}

/// The members of the layer.
struct Members {
    state: State,
    compression: Compression,
    diff_id: Hasher,
    uncompressed: u64,
}

impl Members {
    /// Ends the member, if one is open. How long the blob is.
    fn close(&mut self) -> io::Result<u64> {
        let output = match std::mem::replace(&mut self.state, State::Broken) {
            State::Between(output) => output,
            State::In(member) => member.finish()?,
            State::Broken => return Err(io::Error::other("the output failed before")),
        };
        let written = output.written;
        self.state = State::Between(output);
        Ok(written)
    }
}

impl Write for Members {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.state = match std::mem::replace(&mut self.state, State::Broken) {
            State::Between(output) => State::In(Box::new(Compressor::new(self.compression, output)?)),
            other => other,
        };
        let State::In(member) = &mut self.state else {
            return Err(io::Error::other("the output failed before"));
        };
        member.write_all(buf)?;
        self.diff_id.update(buf);
        self.uncompressed += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file whose data are on their way.
struct Data {
    name: String,
    size: u64,
    at: u64,
    /// Where in the table its first part stands.
    first: usize,
    whole: Hasher,
    chunk: Hasher,
}

/// The tar, which is written as it is read.
struct Tee<R> {
    input: R,
    output: Members,
    entries: Vec<Entry>,
    data: Option<Data>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(data) = &mut self.data else {
            let n = self.input.read(buf)?;
            self.output.write_all(buf.get(..n).unwrap_or_default())?;
            return Ok(n);
        };
        let in_chunk = data.at % CHUNK;
        if in_chunk == 0 {
            let offset = self.output.close()?;
            let left = data.size - data.at;
            // The last part's size is known without being told.
            let chunk_size = if left >= CHUNK { CHUNK } else { 0 };
            if data.at == 0 {
                if let Some(entry) = self.entries.get_mut(data.first) {
                    (entry.offset, entry.chunk_size) = (offset, chunk_size);
                }
            } else {
                let name = data.name.clone();
                let chunk_offset = data.at;
                self.entries.push(Entry {
                    name,
                    r#type: "chunk",
                    offset,
                    chunk_offset,
                    chunk_size,
                    ..Entry::default()
                });
            }
        }
        let most = (data.size - data.at).min(CHUNK - in_chunk);
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..most).unwrap_or_default();
        let n = self.input.read(part)?;
        let part = part.get(..n).unwrap_or_default();
        self.output.write_all(part)?;
        data.whole.update(part);
        data.chunk.update(part);
        data.at += n as u64;
        let ended = data.at == data.size;
        if (data.at % CHUNK == 0 || ended)
            && n > 0
            && let Some(entry) = self.entries.last_mut()
        {
            entry.chunk_digest = std::mem::take(&mut data.chunk).finish().to_string();
        }
        if ended && let Some(data) = self.data.take() {
            let digest = data.whole.finish().to_string();
            if let Some(entry) = self.entries.get_mut(data.first) {
                entry.digest = digest;
            }
        }
        Ok(n)
    }
}

/// Writes `layer`, compressed in whatever way, as one whose files can be fetched
/// one by one. `level` is that of gzip. Blocks for as long as it takes.
///
/// # Errors
/// When it is not a layer, has something in it that such a layer cannot have, or
/// the disk refuses; nothing is left then.
pub fn write_estargz(blobs: &Blobs, layer: impl Read, level: Option<i32>) -> Result<Estargz> {
    let failed = |e: io::Error| Error::io("write", "layer")(e);
    let input = Decompressor::new(layer).map_err(Error::io("read", "layer"))?;
    let inner = BufWriter::with_capacity(128 << 10, blobs.ingest()?);
    let output = Members {
        state: State::Between(Counting { inner, written: 0 }),
        compression: Compression { kind: CompressionKind::Gzip, level, ..Compression::default() },
        diff_id: Hasher::new(),
        uncompressed: 0,
    };
    let mut reader = Reader::new(Tee { input, output, entries: Vec::new(), data: None });
    let (mut users, mut groups) = (Names::default(), Names::default());
    while let Some(header) = reader.next_entry()? {
        let name = lossy(&header.name);
        if name.trim_start_matches("./").trim_start_matches('/') == TOC {
            return Err(Error::archive(&header.name, "is an estargz layer already"));
        }
        if reader.is_sparse() {
            return Err(Error::archive(&header.name, "sparse files are not possible in an estargz layer"));
        }
        let entry = Entry::new(&header, &mut users, &mut groups)?;
        let tee = reader.input_mut();
        if tee.entries.len() >= MAX_ENTRIES {
            return Err(Error::archive(&header.name, "too many entries for an estargz layer"));
        }
        let first = tee.entries.len();
        tee.entries.push(entry);
        if header.kind != Kind::Regular {
            continue;
        }
        if header.size == 0 {
            if let Some(entry) = tee.entries.last_mut() {
                entry.digest = Digest::of(b"").to_string();
            }
            continue;
        }
        let (whole, chunk) = (Hasher::new(), Hasher::new());
        tee.data = Some(Data { name, size: header.size, at: 0, first, whole, chunk });
        reader.copy_data(|_, _| Ok(()))?;
    }
    let mut tee = reader.into_inner();
    // What comes after the end mark is part of the layer.
    io::copy(&mut tee, &mut io::sink()).map_err(failed)?;
    let Tee { output, entries, .. } = tee;
    finish(output, &entries).map_err(failed).and_then(|(ingest, diff_id, uncompressed_size, toc)| {
        let labels = BTreeMap::from([(UNCOMPRESSED.to_owned(), diff_id.to_string())]);
        Ok(Estargz { blob: ingest.commit(None, labels)?, diff_id, uncompressed_size, toc })
    })
}

/// Writes the table of contents and where it is.
fn finish(mut output: Members, entries: &[Entry]) -> io::Result<(Ingest, Digest, u64, Digest)> {
    let at = output.close()?;
    let mut json = Vec::new();
    let style = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    Table { version: 1, entries }
        .serialize(&mut serde_json::Serializer::with_formatter(&mut json, style))
        .map_err(io::Error::from)?;
    let toc = Digest::of(&json);
    let mut tar = Writer::new(&mut output);
    tar.header(&Header { size: json.len() as u64, ..Header::new(Kind::Regular, TOC) })?;
    tar.write_all(&json)?;
    tar.finish()?;
    output.close()?;
    let Members { state: State::Between(mut blob), diff_id, uncompressed, .. } = output else {
        return Err(io::Error::other("the output failed before"));
    };
    blob.write_all(&footer(at))?;
    let ingest = blob.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok((ingest, diff_id.finish(), uncompressed, toc))
}

/// An empty member of gzip that says in an extra field where the table of
/// contents begins.
fn footer(at: u64) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
    out.extend([26, 0, b'S', b'G', 22, 0]);
    out.extend(format!("{at:016x}STARGZ").as_bytes());
    // A stored block without anything in it, the checksum and size of nothing.
    out.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_can_be_read_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::Store::open(dir.path(), crate::Options::default()).unwrap();
        let big: Vec<u8> = (0..CHUNK + 5).map(|n| (n % 251) as u8).collect();
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000);
            header.set_username("me").unwrap();
            tar.append_data(&mut header, name, data).unwrap();
        };
        add("a", b"hello");
        add("empty", b"");
        add("big", &big);
        let tar = tar.into_inner().unwrap();

        let written = write_estargz(store.blobs(), &*tar, None).unwrap();
        let mut blob = Vec::new();
        written.blob.open().unwrap().read_to_end(&mut blob).unwrap();
        assert_eq!(Digest::of(&blob), *written.blob.digest());

        // To everybody it is the tar, and the table after it.
        let mut plain = Vec::new();
        Decompressor::new(&*blob).unwrap().read_to_end(&mut plain).unwrap();
        assert!(plain.starts_with(&tar));
        assert_eq!(Digest::of(&plain), written.diff_id);
        assert_eq!(plain.len() as u64, written.uncompressed_size);

        // To those who know, the end tells where the table is, and that where the files are.
        let footer = &blob[blob.len() - 51..];
        assert_eq!(&footer[32..38], b"STARGZ");
        let at = std::str::from_utf8(&footer[16..32]).unwrap();
        let at = usize::from_str_radix(at, 16).unwrap();
        let member = |at: usize| {
            let mut out = Vec::new();
            flate2::read::GzDecoder::new(&blob[at..]).read_to_end(&mut out).unwrap();
            out
        };
        let toc = member(at);
        let size = toc[512..].iter().position(|b| *b == 0).unwrap();
        let json = &toc[512..512 + size];
        assert_eq!(Digest::of(json), written.toc);
        assert!(json.starts_with(b"{\n\t\"version\": 1,\n\t\"entries\": [\n\t\t{\n\t\t\t\"name\": \"a\",\n"));
        let table: serde_json::Value = serde_json::from_slice(json).unwrap();
        let entries = table["entries"].as_array().unwrap();
        let offset = |n: usize| entries[n]["offset"].as_u64().unwrap() as usize;
        let text = |e: &serde_json::Value, key: &str| e[key].as_str().unwrap().to_owned();
        let kinds: Vec<_> = entries.iter().map(|e| text(e, "name") + " " + &text(e, "type")).collect();
        assert_eq!(kinds, ["a reg", "empty reg", "big reg", "big chunk"]);
        assert_eq!(entries[0]["modtime"], "2023-11-14T22:13:20Z");
        assert_eq!((&entries[0]["userName"], entries[2].get("userName")), (&serde_json::json!("me"), None));
        assert!(member(offset(0)).starts_with(b"hello"));
        assert_eq!(entries[0]["digest"], Digest::of("hello").as_str());
        assert_eq!(entries[2]["digest"], Digest::of(&big).as_str());
        assert_eq!(entries[2]["chunkSize"], CHUNK);
        assert_eq!(member(offset(2)), big[..CHUNK as usize]);
        assert_eq!(entries[3]["chunkOffset"], CHUNK);
        assert!(member(offset(3)).starts_with(&big[CHUNK as usize..]));
        assert_eq!(entries[3]["chunkDigest"], Digest::of(&big[CHUNK as usize..]).as_str());

        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        tar.append_data(&mut header, TOC, &b""[..]).unwrap();
        let refused = write_estargz(store.blobs(), &*tar.into_inner().unwrap(), None).err().unwrap();
        assert!(refused.to_string().contains("already"), "{refused}");
    }
}
