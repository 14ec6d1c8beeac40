//! What a vertex is called when its author gave it no name.

use proto::pb;
use proto::pb::file_action::Action;
use proto::pb::op::Op;

use super::{Edge, Vertex};

/// Names of merges contain the names of what is merged, which may be merges of
/// the same vertices: unbounded, they would double with every step.
const MAX_NAME: usize = 16 << 10;

pub(super) fn of(op: &Op, inputs: &[Edge], done: &[Vertex]) -> String {
    let name = |input: usize| inputs.get(input).and_then(|e| done.get(e.vertex)).map_or("", Vertex::name);
    let mut text = match op {
        Op::Source(source) => source.identifier.clone(),
        Op::Exec(exec) => exec.meta.as_ref().map(|m| m.args.join(" ")).unwrap_or_default(),
        Op::File(file) => file.actions.iter().filter_map(action).collect::<Vec<_>>().join(", "),
        Op::Build(_) => "build".to_owned(),
        Op::Merge(_) => {
            let names: Vec<&str> = (0..inputs.len()).map(name).collect();
            format!("merge ({})", names.join(", "))
        }
        Op::Diff(diff) => {
            let side = |input: Option<i64>| match input.and_then(|i| usize::try_from(i).ok()) {
                Some(input) => format!("({})", name(input)),
                None => "scratch".to_owned(),
            };
            let (lower, upper) = (diff.lower.map(|l| l.input), diff.upper.map(|u| u.input));
            format!("diff {} -> {}", side(lower), side(upper))
        }
        Op::Passthrough(pass) => format!("passthrough {}", pass.id),
    };
    if text.len() > MAX_NAME && matches!(op, Op::Merge(_) | Op::Diff(_)) {
        let end = (0..=MAX_NAME).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

fn action(action: &pb::FileAction) -> Option<String> {
    Some(match action.action.as_ref()? {
        Action::Mkdir(a) => format!("mkdir {}", a.path),
        Action::Mkfile(a) => format!("mkfile {}", a.path),
        Action::Symlink(a) => format!("symlink {} -> {}", a.newpath, a.oldpath),
        Action::Rm(a) => format!("rm {}", a.path),
        Action::Copy(a) => format!("copy {} {}", a.src, a.dest),
    })
}
