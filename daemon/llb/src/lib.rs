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
pub mod giturl;
pub mod graph;

mod error;
mod json;
mod protojson;

pub use error::Error;
pub use graph::{Edge, Graph, Vertex};
pub use json::Json as GoJson;

/// An operation in the bytes that its digest is made of: those of Go's
/// deterministic marshalling, which writes the members of a one-of after all
/// other fields. In no other message of LLB does that make a difference.
pub fn encode(mut op: proto::pb::Op) -> Vec<u8> {
    use prost::Message;
    let what = proto::pb::Op { op: op.op.take(), ..proto::pb::Op::default() };
    let mut bytes = op.encode_to_vec();
    bytes.extend(what.encode_to_vec());
    bytes
}
