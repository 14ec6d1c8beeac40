//! A daemon that knows nothing but sessions, and clients for it.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base::task::Scope;
use proto::control as wire;
use session::client::{Attachables, Session};
use session::tunnel::{self, Duplex};
use session::{Caller, Sessions, metadata};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

pub(crate) struct Daemon {
    pub(crate) sessions: Sessions,
    pub(crate) scope: Scope,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

struct Control(Sessions);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn none<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not part of this test"))
}

#[tonic::async_trait]
impl wire::control_server::Control for Control {
    type SessionStream = session::Attached;
    type StatusStream = Answers<wire::StatusResponse>;
    type PruneStream = Answers<wire::UsageRecord>;
    type ListenBuildHistoryStream = Answers<wire::BuildHistoryEvent>;

    async fn session(
        &self,
        request: Request<Streaming<wire::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (metadata, _, stream) = request.into_parts();
        let attached = self.0.attach(&metadata, stream).await;
        attached.map(Response::new).map_err(|e| session::status::to_status(&e.into()))
    }

    async fn info(&self, _: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        none()
    }

    async fn list_workers(
        &self,
        _: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        none()
    }

    async fn solve(&self, _: Request<wire::SolveRequest>) -> Result<Response<wire::SolveResponse>, Status> {
        none()
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        none()
    }

    async fn disk_usage(
        &self,
        _: Request<wire::DiskUsageRequest>,
    ) -> Result<Response<wire::DiskUsageResponse>, Status> {
        none()
    }

    async fn prune(&self, _: Request<wire::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        none()
    }

    async fn listen_build_history(
        &self,
        _: Request<wire::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        none()
    }

    async fn update_build_history(
        &self,
        _: Request<wire::UpdateBuildHistoryRequest>,
    ) -> Result<Response<wire::UpdateBuildHistoryResponse>, Status> {
        none()
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let scope = Scope::root();
        let sessions = Sessions::new(scope.child());
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let control = wire::control_server::ControlServer::new(Control(sessions.clone()));
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(session::STREAM_WINDOW)
            .initial_connection_window_size(session::CONNECTION_WINDOW)
            .add_service(control);
        let until = scope.clone();
        scope.spawn(async move {
            let serving = server.serve_with_incoming(UnixListenerStream::new(listener));
            tokio::select! {
                _ = until.cancelled() => {}
                result = serving => result.unwrap(),
            }
        });
        Self { sessions, scope, socket, _directory: directory }
    }

    pub(crate) async fn channel(&self) -> Channel {
        connect(&self.socket).await
    }

    /// A session that serves `attachables`, and the daemon's view of it.
    pub(crate) async fn attach(&self, attachables: Attachables) -> (Session, Caller) {
        let session = attachables.open(self.channel().await, "key", &self.scope).await.unwrap();
        let caller = self.sessions.get(session.id(), Duration::from_secs(10)).await.unwrap();
        (session, caller)
    }

    /// A session with services of the test's own making.
    pub(crate) async fn attach_routes(
        &self,
        routes: tonic::service::Routes,
        methods: &[&str],
        more: &[(&str, &str)],
    ) -> Caller {
        let id = base::id::fresh();
        let (relay, incoming) = tokio::sync::mpsc::channel(32);
        let (duplex, outgoing, _) = Duplex::new(ReceiverStream::new(incoming));
        let mut request = Request::new(ReceiverStream::new(outgoing));
        let map = request.metadata_mut();
        metadata::append(map, metadata::SESSION_ID, &id).unwrap();
        for method in methods {
            metadata::append(map, metadata::SESSION_METHOD, method).unwrap();
        }
        for (key, value) in more {
            metadata::append(map, key, value).unwrap();
        }
        let mut control = wire::control_client::ControlClient::new(self.channel().await);
        let until = self.scope.clone();
        self.scope.spawn(async move {
            let incoming = tokio_stream::once(Ok::<_, std::io::Error>(duplex));
            let serve = tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming);
            let relaying = async {
                let mut answers = control.session(request).await.unwrap().into_inner();
                while let Ok(Some(message)) = answers.message().await {
                    if relay.send(Ok(message)).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                _ = until.cancelled() => {}
                _ = async { tokio::join!(serve, relaying) } => {}
            }
        });
        self.sessions.get(&id, Duration::from_secs(10)).await.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.scope.cancel(base::Failure::canceled("test ends"));
    }
}

async fn connect(socket: &Path) -> Channel {
    let socket = Arc::new(socket.to_owned());
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(&*socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = tunnel::endpoint(Endpoint::from_static("http://localhost"));
    endpoint.connect_with_connector(connector).await.unwrap()
}

/// Every path below `root` with its kind, permissions, owner, time and bytes.
pub(crate) fn listing(root: &Path) -> Vec<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    fn visit(root: &Path, at: &Path, out: &mut Vec<String>) {
        let mut entries: Vec<_> = std::fs::read_dir(at).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let what = if kind.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display())
            } else if kind.is_file() {
                format!("{:?}", String::from_utf8_lossy(&std::fs::read(&path).unwrap()))
            } else if kind.is_fifo() {
                "fifo".to_owned()
            } else if kind.is_char_device() {
                format!("char {}", meta.rdev())
            } else {
                "dir".to_owned()
            };
            out.push(format!(
                "{} {:o} {}:{} {} {what}",
                path.strip_prefix(root).unwrap().display(),
                meta.mode() & 0o7777,
                meta.uid(),
                meta.gid(),
                meta.mtime_nsec() + meta.mtime() * 1_000_000_000,
            ));
            if kind.is_dir() {
                visit(root, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    visit(root, root, &mut out);
    out
}
