//! One build, from request to answer.
//!
//! A [`Builder`] runs builds: it takes a [`Request`], gives the build a job in
//! the solver and a [`Bridge`] through which its frontend asks for things, sends
//! the results to the exporters, and keeps progress and history for whoever
//! asks. Frontends reach their bridge through a [`Service`]: clients over the
//! daemon's socket, frontends in containers over a connection of their own.
//! A build belongs to a scope: who started it can go, and the build is
//! cancelled with the reason.

mod bridge;
mod builder;
mod caches;
mod capabilities;
mod containers;
mod error;
mod export_step;
mod external;
mod files;
mod history;
mod meta;
mod plan;
mod policy;
mod progress;
mod provenance;
mod record;
mod request;
mod results;
mod service;
pub mod traces;

pub use bridge::{Bridge, Frontends, Returned};
pub use builder::{Builder, Deps, WorkerInfo};
pub use error::Error;
pub use history::{History, HistoryEvent, HistoryKind, HistoryLimits, Record, Watching};
pub use progress::{Counts, Follower, Recorder};
pub use request::{CacheEntry, ExporterSpec, Request};
pub use service::{Service, platform_to_wire, timestamp};
pub use traces::Traces;
