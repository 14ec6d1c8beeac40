//! [`Failure`] ⇄ `google.rpc.Status` with typed details.
//!
//! Each [`Detail`] becomes an `Any` in `grpc-status-details-bin`. Its type URL
//! begins with `github.com/moby/buildkit/` and ends in `+json`; the value is
//! JSON, not protobuf (see [`crate::json`]). Clients rebuild source excerpts
//! and exit codes from it. Details of unknown type are passed over.
//!
//! A hint has no counterpart in the reference; it travels under a type URL of
//! our own, which other clients ignore.

use base::failure::{IncompleteMaterial, Position, Range, SourceExcerpt, Subject};
use base::{Detail, Digest, Failure, Kind};
use prost::Message;
use proto::google::rpc;
use proto::moby::buildkit::v1::sourcepolicy::{PolicyAction, policysession as policy};
use proto::{errdefs, gateway, pb};
use tonic::Code;

use crate::json;

const PREFIX: &str = "github.com/moby/buildkit/";
const DECISION: &str = "moby.buildkit.v1.sourcepolicy.policysession.DecisionResponse";
const HINT: &str = "github.com/buildkit-cni/errdefs.Hint+json";

/// More source text than this is not worth an error's while; the whole status
/// has to fit into a trailer that peers accept.
const MAX_DETAILS: usize = 1 << 20;

/// The gRPC code of `kind`.
pub fn to_code(kind: Kind) -> Code {
    match kind {
        Kind::Canceled => Code::Cancelled,
        Kind::Unknown => Code::Unknown,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Aborted => Code::Aborted,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
        Kind::Unavailable => Code::Unavailable,
        Kind::DataLoss => Code::DataLoss,
        Kind::Unauthenticated => Code::Unauthenticated,
    }
}

/// The kind of a gRPC code; `Ok` is no error and counts as unknown.
pub fn from_code(code: Code) -> Kind {
    match code {
        Code::Cancelled => Kind::Canceled,
        Code::Ok | Code::Unknown => Kind::Unknown,
        Code::InvalidArgument => Kind::InvalidArgument,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::AlreadyExists,
        Code::PermissionDenied => Kind::PermissionDenied,
        Code::ResourceExhausted => Kind::ResourceExhausted,
        Code::FailedPrecondition => Kind::FailedPrecondition,
        Code::Aborted => Kind::Aborted,
        Code::OutOfRange => Kind::OutOfRange,
        Code::Unimplemented => Kind::Unimplemented,
        Code::Internal => Kind::Internal,
        Code::Unavailable => Kind::Unavailable,
        Code::DataLoss => Kind::DataLoss,
        Code::Unauthenticated => Kind::Unauthenticated,
    }
}

/// The failure as it is kept in records.
pub fn to_rpc(failure: &Failure) -> rpc::Status {
    let mut details: Vec<_> = failure.details().iter().filter_map(encode).collect();
    if let Some(hint) = failure.hint() {
        let value = base::gojson::to_vec(&hint).unwrap_or_default();
        details.push(prost_types::Any { type_url: HINT.into(), value });
    }
    rpc::Status { code: to_code(failure.kind()) as i32, message: failure.to_string(), details }
}

/// Which program a failure is from, as a detail of its own.
pub fn origin(program: &proto::stack::Stack) -> Option<prost_types::Any> {
    any("stack.Stack", json::encode_go("stack.Stack", program))
}

/// The failure as a gRPC answer.
pub fn to_status(failure: &Failure) -> tonic::Status {
    let mut status = to_rpc(failure);
    let code = to_code(failure.kind());
    if status.encoded_len() > MAX_DETAILS {
        status.details.retain(|d| d.value.len() < MAX_DETAILS / 8);
    }
    if status.details.is_empty() {
        return tonic::Status::new(code, status.message);
    }
    let bytes = status.encode_to_vec().into();
    tonic::Status::with_details(code, status.message, bytes)
}

/// What a record says went wrong.
pub fn from_rpc(status: &rpc::Status) -> Failure {
    let failure = Failure::new(from_code(Code::from_i32(status.code)), status.message.clone());
    attach(failure, &status.details)
}

/// What a gRPC answer says went wrong.
pub fn from_status(status: &tonic::Status) -> Failure {
    let failure = Failure::new(from_code(status.code()), status.message());
    match rpc::Status::decode(status.details()) {
        Ok(rich) => attach(failure, &rich.details),
        Err(_) => failure,
    }
}

fn attach(mut failure: Failure, details: &[prost_types::Any]) -> Failure {
    for any in details {
        if any.type_url == HINT {
            if let Ok(hint) = serde_json::from_slice::<String>(&any.value) {
                failure = failure.hinted(hint);
            }
        } else if let Some(detail) = decode(any) {
            // There may be several places; of the rest one is enough.
            failure = match detail {
                Detail::Source(_) => failure.also(detail),
                _ => failure.with(detail),
            };
        }
    }
    failure
}

fn any(name: &str, value: Option<Vec<u8>>) -> Option<prost_types::Any> {
    Some(prost_types::Any { type_url: format!("{PREFIX}{name}+json"), value: value? })
}

fn encode(detail: &Detail) -> Option<prost_types::Any> {
    fn go(name: &str, message: &impl Message) -> Option<prost_types::Any> {
        any(name, json::encode_go(name, message))
    }
    match detail {
        Detail::Vertex(digest) => go("errdefs.Vertex", &errdefs::Vertex { digest: digest.to_string() }),
        Detail::Source(source) => go("errdefs.Source", &source_to_proto(source)),
        Detail::Exit { code } => any(
            "gatewayapi.ExitMessage",
            json::encode_go(
                "moby.buildkit.v1.frontend.ExitMessage",
                &gateway::ExitMessage { code: *code, ..Default::default() },
            ),
        ),
        Detail::Frontend { name, source } => {
            go("errdefs.Frontend", &errdefs::Frontend { name: name.clone(), source: source.clone() })
        }
        Detail::FrontendCap(name) => go("errdefs.FrontendCap", &errdefs::FrontendCap { name: name.clone() }),
        Detail::Denied(messages) => {
            let messages = messages.iter().map(|m| policy::DenyMessage { message: m.clone() });
            let message = policy::DecisionResponse {
                action: PolicyAction::Deny.into(),
                deny_messages: messages.collect(),
                update: None,
            };
            let value = json::encode_go(DECISION, &message);
            any("policysession.DecisionResponse", value)
        }
        Detail::Materials(materials) => {
            let incomplete = materials.iter().map(|m| errdefs::ProvenanceMaterialIncomplete {
                op: m.op.clone(),
                name: m.name.clone(),
                method: m.method.clone(),
                uri: m.uri.clone(),
                final_uri: m.final_uri.clone(),
                reason: m.reason.clone(),
            });
            let message = errdefs::ProvenanceMaterialsIncomplete { incomplete: incomplete.collect() };
            go("errdefs.ProvenanceMaterialsIncomplete", &message)
        }
        Detail::Subrequest(name) => go("errdefs.Subrequest", &errdefs::Subrequest { name: name.clone() }),
        Detail::Solve { inputs, mounts, op, subject, description } => {
            let message = errdefs::Solve {
                input_i_ds: inputs.clone(),
                mount_i_ds: mounts.clone(),
                op: if op.is_empty() { None } else { pb::Op::decode(op.as_slice()).ok() },
                subject: subject.map(|s| match s {
                    Subject::File(index) => errdefs::solve::Subject::File(errdefs::FileAction { index }),
                    Subject::Content(index) => {
                        errdefs::solve::Subject::Cache(errdefs::ContentCache { index })
                    }
                }),
                description: description.iter().cloned().collect(),
            };
            any("errdefs.Solve", json::encode_canonical("errdefs.Solve", &message))
        }
    }
}

fn decode(any: &prost_types::Any) -> Option<Detail> {
    let name = any.type_url.strip_prefix(PREFIX)?.strip_suffix("+json")?;
    let value = any.value.as_slice();
    match name {
        "errdefs.Vertex" => {
            let vertex: errdefs::Vertex = json::decode(name, value)?;
            Some(Detail::Vertex(vertex.digest.parse::<Digest>().ok()?))
        }
        "errdefs.Source" => {
            let source: errdefs::Source = json::decode(name, value)?;
            Some(Detail::Source(source_from_proto(source)))
        }
        "gatewayapi.ExitMessage" => {
            let exit: gateway::ExitMessage = json::decode("moby.buildkit.v1.frontend.ExitMessage", value)?;
            Some(Detail::Exit { code: exit.code })
        }
        "errdefs.Frontend" => {
            let errdefs::Frontend { name, source } = json::decode(name, value)?;
            Some(Detail::Frontend { name, source })
        }
        "errdefs.FrontendCap" => {
            let cap: errdefs::FrontendCap = json::decode(name, value)?;
            Some(Detail::FrontendCap(cap.name))
        }
        "errdefs.Subrequest" => {
            let request: errdefs::Subrequest = json::decode(name, value)?;
            Some(Detail::Subrequest(request.name))
        }
        "errdefs.ProvenanceMaterialsIncomplete" => {
            let message: errdefs::ProvenanceMaterialsIncomplete = json::decode(name, value)?;
            let materials = message.incomplete.into_iter().map(|m| IncompleteMaterial {
                op: m.op,
                name: m.name,
                method: m.method,
                uri: m.uri,
                final_uri: m.final_uri,
                reason: m.reason,
            });
            Some(Detail::Materials(materials.collect()))
        }
        "policysession.DecisionResponse" => {
            let decision: policy::DecisionResponse = json::decode(DECISION, value)?;
            Some(Detail::Denied(decision.deny_messages.into_iter().map(|m| m.message).collect()))
        }
        "errdefs.Solve" => {
            let solve: errdefs::Solve = json::decode(name, value)?;
            Some(Detail::Solve {
                inputs: solve.input_i_ds,
                mounts: solve.mount_i_ds,
                op: solve.op.map(|op| op.encode_to_vec()).unwrap_or_default(),
                subject: solve.subject.map(|s| match s {
                    errdefs::solve::Subject::File(f) => Subject::File(f.index),
                    errdefs::solve::Subject::Cache(c) => Subject::Content(c.index),
                }),
                description: solve.description.into_iter().collect(),
            })
        }
        _ => None,
    }
}

/// A source excerpt as the wire has it.
pub fn source_to_proto(source: &SourceExcerpt) -> errdefs::Source {
    errdefs::Source {
        info: Some(pb::SourceInfo {
            filename: source.filename.clone(),
            data: source.data.clone(),
            definition: source.definition.as_deref().and_then(|d| pb::Definition::decode(d).ok()),
            language: source.language.clone(),
        }),
        ranges: source.ranges.iter().map(range_to_proto).collect(),
    }
}

/// A source excerpt from the wire.
pub fn source_from_proto(source: errdefs::Source) -> SourceExcerpt {
    let info = source.info.unwrap_or_default();
    SourceExcerpt {
        filename: info.filename,
        language: info.language,
        data: info.data,
        definition: info.definition.map(|d| d.encode_to_vec()),
        ranges: source.ranges.iter().map(range_from_proto).collect(),
    }
}

/// A range as the wire has it.
pub fn range_to_proto(range: &Range) -> pb::Range {
    let position = |p: Position| Some(pb::Position { line: p.line, character: p.character });
    pb::Range { start: position(range.start), end: position(range.end) }
}

/// A range from the wire; a missing end is the beginning of the file.
pub fn range_from_proto(range: &pb::Range) -> Range {
    let position = |p: &Option<pb::Position>| {
        p.map(|p| Position { line: p.line, character: p.character }).unwrap_or_default()
    };
    Range { start: position(&range.start), end: position(&range.end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(failure: &Failure) -> Vec<(String, String)> {
        let any = to_rpc(failure).details;
        any.into_iter().map(|a| (a.type_url, String::from_utf8(a.value).unwrap())).collect()
    }

    #[test]
    fn details_have_the_reference_form() {
        let at = |line| Position { line, character: 0 };
        let failure = Failure::invalid("process failed")
            .with(Detail::Exit { code: 7 })
            .with(Detail::Vertex(Digest::of("x")))
            .with(Detail::Source(SourceExcerpt {
                filename: "Dockerfile".into(),
                language: "Dockerfile".into(),
                data: b"FROM x\n".to_vec(),
                definition: None,
                ranges: vec![Range { start: at(1), end: at(1) }],
            }));
        let vertex = format!("{{\"digest\":\"{}\"}}", Digest::of("x"));
        let source = "{\"info\":{\"filename\":\"Dockerfile\",\"data\":\"RlJPTSB4Cg==\",\
                      \"language\":\"Dockerfile\"},\"ranges\":[{\"start\":{\"line\":1},\"end\":{\"line\":1}}]}";
        assert_eq!(
            details(&failure),
            [
                ("github.com/moby/buildkit/gatewayapi.ExitMessage+json".into(), "{\"Code\":7}".into()),
                ("github.com/moby/buildkit/errdefs.Vertex+json".to_owned(), vertex),
                ("github.com/moby/buildkit/errdefs.Source+json".into(), source.into()),
            ]
        );
    }

    #[test]
    fn solve_details_are_canonical_json() {
        let op = pb::Op {
            inputs: vec![pb::Input { digest: Digest::of("i").to_string(), index: 3 }],
            op: Some(pb::op::Op::Exec(pb::ExecOp::default())),
            ..Default::default()
        };
        let detail = Detail::Solve {
            inputs: vec!["a".into()],
            mounts: vec![],
            op: op.encode_to_vec(),
            subject: Some(Subject::File(2)),
            description: vec![("k".into(), "v".into())],
        };
        let failure = Failure::invalid("x").with(detail);
        let [(url, json)] = details(&failure).try_into().unwrap();
        assert_eq!(url, "github.com/moby/buildkit/errdefs.Solve+json");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["inputIDs"][0], "a");
        assert_eq!(json["file"]["index"], "2");
        assert_eq!(json["op"]["inputs"][0]["index"], "3");
        let back = from_status(&to_status(&failure));
        assert_eq!(back.details(), failure.details());
    }

    #[test]
    fn survives_the_wire() {
        let failure = Failure::new(Kind::NotFound, "no such thing")
            .with(Detail::Frontend { name: "dockerfile.v0".into(), source: "x".into() })
            .with(Detail::FrontendCap("cap".into()))
            .with(Detail::Subrequest("frontend.outline".into()))
            .with(Detail::Denied(vec!["because".into()]))
            .with(Detail::Materials(vec![IncompleteMaterial {
                op: Digest::of("x").to_string(),
                name: "wget".into(),
                method: "POST".into(),
                uri: "http://example.com/".into(),
                final_uri: "http://example.com/there".into(),
                reason: "method_not_materializable".into(),
            }]))
            .hinted("look elsewhere");
        let back = from_status(&to_status(&failure));
        assert_eq!(back.kind(), Kind::NotFound);
        assert_eq!(back.to_string(), "no such thing");
        assert_eq!(back.hint(), Some("look elsewhere"));
        assert_eq!(back.details(), failure.details());
    }

    #[test]
    fn a_program_is_told_as_where_a_stack_is_from() {
        let program =
            proto::stack::Stack { cmdline: vec!["a".into(), "b".into()], pid: 7, ..Default::default() };
        let detail = origin(&program).unwrap();
        assert_eq!(detail.type_url, "github.com/moby/buildkit/stack.Stack+json");
        assert_eq!(detail.value, br#"{"cmdline":["a","b"],"pid":7}"#);
    }

    #[test]
    fn rubbish_details_are_passed_over() {
        let rich = rpc::Status {
            code: 3,
            message: "m".into(),
            details: vec![
                prost_types::Any { type_url: format!("{PREFIX}errdefs.Vertex+json"), value: b"[".to_vec() },
                prost_types::Any { type_url: "other".into(), value: vec![0xff] },
                prost_types::Any {
                    type_url: format!("{PREFIX}errdefs.Solve+json"),
                    value: vec![b'['; 1 << 16],
                },
            ],
        };
        assert!(from_rpc(&rich).details().is_empty());
        let status = tonic::Status::with_details(Code::Internal, "m", vec![1, 2, 3].into());
        assert_eq!(from_status(&status).kind(), Kind::Internal);
    }

    #[test]
    fn operations_have_the_shape_of_the_reference() {
        let op = pb::Op {
            op: Some(pb::op::Op::File(pb::FileOp {
                actions: vec![pb::FileAction {
                    input: 0,
                    secondary_input: -1,
                    output: 0,
                    action: Some(pb::file_action::Action::Rm(pb::FileActionRm {
                        path: "/x".into(),
                        ..Default::default()
                    })),
                }],
            })),
            ..Default::default()
        };
        let json = String::from_utf8(json::encode_go("pb.Op", &op).unwrap()).unwrap();
        assert_eq!(
            json,
            "{\"Op\":{\"file\":{\"actions\":[{\"input\":0,\"secondaryInput\":-1,\"output\":0,\
             \"Action\":{\"rm\":{\"path\":\"/x\"}}}]}}}"
        );
    }
}
