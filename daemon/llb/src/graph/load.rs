//! From the wire to a [`Graph`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base::progress::Group;
use base::{Digest, Platform};
use prost::Message;
use proto::pb;

use super::{Edge, Graph, Meta, Vertex, name, validate};
use crate::{Error, caps};

/// More operations than any build has had; a bound on memory, not on taste.
const MAX_OPS: usize = 1 << 17;

struct Received<'a> {
    op: pb::Op,
    bytes: &'a [u8],
    /// Indices into the list of received operations.
    inputs: Vec<usize>,
}

pub(super) fn load(definition: &pb::Definition) -> Result<Graph, Error> {
    let (received, digests) = decode(definition)?;
    let Some(last) = received.len().checked_sub(1) else { return Err(Error::Empty) };
    if received.len() < 2 {
        return Err(Error::TooFew(received.len()));
    }
    let end = &received[last];
    let (Some(&root), Some(input)) = (end.inputs.first(), end.op.inputs.first()) else {
        return Err(Error::NoResult);
    };
    let order = order(&received, &digests, root)?;

    let mut place: HashMap<usize, usize> = HashMap::with_capacity(order.len());
    let mut vertices: Vec<Vertex> = Vec::with_capacity(order.len());
    for at in order {
        let item = &received[at];
        let vertex = vertex(item, &digests[at], definition, &place, &vertices)?;
        place.insert(at, vertices.len());
        vertices.push(vertex);
    }

    let result =
        Edge { vertex: place.get(&root).copied().ok_or(Error::NoResult)?, output: index(input.index) };
    check_output(&vertices, &digests[last], 0, result)?;
    Ok(Graph { vertices, result, source: definition.source.clone().map(Arc::new) })
}

/// Decodes all operations; inputs become indices.
fn decode(definition: &pb::Definition) -> Result<(Vec<Received<'_>>, Vec<Digest>), Error> {
    let count = definition.def.len();
    if count > MAX_OPS {
        return Err(Error::TooMany { count, limit: MAX_OPS });
    }
    let mut received: Vec<Received<'_>> = Vec::with_capacity(count);
    let mut digests: Vec<Digest> = Vec::with_capacity(count);
    let mut known: HashMap<Digest, usize> = HashMap::with_capacity(count);
    for (position, bytes) in definition.def.iter().enumerate() {
        let op = pb::Op::decode(bytes.as_slice()).map_err(|e| Error::Decode(e.to_string()))?;
        for (input, i) in op.inputs.iter().enumerate() {
            if i.index < 0 {
                return Err(Error::NegativeOutput { input, index: i.index });
            }
        }
        let digest = Digest::of(bytes);
        // The same operation twice is one vertex; the last place counts, since
        // the last operation names the result.
        let is_last = position + 1 == count;
        if known.contains_key(&digest) && !is_last {
            continue;
        }
        known.insert(digest.clone(), received.len());
        received.push(Received { op, bytes, inputs: Vec::new() });
        digests.push(digest);
    }
    for item in &mut received {
        item.inputs = item
            .op
            .inputs
            .iter()
            .map(|i| {
                let digest: Option<Digest> = i.digest.parse().ok();
                digest
                    .and_then(|d| known.get(&d).copied())
                    .ok_or_else(|| Error::MissingInput(i.digest.chars().take(160).collect()))
            })
            .collect::<Result<_, _>>()?;
    }
    Ok((received, digests))
}

/// What `root` needs, inputs first. Without recursion: a hostile definition may
/// be as deep as it is long.
fn order(received: &[Received<'_>], digests: &[Digest], root: usize) -> Result<Vec<usize>, Error> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; received.len()];
    let mut order = Vec::new();
    let mut stack = vec![(root, 0)];
    while let Some((at, next)) = stack.pop() {
        if next == 0 {
            match marks[at] {
                Mark::Done => continue,
                Mark::Open => return Err(Error::Cycle(digests[at].clone())),
                Mark::New => marks[at] = Mark::Open,
            }
        }
        match received[at].inputs.get(next) {
            Some(&input) => {
                stack.push((at, next + 1));
                match marks[input] {
                    Mark::Done => {}
                    Mark::Open => return Err(Error::Cycle(digests[input].clone())),
                    Mark::New => stack.push((input, 0)),
                }
            }
            None => {
                marks[at] = Mark::Done;
                order.push(at);
            }
        }
    }
    Ok(order)
}

fn vertex(
    item: &Received<'_>,
    digest: &Digest,
    definition: &pb::Definition,
    place: &HashMap<usize, usize>,
    done: &[Vertex],
) -> Result<Vertex, Error> {
    let Some(op) = item.op.op.clone() else { return Err(Error::UnknownOp(digest.clone())) };
    validate::validate(&op, item.inputs.len())?;
    let mut inputs = Vec::with_capacity(item.inputs.len());
    for (at, (&input, wire)) in item.inputs.iter().zip(&item.op.inputs).enumerate() {
        let vertex = place.get(&input).copied().ok_or_else(|| Error::MissingInput(wire.digest.clone()))?;
        let edge = Edge { vertex, output: index(wire.index) };
        check_output(done, digest, at, edge)?;
        inputs.push(edge);
    }
    let meta = match definition.metadata.get(digest.as_str()) {
        Some(meta) => {
            for cap in meta.caps.keys() {
                caps::check_llb(cap)?;
            }
            read_meta(meta, &op)
        }
        None => Meta::default(),
    };
    let name = name::of(&op, &inputs, done);
    Ok(Vertex {
        digest: digest.clone(),
        received: digest.clone(),
        op,
        bytes: item.bytes.into(),
        inputs,
        platform: item.op.platform.as_ref().map_or_else(Platform::host, platform),
        constraints: item.op.constraints.clone().unwrap_or_default().filter,
        meta,
        name,
    })
}

fn check_output(vertices: &[Vertex], of: &Digest, input: usize, edge: Edge) -> Result<(), Error> {
    let Some(vertex) = vertices.get(edge.vertex) else { return Err(Error::NoResult) };
    let outputs = vertex.outputs();
    if edge.output < outputs {
        return Ok(());
    }
    Err(Error::NoSuchOutput {
        vertex: of.clone(),
        input,
        of: vertex.digest.clone(),
        outputs,
        index: edge.output,
    })
}

fn index(index: i64) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// A platform as the rest of the daemon means it.
pub(crate) fn platform(p: &pb::Platform) -> Platform {
    Platform {
        architecture: p.architecture.clone(),
        os: p.os.clone(),
        os_version: p.os_version.clone(),
        os_features: p.os_features.clone(),
        variant: p.variant.clone(),
    }
    .normalized()
}

fn read_meta(meta: &pb::OpMetadata, op: &pb::op::Op) -> Meta {
    Meta {
        ignore_cache: meta.ignore_cache,
        description: BTreeMap::clone(&meta.description),
        export_cache: meta.export_cache.map(|e| e.value),
        group: meta.progress_group.as_ref().map(|g| Group {
            id: g.id.clone(),
            name: g.name.clone(),
            weak: g.weak,
        }),
        linux_resources: meta.linux_resources.clone().filter(|_| matches!(op, pb::op::Op::Exec(_))),
    }
}
