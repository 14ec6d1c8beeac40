//! The way out: connections to servers, over which requests are sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use base::task::Scope;
use http::Uri;
use http::uri::Scheme;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Error;

/// How long a server may take until it can be spoken to.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection is kept for the next request.
const IDLE: Duration = Duration::from_secs(30);
/// Connections kept for each server.
const KEPT: usize = 8;

/// Makes connections to the outside, where the step would have made them.
#[async_trait]
pub trait Egress: Send + Sync {
    /// Connects to a name or an address, without brackets.
    ///
    /// # Errors
    /// Why it cannot be reached.
    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream>;
}

/// Sends requests.
pub(crate) type Sender = Client<Connector, Incoming>;

/// For servers reached through `egress`, with connections that end with `scope`.
/// TLS trusts whom the system trusts. Reads its files; blocks.
pub(crate) fn sender(egress: Arc<dyn Egress>, scope: &Scope) -> Result<Sender, Error> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "system certificate authorities");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = Connector { egress, tls: TlsConnector::from(Arc::new(tls)) };
    Ok(Client::builder(Spawner(scope.clone()))
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(KEPT)
        .set_host(false)
        .build(connector))
}

/// Runs what belongs to a connection, as long as its scope does.
#[derive(Clone)]
struct Spawner(Scope);

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
{
    fn execute(&self, work: F) {
        let scope = self.0.clone();
        self.0.spawn(async move {
            let ended = scope.run(async {
                work.await;
                Ok(())
            });
            _ = ended.await;
        });
    }
}

/// Makes connections for the client that sends requests.
#[derive(Clone)]
pub(crate) struct Connector {
    egress: Arc<dyn Egress>,
    tls: TlsConnector,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(PATIENCE, this.connect(&to)).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }
}

impl Connector {
    async fn connect(&self, to: &Uri) -> io::Result<Stream> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        let host = base::gourl::bare_host(to.host().unwrap_or_default());
        if host.is_empty() {
            return Err(invalid(format!("no host in request URL {to}")));
        }
        let secure = match to.scheme() {
            Some(s) if *s == Scheme::HTTPS => true,
            Some(s) if *s == Scheme::HTTP => false,
            other => {
                let scheme = other.map_or("", Scheme::as_str);
                return Err(invalid(format!("unsupported protocol scheme {scheme:?}")));
            }
        };
        let stream =
            self.egress.connect(host, to.port_u16().unwrap_or(if secure { 443 } else { 80 })).await?;
        _ = stream.set_nodelay(true);
        if !secure {
            return Ok(Stream(Box::new(stream)));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|e| invalid(format!("{host}: {e}")))?;
        Ok(Stream(Box::new(self.tls.connect(name, stream).await?)))
    }
}

/// A connection, with TLS or without.
pub(crate) struct Stream(Box<dyn Duplex>);

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
