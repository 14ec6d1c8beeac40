//! Builds that ended, on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{Descriptor, Failure, Kind};
use build::{Builder, HistoryEvent, HistoryKind, Record, timestamp};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use prost::Message as _;
use proto::control as wire;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use crate::history_filter::Choice;

/// A record as clients see it.
fn record(r: &Record) -> wire::BuildHistoryRecord {
    let results: BTreeMap<i64, wire::Descriptor> =
        r.results.iter().map(|(at, d)| (*at, descriptor(d))).collect();
    let [total, cached, completed, warnings] = r.counts.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
    wire::BuildHistoryRecord {
        r#ref: r.id.clone(),
        frontend: r.frontend.clone(),
        frontend_attrs: r.attrs.clone(),
        exporters: r
            .exporters
            .iter()
            .map(|(kind, attrs)| wire::Exporter { r#type: kind.clone(), attrs: attrs.clone() })
            .collect(),
        error: r.error.as_ref().map(|(code, message)| proto::google::rpc::Status {
            code: *code,
            message: message.clone(),
            details: Vec::new(),
        }),
        created_at: Some(timestamp(r.created)),
        completed_at: r.completed.map(timestamp),
        logs: r.logs.as_ref().map(descriptor),
        exporter_response: r.response.clone(),
        external_error: r.external_error.as_ref().map(descriptor),
        trace: r.trace.as_ref().map(descriptor),
        result: (!results.is_empty() || !r.attestations.is_empty()).then(|| wire::BuildResultInfo {
            result_deprecated: results.values().next().cloned(),
            results,
            attestations: r.attestations.iter().map(descriptor).collect(),
        }),
        results: r
            .by_platform
            .iter()
            .map(|(platform, said)| {
                let attestations = said.iter().map(descriptor).collect();
                (platform.clone(), wire::BuildResultInfo { attestations, ..Default::default() })
            })
            .collect(),
        generation: r.generation,
        pinned: r.pinned,
        num_total_steps: total,
        num_cached_steps: cached,
        num_completed_steps: completed,
        num_warnings: warnings,
    }
}

fn descriptor(d: &Descriptor) -> wire::Descriptor {
    wire::Descriptor {
        media_type: d.media_type.clone(),
        digest: d.digest.to_string(),
        size: i64::try_from(d.size).unwrap_or(i64::MAX),
        annotations: d.annotations.clone(),
    }
}

fn event(e: &HistoryEvent) -> wire::BuildHistoryEvent {
    let kind = match e.kind {
        HistoryKind::Started => wire::BuildHistoryEventType::Started,
        HistoryKind::Complete => wire::BuildHistoryEventType::Complete,
        HistoryKind::Deleted => wire::BuildHistoryEventType::Deleted,
    };
    wire::BuildHistoryEvent { r#type: kind as i32, record: Some(record(&e.record)) }
}

/// What runs now, then what ended, then what happens, until the client goes or
/// the daemon stops.
pub(crate) async fn listen(
    builder: Arc<Builder>,
    request: wire::BuildHistoryRequest,
) -> Result<BoxStream<'static, Result<wire::BuildHistoryEvent, Status>>, Failure> {
    let choice = Choice::parse(&request.filter, request.limit)?;
    let history = builder.history();
    let watching = match request.r#ref.as_str() {
        "" => None,
        id => Some(history.watch(id)?),
    };
    // Before anything is read: nothing is missed, at worst it is told twice.
    let events = history.subscribe();
    let wanted = |r: &Arc<Record>| request.r#ref.is_empty() || r.id == request.r#ref;
    let mut first: Vec<_> = history
        .active()
        .into_iter()
        .filter(wanted)
        .map(|record| HistoryEvent { kind: HistoryKind::Started, record })
        .collect();
    if !request.active_only {
        let ended = history.ended().await?.into_iter().filter(wanted).collect();
        let chosen = choice.of(ended).into_iter();
        first.extend(chosen.map(|record| HistoryEvent { kind: HistoryKind::Complete, record }));
    }
    let first = stream::iter(first.iter().map(event).map(Ok).collect::<Vec<_>>());
    if request.early_exit {
        return Ok(first.boxed());
    }
    let (id, active_only) = (request.r#ref.clone(), request.active_only);
    // Which builds this client saw begin: it is told of their end as well.
    let begun: BTreeSet<String> = BTreeSet::new();
    let state = (events, builder, begun, watching);
    let later = stream::unfold(state, move |(mut events, builder, mut begun, watching)| {
        let id = id.clone();
        async move {
            loop {
                let next = tokio::select! {
                    _ = builder.scope().cancelled() => return None,
                    next = events.recv() => next,
                };
                let next = match next {
                    Ok(next) => next,
                    // A client that does not keep up misses the oldest.
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return None,
                };
                if !id.is_empty() && next.record.id != id {
                    continue;
                }
                if next.kind == HistoryKind::Started {
                    begun.insert(next.record.id.clone());
                } else if active_only && !begun.remove(&next.record.id) {
                    continue;
                }
                return Some((Ok(event(&next)), (events, builder, begun, watching)));
            }
        }
    });
    Ok(first.chain(later).boxed())
}

/// The progress of a build that ended, from what was kept; `None` when it runs
/// or is not known.
pub(crate) async fn replay(
    builder: &Builder,
    id: &str,
) -> Result<Option<BoxStream<'static, Result<wire::StatusResponse, Status>>>, Failure> {
    let found = match builder.history().get(id).await {
        Ok(found) => found,
        Err(e) if e.kind() == Kind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(logs) = &found.logs else { return Ok(None) };
    let (store, digest) = (builder.worker().refs.store().clone(), logs.digest.clone());
    let messages = base::task::blocking(move || {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let read = store.blobs().open_blob(&digest)?.read_to_end(&mut bytes);
        read.map_err(|e| Failure::internal(format!("read progress {digest}: {e}")))?;
        decode(&bytes)
    })
    .await?;
    Ok(Some(stream::iter(messages.into_iter().map(Ok)).boxed()))
}

/// Progress as the history keeps it: each message after its length, four bytes
/// little-endian.
pub fn encode(events: Vec<base::progress::Event>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in crate::progress::to_wire(events) {
        let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&message.encode_to_vec());
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Result<Vec<wire::StatusResponse>, Failure> {
    let broken = || Failure::new(Kind::DataLoss, "the kept progress is cut short");
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| broken())?;
        let (message, rest) = rest.split_at_checked(length).ok_or_else(broken)?;
        messages.push(wire::StatusResponse::decode(message).map_err(|_| broken())?);
        bytes = rest;
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Digest;
    use base::progress::{Event, Log, Stream};

    #[test]
    fn progress_survives_being_kept() {
        let log = Log {
            vertex: Digest::of("v"),
            timestamp: base::Timestamp::EPOCH,
            stream: Stream::Stderr,
            data: b"hello".to_vec(),
        };
        let bytes = encode(vec![Event::Log(log)]);
        let messages = decode(&bytes).unwrap();
        assert_eq!(messages[0].logs[0].msg, b"hello");
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
