//! Instructions as values: what each says, with its flags, as it is written.
//!
//! Words still contain their variables and quotes. Whoever converts an
//! instruction first calls [`Command::expand`] and [`Command::expand_raw`];
//! `FROM`, `EXPOSE`, `ARG` and `HEALTHCHECK` are expanded by other rules, by
//! the converter.

pub mod csv;
mod expand;
mod flags;
mod mount;
mod parse;
mod problem;

use std::time::Duration;

use super::Lines;

pub use parse::{parse, parse_trigger};
pub use problem::Problem;

/// The file: what comes before the first `FROM`, and the stages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dockerfile {
    /// `ARG` before the first `FROM`.
    pub args: Vec<Instruction<Arg>>,
    /// The stages, in order. May be empty.
    pub stages: Vec<Stage>,
}

/// From one `FROM` to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stage {
    /// The name after `AS`, in lower case; empty without one.
    pub name: String,
    /// The base, as it is written.
    pub base_name: String,
    /// `--platform`, as it is written; empty without one.
    pub platform: String,
    /// The word `FROM`, as it is written.
    pub keyword: String,
    /// The whole `FROM` line.
    pub code: String,
    /// The comment `# <name> <description>` above it, its description.
    pub doc: String,
    /// Where the `FROM` is.
    pub lines: Lines,
    /// The comments above it.
    pub comments: Vec<String>,
    /// What follows.
    pub instructions: Vec<Instruction>,
}

/// One instruction and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction<C = Command> {
    /// The keyword, as it is written.
    pub name: String,
    /// The whole instruction, continuation lines joined, trimmed, without
    /// heredocs. This is what histories and step names show.
    pub code: String,
    /// Where it is.
    pub lines: Lines,
    /// The comments above it, without `#`.
    pub comments: Vec<String>,
    /// What it says.
    pub command: C,
}

/// What an instruction says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Command {
    Add(Add),
    Arg(Arg),
    Cmd(CommandLine),
    Copy(Copy),
    Entrypoint(CommandLine),
    Env(Vec<KeyValue>),
    /// Ports, sorted.
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Label),
    Maintainer(String),
    /// The instruction to run later, heredocs included.
    Onbuild(String),
    Run(Run),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// `KEY=value`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Written `KEY value`.
    pub legacy: bool,
}

/// The variables of one `ARG`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arg {
    /// At least one.
    pub vars: Vec<ArgVar>,
}

/// `NAME` or `NAME=default`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ArgVar {
    /// The name.
    pub key: String,
    /// The default.
    pub value: Option<String>,
    /// From the comment `# <name> <description>`.
    pub doc: String,
}

/// `LABEL`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Label {
    /// The labels, in order.
    pub labels: Vec<KeyValue>,
    /// Not to be expanded: it was not written in the file.
    pub literal: bool,
}

/// A program with arguments, or a line for the shell. Words of an array and of
/// a line are both as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// The arguments; for a shell the one line, or nothing.
    pub args: Vec<String>,
    /// Heredocs.
    pub files: Vec<InlineFile>,
    /// To be given to the shell.
    pub shell: bool,
}

/// A heredoc of a command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InlineFile {
    /// The word after `<<`.
    pub name: String,
    /// The lines up to the closing word, as they are in the file. Bytes: a
    /// file need not be text.
    pub data: Vec<u8>,
    /// `<<-`: leading tabs are to be removed.
    pub chomp: bool,
}

/// What is copied, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    /// The last word.
    pub dest: String,
    /// Paths, or for `ADD` also URLs.
    pub paths: Vec<String>,
    /// Files given inline.
    pub contents: Vec<SourceContent>,
}

/// A heredoc to copy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceContent {
    /// The file's name.
    pub path: String,
    /// Its content, leading tabs removed where `<<-` asks for it.
    pub data: Vec<u8>,
    /// Variables in it are to be expanded.
    pub expand: bool,
}

/// `ADD`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Add {
    /// From where to where.
    pub sources: Sources,
    /// `--chown`, empty when not given.
    pub chown: String,
    /// `--chmod`, empty when not given.
    pub chmod: String,
    /// `--link`.
    pub link: bool,
    /// `--exclude`, each.
    pub exclude: Vec<String>,
    /// `--keep-git-dir`, when given.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`, empty when not given.
    pub checksum: String,
    /// `--unpack`, when given.
    pub unpack: Option<bool>,
}

/// `COPY`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copy {
    /// From where to where.
    pub sources: Sources,
    /// `--from`, empty when not given.
    pub from: String,
    /// `--chown`, empty when not given.
    pub chown: String,
    /// `--chmod`, empty when not given.
    pub chmod: String,
    /// `--link`.
    pub link: bool,
    /// `--exclude`, each.
    pub exclude: Vec<String>,
    /// `--parents`.
    pub parents: bool,
}

/// `HEALTHCHECK`. Zero means: inherit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", line]`.
    pub test: Vec<String>,
    /// `--interval`.
    pub interval: Duration,
    /// `--timeout`.
    pub timeout: Duration,
    /// `--start-period`.
    pub start_period: Duration,
    /// `--start-interval`.
    pub start_interval: Duration,
    /// `--retries`, not negative.
    pub retries: i32,
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Run {
    /// What to run.
    pub line: CommandLine,
    /// `--mount`, parsed. Before [`Command::expand`] only `from` is known.
    pub mounts: Vec<Mount>,
    /// `--mount`, each as it is written.
    pub mount_flags: Vec<String>,
    /// `--network`.
    pub network: Network,
    /// `--security`.
    pub security: Security,
    /// `--device`, each.
    pub devices: Vec<Device>,
    /// The names of the flags that were given.
    pub flags_used: Vec<String>,
}

/// `RUN --network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Network {
    #[default]
    Default,
    None,
    Host,
}

/// `RUN --security`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Security {
    #[default]
    Sandbox,
    Insecure,
}

/// `RUN --device`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Which.
    pub name: String,
    /// The build fails without it.
    pub required: bool,
}

/// `RUN --mount`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// `type`.
    pub kind: MountKind,
    /// `from`, empty when not given.
    pub from: String,
    /// `source`, empty when not given.
    pub source: String,
    /// `target`, empty when not given.
    pub target: String,
    /// Read-only, defaults of the type applied.
    pub read_only: bool,
    /// `size` of a tmpfs in bytes, zero when not given.
    pub size_limit: i64,
    /// `id`, empty when not given.
    pub id: String,
    /// `sharing` of a cache, when given.
    pub sharing: Option<Sharing>,
    /// `required` of a secret or ssh mount.
    pub required: bool,
    /// `env` of a secret; empty text asks for the default name.
    pub env: Option<String>,
    /// `mode`.
    pub mode: Option<u32>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
}

/// The type of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum MountKind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// How steps share a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sharing {
    Shared,
    Private,
    Locked,
}
