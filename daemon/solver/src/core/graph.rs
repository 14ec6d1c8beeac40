//! Builds, jobs and nodes come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::Failure;

use super::Core;
use super::types::{
    At, BuildId, Content, Effect, JobId, NodeId, NodeKey, NodeState, Outcome, Run, Submit, Task,
};
use crate::error::Error;
use crate::graph::KeyDigest;
use crate::index::KeyId;
use crate::keys::content_key;
use crate::solver::{KeyNode, KeyResult, KeyUse, Keys};

impl Core {
    pub(super) fn submit(
        &mut self,
        build: BuildId,
        job: JobId,
        parent: Option<NodeId>,
        vertices: &[Submit],
        edge: (usize, usize),
        out: &mut Vec<Effect>,
    ) {
        if let Some(vertex) = parent.and_then(|parent| self.recursion(parent, vertices)) {
            let failure = Error::Recursion { vertex: vertex.digest.clone() }.into();
            out.push(Effect::Finish { build, outcome: Err(failure) });
            return;
        }
        self.jobs.entry(job).or_default().parent = parent;
        let mut ids: Vec<NodeId> = Vec::with_capacity(vertices.len());
        for (index, vertex) in vertices.iter().enumerate() {
            let inputs = resolve(vertex, |i| ids.get(i).copied());
            let (node, fresh) = match self.lookup(vertex, &inputs) {
                Some(node) => (node, false),
                None => (self.add_node(vertex, inputs), true),
            };
            ids.push(node);
            if let Some(state) = self.nodes.get_mut(&node) {
                state.jobs.insert(job);
            }
            if let Some(job) = self.jobs.get_mut(&job) {
                job.nodes.insert(node);
            }
            out.push(Effect::Adopt { build, job, index, node, fresh });
        }
        let Some(node) = ids.get(edge.0).copied() else {
            let failure = Failure::internal("the requested vertex is not among those submitted");
            out.push(Effect::Finish { build, outcome: Err(failure) });
            return;
        };
        let at = At { node, output: edge.1 };
        self.builds.insert(build, (job, at));
        if let Some(job) = self.jobs.get_mut(&job) {
            job.builds.insert(build);
        }
        let Some(state) = self.nodes.get_mut(&node) else { return };
        let state = state.edges.entry(at.output).or_default();
        state.builds.insert(build);
        if state.result.is_some() {
            self.finish_with(build, at, out);
        } else {
            self.dirty.insert(at);
        }
    }

    /// The vertex that waits for the run of `parent`, which is to wait for it.
    fn recursion<'a>(&self, parent: NodeId, vertices: &'a [Submit]) -> Option<&'a Submit> {
        let waiting = self.waiting_for(parent);
        let mut ids: Vec<Option<NodeId>> = Vec::with_capacity(vertices.len());
        for vertex in vertices {
            let known = vertex.inputs.iter().all(|(i, _)| ids.get(*i).copied().flatten().is_some());
            let inputs = resolve(vertex, |i| ids.get(i).copied().flatten());
            let id = if known { self.lookup(vertex, &inputs) } else { None };
            if id.is_some_and(|id| waiting.contains(&id)) {
                return Some(vertex);
            }
            ids.push(id);
        }
        None
    }

    /// One that is made anew serves those who would take a known result, but
    /// not the other way round.
    fn lookup(&self, vertex: &Submit, inputs: &[At]) -> Option<NodeId> {
        let mut key = NodeKey { digest: vertex.digest.clone(), inputs: inputs.to_vec(), ignore_cache: true };
        let anew = self.known.get(&key).copied();
        if anew.is_some() || vertex.ignore_cache {
            return anew;
        }
        key.ignore_cache = false;
        self.known.get(&key).copied()
    }

    fn add_node(&mut self, vertex: &Submit, inputs: Vec<At>) -> NodeId {
        self.last_node += 1;
        let id = self.last_node;
        let key = NodeKey {
            digest: vertex.digest.clone(),
            inputs: inputs.clone(),
            ignore_cache: vertex.ignore_cache,
        };
        self.known.insert(key.clone(), id);
        let node = NodeState {
            key,
            inputs,
            export: vertex.export,
            jobs: BTreeSet::new(),
            maps: Vec::new(),
            last_map: false,
            map_work: None,
            content: Vec::new(),
            run: Run::Idle,
            joined: BTreeSet::new(),
            edges: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
        id
    }

    pub(super) fn finish_with(&mut self, build: BuildId, at: At, out: &mut Vec<Effect>) {
        let Some(result) = self.edge(at).and_then(|edge| edge.result) else { return };
        let (keys, nodes) = self.chain(at);
        self.finish(build, Ok(Outcome { result, keys: Arc::new(keys), nodes }), out);
    }

    pub(super) fn finish(
        &mut self,
        build: BuildId,
        outcome: Result<Outcome, Failure>,
        out: &mut Vec<Effect>,
    ) {
        let Some((job, at)) = self.builds.remove(&build) else { return };
        if let Some(job) = self.jobs.get_mut(&job) {
            job.builds.remove(&build);
        }
        if let Some(edge) = self.edge_mut(at) {
            edge.builds.remove(&build);
        }
        self.dirty.insert(at);
        out.push(Effect::Finish { build, outcome });
    }

    pub(super) fn leave(&mut self, id: JobId, cause: &Failure, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else { return };
        self.cause = Some(cause.clone());
        for build in job.builds.clone() {
            self.finish(build, Err(cause.clone()), out);
        }
        let Some(job) = self.jobs.remove(&id) else { return };
        // Consumers first: they were made after their inputs.
        for node in job.nodes.into_iter().rev() {
            let Some(state) = self.nodes.get_mut(&node) else { continue };
            state.jobs.remove(&id);
            out.push(Effect::Release { node, job: id });
            if state.jobs.is_empty() {
                self.abandon(node, out);
            }
        }
    }

    /// No job wants this node any more. It stays as long as others wait for its
    /// run.
    fn abandon(&mut self, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.known.remove(&node.key);
        let edges: Vec<At> = node.edges.keys().map(|output| At { node: id, output: *output }).collect();
        let host = match node.run {
            Run::Joined(host) => Some(host),
            _ => None,
        };
        for at in edges {
            self.rest(at);
        }
        if let Some(host) = host {
            self.part(id, host, out);
        }
        if self.nodes.get(&id).is_some_and(|n| n.joined.is_empty()) {
            self.drop_node(id, out);
        }
    }

    pub(super) fn drop_node(&mut self, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.touched.remove(&id);
        let cause = self.cause.clone().unwrap_or_else(|| Failure::canceled("context canceled"));
        let mut works: Vec<_> = node.map_work.into_iter().collect();
        works.extend(node.content.into_iter().filter_map(|content| match content {
            Content::Underway(work) => Some(work),
            _ => None,
        }));
        let mut results = Vec::new();
        match node.run {
            Run::Underway(work) => works.push(work),
            Run::Done(done) => results.extend(done),
            Run::Idle | Run::Joined(_) => {}
        }
        for edge in node.edges.into_values() {
            works.extend(edge.load.map(|(work, _)| work));
            results.extend(edge.result.into_iter().chain(edge.pending));
            if let Some(task) = edge.save.and_then(|work| self.works.get_mut(&work)) {
                *task = Task::Orphan;
            }
        }
        for work in works {
            if let Some(task) = self.works.get_mut(&work.id) {
                *task = Task::Orphan;
            }
            if !work.is_dying() {
                out.push(Effect::Cancel { work: work.id, cause: cause.clone() });
            }
        }
        for result in results {
            self.drop_result(result, out);
        }
        out.push(Effect::Drop { node: id });
    }

    /// The keys of an edge and of everything below it, and the nodes.
    pub(super) fn chain(&self, at: At) -> (Keys, Vec<NodeId>) {
        let mut below = BTreeSet::new();
        let mut stack = vec![at];
        while let Some(at) = stack.pop() {
            if below.insert(at) {
                stack.extend(self.nodes.get(&at.node).into_iter().flat_map(|n| &n.inputs));
            }
        }
        let mut keys = Keys::default();
        let mut made: BTreeMap<At, Vec<usize>> = BTreeMap::new();
        // Inputs were made before their consumers.
        for at in &below {
            let nodes = self.key_nodes(*at, &made, &mut keys.nodes);
            made.insert(*at, nodes);
        }
        keys.roots = made.remove(&at).unwrap_or_default();
        let nodes: BTreeSet<NodeId> = below.into_iter().map(|at| at.node).collect();
        (keys, nodes.into_iter().collect())
    }

    fn key_nodes(&self, at: At, made: &BTreeMap<At, Vec<usize>>, all: &mut Vec<KeyNode>) -> Vec<usize> {
        let Some(node) = self.nodes.get(&at.node) else { return Vec::new() };
        let mut deps = Vec::with_capacity(node.inputs.len());
        for (i, input) in node.inputs.iter().enumerate() {
            let selector = node.maps.first().and_then(|m| m.deps.get(i)).and_then(|d| d.selector.clone());
            let use_it = |node: &usize| KeyUse { node: *node, selector: selector.clone() };
            let mut uses: Vec<KeyUse> = made.get(input).into_iter().flatten().map(use_it).collect();
            if let Some(Content::Known(Some(digest))) = node.content.get(i) {
                uses.push(KeyUse { node: all.len(), selector: None });
                all.push(KeyNode {
                    ids: vec![content_key(digest)],
                    digest: KeyDigest::Stable(digest.clone()),
                    output: -1,
                    vertex: None,
                    export: None,
                    deps: Vec::new(),
                    results: Vec::new(),
                });
            }
            deps.push(uses);
        }
        let edge = self.edge(at);
        let (ids, records) = match edge {
            Some(edge) => {
                let found = edge.records.iter().map(|f| {
                    (f.key.clone(), KeyResult { record: f.record.clone(), source: f.source.clone() })
                });
                let own = edge.record.iter().flat_map(|record| {
                    let result = KeyResult { record: record.clone(), source: None };
                    edge.keys.iter().map(move |key| (key.clone(), result.clone()))
                });
                (edge.keys.clone(), own.chain(found).collect::<Vec<(KeyId, KeyResult)>>())
            }
            None => (Vec::new(), Vec::new()),
        };
        let output = i64::try_from(at.output).unwrap_or(i64::MAX);
        let first = all.len();
        for digest in node.digests() {
            let ids = if node.inputs.is_empty() {
                let name = digest.root_key(output);
                ids.iter().filter(|id| **id == name).cloned().collect()
            } else {
                ids.clone()
            };
            let mut results: Vec<KeyResult> = Vec::new();
            for (key, result) in &records {
                if ids.contains(key) && !results.iter().any(|known| known.record.id == result.record.id) {
                    results.push(result.clone());
                }
            }
            results.sort_by_key(|result| std::cmp::Reverse(result.record.created));
            let vertex = Some(node.key.digest.clone());
            let deps = deps.clone();
            all.push(KeyNode { ids, digest, output, vertex, export: node.export, deps, results });
        }
        (first..all.len()).collect()
    }
}

/// The inputs of a vertex that are known.
fn resolve(vertex: &Submit, id: impl Fn(usize) -> Option<NodeId>) -> Vec<At> {
    let known = vertex.inputs.iter().filter_map(|(i, output)| Some(At { node: id(*i)?, output: *output }));
    known.collect()
}
