//! Frontends in containers: `gateway.v0`.
//!
//! The image named by the option `source` is run like a step of the build, on a
//! root file system of its own that is thrown away. Its standard input and
//! output are an HTTP/2 connection on which the daemon is the server and answers
//! as it answers a client that is its own frontend. What it is started with is in
//! its environment, its own definition in a file.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base::reference::Reference;
use base::task::blocking;
use base::{Classify as _, Detail, Digest, Failure};
use exec::{Exit, Io, Mount, NetworkMode, Output as IoOutput, Process, Source};
use frontend::convert::{Config, Image};
use frontend::dockerui;
use frontend::gateway::{FrontendResult, Gateway as _, ImageOptions, ResolvedImage, resolve_image};
use futures_util::{StreamExt as _, stream};
use llb::build::{Defaults, State};
use parking_lot::Mutex;
use prost::Message as _;
use proto::gateway::llb_bridge_server::LlbBridgeServer;
use proto::pb;
use refs::NewRef;
use session::{CONNECTION_WINDOW, MAX_MESSAGE, STREAM_WINDOW};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::{Bridge, Error, Service};

/// How long a process may live on after it has closed its connection, and a
/// connection after its process.
const LAST_MOMENTS: Duration = Duration::from_secs(5);
/// Bytes on their way to or from the frontend.
const PIPE: usize = 64 << 10;
/// How much of what a frontend says at last is worth telling.
const LAST_WORDS: usize = 2 << 10;
/// What is run where the image does not say.
const PROGRAM: &str = "/run";
/// Where a frontend finds its own definition.
const METADATA: &str = "/run/config/buildkit/metadata";
const METADATA_FILE: &str = "frontend.bin";

const LABEL_NO_NETWORK: &str = "moby.buildkit.frontend.network.none";
const LABEL_CAPS: &str = "moby.buildkit.frontend.caps";
const CAP_INPUTS: &str = "moby.buildkit.frontend.inputs";

/// Images that take inputs although they do not say so: `docker/dockerfile` 1.1.6
/// and 1.1.7, stable and experimental.
const TAKE_INPUTS: [&str; 4] = [
    "sha256:9ac1c43a60e31dca741a6fe8314130a9cd4c4db0311fbbc636ff992ef60ae76d",
    "sha256:080bd74d8778f83e7b670de193362d8c593c8b14f5c8fb919d28ee8feda0d069",
    "sha256:60543a9d92b92af5088fb2938fb09b2072684af8384399e153e137fe081f8ab4",
    "sha256:de85b2f3a3e8a2f7fe48e8e84a65f6fdd5cd5183afa6412fff9caa6871649c44",
];

/// Whether `source` is from one of the `allowed` repositories, which are
/// names of images; all are when none is given.
///
/// # Errors
/// When it is not, or one of them is no name.
pub(crate) fn check_allowed(source: &str, allowed: &[String]) -> Result<(), Failure> {
    if allowed.is_empty() {
        return Ok(());
    }
    let name = |text: &str| match text.parse::<Reference>() {
        Ok(reference) => Ok(reference.name()),
        Err(e) => Err(Failure::invalid(e.to_string())),
    };
    let wanted = name(source)?;
    for repository in allowed {
        if name(repository)? == wanted {
            return Ok(());
        }
    }
    Err(Error::SourceNotAllowed(source.to_owned()).into())
}

/// Runs the frontend that the options of `bridge` name to its end.
///
/// # Errors
/// What the frontend says, or why it could not be run.
pub(crate) async fn run(bridge: Bridge) -> Result<FrontendResult, Failure> {
    let opts = &bridge.options().opts;
    if opts.contains_key("gateway-devel") {
        return Err(Error::Development.into());
    }
    let source = opts.get("source").ok_or(Error::NoSource)?.clone();
    let image = FrontendImage::load(&bridge, &source).await?;
    image.check_caps(&bridge).await?;

    let id = bridge.plan(&image.definition, Vec::new(), &[]).await?.ok_or(Error::EmptySource)?;
    let solved = bridge.result(&id).await?;
    let worker = bridge.worker().clone();
    let new = NewRef { description: format!("frontend {source}"), ..NewRef::default() };
    let rootfs = bridge.scope().run(worker.refs.new_mutable(solved.result.as_ref(), new)).await?;
    let mounted = rootfs.mount().await?;
    let (scratch, definition) = (worker.scratch.clone(), image.definition.encode_to_vec());
    let metadata = blocking(move || Metadata::write(&scratch, &definition)).await?;

    let process = image.process(&bridge, mounted.path(), &metadata)?;
    let exit = converse(&bridge, &source, process).await;
    bridge.containers().release().await;
    mounted.unmount().await?;
    drop(rootfs);
    blocking(move || {
        drop(metadata);
        Ok(())
    })
    .await?;
    match (exit, bridge.returned()) {
        // What it said itself tells more than how it ended.
        (_, Some(Err(said))) => Err(said),
        (Err(e), _) => Err(e),
        (Ok(()), Some(Ok(result))) => Ok(result),
        (Ok(()), None) => Err(Error::Incomplete.into()),
    }
}

/// Runs the process and serves its connection.
async fn converse(bridge: &Bridge, source: &str, process: Process) -> Result<(), Failure> {
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let (read, write) = tokio::io::split(theirs);
    let words = Arc::new(Mutex::new(Vec::new()));
    let (heard, name) = (words.clone(), source.to_owned());
    let io = Io {
        stdin: Some(Box::new(read)),
        stdout: IoOutput::Stream(Box::new(write)),
        stderr: IoOutput::Log(Box::new(move |data| {
            tracing::info!(frontend = %name, "{}", String::from_utf8_lossy(data).trim_end());
            let mut heard = heard.lock();
            heard.extend_from_slice(data);
            let surplus = heard.len().saturating_sub(LAST_WORDS);
            heard.drain(..surplus);
        })),
        ..Io::default()
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let service = LlbBridgeServer::new(Service::new(bridge.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    // Never stops accepting: the server would ask those whom it serves to go.
    let (open, closed) = oneshot::channel();
    let connection = Connection { io: ours, _open: open };
    let serving = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(service)
        .add_service(health_service)
        .serve_with_incoming(stream::iter([Ok::<_, io::Error>(connection)]).chain(stream::pending()));
    let serving = async {
        tokio::select! {
            _ = serving => {}
            _ = closed => {}
        }
    };
    let scope = bridge.scope().child();
    let mut running = std::pin::pin!(bridge.worker().executor.run(process, io, &scope));
    let mut serving = std::pin::pin!(serving);
    let exit: Result<Exit, Failure> = tokio::select! {
        exit = &mut running => {
            _ = tokio::time::timeout(LAST_MOMENTS, &mut serving).await;
            exit
        }
        () = &mut serving => {
            if let Ok(exit) = tokio::time::timeout(LAST_MOMENTS, &mut running).await {
                exit
            } else {
                scope.cancel(Error::FrontendGone.into());
                running.await
            }
        }
    };
    exit.and_then(|exit| exit.check()).map_err(|e| {
        let words = words.lock();
        let words = String::from_utf8_lossy(&words);
        if words.trim().is_empty() || e.is_canceled() { e } else { e.hinted(words.trim()) }
    })
}

/// The one connection of a frontend; whoever holds the other end of `_open` learns when it
/// is closed.
struct Connection {
    io: DuplexStream,
    _open: oneshot::Sender<Infallible>,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// An image with a frontend in it.
struct FrontendImage {
    definition: pb::Definition,
    config: Config,
    /// Of its manifest, when it is from a registry.
    digest: Option<Digest>,
}

impl FrontendImage {
    /// Finds the image `source`, or what the client puts in its place.
    async fn load(bridge: &Bridge, source: &str) -> Result<Self, Failure> {
        let client = dockerui::Client::new(Arc::new(bridge.clone()))?;
        if let Some(context) = client.named_context(source, None, "")? {
            let loaded = client.load(&context).await?;
            return Self::new(&loaded.state, loaded.image.unwrap_or_default(), None);
        }
        let reference = source.parse::<Reference>().map_err(|e| Failure::invalid(e.to_string()))?;
        let reference = reference.tag_name_only().to_string();
        match resolve_image(bridge, &reference, ImageOptions::default()).await? {
            ResolvedImage::Other { identifier } => Err(Failure::invalid(format!(
                "ref mutated by policy to non-image: {reference} -> {identifier}"
            ))),
            ResolvedImage::Image { reference, digest, config } => {
                let image: Image = serde_json::from_slice(&config)
                    .map_err(|e| Failure::invalid(format!("image config of {reference}: {e}")))?;
                let reference =
                    reference.parse::<Reference>().map_err(|e| Failure::invalid(e.to_string()))?;
                let pinned = reference.with_digest(digest.clone()).to_string();
                let source =
                    llb::build::Image { record_type: "frontend".to_owned(), ..llb::build::Image::default() };
                Self::new(&source.state(&pinned)?, image, Some(digest))
            }
        }
    }

    fn new(state: &State, image: Image, digest: Option<Digest>) -> Result<Self, Failure> {
        Ok(Self { definition: state.marshal(&Defaults::default())?, config: image.config, digest })
    }

    /// Whether it can do what the client and the inputs ask of it.
    async fn check_caps(&self, bridge: &Bridge) -> Result<(), Failure> {
        let opts = &bridge.options().opts;
        let names = |list: Option<&String>| {
            let list = list.cloned().unwrap_or_default();
            let names = list.split(',').map(|c| c.split('+').next().unwrap_or_default().to_owned());
            names.filter(|c| !c.is_empty()).collect::<Vec<_>>()
        };
        let mut has = names(self.config.labels.get(LABEL_CAPS));
        if self.digest.as_ref().is_some_and(|d| TAKE_INPUTS.contains(&d.as_str())) {
            has.push(CAP_INPUTS.to_owned());
        }
        let mut wants = names(opts.get("frontend.caps"));
        if !bridge.inputs().await?.is_empty() {
            wants.push(CAP_INPUTS.to_owned());
        }
        match wants.into_iter().find(|c| !has.contains(c)) {
            Some(missing) => {
                let error = Error::FrontendCap(missing.clone());
                Err(Failure::new(error.kind(), error.to_string()).with(Detail::FrontendCap(missing)))
            }
            None => Ok(()),
        }
    }

    fn process(&self, bridge: &Bridge, rootfs: &Path, metadata: &Metadata) -> Result<Process, Failure> {
        let options = bridge.options();
        let mut env = self.config.env.clone();
        for (at, (key, value)) in options.opts.iter().enumerate() {
            env.push(format!("BUILDKIT_FRONTEND_OPT_{at}={key}={value}"));
        }
        let workers: Vec<_> = options
            .workers
            .iter()
            .map(|w| serde_json::json!({"id": w.id, "labels": w.labels, "platforms": w.platforms}))
            .collect();
        let workers = serde_json::to_string(&workers).map_err(|e| Failure::internal(e.to_string()))?;
        env.push(format!("BUILDKIT_SESSION_ID={}", options.session_id));
        env.push(format!("BUILDKIT_WORKERS={workers}"));
        env.push(format!("BUILDKIT_EXPORTEDPRODUCT={}", options.product));
        let entrypoint = &self.config.entrypoint;
        // Written as Go's parser of truth values takes them.
        let isolated = self
            .config
            .labels
            .get(LABEL_NO_NETWORK)
            .is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"));
        Ok(Process {
            args: if entrypoint.is_empty() { vec![PROGRAM.to_owned()] } else { entrypoint.clone() },
            env,
            cwd: match self.config.working_dir.as_str() {
                "" => "/".to_owned(),
                dir => dir.to_owned(),
            },
            rootfs: rootfs.to_owned(),
            mounts: vec![Mount {
                dest: METADATA.to_owned(),
                source: Source::Bind { path: metadata.0.clone(), selector: String::new() },
                readonly: true,
                options: ["nosuid", "nodev", "noexec"].map(str::to_owned).to_vec(),
            }],
            network: if isolated { NetworkMode::None } else { NetworkMode::Sandbox },
            proxy: bridge.proxy(),
            remove_mount_stubs_recursive: true,
            ..Process::default()
        })
    }
}

/// A directory with the frontend's own definition in it; removed when dropped.
struct Metadata(PathBuf);

impl Metadata {
    fn write(scratch: &Path, definition: &[u8]) -> Result<Self, Failure> {
        let dir = scratch.join(format!("frontend-{}", base::id::fresh()));
        let fail = |what, path: &Path, e| Failure::from(sys::Error::new(what, path, e));
        fs::create_dir(&dir).map_err(|e| fail("mkdir", &dir, e))?;
        let this = Self(dir);
        let path = this.0.join(METADATA_FILE);
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o400);
        options
            .open(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, definition))
            .map_err(|e| fail("write", &path, e))?;
        Ok(this)
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "remove the definition of a frontend");
        }
    }
}

#[cfg(test)]
mod tests {
    use base::Kind;

    use super::*;

    #[test]
    fn sources_are_compared_without_tags() {
        let allowed = ["docker/dockerfile".to_owned(), "example.com/a/b:1".to_owned()];
        for yes in ["docker/dockerfile:1", "docker.io/docker/dockerfile", "example.com/a/b:2"] {
            check_allowed(yes, &allowed).unwrap();
        }
        for no in ["docker/dockerfile-upstream", "example.com/a", "evil.com/docker/dockerfile"] {
            let refused = check_allowed(no, &allowed).unwrap_err();
            assert_eq!(refused.kind(), Kind::PermissionDenied);
            assert_eq!(refused.to_string(), format!("'{no}' is not an allowed gateway source"));
        }
        check_allowed("anything/at:all", &[]).unwrap();
    }
}
