//! Changing sources of a loaded graph, as policy asks.
//!
//! A vertex's digest covers the digests of its inputs, so a change travels up.
//! Only what changes is written anew; every other byte of an operation,
//! unknown fields included, stays as it came.

use std::sync::Arc;

use base::Digest;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, skip_field};
use proto::pb;
use proto::pb::op::Op;

use super::{Graph, Vertex};
use crate::Error;

/// What becomes of a vertex.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Another source in place of this one.
    pub source: Option<pb::SourceOp>,
    /// Bytes that go into the digest after the operation, to tell apart what
    /// the operation itself does not.
    pub salt: Option<&'static [u8]>,
}

/// Field numbers of an operation.
const INPUTS: u32 = 1;
const SOURCE: u32 = 3;

impl Graph {
    /// The graph with the changes `change` wants, asked once per vertex with
    /// its index, inputs first.
    ///
    /// # Errors
    /// When a source is wanted in place of something that is none, or bytes
    /// that were received are no operation after all.
    pub fn changed(&self, mut change: impl FnMut(usize, &Vertex) -> Change) -> Result<Self, Error> {
        let mut graph = self.clone();
        for at in 0..graph.vertices.len() {
            let wanted = change(at, &self.vertices[at]);
            let inputs: Vec<Digest> = graph.vertices[at]
                .inputs
                .iter()
                .filter_map(|e| graph.vertices.get(e.vertex).map(|v| v.digest.clone()))
                .collect();
            let moved = self.vertices[at]
                .inputs
                .iter()
                .zip(&inputs)
                .any(|(e, now)| self.vertices.get(e.vertex).is_some_and(|v| v.digest != *now));
            if wanted.source.is_none() && wanted.salt.is_none() && !moved {
                continue;
            }
            let vertex = &mut graph.vertices[at];
            if wanted.source.is_some() && !matches!(vertex.op, Op::Source(_)) {
                return Err(Error::invalid(format!("{} is not a source", vertex.digest)));
            }
            let bytes: Arc<[u8]> = write(&vertex.bytes, &inputs, wanted.source.as_ref())?.into();
            vertex.digest = match wanted.salt {
                None => Digest::of(&bytes),
                Some(salt) => {
                    let mut hasher = base::digest::Hasher::new();
                    hasher.update(&bytes);
                    hasher.update(salt);
                    hasher.finish()
                }
            };
            vertex.bytes = bytes;
            if let Some(source) = wanted.source {
                vertex.name.clone_from(&source.identifier);
                vertex.op = Op::Source(source);
            }
        }
        Ok(graph)
    }
}

/// `bytes` with other digests in its inputs and perhaps another source.
fn write(bytes: &[u8], inputs: &[Digest], source: Option<&pb::SourceOp>) -> Result<Vec<u8>, Error> {
    let bad = |e: prost::DecodeError| Error::Decode(e.to_string());
    let mut out = Vec::with_capacity(bytes.len());
    let mut digests = inputs.iter();
    let mut rest = bytes;
    while !rest.is_empty() {
        let start = rest;
        let (tag, wire) = decode_key(&mut rest).map_err(bad)?;
        let body = rest;
        skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(bad)?;
        match (tag, source) {
            (INPUTS, _) => {
                let mut field = body;
                let mut input = pb::Input::decode_length_delimited(&mut field).map_err(bad)?;
                if let Some(digest) = digests.next() {
                    input.digest = digest.as_str().to_owned();
                }
                put(&mut out, INPUTS, &input.encode_to_vec());
            }
            (SOURCE, Some(source)) => put(&mut out, SOURCE, &source.encode_to_vec()),
            _ => out.extend_from_slice(&start[..start.len() - rest.len()]),
        }
    }
    Ok(out)
}

fn put(out: &mut Vec<u8>, tag: u32, message: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(message.len() as u64, out);
    out.extend_from_slice(message);
}
