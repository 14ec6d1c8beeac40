//! Spans: what happened within a build, for those who look at its record.
//!
//! A build is a span, and so is each of its steps. A client that traces says
//! which span of its own the build is part of, and sends its spans when they
//! are over; those of a build that is recorded are kept until its record is
//! written, others are let go. A span is written the way Go's SDK writes its
//! stubs: clients read that. Where there is a collector, it is told of all of them.

use std::collections::HashMap;
use std::sync::Arc;

use base::digest::hex;
use base::progress::Event;
use base::{Failure, Timestamp};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::Record;

/// No trace keeps more spans of clients.
const MAX_SPANS: usize = 10_000;

/// A span by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanContext {
    /// What it is part of.
    pub trace: [u8; 16],
    /// Itself.
    pub span: [u8; 8],
}

impl SpanContext {
    /// Reads a `traceparent` of W3C's trace context: `00-TRACE-SPAN-FLAGS`.
    /// None when it is nothing of the kind, or names nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = parts.next()?;
        if version.len() != 2 || version == "ff" {
            return None;
        }
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        decode(parts.next()?, &mut trace)?;
        decode(parts.next()?, &mut span)?;
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span })
    }

    fn fresh(trace: Option<[u8; 16]>) -> Self {
        Self { trace: trace.unwrap_or_else(rand::random), span: rand::random() }
    }
}

fn decode(hex: &str, out: &mut [u8]) -> Option<()> {
    if hex.len() != out.len() * 2 || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(())
}

/// Something that took time.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its name among all spans.
    pub context: SpanContext,
    /// The span it is part of.
    pub parent: Option<[u8; 8]>,
    /// For people.
    pub name: String,
    /// As OpenTelemetry counts kinds; 1 is internal, 2 a server's, 3 a client's.
    pub kind: i32,
    /// When it began.
    pub start: Timestamp,
    /// When it was over.
    pub end: Timestamp,
    /// What is known of it, by key.
    pub attributes: Vec<(String, Attribute)>,
    /// What happened within it.
    pub events: Vec<Moment>,
    /// Spans of other causes.
    pub links: Vec<SpanContext>,
    /// Whether it went well, if it says.
    pub outcome: Option<Result<(), String>>,
    /// The library that tells.
    pub library: String,
    /// What is known of the program that tells.
    pub resource: Vec<(String, Attribute)>,
}

/// Something that happened within a span.
#[derive(Debug, Clone)]
pub struct Moment {
    /// When.
    pub time: Timestamp,
    /// What.
    pub name: String,
    /// What is known of it, by key.
    pub attributes: Vec<(String, Attribute)>,
}

/// What a span says of itself.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Text(String),
    Flag(bool),
    Number(i64),
    Float(f64),
    Texts(Vec<String>),
}

impl Attribute {
    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!({ "Type": "STRING", "Value": text }),
            Self::Flag(flag) => json!({ "Type": "BOOL", "Value": flag }),
            Self::Number(number) => json!({ "Type": "INT64", "Value": number }),
            Self::Float(number) => json!({ "Type": "FLOAT64", "Value": number }),
            Self::Texts(list) => json!({ "Type": "STRINGSLICE", "Value": list }),
        }
    }
}

fn attributes(list: &[(String, Attribute)]) -> Value {
    match list {
        [] => Value::Null,
        list => list.iter().map(|(key, value)| json!({ "Key": key, "Value": value.json() })).collect(),
    }
}

fn context(trace: &[u8], span: &[u8], remote: bool) -> Value {
    json!({
        "TraceID": hex(trace),
        "SpanID": hex(span),
        "TraceFlags": "01",
        "TraceState": "",
        "Remote": remote,
    })
}

impl Span {
    fn json(&self, children: usize) -> Value {
        let trace = &self.context.trace;
        let (code, description) = match &self.outcome {
            None => ("Unset", ""),
            Some(Ok(())) => ("Ok", ""),
            Some(Err(message)) => ("Error", message.as_str()),
        };
        let parent = match &self.parent {
            Some(parent) => context(trace, parent, self.kind == 2),
            None => context(&[0; 16], &[0; 8], false),
        };
        let events: Vec<Value> = self
            .events
            .iter()
            .map(|moment| {
                json!({
                    "Name": moment.name,
                    "Attributes": attributes(&moment.attributes),
                    "DroppedAttributeCount": 0,
                    "Time": moment.time,
                })
            })
            .collect();
        let links: Vec<Value> = self
            .links
            .iter()
            .map(|link| {
                json!({
                    "SpanContext": context(&link.trace, &link.span, false),
                    "Attributes": null,
                    "DroppedAttributeCount": 0,
                })
            })
            .collect();
        let library = json!({ "Name": self.library, "Version": "", "SchemaURL": "" });
        json!({
            "Name": self.name,
            "SpanContext": context(trace, &self.context.span, false),
            "Parent": parent,
            "SpanKind": self.kind,
            "StartTime": self.start,
            "EndTime": self.end,
            "Attributes": attributes(&self.attributes),
            "Events": if events.is_empty() { Value::Null } else { events.into() },
            "Links": if links.is_empty() { Value::Null } else { links.into() },
            "Status": { "Code": code, "Description": description },
            "DroppedAttributes": 0,
            "DroppedEvents": 0,
            "DroppedLinks": 0,
            "ChildSpanCount": children,
            "Resource": attributes(&self.resource),
            "InstrumentationScope": library,
            "InstrumentationLibrary": library,
        })
    }
}

/// The spans of clients. Clones are the same.
#[derive(Clone, Default)]
pub struct Traces(Arc<Inner>);

#[derive(Default)]
struct Inner {
    kept: Mutex<HashMap<[u8; 16], Kept>>,
    collector: Option<mpsc::Sender<Vec<Span>>>,
}

#[derive(Default)]
struct Kept {
    recordings: usize,
    spans: Vec<Span>,
}

/// A build that is recorded, until this is dropped.
pub(crate) struct Recording {
    traces: Traces,
    root: SpanContext,
    parent: Option<SpanContext>,
}

impl Traces {
    /// Spans of clients and of builds go to `collector`, too, as long as it has room.
    pub fn collected(collector: mpsc::Sender<Vec<Span>>) -> Self {
        Self(Arc::new(Inner { collector: Some(collector), ..Inner::default() }))
    }

    /// Takes spans of a client; of those nobody records, none is kept.
    pub fn add(&self, spans: Vec<Span>) {
        self.collect(&spans);
        let mut traces = self.0.kept.lock();
        for span in spans {
            if let Some(kept) = traces.get_mut(&span.context.trace)
                && kept.spans.len() < MAX_SPANS
            {
                kept.spans.push(span);
            }
        }
    }

    fn collect(&self, spans: &[Span]) {
        let Some(collector) = &self.0.collector else { return };
        if let Err(mpsc::error::TrySendError::Full(spans)) = collector.try_send(spans.to_vec()) {
            tracing::warn!(spans = spans.len(), "the collector of traces is too slow: spans are lost");
        }
    }

    /// Records what belongs to a build that is part of `parent`.
    pub(crate) fn record(&self, parent: Option<SpanContext>) -> Recording {
        let root = SpanContext::fresh(parent.map(|p| p.trace));
        self.0.kept.lock().entry(root.trace).or_default().recordings += 1;
        Recording { traces: self.clone(), root, parent }
    }
}

impl Recording {
    /// The client's spans that came so far, written.
    pub(crate) fn end(self) -> Vec<Value> {
        let traces = self.traces.0.kept.lock();
        let spans = traces.get(&self.root.trace).map(|kept| kept.spans.as_slice()).unwrap_or_default();
        spans.iter().map(|span| span.json(0)).collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut traces = self.traces.0.kept.lock();
        if let Some(kept) = traces.get_mut(&self.root.trace) {
            kept.recordings -= 1;
            if kept.recordings == 0 {
                traces.remove(&self.root.trace);
            }
        }
    }
}

/// A build and its steps as spans, written; they go to the collector as well. `record` says
/// when it ran, `events` what it did.
pub(crate) fn spans(
    recording: &Recording,
    record: &Record,
    events: &[Event],
    failure: Option<&Failure>,
) -> Vec<Value> {
    let text = |text: &str| Attribute::Text(text.to_owned());
    let resource = vec![
        ("service.name".to_owned(), text("buildkitd")),
        ("service.version".to_owned(), text(base::version::VERSION)),
    ];
    let end = record.completed.unwrap_or_else(Timestamp::now);
    let root = Span {
        context: recording.root,
        parent: recording.parent.map(|p| p.span),
        name: "moby.buildkit.v1.Control/Solve".to_owned(),
        kind: 2,
        start: record.created,
        end,
        attributes: vec![("ref".to_owned(), text(&record.id))],
        events: Vec::new(),
        links: Vec::new(),
        outcome: failure.map(|e| Err(e.to_string())),
        library: "buildkitd".to_owned(),
        resource,
    };
    let mut steps = Vec::new();
    for event in events {
        let Event::Vertex(vertex) = event else { continue };
        let (Some(start), Some(end)) = (vertex.started, vertex.completed) else { continue };
        let mut attributes = vec![("vertex".to_owned(), text(vertex.digest.as_str()))];
        if vertex.cached {
            attributes.push(("cached".to_owned(), Attribute::Flag(true)));
        }
        steps.push(Span {
            context: SpanContext::fresh(Some(root.context.trace)),
            parent: Some(root.context.span),
            name: vertex.name.clone(),
            kind: 1,
            start,
            end,
            attributes,
            outcome: (!vertex.error.is_empty()).then(|| Err(vertex.error.clone())),
            ..root.clone()
        });
    }
    let written =
        std::iter::once(root.json(steps.len())).chain(steps.iter().map(|span| span.json(0))).collect();
    steps.push(root);
    recording.traces.collect(&steps);
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_a_client_is() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = SpanContext::parse(text).unwrap();
        assert_eq!(hex(&context.trace), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(hex(&context.span), "b7ad6b7169203331");
        for bad in ["", "00-0-0-0", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "ff-é"] {
            assert!(SpanContext::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn only_what_is_recorded_is_kept() {
        let traces = Traces::default();
        let parent = SpanContext::fresh(None);
        let recording = traces.record(Some(parent));
        let record = Record::begin("r", "", &Default::default(), &[]);
        let own = spans(&recording, &record, &[], None);
        assert_eq!(own[0]["Parent"]["SpanID"], hex(&parent.span));
        assert_eq!(own[0]["SpanContext"]["TraceID"], hex(&parent.trace));
        let span = |context| Span {
            context,
            parent: None,
            name: "client".into(),
            kind: 3,
            start: Timestamp::EPOCH,
            end: Timestamp::EPOCH,
            attributes: vec![("n".into(), Attribute::Number(1))],
            events: Vec::new(),
            links: Vec::new(),
            outcome: Some(Ok(())),
            library: String::new(),
            resource: Vec::new(),
        };
        traces.add(vec![span(parent), span(SpanContext::fresh(None))]);
        let theirs = recording.end();
        assert_eq!(theirs.len(), 1);
        assert_eq!(theirs[0]["Attributes"][0], json!({"Key": "n", "Value": {"Type": "INT64", "Value": 1}}));
        assert!(traces.0.kept.lock().is_empty());
    }
}
