//! What can go wrong, on our side and on that of a plugin.

use std::path::PathBuf;

use base::{Classify, Kind};
use serde::{Deserialize, Serialize};

/// The error of a plugin, as it stands on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}", self.details_text())]
#[serde(rename_all = "camelCase")]
pub struct PluginError {
    /// Version of the specification.
    #[serde(default)]
    pub cni_version: String,
    /// Number of the error; see [`Code`].
    pub code: u32,
    /// What happened.
    pub msg: String,
    /// More of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Numbers of errors the specification has fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The version asked for is not spoken.
    IncompatibleVersion = 1,
    /// A field of the configuration is not understood.
    UnsupportedField = 2,
    /// The container is not known or does not exist.
    UnknownContainer = 3,
    /// An environment variable is missing or invalid.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The configuration is no JSON.
    Decode = 6,
    /// The configuration makes no sense.
    InvalidConfig = 7,
    /// It may work later.
    TryAgain = 11,
    /// The plugin cannot work now.
    Unavailable = 50,
    /// Anything else.
    Other = 999,
}

impl PluginError {
    /// An error of a plugin.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { cni_version: String::new(), code: code as u32, msg: msg.into(), details: String::new() }
    }

    /// An error without a number of its own.
    pub fn other(msg: impl Into<String>) -> Self {
        Self::new(Code::Other, msg)
    }

    fn details_text(&self) -> String {
        if self.details.is_empty() { String::new() } else { format!(": {}", self.details) }
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration cannot be used.
    #[error("CNI configuration {place}: {message}")]
    Config {
        /// The file or the network.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// A plugin's program is not there.
    #[error("CNI plugin {kind:?} not found in {}", .searched.display())]
    NoPlugin {
        /// Its type.
        kind: String,
        /// Where it was looked for.
        searched: PathBuf,
    },
    /// A plugin reported an error.
    #[error("CNI plugin {kind:?} ({command}): {source}")]
    Plugin {
        /// Its type.
        kind: String,
        /// What it was asked.
        command: &'static str,
        /// What it said.
        #[source]
        source: PluginError,
    },
    /// A plugin did not answer in time.
    #[error("CNI plugin {kind:?} ({command}) did not end within {seconds} s")]
    Timeout {
        /// Its type.
        kind: String,
        /// What it was asked.
        command: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// A plugin ended without saying anything that can be understood.
    #[error("CNI plugin {kind:?} ({command}): {message}")]
    Answer {
        /// Its type.
        kind: String,
        /// What it was asked.
        command: &'static str,
        /// What is wrong with its answer.
        message: String,
    },
    /// No range of addresses is free for the default network.
    #[error("no private address range is free for bridge {0}")]
    NoFreeRange(String),
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

    pub(crate) fn config(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config { place: place.into(), message: message.into() }
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Config { .. } => Kind::InvalidArgument,
            Self::NoPlugin { .. } | Self::NoFreeRange(_) => Kind::FailedPrecondition,
            Self::Timeout { .. } => Kind::DeadlineExceeded,
            Self::Plugin { source, .. } if source.code == Code::TryAgain as u32 => Kind::Unavailable,
            Self::Plugin { .. } | Self::Answer { .. } | Self::File { .. } => Kind::Internal,
            Self::Sys(e) => e.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoFreeRange(_) => Some("choose one with bridgeSubnet".into()),
            Self::NoPlugin { .. } => Some("install it, or say where it is with --oci-cni-binary-dir".into()),
            _ => None,
        }
    }
}
