//! OTLP, as much of it as is kept of spans: `opentelemetry/proto/trace/v1/trace.proto`.

use base::Timestamp;
use build::traces::{self, Attribute, Moment, SpanContext};

/// Spans with what is known of where they come from. One whose name makes no
/// sense is left out.
pub(crate) fn read(all: ResourceSpans) -> Vec<traces::Span> {
    let resource = attributes(all.resource.unwrap_or_default().attributes);
    let mut out = Vec::new();
    for scope in all.scope_spans {
        let library = scope.scope.unwrap_or_default().name;
        for span in scope.spans {
            let Some(context) = context(&span.trace_id, &span.span_id) else { continue };
            let status = span.status.unwrap_or_default();
            let events = span.events.into_iter();
            out.push(traces::Span {
                context,
                parent: span.parent_span_id.try_into().ok(),
                name: span.name,
                kind: span.kind,
                start: time(span.start),
                end: time(span.end),
                attributes: attributes(span.attributes),
                events: events.map(moment).collect(),
                links: span.links.iter().filter_map(|l| self::context(&l.trace_id, &l.span_id)).collect(),
                outcome: match status.code {
                    1 => Some(Ok(())),
                    2 => Some(Err(status.message)),
                    _ => None,
                },
                library: library.clone(),
                resource: resource.clone(),
            });
        }
    }
    out
}

fn context(trace: &[u8], span: &[u8]) -> Option<SpanContext> {
    Some(SpanContext { trace: trace.try_into().ok()?, span: span.try_into().ok()? })
}

fn moment(event: Event) -> Moment {
    Moment { time: time(event.time), name: event.name, attributes: attributes(event.attributes) }
}

fn time(nanos: u64) -> Timestamp {
    Timestamp::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}

fn attributes(list: Vec<KeyValue>) -> Vec<(String, Attribute)> {
    list.into_iter().filter_map(|kv| Some((kv.key, attribute(kv.value?.value?)?))).collect()
}

fn attribute(value: Value) -> Option<Attribute> {
    Some(match value {
        Value::Text(text) => Attribute::Text(text),
        Value::Flag(flag) => Attribute::Flag(flag),
        Value::Number(number) => Attribute::Number(number),
        Value::Float(number) => Attribute::Float(number),
        Value::List(list) => {
            let texts = list.values.into_iter().map(|v| match v.value? {
                Value::Text(text) => Some(text),
                Value::Flag(flag) => Some(flag.to_string()),
                Value::Number(number) => Some(number.to_string()),
                Value::Float(number) => Some(number.to_string()),
                Value::List(_) => None,
            });
            Attribute::Texts(texts.collect::<Option<_>>()?)
        }
    })
}

/// Spans as they are sent, by the programs they come from.
pub(crate) fn write(spans: Vec<traces::Span>) -> Vec<ResourceSpans> {
    let mut all: Vec<(Vec<(String, Attribute)>, ResourceSpans)> = Vec::new();
    for span in spans {
        let at = all.iter().position(|(resource, _)| *resource == span.resource).unwrap_or_else(|| {
            let resource = Some(Resource { attributes: list(&span.resource) });
            all.push((span.resource.clone(), ResourceSpans { resource, scope_spans: Vec::new() }));
            all.len() - 1
        });
        let Some((_, program)) = all.get_mut(at) else { continue };
        let of_library = |s: &ScopeSpans| s.scope.as_ref().is_some_and(|scope| scope.name == span.library);
        let at = program.scope_spans.iter().position(of_library).unwrap_or_else(|| {
            let scope = Some(Scope { name: span.library.clone() });
            program.scope_spans.push(ScopeSpans { scope, spans: Vec::new() });
            program.scope_spans.len() - 1
        });
        if let Some(library) = program.scope_spans.get_mut(at) {
            library.spans.push(written(span));
        }
    }
    all.into_iter().map(|(_, spans)| spans).collect()
}

fn written(span: traces::Span) -> Span {
    let event = |moment: Moment| Event {
        time: nanos(moment.time),
        name: moment.name,
        attributes: list(&moment.attributes),
    };
    let link = |other: SpanContext| Link { trace_id: other.trace.to_vec(), span_id: other.span.to_vec() };
    Span {
        trace_id: span.context.trace.to_vec(),
        span_id: span.context.span.to_vec(),
        parent_span_id: span.parent.map(|p| p.to_vec()).unwrap_or_default(),
        name: span.name,
        kind: span.kind,
        start: nanos(span.start),
        end: nanos(span.end),
        attributes: list(&span.attributes),
        events: span.events.into_iter().map(event).collect(),
        links: span.links.into_iter().map(link).collect(),
        status: span.outcome.map(|outcome| match outcome {
            Ok(()) => Status { message: String::new(), code: 1 },
            Err(message) => Status { message, code: 2 },
        }),
    }
}

fn nanos(time: Timestamp) -> u64 {
    u64::try_from(time.nanos()).unwrap_or_default()
}

fn list(attributes: &[(String, Attribute)]) -> Vec<KeyValue> {
    let any = |value| Some(AnyValue { value: Some(value) });
    let value = |attribute: &Attribute| match attribute {
        Attribute::Text(text) => Value::Text(text.clone()),
        Attribute::Flag(flag) => Value::Flag(*flag),
        Attribute::Number(number) => Value::Number(*number),
        Attribute::Float(number) => Value::Float(*number),
        Attribute::Texts(texts) => {
            let values = texts.iter().map(|text| AnyValue { value: Some(Value::Text(text.clone())) });
            Value::List(List { values: values.collect() })
        }
    };
    attributes.iter().map(|(key, attr)| KeyValue { key: key.clone(), value: any(value(attr)) }).collect()
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub(crate) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(crate) attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub(crate) scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Scope {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) name: String,
    #[prost(int32, tag = "6")]
    pub(crate) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(crate) start: u64,
    #[prost(fixed64, tag = "8")]
    pub(crate) end: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "11")]
    pub(crate) events: Vec<Event>,
    #[prost(message, repeated, tag = "13")]
    pub(crate) links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    pub(crate) status: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Event {
    #[prost(fixed64, tag = "1")]
    pub(crate) time: u64,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Link {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Status {
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(int32, tag = "3")]
    pub(crate) code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
    pub(crate) value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Flag(bool),
    #[prost(int64, tag = "3")]
    Number(i64),
    #[prost(double, tag = "4")]
    Float(f64),
    #[prost(message, tag = "5")]
    List(List),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct List {
    #[prost(message, repeated, tag = "1")]
    pub(crate) values: Vec<AnyValue>,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn spans_are_read_with_their_surroundings() {
        let text = |key: &str, text: &str| KeyValue {
            key: key.into(),
            value: Some(AnyValue { value: Some(Value::Text(text.into())) }),
        };
        let good = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            name: "s".into(),
            attributes: vec![text("a", "b")],
            status: Some(Status { message: "bad".into(), code: 2 }),
            ..Span::default()
        };
        let broken = Span { trace_id: vec![1; 3], ..good.clone() };
        let all = ResourceSpans {
            resource: Some(Resource { attributes: vec![text("service.name", "x")] }),
            scope_spans: vec![ScopeSpans { scope: None, spans: vec![good, broken] }],
        };
        let read = read(ResourceSpans::decode(&*all.encode_to_vec()).unwrap());
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].attributes, [("a".to_owned(), Attribute::Text("b".into()))]);
        assert_eq!(read[0].resource[0].0, "service.name");
        assert_eq!(read[0].outcome, Some(Err("bad".into())));
        assert!(read[0].parent.is_none());
    }

    #[test]
    fn what_is_written_is_read() {
        let context = SpanContext { trace: [1; 16], span: [2; 8] };
        let texts = ("l".to_owned(), Attribute::Texts(vec!["a".into(), "b".into()]));
        let span = traces::Span {
            context,
            parent: Some([3; 8]),
            name: "step".into(),
            kind: 1,
            start: Timestamp::from_nanos(5),
            end: Timestamp::from_nanos(7),
            attributes: vec![("n".into(), Attribute::Number(-1)), texts.clone()],
            events: vec![Moment {
                time: Timestamp::from_nanos(6),
                name: "e".into(),
                attributes: vec![texts],
            }],
            links: vec![context],
            outcome: Some(Err("why".into())),
            library: "x".into(),
            resource: vec![("service.name".into(), Attribute::Text("buildkitd".into()))],
        };
        let of = |name: &str| traces::Span {
            resource: vec![("service.name".into(), Attribute::Text(name.into()))],
            ..span.clone()
        };
        let all = write(vec![span.clone(), of("buildctl"), span.clone()]);
        let counts: Vec<_> = all.iter().map(|r| r.scope_spans[0].spans.len()).collect();
        assert_eq!(counts, [2, 1]);
        let back = read(ResourceSpans::decode(&*all[0].encode_to_vec()).unwrap());
        assert_eq!(format!("{:?}", back[0]), format!("{span:?}"));
    }
}
