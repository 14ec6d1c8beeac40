//! LLB: a typed graph from and to its wire form.
//!
//! Pure: no I/O and no policy. [`Graph`] is a definition somebody sent, decoded
//! and checked; [`build`] writes definitions; [`cachekey`] says under which
//! digests the results of operations are kept; [`dump`] shows a graph to people.

pub mod attr;
pub mod build;
pub mod cachekey;
pub mod caps;
pub mod dump;
pub mod graph;
pub mod reference;

mod error;
mod json;
mod protojson;

pub use error::Error;
pub use graph::{Edge, Graph, Vertex};
