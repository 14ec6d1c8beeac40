//! The command line.

use base::task::Scope;
use base::{Failure, gotext, version};
use clap::builder::{StringValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};

use crate::build::BuildArgs;
use crate::commands;
use crate::connect::Connection;

const DEFAULT_ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";

/// A flag that may be given a value: `--x`, `--x=false`.
fn switch() -> impl TypedValueParser<Value = bool> {
    StringValueParser::new()
        .try_map(|text| gotext::parse_bool(&text).ok_or_else(|| format!("invalid boolean {text:?}")))
}

fn version_text() -> String {
    format!("{} {} {}", version::PACKAGE, version::VERSION, version::REVISION)
}

/// build utility
#[derive(Debug, Parser)]
#[command(name = "buildctl", version = version_text(), disable_version_flag = true, args_override_self = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// print the version
    #[arg(short = 'v', long = "version", action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

/// Flags of all commands.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// enable debug output in logs
    #[arg(long, global = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = switch(), hide_possible_values = true)]
    pub(crate) debug: bool,
    /// buildkitd address
    #[arg(long, global = true, env = "BUILDKIT_HOST", default_value = DEFAULT_ADDRESS)]
    pub(crate) addr: String,
    /// log formatter: json or text
    #[arg(long, global = true, default_value = "text")]
    log_format: String,
    /// buildkitd server name for certificate validation
    #[arg(long, global = true, default_value = "")]
    pub(crate) tlsservername: String,
    /// CA certificate for validation
    #[arg(long, global = true, default_value = "")]
    pub(crate) tlscacert: String,
    /// client certificate
    #[arg(long, global = true, default_value = "")]
    pub(crate) tlscert: String,
    /// client key
    #[arg(long, global = true, default_value = "")]
    pub(crate) tlskey: String,
    /// directory containing CA certificate, client certificate, and client key; names are
    /// (ca.pem, cert.pem, key.pem) or (ca.crt, tls.crt, tls.key)
    #[arg(long, global = true, default_value = "")]
    pub(crate) tlsdir: String,
    /// timeout backend connection after value seconds
    #[arg(long, global = true, default_value_t = 5)]
    pub(crate) timeout: u64,
    /// block RPCs until the connection becomes available
    #[arg(long, global = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = switch(), hide_possible_values = true)]
    pub(crate) wait: bool,
}

impl Global {
    /// Sets up logging to standard error.
    pub(crate) fn log(&self) -> Result<(), Failure> {
        let level = if self.debug { tracing::Level::DEBUG } else { tracing::Level::INFO };
        let filter = tracing_subscriber::EnvFilter::new(format!("warn,buildctl={level},session={level}"));
        let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
        match self.log_format.as_str() {
            "json" => log.json().init(),
            "text" | "" => log.with_target(false).init(),
            other => return Err(Failure::invalid(format!("unsupported log type {}", gotext::quote(other)))),
        }
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// build
    #[command(alias = "b")]
    Build(Box<BuildArgs>),
    #[command(flatten)]
    Other(Other),
}

#[derive(Debug, Subcommand)]
enum Other {
    /// disk usage
    Du(commands::usage::DuArgs),
    /// clean up build cache
    Prune(commands::usage::PruneArgs),
    /// clean up build histories
    PruneHistories(commands::history::FormatArgs),
    /// debug utilities
    #[command(subcommand)]
    Debug(Debug),
    /// Proxy the stdio stream to the daemon connection. Should not be invoked manually.
    #[command(hide = true)]
    DialStdio,
    /// Print a completion script for a shell
    #[command(hide = true)]
    Completion {
        /// bash, zsh, fish …
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum Debug {
    /// dump LLB in human-readable format. LLB can be also passed via stdin. This command does not
    /// require the daemon to be running.
    DumpLlb(commands::offline::DumpArgs),
    /// list workers
    Workers(commands::workers::WorkersArgs),
    /// display internal information
    Info(commands::workers::InfoArgs),
    /// display build events
    Monitor(commands::history::MonitorArgs),
    /// display build logs
    Logs(commands::history::LogsArgs),
    /// control build records
    Ctl(commands::history::CtlArgs),
    /// retrieve a blob from contentstore
    Get(commands::history::GetArgs),
    /// list build records
    Histories(commands::history::FormatArgs),
}

impl Cli {
    /// Does what was asked.
    pub(crate) async fn run(self, scope: &Scope) -> Result<(), Failure> {
        match self.command {
            // A build is given up in order, and shows how.
            Command::Build(args) => crate::build::run(&self.global, *args, scope).await,
            Command::Other(command) => scope.run(command.run(&self.global)).await,
        }
    }
}

impl Other {
    async fn run(self, global: &Global) -> Result<(), Failure> {
        let connect = || Connection::open(global);
        match self {
            Self::Du(args) => commands::usage::du(&connect().await?, args).await,
            Self::Prune(args) => commands::usage::prune(&connect().await?, args).await,
            Self::PruneHistories(args) => commands::history::prune(&connect().await?, args).await,
            Self::DialStdio => commands::offline::dial_stdio(global).await,
            Self::Completion { shell } => {
                use clap::CommandFactory;
                clap_complete::generate(shell, &mut Cli::command(), "buildctl", &mut std::io::stdout());
                Ok(())
            }
            Self::Debug(Debug::DumpLlb(args)) => commands::offline::dump(args),
            Self::Debug(Debug::Workers(args)) => commands::workers::list(&connect().await?, args).await,
            Self::Debug(Debug::Info(args)) => commands::workers::info(&connect().await?, args).await,
            Self::Debug(Debug::Monitor(args)) => commands::history::monitor(&connect().await?, args).await,
            Self::Debug(Debug::Logs(args)) => commands::history::logs(&connect().await?, args).await,
            Self::Debug(Debug::Ctl(args)) => commands::history::control(&connect().await?, args).await,
            Self::Debug(Debug::Get(args)) => commands::history::get(&connect().await?, args).await,
            Self::Debug(Debug::Histories(args)) => commands::history::list(&connect().await?, args).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn version_is_four_words() {
        let e = Cli::try_parse_from(["buildctl", "--version"]).unwrap_err();
        assert_eq!(e.to_string().split_whitespace().count(), 4);
    }

    #[test]
    fn global_flags_go_anywhere() {
        for args in [
            ["buildctl", "--addr", "tcp://x:1", "du", "-v"],
            ["buildctl", "du", "--addr=tcp://x:1", "-v", "--debug=false"],
        ] {
            let cli = Cli::try_parse_from(args).unwrap();
            assert_eq!(cli.global.addr, "tcp://x:1");
            assert!(!cli.global.debug);
        }
    }

    #[test]
    fn a_slip_is_answered_with_what_was_meant() {
        let e = Cli::try_parse_from(["buildctl", "build", "--fronted", "x"]).unwrap_err();
        assert!(e.to_string().contains("--frontend"), "{e}");
    }
}
