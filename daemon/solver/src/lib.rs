//! The engine: decides what must run, and shares what several builds need.
//!
//! It knows neither LLB nor containers nor sessions: a build is a [`Graph`] of
//! vertices, each with an [`Operation`] that says how it is keyed and runs it.
//! A result is anything that can be cloned; dropping the last clone releases it.
//!
//! * `core` decides. A state machine: events in, effects out, no I/O, no clock.
//! * `driver` is the one task that owns the core and performs effects.
//! * `keys` is the algebra of the key graph, over any [`KeyIndex`].
//! * `audience` takes progress to every job that waits for a vertex.

mod audience;
mod context;
mod core;
mod driver;
mod error;
mod graph;
mod index;
mod keys;
mod lookup;
mod memory;
mod solver;
mod stream;
mod views;

pub use context::{JobValues, OpContext};
pub use error::Error;
pub use graph::{CacheMap, Dep, Edge, Graph, KeyDigest, Operation, Vertex};
pub use index::{Change, KeyId, KeyIndex, Link, Record, ResultStore, Source, sweep};
pub use memory::MemoryIndex;
pub use solver::{Census, Deps, Job, KeyNode, KeyResult, KeyUse, Keys, Solved, Solver};
