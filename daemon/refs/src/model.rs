//! What a record says.

use serde::{Deserialize, Serialize};

/// What a ref is for, as disk usage shows it and collection treats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum RecordType {
    /// A step's result.
    #[default]
    #[serde(rename = "regular")]
    Regular,
    /// The daemon's own.
    #[serde(rename = "internal")]
    Internal,
    /// A frontend's image.
    #[serde(rename = "frontend")]
    Frontend,
    /// A client's directory.
    #[serde(rename = "source.local")]
    LocalSource,
    /// A working copy of a git repository.
    #[serde(rename = "source.git.checkout")]
    GitCheckout,
    /// A cache mount.
    #[serde(rename = "exec.cachemount")]
    CacheMount,
}

impl RecordType {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Internal => "internal",
            Self::Frontend => "frontend",
            Self::LocalSource => "source.local",
            Self::GitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
        }
    }
}

impl std::fmt::Display for RecordType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a new ref is to be.
#[derive(Debug, Clone, Default)]
pub struct NewRef {
    /// For people, in disk usage.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// Keep the mutable ref after it was dropped or committed, so that
    /// [`crate::Refs::get_mutable`] finds it again. Otherwise dropping it
    /// uncommitted removes it.
    pub retain: bool,
}
