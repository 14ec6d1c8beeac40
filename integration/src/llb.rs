//! Definitions as clients send them, put together by hand.

use std::collections::BTreeMap;

use prost::Message;
use proto::pb;

use crate::image::digest;

/// An operation on `inputs`.
pub fn op(inputs: Vec<pb::Input>, op: Option<pb::op::Op>) -> pb::Op {
    pb::Op { inputs, op, ..pb::Op::default() }
}

/// A source.
pub fn source(identifier: &str) -> pb::Op {
    let source = pb::SourceOp { identifier: identifier.into(), ..pb::SourceOp::default() };
    op(Vec::new(), Some(pb::op::Op::Source(source)))
}

/// The image every bench has.
pub fn busybox() -> pb::Op {
    source("docker-image://docker.io/library/busybox:latest")
}

/// What an operation is known by.
pub fn name(of: &pb::Op) -> String {
    digest(&of.encode_to_vec())
}

/// An output of an operation.
pub fn input(of: &pb::Op, index: i64) -> pb::Input {
    pb::Input { digest: name(of), index }
}

/// A mount of an input, or of an empty directory for -1; its output, or none for -1.
pub fn mount(input: i64, dest: &str, output: i64) -> pb::Mount {
    pb::Mount { input, dest: dest.into(), output, ..Default::default() }
}

/// A persistent directory.
pub fn cache(input: i64, dest: &str, id: &str, sharing: pb::CacheSharingOpt) -> pb::Mount {
    pb::Mount {
        mount_type: pb::MountType::Cache as i32,
        cache_opt: Some(pb::CacheOpt { id: id.into(), sharing: sharing as i32 }),
        ..mount(input, dest, -1)
    }
}

/// A shell's command with the first input as its root, which is its first output too.
pub fn shell(inputs: Vec<pb::Input>, command: &str, mounts: Vec<pb::Mount>) -> pb::Op {
    let args = ["sh", "-e", "-c", command].map(str::to_owned).to_vec();
    exec(inputs, pb::Meta { args, cwd: "/".into(), ..Default::default() }, mounts)
}

/// A process as [`shell`], put together by hand.
pub fn exec(inputs: Vec<pb::Input>, meta: pb::Meta, mounts: Vec<pb::Mount>) -> pb::Op {
    let mounts = std::iter::once(mount(0, "/", 0)).chain(mounts).collect();
    let exec = pb::ExecOp { meta: Some(meta), mounts, ..Default::default() };
    op(inputs, Some(pb::op::Op::Exec(exec)))
}

/// `ops`, the last of which names the result.
pub fn encode(ops: &[pb::Op]) -> Vec<u8> {
    definition(ops).encode_to_vec()
}

/// As [`encode`], not yet encoded.
pub fn definition(ops: &[pb::Op]) -> pb::Definition {
    pb::Definition { def: ops.iter().map(Message::encode_to_vec).collect(), ..pb::Definition::default() }
}

/// `ops`, inputs first, with the first output of the last as the result.
pub fn result(ops: &[pb::Op]) -> pb::Definition {
    let end = ops.last().map(|last| op(vec![input(last, 0)], None));
    definition(&ops.iter().cloned().chain(end).collect::<Vec<_>>())
}

/// Makes `of` run whatever is cached.
pub fn ignore_cache(definition: &mut pb::Definition, of: &pb::Op) {
    let meta = pb::OpMetadata { ignore_cache: true, ..Default::default() };
    definition.metadata = BTreeMap::from([(name(of), meta)]);
}
