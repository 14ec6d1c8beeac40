//! What each job sees of each node: its own name for it, and how far it is.

use std::collections::HashMap;
use std::sync::Arc;

use base::progress::{Event, Group, Vertex as Shown};
use base::{Digest, Failure, Timestamp};

use crate::core::{JobId, NodeId};
use crate::graph::Vertex;
use crate::solver::JobInner;

/// Every view.
#[derive(Default)]
pub(crate) struct Views {
    nodes: HashMap<NodeId, Node>,
    /// Which names a job has given.
    named: HashMap<JobId, HashMap<Digest, NodeId>>,
}

#[derive(Default)]
struct Node {
    phase: Phase,
    views: HashMap<JobId, View>,
}

/// How far a node is.
#[derive(Default, Clone)]
struct Phase {
    cached: bool,
    started: Option<Timestamp>,
    completed: Option<Timestamp>,
    error: String,
}

struct View {
    job: Arc<JobInner>,
    digest: Digest,
    name: String,
    inputs: Vec<Digest>,
    group: Option<Group>,
}

impl View {
    fn show(&self, phase: &Phase) {
        self.job.stream.sink().send(Event::Vertex(Shown {
            digest: self.digest.clone(),
            inputs: self.inputs.clone(),
            name: self.name.clone(),
            cached: phase.cached,
            started: phase.started,
            completed: phase.completed,
            error: phase.error.clone(),
            group: self.group.clone(),
        }));
    }
}

impl Views {
    /// A job wants a node. Gives the job's name for it, unless it had one.
    pub(crate) fn adopt<R>(
        &mut self,
        node: NodeId,
        job: &Arc<JobInner>,
        vertex: &Vertex<R>,
        inputs: &[NodeId],
    ) -> Option<Digest> {
        let inputs = inputs.iter().filter_map(|input| self.name(*input, job.id)).collect();
        let state = self.nodes.entry(node).or_default();
        if state.views.contains_key(&job.id) {
            return None;
        }
        let names = self.named.entry(job.id).or_default();
        let mut digest = vertex.digest.clone();
        // The same definition once with and once without known results: clients
        // tell them apart by digest.
        while names.get(&digest).is_some_and(|other| *other != node) {
            digest = Digest::of(format!("{digest}-ignorecache"));
        }
        names.insert(digest.clone(), node);
        let view = View {
            job: job.clone(),
            digest: digest.clone(),
            name: vertex.name.clone(),
            inputs,
            group: vertex.group.clone(),
        };
        view.show(&Phase::default());
        if state.phase.started.is_some() {
            view.show(&state.phase);
        }
        state.views.insert(job.id, view);
        Some(digest)
    }

    fn name(&self, node: NodeId, job: JobId) -> Option<Digest> {
        self.nodes.get(&node)?.views.get(&job).map(|view| view.digest.clone())
    }

    /// Work on a node begins.
    pub(crate) fn started(&mut self, node: NodeId, cached: bool) {
        self.change(node, |phase| {
            phase.cached = cached;
            phase.started = Some(Timestamp::now());
            phase.completed = None;
        });
    }

    /// Work on a node ended.
    pub(crate) fn ended(&mut self, node: NodeId, cached: bool, failure: Option<&Failure>) {
        self.change(node, |phase| {
            phase.cached = cached;
            phase.completed = Some(Timestamp::now());
            phase.error = failure.map(ToString::to_string).unwrap_or_default();
        });
    }

    fn change(&mut self, node: NodeId, change: impl FnOnce(&mut Phase)) {
        let Some(state) = self.nodes.get_mut(&node) else { return };
        change(&mut state.phase);
        for view in state.views.values() {
            view.show(&state.phase);
        }
    }

    /// A job does not want a node any more.
    pub(crate) fn release(&mut self, node: NodeId, job: JobId) {
        let view = self.nodes.get_mut(&node).and_then(|state| state.views.remove(&job));
        if let (Some(view), Some(names)) = (view, self.named.get_mut(&job)) {
            names.remove(&view.digest);
            if names.is_empty() {
                self.named.remove(&job);
            }
        }
    }

    /// A node is gone.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }
}
