//! Everything as it comes, in the JSON that programs know.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::control as wire;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::format::time::rfc3339;

#[derive(Serialize)]
struct Status {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<Vertex>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<Counter>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<Log>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Vertex {
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress_group: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct Counter {
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    vertex: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "is_zero")]
    total: i64,
    current: i64,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
}

#[derive(Serialize)]
struct Log {
    #[serde(skip_serializing_if = "String::is_empty")]
    vertex: String,
    #[serde(skip_serializing_if = "is_zero")]
    stream: i64,
    data: String,
    timestamp: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Warning {
    #[serde(skip_serializing_if = "String::is_empty")]
    vertex: String,
    #[serde(skip_serializing_if = "is_zero")]
    level: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    short: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_info: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    range: Vec<Box<RawValue>>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the form serde wants
fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn message(name: &str, message: &impl prost::Message) -> Option<Box<RawValue>> {
    let json = session::json::encode_go(name, message)?;
    RawValue::from_string(String::from_utf8(json).ok()?).ok()
}

/// One line.
pub(crate) fn encode(status: &wire::StatusResponse) -> Vec<u8> {
    let time = |t: &Option<prost_types::Timestamp>| t.as_ref().map(|t| rfc3339(Some(t)));
    let status = Status {
        vertexes: status
            .vertexes
            .iter()
            .map(|v| Vertex {
                digest: v.digest.clone(),
                inputs: v.inputs.clone(),
                name: v.name.clone(),
                started: time(&v.started),
                completed: time(&v.completed),
                cached: v.cached,
                error: v.error.clone(),
                progress_group: v.progress_group.as_ref().and_then(|g| message("pb.ProgressGroup", g)),
            })
            .collect(),
        statuses: status
            .statuses
            .iter()
            .map(|s| Counter {
                id: s.id.clone(),
                vertex: s.vertex.clone(),
                name: s.name.clone(),
                total: s.total,
                current: s.current,
                timestamp: rfc3339(s.timestamp.as_ref()),
                started: time(&s.started),
                completed: time(&s.completed),
            })
            .collect(),
        logs: status
            .logs
            .iter()
            .map(|l| Log {
                vertex: l.vertex.clone(),
                stream: l.stream,
                data: STANDARD.encode(&l.msg),
                timestamp: rfc3339(l.timestamp.as_ref()),
            })
            .collect(),
        warnings: status
            .warnings
            .iter()
            .map(|w| Warning {
                vertex: w.vertex.clone(),
                level: w.level,
                short: STANDARD.encode(&w.short),
                detail: w.detail.iter().map(|d| STANDARD.encode(d)).collect(),
                url: w.url.clone(),
                source_info: w.info.as_ref().and_then(|i| message("pb.SourceInfo", i)),
                range: w.ranges.iter().filter_map(|r| message("pb.Range", r)).collect(),
            })
            .collect(),
    };
    let mut line = base::gojson::to_vec(&status).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_the_one_programs_know() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let status = wire::StatusResponse {
            vertexes: vec![wire::Vertex {
                digest: "d".into(),
                name: "n".into(),
                started: at(1),
                ..Default::default()
            }],
            statuses: vec![wire::VertexStatus { id: "i".into(), timestamp: at(2), ..Default::default() }],
            logs: vec![wire::VertexLog {
                msg: b"x".to_vec(),
                stream: 1,
                timestamp: at(3),
                ..Default::default()
            }],
            warnings: vec![],
        };
        let line = String::from_utf8(encode(&status)).unwrap();
        assert_eq!(
            line,
            "{\"vertexes\":[{\"digest\":\"d\",\"name\":\"n\",\"started\":\"1970-01-01T00:00:01Z\"}],\
             \"statuses\":[{\"id\":\"i\",\"current\":0,\"timestamp\":\"1970-01-01T00:00:02Z\"}],\
             \"logs\":[{\"stream\":1,\"data\":\"eA==\",\"timestamp\":\"1970-01-01T00:00:03Z\"}]}\n"
        );
    }
}
