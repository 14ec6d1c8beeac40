//! The progress of one build, kept for whoever asks, whenever they ask.
//!
//! A [`Recorder`] takes the events of a build in order. Each follower sees all
//! of them from the beginning, then what comes, until the build is closed. At
//! the end vertices that never completed are completed, so that no client
//! waits for them.

use std::collections::HashMap;
use std::sync::Arc;

use base::progress::{Event, Report, Sink, Vertex};
use base::{Digest, Timestamp};
use parking_lot::Mutex;
use tokio::sync::watch;

/// The events of one build. Clones are the same build.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    log: Mutex<Log>,
    /// How many events there are; grows by one for each, and once more at the end.
    length: watch::Sender<usize>,
}

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    closed: bool,
}

impl Default for Recorder {
    fn default() -> Self {
        Self(Arc::new(Shared { log: Mutex::default(), length: watch::Sender::new(0) }))
    }
}

impl Report for Recorder {
    fn report(&self, event: Event) {
        let mut log = self.0.log.lock();
        // What comes after the end belongs to work that other builds go on with.
        if !log.closed {
            log.events.push(event);
            self.0.length.send_modify(|n| *n += 1);
        }
    }
}

impl Recorder {
    /// Where the build reports to.
    pub fn sink(&self) -> Sink {
        Sink::new(self.clone())
    }

    /// Ends the build: vertices still running are completed with "context
    /// canceled", followers come to their end.
    pub fn close(&self) {
        let mut log = self.0.log.lock();
        if log.closed {
            return;
        }
        let now = Timestamp::now();
        let open: Vec<Event> = latest(&log.events)
            .filter(|v| v.started.is_some() && v.completed.is_none())
            .map(|v| {
                let error = "context canceled".to_owned();
                Event::Vertex(Vertex { completed: Some(now), error, ..v.clone() })
            })
            .collect();
        log.events.extend(open);
        log.closed = true;
        self.0.length.send_modify(|n| *n = log.events.len() + 1);
    }

    /// All events from the beginning, in batches as they come.
    pub fn follow(&self) -> Follower {
        Follower { recorder: self.clone(), next: 0, length: self.0.length.subscribe() }
    }

    /// Numbers for the history: of all steps, how many were cached and how many completed.
    pub fn counts(&self) -> Counts {
        let log = self.0.log.lock();
        let mut counts = Counts::default();
        for vertex in latest(&log.events) {
            counts.total += 1;
            counts.cached += u32::from(vertex.cached);
            counts.completed += u32::from(vertex.completed.is_some() && vertex.error.is_empty());
        }
        counts.warnings = log.events.iter().filter(|e| matches!(e, Event::Warning(_))).count() as u32;
        counts
    }
}

/// See [`Recorder::counts`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub total: u32,
    pub cached: u32,
    pub completed: u32,
    pub warnings: u32,
}

/// The last state of each vertex, in the order in which they first appeared.
fn latest(events: &[Event]) -> impl Iterator<Item = &Vertex> {
    let mut order: Vec<&Vertex> = Vec::new();
    let mut place: HashMap<&Digest, usize> = HashMap::new();
    for event in events {
        if let Event::Vertex(v) = event {
            match place.get(&v.digest) {
                Some(at) => order[*at] = v,
                None => {
                    place.insert(&v.digest, order.len());
                    order.push(v);
                }
            }
        }
    }
    order.into_iter()
}

/// Reads a build's events. See [`Recorder::follow`].
pub struct Follower {
    recorder: Recorder,
    next: usize,
    length: watch::Receiver<usize>,
}

impl Follower {
    /// At most this many events at once.
    const BATCH: usize = 512;

    /// The next events, or `None` at the end.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        loop {
            {
                let log = self.recorder.0.log.lock();
                let new = &log.events[self.next..];
                if !new.is_empty() {
                    let batch = new[..new.len().min(Self::BATCH)].to_vec();
                    self.next += batch.len();
                    return Some(batch);
                }
                if log.closed {
                    return None;
                }
                self.length.mark_unchanged();
            }
            // The sender lives in the recorder we hold, so this only wakes for news.
            _ = self.length.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::progress::Stream;

    fn vertex(name: &str) -> Vertex {
        Vertex {
            digest: Digest::of(name),
            inputs: Vec::new(),
            name: name.to_owned(),
            cached: false,
            started: Some(Timestamp::now()),
            completed: None,
            error: String::new(),
            group: None,
        }
    }

    #[tokio::test]
    async fn every_follower_sees_everything() {
        let recorder = Recorder::default();
        let mut early = recorder.follow();
        recorder.sink().send(Event::Vertex(vertex("a")));
        assert_eq!(early.next().await.unwrap().len(), 1);
        recorder.sink().vertex(Digest::of("a")).log(Stream::Stdout, *b"hi");
        recorder.close();
        let mut late = recorder.follow();
        let events = late.next().await.unwrap();
        assert_eq!(events.len(), 3, "the vertex, its log, and its end");
        assert!(matches!(&events[2], Event::Vertex(v) if v.error == "context canceled"));
        assert!(late.next().await.is_none());
        assert_eq!(early.next().await.unwrap().len(), 2);
        assert!(early.next().await.is_none());
        recorder.sink().send(Event::Vertex(vertex("b")));
        assert_eq!(recorder.counts().total, 1, "nothing after the end");
    }
}
