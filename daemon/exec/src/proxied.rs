//! The network of a process that may speak to a proxy only.
//!
//! The process is in a namespace that is connected to nothing; the proxy listens
//! in there, on a socket that this daemon has opened inside. What the proxy
//! fetches it fetches from the network that the process would have had. What does
//! not ask the proxy has nowhere to go.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::Failure;
use base::task::{Scope, blocking};
use cni::dns::ResolvConf;
use proxy::{Egress, Proxy, Terms};
use sys::netns::NetNs;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::network::HOST_RESOLV_CONF;
use crate::{Attachment, Namespace, Network};

/// Where the proxy listens. Each namespace has it to itself. Not on the usual loopback
/// addresses, which programs take for a sign that there is no network, or for their own.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);

/// How long an address of a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Addresses of a server that are tried.
const TRIES: usize = 8;

/// The network of a process that may speak to a proxy only.
pub(crate) struct Proxied {
    enclosed: Box<dyn Namespace>,
    egress: Box<dyn Namespace>,
    proxy: Proxy,
}

impl Proxied {
    /// A proxy out of `egress`, with a namespace of `network` around the process.
    pub(crate) async fn open(
        network: &dyn Network,
        egress: Box<dyn Namespace>,
        terms: Terms,
        scope: &Scope,
    ) -> Result<Self, Failure> {
        let enclosed = network.enclosed(ADDRESS).await?;
        let (inside, outside) = (enclosed.attachment(), egress.attachment());
        let (listener, way) = blocking(move || {
            let Attachment::Path(path) = inside else {
                return Err(Failure::internal("the namespace of a proxied process has no name"));
            };
            Ok((listen(&path)?, Way::new(outside)?))
        })
        .await?;
        let failed = |e: io::Error| Failure::from(sys::Error::new("listen", ADDRESS.to_string(), e));
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let proxy = Proxy::start(listener, terms, Arc::new(way), scope).await?;
        Ok(Self { enclosed, egress, proxy })
    }
}

/// A listener in the namespace bound to `path`.
fn listen(path: &Path) -> sys::Result<StdListener> {
    let failed = |e: io::Error| sys::Error::new("listen", ADDRESS.to_string(), e);
    let open = || -> io::Result<StdListener> {
        let listener = StdListener::bind((ADDRESS, 0))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    NetNs::open(path)?.run(open)?.map_err(failed)
}

#[async_trait]
impl Namespace for Proxied {
    fn attachment(&self) -> Attachment {
        self.enclosed.attachment()
    }

    fn resolv_conf(&self) -> ResolvConf {
        self.egress.resolv_conf()
    }

    fn env(&self) -> Vec<String> {
        self.proxy.env()
    }

    fn authority(&self) -> Option<&str> {
        Some(self.proxy.certificate())
    }

    async fn release(self: Box<Self>) -> Result<(), Failure> {
        let Self { enclosed, egress, proxy } = *self;
        proxy.stop().await;
        let inner = enclosed.release().await;
        egress.release().await.and(inner)
    }
}

/// The way from the proxy to servers.
enum Way {
    /// The daemon's own network.
    Host,
    /// Out of a namespace.
    From {
        namespace: Arc<NetNs>,
        /// Names are looked up by the daemon: its resolvers are on loopback addresses, which
        /// mean something else in the namespace.
        names_outside: bool,
    },
    Nowhere,
}

impl Way {
    /// Reads files; blocks.
    fn new(attachment: Attachment) -> sys::Result<Self> {
        Ok(match attachment {
            Attachment::Host => Self::Host,
            Attachment::Isolated => Self::Nowhere,
            Attachment::Path(path) => Self::From {
                namespace: Arc::new(NetNs::open(&path)?),
                names_outside: ResolvConf::load(Path::new(HOST_RESOLV_CONF)).is_loopback_only(),
            },
        })
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let wanted = (host.to_owned(), port);
        match self {
            Self::From { namespace, names_outside: false } => {
                let namespace = namespace.clone();
                let look = move || namespace.run(|| look_up(&wanted)).map_err(|e| e.source)?;
                tokio::task::spawn_blocking(look).await?
            }
            _ => tokio::task::spawn_blocking(move || look_up(&wanted)).await?,
        }
    }

    /// A socket that will connect to `to`.
    async fn socket(&self, to: SocketAddr) -> io::Result<TcpSocket> {
        let open = move || if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        match self {
            Self::Host => open(),
            Self::From { namespace, .. } => {
                let namespace = namespace.clone();
                tokio::task::spawn_blocking(move || namespace.run(open).map_err(|e| e.source)?).await?
            }
            Self::Nowhere => Err(io::ErrorKind::NetworkUnreachable.into()),
        }
    }
}

fn look_up(wanted: &(String, u16)) -> io::Result<Vec<SocketAddr>> {
    let failed = |e| io::Error::other(format!("look up {}: {e}", wanted.0));
    Ok((wanted.0.as_str(), wanted.1).to_socket_addrs().map_err(failed)?.take(TRIES).collect())
}

#[async_trait]
impl Egress for Way {
    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        if matches!(self, Self::Nowhere) {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let mut last = io::Error::other(format!("look up {host}: no addresses"));
        for address in self.resolve(host, port).await? {
            let connect = async { self.socket(address).await?.connect(address).await };
            last = match tokio::time::timeout(PATIENCE, connect).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(e)) => io::Error::new(e.kind(), format!("connect to {address}: {e}")),
                Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("connect to {address}: timed out")),
            };
        }
        Err(last)
    }
}
