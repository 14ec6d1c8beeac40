//! How layers are compressed.

use std::io::{self, BufReader, Read, Write};
use std::str::FromStr;

use base::descriptor::media;
use flate2::{GzBuilder, bufread::MultiGzDecoder, write::GzEncoder};

use crate::{Error, Result};

/// The compression of a layer blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CompressionKind {
    /// A plain tar.
    Uncompressed,
    /// What everybody reads.
    #[default]
    Gzip,
    /// Smaller and faster.
    Zstd,
}

impl CompressionKind {
    /// The kind of a layer of this media type.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        if !media_type.contains(".layer.") && !media_type.contains(".rootfs.") {
            return None;
        }
        // Also those that are not to be distributed.
        match media_type.rsplit(['+', '.']).next() {
            Some("tar") => Some(Self::Uncompressed),
            Some("gzip") => Some(Self::Gzip),
            Some("zstd") => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The OCI media type of a layer of this kind.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Uncompressed => media::OCI_LAYER,
            Self::Gzip => media::OCI_LAYER_GZIP,
            Self::Zstd => media::OCI_LAYER_ZSTD,
        }
    }

    /// The name in options.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uncompressed => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

impl FromStr for CompressionKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "uncompressed" => Ok(Self::Uncompressed),
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            other => Err(Error::Compression(other.to_owned())),
        }
    }
}

/// How layers are to be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Compression {
    /// The kind, for layers that have no blob yet.
    pub kind: CompressionKind,
    /// Also convert layers that have one of another kind.
    pub force: bool,
    /// The level, or the usual one: gzip 0–9, zstd 1–22; others are clamped.
    pub level: Option<i32>,
}

/// Compresses what is written to it. One stream, one thread: the bytes depend
/// on the level only.
pub enum Compressor<W: Write> {
    /// As it is.
    Plain(W),
    /// Without a name or time in its header.
    Gzip(GzEncoder<W>),
    /// One frame.
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    /// Compresses into `output`.
    ///
    /// # Errors
    /// When the compressor cannot be set up.
    pub fn new(compression: Compression, output: W) -> io::Result<Self> {
        Ok(match compression.kind {
            CompressionKind::Uncompressed => Self::Plain(output),
            CompressionKind::Gzip => {
                let level = match compression.level {
                    Some(level) => flate2::Compression::new(level.clamp(0, 9).unsigned_abs()),
                    None => flate2::Compression::default(),
                };
                // 255: made on no particular system.
                Self::Gzip(GzBuilder::new().operating_system(255).write(output, level))
            }
            CompressionKind::Zstd => {
                let level = compression.level.map_or(zstd::DEFAULT_COMPRESSION_LEVEL, |l| l.clamp(1, 22));
                Self::Zstd(zstd::Encoder::new(output, level)?)
            }
        })
    }

    /// Writes what is left and gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(output) => Ok(output),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(buf),
            Self::Gzip(encoder) => encoder.write(buf),
            Self::Zstd(encoder) => encoder.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// What a decompressor reads: the bytes it looked at, then the rest.
type Peeked<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>;

/// Undoes whatever compression the first bytes show. Several members or
/// frames after each other are one stream.
pub enum Decompressor<R: Read> {
    /// As it is.
    Plain(Peeked<R>),
    /// gzip.
    Gzip(Box<MultiGzDecoder<Peeked<R>>>),
    /// Zstandard.
    Zstd(zstd::Decoder<'static, Peeked<R>>),
}

impl<R: Read> Decompressor<R> {
    /// Looks at the first bytes of `input`.
    ///
    /// # Errors
    /// Those of `input`.
    pub fn new(mut input: R) -> io::Result<Self> {
        let mut magic = Vec::with_capacity(4);
        input.by_ref().take(4).read_to_end(&mut magic)?;
        let input = BufReader::with_capacity(128 << 10, io::Cursor::new(magic.clone()).chain(input));
        Ok(match magic.as_slice() {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            // A frame, or one that is to be skipped and precedes one.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                Self::Zstd(zstd::Decoder::with_buffer(input)?)
            }
            _ => Self::Plain(input),
        })
    }

    /// Which compression it was.
    pub fn kind(&self) -> CompressionKind {
        match self {
            Self::Plain(_) => CompressionKind::Uncompressed,
            Self::Gzip(_) => CompressionKind::Gzip,
            Self::Zstd(_) => CompressionKind::Zstd,
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buf),
            Self::Gzip(decoder) => decoder.read(buf),
            Self::Zstd(decoder) => decoder.read(buf),
        }
    }
}
