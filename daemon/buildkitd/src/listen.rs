//! Where clients come in: unix sockets, TCP with or without TLS, and sockets
//! that systemd opened for us.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use base::task::Scope;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Certificates for TCP listeners.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFiles {
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    /// Clients must show a certificate signed by this one.
    pub(crate) ca: Option<PathBuf>,
}

/// Who owns the unix sockets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Owner {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener, Option<TlsAcceptor>),
}

/// An open listener and what it is called.
pub(crate) struct Listener {
    socket: Socket,
    pub(crate) address: String,
}

impl Listener {
    /// Opens `address`: `unix://PATH`, `tcp://HOST:PORT` or `fd://`.
    pub(crate) async fn open(address: &str, owner: Owner, tls: &TlsFiles) -> Result<Self> {
        let Some((scheme, rest)) = address.split_once("://") else {
            bail!("address {address} does not contain proto, you meant unix://{address} ?");
        };
        let socket = match scheme {
            "unix" => Socket::Unix(
                unix(Path::new(rest), owner).await.with_context(|| format!("listen on {address}"))?,
            ),
            "tcp" => {
                let acceptor = acceptor(tls)?;
                if acceptor.is_none() {
                    tracing::warn!(
                        address,
                        "TLS is not configured: anybody who reaches this port is root here"
                    );
                }
                let listener =
                    TcpListener::bind(rest).await.with_context(|| format!("listen on {address}"))?;
                Socket::Tcp(listener, acceptor)
            }
            "fd" if rest.is_empty() => passed_by_systemd(tls)?,
            "fd" => bail!(
                "listen on {address}: only fd:// is supported, for the first socket that systemd passes"
            ),
            _ => bail!("listen on {address}: unknown scheme {scheme:?}; use unix, tcp or fd"),
        };
        Ok(Self { socket, address: address.to_owned() })
    }

    /// Accepts connections in `scope` until it is cancelled. TLS handshakes do
    /// not hold up other clients.
    pub(crate) fn accept(self, scope: &Scope, into: mpsc::Sender<io::Result<Connection>>) {
        let inner = scope.clone();
        scope.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    _ = inner.cancelled() => return,
                    accepted = self.next() => accepted,
                };
                match accepted {
                    Ok((connection, None)) => {
                        if into.send(Ok(connection)).await.is_err() {
                            return;
                        }
                    }
                    Ok((Connection::Tcp(stream), Some(acceptor))) => {
                        let into = into.clone();
                        inner.spawn(async move {
                            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                                Ok(Ok(stream)) => _ = into.send(Ok(Connection::Tls(Box::new(stream)))).await,
                                Ok(Err(error)) => tracing::info!(%error, "TLS handshake"),
                                Err(_) => tracing::info!("TLS handshake timed out"),
                            }
                        });
                    }
                    Ok((_, Some(_))) => {}
                    // Out of descriptors, most likely: do not spin.
                    Err(error) => {
                        tracing::warn!(%error, address = self.address, "accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
    }

    async fn next(&self) -> io::Result<(Connection, Option<TlsAcceptor>)> {
        match &self.socket {
            Socket::Unix(listener) => Ok((Connection::Unix(listener.accept().await?.0), None)),
            Socket::Tcp(listener, tls) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                Ok((Connection::Tcp(stream), tls.clone()))
            }
        }
    }
}

const HANDSHAKE: Duration = Duration::from_secs(20);

async fn unix(path: &Path, owner: Owner) -> Result<UnixListener> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty() && !p.exists()) {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        std::fs::set_permissions(parent, PermissionsExt::from_mode(0o711))?;
    }
    if path.exists() {
        // A socket nobody answers on is left over from a daemon that was killed.
        if UnixStream::connect(path).await.is_ok() {
            bail!("{} is in use: another daemon answers there", path.display());
        }
        std::fs::remove_file(path).with_context(|| format!("remove stale {}", path.display()))?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))?;
    std::os::unix::fs::chown(path, owner.uid, owner.gid)
        .with_context(|| format!("chown {}", path.display()))?;
    Ok(listener)
}

fn acceptor(files: &TlsFiles) -> Result<Option<TlsAcceptor>> {
    let (cert, key) = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) if files.ca.is_none() => return Ok(None),
        _ => bail!("TLS needs a certificate and its key: give --tlscert and --tlskey together"),
    };
    let read = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        let context = || format!("read certificates from {}", path.display());
        let certs: Vec<_> = CertificateDer::pem_file_iter(path)
            .with_context(context)?
            .collect::<Result<_, _>>()
            .with_context(context)?;
        if certs.is_empty() { Err(anyhow!("{} holds no certificate", path.display())) } else { Ok(certs) }
    };
    let chain = read(cert)?;
    let key =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("read key from {}", key.display()))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let config = match &files.ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for cert in read(ca)? {
                roots.add(cert).with_context(|| format!("use CA {}", ca.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            config.with_client_cert_verifier(verifier)
        }
        None => config.with_no_client_auth(),
    };
    let mut config = config.with_single_cert(chain, key).context("use TLS certificate and key")?;
    // Clients that dial TLS themselves negotiate nothing; they are served HTTP/2 all the same.
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

#[allow(unsafe_code)]
fn passed_by_systemd(tls: &TlsFiles) -> Result<Socket> {
    let fd = sd_notify::listen_fds().context("read LISTEN_FDS")?.next().ok_or_else(|| {
        anyhow!("listen on fd://: no socket was passed; is the daemon started by its socket unit?")
    })?;
    // SAFETY: the protocol of socket activation gives this process the descriptor
    // to own, and `listen_fds` gives it once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::ioctl_fionbio(&fd, true)?;
    match rustix::net::sockopt::socket_domain(&fd)? {
        rustix::net::AddressFamily::UNIX => Ok(Socket::Unix(UnixListener::from_std(fd.into())?)),
        _ => Ok(Socket::Tcp(TcpListener::from_std(fd.into())?, acceptor(tls)?)),
    }
}

/// A client's connection.
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Connection::Unix($stream) => $call,
            Connection::Tcp($stream) => $call,
            Connection::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_shutdown(cx))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
}
