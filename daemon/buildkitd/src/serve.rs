//! The life of the daemon: opens its doors, serves, and goes in good order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use base::Failure;
use base::task::Scope;
use session::{CONNECTION_WINDOW, STREAM_WINDOW};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::assemble::{self, Daemon};
use crate::flags::Flags;
use crate::listen::Listener;
use crate::log::Log;
use crate::reload::Reload;
use crate::settings::Settings;
use crate::status::{self, Because as _, Status};
use crate::tls::Guard;
use crate::{collect, systemd};

/// Connections that wait to be served.
const BACKLOG: usize = 128;
/// How long the last answers may take when everything else has ended.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where the settings came from, for when they are read again.
pub(crate) struct Origin {
    pub(crate) flags: Flags,
    pub(crate) values: BTreeMap<String, toml::Value>,
    pub(crate) log: Log,
}

/// Runs until a signal ends it.
///
/// # Errors
/// What kept it from starting, or from serving.
pub(crate) async fn run(settings: Settings, origin: Origin) -> Result<()> {
    let mut signals = Signals::new()?;
    let mut hangup = signal(SignalKind::hangup()).context("listen for signals")?;
    let scope = Scope::root();
    // Where clients come in: what the service manager keeps open, and the rest.
    let (kept, doors, manager) = (Scope::root(), Scope::root(), Scope::root());

    // The sockets first: whoever connects while the rest is made just waits.
    let guard = Arc::new(Guard::new(&settings.tls, settings.anybody).because(Status::Config)?);
    let (into, connections) = mpsc::channel(BACKLOG);
    let mut listeners = Vec::new();
    for address in &settings.addresses {
        listeners.push(Listener::open(address, settings.owner, &guard).await?);
    }
    let daemon = assemble::daemon(&settings, &scope).await?;
    let Daemon { builder, sessions, policies, registries, disk, network, lock } = daemon;
    if settings.collect {
        collect::start(&builder, policies.subscribe());
    }
    let deps = control::Deps { builder: builder.clone(), sessions, policies: policies.subscribe() };
    let routes = control::routes(deps).await;
    for listener in listeners {
        tracing::info!(address = listener.address, "listening");
        let scope = if listener.kept { &kept } else { &doors };
        listener.accept(scope, into.clone());
    }
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes)
        // It ends when the doors are closed and everybody who came in has been served.
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), std::future::pending());
    let mut server = tokio::spawn(server);
    let Origin { flags, values, log } = origin;
    let mut reload = Reload { flags, values, log, guard, registries, policies, disk };
    systemd::ready(&builder);
    systemd::keep_telling(&builder, &manager);

    let name = loop {
        tokio::select! {
            ended = &mut server => {
                ended.context("serve")?.context("serve")?;
                return Err(anyhow!("the server ended by itself"));
            }
            name = signals.next() => break name,
            _ = hangup.recv() => {
                systemd::reloading();
                match reload.run() {
                    Ok(()) => tracing::info!("configuration reloaded"),
                    Err(error) => tracing::error!(
                        error = status::one_line(&error),
                        "the configuration cannot be used; the one before it stays"
                    ),
                }
                systemd::ready(&builder);
            }
        }
    };
    tracing::info!(signal = name, builds = builder.running(), "stopping");
    let limit = settings.grace.saturating_add(Duration::from_secs(8));
    systemd::stopping(&builder, limit);
    crate::watchdog(limit);
    builder.drain();
    // Who comes now is served by the next daemon; elsewhere he is told to try again.
    kept.cancel(stopping());
    tokio::select! {
        () = builder.idle() => {}
        () = tokio::time::sleep(settings.grace) => tracing::warn!(builds = builder.running(), "builds are still running; giving them up"),
        name = signals.next() => tracing::info!(signal = name, "giving up running builds"),
    }
    doors.cancel(stopping());
    // Only now: whoever is told goodbye makes no more requests, and the clients of builds
    // have to until the end.
    drop(into);
    kept.close().await;
    doors.close().await;
    scope.cancel(stopping());
    scope.close().await;
    builder.worker().executor.idle().await;
    network.close().await;
    if tokio::time::timeout(FAREWELL, &mut server).await.is_err() {
        server.abort();
    }
    manager.cancel(stopping());
    manager.close().await;
    drop(lock);
    tracing::info!("stopped");
    Ok(())
}

fn stopping() -> Failure {
    Failure::canceled("the daemon is shutting down")
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
