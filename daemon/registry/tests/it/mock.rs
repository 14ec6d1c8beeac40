//! A registry that answers as it is told and remembers what it was asked.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use base::descriptor::media;
use base::{Descriptor, Digest};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use registry::{Access, Config, Reference, Registries, Repository, Retry};
use tokio::net::TcpListener;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub(crate) fn param(&self, name: &str) -> Option<String> {
        let pairs: HashMap<String, String> =
            url::form_urlencoded::parse(self.query.as_bytes()).into_owned().collect();
        pairs.get(name).cloned()
    }
}

/// A server on loopback; it ends with the test's runtime.
pub(crate) struct Mock {
    pub(crate) host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mock {
    pub(crate) async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Seen) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let app = Router::new().fallback(move |request: Request| {
            let (log, answer) = (log.clone(), answer.clone());
            async move {
                let (parts, body) = request.into_parts();
                let seen = Seen {
                    method: parts.method,
                    path: parts.uri.path().to_owned(),
                    query: parts.uri.query().unwrap_or_default().to_owned(),
                    headers: parts.headers,
                    body: to_bytes(body, 1 << 28).await.unwrap_or_default(),
                };
                log.lock().unwrap().push(seen.clone());
                answer(seen).await
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { host, seen, task }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }

    pub(crate) async fn repository(&self) -> Repository {
        self.repository_for(&Registries::new(config()), &Access::anonymous()).await
    }

    pub(crate) async fn repository_for(&self, registries: &Registries, access: &Access) -> Repository {
        let reference: Reference = format!("{}/a/b:t", self.host).parse().unwrap();
        registries.repository(&reference, access).await.unwrap()
    }
}

/// Impatient, for tests.
pub(crate) fn config() -> Config {
    let retry = Retry {
        attempts: 4,
        pause: Duration::from_millis(1),
        max_pause: Duration::from_millis(5),
        silence: Duration::from_secs(20),
    };
    Config { retry, ..Config::default() }
}

pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

/// `bytes`, and then the connection breaks.
pub(crate) fn broken(bytes: Bytes) -> Body {
    // Pausing makes the server send what it has first.
    let end = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("broken off"))
    };
    Body::from_stream(stream::iter([Ok(bytes)]).chain(stream::once(end)))
}

/// The digest is that of `bytes`.
pub(crate) fn blob(bytes: &[u8]) -> Descriptor {
    Descriptor::new(media::OCI_LAYER, Digest::of(bytes), bytes.len() as u64)
}
