//! The progress of one job, completed by what follows from it.
//!
//! Clients want to see every vertex end. One whose consumer started although
//! it never did was not needed: it counts as cached. One that was under way
//! when the job ended was cancelled.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base::progress::{Event, Report, Sink, Vertex};
use base::{Digest, Timestamp};
use parking_lot::Mutex;

/// The progress of one job.
pub(crate) struct Stream {
    sink: Sink,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    vertices: HashMap<Digest, Vertex>,
    /// Found, or below what was found.
    cached: HashSet<Digest>,
    ended: bool,
}

impl Stream {
    /// Passes on to `sink`.
    pub(crate) fn new(sink: Sink) -> Arc<Self> {
        Arc::new(Self { sink, seen: Mutex::default() })
    }

    /// Speaks to this job.
    pub(crate) fn sink(self: &Arc<Self>) -> Sink {
        struct Mouth(Arc<Stream>);
        impl Report for Mouth {
            fn report(&self, event: Event) {
                self.0.take(event);
            }
        }
        Sink::new(Mouth(self.clone()))
    }

    fn take(&self, event: Event) {
        let mut seen = self.seen.lock();
        if seen.ended {
            return;
        }
        match event {
            Event::Vertex(vertex) => {
                let mut out = Vec::new();
                seen.take(vertex, &mut out);
                for vertex in out {
                    self.sink.send(Event::Vertex(vertex));
                }
            }
            other => self.sink.send(other),
        }
    }

    /// The job is over.
    pub(crate) fn end(&self) {
        let mut seen = self.seen.lock();
        if std::mem::replace(&mut seen.ended, true) {
            return;
        }
        let Seen { vertices, cached, .. } = &mut *seen;
        let now = Timestamp::now();
        for (digest, mut vertex) in vertices.drain() {
            if vertex.started.is_some() && vertex.completed.is_none() {
                vertex.completed = Some(now);
                if !cached.contains(&digest) && vertex.error.is_empty() {
                    vertex.error = "context canceled".into();
                }
                self.sink.send(Event::Vertex(vertex));
            }
        }
    }
}

impl Seen {
    fn take(&mut self, vertex: Vertex, out: &mut Vec<Vertex>) {
        // Depth is that of the graph, which is the client's choice: no recursion.
        let mut stack = vec![vertex];
        let mut late = Vec::new();
        while let Some(vertex) = stack.pop() {
            if let Some(started) = vertex.started {
                for input in &vertex.inputs {
                    let Some(known) = self.vertices.get(input) else { continue };
                    if known.cached || known.completed.is_some() {
                        continue;
                    }
                    let mut known = known.clone();
                    known.cached = true;
                    known.started = Some(started);
                    known.completed = Some(started);
                    self.vertices.insert(known.digest.clone(), known.clone());
                    stack.push(known);
                }
            }
            if vertex.cached {
                self.mark(&vertex);
            }
            late.push(vertex);
        }
        // Inputs are told of before their consumers.
        for vertex in late.into_iter().rev() {
            self.vertices.insert(vertex.digest.clone(), vertex.clone());
            out.push(vertex);
        }
    }

    fn mark(&mut self, vertex: &Vertex) {
        let mut stack = vec![vertex.digest.clone()];
        stack.extend(vertex.inputs.iter().cloned());
        while let Some(digest) = stack.pop() {
            if self.cached.insert(digest.clone())
                && let Some(known) = self.vertices.get(&digest)
            {
                stack.extend(known.inputs.iter().cloned());
            }
        }
    }
}
