//! What can be wrong with a request to export.

use base::{Classify, Digest, Kind};

/// A request or result that cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such exporter.
    #[error("exporter {kind:?} could not be found")]
    Unknown {
        /// What was asked for.
        kind: String,
    },
    /// An option is neither true nor false.
    #[error("{what}: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    NotBool {
        /// Which, in the words of the exporter.
        what: String,
        /// What was given.
        value: String,
    },
    /// An option is no whole number.
    #[error("{what}: strconv.ParseInt: parsing {value:?}: invalid syntax")]
    NotInteger {
        /// Which, in the words of the exporter.
        what: String,
        /// What was given.
        value: String,
    },
    /// An option has a value it cannot have.
    #[error("{what} {value}")]
    Option {
        /// What is wrong with it.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// Two options exclude each other.
    #[error("{0}")]
    Conflict(&'static str),
    /// The result is not of the shape the exporter needs.
    #[error("{0}")]
    Shape(String),
    /// Metadata of the result cannot be read.
    #[error("{what}: {source}")]
    Json {
        /// What cannot be read.
        what: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// An annotation is for a platform the result does not have.
    #[error("invalid annotation: no platform {platform} found in source")]
    AnnotationPlatform {
        /// The platform.
        platform: String,
    },
    /// An image's name is none.
    #[error("failed to parse {name}: {source}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong.
        source: registry::ParseError,
    },
    /// Pushing by digest needs a name without a tag.
    #[error("can't push tagged ref {name} by digest")]
    Tagged {
        /// The name.
        name: String,
    },
    /// An attestation cannot be used.
    #[error("{0}")]
    Attestation(String),
    /// A blob that an image names is not here and nobody has it.
    #[error("content {digest}: not found")]
    NoContent {
        /// The blob.
        digest: Digest,
    },
    /// The files of two platforms have the same name.
    #[error("cannot overwrite {path} from {first} with {second} when split option is disabled")]
    Overlap {
        /// The name.
        path: String,
        /// Whose it was first.
        first: String,
        /// Who also has it.
        second: String,
    },
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoContent { .. } => Kind::NotFound,
            _ => Kind::InvalidArgument,
        }
    }
}

impl Error {
    /// The result is not as it has to be.
    pub(crate) fn shape(what: impl Into<String>) -> Self {
        Self::Shape(what.into())
    }

    /// Metadata that cannot be read.
    pub(crate) fn json(what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { what, source }
    }
}
