//! The way to a daemon: a socket, TCP with or without TLS, or a program that
//! leads there.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base::{Failure, Kind, gotext};
use proto::content::content_client::ContentClient;
use proto::control::control_client::ControlClient;
use proto::gateway::llb_bridge_client::LlbBridgeClient;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use session::{MAX_MESSAGE, Patient};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use url::Url;

use crate::cli::Global;

/// A connection to a daemon.
pub(crate) struct Connection {
    channel: Patient,
}

/// Something bytes go both ways through.
trait Line: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Line for T {}

#[derive(Clone)]
enum Target {
    Unix(String),
    Tcp { address: String, tls: Option<(TlsConnector, ServerName<'static>)> },
    Program(Vec<String>),
}

impl Connection {
    /// Connects as the flags say.
    ///
    /// # Errors
    /// When the address or the certificates make no sense, or nobody answers in time.
    pub(crate) async fn open(global: &Global) -> Result<Self, Failure> {
        let (target, authority) = target(global)?;
        let limit = if global.timeout == 0 { Duration::MAX } else { Duration::from_secs(global.timeout) };
        let attempt = async {
            loop {
                match dial_channel(target.clone(), &authority).await {
                    Err(_) if global.wait => tokio::time::sleep(Duration::from_secs(1)).await,
                    result => return result,
                }
            }
        };
        let failed = |kind, why: &str| {
            Failure::new(kind, format!("connect to {}: {why}", global.addr))
                .hinted("is buildkitd running, and may you use its socket? See --addr and BUILDKIT_HOST.")
        };
        match tokio::time::timeout(limit, attempt).await {
            Ok(Ok(channel)) => Ok(Self { channel: channel.into() }),
            Ok(Err(e)) => Err(failed(Kind::Unavailable, &chain(&e))),
            Err(_) => Err(failed(Kind::DeadlineExceeded, "timed out")),
        }
    }

    /// The channel itself.
    pub(crate) fn channel(&self) -> Patient {
        self.channel.clone()
    }

    /// The control API.
    pub(crate) fn control(&self) -> ControlClient<Patient> {
        ControlClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// The gateway API.
    pub(crate) fn gateway(&self) -> LlbBridgeClient<Patient> {
        LlbBridgeClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// The daemon's content store.
    pub(crate) fn content(&self) -> ContentClient<Patient> {
        ContentClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// The last and most telling words of an error.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

async fn dial_channel(target: Target, authority: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
    let connector = tower::service_fn(move |_: http::Uri| {
        let target = target.clone();
        async move { dial(&target).await.map(hyper_util::rt::TokioIo::new) }
    });
    session::tunnel::endpoint(endpoint).connect_with_connector(connector).await
}

async fn dial(target: &Target) -> io::Result<Box<dyn Line>> {
    match target {
        Target::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Target::Tcp { address, tls } => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            match tls {
                None => Ok(Box::new(stream)),
                Some((tls, name)) => Ok(Box::new(tls.connect(name.clone(), stream).await?)),
            }
        }
        Target::Program(words) => Ok(Box::new(Program::start(words)?)),
    }
}

/// Where the flags lead, and what the daemon is called there.
fn target(global: &Global) -> Result<(Target, String), Failure> {
    let address = global.addr.as_str();
    let url = Url::parse(address).map_err(|e| Failure::invalid(format!("invalid address {address}: {e}")))?;
    let (ca, cert, key) = tls_files(global)?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let query = |key: &str| url.query_pairs().find(|(k, _)| k == key).map(|(_, v)| v.into_owned());
    let name = || match host.as_str() {
        "" => Err(Failure::invalid("url lacks container name")),
        host => Ok(host.to_owned()),
    };
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let local = "localhost".to_owned();
    match url.scheme() {
        "unix" => Ok((Target::Unix(format!("{host}{}", url.path())), local)),
        "tcp" => {
            let port =
                url.port().ok_or_else(|| Failure::invalid(format!("address {address} has no port")))?;
            let at = format!("{host}:{port}");
            if ca.is_empty() && cert.is_empty() && key.is_empty() {
                return Ok((Target::Tcp { address: at.clone(), tls: None }, at));
            }
            let server = if global.tlsservername.is_empty() { &host } else { &global.tlsservername };
            let name = ServerName::try_from(server.trim_matches(['[', ']']).to_owned())
                .map_err(|_| Failure::invalid(format!("invalid server name {server}")))?;
            let tls = Some((tls(&ca, &cert, &key)?, name));
            Ok((Target::Tcp { address: at, tls }, server.clone()))
        }
        "docker-container" => {
            let mut command = words(&["docker"]);
            command.extend(query("context").map(|c| format!("--context={c}")));
            command.extend(words(&["exec", "-i", &name()?, "buildctl", "dial-stdio"]));
            Ok((Target::Program(command), local))
        }
        "podman-container" => {
            Ok((Target::Program(words(&["podman", "exec", "-i", &name()?, "buildctl", "dial-stdio"])), local))
        }
        "nerdctl-container" => {
            let mut command = words(&["nerdctl", "exec"]);
            command.extend(query("namespace").into_iter().flat_map(|n| ["--namespace".to_owned(), n]));
            command.extend(words(&["-i", &name()?, "buildctl", "dial-stdio"]));
            Ok((Target::Program(command), local))
        }
        "kube-pod" => Ok((Target::Program(kubectl(&host, &query)?), local)),
        "ssh" => Ok((Target::Program(ssh(&url, &host)?), local)),
        other => {
            Err(Failure::invalid(format!("unknown scheme {} in address {address}", gotext::quote(other))))
        }
    }
}

fn kubectl(pod: &str, query: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>, Failure> {
    let good =
        |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c));
    let get = |key: &str| query(key).unwrap_or_default();
    let (context, namespace, container) = (get("context"), get("namespace"), get("container"));
    if pod.is_empty() {
        return Err(Failure::invalid("url lacks pod name"));
    }
    for (what, name) in [("namespace", namespace.as_str()), ("pod", pod), ("container", &container)] {
        if !good(name) {
            return Err(Failure::invalid(format!("unsupported {what} name: {}", gotext::quote(name))));
        }
    }
    Ok(vec![
        "kubectl".into(),
        format!("--context={context}"),
        format!("--namespace={namespace}"),
        "exec".into(),
        format!("--container={container}"),
        "-i".into(),
        pod.into(),
        "--".into(),
        "buildctl".into(),
        "dial-stdio".into(),
    ])
}

fn ssh(url: &Url, host: &str) -> Result<Vec<String>, Failure> {
    if url.password().is_some() {
        return Err(Failure::invalid("plain-text password is not supported"));
    }
    if host.is_empty() {
        return Err(Failure::invalid("no host specified"));
    }
    if let Some(extra) = url.query().or(url.fragment()) {
        return Err(Failure::invalid(format!("extra text after the host: {}", gotext::quote(extra))));
    }
    let mut command = vec!["ssh".to_owned()];
    if !url.username().is_empty() {
        command.extend(["-l".to_owned(), url.username().to_owned()]);
    }
    if let Some(port) = url.port() {
        command.extend(["-p".to_owned(), port.to_string()]);
    }
    command.extend(["--".to_owned(), host.to_owned(), "buildctl".to_owned()]);
    if !url.path().is_empty() {
        command.extend(["--addr".to_owned(), format!("unix://{}", url.path())]);
    }
    command.push("dial-stdio".into());
    Ok(command)
}

/// The files of authority, certificate and key; empty ones are not given.
fn tls_files(global: &Global) -> Result<(String, String, String), Failure> {
    let given = (global.tlscacert.clone(), global.tlscert.clone(), global.tlskey.clone());
    if global.tlsdir.is_empty() {
        return Ok(given);
    }
    if given != (String::new(), String::new(), String::new()) {
        return Err(Failure::invalid("cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time"));
    }
    let one_of = |a: &str, b: &str| {
        let at = |name| format!("{}/{name}", global.tlsdir.trim_end_matches('/'));
        [at(a), at(b)].into_iter().find(|path| std::path::Path::new(path).exists()).ok_or_else(|| {
            Failure::new(
                Kind::NotFound,
                format!("directory did not contain one of the needed files: {a} or {b}"),
            )
        })
    };
    Ok((one_of("ca.pem", "ca.crt")?, one_of("cert.pem", "tls.crt")?, one_of("key.pem", "tls.key")?))
}

fn tls(ca: &str, cert: &str, key: &str) -> Result<TlsConnector, Failure> {
    let fail =
        |what: &str, e: &dyn std::fmt::Display| Failure::invalid(format!("could not read {what}: {e}"));
    let certificates = |path: &str| -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
        CertificateDer::pem_file_iter(path)?.collect()
    };
    let mut roots = RootCertStore::empty();
    if !ca.is_empty() {
        for certificate in certificates(ca).map_err(|e| fail("ca certificate", &e))? {
            roots.add(certificate).map_err(|e| fail("ca certificate", &e))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fail("certificates", &e))?
        .with_root_certificates(roots);
    let mut config = if cert.is_empty() && key.is_empty() {
        config.with_no_client_auth()
    } else {
        let chain = certificates(cert).map_err(|e| fail("certificate/key", &e))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|e| fail("certificate/key", &e))?;
        config.with_client_auth_cert(chain, key).map_err(|e| fail("certificate/key", &e))?
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A program whose standard input and output are the connection.
struct Program {
    _child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Program {
    fn start(words: &[String]) -> io::Result<Self> {
        let Some((program, args)) = words.split_first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("run {program}: {e}")))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Self { _child: child, input, output }),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl AsyncRead for Program {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().output).poll_read(cx, buf)
    }
}

impl AsyncWrite for Program {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().input).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().input).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().input).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn resolve(address: &str) -> Result<String, String> {
        let cli = crate::cli::Cli::try_parse_from(["buildctl", "--addr", address, "du"]).unwrap();
        match target(&cli.global) {
            Ok((Target::Unix(path), _)) => Ok(path),
            Ok((Target::Tcp { address, .. }, authority)) => Ok(format!("{address} {authority}")),
            Ok((Target::Program(words), _)) => Ok(words.join(" ")),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn addresses_lead_where_they_should() {
        for (address, expected) in [
            ("unix:///run/x.sock", "/run/x.sock"),
            ("tcp://host:1234", "host:1234 host:1234"),
            ("docker-container://bk", "docker exec -i bk buildctl dial-stdio"),
            ("docker-container://bk?context=c", "docker --context=c exec -i bk buildctl dial-stdio"),
            ("podman-container://bk", "podman exec -i bk buildctl dial-stdio"),
            ("nerdctl-container://bk?namespace=n", "nerdctl exec --namespace n -i bk buildctl dial-stdio"),
            (
                "kube-pod://p?container=c&namespace=n&context=x",
                "kubectl --context=x --namespace=n exec --container=c -i p -- buildctl dial-stdio",
            ),
            ("ssh://me@host:22/run/s", "ssh -l me -p 22 -- host buildctl --addr unix:///run/s dial-stdio"),
        ] {
            assert_eq!(resolve(address).as_deref(), Ok(expected));
        }
        for (address, why) in [
            ("nonsense", "invalid address"),
            ("npipe:////./x", "unknown scheme"),
            ("kube-pod://bad_name", "unsupported pod name"),
            ("ssh://u:p@h", "plain-text password"),
            ("tcp://host", "no port"),
        ] {
            let e = resolve(address).unwrap_err();
            assert!(e.contains(why), "{address}: {e}");
        }
    }
}
