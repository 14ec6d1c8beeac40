//! A small DNS forwarder, for hosts whose resolver listens on a loopback address.
//!
//! It listens on the gateway of the default network and passes questions and answers
//! on unread, by UDP and TCP, for sandboxes only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base::Failure;
use base::task::Scope;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::Error;
use crate::result::Cidr;

const PORT: u16 = 53;

/// How long one resolver is waited for before the next is asked.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long a TCP connection may last.
const CONNECTION: Duration = Duration::from_secs(30);

/// Questions and connections at once; more are dropped, and asked again by their resolvers.
const AT_ONCE: usize = 512;

/// Largest message.
const MESSAGE: usize = 65535;

/// A running forwarder; ends when it is dropped.
pub(crate) struct Forwarder {
    servers: Arc<Mutex<Vec<IpAddr>>>,
    scope: Scope,
}

#[derive(Clone)]
struct Shared {
    servers: Arc<Mutex<Vec<IpAddr>>>,
    subnets: Arc<[Cidr]>,
    slots: Arc<Semaphore>,
    scope: Scope,
    port: u16,
}

impl Forwarder {
    /// Listens on `addresses` for questions from `subnets`.
    pub(crate) async fn start(addresses: &[IpAddr], subnets: &[Cidr], scope: &Scope) -> Result<Self, Error> {
        let bind: Vec<SocketAddr> = addresses.iter().map(|a| SocketAddr::new(*a, PORT)).collect();
        Self::listen(&bind, subnets, PORT, scope).await
    }

    async fn listen(bind: &[SocketAddr], subnets: &[Cidr], port: u16, scope: &Scope) -> Result<Self, Error> {
        let scope = scope.child();
        let shared = Shared {
            servers: Arc::default(),
            subnets: subnets.into(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            scope: scope.clone(),
            port,
        };
        let mut sockets = Vec::new();
        for address in bind {
            let error = |e| Error::file("listen on", address.to_string())(e);
            sockets.push((
                UdpSocket::bind(address).await.map_err(error)?,
                TcpListener::bind(address).await.map_err(error)?,
            ));
        }
        for (udp, tcp) in sockets {
            scope.spawn(until_cancelled(scope.clone(), serve_udp(Arc::new(udp), shared.clone())));
            scope.spawn(until_cancelled(scope.clone(), serve_tcp(tcp, shared.clone())));
        }
        Ok(Self { servers: shared.servers, scope })
    }

    /// Whom it asks.
    pub(crate) fn set_servers(&self, servers: Vec<IpAddr>) {
        *self.servers.lock() = servers;
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.scope.cancel(Failure::canceled("the forwarder is closed"));
    }
}

async fn until_cancelled(scope: Scope, work: impl Future<Output = ()>) {
    tokio::select! {
        _ = scope.cancelled() => {}
        () = work => {}
    }
}

impl Shared {
    fn serves(&self, peer: SocketAddr) -> bool {
        self.subnets.iter().any(|net| net.contains(peer.ip().to_canonical()))
    }

    fn servers(&self) -> Vec<SocketAddr> {
        self.servers.lock().iter().map(|ip| SocketAddr::new(*ip, self.port)).collect()
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Shared) {
    let mut buffer = vec![0; MESSAGE];
    loop {
        let Ok((size, peer)) = socket.recv_from(&mut buffer).await else {
            // An earlier answer could not be delivered; not a reason to spin.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if !shared.serves(peer) {
            continue;
        }
        let Ok(slot) = shared.slots.clone().try_acquire_owned() else { continue };
        let question = buffer.get(..size).unwrap_or_default().to_vec();
        let (socket, servers, scope) = (socket.clone(), shared.servers(), shared.scope.clone());
        shared.scope.spawn(until_cancelled(scope, async move {
            if let Some(answer) = ask(&question, &servers).await {
                _ = socket.send_to(&answer, peer).await;
            }
            drop(slot);
        }));
    }
}

/// The answer of the first resolver that gives one.
async fn ask(question: &[u8], servers: &[SocketAddr]) -> Option<Vec<u8>> {
    let id = question.get(..2)?;
    for server in servers {
        let asked = async {
            let any: IpAddr =
                if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.ok()?;
            // Connected: nobody else's answer arrives.
            socket.connect(server).await.ok()?;
            socket.send(question).await.ok()?;
            let mut answer = vec![0; MESSAGE];
            loop {
                let size = socket.recv(&mut answer).await.ok()?;
                if answer.get(..2) == Some(id) {
                    answer.truncate(size);
                    return Some(answer);
                }
            }
        };
        if let Ok(Some(answer)) = tokio::time::timeout(PATIENCE, asked).await {
            return Some(answer);
        }
    }
    None
}

async fn serve_tcp(listener: TcpListener, shared: Shared) {
    loop {
        let Ok((mut stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if !shared.serves(peer) {
            continue;
        }
        let Ok(slot) = shared.slots.clone().try_acquire_owned() else { continue };
        let (servers, scope) = (shared.servers(), shared.scope.clone());
        shared.scope.spawn(until_cancelled(scope, async move {
            for server in servers {
                if let Ok(Ok(mut upstream)) = tokio::time::timeout(PATIENCE, TcpStream::connect(server)).await
                {
                    let copied = tokio::io::copy_bidirectional(&mut stream, &mut upstream);
                    _ = tokio::time::timeout(CONNECTION, copied).await;
                    break;
                }
            }
            drop(slot);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Answers with the question, in capitals.
    async fn resolver() -> (SocketAddr, Scope) {
        let scope = Scope::root();
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        scope.spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((n, peer)) = udp.recv_from(&mut buffer).await {
                udp.send_to(&buffer[..n].to_ascii_uppercase(), peer).await.unwrap();
            }
        });
        scope.spawn(async move {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut buffer = [0; 512];
            let n = stream.read(&mut buffer).await.unwrap();
            stream.write_all(&buffer[..n].to_ascii_uppercase()).await.unwrap();
        });
        (address, scope)
    }

    #[tokio::test]
    async fn passes_questions_and_answers_on() {
        let (server, _tasks) = resolver().await;
        let scope = Scope::root();
        let ports = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let bind = ports.local_addr().unwrap();
        drop(ports);
        let subnet = "127.0.0.0/8".parse().unwrap();
        let forwarder = Forwarder::listen(&[bind], &[subnet], server.port(), &scope).await.unwrap();
        forwarder.set_servers(vec![server.ip()]);

        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"42question", bind).await.unwrap();
        let mut buffer = [0; 512];
        let n = client.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..n], b"42QUESTION");

        let mut stream = TcpStream::connect(bind).await.unwrap();
        stream.write_all(b"over tcp").await.unwrap();
        let n = stream.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..n], b"OVER TCP");

        let stranger = Shared {
            servers: Arc::default(),
            subnets: Arc::new(["10.0.0.0/8".parse().unwrap()]),
            slots: Arc::new(Semaphore::new(1)),
            scope: scope.clone(),
            port: 53,
        };
        assert!(!stranger.serves(bind));
        drop(forwarder);
        assert!(scope.child().check().is_ok());
    }
}
