//! The gateway API, from the side of a frontend: a client that is its own, or a
//! program in a container.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use proto::control::SolveRequest as Build;
use proto::control::control_client::ControlClient;
use proto::gateway::exec_message::Input;
use proto::gateway::llb_bridge_client::LlbBridgeClient;
use proto::gateway::{self as msg, result::Result as Refs};
use proto::pb;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::daemon::Daemon;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names the build that a call is for.
#[derive(Clone)]
pub struct Of(Option<String>);

impl Interceptor for Of {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(id) = &self.0 {
            let id = MetadataValue::try_from(id).map_err(|e| Status::internal(e.to_string()))?;
            request.metadata_mut().insert("buildkit-controlapi-buildid", id);
        }
        Ok(request)
    }
}

/// Asks the gateway.
#[derive(Clone)]
pub struct Gateway {
    /// For calls that have no words here.
    pub client: LlbBridgeClient<InterceptedService<Channel, Of>>,
}

/// A process to run in a container.
#[derive(Default)]
pub struct Process {
    /// Arguments, user and so on.
    pub meta: pb::Meta,
    /// On a terminal.
    pub tty: bool,
    /// The security mode.
    pub security: i32,
    /// Variables that are secrets.
    pub secrets: Vec<pb::SecretEnv>,
    /// What it reads.
    pub stdin: Option<Vec<u8>>,
}

impl Process {
    /// `/bin/sh -c SCRIPT`.
    pub fn shell(script: &str) -> Self {
        let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Self { meta: pb::Meta { args, ..pb::Meta::default() }, ..Self::default() }
    }
}

/// How a process ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// Its output.
    pub stdout: String,
    /// Its errors.
    pub stderr: String,
    /// Its code.
    pub code: u32,
    /// What is said of it.
    pub error: String,
}

impl Ended {
    /// What it printed, when all went well.
    ///
    /// # Errors
    /// When it did not.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "{self:?}");
        Ok(self.stdout)
    }
}

/// A process that runs.
pub struct Running {
    /// Tells it things.
    pub tell: mpsc::Sender<msg::ExecMessage>,
    answers: tonic::Streaming<msg::ExecMessage>,
    ended: Ended,
}

impl Running {
    /// Tells it something.
    ///
    /// # Errors
    /// When the daemon does not listen any more.
    pub async fn tell(&self, input: Input) -> Result<()> {
        let message = msg::ExecMessage { process_id: "p".to_owned(), input: Some(input) };
        self.tell.send(message).await.context("tell a process")
    }

    async fn next(&mut self) -> Result<Input> {
        let next = tokio::time::timeout(PATIENCE, self.answers.message()).await.context("no answer")?;
        next?.and_then(|m| m.input).context("the stream of a process has ended")
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// When it ends without.
    pub async fn says(&mut self, text: &str) -> Result<()> {
        while !self.ended.stdout.contains(text) {
            match self.next().await? {
                Input::File(file) => self.take(&file),
                other => bail!("{other:?} before {text:?} in {:?}", self.ended),
            }
        }
        Ok(())
    }

    fn take(&mut self, file: &msg::FdMessage) {
        let text = if file.fd == 1 { &mut self.ended.stdout } else { &mut self.ended.stderr };
        text.push_str(&String::from_utf8_lossy(&file.data));
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the messages are not those they have to be.
    pub async fn end(mut self) -> Result<Ended> {
        let mut exits = 0;
        loop {
            match self.next().await? {
                Input::File(file) => self.take(&file),
                Input::Exit(exit) => {
                    exits += 1;
                    self.ended.code = exit.code;
                    self.ended.error = exit.error.map(|e| e.message).unwrap_or_default();
                }
                Input::Done(_) => {
                    ensure!(exits == 1, "{exits} ends of a process");
                    return Ok(self.ended);
                }
                other => bail!("unexpected message {other:?}"),
            }
        }
    }
}

impl Gateway {
    /// Over `channel`, for the build called `id`; none for whom the channel is.
    pub fn new(channel: Channel, id: Option<&str>) -> Self {
        Self { client: LlbBridgeClient::with_interceptor(channel, Of(id.map(str::to_owned))) }
    }

    /// Solves a definition and gives the id of its result.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn solve(&self, definition: pb::Definition, evaluate: bool) -> Result<String, Status> {
        let request = msg::SolveRequest {
            definition: Some(definition),
            allow_result_return: true,
            allow_result_array_ref: true,
            evaluate,
            ..msg::SolveRequest::default()
        };
        let answer = self.client.clone().solve(request).await?.into_inner();
        match answer.result.and_then(|r| r.result) {
            Some(Refs::Ref(r)) if r.def.is_some() || r.id.is_empty() => Ok(r.id),
            other => Err(Status::internal(format!("unexpected result {other:?}"))),
        }
    }

    /// Opens a container on `mounts`.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn open(&self, id: &str, mounts: Vec<pb::Mount>) -> Result<(), Status> {
        self.open_with(msg::NewContainerRequest {
            container_id: id.to_owned(),
            mounts,
            ..msg::NewContainerRequest::default()
        })
        .await
    }

    /// Opens a container.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn open_with(&self, request: msg::NewContainerRequest) -> Result<(), Status> {
        self.client.clone().new_container(request).await.map(|_| ())
    }

    /// Ends a container.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn release(&self, id: &str) -> Result<(), Status> {
        let request = msg::ReleaseContainerRequest { container_id: id.to_owned() };
        self.client.clone().release_container(request).await.map(|_| ())
    }

    /// Starts a process in a container.
    ///
    /// # Errors
    /// When it is not answered as it has to be.
    pub async fn start(&self, container: &str, process: Process) -> Result<Running> {
        let (tell, messages) = mpsc::channel(16);
        let Process { meta, tty, security, secrets, stdin } = process;
        let init = msg::InitMessage {
            container_id: container.to_owned(),
            meta: Some(meta),
            fds: if stdin.is_some() || tty { vec![0, 1, 2] } else { vec![1, 2] },
            tty,
            security,
            secretenv: secrets,
        };
        tell.send(msg::ExecMessage { process_id: "p".to_owned(), input: Some(Input::Init(init)) }).await?;
        let answers = self.client.clone().exec_process(ReceiverStream::new(messages)).await?.into_inner();
        let mut running = Running { tell, answers, ended: Ended::default() };
        match running.next().await? {
            Input::Started(_) => {}
            other => bail!("{other:?} before the start"),
        }
        if let Some(data) = stdin {
            running.tell(Input::File(msg::FdMessage { fd: 0, eof: false, data })).await?;
            running.tell(Input::File(msg::FdMessage { fd: 0, eof: true, data: Vec::new() })).await?;
        }
        Ok(running)
    }

    /// Runs a process in a container to its end.
    ///
    /// # Errors
    /// When it is not answered as it has to be.
    pub async fn exec(&self, container: &str, process: Process) -> Result<Ended> {
        self.start(container, process).await?.end().await
    }

    /// Ends the frontend with a result, which may be empty.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn finish(&self, id: &str, metadata: &[(&str, &str)]) -> Result<(), Status> {
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
        let reference = msg::Ref { id: id.to_owned(), def: None };
        let result = msg::Result { result: Some(Refs::Ref(reference)), metadata, ..msg::Result::default() };
        self.client
            .clone()
            .r#return(msg::ReturnRequest { result: Some(result), error: None })
            .await
            .map(|_| ())
    }
}

/// Runs a case that waits for answers.
///
/// # Errors
/// Those of the case.
pub fn wait<T>(case: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(case)
}

/// A bind mount of a result.
pub fn bind(id: &str, dest: &str) -> pb::Mount {
    pb::Mount { result_id: id.to_owned(), dest: dest.to_owned(), ..pb::Mount::default() }
}

/// A build whose frontend is the test.
pub struct Client {
    /// What it asks.
    pub gateway: Gateway,
    build: JoinHandle<Result<(), Status>>,
}

impl Client {
    /// Begins a build that is entitled to `entitlements`, in a session of the test's.
    ///
    /// # Errors
    /// When the daemon is not there.
    pub async fn begin(daemon: &Daemon, session: &str, entitlements: &[&str]) -> Result<Self> {
        let channel = connect(daemon).await?;
        let id = format!("gateway-{}", base::id::fresh());
        let request = Build {
            r#ref: id.clone(),
            session: session.to_owned(),
            entitlements: entitlements.iter().map(|e| (*e).to_owned()).collect(),
            ..Build::default()
        };
        let mut control = ControlClient::new(channel.clone());
        let build = tokio::spawn(async move { control.solve(request).await.map(|_| ()) });
        Ok(Self { gateway: Gateway::new(channel, Some(&id)), build })
    }

    /// Ends the build and waits for it.
    ///
    /// # Errors
    /// When it fails.
    pub async fn finish(self) -> Result<()> {
        self.gateway.finish("", &[]).await?;
        Ok(self.build.await??)
    }
}

/// A connection to the daemon.
///
/// # Errors
/// When there is none.
pub async fn connect(daemon: &Daemon) -> Result<Channel> {
    let addr = daemon.addr();
    let socket = PathBuf::from(addr.strip_prefix("unix://").unwrap_or(&addr));
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    Ok(Endpoint::from_static("http://daemon").connect_with_connector(connector).await?)
}

/// The connection that a frontend in a container has: its input and output.
///
/// # Errors
/// When they are no pipes.
pub async fn stdio() -> Result<Channel> {
    use tokio::net::unix::pipe::{Receiver, Sender};
    let reader = Receiver::from_owned_fd(rustix::io::dup(std::io::stdin())?)?;
    let writer = Sender::from_owned_fd(rustix::io::dup(std::io::stdout())?)?;
    let mut once = Some(tokio::io::join(reader, writer));
    let connector = tower::service_fn(move |_| {
        let io = once.take().ok_or_else(|| std::io::Error::other("there is only one connection"));
        async move { Ok::<_, std::io::Error>(TokioIo::new(io?)) }
    });
    Ok(Endpoint::from_static("http://daemon").connect_with_connector(connector).await?)
}
