//! Layers in one pass: read, hash, compress or decompress, hash, write.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use base::Digest;
use base::digest::Hasher;

use crate::apply::{Applied, Whiteouts, apply};
use crate::blobs::{Blobs, Pin};
use crate::changes::{double_walk, overlay_walk};
use crate::compress::{Compression, Compressor, Decompressor};
use crate::diff::ChangeWriter;
use crate::tar::{Kind, Reader, Writer};
use crate::{Error, Result};

/// The label that says what the digest of the uncompressed bytes is.
pub(crate) const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// What a layer is made of.
#[derive(Debug, Clone, Copy)]
pub enum DiffSource<'a> {
    /// What an overlay's upper directory changes in the tree below.
    Upper {
        /// The tree below, mounted; none for a bottom layer.
        lower: Option<&'a Path>,
        /// The upper directory itself.
        upper: &'a Path,
    },
    /// What one tree has that another has not.
    Trees {
        /// The tree below; none for a bottom layer.
        lower: Option<&'a Path>,
        /// The tree above; none deletes everything.
        upper: Option<&'a Path>,
    },
}

/// A layer that is a blob now.
#[derive(Clone)]
pub struct WrittenLayer {
    /// The blob; its digest and size are of the compressed bytes.
    pub blob: Pin,
    /// The digest of the uncompressed bytes.
    pub diff_id: Digest,
    /// How it was compressed.
    pub compression: Compression,
}

/// Hashes what is written through it.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// Runs `fill` on a stream that becomes a blob.
fn compressed(
    blobs: &Blobs,
    compression: Compression,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<WrittenLayer> {
    let write = Error::io::<io::Error>("write", "layer");
    let output = BufWriter::with_capacity(128 << 10, blobs.ingest()?);
    let compressor = Compressor::new(compression, output).map_err(Error::io("compress", "layer"))?;
    let mut stream =
        BufWriter::with_capacity(128 << 10, Hashing { inner: compressor, hasher: Hasher::new() });
    fill(&mut stream)?;
    let finished = stream.into_inner().map_err(io::IntoInnerError::into_error).and_then(|hashing| {
        let output = hashing.inner.finish()?;
        let ingest = output.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((hashing.hasher.finish(), ingest))
    });
    let (diff_id, ingest) = finished.map_err(write)?;
    let labels = BTreeMap::from([(UNCOMPRESSED.to_owned(), diff_id.to_string())]);
    Ok(WrittenLayer { blob: ingest.commit(None, labels)?, diff_id, compression })
}

/// Writes what changed as a layer blob. Blocks for as long as it takes.
///
/// # Errors
/// When a file cannot be read or the disk refuses; nothing is left then.
pub fn write_layer(blobs: &Blobs, source: DiffSource<'_>, compression: Compression) -> Result<WrittenLayer> {
    compressed(blobs, compression, |output| {
        let nothing = blobs.nothing();
        match source {
            DiffSource::Upper { lower, upper } => {
                let mut writer = ChangeWriter::new(output, upper);
                overlay_walk(lower, upper, &mut |c| writer.change(c))?;
                writer.finish().map(drop)
            }
            DiffSource::Trees { lower, upper } => {
                let upper = upper.unwrap_or(&nothing);
                let mut writer = ChangeWriter::new(output, upper);
                double_walk(lower, upper, &mut |c| writer.change(c))?;
                writer.finish().map(drop)
            }
        }
    })
}

/// Compresses a layer another way. With `not_after`, seconds since 1970, its
/// entries become no younger than that, which makes it another layer.
///
/// # Errors
/// When it is not a layer or the disk refuses; nothing is left then.
pub fn convert_layer(
    blobs: &Blobs,
    layer: impl Read,
    compression: Compression,
    not_after: Option<i64>,
) -> Result<WrittenLayer> {
    let mut input = Decompressor::new(layer).map_err(Error::io("read", "layer"))?;
    compressed(blobs, compression, |output| match not_after {
        None => io::copy(&mut input, output).map(drop).map_err(Error::io("convert", "layer")),
        Some(limit) => rewrite_times(&mut input, output, limit),
    })
}

fn rewrite_times(input: impl Read, output: &mut dyn Write, limit: i64) -> Result<()> {
    let mut reader = Reader::new(input);
    let mut writer = Writer::new(output);
    let failed = |e: io::Error| Error::io("write", "layer")(e);
    while let Some(mut header) = reader.next_entry()? {
        if header.kind != Kind::Global && (header.mtime, header.mtime_nanos) > (limit, 0) {
            (header.mtime, header.mtime_nanos) = (limit, 0);
        }
        // Those would let the change show.
        for key in ["mtime", "atime", "ctime"] {
            header.pax.remove(key.as_bytes());
        }
        writer.header(&header).map_err(failed)?;
        let mut at = 0;
        let zeros = [0; 4096];
        let fill = |writer: &mut Writer<_>, at: &mut u64, to: u64| -> Result<()> {
            while *at < to {
                let n = (to - *at).min(zeros.len() as u64);
                writer.write_all(&zeros[..n as usize]).map_err(failed)?;
                *at += n;
            }
            Ok(())
        };
        reader.copy_data(|offset, bytes| {
            fill(&mut writer, &mut at, offset)?;
            at += bytes.len() as u64;
            writer.write_all(bytes).map_err(failed)
        })?;
        fill(&mut writer, &mut at, header.size)?;
    }
    writer.finish().map(drop).map_err(failed)
}

/// Unpacks a layer, compressed in whatever way, into `dir`, and reads `layer`
/// to its very end.
///
/// # Errors
/// [`Error::Mismatch`] when the uncompressed bytes are not `diff_id`, else as
/// for [`apply`]. What was unpacked until then is left to the caller.
pub fn unpack_layer(
    layer: impl Read,
    dir: &Path,
    whiteouts: Whiteouts,
    diff_id: Option<&Digest>,
) -> Result<Applied> {
    let mut layer = layer;
    let decompressor = Decompressor::new(&mut layer).map_err(Error::io("read", "layer"))?;
    let mut hashing = Hashing { inner: decompressor, hasher: Hasher::new() };
    let mut buffered = io::BufReader::with_capacity(128 << 10, &mut hashing);
    let applied = apply(&mut buffered, dir, whiteouts)?;
    // Padding after the end mark belongs to the digest.
    let rest = io::copy(&mut buffered, &mut io::sink());
    rest.map_err(|e| Error::archive("", e.to_string()))?;
    let found = hashing.hasher.finish();
    drop(hashing.inner);
    io::copy(&mut layer, &mut io::sink()).map_err(Error::io("read", "layer"))?;
    match diff_id {
        Some(expected) if *expected != found => {
            Err(Error::Mismatch { what: "diff id", expected: expected.to_string(), found: found.to_string() })
        }
        _ => Ok(applied),
    }
}
