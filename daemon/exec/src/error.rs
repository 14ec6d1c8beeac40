//! What can go wrong around a process, as opposed to in it.

use std::path::PathBuf;

use base::{Classify, Kind};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No OCI runtime was found.
    #[error("no OCI runtime found, looked for {}", .candidates.join(", "))]
    NoRuntime {
        /// What was looked for.
        candidates: Vec<String>,
    },
    /// A runtime was found but does not work here.
    #[error("OCI runtime {} does not work here: {message}", .program.display())]
    Runtime {
        /// Its program.
        program: PathBuf,
        /// Its own words.
        message: String,
    },
    /// A container is not running.
    #[error("container {0} not found")]
    NoContainer(String),
    /// A container's name is not made of letters and digits.
    #[error("invalid container id {0:?}: only letters and numbers are allowed")]
    Id(String),
    /// A process without arguments, a mount without destination and the like.
    #[error("{0}")]
    Invalid(String),
    /// A user or group that the root file system does not know.
    #[error("unable to find {what} {name}: no matching entries in {file} file")]
    User {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// `passwd` or `group`.
        file: &'static str,
    },
    /// A file of the root file system is larger than it may be.
    #[error("{path} exceeds {limit} bytes")]
    TooLarge {
        /// Path in the root file system.
        path: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A file operation failed.
    #[error("{action} {}: {source}", .path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] sys::Error),
}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoRuntime { .. } | Self::Runtime { .. } => Kind::FailedPrecondition,
            Self::NoContainer(_) => Kind::NotFound,
            Self::Id(_) | Self::Invalid(_) | Self::User { .. } | Self::TooLarge { .. } => {
                Kind::InvalidArgument
            }
            Self::File { .. } => Kind::Internal,
            Self::Sys(e) => e.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoRuntime { .. } => {
                Some("install runc or crun, or name one with --oci-worker-binary".into())
            }
            _ => None,
        }
    }
}
