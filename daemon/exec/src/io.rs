//! Where a process reads from and writes to.
//!
//! A process without a terminal gets the pipes themselves; nothing stands
//! between it and the reader. A process with one gets a pseudo terminal, and
//! what it writes comes out as `stdout` alone.

use std::fs::File;
use std::process::Stdio;

use rustix::pty::OpenptFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// What standard input is read from.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;

/// Bytes moved in one go.
const CHUNK: usize = 64 << 10;

/// The streams of a process, and what can be told it while it runs.
#[derive(Default)]
pub struct Io {
    /// Standard input; none = empty.
    pub stdin: Option<Input>,
    /// Standard output.
    pub stdout: Output,
    /// Standard error. With a terminal it goes to `stdout`.
    pub stderr: Output,
    /// New sizes of the terminal.
    pub resize: Option<mpsc::Receiver<WindowSize>>,
    /// Signals by number. SIGKILL ends the whole container.
    pub signals: Option<mpsc::Receiver<i32>>,
    /// Told when the runtime has been started.
    pub started: Option<oneshot::Sender<()>>,
}

/// Takes pieces of output as they come.
pub type LogFn = Box<dyn FnMut(&[u8]) + Send>;

/// Where output goes.
#[derive(Default)]
pub enum Output {
    /// Nowhere.
    #[default]
    Discard,
    /// To a function that does not block, such as one that feeds a progress log.
    Log(LogFn),
    /// To a stream; the process waits when the stream does. An error of the
    /// stream discards the rest.
    Stream(Box<dyn AsyncWrite + Send + Unpin>),
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl Output {
    async fn write(&mut self, data: &[u8]) {
        match self {
            Self::Discard => {}
            Self::Log(log) => log(data),
            Self::Stream(stream) => {
                if stream.write_all(data).await.is_err() || stream.flush().await.is_err() {
                    *self = Self::Discard;
                }
            }
        }
    }

    /// Moves everything `from` has to here. A terminal ends with an error.
    async fn drain(mut self, mut from: pipe::Receiver) {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => self.write(buffer.get(..n).unwrap_or_default()).await,
            }
        }
        if let Self::Stream(mut stream) = self {
            _ = stream.shutdown().await;
        }
    }
}

/// The ends of the streams: what the runtime is started with, and ours.
pub(crate) struct Wiring {
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
    pub pump: Pump,
}

/// Our ends of the streams.
pub(crate) struct Pump {
    input: Option<(Input, pipe::Sender)>,
    outputs: Vec<(Output, pipe::Receiver)>,
    /// The terminal, to resize it.
    pub terminal: Option<Terminal>,
}

/// Our end of a terminal.
pub(crate) struct Terminal {
    master: File,
    /// The file system with the other end, which the runtime has; the process
    /// has one of its own.
    device: u64,
}

impl Terminal {
    /// Changes its size, and that of the terminal of `process` if it has one by
    /// now: not every runtime passes a size on.
    pub(crate) fn resize(&self, size: WindowSize, process: Option<&sys::process::Process>) -> bool {
        let size =
            rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        _ = rustix::termios::tcsetwinsize(&self.master, size);
        let inside = process.and_then(|p| p.terminal(self.device));
        inside.is_some_and(|inside| rustix::termios::tcsetwinsize(inside, size).is_ok())
    }
}

pub(crate) fn wire(tty: bool, stdin: Option<Input>, stdout: Output, stderr: Output) -> Result<Wiring, Error> {
    let error = Error::file("open", "pipe");
    if tty { wire_terminal(stdin, stdout) } else { wire_pipes(stdin, stdout, stderr) }.map_err(error)
}

fn wire_pipes(stdin: Option<Input>, stdout: Output, stderr: Output) -> std::io::Result<Wiring> {
    let mut outputs = Vec::new();
    let mut output = |sink: Output| -> std::io::Result<Stdio> {
        if matches!(sink, Output::Discard) {
            return Ok(Stdio::null());
        }
        let (read, write) = std::io::pipe()?;
        outputs.push((sink, pipe::Receiver::from_owned_fd(read.into())?));
        Ok(write.into())
    };
    let (stdout, stderr) = (output(stdout)?, output(stderr)?);
    let mut input = None;
    let stdin = match stdin {
        None => Stdio::null(),
        Some(source) => {
            let (read, write) = std::io::pipe()?;
            input = Some((source, pipe::Sender::from_owned_fd(write.into())?));
            read.into()
        }
    };
    Ok(Wiring { stdin, stdout, stderr, pump: Pump { input, outputs, terminal: None } })
}

fn wire_terminal(stdin: Option<Input>, stdout: Output) -> std::io::Result<Wiring> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(
        name.as_c_str(),
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
    // A terminal is read and written like a pipe.
    let input = match stdin {
        Some(source) => Some((source, pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?)),
        None => None,
    };
    let device = rustix::fs::fstat(&slave)?.st_dev;
    let keyboard = if input.is_some() { slave.try_clone()?.into() } else { Stdio::null() };
    Ok(Wiring {
        stdin: keyboard,
        stdout: slave.try_clone()?.into(),
        stderr: slave.into(),
        pump: Pump {
            input,
            outputs: vec![(stdout, pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?)],
            terminal: Some(Terminal { master: master.into(), device }),
        },
    })
}

impl Pump {
    /// Starts to move output. The handles end when the process has closed its side.
    pub(crate) fn start_output(&mut self, scope: &base::task::Scope) -> Vec<tokio::task::JoinHandle<()>> {
        self.outputs.drain(..).map(|(sink, from)| scope.spawn(sink.drain(from))).collect()
    }

    /// Starts to move input; ends with it, or when the process does not read on.
    /// The caller aborts it when the process has ended.
    pub(crate) fn start_input(&mut self, scope: &base::task::Scope) -> Option<tokio::task::JoinHandle<()>> {
        let (mut source, mut to) = self.input.take()?;
        Some(scope.spawn(async move {
            _ = tokio::io::copy(&mut source, &mut to).await;
        }))
    }
}
