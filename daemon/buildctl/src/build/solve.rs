//! One build over the wire.
//!
//! The client is the frontend: `Control.Solve` without a frontend opens the
//! build and stays open, `LLBBridge.Solve` asks for the work, `LLBBridge.Return`
//! says what the result is, and then `Control.Solve` exports it and answers.
//! Meanwhile `Control.Status` tells how it goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::task::Scope;
use base::{Failure, Kind};
use parking_lot::Mutex;
use proto::control::{self as wire, StatusResponse};
use proto::{gateway, pb};
use session::metadata;
use tokio::sync::{Notify, mpsc};

use super::options::Attrs;
use crate::connect::Connection;
use crate::errors::answer;
use crate::format::time::nanos;

/// How long the daemon may take to take the build on.
const PING: Duration = Duration::from_secs(15);
/// How long the daemon may say nothing once the build has ended.
const SILENCE: Duration = Duration::from_secs(5);

/// What is asked for.
pub(super) struct Request {
    pub(super) control: wire::SolveRequest,
    pub(super) frontend: String,
    pub(super) definition: Option<pb::Definition>,
    pub(super) attrs: Attrs,
}

/// How a build ended.
pub(super) struct Outcome {
    /// What the exporters say.
    pub(super) response: BTreeMap<String, String>,
    /// What a subrequest answered; empty for other builds.
    pub(super) answer: BTreeMap<String, Vec<u8>>,
}

/// Where progress goes. Clones go to the same place, until it is closed.
#[derive(Clone)]
pub(crate) struct Reporter(Arc<Mutex<Option<mpsc::Sender<StatusResponse>>>>);

impl Reporter {
    pub(super) fn new() -> (Self, mpsc::Receiver<StatusResponse>) {
        let (tx, rx) = mpsc::channel(64);
        (Self(Arc::new(Mutex::new(Some(tx)))), rx)
    }

    /// Shows `status`.
    pub(crate) async fn send(&self, status: StatusResponse) {
        let sender = self.0.lock().clone();
        if let Some(sender) = sender {
            _ = sender.send(status).await;
        }
    }

    /// Ends the display.
    pub(super) fn close(&self) {
        *self.0.lock() = None;
    }
}

fn with_build<T>(message: T, reference: &str) -> Result<tonic::Request<T>, Failure> {
    let mut request = tonic::Request::new(message);
    metadata::append(request.metadata_mut(), metadata::BUILD_ID, reference)?;
    Ok(request)
}

/// Runs a build; cancelling `scope` cancels it.
pub(super) async fn run(
    connection: &Connection,
    request: Request,
    reporter: &Reporter,
    scope: &Scope,
) -> Result<Outcome, Failure> {
    // Whoever cannot be asked this cannot be asked to build.
    let workers = crate::commands::workers::workers(connection, Vec::new());
    scope.run(workers).await.map_err(|e| e.context("listing workers for Build"))?;

    let reference = request.control.r#ref.clone();
    let ended = Notify::new();
    let status = watch(connection, &reference, reporter, &ended);
    let work = async {
        let outcome = scope.run(solve(connection, request)).await;
        ended.notify_one();
        outcome
    };
    let (outcome, status) = tokio::join!(work, status);
    let outcome = outcome?;
    status?;
    Ok(outcome)
}

async fn solve(connection: &Connection, request: Request) -> Result<Outcome, Failure> {
    let Request { control, frontend, definition, attrs } = request;
    let reference = control.r#ref.clone();
    let mut client = connection.control();
    let solved = async {
        let response = client.solve(control).await;
        let response = response.map_err(|e| answer(&e).context("failed to solve"))?;
        Ok::<_, Failure>(response.into_inner().exporter_response)
    };
    let asked = ask(connection, &reference, frontend, definition, attrs);
    tokio::pin!(solved, asked);
    let answer = tokio::select! {
        biased;
        // An early end is an error, or else the daemon has its own mind.
        early = &mut solved => {
            let response = early?;
            return Ok(Outcome { response, answer: BTreeMap::new() });
        }
        asked = &mut asked => asked,
    };
    match answer {
        Ok(answer) => Ok(Outcome { response: solved.await?, answer }),
        // The daemon's own answer says more, and comes soon.
        Err(e) => match tokio::time::timeout(SILENCE, solved).await {
            Ok(Err(better)) => Err(better),
            _ => Err(e.context("failed to run Build function")),
        },
    }
}

/// Asks for the work and says what the result is.
async fn ask(
    connection: &Connection,
    reference: &str,
    frontend: String,
    definition: Option<pb::Definition>,
    mut attrs: Attrs,
) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    let mut client = connection.gateway();
    let ping = client.ping(with_build(gateway::PingRequest::default(), reference)?);
    match tokio::time::timeout(PING, ping).await {
        Ok(pong) => drop(pong.map_err(|e| answer(&e))?),
        Err(_) => return Err(Failure::new(Kind::DeadlineExceeded, "the daemon did not take the build on")),
    }
    let subrequest = attrs.contains_key("requestid");
    if subrequest {
        attrs.entry("frontend.caps".into()).or_insert_with(|| "moby.buildkit.frontend.subrequests".into());
    }
    let cache_imports = attrs.get("cache-imports").map(|text| imports(text)).unwrap_or_default();
    let request = gateway::SolveRequest {
        definition,
        frontend,
        frontend_opt: attrs,
        allow_result_return: true,
        allow_result_array_ref: true,
        cache_imports,
        ..Default::default()
    };
    let (returned, result) = match client.solve(with_build(request, reference)?).await {
        Ok(response) => {
            let response = response.into_inner();
            let result = response.result.unwrap_or_else(|| gateway::Result {
                result: Some(gateway::result::Result::Ref(gateway::Ref { id: response.r#ref, def: None })),
                ..Default::default()
            });
            let answer = if subrequest { result.metadata.clone() } else { BTreeMap::new() };
            (gateway::ReturnRequest { result: Some(result), error: None }, Ok(answer))
        }
        Err(status) => {
            let failure = session::status::from_status(&status);
            let error = Some(session::status::to_rpc(&failure));
            (gateway::ReturnRequest { result: None, error }, Err(answer(&status)))
        }
    };
    let told = client.r#return(with_build(returned, reference)?).await;
    match (result, told) {
        (Ok(_), Err(status)) => Err(answer(&status)),
        (result, _) => result,
    }
}

/// The imports once more, in the gateway's own form.
fn imports(text: &str) -> Vec<gateway::CacheOptionsEntry> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        r#type: String,
        attrs: BTreeMap<String, String>,
    }
    let entries: Vec<Entry> = serde_json::from_str(text).unwrap_or_default();
    entries.into_iter().map(|e| gateway::CacheOptionsEntry { r#type: e.r#type, attrs: e.attrs }).collect()
}

/// Passes progress on until the daemon has no more, or says nothing for a
/// while after the end.
async fn watch(
    connection: &Connection,
    reference: &str,
    reporter: &Reporter,
    ended: &Notify,
) -> Result<(), Failure> {
    let request = wire::StatusRequest { r#ref: reference.to_owned() };
    let (begun, mut shift) = (now(), None);
    let stream = async {
        let mut client = connection.control();
        let stream = client.status(request).await;
        let mut stream = stream.map_err(|e| answer(&e).context("failed to get status"))?.into_inner();
        let activity = &Notify::new();
        let receive = async {
            loop {
                match stream.message().await {
                    Ok(Some(mut status)) => {
                        activity.notify_one();
                        shift_times(&mut status, begun, &mut shift);
                        reporter.send(status).await;
                    }
                    Ok(None) => return Ok(()),
                    Err(e) if e.code() == tonic::Code::Cancelled => return Ok(()),
                    Err(e) => return Err(answer(&e).context("failed to receive status")),
                }
            }
        };
        let silence = async {
            ended.notified().await;
            while tokio::time::timeout(SILENCE, activity.notified()).await.is_ok() {}
        };
        tokio::select! {
            result = receive => result,
            () = silence => Ok(()),
        }
    };
    stream.await
}

fn now() -> i64 {
    base::Timestamp::now().nanos()
}

/// Moves the daemon's times so that the first vertex starts when the build did
/// here: the two clocks need not agree.
fn shift_times(status: &mut StatusResponse, begun: i64, shift: &mut Option<i64>) {
    if shift.is_none() {
        let first = status.vertexes.iter().find_map(|v| v.started.as_ref());
        *shift = first.map(|started| nanos(started) - begun);
    }
    let Some(shift) = *shift else { return };
    let vertexes = status.vertexes.iter_mut().flat_map(|v| [&mut v.started, &mut v.completed]);
    let statuses =
        status.statuses.iter_mut().flat_map(|s| [&mut s.started, &mut s.completed, &mut s.timestamp]);
    let logs = status.logs.iter_mut().map(|l| &mut l.timestamp);
    for time in vertexes.chain(statuses).chain(logs).flatten() {
        let moved = nanos(time).saturating_sub(shift);
        time.seconds = moved.div_euclid(1_000_000_000);
        time.nanos = i32::try_from(moved.rem_euclid(1_000_000_000)).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_move_together() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let mut status = StatusResponse {
            vertexes: vec![wire::Vertex { started: at(100), completed: at(101), ..Default::default() }],
            logs: vec![wire::VertexLog { timestamp: at(102), ..Default::default() }],
            ..Default::default()
        };
        let mut shift = None;
        shift_times(&mut status, 5_000_000_000, &mut shift);
        assert_eq!(shift, Some(95_000_000_000));
        assert_eq!((status.vertexes[0].started, status.logs[0].timestamp), (at(5), at(7)));
    }

    #[test]
    fn imports_survive() {
        let list = imports(r#"[{"Type":"local","Attrs":{"src":"x"}}]"#);
        assert_eq!((list[0].r#type.as_str(), list[0].attrs["src"].as_str()), ("local", "x"));
        assert!(imports("rubbish").is_empty());
    }
}
