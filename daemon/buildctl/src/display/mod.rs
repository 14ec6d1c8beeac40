//! What a build looks like while it runs.
//!
//! The daemon sends states of vertices, counters, output and warnings. A
//! [`trace::Trace`] keeps what is known; [`plain`] prints it as it comes, one
//! vertex at a time, [`tty`] redraws a list, [`raw`] passes everything on as JSON.

mod colors;
mod plain;
mod raw;
mod trace;
mod tty;
mod window;

use std::io::Write;
use std::time::{Duration, Instant};

use base::{Failure, gotext};
use proto::control::StatusResponse;

use plain::Plain;
use trace::Trace;
use tty::Tty;

pub(crate) use raw::encode;

/// Redrawing more often than this helps nobody.
const EVERY: Duration = Duration::from_millis(100);
/// How long a display may go without being looked after.
pub(crate) const TICK: Duration = Duration::from_millis(150);

/// How to show progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Auto,
    Plain,
    Tty,
    RawJson,
    Quiet,
}

impl Mode {
    /// Reads the value of `--progress`. With `auto` the environment may decide.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let environment = std::env::var("BUILDKIT_PROGRESS").unwrap_or_default();
        let text = if text == "auto" && !environment.is_empty() { environment.as_str() } else { text };
        match text {
            "auto" | "" => Ok(Self::Auto),
            "plain" => Ok(Self::Plain),
            "tty" => Ok(Self::Tty),
            "rawjson" => Ok(Self::RawJson),
            "quiet" => Ok(Self::Quiet),
            other => Err(Failure::invalid(format!("invalid progress mode {other}"))),
        }
    }
}

/// Where to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

impl Output {
    fn writer(self) -> Box<dyn Write + Send> {
        match self {
            Self::Stdout => Box::new(std::io::stdout()),
            Self::Stderr => Box::new(std::io::stderr()),
        }
    }

    fn terminal(self) -> Option<console::Term> {
        let term = match self {
            Self::Stdout => console::Term::stdout(),
            Self::Stderr => console::Term::stderr(),
        };
        term.is_term().then_some(term)
    }
}

enum Shape {
    Plain(Plain),
    Tty(Tty),
    Raw,
    Quiet,
}

/// A display. What cannot be written is not shown: a build does not end
/// because nobody watches.
pub(crate) struct Display {
    shape: Shape,
    trace: Trace,
    out: Box<dyn Write + Send>,
    drawn: Option<Instant>,
}

impl Display {
    /// A display of this mode.
    ///
    /// # Errors
    /// When it needs a terminal and there is none.
    pub(crate) fn open(mode: Mode, output: Output) -> Result<Self, Failure> {
        let shape = match (mode, output.terminal()) {
            (Mode::Auto | Mode::Tty, Some(term)) => Shape::Tty(Tty::new(term)),
            (Mode::Tty, None) => {
                return Err(Failure::invalid("failed to get console: provided file is not a console"));
            }
            (Mode::Auto | Mode::Plain, _) => Shape::Plain(Plain::new(short_names())),
            (Mode::RawJson, _) => Shape::Raw,
            (Mode::Quiet, _) => Shape::Quiet,
        };
        Ok(Self::new(shape, output.writer()))
    }

    fn new(shape: Shape, out: Box<dyn Write + Send>) -> Self {
        let lines = window_lines();
        let trace = Trace::new(matches!(shape, Shape::Tty(_)).then_some(lines));
        Self { shape, trace, out, drawn: None }
    }

    /// Takes in what the daemon says.
    pub(crate) fn update(&mut self, status: StatusResponse) {
        match &self.shape {
            Shape::Quiet => return,
            Shape::Raw => {
                _ = self.out.write_all(&encode(&status)).and_then(|()| self.out.flush());
                return;
            }
            Shape::Plain(_) | Shape::Tty(_) => self.trace.update(status),
        }
        if self.drawn.is_none_or(|at| at.elapsed() >= EVERY) {
            self.refresh();
        }
    }

    /// Shows what has not been shown yet.
    pub(crate) fn refresh(&mut self) {
        self.drawn = Some(Instant::now());
        let mut text = String::new();
        match &mut self.shape {
            Shape::Plain(plain) => plain.print(&mut self.trace, &mut text),
            Shape::Tty(tty) => tty.draw(&mut self.trace, false, &mut text),
            Shape::Raw | Shape::Quiet => {}
        }
        self.write(&text);
    }

    /// Shows the end, and the output of what failed.
    pub(crate) fn finish(&mut self) {
        let mut text = String::new();
        match &mut self.shape {
            Shape::Plain(plain) => plain.print(&mut self.trace, &mut text),
            Shape::Tty(tty) => tty.draw(&mut self.trace, true, &mut text),
            Shape::Raw | Shape::Quiet => {}
        }
        self.trace.failures(&mut text);
        self.write(&text);
    }

    fn write(&mut self, text: &str) {
        if !text.is_empty() {
            _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        }
    }
}

/// People who want long names cut say so.
fn short_names() -> bool {
    std::env::var("PROGRESS_NO_TRUNC").is_ok_and(|v| v == "0")
}

/// Lines of output shown below a vertex on a terminal.
fn window_lines() -> usize {
    const DEFAULT: usize = 6;
    let lines = std::env::var("BUILDKIT_TTY_LOG_LINES").ok();
    let lines = lines.and_then(|v| gotext::parse_int(&v, 32).ok()).and_then(|n| usize::try_from(n).ok());
    lines.filter(|n| *n > 0).unwrap_or(DEFAULT)
}
