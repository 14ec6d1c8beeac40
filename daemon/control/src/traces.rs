//! `TraceService`: clients tell what they did, for the records of their builds.

use build::Traces as Store;
use prost::Message as _;
use proto::opentelemetry::proto::collector::trace::v1 as wire;
use tonic::{Request, Response, Status};

use crate::otlp;

/// The service.
pub(crate) struct Traces(pub(crate) Store);

#[async_trait::async_trait]
impl wire::trace_service_server::TraceService for Traces {
    async fn export(
        &self,
        request: Request<wire::ExportTraceServiceRequest>,
    ) -> Result<Response<wire::ExportTraceServiceResponse>, Status> {
        for bytes in request.into_inner().resource_spans {
            let spans = otlp::ResourceSpans::decode(&*bytes)
                .map_err(|e| Status::invalid_argument(format!("resource spans: {e}")))?;
            self.0.add(otlp::read(spans));
        }
        Ok(Response::new(wire::ExportTraceServiceResponse::default()))
    }
}
