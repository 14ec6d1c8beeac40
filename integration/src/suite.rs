//! Runs the cases of one file against one set-up.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// A case: its name and what it does.
pub type Case<E> = (&'static str, fn(&E) -> Result<()>);

/// Sets up, runs the cases that the command line asks for, and tears down.
/// Nothing is set up when nothing is asked for.
pub fn main<E: Send + Sync + 'static>(
    set_up: impl FnOnce() -> Result<E>,
    cases: &[Case<E>],
    tear_down: impl FnOnce(E) -> Result<()>,
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Most of the time is spent waiting for disks and processes.
    arguments.test_threads.get_or_insert(3);
    let asked = |name: &str| match &arguments.filter {
        Some(filter) if arguments.exact => name == filter,
        Some(filter) => name.contains(filter.as_str()),
        None => true,
    };
    if arguments.list || !cases.iter().any(|(name, _)| asked(name)) {
        let trials = cases.iter().map(|(name, _)| Trial::test(*name, || Ok(()))).collect::<Vec<_>>();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let environment = match set_up() {
        Ok(environment) => Arc::new(environment),
        Err(e) => {
            eprintln!("set-up failed: {e:?}");
            return ExitCode::FAILURE;
        }
    };
    let trials = cases.iter().map(|&(name, case)| {
        let environment = environment.clone();
        Trial::test(name, move || case(&environment).map_err(|e| Failed::from(format!("{e:?}"))))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let torn_down = match Arc::try_unwrap(environment) {
        Ok(environment) => tear_down(environment),
        Err(_) => Err(anyhow::anyhow!("a case still runs")),
    };
    match torn_down {
        Ok(()) => conclusion.exit_code(),
        Err(e) => {
            eprintln!("\ntear-down failed: {e:?}");
            ExitCode::FAILURE
        }
    }
}
