//! How layers are compressed.

use std::str::FromStr;

use base::descriptor::media;

use crate::Error;

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
        match media_type {
            media::OCI_LAYER | media::DOCKER_LAYER => Some(Self::Uncompressed),
            media::OCI_LAYER_GZIP | media::DOCKER_LAYER_GZIP => Some(Self::Gzip),
            media::OCI_LAYER_ZSTD | media::DOCKER_LAYER_ZSTD => Some(Self::Zstd),
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

    fn from_str(text: &str) -> Result<Self, Error> {
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
