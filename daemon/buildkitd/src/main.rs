//! The build daemon.

mod assemble;
mod cgroup;
mod collect;
mod config;
mod flags;
mod listen;
mod log;
mod network;
mod privileges;
mod reload;
mod rootless;
mod serve;
mod settings;
mod status;
mod systemd;
mod tls;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use crate::flags::Flags;
use crate::log::Log;
use crate::settings::Settings;
use crate::status::{Because as _, Status};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("buildkitd: {}", status::one_line(&error));
            status::of(&error)
        }
    }
}

fn run() -> Result<()> {
    let flags = Flags::parse();
    let config::Loaded { config, warnings, values } = config::load(&flags.config).because(Status::Config)?;
    let log = Log::start(&flags, &config).because(Status::Config)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    privileges::check()?;
    // Files get exactly the permissions that builds ask for.
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut settings = Settings::new(flags.clone(), config).because(Status::Config)?;
    // What follows concerns the whole process, so it comes before its threads.
    settings.own_mounts = keep_mounts();
    if let Some(group) = cgroup::settle()
        && settings.cgroup_parent.is_empty()
    {
        settings.cgroup_parent = group;
    }
    privileges::cut(settings.entitlements.contains(&ops::Entitlement::SecurityInsecure))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(5))
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(serve::run(settings, serve::Origin { flags, values, log }));
    // Whatever still blocks is bounded by the watchdog, or has been waited for.
    runtime.shutdown_background();
    outcome
}

/// Mounts of builds are nobody else's business, and end with the daemon however it ends. This
/// has to come before the first thread is started: threads take over what they see. Says
/// whether it is so.
fn keep_mounts() -> bool {
    if let Err(error) = sys::mount::own_namespace() {
        tracing::info!(%error, "mounts are made in the namespace the daemon was started in");
        return false;
    }
    if let Err(error) = exec::hide_hybrid_cgroup() {
        tracing::info!(%error, "hybrid cgroup hierarchy stays visible");
    }
    true
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
