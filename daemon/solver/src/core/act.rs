//! Starts and cancels work, and takes in what it yields.

use std::collections::BTreeSet;

use base::{Detail, Failure};

use super::Core;
use super::plan::{Plan, Step};
use super::types::{
    At, Content, Dying, Effect, Found, Level, Needs, NodeId, NodeState, ResultId, Run, Task, Want, Work,
    WorkId,
};
use crate::error::Error;
use crate::graph::CacheMap;
use crate::index::{KeyId, Record};

impl Core {
    /// Plans an edge again and passes on what it wants of others.
    pub(super) fn evaluate(&mut self, at: At, out: &mut Vec<Effect>) {
        match self.plan(at) {
            Plan::Wait => {}
            Plan::Ask(probe) => {
                self.last_work += 1;
                let work = self.last_work;
                self.probing.retain(|_, asking| *asking != at);
                self.probing.insert(work, at);
                if let Some(edge) = self.edge_mut(at) {
                    edge.asked = Some(probe.clone());
                    edge.answered = false;
                }
                out.push(Effect::Probe { work, node: at.node, probe });
            }
            Plan::Do(step) => self.apply(at, step),
        }
    }

    fn apply(&mut self, at: At, step: Step) {
        let Some(node) = self.nodes.get(&at.node) else { return };
        let inputs: Vec<(At, Want)> = node.inputs.iter().copied().zip(step.wants).collect();
        let Some(edge) = self.edge_mut(at) else { return };
        let grew = step.level > edge.level;
        edge.level = edge.level.max(step.level);
        let changed = edge.needs != step.needs;
        edge.needs = step.needs;
        if edge.want() == Want::Nothing {
            // Asked afresh when it is wanted again.
            edge.asked = None;
            self.probing.retain(|_, asking| *asking != at);
        }
        if changed {
            self.touched.insert(at.node);
        }
        if grew {
            self.stir(at);
        }
        for (input, _) in &inputs {
            let most = inputs.iter().filter(|(i, _)| i == input).map(|(_, w)| *w).max();
            self.want(at, *input, most.unwrap_or_default());
        }
    }

    /// `consumer` wants this much of `input`, and no more.
    fn want(&mut self, consumer: At, input: At, want: Want) {
        let Some(node) = self.nodes.get_mut(&input.node) else { return };
        let changed = if want == Want::Nothing {
            node.edges.get_mut(&input.output).is_some_and(|edge| edge.consumers.remove(&consumer).is_some())
        } else {
            let edge = node.edges.entry(input.output).or_default();
            edge.consumers.insert(consumer, want) != Some(want)
        };
        if changed {
            self.dirty.insert(input);
        }
    }

    /// Withdraws all that an edge needs and wants of others.
    pub(super) fn rest(&mut self, at: At) {
        self.probing.retain(|_, asking| *asking != at);
        let inputs = self.nodes.get(&at.node).map(|n| n.inputs.clone()).unwrap_or_default();
        for input in inputs {
            self.want(at, input, Want::Nothing);
        }
        if let Some(edge) = self.edge_mut(at) {
            edge.asked = None;
            edge.needs = Needs::default();
            self.touched.insert(at.node);
        }
    }

    /// Starts what the edges of a node need, and cancels what they do not.
    pub(super) fn arrange(&mut self, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.jobs.is_empty() && node.joined.is_empty() {
            self.drop_node(id, out);
            return;
        }
        self.arrange_map(id, out);
        self.arrange_content(id, out);
        self.arrange_run(id, out);
        let outputs: Vec<usize> =
            self.nodes.get(&id).map(|n| n.edges.keys().copied().collect()).unwrap_or_default();
        for output in outputs {
            self.arrange_edge(At { node: id, output }, out);
        }
    }

    fn arrange_map(&mut self, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get(&id) else { return };
        let needed = node.edges.values().any(|e| e.needs.map);
        match node.map_work {
            None if needed => {
                let (stage, is_root) = (node.maps.len(), node.inputs.is_empty());
                let work = self.begin(Task::Map(id));
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.map_work = Some(Work::new(work));
                }
                if is_root {
                    out.push(Effect::Started { node: id, cached: false });
                }
                out.push(Effect::Key { work, node: id, stage });
            }
            Some(work) if !needed && !work.is_dying() => {
                let work = self.cancel(work, out);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.map_work = Some(work);
                }
            }
            _ => {}
        }
    }

    fn arrange_content(&mut self, id: NodeId, out: &mut Vec<Effect>) {
        let count = self.nodes.get(&id).map_or(0, |n| n.content.len());
        for input in 0..count {
            let Some(node) = self.nodes.get(&id) else { return };
            let needed = node.edges.values().any(|e| e.needs.content.contains(&input));
            let next = match node.content.get(input) {
                Some(Content::Unknown) if needed => {
                    let from = node.inputs.get(input).and_then(|at| self.edge(*at));
                    let Some(result) = from.and_then(|edge| edge.result) else { continue };
                    let work = self.begin(Task::Content(id, input));
                    out.push(Effect::ContentKey { work, node: id, input, result });
                    Work::new(work)
                }
                Some(Content::Underway(work)) if !needed && !work.is_dying() => self.cancel(*work, out),
                _ => continue,
            };
            if let Some(slot) = self.nodes.get_mut(&id).and_then(|n| n.content.get_mut(input)) {
                *slot = Content::Underway(next);
            }
        }
    }

    fn arrange_run(&mut self, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get(&id) else { return };
        let needed = needs_run(node) || !node.joined.is_empty();
        match node.run {
            Run::Idle if needed => {
                if let Some(host) = self.host_for(id) {
                    self.join(id, host, out);
                    return;
                }
                let made = |at: &At| self.edge(*at).and_then(|edge| edge.result);
                let Some(inputs) = node.inputs.iter().map(made).collect::<Option<Vec<_>>>() else { return };
                let work = self.begin(Task::Run(id));
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.run = Run::Underway(Work::new(work));
                }
                out.push(Effect::Started { node: id, cached: false });
                out.push(Effect::Run { work, node: id, inputs });
            }
            Run::Underway(work) if !needed && !work.is_dying() => {
                let work = self.cancel(work, out);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.run = Run::Underway(work);
                }
            }
            Run::Joined(host) if !needed => {
                self.part(id, host, out);
                self.ended_early(id, self.reason().0, out);
            }
            _ => {}
        }
    }

    fn arrange_edge(&mut self, at: At, out: &mut Vec<Effect>) {
        let Some(edge) = self.edge(at) else { return };
        match (&edge.load, &edge.needs.load) {
            (None, Some(found)) => {
                let found = found.clone();
                let work = self.begin(Task::Load(at));
                if let Some(edge) = self.edge_mut(at) {
                    edge.load = Some((Work::new(work), found.clone()));
                }
                out.push(Effect::Started { node: at.node, cached: true });
                out.push(Effect::Load { work, node: at.node, found });
            }
            (Some((work, found)), None) if !work.is_dying() => {
                let (work, found) = (*work, found.clone());
                let work = self.cancel(work, out);
                if let Some(edge) = self.edge_mut(at) {
                    edge.load = Some((work, found));
                }
            }
            _ => {}
        }
        let Some(edge) = self.edge(at) else { return };
        if !edge.needs.save || edge.save.is_some() || edge.result.is_some() {
            return;
        }
        let Some(Run::Done(results)) = self.nodes.get(&at.node).map(|n| &n.run) else { return };
        match results.get(at.output) {
            Some(result) => {
                let result = self.hold(*result);
                self.save(at, result, None, out);
            }
            None => {
                let failure = Error::NoOutput { output: at.output, results: results.len() }.into();
                self.fail(at.node, vec![at], &failure, out);
            }
        }
    }

    /// `result` is held by the caller.
    fn save(&mut self, at: At, result: ResultId, from: Option<Found>, out: &mut Vec<Effect>) {
        let spec = self.spec(at);
        let work = self.begin(Task::Save(at));
        let Some(edge) = self.edge_mut(at) else { return };
        edge.save = Some(work);
        edge.pending = Some(result);
        let names = edge.keys.clone();
        out.push(Effect::Save { work, result, spec, names, from });
    }

    /// Why something is not needed any more.
    fn reason(&self) -> (Dying, Failure) {
        match &self.cause {
            Some(cause) => (Dying::GivenUp, cause.clone()),
            None => (Dying::Spared, Failure::canceled("a known result was found")),
        }
    }

    fn cancel(&mut self, work: Work, out: &mut Vec<Effect>) -> Work {
        let (dying, cause) = self.reason();
        out.push(Effect::Cancel { work: work.id, cause });
        Work { id: work.id, dying }
    }

    fn ended_early(&self, node: NodeId, dying: Dying, out: &mut Vec<Effect>) {
        let failure = (dying == Dying::GivenUp).then(|| Failure::canceled("context canceled"));
        out.push(Effect::Ended { node, cached: failure.is_none(), failure });
    }

    fn wake(&mut self, id: NodeId) {
        self.touched.insert(id);
        if let Some(node) = self.nodes.get(&id) {
            self.dirty.extend(node.edges.keys().map(|output| At { node: id, output: *output }));
        }
    }

    pub(super) fn probed(&mut self, work: WorkId, found: Vec<BTreeSet<KeyId>>, records: Vec<Found>) {
        let Some(at) = self.probing.remove(&work) else { return };
        let Some(edge) = self.edge_mut(at) else { return };
        edge.answered = true;
        let mut all = found.iter();
        let mut common = all.next().cloned().unwrap_or_default();
        for ids in all {
            common.retain(|id| ids.contains(id));
        }
        edge.found = found;
        edge.records = records;
        let fresh: Vec<KeyId> = common.into_iter().filter(|id| !edge.keys.contains(id)).collect();
        edge.keys.extend(fresh.iter().cloned());
        self.dirty.insert(at);
        if !fresh.is_empty() {
            self.stir(at);
        }
    }

    pub(super) fn keyed(&mut self, work: WorkId, map: CacheMap, out: &mut Vec<Effect>) {
        let Some(Task::Map(id)) = self.works.get(&work).copied() else {
            self.works.remove(&work);
            return;
        };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if map.deps.len() != node.inputs.len() {
            let failure = Error::Deps { deps: map.deps.len(), inputs: node.inputs.len() }.into();
            self.failed(work, &failure, out);
            return;
        }
        self.works.remove(&work);
        node.map_work = None;
        node.last_map = map.last || !node.inputs.is_empty();
        node.content.resize_with(map.deps.len(), Content::default);
        node.maps.push(map);
        if node.inputs.is_empty() {
            out.push(Effect::Ended { node: id, cached: false, failure: None });
        }
        self.wake(id);
    }

    pub(super) fn content_keyed(&mut self, work: WorkId, digest: Option<base::Digest>) {
        let Some(Task::Content(id, input)) = self.works.remove(&work) else { return };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        // What is only looked at is not named.
        let named = node.maps.first().and_then(|m| m.deps.get(input)).is_some_and(|d| d.content);
        if let Some(slot) = node.content.get_mut(input) {
            *slot = Content::Known(digest.filter(|_| named));
        }
        self.wake(id);
    }

    pub(super) fn loaded(&mut self, work: WorkId, result: Option<ResultId>, out: &mut Vec<Effect>) {
        let result = result.map(|result| self.hold(result));
        let Some(Task::Load(at)) = self.works.remove(&work) else {
            if let Some(result) = result {
                self.drop_result(result, out);
            }
            return;
        };
        self.touched.insert(at.node);
        self.dirty.insert(at);
        let Some(edge) = self.edge_mut(at) else { return };
        let Some((_, found)) = edge.load.take() else { return };
        let Some(result) = result else {
            edge.bad.insert(found.record.id);
            return;
        };
        // Another output may have had the node run in the meantime.
        let late = edge.save.is_some() || edge.result.is_some();
        out.push(Effect::Ended { node: at.node, cached: true, failure: None });
        if late {
            self.drop_result(result, out);
        } else if found.source.is_some() {
            self.save(at, result, Some(found), out);
        } else {
            self.complete(at, result, found.record, vec![found.key], out);
        }
    }

    pub(super) fn ran(&mut self, work: WorkId, results: Vec<ResultId>, out: &mut Vec<Effect>) {
        let held: Vec<ResultId> = results.into_iter().map(|result| self.hold(result)).collect();
        if let Some(Task::Run(id)) = self.works.remove(&work) {
            for member in self.disband(id) {
                let shared = held.iter().map(|result| self.hold(*result)).collect();
                if let Some(node) = self.nodes.get_mut(&member) {
                    node.run = Run::Done(shared);
                }
                out.push(Effect::Ended { node: member, cached: false, failure: None });
                self.wake(member);
            }
        }
        for result in held {
            self.drop_result(result, out);
        }
    }

    pub(super) fn saved(&mut self, work: WorkId, keys: Vec<KeyId>, record: Record, out: &mut Vec<Effect>) {
        let Some(Task::Save(at)) = self.works.remove(&work) else { return };
        let Some(edge) = self.edge_mut(at) else { return };
        edge.save = None;
        if let Some(result) = edge.pending.take() {
            self.complete(at, result, record, keys, out);
        }
    }

    /// The result of an edge is there. It is held by the caller.
    fn complete(
        &mut self,
        at: At,
        result: ResultId,
        record: Record,
        keys: Vec<KeyId>,
        out: &mut Vec<Effect>,
    ) {
        let Some(edge) = self.edge_mut(at) else { return };
        edge.result = Some(result);
        edge.record = Some(record);
        edge.level = Level::Slow;
        for key in keys {
            if !edge.keys.contains(&key) {
                edge.keys.push(key);
            }
        }
        let builds: Vec<_> = edge.builds.iter().copied().collect();
        self.rest(at);
        self.stir(at);
        for build in builds {
            self.finish_with(build, at, out);
        }
    }

    pub(super) fn failed(&mut self, work: WorkId, failure: &Failure, out: &mut Vec<Effect>) {
        match self.works.remove(&work) {
            Some(Task::Map(id)) => self.map_failed(id, failure, out),
            Some(Task::Content(id, input)) => self.content_failed(id, input, failure, out),
            Some(Task::Load(at)) => {
                self.touched.insert(at.node);
                self.dirty.insert(at);
                let Some(edge) = self.edge_mut(at) else { return };
                let Some((work, found)) = edge.load.take() else { return };
                if work.is_dying() {
                    self.ended_early(at.node, work.dying, out);
                } else {
                    edge.bad.insert(found.record.id);
                }
            }
            Some(Task::Run(id)) => self.run_failed(id, failure, out),
            Some(Task::Save(at)) => {
                let Some(edge) = self.edge_mut(at) else { return };
                edge.save = None;
                if let Some(result) = edge.pending.take() {
                    self.drop_result(result, out);
                }
                self.fail(at.node, vec![at], failure, out);
            }
            Some(Task::Orphan) | None => {}
        }
    }

    fn map_failed(&mut self, id: NodeId, failure: &Failure, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let dying = node.map_work.take().map_or(Dying::No, |w| w.dying);
        let is_root = node.inputs.is_empty();
        let waiting = edges(id, node, |needs| needs.map);
        self.wake(id);
        if dying != Dying::No {
            if is_root {
                self.ended_early(id, dying, out);
            }
            return;
        }
        if !is_root {
            out.push(Effect::Started { node: id, cached: false });
        }
        out.push(Effect::Ended { node: id, cached: false, failure: Some(failure.clone()) });
        self.fail(id, waiting, &failure.clone().context("failed to load cache key"), out);
    }

    fn content_failed(&mut self, id: NodeId, input: usize, failure: &Failure, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let waiting = edges(id, node, |needs| needs.content.contains(&input));
        let Some(slot) = node.content.get_mut(input) else { return };
        let dying = matches!(slot, Content::Underway(work) if work.is_dying());
        *slot = Content::Unknown;
        self.wake(id);
        if dying {
            return;
        }
        out.push(Effect::Started { node: id, cached: false });
        out.push(Effect::Ended { node: id, cached: false, failure: Some(failure.clone()) });
        self.fail(id, waiting, &failure.clone().context("failed to compute cache key"), out);
    }

    fn run_failed(&mut self, id: NodeId, failure: &Failure, out: &mut Vec<Effect>) {
        let dying = match self.nodes.get(&id).map(|n| &n.run) {
            Some(Run::Underway(work)) => work.dying,
            _ => Dying::No,
        };
        for member in self.disband(id) {
            let Some(node) = self.nodes.get_mut(&member) else { continue };
            node.run = Run::Idle;
            let waiting = edges(member, node, |needs| needs.run);
            self.wake(member);
            if dying == Dying::No {
                out.push(Effect::Ended { node: member, cached: false, failure: Some(failure.clone()) });
                self.fail(member, waiting, failure, out);
            } else {
                self.ended_early(member, dying, out);
            }
        }
    }

    /// Those who wait for `failed` edges of `node` get the failure. Nothing is
    /// kept of it.
    fn fail(&mut self, node: NodeId, failed: Vec<At>, failure: &Failure, out: &mut Vec<Effect>) {
        let Some(digest) = self.nodes.get(&node).map(|n| n.key.digest.clone()) else { return };
        let failure = failure.clone().with(Detail::Vertex(digest));
        let mut stack = failed;
        let mut seen = BTreeSet::new();
        let mut builds = Vec::new();
        while let Some(at) = stack.pop() {
            if !seen.insert(at) {
                continue;
            }
            if let Some(edge) = self.edge_mut(at) {
                stack.extend(std::mem::take(&mut edge.consumers).into_keys());
                builds.extend(edge.builds.iter().copied());
            }
        }
        for at in seen {
            self.rest(at);
        }
        self.cause.get_or_insert_with(|| Failure::canceled("context canceled"));
        for build in builds {
            self.finish(build, Err(failure.clone()), out);
        }
    }
}

/// Some edge of the node waits for its run.
pub(super) fn needs_run(node: &NodeState) -> bool {
    node.edges.values().any(|e| e.needs.run)
}

fn edges(id: NodeId, node: &NodeState, which: impl Fn(&Needs) -> bool) -> Vec<At> {
    let some = node.edges.iter().filter(|(_, edge)| which(&edge.needs));
    some.map(|(output, _)| At { node: id, output: *output }).collect()
}
