//! Processes in containers, over one stream of messages.
//!
//! A stream carries any number of processes, each under an id the frontend has
//! chosen. `Init` is answered by `Started`; then input, sizes and signals go one
//! way and output the other; `Exit` tells how it ended, which may be that it
//! could not be started, and after the rest of the output `Done` is the last
//! message. What is wrong with the messages themselves ends the stream.

use std::collections::HashMap;

use base::Failure;
use base::task::Scope;
use exec::{Io, Output, WindowSize};
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use ops::{Container, Start};
use proto::gateway::{self as msg, exec_message::Input};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::status;
use crate::Bridge;

/// Messages on their way to the frontend.
pub(super) type Messages = BoxStream<'static, Result<msg::ExecMessage, Status>>;

/// How many messages may wait to be sent.
const QUEUE: usize = 16;
/// Bytes of output in one message, and of input or output that may wait.
const CHUNK: usize = 32 << 10;
/// Signals and sizes that may wait.
const TOLD: usize = 16;
/// The code of a process of which nothing is known, such as that it was never started.
const UNKNOWN: u32 = 255;
/// The descriptors that processes have.
const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
/// More open descriptors than this nobody asks for.
const MAX_FDS: usize = 64;

/// Serves one stream.
pub(super) fn serve(bridge: Bridge, incoming: Streaming<msg::ExecMessage>) -> Messages {
    let (out, messages) = mpsc::channel(QUEUE);
    let scope = bridge.scope().clone();
    scope.clone().spawn(async move {
        let mut stream = Stream { bridge, scope: scope.clone(), out: out.clone(), processes: HashMap::new() };
        let served = tokio::select! {
            cause = scope.cancelled() => Err(status(cause)),
            served = stream.serve(incoming) => served,
        };
        if let Err(status) = served {
            _ = out.send(Err(status)).await;
        }
    });
    Box::pin(ReceiverStream::new(messages))
}

struct Stream {
    bridge: Bridge,
    scope: Scope,
    out: mpsc::Sender<Result<msg::ExecMessage, Status>>,
    processes: HashMap<String, Process>,
}

/// A process, as far as it can be told things.
struct Process {
    stdin: Option<DuplexStream>,
    sizes: mpsc::Sender<WindowSize>,
    signals: mpsc::Sender<i32>,
    ended: CancellationToken,
}

impl Stream {
    async fn serve(&mut self, mut incoming: Streaming<msg::ExecMessage>) -> Result<(), Status> {
        while let Some(message) = incoming.next().await {
            let msg::ExecMessage { process_id: id, input } = message?;
            if id.is_empty() {
                return Err(Status::invalid_argument("ProcessID required"));
            }
            match input {
                Some(Input::Init(init)) => self.start(id, init)?,
                Some(Input::File(file)) => self.process(&id)?.write(file).await?,
                Some(Input::Resize(size)) => {
                    let process = self.process(&id)?;
                    let characters = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
                    let size = WindowSize { rows: characters(size.rows), columns: characters(size.cols) };
                    process.tell(process.sizes.send(size)).await;
                }
                Some(Input::Signal(signal)) => {
                    let process = self.process(&id)?;
                    let number = number(&signal.name)
                        .ok_or_else(|| Status::invalid_argument(format!("Unknown signal {}", signal.name)))?;
                    process.tell(process.signals.send(number)).await;
                }
                // The rest is ours to say.
                Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) | None => {}
            }
        }
        Ok(())
    }

    fn process(&mut self, id: &str) -> Result<&mut Process, Status> {
        let missing = || Status::not_found(format!("IO for process {} not found", base::gotext::quote(id)));
        self.processes.get_mut(id).ok_or_else(missing)
    }

    fn start(&mut self, id: String, init: msg::InitMessage) -> Result<(), Status> {
        if self.processes.contains_key(&id) {
            return Err(Status::already_exists(format!("Process {id} already exists")));
        }
        let msg::InitMessage { container_id, meta, fds, tty, security, secretenv } = init;
        let container = self.bridge.container(&container_id).ok_or_else(|| {
            let name = base::gotext::quote(&container_id);
            Status::not_found(format!("container {name} previously released or not created"))
        })?;
        if fds.len() > MAX_FDS {
            return Err(Status::invalid_argument(format!("{} open descriptors are too many", fds.len())));
        }
        let mut io = Io::default();
        let mut outputs = Vec::new();
        for (fd, output) in [(STDOUT, &mut io.stdout), (STDERR, &mut io.stderr)] {
            if fds.contains(&fd) {
                let (theirs, ours) = tokio::io::duplex(CHUNK);
                *output = Output::Stream(Box::new(theirs));
                outputs.push((fd, ours));
            }
        }
        let mut stdin = None;
        if fds.contains(&STDIN) {
            let (theirs, ours) = tokio::io::duplex(CHUNK);
            io.stdin = Some(Box::new(theirs));
            stdin = Some(ours);
        }
        let (sizes, resize) = mpsc::channel(TOLD);
        let (signals, signal) = mpsc::channel(TOLD);
        (io.resize, io.signals) = (Some(resize), Some(signal));
        let ended = CancellationToken::new();
        self.processes.insert(id.clone(), Process { stdin, sizes, signals, ended: ended.clone() });
        let start = Start { meta: meta.unwrap_or_default(), tty, security, secret_env: secretenv };
        let teller = Teller { id, out: self.out.clone() };
        // Other descriptors are never written to.
        let silent = fds.into_iter().filter(|fd| *fd > STDERR).collect();
        self.scope.spawn(async move {
            let running = run(&teller, container, start, io, outputs, silent, &ended);
            // Whoever does not listen any more is not told either.
            _ = running.await;
        });
        Ok(())
    }
}

impl Process {
    async fn write(&mut self, file: msg::FdMessage) -> Result<(), Status> {
        let unavailable = || Status::out_of_range(format!("fd {} unavailable to write", file.fd));
        let stdin = self.stdin.as_mut().filter(|_| file.fd == STDIN).ok_or_else(unavailable)?;
        let written = tokio::select! {
            written = stdin.write_all(&file.data) => written,
            // Nobody reads it any more, which is no fault of who sent it.
            () = self.ended.cancelled() => Ok(()),
        };
        if written.is_err() || file.eof {
            self.stdin = None;
        }
        Ok(())
    }

    async fn tell<E>(&self, telling: impl Future<Output = Result<(), E>>) {
        tokio::select! {
            _ = telling => {}
            () = self.ended.cancelled() => {}
        }
    }
}

/// Tells the frontend about one process.
struct Teller {
    id: String,
    out: mpsc::Sender<Result<msg::ExecMessage, Status>>,
}

/// The frontend does not listen.
struct Gone;

impl Teller {
    async fn tell(&self, input: Input) -> Result<(), Gone> {
        let message = msg::ExecMessage { process_id: self.id.clone(), input: Some(input) };
        self.out.send(Ok(message)).await.map_err(|_| Gone)
    }

    async fn output(&self, fd: u32, mut from: DuplexStream) -> Result<(), Gone> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = from.read(&mut buffer).await.unwrap_or(0);
            let data = buffer.get(..read).unwrap_or_default().to_vec();
            self.tell(Input::File(msg::FdMessage { fd, eof: read == 0, data })).await?;
            if read == 0 {
                return Ok(());
            }
        }
    }

    async fn exit(&self, outcome: Result<(), Failure>) -> Result<(), Gone> {
        let mut exit = msg::ExitMessage::default();
        if let Err(failure) = outcome {
            let code = failure.details().iter().find_map(|d| match d {
                base::Detail::Exit { code } => Some(*code),
                _ => None,
            });
            exit.code = code.unwrap_or(UNKNOWN);
            exit.error = Some(session::status::to_rpc(&failure));
        }
        self.tell(Input::Exit(exit)).await
    }
}

async fn run(
    teller: &Teller,
    container: Arc<Container>,
    start: Start,
    mut io: Io,
    outputs: Vec<(u32, DuplexStream)>,
    silent: Vec<u32>,
    ended: &CancellationToken,
) -> Result<(), Gone> {
    let _ended = ended.clone().drop_guard();
    let (tell, told) = oneshot::channel();
    io.started = Some(tell);
    let mut running = std::pin::pin!(container.run(start, io));
    let early = tokio::select! {
        biased;
        outcome = &mut running => Some(outcome),
        Ok(()) = told => None,
    };
    teller.tell(Input::Started(msg::StartedMessage {})).await?;
    let exit = async {
        let outcome = match early {
            Some(outcome) => outcome,
            None => running.await,
        };
        ended.cancel();
        teller.exit(outcome).await
    };
    let outputs = join_all(outputs.into_iter().map(|(fd, from)| teller.output(fd, from)));
    let (exit, outputs) = tokio::join!(exit, outputs);
    exit?;
    outputs.into_iter().collect::<Result<(), Gone>>()?;
    for fd in silent {
        teller.tell(Input::File(msg::FdMessage { fd, eof: true, data: Vec::new() })).await?;
    }
    teller.tell(Input::Done(msg::DoneMessage {})).await
}

/// The number of a signal, by its name with or without `SIG`.
fn number(name: &str) -> Option<i32> {
    const FIRST_REALTIME: i32 = 34;
    const LAST_REALTIME: i32 = 64;
    use rustix::process::Signal as S;
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let signal = match name {
        "ABRT" | "IOT" => S::ABORT,
        "ALRM" => S::ALARM,
        "BUS" => S::BUS,
        "CHLD" | "CLD" => S::CHILD,
        "CONT" => S::CONT,
        "FPE" => S::FPE,
        "HUP" => S::HUP,
        "ILL" => S::ILL,
        "INT" => S::INT,
        "IO" | "POLL" => S::IO,
        "KILL" => S::KILL,
        "PIPE" => S::PIPE,
        "PROF" => S::PROF,
        "PWR" => S::POWER,
        "QUIT" => S::QUIT,
        "SEGV" => S::SEGV,
        "STKFLT" => S::STKFLT,
        "STOP" => S::STOP,
        "SYS" => S::SYS,
        "TERM" => S::TERM,
        "TRAP" => S::TRAP,
        "TSTP" => S::TSTP,
        "TTIN" => S::TTIN,
        "TTOU" => S::TTOU,
        "URG" => S::URG,
        "USR1" => S::USR1,
        "USR2" => S::USR2,
        "VTALRM" => S::VTALARM,
        "WINCH" => S::WINCH,
        "XCPU" => S::XCPU,
        "XFSZ" => S::XFSZ,
        other => {
            let offset = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i32>().ok() };
            let number = match (other.strip_prefix("RTMIN"), other.strip_prefix("RTMAX")) {
                (Some(up), _) => FIRST_REALTIME.checked_add(offset(up)?)?,
                (_, Some(down)) => LAST_REALTIME.checked_add(offset(down)?)?,
                _ => return None,
            };
            return (FIRST_REALTIME..=LAST_REALTIME).contains(&number).then_some(number);
        }
    };
    Some(signal.as_raw())
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_have_numbers() {
        for (name, is) in [
            ("KILL", Some(9)),
            ("SIGHUP", Some(1)),
            ("CLD", Some(17)),
            ("RTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX+1", None),
            ("9", None),
            ("", None),
        ] {
            assert_eq!(number(name), is, "{name}");
        }
    }
}
