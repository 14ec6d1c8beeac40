//! Sends spans to a collector of OpenTelemetry, where the environment names one: the variables
//! `OTEL_TRACES_EXPORTER` and `OTEL_EXPORTER_OTLP_*` of its specification, those for traces
//! before those for everything. Without `OTEL_EXPORTER_OTLP_PROTOCOL` it is `grpc`, as for the
//! reference (`util/tracing/detect/otlp.go`).
//!
//! With `https` it shows a certificate that the system's authorities have signed, or one in
//! `OTEL_EXPORTER_OTLP_CERTIFICATE`.
//!
//! Builds do not wait for it. What cannot be delivered is logged and lost.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::task::Scope;
use base::{Failure, Kind, gourl};
use build::Traces;
use build::traces::Span;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use proto::opentelemetry::proto::collector::trace::v1::ExportTraceServiceRequest;
use proto::opentelemetry::proto::collector::trace::v1::trace_service_client::TraceServiceClient;
use registry::{HostConfig, KeyPair, Registries};
use reqwest::Url;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};

use crate::otlp;

/// How often something may be told before the first of it is sent.
const QUEUE: usize = 256;
/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long it takes until the last builds have told everything.
const LAST: Duration = Duration::from_millis(200);
/// For one delivery, unless the environment says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where to send.
pub struct Collector {
    way: Way,
    headers: MetadataMap,
    timeout: Duration,
}

enum Way {
    Grpc(Channel),
    Http(reqwest::Client, Url),
}

impl Collector {
    /// The collector that the environment names, if it does.
    ///
    /// # Errors
    /// When a variable makes no sense; the error names it.
    pub async fn from_env(
        env: impl Fn(&str) -> Option<String>,
        registries: &Registries,
    ) -> Result<Option<Self>, Failure> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let bad = |name: &str, why: &str| Failure::invalid(format!("{name}: {why}"));
        // The more particular first.
        let option = |name: &str| {
            let named = |prefix: &str| {
                let name = format!("OTEL_EXPORTER_OTLP_{prefix}{name}");
                env(&name).map(|value| (name, value))
            };
            named("TRACES_").or_else(|| named(""))
        };
        let endpoint = option("ENDPOINT");
        match env("OTEL_TRACES_EXPORTER").as_deref() {
            Some("otlp") => {}
            None if endpoint.is_some() => {}
            None | Some("none") => return Ok(None),
            Some(other) => {
                return Err(bad(
                    "OTEL_TRACES_EXPORTER",
                    &format!("unsupported opentelemetry exporter {other}"),
                ));
            }
        }
        let timeout = match option("TIMEOUT") {
            Some((name, text)) => {
                Duration::from_millis(text.parse().map_err(|_| bad(&name, "not a number of milliseconds"))?)
            }
            None => TIMEOUT,
        };
        let headers = match option("HEADERS") {
            Some((name, text)) => headers(&text).ok_or_else(|| bad(&name, "not key=value,key=value"))?,
            None => MetadataMap::new(),
        };
        let http = match option("PROTOCOL") {
            None => false,
            Some((_, protocol)) if protocol == "grpc" => false,
            Some((_, protocol)) if protocol == "http/protobuf" => true,
            Some((name, other)) => return Err(bad(&name, &format!("unsupported otlp protocol {other}"))),
        };
        let (name, address) = endpoint.unwrap_or_else(|| {
            let port = if http { 4318 } else { 4317 };
            ("OTEL_EXPORTER_OTLP_ENDPOINT".into(), format!("http://localhost:{port}"))
        });
        let insecure = option("INSECURE").is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
        let address = match address.contains("://") || http {
            true => address,
            false if insecure => format!("http://{address}"),
            false => format!("https://{address}"),
        };
        let mut url = Url::parse(&address).map_err(|e| bad(&name, &e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad(&name, "neither http nor https"));
        }
        let given = ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"].map(option);
        let named: Vec<&str> = given.iter().flatten().map(|(name, _)| name.as_str()).collect();
        let named = named.join(", ");
        let wrong = |failure: Failure| if named.is_empty() { failure } else { failure.context(&named) };
        let [ca, certificate, key] =
            given.each_ref().map(|given| given.as_ref().map(|(_, path)| PathBuf::from(path)));
        let key_pairs = match (certificate, key) {
            (Some(certificate), Some(key)) => vec![KeyPair { certificate, key }],
            (None, None) => Vec::new(),
            _ => return Err(bad(&named, "a client's certificate and its key go together")),
        };
        let trust = HostConfig { ca: ca.into_iter().collect(), key_pairs, ..HostConfig::default() };
        let way = if http {
            if !name.contains("TRACES") {
                let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
                url.set_path(&path);
            }
            Way::Http(registries.downloads_with(trust).await.map_err(wrong)?.client(&url).clone(), url)
        } else {
            let tls =
                base::task::blocking(move || registry::client_tls(&trust, "h2")).await.map_err(wrong)?;
            Way::Grpc(grpc(&url, timeout, tls).map_err(|why| bad(&name, &why))?)
        };
        Ok(Some(Self { way, headers, timeout }))
    }

    /// Spans that are told there are sent, by a task of `scope`: when it is cancelled, what is
    /// left is sent and the task ends.
    pub fn start(self, scope: &Scope) -> Traces {
        let (sender, spans) = mpsc::channel(QUEUE);
        let own = scope.clone();
        drop(scope.spawn(async move { self.run(spans, &own).await }));
        Traces::collected(sender)
    }

    async fn run(self, mut spans: mpsc::Receiver<Vec<Span>>, scope: &Scope) {
        let mut gathered = Vec::new();
        loop {
            let wait = async {
                gathered.extend(spans.recv().await.unwrap_or_default());
                tokio::time::sleep(GATHER).await;
            };
            let ends = tokio::select! {
                () = wait => false,
                _ = scope.cancelled() => true,
            };
            if ends {
                tokio::time::sleep(LAST).await;
            }
            while let Ok(more) = spans.try_recv() {
                gathered.extend(more);
            }
            if !gathered.is_empty()
                && let Err(e) = self.send(std::mem::take(&mut gathered)).await
            {
                tracing::warn!(error = %e, "spans do not reach the collector and are lost");
            }
            if ends || spans.is_closed() {
                return;
            }
        }
    }

    async fn send(&self, spans: Vec<Span>) -> Result<(), Failure> {
        let resource_spans = otlp::write(spans).iter().map(otlp::ResourceSpans::encode_to_vec).collect();
        let message = ExportTraceServiceRequest { resource_spans };
        let delivery = async {
            match &self.way {
                Way::Grpc(channel) => {
                    let mut request = tonic::Request::new(message);
                    *request.metadata_mut() = self.headers.clone();
                    let answer = TraceServiceClient::new(channel.clone()).export(request).await;
                    answer.map(drop).map_err(|status| session::status::from_status(&status))
                }
                Way::Http(client, url) => {
                    let request = client
                        .post(url.clone())
                        .headers(self.headers.clone().into_headers())
                        .header("content-type", "application/x-protobuf")
                        .body(message.encode_to_vec());
                    let answer = request.send().await.and_then(reqwest::Response::error_for_status);
                    answer.map(drop).map_err(|e| Failure::other(&e))
                }
            }
        };
        match tokio::time::timeout(self.timeout, delivery).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(Kind::DeadlineExceeded, format!("no answer in {:?}", self.timeout))),
        }
    }
}

/// A connection to the server of `url`, made when something is to be sent.
fn grpc(url: &Url, timeout: Duration, tls: ClientConfig) -> Result<Channel, String> {
    let host = gourl::bare_host(url.host_str().unwrap_or_default()).to_owned();
    let port = url.port_or_known_default().unwrap_or_default();
    let origin: http::Uri = url.as_str().parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
    let endpoint = Endpoint::from(origin).connect_timeout(timeout);
    if url.scheme() == "http" {
        return Ok(endpoint.connect_lazy());
    }
    let name = ServerName::try_from(host.clone()).map_err(|e| e.to_string())?;
    let tls = TlsConnector::from(Arc::new(tls));
    let connector = tower::service_fn(move |_: http::Uri| {
        let (tls, name, host) = (tls.clone(), name.clone(), host.clone());
        async move {
            let stream = TcpStream::connect((host, port)).await?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// `key=value,…`, percent-encoded. None when it is not that.
fn headers(text: &str) -> Option<MetadataMap> {
    let mut map = MetadataMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let decoded = |text: &str| gourl::unescape(text.trim());
        let key = decoded(key)?.to_ascii_lowercase().parse::<AsciiMetadataKey>().ok()?;
        map.append(key, decoded(value)?.parse::<AsciiMetadataValue>().ok()?);
    }
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_decoded() {
        let map = headers("Authorization=Basic%20abc=, x-team = build ,").unwrap();
        assert_eq!(map.get("authorization").unwrap(), "Basic abc=");
        assert_eq!(map.get("x-team").unwrap(), "build");
        assert_eq!(map.len(), 2);
        for bad in ["x", "a b=c", "a=%zz", "a=%0A"] {
            assert!(headers(bad).is_none(), "{bad:?}");
        }
    }
}
