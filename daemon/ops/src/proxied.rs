//! Steps that reach the network only through a proxy.
//!
//! Which they are is known by their digests. What they ask for is put to the
//! source policies of the builds that want them, as if it were a source.

use std::sync::Arc;

use async_trait::async_trait;
use base::Failure;
use base::gotext::quote;
use llb::graph::Change;
use proto::pb;
use proto::pb::op::Op;
use proxy::{Capture, Policy, Terms};

use crate::{Behalf, Worker};

/// What tells such a step from the same one with a network of its own.
const SALT: &[u8] = b"\0buildkit.proxy-network.v0";

/// Whether this operation speaks to a proxy, in a build in which that is wanted.
pub(crate) fn is_proxied(op: &Op) -> bool {
    matches!(op, Op::Exec(exec) if exec.network() != pb::NetMode::None)
}

/// `graph` as it is in a build whose steps may reach the network only through a proxy.
///
/// # Errors
/// Never for what was loaded.
pub fn proxied(graph: &llb::Graph) -> Result<llb::Graph, Failure> {
    let salt = |_: usize, vertex: &llb::Vertex| Change {
        salt: is_proxied(&vertex.op).then_some(SALT),
        ..Change::default()
    };
    Ok(graph.changed(salt)?)
}

/// The terms on which something may use the network for these builds.
pub fn proxy_terms(worker: &Arc<Worker>, behalf: Behalf, capture: Option<Arc<Capture>>) -> Terms {
    Terms { policy: Some(Arc::new(Asking { worker: worker.clone(), behalf })), capture }
}

/// Asks what has a say in these builds.
struct Asking {
    worker: Arc<Worker>,
    behalf: Behalf,
}

#[async_trait]
impl Policy for Asking {
    async fn check(&self, url: &str) -> Result<String, Failure> {
        let mut source = pb::SourceOp { identifier: url.to_owned(), ..pb::SourceOp::default() };
        for policy in self.behalf.builds.iter().filter_map(|build| build.policy.as_ref()) {
            policy.check(&mut source, &self.worker, &self.behalf).await?;
        }
        if !source.attrs.is_empty() {
            let url = quote(url);
            return Err(Failure::invalid(format!("policy gives {url} attributes, which only sources have")));
        }
        Ok(source.identifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn graph(network: pb::NetMode) -> llb::Graph {
        let meta = pb::Meta { args: vec!["true".into()], cwd: "/".into(), ..pb::Meta::default() };
        let root = pb::Mount { input: -1, dest: "/".into(), output: 0, ..pb::Mount::default() };
        let exec = pb::ExecOp {
            meta: Some(meta),
            mounts: vec![root],
            network: network.into(),
            ..pb::ExecOp::default()
        };
        let exec = pb::Op { op: Some(Op::Exec(exec)), ..pb::Op::default() }.encode_to_vec();
        let input = pb::Input { digest: base::Digest::of(&exec).to_string(), index: 0 };
        let end = pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec();
        llb::Graph::load(&pb::Definition { def: vec![exec, end], ..pb::Definition::default() }).unwrap()
    }

    #[test]
    fn a_step_with_a_proxy_is_another_step() {
        for (network, changes) in
            [(pb::NetMode::Unset, true), (pb::NetMode::Host, true), (pb::NetMode::None, false)]
        {
            let plain = graph(network);
            let other = proxied(&plain).unwrap();
            let (a, b) = (&plain.vertices()[0], &other.vertices()[0]);
            assert_eq!(a.digest != b.digest, changes, "{network:?}");
            let salted = base::Digest::of([&a.bytes[..], SALT].concat());
            assert_eq!(b.digest == salted, changes, "{network:?}");
        }
    }
}
