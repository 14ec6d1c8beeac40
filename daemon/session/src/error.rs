//! What can go wrong between the daemon and a client.

use std::io;

use base::{Classify, Failure, Kind};

/// An error of a session or of a question asked through one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None of the sessions that could answer is there.
    #[error("no active sessions")]
    NoSessions,
    /// The session did not appear in time.
    #[error("no active session for {id}: {cause}")]
    NotFound {
        /// The session asked for.
        id: String,
        /// Why the wait ended.
        cause: String,
    },
    /// The session is gone.
    #[error("session {id} is gone: {cause}")]
    Gone {
        /// The session.
        id: String,
        /// Why it ended.
        cause: Failure,
    },
    /// The client's request to open a session makes no sense.
    #[error("invalid session request: {0}")]
    BadRequest(&'static str),
    /// The client does not offer the method.
    #[error("method {0} not supported by the client")]
    Unsupported(&'static str),
    /// The client offers no files.
    #[error("no local sources enabled")]
    NoLocalSources,
    /// The client answered with an error.
    #[error("{}", failure)]
    Peer {
        /// Its answer.
        failure: Failure,
    },
    /// The client took longer than it may.
    #[error("{what} timed out after {seconds} s")]
    Timeout {
        /// What was asked.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// A secret that the client does not have.
    #[error("secret {id}: not found")]
    NoSecret {
        /// Its id.
        id: String,
    },
    /// A secret larger than a secret may be.
    #[error("invalid secret size {size} for {id}: limit is {limit} bytes")]
    SecretTooLarge {
        /// Its id.
        id: String,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The client does not want the file: it has it already.
    #[error("target already exists")]
    Declined,
    /// The peer of a transfer broke the protocol.
    #[error("invalid transfer: {0}")]
    Protocol(String),
    /// The peer of a transfer gave up.
    #[error("error from {side}: {message}")]
    Remote {
        /// `sender` or `receiver`.
        side: &'static str,
        /// What it said.
        message: String,
    },
    /// The peer of a transfer went away in the middle.
    #[error("transfer ended in the middle: {0}")]
    Broken(String),
    /// A file operation failed.
    #[error("{verb} {path}")]
    Io {
        /// What was done.
        verb: &'static str,
        /// To which file.
        path: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A pattern is not one.
    #[error("invalid {what} patterns {patterns:?}: {reason}")]
    Pattern {
        /// `include` or `exclude`.
        what: &'static str,
        /// All of them.
        patterns: Vec<String>,
        /// What is wrong.
        reason: String,
    },
    /// Something else failed on our side.
    #[error("{0}")]
    Own(Failure),
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoSessions | Self::NotFound { .. } => Kind::Unavailable,
            Self::Gone { cause, .. } => match cause.kind() {
                Kind::Canceled => Kind::Canceled,
                _ => Kind::Unavailable,
            },
            Self::BadRequest(_) | Self::Protocol(_) | Self::Pattern { .. } => Kind::InvalidArgument,
            Self::Unsupported(_) => Kind::Unimplemented,
            Self::NoLocalSources => Kind::Unknown,
            Self::Peer { failure } | Self::Own(failure) => failure.kind(),
            Self::Timeout { .. } => Kind::DeadlineExceeded,
            Self::NoSecret { .. } => Kind::NotFound,
            Self::SecretTooLarge { .. } => Kind::InvalidArgument,
            Self::Declined => Kind::AlreadyExists,
            Self::Remote { .. } => Kind::Unknown,
            Self::Broken(_) => Kind::Unavailable,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
                _ => Kind::Unknown,
            },
        }
    }
}

impl Error {
    /// An error of the operation `verb` on `path`.
    pub(crate) fn io(verb: &'static str, path: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { verb, path: path.into(), source: source.into() }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Peer { failure: crate::status::from_status(&status) }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Own(failure)
    }
}
