//! The error of this crate: which call, on what, and what the kernel said.

use std::path::PathBuf;

use base::Kind;

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}: {source}", .path.display())]
pub struct Error {
    /// The call, or what it was to do.
    pub call: &'static str,
    /// What it was done to.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: std::io::Error,
}

/// With this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `call` on `path` failed with `source`.
    pub fn new(call: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        Self { call, path: path.into(), source: source.into() }
    }
}

impl base::Classify for Error {
    fn kind(&self) -> Kind {
        use std::io::ErrorKind as E;
        match self.source.kind() {
            E::NotFound => Kind::NotFound,
            E::AlreadyExists => Kind::AlreadyExists,
            E::PermissionDenied => Kind::PermissionDenied,
            E::StorageFull | E::QuotaExceeded => Kind::ResourceExhausted,
            E::InvalidInput | E::NotADirectory | E::IsADirectory | E::InvalidFilename => {
                Kind::InvalidArgument
            }
            _ => Kind::Internal,
        }
    }
}
