//! What frontends that speak Docker's options share: reading the options,
//! finding the build's contexts, answering subrequests, putting the results of
//! several platforms together.

mod config;
mod context;
mod named;
mod options;
mod result;

pub use config::{Config, Sbom, sbom};
pub use context::{Client, Source};
pub use named::{Loaded, NamedContext, PendingLocal};
pub use options::attestations;
pub use result::{Built, assemble};

pub(crate) use context::internal;
