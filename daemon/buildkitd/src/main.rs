//! The build daemon.

mod assemble;
mod collect;
mod config;
mod flags;
mod listen;
mod network;
mod serve;
mod settings;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use tracing_subscriber::filter::LevelFilter;

use crate::config::Config;
use crate::flags::Flags;
use crate::settings::Settings;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("buildkitd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let flags = Flags::parse();
    let (config, warnings) = config::load(&flags.config)?;
    start_log(&flags, &config)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the daemon must be started as root, or as the mapped root in a user namespace");
    }
    // Files get exactly the permissions that builds ask for.
    rustix::process::umask(rustix::fs::Mode::empty());
    keep_mounts();
    let settings = Settings::new(flags, config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(5))
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(serve::run(settings));
    // Whatever still blocks is bounded by the watchdog, or has been waited for.
    runtime.shutdown_background();
    outcome
}

/// Mounts of builds are nobody else's business, and end with the daemon however it ends. This
/// has to come before the first thread is started: threads take over what they see.
fn keep_mounts() {
    if let Err(error) = sys::mount::own_namespace() {
        tracing::info!(%error, "mounts are made in the namespace the daemon was started in");
    } else if let Err(error) = exec::hide_hybrid_cgroup() {
        tracing::info!(%error, "hybrid cgroup hierarchy stays visible");
    }
}

/// Logs go to standard error.
fn start_log(flags: &Flags, config: &Config) -> Result<()> {
    let configured = config.log.level.as_deref().or_else(|| {
        let trace = config.trace.then_some("trace");
        trace.or(config.debug.then_some("debug"))
    });
    let level = match (flags.log_level.as_deref(), flags.debug) {
        (Some(level), _) => level,
        (None, Some(true)) => "debug",
        (None, Some(false)) | (None, None) => configured.unwrap_or("info"),
    };
    let level = match level {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "fatal" | "panic" => LevelFilter::ERROR,
        other => bail!("unknown log level {other:?}: expected trace, debug, info, warn or error"),
    };
    // Ours at the level that was asked for; libraries only when something is wrong.
    let filter = tracing_subscriber::EnvFilter::default()
        .add_directive(level.into())
        .add_directive("h2=warn".parse()?)
        .add_directive("hyper_util=warn".parse()?)
        .add_directive("hyper=warn".parse()?)
        .add_directive("rustls=warn".parse()?)
        .add_directive("reqwest=warn".parse()?)
        .add_directive("tower=warn".parse()?);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match flags.log_format.as_deref().or(config.log.format.as_deref()).unwrap_or("text") {
        "text" => log.with_ansi(std::io::stderr().is_terminal()).init(),
        "json" => log.json().flatten_event(true).init(),
        other => bail!("unsupported log type {other:?}: expected text or json"),
    }
    Ok(())
}

/// Ends the process when stopping takes longer than `limit`: something hangs
/// that nothing else can end.
#[allow(clippy::exit)] // that is the point of it
pub(crate) fn watchdog(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        eprintln!("buildkitd: could not stop within {} s; exiting", limit.as_secs());
        std::process::exit(1);
    });
}
