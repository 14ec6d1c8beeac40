//! The client's end of a session: what it serves to the daemon.
//!
//! [`Attachables`] collects what a build may ask for; [`Attachables::open`]
//! opens the tunnel over a connection to the daemon and serves it until the
//! [`Session`] is closed or the daemon goes away. Nothing is served that was
//! not named.

mod auth;
mod docker;
mod files;
mod secrets;
mod ssh;
mod store;
mod targets;
mod upload;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use base::task::Scope;
use base::{Failure, Kind, id};
use futures_util::StreamExt;
use proto::control::control_client::ControlClient;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

use crate::fs::{Dir, Tree};
use crate::tunnel::Duplex;
use crate::{CONNECTION_WINDOW, Error, MAX_MESSAGE, Patient, STREAM_WINDOW, metadata};

pub use auth::{Authority, Credential, Credentials};
pub use docker::DockerConfig;
pub use secrets::SecretSource;
pub use ssh::Agent;
pub use store::OciStore;
pub use targets::{OpenFile, Target};
pub use upload::Uploads;

/// What a client serves. Build it up, then [`Self::open`] it.
#[derive(Default)]
pub struct Attachables {
    dirs: HashMap<String, Dir>,
    secrets: HashMap<String, SecretSource>,
    serves_secrets: bool,
    agents: HashMap<String, Agent>,
    credentials: Option<Arc<dyn Credentials>>,
    uploads: Option<Uploads>,
    targets: HashMap<i64, Target>,
    stores: HashMap<String, OciStore>,
}

impl Attachables {
    /// Nothing but the health service.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves the directory `path` as `name`. Its files appear to be owned by
    /// root, so that builds do not depend on who runs them.
    ///
    /// # Errors
    /// When `path` is no directory.
    pub fn dir(&mut self, name: impl Into<String>, path: &Path) -> Result<&mut Self, Error> {
        let dir = Dir::open(path)?.mapped(Arc::new(|_, stat| {
            (stat.uid, stat.gid) = (0, 0);
            true
        }));
        self.dirs.insert(name.into(), dir);
        Ok(self)
    }

    /// Serves a directory as it is given.
    pub fn raw_dir(&mut self, name: impl Into<String>, dir: Dir) -> &mut Self {
        self.dirs.insert(name.into(), dir);
        self
    }

    /// Serves a secret.
    pub fn secret(&mut self, id: impl Into<String>, source: SecretSource) -> &mut Self {
        self.secrets.insert(id.into(), source);
        self.serves_secrets = true;
        self
    }

    /// Serves an SSH agent.
    pub fn agent(&mut self, id: impl Into<String>, agent: Agent) -> &mut Self {
        self.agents.insert(id.into(), agent);
        self
    }

    /// Answers for registries.
    pub fn credentials(&mut self, credentials: Arc<dyn Credentials>) -> &mut Self {
        self.credentials = Some(credentials);
        self
    }

    /// Offers files to be pulled.
    pub fn uploads(&mut self, uploads: Uploads) -> &mut Self {
        self.uploads = Some(uploads);
        self
    }

    /// Takes what exporter `number` sends.
    pub fn target(&mut self, number: i64, target: Target) -> &mut Self {
        self.targets.insert(number, target);
        self
    }

    /// Serves a content store.
    pub fn store(&mut self, id: impl Into<String>, store: OciStore) -> &mut Self {
        self.stores.insert(id.into(), store);
        self
    }

    /// The services, and the methods to be announced.
    fn routes(self, scope: &Scope) -> (tonic::service::Routes, Vec<&'static str>) {
        macro_rules! service {
            ($server:path, $service:expr) => {{
                use $server as Generated;
                Generated::new($service)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
            }};
        }
        use proto::moby;
        let mut routes = RoutesBuilder::default();
        let mut methods = vec!["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"];
        let health = tonic_health::server::HealthReporter::new();
        let health = tonic_health::server::HealthService::from_health_reporter(health);
        routes.add_service(tonic_health::pb::health_server::HealthServer::new(health));
        if !self.dirs.is_empty() {
            let files = files::Files { dirs: self.dirs, scope: scope.clone() };
            routes.add_service(service!(moby::filesync::v1::file_sync_server::FileSyncServer, files));
            methods.extend(["/moby.filesync.v1.FileSync/DiffCopy", "/moby.filesync.v1.FileSync/TarStream"]);
        }
        if !self.targets.is_empty() {
            routes.add_service(targets::FileSendService::new(self.targets, scope.clone()));
            methods.push("/moby.filesync.v1.FileSend/DiffCopy");
        }
        if self.serves_secrets {
            let secrets = secrets::Service { sources: self.secrets };
            routes.add_service(service!(moby::buildkit::secrets::v1::secrets_server::SecretsServer, secrets));
            methods.push("/moby.buildkit.secrets.v1.Secrets/GetSecret");
        }
        if !self.agents.is_empty() {
            let agents = ssh::Service { agents: self.agents, scope: scope.clone() };
            routes.add_service(service!(moby::sshforward::v1::ssh_server::SshServer, agents));
            methods.extend(["/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent"]);
        }
        if let Some(credentials) = self.credentials {
            let auth = auth::Service { credentials };
            routes.add_service(service!(moby::filesync::v1::auth_server::AuthServer, auth));
            methods.extend([
                "/moby.filesync.v1.Auth/Credentials",
                "/moby.filesync.v1.Auth/FetchToken",
                "/moby.filesync.v1.Auth/GetTokenAuthority",
                "/moby.filesync.v1.Auth/VerifyTokenAuthority",
            ]);
        }
        if let Some(uploads) = self.uploads {
            let uploads = upload::Service { uploads, scope: scope.clone() };
            routes.add_service(service!(moby::upload::v1::upload_server::UploadServer, uploads));
            methods.push("/moby.upload.v1.Upload/Pull");
        }
        if !self.stores.is_empty() {
            let stores = store::Service::new(self.stores, scope.clone());
            routes.add_service(service!(proto::content::content_server::ContentServer, stores));
            methods.extend(store::METHODS);
        }
        (routes.routes(), methods)
    }

    /// Opens a session over `daemon`. Two sessions with one `shared_key` let
    /// the daemon reuse what it has of local directories.
    ///
    /// # Errors
    /// When the daemon does not take it.
    pub async fn open(
        self,
        daemon: impl Into<Patient>,
        shared_key: &str,
        scope: &Scope,
    ) -> Result<Session, Failure> {
        let scope = scope.child();
        let id = id::fresh();
        let (routes, methods) = self.routes(&scope);
        let closed = CancellationToken::new();

        // The stream is made before there is something to read from.
        let (relay, incoming) = tokio::sync::mpsc::channel(32);
        let (duplex, outgoing, ended) = Duplex::new(ReceiverStream::new(incoming));
        let outgoing = ReceiverStream::new(outgoing).take_until(closed.clone().cancelled_owned());
        let mut request = tonic::Request::new(outgoing);
        let map = request.metadata_mut();
        metadata::append(map, metadata::SESSION_ID, &id)?;
        metadata::append(map, metadata::SESSION_SHARED_KEY, shared_key)?;
        for method in methods {
            metadata::append(map, metadata::SESSION_METHOD, method)?;
        }

        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_MESSAGE as u32)
            .add_routes(routes);
        let until = ended.clone();
        scope.spawn(async move {
            // The connection, and then nothing more, until it has ended.
            let connections = futures_util::stream::once(std::future::ready(Ok::<_, std::io::Error>(duplex)))
                .chain(futures_util::stream::pending().take_until(until.cancelled_owned()));
            if let Err(error) = server.serve_with_incoming(connections).await {
                tracing::debug!(%error, "session server ends");
            }
        });

        let mut control = ControlClient::new(daemon.into()).max_decoding_message_size(MAX_MESSAGE);
        let (opened_tx, opened) = tokio::sync::oneshot::channel();
        let (done, stop) = (ended.clone(), closed.clone());
        scope.spawn(async move {
            let work = async {
                let mut answers = control.session(request).await?.into_inner();
                _ = opened_tx.send(());
                while let Some(message) = answers.message().await? {
                    if relay.send(Ok(message)).await.is_err() {
                        break;
                    }
                }
                Ok::<_, tonic::Status>(())
            };
            tokio::select! {
                () = stop.cancelled() => {}
                result = work => if let Err(status) = result {
                    tracing::debug!(%status, "session ends");
                },
            }
            done.cancel();
        });
        // A daemon answers a session only with its first bytes; to be sure
        // that it has refused it, one has to wait for it to end.
        tokio::select! {
            biased;
            _ = opened => {}
            () = ended.cancelled() => {
                return Err(Failure::new(Kind::Unavailable, "daemon did not take the session"));
            }
        }
        Ok(Session { id, closed, ended, scope })
    }
}

/// A session being served. It ends when this is dropped.
pub struct Session {
    id: String,
    closed: CancellationToken,
    ended: CancellationToken,
    scope: Scope,
}

impl Session {
    /// Its id, by which requests refer to it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits until the connection has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Ends it, and waits for its tasks.
    pub async fn close(self) {
        self.closed.cancel();
        self.scope.cancel(Failure::canceled("session closed"));
        self.scope.close().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.closed.cancel();
        self.scope.cancel(Failure::canceled("session closed"));
    }
}

/// An error of ours as a gRPC answer.
fn refuse(error: impl Into<Failure>) -> tonic::Status {
    crate::status::to_status(&error.into())
}

/// A tree that can be narrowed for one request.
fn narrowed(dir: &Dir, filter: crate::fs::Filter) -> Arc<dyn Tree> {
    Arc::new(dir.with_filter(filter))
}
