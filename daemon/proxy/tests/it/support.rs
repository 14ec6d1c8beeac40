//! A server that answers by path and keeps what it was asked, and a proxy in front
//! of which every name leads there.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base::Failure;
use base::task::Scope;
use proxy::{Capture, Egress, Policy, Proxy, Terms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// What a server was asked: head and body of each request.
pub(crate) type Asked = Arc<Mutex<Vec<String>>>;

pub(crate) struct Bench {
    pub(crate) proxy: Proxy,
    pub(crate) capture: Arc<Capture>,
    pub(crate) asked: Asked,
    pub(crate) address: SocketAddr,
    _scope: Scope,
}

/// Every name is the server; port 1 is nobody.
struct There(SocketAddr);

#[async_trait]
impl Egress for There {
    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        match port {
            1 => Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody at {host}"))),
            _ => TcpStream::connect(self.0).await,
        }
    }
}

/// Denies what contains `denied`, and puts one thing in the place of another.
pub(crate) struct Rules;

#[async_trait]
impl Policy for Rules {
    async fn check(&self, url: &str) -> Result<String, Failure> {
        if url.contains("denied") {
            return Err(Failure::invalid("denied"));
        }
        Ok(match url {
            "https://secure.test:443/text" => "http://plain.test/text".to_owned(),
            "http://other.test/text" => "ftp://other.test/text".to_owned(),
            url => url.replace("/moved", "/text"),
        })
    }
}

async fn server(asked: Asked) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, asked.clone()));
        }
    });
    address
}

async fn serve(stream: TcpStream, asked: Asked) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let head = head(&mut stream).await?;
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        asked.lock().unwrap().push(format!("{head}{}", String::from_utf8_lossy(&body)));
        let ok = "HTTP/1.1 200 OK\r\n";
        let answer = match path.as_str() {
            "/text" => format!("{ok}Content-Length: 4\r\nX-There: 1\r\nConnection: X-There\r\n\r\ntext"),
            "/chunks" => format!("{ok}Transfer-Encoding: chunked\r\n\r\n2\r\nte\r\n2\r\nxt\r\n0\r\n\r\n"),
            "/from" => "HTTP/1.1 302 Found\r\nLocation: /text\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "/cut" => format!("{ok}Content-Length: 10\r\n\r\ncut"),
            "/upgrade" => {
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_owned()
            }
            "/endless" => format!("{ok}Content-Length: 1000000000\r\n\r\n"),
            _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes()).await?;
        if path == "/cut" {
            return Ok(());
        }
        if path == "/endless" {
            loop {
                stream.write_all(&[b'x'; 4096]).await?;
            }
        }
    }
}

/// Up to the empty line, with it.
pub(crate) async fn head(stream: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

impl Bench {
    pub(crate) async fn new(policy: Option<Arc<dyn Policy>>) -> Self {
        let asked = Asked::default();
        let egress = Arc::new(There(server(asked.clone()).await));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let capture = Arc::new(Capture::default());
        let (scope, terms) = (Scope::root(), Terms { policy, capture: Some(capture.clone()) });
        let proxy = Proxy::start(listener, terms, egress, &scope).await.unwrap();
        Self { proxy, capture, asked, address, _scope: scope }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// What comes back for `request` until the connection ends.
    pub(crate) async fn send(&self, request: &str) -> String {
        finish(self.connect().await, request).await
    }

    /// A plain request with these header lines and body.
    pub(crate) async fn ask(&self, method: &str, url: &str, more: &str) -> String {
        let more = if more.contains("\r\n\r\n") { more.to_owned() } else { format!("{more}\r\n") };
        self.send(&format!("{method} {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}")).await
    }

    /// A connection through a tunnel to `server`, whose certificate is checked for `name`.
    pub(crate) async fn tunnel(
        &self,
        server: &str,
        name: &str,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut stream = self.connect().await;
        stream.write_all(format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\n").as_bytes()).await?;
        let mut said = Vec::new();
        while !said.ends_with(b"\r\n\r\n") {
            said.push(stream.read_u8().await?);
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.starts_with("HTTP/1.1 200 Connection Established\r\n"), "{said}");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.proxy.certificate().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.capture.requests().iter().map(|r| format!("{} {} {}", r.method, r.url, r.status)).collect()
    }

    pub(crate) fn reasons(&self) -> Vec<&'static str> {
        self.capture.incomplete().iter().map(|i| i.reason).collect()
    }
}

/// Sends and reads to the end, which may come without a goodbye.
pub(crate) async fn finish(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    _ = stream.read_to_end(&mut said).await;
    String::from_utf8_lossy(&said).into_owned()
}
