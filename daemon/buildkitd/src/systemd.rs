//! What the service manager is told: ready, reloading, stopping, how it goes,
//! and that we are still alive. Without one, nothing is told.

use std::sync::Arc;
use std::time::Duration;

use base::task::Scope;
use build::Builder;
use sd_notify::NotifyState;

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "notify systemd");
    }
}

fn say(state: NotifyState<'_>, builder: &Builder) {
    let status = match builder.running() {
        1 => "1 build runs".to_owned(),
        n => format!("{n} builds run"),
    };
    notify(&[state, NotifyState::Status(&status)]);
}

/// Clients are served.
pub(crate) fn ready(builder: &Builder) {
    say(NotifyState::Ready, builder);
}

/// The configuration is read again; [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "read the clock"),
    }
}

/// The daemon stops, and may take `limit` for it.
pub(crate) fn stopping(builder: &Builder, limit: Duration) {
    say(NotifyState::Stopping, builder);
    let limit = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::ExtendTimeoutUsec(limit)]);
}

/// Tells how many builds run, and that the daemon lives: that its tasks get their
/// turn, which a daemon that hangs cannot say. Until `scope` is cancelled.
pub(crate) fn keep_telling(builder: &Arc<Builder>, scope: &Scope) {
    // The first beat came with the start; three of four may be lost.
    let beat = sd_notify::watchdog_enabled().map(|limit| limit / 4);
    let (builder, inner) = (builder.clone(), scope.clone());
    scope.spawn(async move {
        let (mut begun, mut ended) = (builder.begun(), builder.ended());
        loop {
            let next = async {
                match beat {
                    Some(beat) => tokio::time::sleep(beat).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = inner.cancelled() => return,
                () = next => notify(&[NotifyState::Watchdog]),
                Ok(()) = begun.changed() => say(NotifyState::Watchdog, &builder),
                Ok(()) = ended.changed() => say(NotifyState::Watchdog, &builder),
            }
        }
    });
}
