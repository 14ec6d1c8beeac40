//! What can go wrong with bytes on disk.

use std::path::{Path, PathBuf};

use base::{Digest, Kind};

/// With this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which file, blob or snapshot, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("{what} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A system call said no.
    #[error(transparent)]
    Sys(#[from] sys::Error),
    /// Overlays were asked for and do not work there.
    #[error("overlays do not work in {}: {source}", .path.display())]
    NoOverlay {
        /// The directory of the snapshots.
        path: PathBuf,
        /// What was tried.
        source: sys::Error,
    },
    /// The database said no.
    #[error("{what} database: {source}")]
    Db {
        /// What was being done.
        what: &'static str,
        /// What it said.
        #[source]
        source: Box<redb::Error>,
    },
    /// A row that does not parse.
    #[error("table {table} key {key:?}: {reason}")]
    Row {
        /// The table.
        table: &'static str,
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A database of a later version of this program.
    #[error("database {} has schema {found}, this program knows up to {known}", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// A blob that is not here.
    #[error("blob {digest}: not found")]
    NoBlob {
        /// Its name.
        digest: Digest,
    },
    /// A snapshot that is not here.
    #[error("snapshot {id}: {reason}")]
    Snapshot {
        /// Its name.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Bytes that are not those that were named.
    #[error("{what} mismatch: expected {expected}, got {found}")]
    Mismatch {
        /// `digest`, `size` or `diff id`.
        what: &'static str,
        /// What was promised.
        expected: String,
        /// What came.
        found: String,
    },
    /// An archive that is broken or malicious.
    #[error("invalid archive: entry {entry:?}: {reason}")]
    Archive {
        /// The entry's name, as far as it is known.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A compression nobody knows.
    #[error("unsupported compression {0:?}")]
    Compression(String),
    /// The work was given up.
    #[error("canceled")]
    Canceled,
    /// A failure that was injected by a test.
    #[cfg(feature = "testing")]
    #[error("fail point {0}")]
    FailPoint(&'static str),
}

impl Error {
    pub(crate) fn io<E: Into<std::io::Error>>(
        what: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { what, path: path.as_ref().to_owned(), source: source.into() }
    }

    pub(crate) fn db<E: Into<redb::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Db { what, source: Box::new(source.into()) }
    }

    pub(crate) fn archive(entry: impl AsRef<[u8]>, reason: impl Into<String>) -> Self {
        Self::Archive { entry: String::from_utf8_lossy(entry.as_ref()).into_owned(), reason: reason.into() }
    }
}

impl base::Classify for Error {
    fn kind(&self) -> Kind {
        use std::io::ErrorKind as E;
        match self {
            Self::Io { source, .. } => match source.kind() {
                E::NotFound => Kind::NotFound,
                E::PermissionDenied => Kind::PermissionDenied,
                E::StorageFull | E::QuotaExceeded => Kind::ResourceExhausted,
                _ => Kind::Internal,
            },
            Self::Sys(e) => e.kind(),
            Self::Db { .. } => Kind::Internal,
            Self::Row { .. } => Kind::DataLoss,
            Self::Newer { .. } | Self::NoOverlay { .. } => Kind::FailedPrecondition,
            Self::NoBlob { .. } | Self::Snapshot { .. } => Kind::NotFound,
            Self::Mismatch { .. } => Kind::DataLoss,
            Self::Archive { .. } | Self::Compression(_) => Kind::InvalidArgument,
            Self::Canceled => Kind::Canceled,
            #[cfg(feature = "testing")]
            Self::FailPoint(_) => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoOverlay { .. } => Some(
                "choose a root directory on a disk, such as a volume, or copies with the snapshotter native"
                    .into(),
            ),
            _ => None,
        }
    }
}
