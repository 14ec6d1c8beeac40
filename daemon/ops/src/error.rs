//! What goes wrong in an operation, beside what goes wrong below it.

use base::{Classify, Kind};

/// An operation cannot be keyed or run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("could not access local files without session")]
    NoSession,
    /// Builds that share an operation and want it as different releases did it.
    #[error("conflicting compatibility versions in shared solve state: {0} != {1}")]
    Compatibility(u32, u32),
    #[error("failed to parse source {identifier:?}: unknown scheme")]
    UnknownScheme { identifier: String },
    #[error("source {identifier:?}: attribute {key}={value:?}: {reason}")]
    Attribute { identifier: String, key: String, value: String, reason: String },
    #[error("image digest {digest} for {reference} does not match expected checksum {expected}")]
    Checksum { digest: base::Digest, reference: String, expected: String },
    #[error("{url}: {reason}")]
    Url { url: String, reason: String },
    #[error("{url}: invalid response status {status}")]
    Status { url: String, status: u16 },
    #[error("digest mismatch for {url}: {actual} (expected: {expected})")]
    DigestMismatch { url: String, actual: base::Digest, expected: base::Digest },
    #[error("http checksum request suffix exceeds max size {limit}")]
    Suffix { limit: usize },
    #[error("{url} is larger than {limit} bytes, too large to check its signature")]
    Signed { url: String, limit: u64 },
    #[error("blob {identifier}: {reason}")]
    Blob { identifier: String, reason: String },
    #[error("git {remote}: {reason}")]
    Git { remote: String, reason: String },
    #[error("invalid git ref {reference}")]
    GitReference { reference: String },
    #[error("invalid subdir {subdir}: {reason}")]
    Subdir { subdir: String, reason: String },
    #[error("git bundle {locator}: {reason}")]
    Bundle { locator: String, reason: String },
    #[error("layer limit {limit} is greater than the number of layers in the image {layers}")]
    LayerLimit { limit: usize, layers: usize },
    #[error("image config of {reference}: {reason}")]
    ImageConfig { reference: String, reason: String },
    #[error("mount {dest}: {reason}")]
    Mount { dest: String, reason: String },
    #[error("secret {id}: not found")]
    Secret { id: String },
    #[error("{0} is not allowed")]
    Entitlement(crate::Entitlement),
    /// Devices that were neither granted to the build nor are free for all.
    #[error("device{} requested by the build but not allowed", match .0.as_slice() {
        [one] => format!(" {one} is"),
        many => format!("s {} are", many.join(", ")),
    })]
    Devices(Vec<String>),
    #[error("mountable {0} not found")]
    Place(usize),
    #[error("missing input {0}")]
    Input(i64),
    #[error("failed to load cache key: invalid path for dir copy: {path:?}: {reason}")]
    Content { path: String, reason: String },
    #[error("file action {index}: {reason}")]
    Action { index: usize, reason: String },
    #[error("{what} is not supported by this daemon")]
    Unsupported { what: String },
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoSession | Self::Compatibility(..) => Kind::FailedPrecondition,
            Self::Secret { .. } | Self::Place(_) => Kind::NotFound,
            Self::Status { status: 404 | 410, .. } => Kind::NotFound,
            Self::Status { status: 401 | 403, .. } => Kind::PermissionDenied,
            Self::Status { .. } => Kind::Unavailable,
            Self::Checksum { .. } | Self::DigestMismatch { .. } => Kind::FailedPrecondition,
            Self::Entitlement(_) | Self::Devices(_) => Kind::PermissionDenied,
            Self::Unsupported { .. } => Kind::Unimplemented,
            Self::ImageConfig { .. } | Self::Content { .. } => Kind::Unknown,
            _ => Kind::InvalidArgument,
        }
    }
}
