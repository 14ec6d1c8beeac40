//! `TraceService`: there is no collector behind this daemon, and clients that
//! offer spans are told so.

use proto::opentelemetry::proto::collector::trace::v1 as wire;
use tonic::{Request, Response, Status};

pub(crate) struct Traces;

#[async_trait::async_trait]
impl wire::trace_service_server::TraceService for Traces {
    async fn export(
        &self,
        _: Request<wire::ExportTraceServiceRequest>,
    ) -> Result<Response<wire::ExportTraceServiceResponse>, Status> {
        Err(Status::unavailable("trace collector not configured"))
    }
}
