//! What can be wrong with a ref, as far as callers tell cases apart.

use base::{Digest, Kind};

/// Why a ref could not be had. Everything that is read, written or fetched on
/// the way to one reports a [`base::Failure`] instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such record, or it is being removed.
    #[error("{id}: not found")]
    NotFound {
        /// The record.
        id: String,
    },
    /// Somebody else holds it.
    #[error("{id}: locked")]
    Locked {
        /// The record.
        id: String,
    },
    /// It is not of the sort that was asked for.
    #[error("{id} is not {wanted}")]
    Sort {
        /// The record.
        id: String,
        /// `mutable` or `immutable`.
        wanted: &'static str,
    },
    /// A lazy layer that nobody knows where to fetch.
    #[error("{id}: no source for missing blob {digest}")]
    NoSource {
        /// The record.
        id: String,
        /// The blob.
        digest: Digest,
    },
    /// What is asked for cannot be made of these refs.
    #[error("{0}")]
    Invalid(String),
    /// A filter that does not parse.
    #[error(transparent)]
    Filter(#[from] base::filter::ParseError),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl base::Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } | Self::NoSource { .. } => Kind::NotFound,
            Self::Locked { .. } => Kind::Unavailable,
            Self::Sort { .. } | Self::Invalid(_) | Self::Filter(_) => Kind::InvalidArgument,
            Self::Store(e) => e.kind(),
        }
    }
}
