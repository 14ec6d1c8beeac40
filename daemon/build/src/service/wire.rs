//! Questions and answers as messages have them, and as the gateway takes them.

use std::collections::BTreeMap;

use base::{Descriptor, Digest, Failure, Kind, Platform, Timestamp};
use frontend::gateway::{
    Attestation, AttestationChain, AttestationKind, CacheImport, ChecksumAlgorithm, ChecksumQuery, FileRange,
    FrontendResult, ImageQuery, RefId, Refs, ResolveSource, Solve, SolveWhat, SourceMeta, Subject,
    SubjectKind,
};
use proto::gateway as wire;
use proto::pb;
use tonic::Status;

use super::status;
use crate::Bridge;

/// A platform as messages have it.
pub fn platform_to_wire(p: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: p.architecture.clone(),
        os: p.os.clone(),
        variant: p.variant.clone(),
        os_version: p.os_version.clone(),
        os_features: p.os_features.clone(),
    }
}

/// A moment as messages have it.
pub fn timestamp(t: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: t.secs(), nanos: t.subsec_nanos().cast_signed() }
}

pub(super) fn platform(p: Option<pb::Platform>) -> Option<base::Platform> {
    let p = p?;
    let platform = base::Platform {
        architecture: p.architecture,
        os: p.os,
        os_version: p.os_version,
        os_features: p.os_features,
        variant: p.variant,
    };
    Some(platform.normalized())
}

/// An id as the wire has it; empty is no result.
pub(super) fn ref_id(id: &str) -> Option<RefId> {
    (!id.is_empty()).then(|| RefId::new(id))
}

/// A result with the definition it is made from, for those who build on it.
fn wire_ref(bridge: &Bridge, id: Option<&RefId>) -> wire::Ref {
    let def = id.and_then(|id| bridge.definition(id));
    wire::Ref { id: id.map(ToString::to_string).unwrap_or_default(), def: def.map(|d| (*d).clone()) }
}

pub(super) fn needed(id: &str) -> Result<RefId, Status> {
    ref_id(id).ok_or_else(|| status(Failure::new(Kind::NotFound, "the result is empty")))
}

pub(super) fn to_wire(bridge: &Bridge, result: FrontendResult, arrays: bool) -> wire::Result {
    use wire::result::Result as Kind;
    let text = |id: Option<RefId>| id.map(|id| id.to_string()).unwrap_or_default();
    let refs = match (result.refs, arrays) {
        (Refs::Single(id), true) => Kind::Ref(wire_ref(bridge, id.as_ref())),
        (Refs::Single(id), false) => Kind::RefDeprecated(text(id)),
        (Refs::ByPlatform(refs), true) => Kind::Refs(wire::RefMap {
            refs: refs.iter().map(|(k, id)| (k.clone(), wire_ref(bridge, id.as_ref()))).collect(),
        }),
        (Refs::ByPlatform(refs), false) => Kind::RefsDeprecated(wire::RefMapDeprecated {
            refs: refs.into_iter().map(|(k, id)| (k, text(id))).collect(),
        }),
    };
    let attestations = result.attestations.into_iter().map(|(platform, list)| {
        let attestation = list.into_iter().map(|a| attestation_to_wire(bridge, a)).collect();
        (platform, wire::Attestations { attestation })
    });
    wire::Result { result: Some(refs), metadata: result.metadata, attestations: attestations.collect() }
}

fn attestation_to_wire(bridge: &Bridge, a: Attestation) -> wire::Attestation {
    let kind = match a.kind {
        AttestationKind::InToto => wire::AttestationKind::InToto,
        AttestationKind::Bundle => wire::AttestationKind::Bundle,
    };
    wire::Attestation {
        kind: kind as i32,
        metadata: a.metadata,
        r#ref: Some(wire_ref(bridge, a.reference.as_ref())),
        path: a.path,
        in_toto_predicate_type: a.predicate_type,
        in_toto_subjects: a
            .subjects
            .into_iter()
            .map(|s| wire::InTotoSubject {
                kind: match s.kind {
                    SubjectKind::This => wire::InTotoSubjectKind::Self_,
                    SubjectKind::Raw => wire::InTotoSubjectKind::Raw,
                } as i32,
                digest: s.digests,
                name: s.name,
            })
            .collect(),
    }
}

pub(super) fn from_wire(result: wire::Result) -> Result<FrontendResult, Failure> {
    use wire::result::Result as Kind;
    let refs = match result.result {
        None => Refs::Single(None),
        Some(Kind::RefDeprecated(id)) => Refs::Single(ref_id(&id)),
        Some(Kind::Ref(r)) => Refs::Single(ref_id(&r.id)),
        Some(Kind::RefsDeprecated(map)) => {
            Refs::ByPlatform(map.refs.into_iter().map(|(k, id)| (k, ref_id(&id))).collect())
        }
        Some(Kind::Refs(map)) => {
            Refs::ByPlatform(map.refs.into_iter().map(|(k, r)| (k, ref_id(&r.id))).collect())
        }
    };
    let mut attestations = BTreeMap::new();
    for (platform, list) in result.attestations {
        let list = list.attestation.into_iter().map(attestation_from_wire).collect::<Result<_, _>>()?;
        attestations.insert(platform, list);
    }
    Ok(FrontendResult { refs, metadata: result.metadata, attestations })
}

fn attestation_from_wire(a: wire::Attestation) -> Result<Attestation, Failure> {
    let unknown = |what: &str, kind: i32| Failure::invalid(format!("unknown {what} kind {kind}"));
    let subject = |s: wire::InTotoSubject| {
        Ok(Subject {
            kind: match wire::InTotoSubjectKind::try_from(s.kind) {
                Ok(wire::InTotoSubjectKind::Self_) => SubjectKind::This,
                Ok(wire::InTotoSubjectKind::Raw) => SubjectKind::Raw,
                Err(_) => return Err(unknown("subject", s.kind)),
            },
            name: s.name,
            digests: s.digest,
        })
    };
    Ok(Attestation {
        kind: match wire::AttestationKind::try_from(a.kind) {
            Ok(wire::AttestationKind::InToto) => AttestationKind::InToto,
            Ok(wire::AttestationKind::Bundle) => AttestationKind::Bundle,
            Err(_) => return Err(unknown("attestation", a.kind)),
        },
        metadata: a.metadata,
        reference: a.r#ref.and_then(|r| ref_id(&r.id)),
        path: a.path,
        predicate_type: a.in_toto_predicate_type,
        subjects: a.in_toto_subjects.into_iter().map(subject).collect::<Result<_, Failure>>()?,
    })
}

pub(super) fn solve_request(r: wire::SolveRequest) -> Solve {
    let what = match (r.definition, r.frontend.as_str()) {
        (Some(definition), "") if !definition.def.is_empty() => SolveWhat::Definition(Box::new(definition)),
        (_, "") => SolveWhat::Scratch,
        (_, _) => SolveWhat::Frontend { name: r.frontend, opts: r.frontend_opt, inputs: r.frontend_inputs },
    };
    let imports = r.cache_imports.into_iter().map(|c| CacheImport { kind: c.r#type, attrs: c.attrs });
    Solve { what, cache_imports: imports.collect(), policies: r.source_policies, evaluate: r.evaluate }
}

pub(crate) fn resolve_request(r: wire::ResolveSourceMetaRequest) -> Result<ResolveSource, Failure> {
    let image = r.image.unwrap_or_default();
    let checksum = match r.http.and_then(|h| h.checksum_request) {
        None => None,
        Some(c) => Some(ChecksumQuery {
            algorithm: match wire::checksum_request::ChecksumAlgo::try_from(c.algo) {
                Ok(wire::checksum_request::ChecksumAlgo::Sha256) => ChecksumAlgorithm::Sha256,
                Ok(wire::checksum_request::ChecksumAlgo::Sha384) => ChecksumAlgorithm::Sha384,
                Ok(wire::checksum_request::ChecksumAlgo::Sha512) => ChecksumAlgorithm::Sha512,
                Err(_) => return Err(Failure::invalid(format!("unsupported checksum algorithm {}", c.algo))),
            },
            suffix: c.suffix,
        }),
    };
    Ok(ResolveSource {
        source: r.source.ok_or_else(|| Failure::invalid("missing source"))?,
        platform: platform(r.platform),
        log_name: r.log_name,
        resolve_mode: r.resolve_mode,
        image: ImageQuery {
            no_config: image.no_config,
            attestation_chain: image.attestation_chain,
            attestations: image.resolve_attestations,
        },
        git_objects: r.git.is_some_and(|g| g.return_object),
        http_checksum: checksum,
        policies: r.source_policies,
    })
}

pub(crate) fn meta_to_wire(meta: SourceMeta) -> wire::ResolveSourceMetaResponse {
    wire::ResolveSourceMetaResponse {
        source: Some(meta.source),
        image: meta.image.map(|image| wire::ResolveSourceImageResponse {
            digest: image.digest.to_string(),
            config: image.config,
            attestation_chain: image.attestation_chain.map(chain_to_wire),
        }),
        git: meta.git.map(|git| wire::ResolveSourceGitResponse {
            checksum: git.checksum,
            r#ref: git.reference,
            commit_checksum: git.commit_checksum,
            commit_object: git.commit_object,
            tag_object: git.tag_object,
        }),
        http: meta.http.map(|http| wire::ResolveSourceHttpResponse {
            checksum: http.digest.to_string(),
            filename: http.filename,
            last_modified: http.last_modified.map(timestamp),
            checksum_response: http
                .checksum
                .map(|(digest, suffix)| wire::ChecksumResponse { digest, suffix }),
        }),
    }
}

fn chain_to_wire(chain: AttestationChain) -> wire::AttestationChain {
    let text = |digest: Digest| digest.to_string();
    let blob = |(desc, data): (Descriptor, Vec<u8>)| {
        let digest = desc.digest.to_string();
        let descriptor = wire::Descriptor {
            media_type: desc.media_type,
            size: i64::try_from(desc.size).unwrap_or(i64::MAX),
            digest: digest.clone(),
            annotations: desc.annotations,
        };
        (digest, wire::Blob { descriptor: Some(descriptor), data })
    };
    wire::AttestationChain {
        root: text(chain.root),
        image_manifest: text(chain.image_manifest),
        attestation_manifest: chain.attestation_manifest.map(text).unwrap_or_default(),
        signature_manifests: chain.signature_manifests.into_iter().map(text).collect(),
        blobs: chain.blobs.into_iter().map(blob).collect(),
    }
}

pub(super) fn file_range(range: Option<wire::FileRange>) -> Result<Option<FileRange>, Status> {
    let Some(range) = range else { return Ok(None) };
    match (u64::try_from(range.offset), u64::try_from(range.length)) {
        (Ok(offset), Ok(length)) => Ok(Some(FileRange { offset, length })),
        _ => Err(Status::invalid_argument("negative file range")),
    }
}
