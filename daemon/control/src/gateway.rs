//! `moby.buildkit.v1.frontend.LLBBridge`: clients that are their own frontend.
//!
//! Each call names its build in the request's metadata and is answered by that
//! build's [`Bridge`].

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Digest, Failure, Kind};
use build::{Bridge, Builder};
use frontend::gateway::{
    Attestation, AttestationKind, CacheImport, ChecksumAlgorithm, ChecksumQuery, FileRange, FrontendResult,
    Gateway as _, ImageQuery, RefId, Refs, ResolveSource, Solve, SolveWhat, SourceMeta, Subject, SubjectKind,
    Warning,
};
use futures_util::stream::BoxStream;
use proto::gateway as wire;
use proto::pb;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::status;

/// Which build a call belongs to.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// Finds the build of each call.
pub(crate) struct Forwarder {
    builder: Arc<Builder>,
}

impl Forwarder {
    pub(crate) fn new(builder: Arc<Builder>) -> Self {
        Self { builder }
    }

    async fn bridge(&self, metadata: &MetadataMap) -> Result<Bridge, Status> {
        let mut ids = metadata.get_all(BUILD_ID).iter();
        match (ids.next().map(|id| id.to_str()), ids.next()) {
            (Some(Ok(id)), None) => self.builder.bridge(id).await.map_err(status),
            _ => Err(Status::invalid_argument("invalid build ID metadata")),
        }
    }
}

fn platform(p: Option<pb::Platform>) -> Option<base::Platform> {
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
fn ref_id(id: &str) -> Option<RefId> {
    (!id.is_empty()).then(|| RefId::new(id))
}

/// With what it was made from: clients build on that.
fn wire_ref(bridge: &Bridge, id: Option<&RefId>) -> wire::Ref {
    wire::Ref {
        id: id.map(ToString::to_string).unwrap_or_default(),
        def: id.and_then(|id| bridge.definition(id)),
    }
}

fn needed(id: &str) -> Result<RefId, Status> {
    ref_id(id).ok_or_else(|| status(Failure::new(Kind::NotFound, "the result is empty")))
}

fn to_wire(bridge: &Bridge, result: FrontendResult, arrays: bool) -> wire::Result {
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

fn from_wire(result: wire::Result) -> Result<FrontendResult, Failure> {
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

fn solve_request(r: wire::SolveRequest) -> Solve {
    let what = match (r.definition, r.frontend.as_str()) {
        (Some(definition), "") if !definition.def.is_empty() => SolveWhat::Definition(Box::new(definition)),
        (_, "") => SolveWhat::Scratch,
        (_, _) => SolveWhat::Frontend { name: r.frontend, opts: r.frontend_opt, inputs: r.frontend_inputs },
    };
    let imports = r.cache_imports.into_iter().map(|c| CacheImport { kind: c.r#type, attrs: c.attrs });
    Solve { what, cache_imports: imports.collect(), policies: r.source_policies, evaluate: r.evaluate }
}

fn resolve_request(r: wire::ResolveSourceMetaRequest) -> Result<ResolveSource, Failure> {
    let image = r.image.unwrap_or_default();
    let checksum = match r.http.and_then(|h| h.checksum_request) {
        None => None,
        Some(c) => Some(ChecksumQuery {
            algorithm: match c.algo() {
                wire::checksum_request::ChecksumAlgo::Sha256 => ChecksumAlgorithm::Sha256,
                wire::checksum_request::ChecksumAlgo::Sha384 => ChecksumAlgorithm::Sha384,
                wire::checksum_request::ChecksumAlgo::Sha512 => ChecksumAlgorithm::Sha512,
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

fn meta_to_wire(meta: SourceMeta) -> wire::ResolveSourceMetaResponse {
    wire::ResolveSourceMetaResponse {
        source: Some(meta.source),
        image: meta.image.map(|image| wire::ResolveSourceImageResponse {
            digest: image.digest.to_string(),
            config: image.config,
            attestation_chain: None,
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
            last_modified: http.last_modified.map(crate::progress::timestamp),
            checksum_response: http
                .checksum
                .map(|(digest, suffix)| wire::ChecksumResponse { digest, suffix }),
        }),
    }
}

fn file_range(range: Option<wire::FileRange>) -> Result<Option<FileRange>, Status> {
    let Some(range) = range else { return Ok(None) };
    match (u64::try_from(range.offset), u64::try_from(range.length)) {
        (Ok(offset), Ok(length)) => Ok(Some(FileRange { offset, length })),
        _ => Err(Status::invalid_argument("negative file range")),
    }
}

fn no_containers() -> Status {
    Status::unimplemented("containers of a frontend are not supported by this daemon yet")
}

#[async_trait::async_trait]
impl wire::llb_bridge_server::LlbBridge for Forwarder {
    type ExecProcessStream = BoxStream<'static, Result<wire::ExecMessage, Status>>;

    async fn ping(
        &self,
        request: Request<wire::PingRequest>,
    ) -> Result<Response<wire::PongResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let options = bridge.options();
        let workers = options.workers.iter().map(|w| proto::control::types::WorkerRecord {
            id: w.id.clone(),
            labels: w.labels.clone(),
            platforms: w.platforms.iter().map(crate::wire::platform).collect(),
            ..Default::default()
        });
        Ok(Response::new(wire::PongResponse {
            frontend_api_caps: options.caps.list(),
            llb_caps: options.llb_caps.list(),
            workers: workers.collect(),
        }))
    }

    async fn inputs(
        &self,
        request: Request<wire::InputsRequest>,
    ) -> Result<Response<wire::InputsResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let definitions = bridge.inputs().await.map_err(status)?;
        Ok(Response::new(wire::InputsResponse { definitions }))
    }

    async fn resolve_image_config(
        &self,
        request: Request<wire::ResolveImageConfigRequest>,
    ) -> Result<Response<wire::ResolveImageConfigResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let r = request.into_inner();
        let scheme = if r.resolver_type == 1 { "oci-layout" } else { "docker-image" };
        let mut source =
            pb::SourceOp { identifier: format!("{scheme}://{}", r.r#ref), ..pb::SourceOp::default() };
        for (key, value) in [(llb::attr::OCI_SESSION, r.session_id), (llb::attr::OCI_STORE, r.store_id)] {
            if r.resolver_type == 1 && !value.is_empty() {
                source.attrs.insert(key.to_owned(), value);
            }
        }
        let resolve = ResolveSource {
            source,
            platform: platform(r.platform),
            log_name: r.log_name,
            resolve_mode: r.resolve_mode,
            policies: r.source_policies,
            ..ResolveSource::default()
        };
        let meta = bridge.resolve_source_meta(resolve).await.map_err(status)?;
        let Some(image) = meta.image else {
            return Err(Status::invalid_argument(format!("{} is not an image", meta.source.identifier)));
        };
        let identifier = meta.source.identifier;
        let reference = identifier.split_once("://").map_or(identifier.as_str(), |(_, name)| name);
        Ok(Response::new(wire::ResolveImageConfigResponse {
            digest: image.digest.to_string(),
            config: image.config,
            r#ref: reference.to_owned(),
        }))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<wire::ResolveSourceMetaRequest>,
    ) -> Result<Response<wire::ResolveSourceMetaResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let resolve = resolve_request(request.into_inner()).map_err(status)?;
        let meta = bridge.resolve_source_meta(resolve).await.map_err(status)?;
        Ok(Response::new(meta_to_wire(meta)))
    }

    async fn solve(
        &self,
        request: Request<wire::SolveRequest>,
    ) -> Result<Response<wire::SolveResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let r = request.into_inner();
        let (allowed, arrays) = (r.allow_result_return, r.allow_result_array_ref);
        let result = bridge.solve(solve_request(r)).await.map_err(status)?;
        if !allowed {
            let id = result.single_ref().map_err(status)?.map(ToString::to_string).unwrap_or_default();
            return Ok(Response::new(wire::SolveResponse { r#ref: id, result: None }));
        }
        Ok(Response::new(wire::SolveResponse {
            r#ref: String::new(),
            result: Some(to_wire(&bridge, result, arrays)),
        }))
    }

    async fn evaluate(
        &self,
        request: Request<wire::EvaluateRequest>,
    ) -> Result<Response<wire::EvaluateResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        if let Some(id) = ref_id(&request.into_inner().r#ref) {
            bridge.evaluate(&id).await.map_err(status)?;
        }
        Ok(Response::new(wire::EvaluateResponse {}))
    }

    async fn read_file(
        &self,
        request: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let r = request.into_inner();
        let (id, range) = (needed(&r.r#ref)?, file_range(r.range)?);
        let data = bridge.read_file(&id, &r.file_path, range).await.map_err(status)?;
        Ok(Response::new(wire::ReadFileResponse { data }))
    }

    async fn read_dir(
        &self,
        request: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let r = request.into_inner();
        let id = needed(&r.r#ref)?;
        let entries = bridge.read_dir(&id, &r.dir_path, &r.include_pattern).await.map_err(status)?;
        Ok(Response::new(wire::ReadDirResponse { entries }))
    }

    async fn stat_file(
        &self,
        request: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let r = request.into_inner();
        let id = needed(&r.r#ref)?;
        let stat = bridge.stat_file(&id, &r.path).await.map_err(status)?;
        Ok(Response::new(wire::StatFileResponse { stat: Some(stat) }))
    }

    async fn warn(
        &self,
        request: Request<wire::WarnRequest>,
    ) -> Result<Response<wire::WarnResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let r = request.into_inner();
        let vertex = match r.digest.as_str() {
            "" => None,
            text => Some(text.parse::<Digest>().map_err(|e| Status::invalid_argument(e.to_string()))?),
        };
        let warning = Warning {
            vertex,
            level: r.level,
            short: r.short,
            detail: r.detail,
            url: r.url,
            source: r.info,
            ranges: r.ranges.iter().map(session::status::range_from_proto).collect(),
        };
        bridge.warn(warning).await.map_err(status)?;
        Ok(Response::new(wire::WarnResponse {}))
    }

    async fn r#return(
        &self,
        request: Request<wire::ReturnRequest>,
    ) -> Result<Response<wire::ReturnResponse>, Status> {
        let bridge = self.bridge(request.metadata()).await?;
        let r = request.into_inner();
        let outcome = match (r.result, r.error) {
            (_, Some(error)) => Err(session::status::from_rpc(&error)),
            (Some(result), None) => Ok(from_wire(result).map_err(status)?),
            (None, None) => return Err(status(build::Error::EmptyReturn)),
        };
        bridge.finish(outcome).map_err(status)?;
        Ok(Response::new(wire::ReturnResponse {}))
    }

    async fn new_container(
        &self,
        _: Request<wire::NewContainerRequest>,
    ) -> Result<Response<wire::NewContainerResponse>, Status> {
        Err(no_containers())
    }

    async fn release_container(
        &self,
        _: Request<wire::ReleaseContainerRequest>,
    ) -> Result<Response<wire::ReleaseContainerResponse>, Status> {
        Err(no_containers())
    }

    async fn exec_process(
        &self,
        _: Request<Streaming<wire::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        Err(no_containers())
    }

    async fn read_file_container(
        &self,
        _: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        Err(no_containers())
    }

    async fn read_dir_container(
        &self,
        _: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        Err(no_containers())
    }

    async fn stat_file_container(
        &self,
        _: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        Err(no_containers())
    }
}
