//! How work says what it is doing. One way: up, through a [`Sink`].

use std::sync::Arc;

use crate::failure::{Range, SourceExcerpt};
use crate::{Digest, Timestamp};

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A vertex was planned, started or ended.
    Vertex(Vertex),
    /// A part of a vertex's work went on.
    Status(Status),
    /// A vertex printed something.
    Log(Log),
    /// Something the author of the build should know.
    Warning(Warning),
}

/// The state of a vertex. Each event replaces the one before.
#[derive(Debug, Clone, PartialEq)]
pub struct Vertex {
    /// The name clients use.
    pub digest: Digest,
    /// The vertices it needs.
    pub inputs: Vec<Digest>,
    /// For people.
    pub name: String,
    /// Its result was found, not made.
    pub cached: bool,
    /// When work on it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// Why it failed; empty when it did not.
    pub error: String,
    /// Vertices to be shown as one.
    pub group: Option<Group>,
}

/// Vertices to be shown as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The same for all of them.
    pub id: String,
    /// For people.
    pub name: String,
    /// Only shown when there is nothing better.
    pub weak: bool,
}

/// A counter within a vertex, such as the bytes of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The same for all events of one counter; shown to people.
    pub id: String,
    /// The vertex.
    pub vertex: Digest,
    /// A word for people, mostly empty.
    pub name: String,
    /// Done so far.
    pub current: i64,
    /// All there is; zero when it is not known.
    pub total: i64,
    /// When this was so.
    pub timestamp: Timestamp,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub completed: Option<Timestamp>,
}

/// Output of a vertex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The vertex.
    pub vertex: Digest,
    /// When it was printed.
    pub timestamp: Timestamp,
    /// Where it was printed.
    pub stream: Stream,
    /// What was printed.
    pub data: Vec<u8>,
}

/// The two outputs of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// Advice for the author of the build.
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    /// The vertex it is about.
    pub vertex: Digest,
    /// 1 is a lint, higher is less important.
    pub level: i64,
    /// One line.
    pub short: Vec<u8>,
    /// More lines.
    pub detail: Vec<Vec<u8>>,
    /// Where to read on.
    pub url: String,
    /// The file it is about.
    pub source: Option<SourceExcerpt>,
    /// The places in it.
    pub ranges: Vec<Range>,
}

/// Who wants to know.
pub trait Report: Send + Sync {
    /// Takes an event. Must not block.
    fn report(&self, event: Event);
}

/// Where events go. Clones go to the same place.
#[derive(Clone)]
pub struct Sink(Arc<dyn Report>);

impl Sink {
    /// Events go to `report`.
    pub fn new(report: impl Report + 'static) -> Self {
        Self(Arc::new(report))
    }

    /// Events go nowhere.
    pub fn none() -> Self {
        struct Nowhere;
        impl Report for Nowhere {
            fn report(&self, _: Event) {}
        }
        Self::new(Nowhere)
    }

    /// Reports an event.
    pub fn send(&self, event: Event) {
        self.0.report(event);
    }

    /// The sink as one vertex sees it.
    pub fn vertex(&self, digest: Digest) -> VertexSink {
        VertexSink { sink: self.clone(), digest }
    }
}

/// Reports on behalf of one vertex.
#[derive(Clone)]
pub struct VertexSink {
    sink: Sink,
    digest: Digest,
}

impl VertexSink {
    /// Events go nowhere.
    pub fn none() -> Self {
        Sink::none().vertex(Digest::of(""))
    }

    /// The vertex.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The sink behind it.
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Reports output.
    pub fn log(&self, stream: Stream, data: impl Into<Vec<u8>>) {
        let (vertex, timestamp) = (self.digest.clone(), Timestamp::now());
        self.sink.send(Event::Log(Log { vertex, timestamp, stream, data: data.into() }));
    }

    /// Begins a counter; it is completed when the [`Counter`] is finished or dropped.
    pub fn counter(&self, id: impl Into<String>, total: u64) -> Counter {
        self.begin(id.into(), "", total)
    }

    /// Begins a counter of the bytes that go from or to a client, which clients
    /// know by its name.
    pub fn transfer(&self, id: impl Into<String>) -> Counter {
        self.begin(id.into(), "transferring", 0)
    }

    fn begin(&self, id: String, name: &'static str, total: u64) -> Counter {
        let counter = Counter {
            sink: self.clone(),
            id,
            name,
            total: i64::try_from(total).unwrap_or(0),
            current: 0,
            started: Timestamp::now(),
            reported: Timestamp::EPOCH,
            done: false,
        };
        counter.report(None);
        counter
    }
}

/// A counter within a vertex. Reports at most ten times a second, and its end.
pub struct Counter {
    sink: VertexSink,
    id: String,
    name: &'static str,
    total: i64,
    current: i64,
    started: Timestamp,
    reported: Timestamp,
    done: bool,
}

impl Counter {
    const EVERY_NANOS: i64 = 100_000_000;

    /// Counts `n` more.
    pub fn add(&mut self, n: u64) {
        self.set(self.current.saturating_add(i64::try_from(n).unwrap_or(i64::MAX)));
    }

    /// The count is `current` now.
    pub fn set(&mut self, current: i64) {
        self.current = current;
        let now = Timestamp::now();
        if now.nanos() - self.reported.nanos() >= Self::EVERY_NANOS {
            self.reported = now;
            self.report(None);
        }
    }

    /// The total turned out to be `total`.
    pub fn set_total(&mut self, total: u64) {
        self.total = i64::try_from(total).unwrap_or(0);
    }

    /// It is done.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            self.report(Some(Timestamp::now()));
        }
    }

    fn report(&self, completed: Option<Timestamp>) {
        self.sink.sink.send(Event::Status(Status {
            id: self.id.clone(),
            vertex: self.sink.digest.clone(),
            name: self.name.to_owned(),
            current: self.current,
            total: self.total,
            timestamp: Timestamp::now(),
            started: Some(self.started),
            completed,
        }));
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.end();
    }
}
