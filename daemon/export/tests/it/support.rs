//! A store with refs, a client with a session, a registry on loopback.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::Request as HttpRequest;
use axum::response::Response as HttpResponse;
use base::Digest;
use base::progress::{Event, Report, Sink};
use base::task::Scope;
use export::{Context, Deps, Exported, Source};
use parking_lot::Mutex;
use proto::control as wire;
use refs::{NewRef, Ref, Refs};
use registry::{Access, Registries};
use session::Sessions;
use session::client::{Attachables, Session};
use session::tunnel;
use store::{Snapshotter, Store};
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};

pub(crate) struct Dir(pub(crate) PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        _ = sys::mount::detach_below(&self.0);
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// All that an export needs.
pub(crate) struct Bench {
    pub(crate) refs: Refs,
    pub(crate) deps: Deps,
    pub(crate) scope: Scope,
    pub(crate) said: Said,
    socket: PathBuf,
    pub(crate) dir: Dir,
}

/// What was reported. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Said(Arc<Mutex<Vec<String>>>);

impl Report for Said {
    fn report(&self, event: Event) {
        if let Event::Status(status) = event {
            self.0.lock().push(status.id);
        }
    }
}

impl Said {
    /// What was begun, digests shortened.
    pub(crate) fn statuses(&self) -> Vec<String> {
        let mut out: Vec<String> = self.0.lock().clone();
        out.dedup();
        out.iter().map(|s| s.split("sha256:").next().unwrap_or_default().to_owned()).collect()
    }
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = Dir(std::env::temp_dir().join(format!("export-test-{}", base::id::fresh())));
        std::fs::create_dir(&dir.0).unwrap();
        let options = store::Options { snapshotter: Snapshotter::Overlay, ..Default::default() };
        let store = Store::open(dir.0.join("store"), options).unwrap();
        let refs = Refs::open(store.clone(), refs::Options::default()).await.unwrap();
        let scope = Scope::root();
        let sessions = Sessions::new(scope.child());
        let socket = dir.0.join("s");
        serve(&sessions, &socket, &scope);
        let deps = Deps { store, registries: Registries::new(registry::Config::default()), sessions };
        Self { refs, deps, scope, said: Said::default(), socket, dir }
    }

    pub(crate) async fn client(&self, attachables: Attachables) -> Session {
        let socket = Arc::new(self.socket.clone());
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(&*socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = tunnel::endpoint(Endpoint::from_static("http://localhost"));
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        attachables.open(channel, "key", &self.scope).await.unwrap()
    }

    pub(crate) fn context(&self, session: &str) -> Context {
        Context {
            session: session.to_owned(),
            build: "build".into(),
            access: Access::anonymous(),
            inline_cache: None,
            compatibility: base::Compatibility::default(),
            progress: Sink::new(self.said.clone()).vertex(Digest::of("vertex")),
            scope: self.scope.clone(),
        }
    }

    /// A ref on `parent` with one more file.
    pub(crate) async fn file(&self, parent: Option<&Ref>, name: &str, text: &str) -> Ref {
        let new = NewRef { description: format!("write {name}"), ..NewRef::default() };
        let mutable = self.refs.new_mutable(parent, new).await.unwrap();
        let mount = mutable.mount().await.unwrap();
        std::fs::write(mount.path().join(name), text).unwrap();
        mount.unmount().await.unwrap();
        mutable.commit().await.unwrap()
    }

    pub(crate) async fn export(
        &self,
        kind: &str,
        attrs: &[(&str, &str)],
        source: &Source,
        session: &str,
    ) -> Result<Exported, base::Failure> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let exporter = export::resolve(kind, 0, attrs, self.deps.clone())?;
        exporter.export(source, &self.context(session)).await
    }

    /// A blob of the store as JSON.
    pub(crate) fn json(&self, digest: &str) -> serde_json::Value {
        let bytes = self.deps.store.blobs().read(&digest.parse().unwrap(), 1 << 20).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.scope.cancel(base::Failure::canceled("test ends"));
    }
}

/// One tree with an image config.
pub(crate) fn single(tree: &Ref) -> Source {
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]}}"#.to_vec();
    let metadata = BTreeMap::from([("containerimage.config".to_owned(), config)]);
    Source { single: Some(tree.clone()), metadata, ..Source::default() }
}

/// A tree for each of two platforms.
pub(crate) fn double(amd: &Ref, arm: &Ref) -> Source {
    let platforms = br#"{"Platforms":[
        {"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},
        {"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}]}"#;
    let config = |arch: &str| format!(r#"{{"architecture":"{arch}","os":"linux"}}"#).into_bytes();
    let metadata = BTreeMap::from([
        ("refs.platforms".to_owned(), platforms.to_vec()),
        ("containerimage.config/linux/amd64".to_owned(), config("amd64")),
        ("containerimage.config/linux/arm64".to_owned(), config("arm64")),
    ]);
    let refs = BTreeMap::from([
        ("linux/amd64".to_owned(), Some(amd.clone())),
        ("linux/arm64".to_owned(), Some(arm.clone())),
    ]);
    Source { refs, metadata, ..Source::default() }
}

/// The files of an archive.
pub(crate) fn untar(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tar = store::tar::Reader::new(std::fs::File::open(path).unwrap());
    let mut out = BTreeMap::new();
    while let Some(header) = tar.next_entry().unwrap() {
        let mut data = Vec::new();
        tar.copy_data(|_, bytes| {
            data.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        out.insert(String::from_utf8(header.name).unwrap(), data);
    }
    out
}

struct Control(Sessions);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("not part of this test"))
}

#[tonic::async_trait]
impl wire::control_server::Control for Control {
    type SessionStream = session::Attached;
    type StatusStream = Answers<wire::StatusResponse>;
    type PruneStream = Answers<wire::UsageRecord>;
    type ListenBuildHistoryStream = Answers<wire::BuildHistoryEvent>;

    async fn session(&self, request: Request<Streaming<wire::BytesMessage>>) -> Answer<Self::SessionStream> {
        let (metadata, _, stream) = request.into_parts();
        let attached = self.0.attach(&metadata, stream).await;
        attached.map(Response::new).map_err(|e| session::status::to_status(&e.into()))
    }
    async fn info(&self, _: Request<wire::InfoRequest>) -> Answer<wire::InfoResponse> {
        none()
    }
    async fn list_workers(&self, _: Request<wire::ListWorkersRequest>) -> Answer<wire::ListWorkersResponse> {
        none()
    }
    async fn solve(&self, _: Request<wire::SolveRequest>) -> Answer<wire::SolveResponse> {
        none()
    }
    async fn status(&self, _: Request<wire::StatusRequest>) -> Answer<Self::StatusStream> {
        none()
    }
    async fn disk_usage(&self, _: Request<wire::DiskUsageRequest>) -> Answer<wire::DiskUsageResponse> {
        none()
    }
    async fn prune(&self, _: Request<wire::PruneRequest>) -> Answer<Self::PruneStream> {
        none()
    }
    async fn listen_build_history(
        &self,
        _: Request<wire::BuildHistoryRequest>,
    ) -> Answer<Self::ListenBuildHistoryStream> {
        none()
    }
    async fn update_build_history(
        &self,
        _: Request<wire::UpdateBuildHistoryRequest>,
    ) -> Answer<wire::UpdateBuildHistoryResponse> {
        none()
    }
}

fn serve(sessions: &Sessions, socket: &Path, scope: &Scope) {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let control = wire::control_server::ControlServer::new(Control(sessions.clone()));
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(session::STREAM_WINDOW)
        .initial_connection_window_size(session::CONNECTION_WINDOW)
        .add_service(control);
    let until = scope.clone();
    scope.spawn(async move {
        tokio::select! {
            _ = until.cancelled() => {}
            result = server.serve_with_incoming(UnixListenerStream::new(listener)) => result.unwrap(),
        }
    });
}

/// A registry that takes everything. It ends with the test's runtime.
pub(crate) struct Registry {
    pub(crate) host: String,
    /// What it has, by path.
    pub(crate) has: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let has: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
        let state = has.clone();
        let app = axum::Router::new().fallback(move |request: HttpRequest| {
            let state = state.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = to_bytes(body, 1 << 28).await.unwrap().to_vec();
                let path = parts.uri.path().to_owned();
                let query = parts.uri.query().unwrap_or_default().to_owned();
                answer(&state, parts.method.as_str(), &path, &query, body)
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { host, has, task }
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths: Vec<_> = self.has.lock().keys().cloned().collect();
        paths.sort();
        paths
    }
}

fn answer(
    has: &Mutex<HashMap<String, Vec<u8>>>,
    method: &str,
    path: &str,
    query: &str,
    body: Vec<u8>,
) -> HttpResponse {
    let say = |status: u16| HttpResponse::builder().status(status);
    let empty = |status| say(status).body(Body::empty()).unwrap();
    match method {
        "GET" if path == "/v2/" => empty(200),
        "HEAD" | "GET" => match has.lock().get(path) {
            Some(bytes) => say(200)
                .header("docker-content-digest", Digest::of(bytes).as_str())
                .header("content-length", bytes.len())
                .body(Body::empty())
                .unwrap(),
            None => empty(404),
        },
        "POST" => say(202).header("location", format!("{path}one")).body(Body::empty()).unwrap(),
        "PATCH" => {
            has.lock().entry("upload".to_owned()).or_default().extend(body);
            say(202).header("location", path).body(Body::empty()).unwrap()
        }
        "PUT" if path.contains("/uploads/") => {
            let digest = query.split("digest=").nth(1).unwrap_or_default().replace("%3A", ":");
            let base = path.split("uploads/").next().unwrap_or_default();
            has.lock().insert(format!("{base}{digest}"), body);
            empty(201)
        }
        "PUT" => {
            has.lock().insert(path.to_owned(), body);
            empty(201)
        }
        _ => empty(405),
    }
}
