//! Takes the progress of a vertex to every job that waits for it.
//!
//! A job that comes late hears what it missed. Every listener hears it under
//! the digest by which it knows the vertex: a vertex may run on behalf of an
//! equal one of another build.

use std::collections::VecDeque;
use std::sync::Arc;

use base::Digest;
use base::progress::{Event, Report, Sink};
use parking_lot::Mutex;

use crate::context::JobValues;

/// How many bytes of output are kept for those who come late; the oldest goes.
const KEPT_OUTPUT: usize = 256 << 10;
/// How many other events are kept.
const KEPT_EVENTS: usize = 1024;

/// Those who want to know about a vertex.
pub(crate) struct Audience {
    node: u64,
    digest: Digest,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    listeners: Vec<Listener>,
    heard: VecDeque<Event>,
    output: usize,
    others: usize,
}

/// One who listens.
#[derive(Clone)]
pub(crate) struct Listener {
    /// Tells listeners apart.
    pub(crate) id: u64,
    /// The name under which it knows the vertex.
    pub(crate) digest: Digest,
    /// Where it hears.
    pub(crate) sink: Sink,
    /// Who it is.
    pub(crate) who: Who,
}

/// Who listens.
#[derive(Clone)]
pub(crate) enum Who {
    /// A job.
    Job(JobValues),
    /// The jobs that listen to another vertex.
    Those(Arc<Audience>),
}

impl Audience {
    /// Nobody, yet.
    pub(crate) fn new(node: u64, digest: Digest) -> Arc<Self> {
        Arc::new(Self { node, digest, inner: Mutex::default() })
    }

    /// Some jobs that hear nothing.
    pub(crate) fn fixed(digest: Digest, jobs: Vec<JobValues>) -> Arc<Self> {
        let audience = Self::new(0, digest.clone());
        for (id, job) in (0u64..).zip(jobs) {
            audience.join(Listener { id, digest: digest.clone(), sink: Sink::none(), who: Who::Job(job) });
        }
        audience
    }

    /// The number of the vertex in its solver.
    pub(crate) fn node(&self) -> u64 {
        self.node
    }

    /// The name under which the vertex speaks of itself.
    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Speaks to everybody who listens.
    pub(crate) fn sink(self: &Arc<Self>) -> Sink {
        struct Stage(Arc<Audience>);
        impl Report for Stage {
            fn report(&self, event: Event) {
                self.0.tell(event);
            }
        }
        Sink::new(Stage(self.clone()))
    }

    /// Listens from now on, and hears what was said before.
    pub(crate) fn join(&self, listener: Listener) {
        let mut inner = self.inner.lock();
        if inner.listeners.iter().any(|l| l.id == listener.id) {
            return;
        }
        for event in &inner.heard {
            listener.hear(&self.digest, event.clone());
        }
        inner.listeners.push(listener);
    }

    /// Listens no longer.
    pub(crate) fn leave(&self, id: u64) {
        self.inner.lock().listeners.retain(|l| l.id != id);
    }

    /// The jobs that listen.
    pub(crate) fn jobs(&self) -> Vec<JobValues> {
        let listeners = self.inner.lock().listeners.clone();
        let mut jobs: Vec<JobValues> = Vec::new();
        for listener in listeners {
            let those = match listener.who {
                Who::Job(job) => vec![job],
                Who::Those(audience) => audience.jobs(),
            };
            for job in those {
                if !jobs.iter().any(|known| known.id == job.id) {
                    jobs.push(job);
                }
            }
        }
        jobs
    }

    fn tell(&self, event: Event) {
        let mut inner = self.inner.lock();
        for listener in &inner.listeners {
            listener.hear(&self.digest, event.clone());
        }
        inner.keep(event);
    }
}

impl Inner {
    fn keep(&mut self, event: Event) {
        match &event {
            Event::Log(log) => self.output += log.data.len(),
            Event::Status(status) => {
                // Of a counter only the last word is of interest.
                let same = |e: &Event| matches!(e, Event::Status(old) if old.id == status.id && old.vertex == status.vertex);
                if let Some(old) = self.heard.iter_mut().find(|e| same(e)) {
                    *old = event;
                    return;
                }
                self.others += 1;
            }
            Event::Vertex(_) | Event::Warning(_) => self.others += 1,
        }
        self.heard.push_back(event);
        while self.output > KEPT_OUTPUT || self.others > KEPT_EVENTS {
            match self.heard.pop_front() {
                Some(Event::Log(log)) => self.output -= log.data.len(),
                Some(_) => self.others -= 1,
                None => break,
            }
        }
    }
}

impl Listener {
    fn hear(&self, speaker: &Digest, mut event: Event) {
        let vertex = match &mut event {
            Event::Vertex(e) => &mut e.digest,
            Event::Status(e) => &mut e.vertex,
            Event::Log(e) => &mut e.vertex,
            Event::Warning(e) => &mut e.vertex,
        };
        if vertex == speaker {
            *vertex = self.digest.clone();
        }
        self.sink.send(event);
    }
}
