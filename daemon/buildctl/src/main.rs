//! `buildctl`: builds, and looks after a build daemon.
//!
//! The commands, their flags and what they print are those of the program of
//! the same name that comes with moby/buildkit; scripts and other programs
//! depend on them.

mod build;
mod cli;
mod commands;
mod connect;
mod credentials;
mod display;
mod errors;
mod format;

use std::process::ExitCode;

use base::Failure;
use base::task::Scope;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // A group of commands without a command is a wish for help, not a mistake.
            if let Some(help) = help_instead(&e) {
                print!("{help}");
                return ExitCode::SUCCESS;
            }
            // Help and version are errors to the parser.
            let code = if e.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            _ = e.print();
            return code;
        }
    };
    let debug = cli.global.debug;
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            errors::print(&failure, debug);
            ExitCode::FAILURE
        }
    }
}

/// The help of the group of commands that was given without a command. Where
/// the environment sets a flag, the parser does not think of it itself.
fn help_instead(e: &clap::Error) -> Option<StyledStr> {
    match e.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Some(e.render()),
        ErrorKind::MissingSubcommand => {
            let mut command = cli::Cli::command();
            command.build();
            let Some(ContextValue::String(names)) = e.get(ContextKind::InvalidSubcommand) else {
                return Some(command.render_help());
            };
            let mut group = &mut command;
            for name in names.split_whitespace().skip(1) {
                group = group.find_subcommand_mut(name)?;
            }
            Some(group.render_help())
        }
        _ => None,
    }
}

fn start(cli: cli::Cli) -> Result<(), Failure> {
    cli.global.log()?;
    // HTTP clients take the process's cryptography; there is no other here.
    _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::internal(format!("start runtime: {e}")))?;
    let result = runtime.block_on(async {
        let scope = Scope::root();
        let interrupts = interrupts(&scope);
        let work = cli.run(&scope);
        let result = tokio::select! {
            result = work => result,
            () = interrupts => Err(scope.cause()),
        };
        scope.cancel(Failure::canceled("program ends"));
        result
    });
    // A thread may still be reading standard input.
    runtime.shutdown_background();
    result
}

/// The first signal asks for the end, the third one makes it.
async fn interrupts(scope: &Scope) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    for count in 1.. {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        scope.cancel(Failure::canceled("context canceled"));
        if count >= 3 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_alone_is_answered_with_its_help() {
        // With an address given, as by the environment.
        for (args, wanted) in [
            (&["buildctl"][..], "disk usage"),
            (&["buildctl", "--addr=tcp://host:1"], "disk usage"),
            (&["buildctl", "--addr=tcp://host:1", "debug"], "workers"),
        ] {
            let e = cli::Cli::try_parse_from(args).err().and_then(|e| help_instead(&e));
            assert!(e.is_some_and(|help| help.to_string().contains(wanted)), "{args:?}");
        }
        let mistake = cli::Cli::try_parse_from(["buildctl", "nonsense"]).err();
        assert!(mistake.is_some_and(|e| help_instead(&e).is_none()));
    }
}
