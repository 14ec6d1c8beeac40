//! Equal nodes: one runs, the others wait for its results.

use std::collections::BTreeSet;

use super::Core;
use super::types::{At, Effect, NodeId, Run, Task, Want};
use crate::keys::Spec;

impl Core {
    /// A node that is running what `id` is about to run.
    pub(super) fn host_for(&self, id: NodeId) -> Option<NodeId> {
        let node = self.nodes.get(&id)?;
        let mine = self.spec(At { node: id, output: 0 });
        let mut waiting = None;
        for task in self.works.values() {
            let Task::Run(other) = *task else { continue };
            let Some(host) = self.nodes.get(&other) else { continue };
            let running = matches!(host.run, Run::Underway(work) if !work.is_dying());
            if other == id || !running || (node.ignores_cache() && !host.ignores_cache()) {
                continue;
            }
            // One without jobs has lost its inputs, and with them its keys.
            if host.jobs.is_empty() || !same(&mine, &self.spec(At { node: other, output: 0 })) {
                continue;
            }
            if !waiting.get_or_insert_with(|| self.waiting_for(id)).contains(&other) {
                return Some(other);
            }
        }
        None
    }

    pub(super) fn join(&mut self, id: NodeId, host: NodeId, out: &mut Vec<Effect>) {
        let (Some(node), true) = (self.nodes.get_mut(&id), id != host) else { return };
        node.run = Run::Joined(host);
        if let Some(host) = self.nodes.get_mut(&host) {
            host.joined.insert(id);
        }
        out.push(Effect::Started { node: id, cached: false });
        out.push(Effect::Join { node: id, host });
    }

    pub(super) fn part(&mut self, id: NodeId, host: NodeId, out: &mut Vec<Effect>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.run = Run::Idle;
        }
        if let Some(host) = self.nodes.get_mut(&host) {
            host.joined.remove(&id);
        }
        self.touched.insert(host);
        out.push(Effect::Part { node: id, host });
    }

    /// A run ended: its node and those that waited for it.
    pub(super) fn disband(&mut self, id: NodeId) -> Vec<NodeId> {
        let Some(node) = self.nodes.get_mut(&id) else { return Vec::new() };
        self.touched.insert(id);
        std::iter::once(id).chain(std::mem::take(&mut node.joined)).collect()
    }

    /// Every node that cannot end before `id` does, itself included: consumers,
    /// those that wait for its run, and those whose run waits for a nested build
    /// of any of these.
    pub(super) fn waiting_for(&self, id: NodeId) -> BTreeSet<NodeId> {
        let mut seen = BTreeSet::new();
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            let (true, Some(node)) = (seen.insert(id), self.nodes.get(&id)) else { continue };
            stack.extend(&node.joined);
            for edge in node.edges.values() {
                let wanting = edge.consumers.iter().filter(|(_, want)| **want > Want::Nothing);
                stack.extend(wanting.map(|(at, _)| at.node));
                let jobs = edge.builds.iter().filter_map(|build| self.builds.get(build));
                stack.extend(jobs.filter_map(|(job, _)| self.jobs.get(job)?.parent));
            }
        }
        seen
    }
}

/// The same is done with the same.
fn same(a: &Spec, b: &Spec) -> bool {
    if a.deps.len() != b.deps.len() {
        return false;
    }
    if a.deps.is_empty() {
        return a.digests.iter().any(|digest| b.digests.contains(digest));
    }
    a.digests == b.digests && a.deps.iter().zip(&b.deps).all(|(a, b)| a.iter().any(|key| b.contains(key)))
}
