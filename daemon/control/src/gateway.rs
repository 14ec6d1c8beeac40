//! `moby.buildkit.v1.frontend.LLBBridge` on the daemon's own socket: clients
//! that are their own frontend.
//!
//! Each call names its build in the request's metadata and is answered by that
//! build's [`Service`].

use std::sync::Arc;

use base::{Failure, Kind};
use build::{Builder, Service};
use proto::gateway as wire;
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

    async fn find(&self, metadata: &MetadataMap, method: &str) -> Result<Service, Status> {
        let mut ids = metadata.get_all(BUILD_ID).iter();
        let found = match (ids.next().map(|id| id.to_str()), ids.next()) {
            (Some(Ok(id)), None) => self.builder.bridge(id).await,
            _ => Err(Failure::new(Kind::Unknown, "no buildid found in context")),
        };
        found.map(Service::new).map_err(|e| status(e.context(format!("forwarding {method}"))))
    }
}

/// Every call is answered by the build it names.
macro_rules! forward {
    ($($call:ident($method:literal, $request:ty) -> $response:ty;)*) => {
        #[async_trait::async_trait]
        impl wire::llb_bridge_server::LlbBridge for Forwarder {
            type ExecProcessStream = <Service as wire::llb_bridge_server::LlbBridge>::ExecProcessStream;

            $(async fn $call(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                self.find(request.metadata(), $method).await?.$call(request).await
            })*
        }
    };
}

forward! {
    ping("Ping", wire::PingRequest) -> wire::PongResponse;
    inputs("Inputs", wire::InputsRequest) -> wire::InputsResponse;
    resolve_image_config("ResolveImageConfig", wire::ResolveImageConfigRequest) -> wire::ResolveImageConfigResponse;
    resolve_source_meta("ResolveSourceMeta", wire::ResolveSourceMetaRequest) -> wire::ResolveSourceMetaResponse;
    solve("Solve", wire::SolveRequest) -> wire::SolveResponse;
    evaluate("Evaluate", wire::EvaluateRequest) -> wire::EvaluateResponse;
    read_file("ReadFile", wire::ReadFileRequest) -> wire::ReadFileResponse;
    read_dir("ReadDir", wire::ReadDirRequest) -> wire::ReadDirResponse;
    stat_file("StatFile", wire::StatFileRequest) -> wire::StatFileResponse;
    warn("Warn", wire::WarnRequest) -> wire::WarnResponse;
    r#return("Return", wire::ReturnRequest) -> wire::ReturnResponse;
    new_container("NewContainer", wire::NewContainerRequest) -> wire::NewContainerResponse;
    release_container("ReleaseContainer", wire::ReleaseContainerRequest) -> wire::ReleaseContainerResponse;
    exec_process("ExecProcess", Streaming<wire::ExecMessage>) -> Self::ExecProcessStream;
    read_file_container("ReadFileContainer", wire::ReadFileRequest) -> wire::ReadFileResponse;
    read_dir_container("ReadDirContainer", wire::ReadDirRequest) -> wire::ReadDirResponse;
    stat_file_container("StatFileContainer", wire::StatFileRequest) -> wire::StatFileResponse;
}
