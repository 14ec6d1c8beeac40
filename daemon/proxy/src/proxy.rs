//! The listener, and the connections of the step.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::Failure;
use base::task::{Scope, blocking};
use http::Request as HttpRequest;
use http::uri::Authority;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::authority;
use crate::relay::{Origin, Relay};
use crate::upstream::sender;
use crate::{Capture, Egress, Error};

/// Connections of a step at once; the next waits until one ends.
const CONNECTIONS: usize = 512;
/// How long the head of a request may take, and a connection be idle.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the head of a request.
const HEAD: usize = 64 << 10;
/// Header lines of a request.
const HEADERS: usize = 256;
/// After an error of the listener, such as too many open files.
const REST: Duration = Duration::from_millis(20);

/// Has a say in what is fetched.
#[async_trait]
pub trait Policy: Send + Sync {
    /// The URL to fetch in place of `url`, which mostly is the same. As the client
    /// wrote it, with credentials made unreadable; of what is in a tunnel with the
    /// port that the client named.
    ///
    /// # Errors
    /// When it must not be fetched.
    async fn check(&self, url: &str) -> Result<String, Failure>;
}

/// On what terms a step may use the network.
#[derive(Clone, Default)]
pub struct Terms {
    /// Asked about every request.
    pub policy: Option<Arc<dyn Policy>>,
    /// Where every request is noted.
    pub capture: Option<Arc<Capture>>,
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms")
            .field("policy", &self.policy.is_some())
            .field("capture", &self.capture)
            .finish()
    }
}

/// A proxy that serves. Dropping it ends it in the background.
pub struct Proxy {
    address: SocketAddr,
    certificate: String,
    scope: Scope,
}

/// What the connections of a step share.
pub(crate) struct Shared {
    authority: authority::Authority,
    relay: Relay,
    scope: Scope,
}

impl Proxy {
    /// Serves whoever connects to `listener`, in tasks of its own below `scope`.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub async fn start(
        listener: TcpListener,
        terms: Terms,
        egress: Arc<dyn Egress>,
        scope: &Scope,
    ) -> Result<Self, Failure> {
        let scope = scope.child();
        let address = listener.local_addr().map_err(Error::from)?;
        let inner = scope.clone();
        let shared = blocking(move || {
            let relay = Relay { terms, sender: sender(egress, &inner)? };
            Ok(Arc::new(Shared { authority: authority::Authority::new()?, relay, scope: inner }))
        })
        .await?;
        let certificate = shared.authority.pem();
        scope.spawn(serve(listener, shared));
        Ok(Self { address, certificate, scope })
    }

    /// The variables by which programs find it.
    pub fn env(&self) -> Vec<String> {
        let proxy = format!("http://{}", self.address);
        let direct = "127.0.0.1,localhost,::1";
        [("HTTP_PROXY", proxy.as_str()), ("HTTPS_PROXY", &proxy), ("NO_PROXY", direct)]
            .into_iter()
            .flat_map(|(name, value)| {
                [format!("{name}={value}"), format!("{}={value}", name.to_ascii_lowercase())]
            })
            .collect()
    }

    /// The certificate programs have to trust, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Ends every connection and waits until nothing is noted any more.
    pub async fn stop(self) {
        self.scope.cancel(Failure::canceled("the step has ended"));
        self.scope.close().await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.scope.cancel(Failure::canceled("the step has ended"));
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let scope = shared.scope.clone();
    let accepting = async {
        while let Ok(slot) = slots.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (shared, slot) = (shared.clone(), Arc::new(slot));
                    let scope = shared.scope.clone();
                    shared.clone().spawn(async move {
                        _ = scope.run(connection(TokioIo::new(stream), Origin::Any, shared, slot)).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accept a connection of a step");
                    tokio::time::sleep(REST).await;
                }
            }
        }
        Ok(())
    };
    _ = scope.run(accepting).await;
}

impl Shared {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.scope.spawn(work));
    }
}

/// Serves one connection, plain or within a tunnel, until it ends.
async fn connection(
    stream: impl Read + Write + Unpin + Send + 'static,
    origin: Origin,
    shared: Arc<Shared>,
    slot: Arc<OwnedSemaphorePermit>,
) -> Result<(), Failure> {
    let origin = Arc::new(origin);
    let service = service_fn(|request: HttpRequest<Incoming>| {
        let (shared, origin, slot) = (shared.clone(), origin.clone(), slot.clone());
        async move {
            let tunnel = match shared.relay.tunnel(&request, &origin) {
                None => return Ok::<_, Infallible>(shared.relay.pass(request, &origin).await),
                Some(Err(refusal)) => return Ok(refusal),
                Some(Ok(tunnel)) => tunnel,
            };
            let open = shared.relay.opened();
            let inner = shared.clone();
            shared.spawn(async move {
                let scope = inner.scope.clone();
                if let Err(error) = scope.run(within(request, tunnel, inner, slot)).await {
                    tracing::debug!(%error, "tunnel of a step");
                }
            });
            Ok(open)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        // Simple clients say that they have no more to ask before they read.
        .half_close(true)
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(stream, service)
        .with_upgrades();
    // Whatever went wrong, the step knows: its connection is closed.
    served.await.map_err(|e| Failure::other(&e))
}

/// Serves what is in a tunnel to a server, as that server. Boxed: a tunnel is a
/// connection again, though never one that opens another.
fn within(
    request: HttpRequest<Incoming>,
    tunnel: Authority,
    shared: Arc<Shared>,
    slot: Arc<OwnedSemaphorePermit>,
) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> {
    Box::pin(async move {
        let host = base::gourl::bare_host(tunnel.host());
        let acceptor = TlsAcceptor::from(shared.authority.server(host)?);
        let handshake = async {
            let upgraded = hyper::upgrade::on(request).await.map_err(|e| Failure::other(&e))?;
            acceptor.accept(TokioIo::new(upgraded)).await.map_err(|e| Failure::other(&e))
        };
        let stream = match tokio::time::timeout(PATIENCE, handshake).await {
            Ok(stream) => stream?,
            Err(_) => return Err(Failure::canceled("no handshake in time")),
        };
        connection(TokioIo::new(stream), Origin::Tunnel(tunnel), shared, slot).await
    })
}
