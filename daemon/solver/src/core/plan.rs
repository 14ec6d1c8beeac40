//! What an edge needs, given what is wanted of it and what is known.

use std::collections::BTreeSet;

use super::Core;
use super::types::{At, Content, EdgeState, Found, Level, Needs, NodeState, Probe, Run, Want};
use crate::index::KeyId;
use crate::keys::{Selected, Spec, content_key};

/// What an edge needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Everything stays as it is until the index answers.
    Wait,
    /// Likewise, and the index is to be asked.
    Ask(Probe),
    /// This.
    Do(Step),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// How far the search for keys got; it never goes back.
    pub(super) level: Level,
    /// What is wanted of each input.
    pub(super) wants: Vec<Want>,
    pub(super) needs: Needs,
}

/// What an input is to its consumer.
struct Input<'a> {
    edge: Option<&'a EdgeState>,
    /// Its contents can be named.
    named: bool,
    /// They have to be looked at before the run.
    looked_at: bool,
    content: &'a Content,
}

impl Input<'_> {
    fn level(&self) -> Level {
        self.edge.map_or(Level::Unknown, |e| if e.result.is_some() { Level::Slow } else { e.level })
    }

    fn is_made(&self) -> bool {
        self.edge.is_some_and(|e| e.result.is_some())
    }

    fn is_named(&self) -> bool {
        matches!(self.content, Content::Known(_))
    }

    /// Nothing will be learnt about its keys, short of running it.
    fn is_exhausted(&self) -> bool {
        self.level() == Level::Slow && (!self.named || self.is_named())
    }

    /// The consumer may run.
    fn is_ready(&self) -> bool {
        self.is_made() && (!self.looked_at || self.is_named())
    }
}

impl Core {
    pub(super) fn plan(&self, at: At) -> Plan {
        let (Some(node), Some(edge)) = (self.nodes.get(&at.node), self.edge(at)) else {
            return Plan::Wait;
        };
        let want = edge.want();
        let mut step = Step { wants: vec![Want::Nothing; node.inputs.len()], ..Step::default() };
        if want == Want::Nothing {
            return Plan::Do(step);
        }
        if edge.result.is_some() {
            step.level = Level::Slow;
            return Plan::Do(step);
        }
        if edge.save.is_some() {
            return Plan::Wait;
        }
        if want == Want::Result && matches!(node.run, Run::Done(_)) {
            step.needs.save = true;
            return Plan::Do(step);
        }
        if node.ignores_cache() && want < Want::Result {
            // Nothing may be found through something that is to be made anew.
            step.level = Level::Slow;
            return Plan::Do(step);
        }
        if node.inputs.is_empty() {
            plan_root(node, edge, at, want, step)
        } else {
            self.plan_inner(node, edge, at, want, step)
        }
    }

    fn plan_inner(&self, node: &NodeState, edge: &EdgeState, at: At, want: Want, mut step: Step) -> Plan {
        step.needs.map = node.maps.is_empty();
        let inputs = self.inputs(node);
        if !node.ignores_cache() {
            for (input, want) in inputs.iter().zip(&mut step.wants) {
                if input.level() == Level::Unknown {
                    *want = Want::Fast;
                }
            }
            if step.needs.map || inputs.iter().any(|i| i.level() == Level::Unknown) {
                return Plan::Do(step);
            }
            let probe = self.probe(node, &inputs, at, want);
            match asked(edge, &probe) {
                Asked::No => return Plan::Ask(probe),
                Asked::Unanswered => return Plan::Wait,
                Asked::Answered => {}
            }
            step.level = Level::Fast;
            if want == Want::Fast {
                return Plan::Do(step);
            }
            if let Some(hit) = best(edge) {
                step.level = Level::Slow;
                step.needs.load = (want == Want::Result).then(|| hit.clone());
                return Plan::Do(step);
            }
            if search(&inputs, &edge.found, &mut step) {
                return Plan::Do(step);
            }
            step.level = Level::Slow;
            if want == Want::Slow {
                return Plan::Do(step);
            }
        }
        // It has to run: all inputs are made, and looked at.
        for (i, input) in inputs.iter().enumerate() {
            if !input.is_made() {
                if let Some(want) = step.wants.get_mut(i) {
                    *want = Want::Result;
                }
            } else if !input.is_ready() {
                step.needs.content.insert(i);
            }
        }
        step.needs.run = !step.needs.map && inputs.iter().all(Input::is_ready);
        Plan::Do(step)
    }

    fn inputs<'a>(&'a self, node: &'a NodeState) -> Vec<Input<'a>> {
        const UNKNOWN: &Content = &Content::Unknown;
        let one = |(i, at): (usize, &At)| {
            let dep = node.maps.first().and_then(|m| m.deps.get(i));
            Input {
                edge: self.edge(*at),
                named: dep.is_some_and(|d| d.content),
                looked_at: dep.is_some_and(|d| d.content || d.preprocess),
                content: node.content.get(i).unwrap_or(UNKNOWN),
            }
        };
        node.inputs.iter().enumerate().map(one).collect()
    }

    fn probe(&self, node: &NodeState, inputs: &[Input<'_>], at: At, want: Want) -> Probe {
        let mut spec = self.spec(at);
        let mut unseen = vec![Vec::new(); spec.deps.len()];
        for ((keys, unseen), input) in spec.deps.iter_mut().zip(&mut unseen).zip(&node.inputs) {
            if self.nodes.get(&input.node).is_some_and(NodeState::ignores_cache) {
                let own: BTreeSet<KeyId> =
                    self.edge(*input).map(|e| e.keys.iter().cloned().collect()).unwrap_or_default();
                let (hidden, seen) = keys.drain(..).partition(|k| own.contains(&k.key));
                *keys = seen;
                *unseen = hidden;
            }
        }
        let last = want == Want::Result && inputs.iter().all(Input::is_ready);
        Probe { spec, unseen, last }
    }

    /// The keys of an edge, as they follow from all that is known of its inputs.
    pub(super) fn spec(&self, at: At) -> Spec {
        let Some(node) = self.nodes.get(&at.node) else { return Spec::default() };
        let deps = node.inputs.iter().enumerate().map(|(i, input)| {
            let selector = node.maps.first().and_then(|m| m.deps.get(i)).and_then(|d| d.selector.clone());
            let keys = self.edge(*input).map(|e| e.keys.as_slice()).unwrap_or_default();
            let select = |key: &KeyId| Selected { key: key.clone(), selector: selector.clone() };
            let mut keys: Vec<Selected> = keys.iter().map(select).collect();
            if let Some(Content::Known(Some(digest))) = node.content.get(i) {
                keys.push(Selected { key: content_key(digest), selector: None });
            }
            keys
        });
        Spec { digests: node.digests(), output: at.output, deps: deps.collect() }
    }
}

fn plan_root(node: &NodeState, edge: &EdgeState, at: At, want: Want, mut step: Step) -> Plan {
    if node.maps.is_empty() {
        step.needs.map = true;
        return Plan::Do(step);
    }
    if !node.ignores_cache() {
        let spec = Spec { digests: node.digests(), output: at.output, deps: Vec::new() };
        let last = want == Want::Result && node.last_map;
        let probe = Probe { spec, unseen: Vec::new(), last };
        match asked(edge, &probe) {
            Asked::No => return Plan::Ask(probe),
            Asked::Unanswered => return Plan::Wait,
            Asked::Answered => {}
        }
        step.level = Level::Fast;
        if want == Want::Fast {
            return Plan::Do(step);
        }
        if let Some(hit) = best(edge).filter(|_| want == Want::Result) {
            step.needs.load = Some(hit.clone());
            return Plan::Do(step);
        }
    }
    if !node.last_map {
        step.needs.map = true;
        return Plan::Do(step);
    }
    step.level = Level::Slow;
    step.needs.run = want == Want::Result;
    Plan::Do(step)
}

/// Looks further for keys. Whether there is something left to look for.
fn search(inputs: &[Input<'_>], found: &[BTreeSet<KeyId>], step: &mut Step) -> bool {
    let unmatched = |i: usize| found.get(i).is_none_or(BTreeSet::is_empty);
    let exhausted = |i: usize| inputs.get(i).is_some_and(Input::is_exhausted);
    let all = 0..inputs.len();
    if all.clone().any(|i| unmatched(i) && exhausted(i)) {
        return false;
    }
    let mut open: Vec<usize> = all.filter(|i| !exhausted(*i)).collect();
    if open.iter().any(|i| unmatched(*i)) {
        // The others may never have to be looked at.
        open.retain(|i| unmatched(*i));
    } else if open.iter().any(|i| inputs.get(*i).is_some_and(|x| x.level() < Level::Slow)) {
        open.retain(|i| inputs.get(*i).is_some_and(|x| x.level() < Level::Slow));
    }
    for i in &open {
        let (Some(input), Some(want)) = (inputs.get(*i), step.wants.get_mut(*i)) else { continue };
        if input.level() < Level::Slow {
            *want = Want::Slow;
        } else if !input.is_made() {
            *want = Want::Result;
        } else {
            step.needs.content.insert(*i);
        }
    }
    !open.is_empty()
}

enum Asked {
    No,
    Unanswered,
    Answered,
}

fn asked(edge: &EdgeState, probe: &Probe) -> Asked {
    match &edge.asked {
        Some(asked) if asked == probe => {
            if edge.answered {
                Asked::Answered
            } else {
                Asked::Unanswered
            }
        }
        _ => Asked::No,
    }
}

fn best(edge: &EdgeState) -> Option<&Found> {
    edge.records.iter().find(|found| !edge.bad.contains(&found.record.id))
}
