//! What can be wrong with a remote cache.

use base::{Classify, Digest, Kind};

/// A remote cache cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("unknown cache exporter: {0:?}")]
    UnknownExporter(String),
    #[error("unknown cache importer: {0}")]
    UnknownImporter(String),
    #[error("{0}")]
    Attribute(String),
    #[error("failed to parse {key}: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    NotBool { key: &'static str, value: String },
    #[error("invalid cache config: {0}")]
    Config(String),
    #[error("blob {digest} is too large ({size} > {limit})")]
    TooLarge { digest: Digest, size: u64, limit: u64 },
    #[error("blob {wanted} has the content of {found}")]
    Mismatch { wanted: Digest, found: Digest },
    #[error("invalid {what}: {reason}")]
    Document { what: &'static str, reason: String },
    #[error(
        "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format"
    )]
    NeedsOci,
    #[error("duplicate cache exports [{0}]")]
    Duplicate(String),
    #[error("missing blob {0}")]
    Missing(Digest),
}

impl Error {
    pub(crate) fn config(what: impl Into<String>) -> Self {
        Self::Config(what.into())
    }

    pub(crate) fn attribute(what: impl Into<String>) -> Self {
        Self::Attribute(what.into())
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Config(_) | Self::TooLarge { .. } | Self::Mismatch { .. } | Self::Document { .. } => {
                Kind::DataLoss
            }
            Self::Missing(_) => Kind::NotFound,
            _ => Kind::InvalidArgument,
        }
    }
}
