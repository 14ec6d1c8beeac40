//! What this program calls itself.

/// The project, where Go programs print their import path.
pub const PACKAGE: &str = "github.com/buildkit-cni/buildkit-cni";

/// The version clients compare: the API level that is served, and our own
/// version as build metadata, which semantic versioning ignores when it compares.
pub const VERSION: &str = concat!("v0.32.2+buildkit-cni.", env!("CARGO_PKG_VERSION"));

/// The Dockerfile syntax the built-in frontend speaks.
pub const DOCKERFILE: &str = "1.26.0";

/// The commit it was built from, when the build was told.
pub const REVISION: &str = match option_env!("BUILDKIT_CNI_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
