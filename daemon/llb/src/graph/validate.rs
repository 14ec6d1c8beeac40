//! Which operations make sense.
//!
//! Beyond what clients of the reference can send, indices and enumerations are
//! checked here once, so that no operation meets an unknown mode or a missing
//! input while it runs.

use std::collections::BTreeSet;

use proto::pb;
use proto::pb::file_action::Action;
use proto::pb::op::Op;

use crate::{Error, attr};

/// Checks an operation that has `inputs` inputs.
///
/// # Errors
/// What is wrong with it.
pub fn validate(op: &Op, inputs: usize) -> Result<(), Error> {
    match op {
        Op::Source(_) => Ok(()),
        Op::Exec(exec) => validate_exec(exec, inputs),
        Op::File(file) => validate_file(file, inputs),
        Op::Build(build) => {
            build.inputs.iter().try_for_each(|(name, input)| match in_range(input.input, inputs) {
                true => Ok(()),
                false => fail(format!("invalid input index {} of build input {name:?}", input.input)),
            })
        }
        Op::Merge(merge) => {
            if merge.inputs.len() != inputs {
                return fail(format!("invalid merge op of {} with {inputs} inputs", merge.inputs.len()));
            }
            merge.inputs.iter().try_for_each(|input| match in_range(input.input, inputs) {
                true => Ok(()),
                false => fail(format!("invalid merge input index {}", input.input)),
            })
        }
        Op::Diff(diff) => validate_diff(diff, inputs),
        Op::Passthrough(pass) => validate_passthrough(pass, inputs),
    }
}

/// How many outputs a valid operation has.
pub(super) fn outputs(op: &Op) -> usize {
    match op {
        Op::Source(_) | Op::Build(_) | Op::Merge(_) | Op::Diff(_) => 1,
        Op::Exec(exec) => exec.mounts.iter().filter(|m| m.output != attr::NONE).count(),
        Op::File(file) => file.actions.iter().filter(|a| a.output != attr::NONE).count(),
        Op::Passthrough(pass) => pass.outputs.len(),
    }
}

fn fail<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error::invalid(text))
}

fn in_range(index: i64, len: usize) -> bool {
    usize::try_from(index).is_ok_and(|i| i < len)
}

fn validate_exec(exec: &pb::ExecOp, inputs: usize) -> Result<(), Error> {
    let Some(meta) = &exec.meta else { return fail("invalid exec op with no meta") };
    if meta.args.is_empty() {
        return fail("invalid exec op with no args");
    }
    if exec.mounts.is_empty() {
        return fail("invalid exec op with no mounts");
    }
    if !exec.mounts.iter().any(|m| m.dest == "/") {
        return fail("invalid exec op with no rootfs");
    }
    if pb::SecurityMode::try_from(exec.security).is_err() {
        return fail(format!("invalid security mode {}", exec.security));
    }
    if pb::NetMode::try_from(exec.network).is_err() {
        return fail(format!("invalid network mode {}", exec.network));
    }
    for mount in &exec.mounts {
        validate_mount(mount, inputs)?;
    }
    Ok(())
}

fn validate_mount(mount: &pb::Mount, inputs: usize) -> Result<(), Error> {
    let dest = &mount.dest;
    let Ok(kind) = pb::MountType::try_from(mount.mount_type) else {
        return fail(format!("invalid mount type {} of mount {dest:?}", mount.mount_type));
    };
    if pb::MountContentCache::try_from(mount.content_cache).is_err() {
        return fail(format!("invalid content cache mode {} of mount {dest:?}", mount.content_cache));
    }
    if mount.cache_opt.as_ref().is_some_and(|c| pb::CacheSharingOpt::try_from(c.sharing).is_err()) {
        return fail(format!("invalid cache sharing mode of mount {dest:?}"));
    }
    if mount.input != attr::NONE && !in_range(mount.input, inputs) {
        return fail(format!("invalid input index {} of mount {dest:?}, {inputs} provided", mount.input));
    }
    if mount.output < attr::NONE {
        return fail(format!("invalid output index {} of mount {dest:?}", mount.output));
    }
    if dest == "/" && kind != pb::MountType::Bind {
        return fail(format!("invalid mount type {} of the rootfs", kind.as_str_name()));
    }
    Ok(())
}

fn validate_file(file: &pb::FileOp, inputs: usize) -> Result<(), Error> {
    if file.actions.is_empty() {
        return fail("invalid file op with no actions");
    }
    let limit = inputs + file.actions.len();
    let ok = |index: i64| index == attr::NONE || in_range(index, limit);
    let mut outputs = BTreeSet::new();
    for action in &file.actions {
        let Some(what) = &action.action else { return fail("invalid file op with unknown action") };
        if !ok(action.input) {
            return fail(format!("invalid input index {}, {limit} provided", action.input));
        }
        // Only a copy reads its second input; others may leave it at zero.
        if !ok(action.secondary_input) {
            return fail(format!(
                "invalid secondary input index {}, {limit} provided",
                action.secondary_input
            ));
        }
        if action.output < attr::NONE {
            return fail(format!("invalid output index {}", action.output));
        }
        if action.output != attr::NONE && !outputs.insert(action.output) {
            return fail(format!("duplicate output {}", action.output));
        }
        validate_owner(what, inputs)?;
    }
    if outputs.is_empty() {
        return fail("no outputs specified");
    }
    if let Some((missing, _)) = (0_i64..).zip(&outputs).find(|(want, have)| want != *have) {
        return fail(format!("missing output index {missing}"));
    }
    file_loops(file, inputs)
}

fn validate_owner(action: &Action, inputs: usize) -> Result<(), Error> {
    let owner = match action {
        Action::Copy(a) => &a.owner,
        Action::Mkfile(a) => &a.owner,
        Action::Mkdir(a) => &a.owner,
        Action::Symlink(a) => &a.owner,
        Action::Rm(_) => return Ok(()),
    };
    let Some(owner) = owner else { return Ok(()) };
    for user in [&owner.user, &owner.group].into_iter().flatten() {
        if let Some(pb::user_opt::User::ByName(named)) = &user.user
            && named.input != attr::NONE
            && !in_range(named.input, inputs)
        {
            return fail(format!("invalid input index {} in file op with {inputs} inputs", named.input));
        }
    }
    Ok(())
}

/// Actions may use each other's outputs in any order, but not in a circle.
fn file_loops(file: &pb::FileOp, inputs: usize) -> Result<(), Error> {
    let needs = |at: usize| {
        let action = &file.actions[at];
        let second = matches!(action.action, Some(Action::Copy(_))).then_some(action.secondary_input);
        [Some(action.input), second]
            .into_iter()
            .flatten()
            .filter_map(|i| usize::try_from(i).ok()?.checked_sub(inputs))
            .collect::<Vec<_>>()
    };
    // 0: not seen, 1: being looked at, 2: fine.
    let mut state = vec![0_u8; file.actions.len()];
    for start in 0..file.actions.len() {
        let mut stack = vec![(start, false)];
        while let Some((at, left)) = stack.pop() {
            match (left, state[at]) {
                (true, _) => state[at] = 2,
                (false, 0) => {
                    state[at] = 1;
                    stack.push((at, true));
                    stack.extend(needs(at).into_iter().map(|n| (n, false)));
                }
                (false, 1) => return fail(format!("loop from index {}", at + inputs)),
                _ => {}
            }
        }
    }
    Ok(())
}

fn validate_diff(diff: &pb::DiffOp, inputs: usize) -> Result<(), Error> {
    let (Some(lower), Some(upper)) = (diff.lower, diff.upper) else {
        return fail("invalid diff op with nil lower or upper input");
    };
    let sides: Vec<i64> = [lower.input, upper.input].into_iter().filter(|&i| i != attr::NONE).collect();
    if let Some(bad) = sides.iter().find(|&&i| !in_range(i, inputs)) {
        return fail(format!("invalid diff input index {bad}"));
    }
    if sides.len() != inputs {
        return fail(format!("invalid diff op of {} with {inputs} inputs", sides.len()));
    }
    Ok(())
}

fn validate_passthrough(pass: &pb::PassthroughOp, inputs: usize) -> Result<(), Error> {
    if pass.id.is_empty() {
        return fail("invalid passthrough op with no id");
    }
    if pass.outputs.is_empty() {
        return fail("invalid passthrough op with no outputs");
    }
    match pass.outputs.iter().find(|&&i| !in_range(i, inputs)) {
        Some(bad) => fail(format!("invalid passthrough output input index {bad}")),
        None => Ok(()),
    }
}
