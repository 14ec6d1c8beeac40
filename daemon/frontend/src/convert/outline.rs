//! What an outline of a target shows: arguments, secrets, agents.

use std::collections::{BTreeMap, BTreeSet};

use super::stage::{Id, Stages};
use crate::dockerfile::Lines;
use crate::dockerfile::instructions::ArgVar;
use crate::dockerfile::subrequests::Location;
use crate::dockerfile::subrequests::outline::{Argument, Forwarded, Outline};

/// What was seen of a stage.
#[derive(Debug, Clone, Default)]
pub(super) struct Captured {
    pub(super) args: BTreeMap<String, ArgInfo>,
    pub(super) used_args: BTreeSet<String>,
    pub(super) secrets: BTreeMap<String, Mounted>,
    pub(super) ssh: BTreeMap<String, Mounted>,
}

/// An argument and where it is declared.
#[derive(Debug, Clone)]
pub(super) struct ArgInfo {
    pub(super) definition: ArgVar,
    pub(super) value: String,
    pub(super) needs: BTreeSet<String>,
    pub(super) lines: Lines,
}

/// A secret or agent and where it is mounted first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mounted {
    pub(super) required: bool,
    pub(super) lines: Lines,
}

pub(super) fn of(stages: &Stages, target: Id, data: &[u8]) -> Outline {
    let source = &stages[target].source;
    let mut outline = Outline {
        name: source.name.clone(),
        description: source.doc.clone(),
        sources: vec![data.to_vec()],
        ..Outline::default()
    };
    let (mut args, mut secrets, mut ssh) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    // Nearest first: of several of one name the target's own counts.
    for id in nearest_first(stages, target) {
        let seen = &stages[id].outline;
        for name in all_used(seen) {
            if let Some(info) = seen.args.get(&name)
                && args.insert(name)
            {
                outline.args.push(Argument {
                    name: info.definition.key.clone(),
                    description: info.definition.doc.clone(),
                    value: info.value.clone(),
                    location: location(info.lines),
                });
            }
        }
        collect(&seen.secrets, &mut secrets, &mut outline.secrets);
        collect(&seen.ssh, &mut ssh, &mut outline.ssh);
    }
    outline.sort();
    outline
}

fn collect(seen: &BTreeMap<String, Mounted>, known: &mut BTreeSet<String>, into: &mut Vec<Forwarded>) {
    for (name, mounted) in seen {
        if known.insert(name.clone()) {
            into.push(Forwarded {
                name: name.clone(),
                required: mounted.required,
                location: location(mounted.lines),
            });
        }
    }
}

fn location(lines: Lines) -> Option<Location> {
    Some(lines.into())
}

fn nearest_first(stages: &Stages, target: Id) -> Vec<Id> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    let mut open = vec![target];
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            order.push(id);
            open.extend(stages[id].needs.keys().rev());
            open.extend(stages[id].base);
        }
    }
    order
}

/// Arguments that are used, or whose value went into one that is.
fn all_used(seen: &Captured) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut open: Vec<&String> = seen.used_args.iter().collect();
    while let Some(name) = open.pop() {
        if used.insert(name.clone())
            && let Some(info) = seen.args.get(name)
        {
            open.extend(&info.needs);
        }
    }
    used
}
