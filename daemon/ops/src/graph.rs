//! From a checked definition to what the solver builds.

use std::sync::Arc;

use base::progress::Group;
use base::{Detail, Failure};
use proto::pb;
use proto::pb::op::Op;
use solver::{Edge, Operation, Vertex};

use crate::exec::{ExecOp, needed};
use crate::file::FileOp;
use crate::other::{BuildOp, DiffOp, MergeOp, PassthroughOp};
use crate::proxied::is_proxied;
use crate::{Entitlements, Error, Output, Worker, source};

/// Every vertex of `llb` with its operation, for a build that is entitled to
/// `entitlements`. With `proxy`, its steps reach the network through a proxy:
/// the graph must have gone through [`crate::proxied`].
///
/// # Errors
/// When an operation cannot be keyed (an unknown source, a malformed attribute)
/// or needs what the build is not entitled to.
pub fn graph(
    worker: &Arc<Worker>,
    llb: &llb::Graph,
    entitlements: &Entitlements,
    proxy: bool,
) -> Result<solver::Graph<Output>, Failure> {
    for vertex in llb.vertices() {
        if let Op::Exec(op) = &vertex.op
            && let Some(missing) = needed(op).find(|e| !entitlements.contains(e))
        {
            let failure = Failure::from(Error::Entitlement(missing));
            return Err(failure.with(Detail::Vertex(vertex.digest.clone())));
        }
    }
    let vertices = llb.vertices().iter().map(|vertex| {
        let inputs = vertex
            .inputs
            .iter()
            .filter_map(|edge| Some(Edge::new(llb.vertex(*edge)?.digest.clone(), edge.output)));
        let meta = &vertex.meta;
        Ok(Vertex {
            digest: vertex.digest.clone(),
            name: vertex.name().to_owned(),
            inputs: inputs.collect(),
            op: operation(worker, vertex, entitlements, proxy)
                .map_err(|e| e.with(Detail::Vertex(vertex.digest.clone())))?,
            ignore_cache: meta.ignore_cache,
            export_cache: meta.export_cache,
            group: meta.group.as_ref().map(|g| Group {
                id: g.id.clone(),
                name: g.name.clone(),
                weak: g.weak,
            }),
            description: meta.description.clone(),
        })
    });
    solver::Graph::new(vertices.collect::<Result<Vec<_>, Failure>>()?)
}

fn operation(
    worker: &Arc<Worker>,
    vertex: &llb::Vertex,
    entitlements: &Entitlements,
    proxy: bool,
) -> Result<Arc<dyn Operation<Output>>, Failure> {
    let worker = worker.clone();
    let proxy = proxy && is_proxied(&vertex.op);
    Ok(match &vertex.op {
        Op::Source(op) => source::operation(worker, vertex, op)?,
        Op::Exec(op) if !op.cdi_devices.is_empty() => {
            // Keyed by the devices it gets, whatever it called them.
            let devices = entitlements.permit(&worker.devices, &op.cdi_devices)?;
            let op = pb::ExecOp { cdi_devices: devices, ..op.clone() };
            let mut vertex = vertex.clone();
            vertex.op = Op::Exec(op.clone());
            Arc::new(ExecOp::new(worker, &vertex, &op, proxy)?)
        }
        Op::Exec(op) => Arc::new(ExecOp::new(worker, vertex, op, proxy)?),
        Op::File(op) => Arc::new(FileOp::new(worker, vertex, op)?),
        Op::Merge(op) => Arc::new(MergeOp::new(worker, vertex, op)?),
        Op::Diff(op) => Arc::new(DiffOp::new(worker, vertex, op)?),
        Op::Passthrough(op) => Arc::new(PassthroughOp::new(vertex, op)?),
        Op::Build(op) => Arc::new(BuildOp::new(worker, vertex, op)?),
    })
}
