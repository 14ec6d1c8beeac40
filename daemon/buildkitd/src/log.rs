//! Logs: to standard error, at a level that can change.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result, bail};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::Config;
use crate::flags::Flags;

/// The log of this process.
pub(crate) struct Log {
    replace: Box<dyn Fn(EnvFilter) -> Result<()> + Send>,
}

impl Log {
    /// Starts it.
    ///
    /// # Errors
    /// When level or format are unknown.
    pub(crate) fn start(flags: &Flags, config: &Config) -> Result<Self> {
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter(level(flags, config)?)?)
            .with_writer(std::io::stderr);
        macro_rules! start {
            ($log:expr) => {{
                let log = $log.with_filter_reloading();
                let handle = log.reload_handle();
                log.init();
                Box::new(move |filter| handle.reload(filter).context("set the log level"))
            }};
        }
        let replace: Box<dyn Fn(EnvFilter) -> Result<()> + Send> =
            match flags.log_format.as_deref().or(config.log.format.as_deref()).unwrap_or("text") {
                "text" => start!(log.with_ansi(std::io::stderr().is_terminal())),
                "json" => start!(log.json().flatten_event(true)),
                other => bail!("unsupported log type {other:?}: expected text or json"),
            };
        Ok(Self { replace })
    }

    /// The level that is asked for.
    ///
    /// # Errors
    /// When it is unknown.
    pub(crate) fn level(&self, flags: &Flags, config: &Config) -> Result<LevelFilter> {
        level(flags, config)
    }

    /// Logs at `level` from now on.
    ///
    /// # Errors
    /// When the log is gone.
    pub(crate) fn set(&self, level: LevelFilter) -> Result<()> {
        (self.replace)(filter(level)?)
    }
}

fn level(flags: &Flags, config: &Config) -> Result<LevelFilter> {
    let configured = config.log.level.as_deref().or_else(|| {
        let trace = config.trace.then_some("trace");
        trace.or(config.debug.then_some("debug"))
    });
    let level = match (flags.log_level.as_deref(), flags.debug) {
        (Some(level), _) => level,
        (None, Some(true)) => "debug",
        (None, Some(false)) | (None, None) => configured.unwrap_or("info"),
    };
    Ok(match level {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "fatal" | "panic" => LevelFilter::ERROR,
        other => bail!("unknown log level {other:?}: expected trace, debug, info, warn or error"),
    })
}

/// Ours at the level that was asked for; libraries only when something is wrong.
fn filter(level: LevelFilter) -> Result<EnvFilter> {
    let mut filter = EnvFilter::default().add_directive(level.into());
    for library in ["h2", "hyper_util", "hyper", "rustls", "reqwest", "tower"] {
        filter = filter.add_directive(format!("{library}=warn").parse()?);
    }
    Ok(filter)
}
