//! The life of the daemon: opens its doors, serves, and goes in good order.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use base::Failure;
use base::task::Scope;
use sd_notify::NotifyState;
use session::{CONNECTION_WINDOW, STREAM_WINDOW};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::assemble::{self, Daemon};
use crate::collect;
use crate::listen::Listener;
use crate::settings::{GRACE, Settings};

/// Connections that wait to be served.
const BACKLOG: usize = 128;
/// How long the last answers may take when everything else has ended.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs until a signal ends it.
///
/// # Errors
/// What kept it from starting, or from serving.
pub(crate) async fn run(settings: Settings) -> Result<()> {
    let mut signals = Signals::new()?;
    let scope = Scope::root();
    let doors = Scope::root();

    // The sockets first: whoever connects while the rest is made just waits.
    let (into, connections) = mpsc::channel(BACKLOG);
    let mut listeners = Vec::new();
    for address in &settings.addresses {
        listeners.push(Listener::open(address, settings.owner, &settings.tls).await?);
    }
    let daemon = assemble::daemon(&settings, &scope).await?;
    let Daemon { builder, sessions, policies, network, lock } = daemon;
    if settings.collect {
        collect::start(&builder, policies.clone());
    }
    let deps = control::Deps { builder: builder.clone(), sessions, policies };
    let routes = control::routes(deps).await.map_err(|e| anyhow!("{e}"))?;
    for listener in listeners {
        tracing::info!(address = listener.address, "listening");
        listener.accept(&doors, into.clone());
    }
    drop(into);
    let closing = scope.child();
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move {
            closing.cancelled().await;
        });
    let mut server = tokio::spawn(server);
    notify(&[NotifyState::Ready]);

    tokio::select! {
        ended = &mut server => {
            ended.context("serve")?.context("serve")?;
            return Err(anyhow!("the server ended by itself"));
        }
        name = signals.next() => tracing::info!(signal = name, builds = builder.running(), "stopping"),
    }
    notify(&[NotifyState::Stopping]);
    crate::watchdog(GRACE + Duration::from_secs(8));
    builder.drain();
    tokio::select! {
        () = builder.idle() => {}
        () = tokio::time::sleep(GRACE) => tracing::warn!(builds = builder.running(), "builds are still running; giving them up"),
        name = signals.next() => tracing::info!(signal = name, "giving up running builds"),
    }
    doors.cancel(Failure::canceled("the daemon is shutting down"));
    scope.cancel(Failure::canceled("the daemon is shutting down"));
    doors.close().await;
    scope.close().await;
    network.close().await;
    if tokio::time::timeout(FAREWELL, &mut server).await.is_err() {
        server.abort();
    }
    drop(lock);
    tracing::info!("stopped");
    Ok(())
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "notify systemd");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let open = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: open(SignalKind::terminate())?, interrupt: open(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
