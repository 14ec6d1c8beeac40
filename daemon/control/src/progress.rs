//! Progress events as the `Status` stream carries them.

use base::failure::{Range, SourceExcerpt};
use base::progress::{Event, Vertex};
use build::timestamp;
use proto::control::{self as wire, StatusResponse};
use proto::pb;

/// No message gets more bytes of logs than this: clients take 16 MiB at most.
const MAX_LOG_BYTES: usize = 1 << 20;

/// Events as messages, as few as the size of the logs allows.
pub fn to_wire(events: Vec<Event>) -> Vec<StatusResponse> {
    let mut messages = vec![StatusResponse::default()];
    let mut bytes = 0;
    for event in events {
        let size = if let Event::Log(log) = &event { log.data.len() } else { 0 };
        if bytes > 0 && bytes + size > MAX_LOG_BYTES {
            messages.push(StatusResponse::default());
            bytes = 0;
        }
        bytes += size;
        if let Some(message) = messages.last_mut() {
            put(message, event);
        }
    }
    messages
}

fn put(message: &mut StatusResponse, event: Event) {
    match event {
        Event::Vertex(v) => message.vertexes.push(vertex(v)),
        Event::Status(s) => message.statuses.push(wire::VertexStatus {
            id: s.id,
            vertex: s.vertex.to_string(),
            name: s.name,
            current: s.current,
            total: s.total,
            timestamp: Some(timestamp(s.timestamp)),
            started: s.started.map(timestamp),
            completed: s.completed.map(timestamp),
        }),
        Event::Log(l) => message.logs.push(wire::VertexLog {
            vertex: l.vertex.to_string(),
            timestamp: Some(timestamp(l.timestamp)),
            stream: l.stream as i64,
            msg: l.data,
        }),
        Event::Warning(w) => message.warnings.push(wire::VertexWarning {
            vertex: w.vertex.to_string(),
            level: w.level,
            short: w.short,
            detail: w.detail,
            url: w.url,
            info: w.source.map(source_info),
            ranges: w.ranges.into_iter().map(range).collect(),
        }),
    }
}

fn vertex(v: Vertex) -> wire::Vertex {
    wire::Vertex {
        digest: v.digest.to_string(),
        inputs: v.inputs.iter().map(ToString::to_string).collect(),
        name: v.name,
        cached: v.cached,
        started: v.started.map(timestamp),
        completed: v.completed.map(timestamp),
        error: v.error,
        progress_group: v.group.map(|g| pb::ProgressGroup { id: g.id, name: g.name, weak: g.weak }),
    }
}

fn source_info(s: SourceExcerpt) -> pb::SourceInfo {
    pb::SourceInfo { filename: s.filename, data: s.data, definition: None, language: s.language }
}

fn range(r: Range) -> pb::Range {
    let position = |p: base::failure::Position| Some(pb::Position { line: p.line, character: p.character });
    pb::Range { start: position(r.start), end: position(r.end) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Digest;
    use base::progress::{Log, Stream};

    #[test]
    fn big_logs_are_split() {
        let log = |n| {
            Event::Log(Log {
                vertex: Digest::of("v"),
                timestamp: base::Timestamp::EPOCH,
                stream: Stream::Stdout,
                data: vec![b'x'; n],
            })
        };
        let messages = to_wire(vec![log(700 << 10), log(700 << 10), log(1)]);
        assert_eq!(messages.iter().map(|m| m.logs.len()).collect::<Vec<_>>(), [1, 2]);
    }
}
