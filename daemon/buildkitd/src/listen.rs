//! Where clients come in: unix sockets, TCP with or without TLS, and sockets
//! that systemd opened for us.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use base::task::Scope;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::status::{Because as _, Status, refusal};
use crate::tls::{Acceptor, Guard};

/// Who owns the unix sockets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Owner {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener, Option<Acceptor>),
}

/// An open listener and what it is called.
pub(crate) struct Listener {
    socket: Socket,
    pub(crate) address: String,
    /// The service manager keeps it: connections that are not accepted wait there
    /// for the next daemon.
    pub(crate) kept: bool,
}

impl Listener {
    /// Opens `address`: `unix://PATH`, `tcp://HOST:PORT` or `fd://`.
    pub(crate) async fn open(address: &str, owner: Owner, guard: &Guard) -> Result<Self> {
        let Some((scheme, rest)) = address.split_once("://") else {
            let message = format!("address {address} does not contain proto, you meant unix://{address} ?");
            return Err(refusal(Status::Config, message));
        };
        let socket = match scheme {
            "unix" => Socket::Unix(
                unix(Path::new(rest), owner).await.with_context(|| format!("listen on {address}"))?,
            ),
            "tcp" => {
                let acceptor = guard.acceptor(address).because(Status::Config)?;
                let listener = TcpListener::bind(rest).await;
                Socket::Tcp(listener.map_err(|e| taken(address, &e))?, acceptor)
            }
            "fd" if rest.is_empty() => passed_by_systemd(guard)?,
            "fd" => bail!(
                "listen on {address}: only fd:// is supported, for the first socket that systemd passes"
            ),
            _ => bail!("listen on {address}: unknown scheme {scheme:?}; use unix, tcp or fd"),
        };
        Ok(Self { socket, address: address.to_owned(), kept: scheme == "fd" })
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
                        let (into, doors) = (into.clone(), inner.clone());
                        inner.spawn(async move {
                            let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
                            let outcome = tokio::select! {
                                _ = doors.cancelled() => return,
                                outcome = handshake => outcome,
                            };
                            match outcome {
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
                Ok((Connection::Tcp(stream), tls.as_ref().map(Acceptor::now)))
            }
        }
    }
}

fn taken(address: &str, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            refusal(Status::Busy, format!("listen on {address}: another program listens there"))
        }
        _ => refusal(Status::Config, format!("listen on {address}: {error}")),
    }
}

const HANDSHAKE: Duration = Duration::from_secs(20);

/// What a daemon that was killed held is let go when copies of it that were about to become
/// programs have done so: at most after this long.
pub(crate) const RELEASE: Duration = Duration::from_millis(500);
/// How often is looked.
pub(crate) const RETRY: Duration = Duration::from_millis(20);

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 1024;

async fn unix(path: &Path, owner: Owner) -> Result<UnixListener> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty() && !p.exists()) {
        sys::directory::make(parent, 0o711)?;
    }
    if path.exists() {
        // A socket nobody answers on is left over from a daemon that was killed.
        let deadline = Instant::now() + RELEASE;
        while UnixStream::connect(path).await.is_ok() {
            if Instant::now() >= deadline {
                let message = format!("{} is in use: another daemon answers there", path.display());
                return Err(refusal(Status::Busy, message));
            }
            tokio::time::sleep(RETRY).await;
        }
        std::fs::remove_file(path).with_context(|| format!("remove stale {}", path.display()))?;
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::os::unix::fs::chown(path, owner.uid, owner.gid)
        .with_context(|| format!("chown {}", path.display()))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))?;
    // Only now that it is whose it shall be: until here nobody can connect.
    net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from_std(socket.into())?)
}

#[allow(unsafe_code)]
fn passed_by_systemd(guard: &Guard) -> Result<Socket> {
    let fd = sd_notify::listen_fds().context("read LISTEN_FDS")?.next().ok_or_else(|| {
        anyhow!("listen on fd://: no socket was passed; is the daemon started by its socket unit?")
    })?;
    // SAFETY: the protocol of socket activation gives this process the descriptor
    // to own, and `listen_fds` gives it once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::ioctl_fionbio(&fd, true)?;
    match net::sockopt::socket_domain(&fd)? {
        AddressFamily::UNIX => Ok(Socket::Unix(UnixListener::from_std(fd.into())?)),
        _ => {
            let acceptor = guard.acceptor("fd://").because(Status::Config)?;
            Ok(Socket::Tcp(TcpListener::from_std(fd.into())?, acceptor))
        }
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
