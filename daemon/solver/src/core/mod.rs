//! Decides. A state machine without I/O: [`Event`]s in, [`Effect`]s out.
//!
//! A *node* is a vertex that some job wants; jobs share it when digest and
//! inputs are the same. An *edge* is one output of a node. Builds want results
//! of edges, and edges want things of the edges below them: that is all there is
//! to scheduling.
//!
//! * Wants go down. How much is wanted of an edge is the most that any build or
//!   consumer wants: its keys as far as they follow from definitions
//!   ([`Want::Fast`]), also those that need contents ([`Want::Slow`]), or its
//!   result.
//! * Knowledge goes up: keys, and results. It only grows while the node lives.
//! * What an edge needs follows from what is wanted and known, and nothing else:
//!   [`plan`] is a function. After every event the edges it touches are planned
//!   again until nothing changes; then work that has become needed is started
//!   and work that nobody needs any more is cancelled.
//!
//! An edge looks for a known result in order of cost. Definition keys of all
//! inputs come first; then, only for inputs that match nothing, slow keys and
//! contents; then those of the other inputs. Only when that fails too are all
//! inputs made and the node runs. A result is loaded only when it is wanted.
//!
//! Before a node runs it looks for an equal one that is running, by keys, and
//! waits for that one's results instead. It stays what it is: no edge ever
//! becomes another. Errors go to everyone who waits, and are forgotten.

mod act;
mod graph;
mod plan;
mod share;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use base::Failure;

pub(crate) use types::{At, BuildId, Effect, Event, Found, JobId, NodeId, Probe, ResultId, Submit, WorkId};
use types::{EdgeState, Job, NodeKey, NodeState, Task};

/// The state of all builds.
#[derive(Debug, Default)]
pub(crate) struct Core {
    nodes: BTreeMap<NodeId, NodeState>,
    known: BTreeMap<NodeKey, NodeId>,
    jobs: BTreeMap<JobId, Job>,
    builds: BTreeMap<BuildId, (JobId, At)>,
    works: BTreeMap<WorkId, Task>,
    results: BTreeMap<ResultId, usize>,
    probing: BTreeMap<WorkId, At>,
    last_node: NodeId,
    last_work: WorkId,
    /// To be planned again.
    dirty: BTreeSet<At>,
    /// Whose work is to be looked at.
    touched: BTreeSet<NodeId>,
    /// Why wants are being dropped, if not for a better result.
    cause: Option<Failure>,
}

impl Core {
    /// Takes an event; `out` gets what is to be done about it, in order.
    pub(crate) fn step(&mut self, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Submitted { build, job, parent, vertices, edge } => {
                self.submit(build, job, parent, &vertices, edge, out);
            }
            Event::Withdrawn { build, cause } => {
                self.cause = Some(cause.clone());
                self.finish(build, Err(cause), out);
            }
            Event::Left { job, cause } => self.leave(job, &cause, out),
            Event::Probed { work, found, records } => self.probed(work, found, records),
            Event::Keyed { work, map } => self.keyed(work, map, out),
            Event::ContentKeyed { work, digest } => self.content_keyed(work, digest),
            Event::Loaded { work, result } => self.loaded(work, result, out),
            Event::Ran { work, results } => self.ran(work, results, out),
            Event::Saved { work, keys, record } => self.saved(work, keys, record, out),
            Event::Failed { work, failure } => self.failed(work, &failure, out),
        }
        self.settle(out);
    }

    /// Nothing is wanted and nothing is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.known.is_empty()
            && self.jobs.is_empty()
            && self.builds.is_empty()
            && self.works.is_empty()
            && self.results.is_empty()
            && self.probing.is_empty()
    }

    fn settle(&mut self, out: &mut Vec<Effect>) {
        loop {
            while let Some(at) = self.dirty.pop_first() {
                self.evaluate(at, out);
            }
            // What the index answers may change what is needed: nothing is
            // started or cancelled on half the picture.
            if !self.probing.is_empty() {
                return;
            }
            let Some(node) = self.touched.pop_first() else { break };
            self.arrange(node, out);
        }
        self.cause = None;
    }

    fn edge(&self, at: At) -> Option<&EdgeState> {
        self.nodes.get(&at.node)?.edges.get(&at.output)
    }

    fn edge_mut(&mut self, at: At) -> Option<&mut EdgeState> {
        self.nodes.get_mut(&at.node)?.edges.get_mut(&at.output)
    }

    /// What is known or wanted of an edge changed in a way others see.
    fn stir(&mut self, at: At) {
        self.dirty.insert(at);
        if let Some(edge) = self.edge(at) {
            let consumers: Vec<At> = edge.consumers.keys().copied().collect();
            self.dirty.extend(consumers);
        }
    }

    fn hold(&mut self, result: ResultId) -> ResultId {
        *self.results.entry(result).or_default() += 1;
        result
    }

    fn drop_result(&mut self, result: ResultId, out: &mut Vec<Effect>) {
        let count = self.results.entry(result).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.results.remove(&result);
            out.push(Effect::Forget { result });
        }
    }

    fn begin(&mut self, task: Task) -> WorkId {
        self.last_work += 1;
        self.works.insert(self.last_work, task);
        self.last_work
    }
}

#[cfg(test)]
mod check;
#[cfg(test)]
mod model;
