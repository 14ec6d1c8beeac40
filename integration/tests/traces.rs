//! What a collector of OpenTelemetry is told of builds.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use integration::bench::Client::{Buildctl, Buildx};
use integration::certificates::{Authority, VALID};
use integration::mock::{Mock, Reply};
use integration::process::wait_for;
use integration::registry::free_port;
use integration::{Bench, Options, Project, suite};
use proto::opentelemetry::proto::collector::trace::v1 as otlp;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};

/// Deliveries, each with what it said of who sends it.
type Told = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

fn main() -> ExitCode {
    suite::main(
        || Ok(()),
        &[
            ("by_grpc", by_grpc),
            ("by_http", by_http),
            ("encrypted", encrypted),
            ("a_collector_that_is_gone", a_collector_that_is_gone),
            ("collectors_that_make_no_sense", collectors_that_make_no_sense),
        ],
        |()| Ok(()),
    )
}

fn traced(env: &[(&str, &str)]) -> Result<Bench> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Bench::start(Options { env, ..Options::default() })
}

/// Builds, and waits until the collector has heard of it.
fn build(bench: Bench, told: &Told) -> Result<()> {
    let project = Project::new("FROM busybox\nRUN echo a step of mine\n")?;
    bench.build(Buildx, &project, &[])?.ok()?;
    let heard = |text: &str| {
        let told = told.lock().ok()?;
        let has = |(who, body): &&(String, Vec<u8>)| {
            who == "Basic of mine" && body.windows(text.len()).any(|part| part == text.as_bytes())
        };
        told.iter().find(has).map(drop)
    };
    let within = Duration::from_secs(20);
    wait_for("the build", within, || heard("moby.buildkit.v1.Control/Solve"))?;
    wait_for("the step", within, || heard("[2/2] RUN echo a step of mine"))?;
    wait_for("the program", within, || heard("service.name"))?;
    // The last build is heard of even when the daemon stops at once.
    let last = Project::new("FROM busybox\nRUN echo the last of all\n")?;
    bench.build(Buildctl, &last, &[])?.ok()?;
    bench.finish()?;
    heard("echo the last of all").context("the last build was not heard of")
}

struct Collector(Told);

#[tonic::async_trait]
impl otlp::trace_service_server::TraceService for Collector {
    async fn export(
        &self,
        request: Request<otlp::ExportTraceServiceRequest>,
    ) -> Result<Response<otlp::ExportTraceServiceResponse>, Status> {
        let who = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let who = who.unwrap_or_default().to_owned();
        let body = request.into_inner().resource_spans.concat();
        self.0.lock().map_err(|_| Status::internal("poisoned"))?.push((who, body));
        Ok(Response::new(otlp::ExportTraceServiceResponse::default()))
    }
}

/// Starts a collector, and tells where.
fn collector(runtime: &Runtime, told: &Told) -> Result<SocketAddr> {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let service = otlp::trace_service_server::TraceServiceServer::new(Collector(told.clone()));
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve(address));
    Ok(address)
}

/// Puts TLS in front of it, for those who have a certificate of `authority`.
fn guarded(runtime: &Runtime, authority: &Authority, to: SocketAddr) -> Result<SocketAddr> {
    let pair = authority.sign("collector", "DNS:localhost", VALID)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.cert())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&pair.cert)?],
            PrivateKeyDer::from_pem_file(&pair.key)?,
        )?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut client = acceptor.accept(stream).await?;
                let mut server = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok(address)
}

fn encrypted((): &()) -> Result<()> {
    let (told, runtime, authority) = (Told::default(), Runtime::new()?, Authority::new()?);
    let mine = authority.sign("daemon", "DNS:daemon", VALID)?;
    let address = guarded(&runtime, &authority, collector(&runtime, &told)?)?;
    let (ca, cert, key) = (authority.cert(), mine.cert, mine.key);
    let [ca, cert, key] = [ca, cert, key].map(|path| path.display().to_string());
    let shown =
        [("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", cert.as_str()), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key)];
    let port = address.port();
    for endpoint in [format!("https://localhost:{port}"), format!("localhost:{port}")] {
        let common = [
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20of%20mine"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca),
        ];
        told.lock().map_err(|_| anyhow!("poisoned"))?.clear();
        build(traced(&[&common[..], &shown].concat())?, &told)?;
    }
    // Who does not show who they are, or does not know the collector, tells nothing.
    for env in [&[("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.as_str())][..], &shown] {
        let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*format!("https://localhost:{port}"))];
        told.lock().map_err(|_| anyhow!("poisoned"))?.clear();
        let bench = traced(&[&endpoint[..], env].concat())?;
        bench.build(Buildctl, &Project::new("FROM busybox\nRUN true\n")?, &[])?.ok()?;
        let complains = || bench.daemon.log().contains("do not reach the collector").then_some(());
        wait_for("a complaint", Duration::from_secs(20), complains)?;
        bench.finish()?;
        ensure!(told.lock().map_err(|_| anyhow!("poisoned"))?.is_empty(), "a stranger was heard");
    }
    Ok(())
}

fn by_grpc((): &()) -> Result<()> {
    let (told, runtime) = (Told::default(), Runtime::new()?);
    let address = collector(&runtime, &told)?;
    let bench = traced(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}")),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20of%20mine"),
    ])?;
    build(bench, &told)
}

fn by_http((): &()) -> Result<()> {
    let told = Told::default();
    let heard = told.clone();
    let mock = Mock::start(move |request| {
        if (request.method.as_str(), request.path.as_str()) != ("POST", "/here/v1/traces")
            || request.headers.get("content-type").is_none_or(|kind| kind != "application/x-protobuf")
        {
            return Reply::new(404, "");
        }
        let who = request.headers.get("authorization").cloned().unwrap_or_default();
        if let Ok(mut heard) = heard.lock() {
            heard.push((who, request.body.clone()));
        }
        Reply::new(200, "")
    })?;
    let bench = traced(&[
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}/here/", mock.host())),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=of everybody"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "Authorization=Basic of mine"),
    ])?;
    build(bench, &told)
}

fn a_collector_that_is_gone((): &()) -> Result<()> {
    let endpoint = format!("http://127.0.0.1:{}", free_port()?);
    let bench = traced(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &endpoint)])?;
    bench.build(Buildctl, &Project::new("FROM busybox\nRUN true\n")?, &[])?.ok()?;
    let complains = || bench.daemon.log().contains("do not reach the collector").then_some(());
    wait_for("a complaint", Duration::from_secs(20), complains)?;
    bench.finish()
}

fn collectors_that_make_no_sense((): &()) -> Result<()> {
    for (name, value, why) in [
        ("OTEL_TRACES_EXPORTER", "pigeon", "unsupported opentelemetry exporter pigeon"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://localhost", "neither http nor https"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://", "empty host"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere/key.pem", "go together"),
    ] {
        let error = traced(&[("OTEL_TRACES_EXPORTER", "otlp"), (name, value)])
            .err()
            .with_context(|| format!("started with {name}={value}"))?;
        let error = format!("{error:#}");
        ensure!(error.contains(name) && error.contains(why), "{error}");
    }
    Ok(())
}
