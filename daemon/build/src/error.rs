//! What is wrong with a request, or with what a frontend asks.

use base::{Classify, Kind};

/// A build cannot go on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("no such job {0}")]
    UnknownJob(String),
    #[error("build reference is missing")]
    NoRef,
    #[error("frontend {0} not found")]
    UnknownFrontend(String),
    #[error(
        "frontend {name} with source {source_image:?} is not supported: this daemon does not run frontends in containers yet"
    )]
    ExternalFrontend { name: String, source_image: String },
    #[error("no such ref: {0}")]
    UnknownRef(String),
    #[error("{what} are not supported by this daemon yet")]
    Unsupported { what: &'static str },
    #[error("cache {direction} {kind:?} is not supported by this daemon yet")]
    UnknownCache { direction: &'static str, kind: String },
    #[error("gateway return must be either result or err")]
    EmptyReturn,
    #[error("gateway result is already set")]
    ReturnedTwice,
    #[error("granting entitlement {0} is not allowed by build daemon configuration")]
    Entitlement(ops::Entitlement),
    #[error("{path}: no such file or directory")]
    Empty { path: String },
    #[error("the daemon is shutting down; try again in a moment")]
    ShuttingDown,
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::UnknownJob(_) | Self::UnknownFrontend(_) | Self::UnknownRef(_) | Self::Empty { .. } => {
                Kind::NotFound
            }
            Self::ExternalFrontend { .. } | Self::Unsupported { .. } | Self::UnknownCache { .. } => {
                Kind::Unimplemented
            }
            Self::ReturnedTwice => Kind::FailedPrecondition,
            Self::Entitlement(_) => Kind::PermissionDenied,
            Self::ShuttingDown => Kind::Unavailable,
            _ => Kind::InvalidArgument,
        }
    }
}
