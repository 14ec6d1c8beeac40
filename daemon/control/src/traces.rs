//! `TraceService`: clients tell what they did, for the records of their builds.

use base::Timestamp;
use build::traces::{Attribute, Moment, Span, SpanContext, Traces as Store};
use prost::Message as _;
use proto::opentelemetry::proto::collector::trace::v1 as wire;
use tonic::{Request, Response, Status};

/// The service.
pub(crate) struct Traces(pub(crate) Store);

#[async_trait::async_trait]
impl wire::trace_service_server::TraceService for Traces {
    async fn export(
        &self,
        request: Request<wire::ExportTraceServiceRequest>,
    ) -> Result<Response<wire::ExportTraceServiceResponse>, Status> {
        for bytes in request.into_inner().resource_spans {
            let spans = otlp::ResourceSpans::decode(&*bytes)
                .map_err(|e| Status::invalid_argument(format!("resource spans: {e}")))?;
            self.0.add(read(spans));
        }
        Ok(Response::new(wire::ExportTraceServiceResponse::default()))
    }
}

/// Spans with what is known of where they come from. One whose name makes no
/// sense is left out.
fn read(all: otlp::ResourceSpans) -> Vec<Span> {
    let resource = attributes(all.resource.unwrap_or_default().attributes);
    let mut out = Vec::new();
    for scope in all.scope_spans {
        let library = scope.scope.unwrap_or_default().name;
        for span in scope.spans {
            let Some(context) = context(&span.trace_id, &span.span_id) else { continue };
            let status = span.status.unwrap_or_default();
            let events = span.events.into_iter();
            out.push(Span {
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

fn moment(event: otlp::Event) -> Moment {
    Moment { time: time(event.time), name: event.name, attributes: attributes(event.attributes) }
}

fn time(nanos: u64) -> Timestamp {
    Timestamp::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}

fn attributes(list: Vec<otlp::KeyValue>) -> Vec<(String, Attribute)> {
    list.into_iter().filter_map(|kv| Some((kv.key, attribute(kv.value?.value?)?))).collect()
}

fn attribute(value: otlp::Value) -> Option<Attribute> {
    Some(match value {
        otlp::Value::Text(text) => Attribute::Text(text),
        otlp::Value::Flag(flag) => Attribute::Flag(flag),
        otlp::Value::Number(number) => Attribute::Number(number),
        otlp::Value::Float(number) => Attribute::Float(number),
        otlp::Value::List(list) => {
            let texts = list.values.into_iter().map(|v| match v.value? {
                otlp::Value::Text(text) => Some(text),
                otlp::Value::Flag(flag) => Some(flag.to_string()),
                otlp::Value::Number(number) => Some(number.to_string()),
                otlp::Value::Float(number) => Some(number.to_string()),
                otlp::Value::List(_) => None,
            });
            Attribute::Texts(texts.collect::<Option<_>>()?)
        }
    })
}

/// As much of OTLP as is kept: `opentelemetry/proto/trace/v1/trace.proto`.
mod otlp {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        pub(super) resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub(super) scope_spans: Vec<ScopeSpans>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub(super) attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ScopeSpans {
        #[prost(message, optional, tag = "1")]
        pub(super) scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")]
        pub(super) spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Scope {
        #[prost(string, tag = "1")]
        pub(super) name: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Span {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) span_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")]
        pub(super) parent_span_id: Vec<u8>,
        #[prost(string, tag = "5")]
        pub(super) name: String,
        #[prost(int32, tag = "6")]
        pub(super) kind: i32,
        #[prost(fixed64, tag = "7")]
        pub(super) start: u64,
        #[prost(fixed64, tag = "8")]
        pub(super) end: u64,
        #[prost(message, repeated, tag = "9")]
        pub(super) attributes: Vec<KeyValue>,
        #[prost(message, repeated, tag = "11")]
        pub(super) events: Vec<Event>,
        #[prost(message, repeated, tag = "13")]
        pub(super) links: Vec<Link>,
        #[prost(message, optional, tag = "15")]
        pub(super) status: Option<Status>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Event {
        #[prost(fixed64, tag = "1")]
        pub(super) time: u64,
        #[prost(string, tag = "2")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "3")]
        pub(super) attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Link {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) span_id: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Status {
        #[prost(string, tag = "2")]
        pub(super) message: String,
        #[prost(int32, tag = "3")]
        pub(super) code: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct KeyValue {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(message, optional, tag = "2")]
        pub(super) value: Option<AnyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct AnyValue {
        #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
        pub(super) value: Option<Value>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Value {
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
    pub(super) struct List {
        #[prost(message, repeated, tag = "1")]
        pub(super) values: Vec<AnyValue>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_surroundings() {
        let text = |key: &str, text: &str| otlp::KeyValue {
            key: key.into(),
            value: Some(otlp::AnyValue { value: Some(otlp::Value::Text(text.into())) }),
        };
        let good = otlp::Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            name: "s".into(),
            attributes: vec![text("a", "b")],
            status: Some(otlp::Status { message: "bad".into(), code: 2 }),
            ..otlp::Span::default()
        };
        let broken = otlp::Span { trace_id: vec![1; 3], ..good.clone() };
        let all = otlp::ResourceSpans {
            resource: Some(otlp::Resource { attributes: vec![text("service.name", "x")] }),
            scope_spans: vec![otlp::ScopeSpans { scope: None, spans: vec![good, broken] }],
        };
        let read = read(otlp::ResourceSpans::decode(&*all.encode_to_vec()).unwrap());
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].attributes, [("a".to_owned(), Attribute::Text("b".into()))]);
        assert_eq!(read[0].resource[0].0, "service.name");
        assert_eq!(read[0].outcome, Some(Err("bad".into())));
        assert!(read[0].parent.is_none());
    }
}
