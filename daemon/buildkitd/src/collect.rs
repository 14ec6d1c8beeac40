//! Garbage collection by itself: soon after start and after builds, at most
//! once a minute.

use std::sync::Arc;
use std::time::Duration;

use base::Failure;
use build::Builder;
use refs::PrunePolicy;
use tokio::sync::watch;

const AFTER: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_secs(60);

/// Collects according to `policies`, for as long as the daemon's scope lives.
pub(crate) fn start(builder: &Arc<Builder>, policies: watch::Receiver<Vec<PrunePolicy>>) {
    let builder = builder.clone();
    builder.scope().clone().spawn(async move {
        let mut ended = builder.ended();
        let work = async {
            loop {
                tokio::time::sleep(AFTER).await;
                let now = policies.borrow().clone();
                if let Err(error) = collect(&builder, &now).await {
                    tracing::error!(%error, "collect garbage");
                }
                tokio::time::sleep(EVERY).await;
                if ended.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            _ = builder.scope().cancelled() => {}
            () = work => {}
        }
    });
}

async fn collect(builder: &Builder, policies: &[PrunePolicy]) -> Result<(), Failure> {
    let (mut count, mut bytes) = (0u64, 0u64);
    let refs = &builder.worker().refs;
    refs.prune(policies, |usage| {
        count += 1;
        bytes += usage.size;
        std::future::ready(())
    })
    .await?;
    if count > 0 {
        tracing::info!(count, bytes, "collected garbage");
        builder.forget_pruned()?;
    }
    Ok(())
}
