//! What is wrong with a request, or with what a frontend asks.

use base::{Classify, Kind};

/// A build cannot go on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("no such job {0}")]
    UnknownJob(String),
    #[error("ref {0} is deleted: file does not exist")]
    DeletedRecord(String),
    #[error("build reference is missing")]
    NoRef,
    #[error("frontend {0} not found")]
    UnknownFrontend(String),
    #[error("no source specified for gateway")]
    NoSource,
    #[error("development gateway is no longer supported")]
    Development,
    #[error("'{0}' is not an allowed gateway source")]
    SourceNotAllowed(String),
    #[error("gateway source didn't return default result")]
    EmptySource,
    #[error("unsupported frontend capability {0}")]
    FrontendCap(String),
    #[error("frontend grpc server closed unexpectedly")]
    FrontendGone,
    #[error("no result for incomplete build")]
    Incomplete,
    #[error(
        "failed to find ref {id} for {} mount: return reference {id} not found",
        base::gotext::quote(dest)
    )]
    MountRef { id: String, dest: String },
    #[error("return reference {0} not found")]
    ReturnRef(String),
    #[error("Container {0} already exists")]
    ContainerExists(String),
    #[error("container details for {0} not found")]
    NoContainer(String),
    #[error("no such ref: {0}")]
    UnknownRef(String),
    #[error("gateway return must be either result or err")]
    EmptyReturn,
    #[error("gateway result is already set")]
    ReturnedTwice,
    #[error("granting entitlement {0} is not allowed by build daemon configuration")]
    Entitlement(ops::Entitlement),
    #[error("the daemon is shutting down; try again in a moment")]
    ShuttingDown,
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::UnknownJob(_)
            | Self::DeletedRecord(_)
            | Self::UnknownFrontend(_)
            | Self::UnknownRef(_)
            | Self::MountRef { .. }
            | Self::ReturnRef(_)
            | Self::NoContainer(_) => Kind::NotFound,
            Self::FrontendCap(_) => Kind::Unimplemented,
            Self::ContainerExists(_) => Kind::AlreadyExists,
            Self::SourceNotAllowed(_) => Kind::PermissionDenied,
            Self::FrontendGone | Self::Incomplete => Kind::Unknown,
            Self::ReturnedTwice => Kind::FailedPrecondition,
            Self::Entitlement(_) => Kind::PermissionDenied,
            Self::ShuttingDown => Kind::Unavailable,
            _ => Kind::InvalidArgument,
        }
    }
}
