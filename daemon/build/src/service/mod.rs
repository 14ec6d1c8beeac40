//! `moby.buildkit.v1.frontend.LLBBridge`: what a frontend asks, answered by the
//! [`Bridge`] of its build.
//!
//! The same for the frontend that a client is, which comes over the daemon's
//! own socket, and for one in a container, which has a connection of its own.

mod exec;
mod wire;

use std::path::Path;

use base::{Digest, Failure};
use frontend::gateway::{Gateway as _, ResolveSource, Warning};
use proto::gateway as msg;
use proto::pb;
use tonic::{Request, Response, Status, Streaming};

use crate::{Bridge, Error, files};

pub(crate) use wire::{meta_to_wire, resolve_request};
pub use wire::{platform_to_wire, timestamp};

/// Answers for one frontend of one build.
pub struct Service(Bridge);

impl Service {
    /// Answers with what `bridge` says.
    pub fn new(bridge: Bridge) -> Self {
        Self(bridge)
    }
}

/// A failure as the answer of a call.
fn status(failure: impl Into<Failure>) -> Status {
    session::status::to_status(&failure.into())
}

/// The index of a mount.
fn index(mount: i32) -> Result<usize, Status> {
    usize::try_from(mount)
        .map_err(|_| Status::invalid_argument(format!("mount index {mount} is out of bounds")))
}

#[async_trait::async_trait]
impl msg::llb_bridge_server::LlbBridge for Service {
    type ExecProcessStream = exec::Messages;

    async fn ping(&self, _: Request<msg::PingRequest>) -> Result<Response<msg::PongResponse>, Status> {
        let options = self.0.options();
        let workers = options.workers.iter().map(|w| proto::control::types::WorkerRecord {
            id: w.id.clone(),
            labels: w.labels.clone(),
            platforms: w.platforms.iter().map(wire::platform_to_wire).collect(),
            ..Default::default()
        });
        Ok(Response::new(msg::PongResponse {
            frontend_api_caps: options.caps.list(),
            llb_caps: options.llb_caps.list(),
            workers: workers.collect(),
        }))
    }

    async fn inputs(&self, _: Request<msg::InputsRequest>) -> Result<Response<msg::InputsResponse>, Status> {
        let bridge = &self.0;
        let definitions = bridge.inputs().await.map_err(status)?;
        Ok(Response::new(msg::InputsResponse { definitions }))
    }

    async fn resolve_image_config(
        &self,
        request: Request<msg::ResolveImageConfigRequest>,
    ) -> Result<Response<msg::ResolveImageConfigResponse>, Status> {
        let bridge = &self.0;
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
            platform: wire::platform(r.platform),
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
        Ok(Response::new(msg::ResolveImageConfigResponse {
            digest: image.digest.to_string(),
            config: image.config,
            r#ref: reference.to_owned(),
        }))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<msg::ResolveSourceMetaRequest>,
    ) -> Result<Response<msg::ResolveSourceMetaResponse>, Status> {
        let bridge = &self.0;
        let resolve = wire::resolve_request(request.into_inner()).map_err(status)?;
        let meta = bridge.resolve_source_meta(resolve).await.map_err(status)?;
        Ok(Response::new(wire::meta_to_wire(meta)))
    }

    async fn solve(
        &self,
        request: Request<msg::SolveRequest>,
    ) -> Result<Response<msg::SolveResponse>, Status> {
        let bridge = &self.0;
        let r = request.into_inner();
        let (allowed, arrays) = (r.allow_result_return, r.allow_result_array_ref);
        let result = bridge.solve(wire::solve_request(r)).await.map_err(status)?;
        if !allowed {
            let id = result.single_ref().map_err(status)?.map(ToString::to_string).unwrap_or_default();
            return Ok(Response::new(msg::SolveResponse { r#ref: id, result: None }));
        }
        Ok(Response::new(msg::SolveResponse {
            r#ref: String::new(),
            result: Some(wire::to_wire(bridge, result, arrays)),
        }))
    }

    async fn evaluate(
        &self,
        request: Request<msg::EvaluateRequest>,
    ) -> Result<Response<msg::EvaluateResponse>, Status> {
        let bridge = &self.0;
        if let Some(id) = wire::ref_id(&request.into_inner().r#ref) {
            bridge.evaluate(&id).await.map_err(status)?;
        }
        Ok(Response::new(msg::EvaluateResponse {}))
    }

    async fn read_file(
        &self,
        request: Request<msg::ReadFileRequest>,
    ) -> Result<Response<msg::ReadFileResponse>, Status> {
        let bridge = &self.0;
        let r = request.into_inner();
        let (id, range) = (wire::needed(&r.r#ref)?, wire::file_range(r.range)?);
        let data = bridge.read_file(&id, &r.file_path, range).await.map_err(status)?;
        Ok(Response::new(msg::ReadFileResponse { data }))
    }

    async fn read_dir(
        &self,
        request: Request<msg::ReadDirRequest>,
    ) -> Result<Response<msg::ReadDirResponse>, Status> {
        let bridge = &self.0;
        let r = request.into_inner();
        let id = wire::needed(&r.r#ref)?;
        let entries = bridge.read_dir(&id, &r.dir_path, &r.include_pattern).await.map_err(status)?;
        Ok(Response::new(msg::ReadDirResponse { entries }))
    }

    async fn stat_file(
        &self,
        request: Request<msg::StatFileRequest>,
    ) -> Result<Response<msg::StatFileResponse>, Status> {
        let bridge = &self.0;
        let r = request.into_inner();
        let id = wire::needed(&r.r#ref)?;
        let stat = bridge.stat_file(&id, &r.path).await.map_err(status)?;
        Ok(Response::new(msg::StatFileResponse { stat: Some(stat) }))
    }

    async fn warn(&self, request: Request<msg::WarnRequest>) -> Result<Response<msg::WarnResponse>, Status> {
        let bridge = &self.0;
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
        Ok(Response::new(msg::WarnResponse {}))
    }

    async fn r#return(
        &self,
        request: Request<msg::ReturnRequest>,
    ) -> Result<Response<msg::ReturnResponse>, Status> {
        let bridge = &self.0;
        let r = request.into_inner();
        let outcome = match (r.result, r.error) {
            (_, Some(error)) => Err(session::status::from_rpc(&error)),
            (Some(result), None) => Ok(wire::from_wire(result).map_err(status)?),
            (None, None) => return Err(status(Error::EmptyReturn)),
        };
        bridge.finish(outcome).map_err(status)?;
        Ok(Response::new(msg::ReturnResponse {}))
    }

    async fn new_container(
        &self,
        request: Request<msg::NewContainerRequest>,
    ) -> Result<Response<msg::NewContainerResponse>, Status> {
        let r = request.into_inner();
        let sandbox = ops::Sandbox {
            name: r.container_id.clone(),
            mounts: Vec::new(),
            network: r.network,
            hostname: r.hostname,
            extra_hosts: r.extra_hosts,
            platform: wire::platform(r.platform),
        };
        self.0.open(&r.container_id, sandbox, r.mounts).await.map_err(status)?;
        Ok(Response::new(msg::NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<msg::ReleaseContainerRequest>,
    ) -> Result<Response<msg::ReleaseContainerResponse>, Status> {
        self.0.release(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(msg::ReleaseContainerResponse {}))
    }

    async fn exec_process(
        &self,
        request: Request<Streaming<msg::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        Ok(Response::new(exec::serve(self.0.clone(), request.into_inner())))
    }

    async fn read_file_container(
        &self,
        request: Request<msg::ReadFileRequest>,
    ) -> Result<Response<msg::ReadFileResponse>, Status> {
        let r = request.into_inner();
        let container = self.0.container_for_files(&r.r#ref, r.mount_index).map_err(status)?;
        let (mount, range) =
            (index(r.mount_index)?, wire::file_range(r.range)?.map(|r| (r.offset, r.length)));
        let path = r.file_path;
        let read = move |root: &Path| files::read(root, files::absolute(&path)?, range);
        let data = container.read(mount, read).await.map_err(status)?;
        Ok(Response::new(msg::ReadFileResponse { data }))
    }

    async fn read_dir_container(
        &self,
        request: Request<msg::ReadDirRequest>,
    ) -> Result<Response<msg::ReadDirResponse>, Status> {
        let r = request.into_inner();
        let container = self.0.container_for_files(&r.r#ref, r.mount_index).map_err(status)?;
        let mount = index(r.mount_index)?;
        let read = move |root: &Path| files::list(root, files::absolute(&r.dir_path)?, &r.include_pattern);
        let entries = container.read(mount, read).await.map_err(status)?;
        Ok(Response::new(msg::ReadDirResponse { entries }))
    }

    async fn stat_file_container(
        &self,
        request: Request<msg::StatFileRequest>,
    ) -> Result<Response<msg::StatFileResponse>, Status> {
        let r = request.into_inner();
        let container = self.0.container_for_files(&r.r#ref, r.mount_index).map_err(status)?;
        let mount = index(r.mount_index)?;
        let read = move |root: &Path| files::stat_within(root, files::absolute(&r.path)?);
        let stat = container.read(mount, read).await.map_err(status)?;
        Ok(Response::new(msg::StatFileResponse { stat: Some(stat) }))
    }
}
