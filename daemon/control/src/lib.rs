//! The gRPC services: from the wire to builds and back.
//!
//! * [`control`] is `moby.buildkit.v1.Control`: builds, progress, disk usage,
//!   history, sessions.
//! * [`gateway`] is `moby.buildkit.v1.frontend.LLBBridge`, for clients that are
//!   their own frontend.
//! * [`content`] serves blobs for reading.
//! * health, reflection and traces are what clients expect beside them; a [`Collector`] of
//!   traces is told what happens.
//!
//! Nothing here decides anything: requests are checked for shape, handed to
//! [`build::Builder`], and errors become statuses with typed details.

mod collector;
mod content;
mod control;
mod gateway;
mod history;
mod history_filter;
mod otlp;
pub mod progress;
mod reflection;
mod traces;
mod wire;

use std::sync::Arc;

use base::Failure;
use build::Builder;
use proto::containerd::services::content::v1::content_server::ContentServer;
use proto::moby::buildkit::v1::control_server::ControlServer;
use proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
use proto::opentelemetry::proto::collector::trace::v1::trace_service_server::TraceServiceServer;
use refs::PrunePolicy;
use session::{MAX_MESSAGE, Sessions};
use tokio::sync::watch;
use tonic::service::{Routes, RoutesBuilder};

pub use collector::Collector;
pub use control::Control;
pub use history::encode as encode_progress;

/// What the services need.
pub struct Deps {
    /// Runs builds.
    pub builder: Arc<Builder>,
    /// Clients that are connected.
    pub sessions: Sessions,
    /// What is collected when nobody asks; shown to clients.
    pub policies: watch::Receiver<Vec<PrunePolicy>>,
}

/// All services, ready to be served.
pub async fn routes(deps: Deps) -> Routes {
    let builder = deps.builder.clone();
    let mut routes = RoutesBuilder::default();
    macro_rules! add {
        ($service:expr) => {
            routes.add_service(
                $service.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE),
            )
        };
    }
    add!(ContentServer::new(content::Content::new(builder.worker().refs.store().clone())));
    let traces = traces::Traces(builder.traces().clone());
    add!(LlbBridgeServer::new(gateway::Forwarder::new(builder)));
    add!(ControlServer::new(Control::new(deps)));
    add!(TraceServiceServer::new(traces));
    let (health, service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    routes.add_service(service);
    reflection::add(&mut routes);
    routes.routes()
}

/// A failure as the answer of a call.
fn status(failure: impl Into<Failure>) -> tonic::Status {
    session::status::to_status(&failure.into())
}
