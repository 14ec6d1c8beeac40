//! `moby.buildkit.v1.Control`.

use std::sync::Arc;
use std::time::Duration;

use base::filter::Filters;
use base::{Failure, Kind, Timestamp};
use build::Builder;
use build::traces::SpanContext;
use futures_util::stream::{BoxStream, StreamExt as _};
use proto::control as wire;
use proto::control::control_server::Control as Service;
use refs::PrunePolicy;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{Deps, history, progress, status, wire as convert};

/// The service.
pub struct Control {
    deps: Deps,
}

/// A client reads what was removed within this time, or is not told of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says which span of the client a call is part of.
const TRACE_PARENT: &str = "traceparent";

/// Tells clients what time it is here, so that they can compare.
const CLOCK: &str = "buildkit-current-timestamp";

impl Control {
    /// The service over `deps`.
    pub(crate) fn new(deps: Deps) -> Self {
        Self { deps }
    }

    fn builder(&self) -> &Arc<Builder> {
        &self.deps.builder
    }

    async fn worker_record(&self) -> Result<wire::types::WorkerRecord, Failure> {
        let builder = self.builder();
        let devices = builder.worker().devices.clone();
        let devices = base::task::blocking(move || Ok(devices.list())).await?;
        Ok(wire::types::WorkerRecord {
            id: builder.info().id.clone(),
            labels: builder.info().labels.clone(),
            platforms: builder.worker().platforms.iter().map(build::platform_to_wire).collect(),
            gc_policy: self.deps.policies.borrow().iter().map(convert::policy).collect(),
            buildkit_version: Some(convert::version()),
            cdi_devices: devices
                .into_iter()
                .map(|device| wire::types::CdiDevice {
                    name: device.name,
                    auto_allow: device.auto_allow,
                    annotations: device.annotations,
                    on_demand: false,
                })
                .collect(),
        })
    }
}

fn with_clock<T>(mut response: Response<T>) -> Response<T> {
    if let Ok(now) = Timestamp::now().to_string().parse() {
        response.metadata_mut().insert(CLOCK, now);
    }
    response
}

/// A future that cancels the build when nobody waits for its answer any more.
struct Waiting(base::task::Scope);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.cancel(Failure::canceled("context canceled"));
    }
}

#[async_trait::async_trait]
impl Service for Control {
    type SessionStream = session::Attached;
    type StatusStream = BoxStream<'static, Result<wire::StatusResponse, Status>>;
    type PruneStream = BoxStream<'static, Result<wire::UsageRecord, Status>>;
    type ListenBuildHistoryStream = BoxStream<'static, Result<wire::BuildHistoryEvent, Status>>;

    async fn info(&self, _: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        Ok(Response::new(wire::InfoResponse { buildkit_version: Some(convert::version()) }))
    }

    async fn list_workers(
        &self,
        request: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        let record = self.worker_record().await.map_err(status)?;
        let filters = Filters::parse(&request.into_inner().filter).map_err(status)?;
        let wanted = filters.matches(|path| match path {
            ["id"] => Some(record.id.clone()),
            ["labels", name @ ..] => record.labels.get(&name.join(".")).cloned(),
            _ => None,
        });
        let record = if wanted { vec![record] } else { Vec::new() };
        Ok(Response::new(wire::ListWorkersResponse { record }))
    }

    async fn session(
        &self,
        request: Request<Streaming<wire::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (metadata, _, incoming) = request.into_parts();
        Ok(Response::new(self.deps.sessions.attach(&metadata, incoming).await.map_err(status)?))
    }

    async fn solve(
        &self,
        request: Request<wire::SolveRequest>,
    ) -> Result<Response<wire::SolveResponse>, Status> {
        let parent = request.metadata().get(TRACE_PARENT).and_then(|value| value.to_str().ok());
        let parent = parent.and_then(SpanContext::parse);
        let request = convert::request(request.into_inner()).map_err(status)?;
        let request = build::Request { parent, ..request };
        let (builder, id) = (self.builder().clone(), request.id.clone());
        let scope = builder.scope().child();
        let waiting = Waiting(scope.clone());
        // The build is the builder's: it cleans up even when this call is dropped.
        let task = builder.scope().clone().spawn(async move { builder.build(request, &scope).await });
        let outcome = task.await.unwrap_or_else(|_| Err(Failure::internal("the build panicked")));
        drop(waiting);
        match outcome {
            Ok(response) => Ok(Response::new(wire::SolveResponse { exporter_response: response })),
            Err(failure) => {
                tracing::debug!(error = %failure, id, "build failed");
                Err(status(failure))
            }
        }
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        let id = request.into_inner().r#ref;
        if let Some(replay) = history::replay(self.builder(), &id).await.map_err(status)? {
            return Ok(with_clock(Response::new(replay)));
        }
        let follower = self.builder().progress(&id).await.map_err(status)?;
        let batches = futures_util::stream::unfold(follower, |mut follower| async move {
            let events = follower.next().await?;
            let messages = progress::to_wire(events).into_iter().map(Ok).collect::<Vec<_>>();
            Some((futures_util::stream::iter(messages), follower))
        });
        Ok(with_clock(Response::new(batches.flatten().boxed())))
    }

    async fn disk_usage(
        &self,
        request: Request<wire::DiskUsageRequest>,
    ) -> Result<Response<wire::DiskUsageResponse>, Status> {
        let request = request.into_inner();
        let age = u64::try_from(request.age_limit).ok().filter(|n| *n > 0).map(Duration::from_nanos);
        let records = self.builder().worker().refs.usage(&request.filter, age).await.map_err(status)?;
        let record = records.into_iter().map(convert::usage).collect();
        Ok(Response::new(wire::DiskUsageResponse { record }))
    }

    async fn prune(
        &self,
        request: Request<wire::PruneRequest>,
    ) -> Result<Response<Self::PruneStream>, Status> {
        let r = request.into_inner();
        let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
        let policy = PrunePolicy {
            all: r.all,
            filters: r.filter,
            keep_duration: u64::try_from(r.keep_duration).ok().filter(|n| *n > 0).map(Duration::from_nanos),
            reserved: bytes(r.reserved_space),
            max_used: bytes(r.max_used_space),
            min_free: bytes(r.min_free_space),
        };
        let builder = self.builder().clone();
        let (tx, rx) = mpsc::channel(64);
        builder.scope().clone().spawn(async move {
            // A client that stopped reading must not hold up the removal for others.
            let told = |usage| {
                let tx = tx.clone();
                async move { _ = tx.send_timeout(Ok(convert::usage(usage)), PATIENCE).await }
            };
            let prune = async { builder.worker().refs.prune(&[policy], told).await };
            if let Err(failure) = prune.await.and_then(|()| builder.forget_pruned()) {
                _ = tx.send(Err(status(failure))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(rx).boxed()))
    }

    async fn listen_build_history(
        &self,
        request: Request<wire::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let events = history::listen(self.builder().clone(), request.into_inner()).await.map_err(status)?;
        Ok(with_clock(Response::new(events)))
    }

    async fn update_build_history(
        &self,
        request: Request<wire::UpdateBuildHistoryRequest>,
    ) -> Result<Response<wire::UpdateBuildHistoryResponse>, Status> {
        let r = request.into_inner();
        let history = self.builder().history();
        if r.delete || r.finalize {
            history.finalize(&r.r#ref).await;
        }
        let done = match (r.delete, r.finalize) {
            (true, _) => history.delete(&r.r#ref).await,
            (false, true) => Ok(()),
            (false, false) => history.pin(&r.r#ref, r.pinned).await,
        };
        match done {
            Err(e) if e.kind() == Kind::NotFound && r.delete => {}
            other => other.map_err(status)?,
        }
        Ok(Response::new(wire::UpdateBuildHistoryResponse {}))
    }
}
