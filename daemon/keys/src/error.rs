//! What can go wrong with the tables.

use base::{Classify, Kind};

/// An error of the key graph on disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error("key graph")]
    Store(#[from] store::Error),
    /// A name that cannot be part of a row.
    #[error("key {name:?} contains NUL")]
    Name {
        /// The name.
        name: String,
    },
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Store(source) => source.kind(),
            Self::Name { .. } => Kind::InvalidArgument,
        }
    }
}
