//! How each LLB operation is keyed and run.
//!
//! [`graph`] turns a checked [`llb::Graph`] into one the solver builds: every
//! vertex gets the [`solver::Operation`] of its kind. Operations share a
//! [`Worker`]: the store, the sandbox, sessions and registries. A result is an
//! [`Output`].

mod cachemount;
mod container;
mod content;
mod error;
mod exec;
mod file;
mod graph;
mod kept;
mod keyed;
mod logs;
mod mounts;
mod other;
mod proxied;
mod results;
pub mod source;
pub mod used;
mod worker;

pub use cachemount::CacheMounts;
pub use container::{Container, Sandbox, Start};
pub use content::Contents;
pub use error::Error;
pub use graph::graph;
pub use kept::Kept;
pub use logs::LogLimits;
pub use proxied::{proxied, proxy_terms};
pub use results::Results;
pub use worker::{Behalf, BuildValues, Entitlement, Entitlements, SourcePolicy, Worker};

/// One result of an operation: a tree, or nothing at all (scratch).
pub type Output = Option<refs::Ref>;

/// What an operation of this crate is given.
pub(crate) type Cx = solver::OpContext<Output>;
