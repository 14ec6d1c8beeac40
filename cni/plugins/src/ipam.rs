//! Addresses for a container, from the plugin that the configuration names for them.

use cni::chain::delegate;
use cni::{Bundled, Call, Code, Command, Error, NetworkResult, PluginError};

/// Calls the address plugin of a configuration. `None` when it names none.
fn call(
    bundled: &dyn Bundled,
    call: &Call<'_>,
    command: Command,
) -> Option<Result<Option<NetworkResult>, PluginError>> {
    let kind = call.config.get("ipam")?.get("type")?.as_str().filter(|kind| !kind.is_empty())?;
    if kind.contains(['/', '\0']) || kind == ".." {
        return Some(Err(PluginError::new(Code::InvalidConfig, format!("invalid ipam type {kind:?}"))));
    }
    let call = Call { command, ..call.clone() };
    Some(delegate(bundled, kind, &call).map_err(|e| match e {
        Error::Plugin { source, .. } => source,
        other => PluginError::other(other.to_string()),
    }))
}

/// Takes addresses. `None` when the configuration names no plugin for them.
pub(crate) fn add(bundled: &dyn Bundled, of: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
    let Some(result) = call(bundled, of, Command::Add) else { return Ok(None) };
    match result? {
        Some(result) if !result.ips.is_empty() => Ok(Some(result)),
        _ => Err(PluginError::other("the IPAM plugin gave no address")),
    }
}

/// Takes addresses, without which `plugin` can do nothing.
pub(crate) fn needed(
    bundled: &dyn Bundled,
    of: &Call<'_>,
    plugin: &str,
) -> Result<NetworkResult, PluginError> {
    add(bundled, of)?
        .ok_or_else(|| PluginError::new(Code::InvalidConfig, format!("{plugin}: ipam settings are missing")))
}

/// DEL, CHECK, GC and STATUS, passed on.
pub(crate) fn pass_on(bundled: &dyn Bundled, of: &Call<'_>) -> Result<(), PluginError> {
    call(bundled, of, of.command).map_or(Ok(()), |result| result.map(drop))
}

/// Gives addresses back after something else has failed.
pub(crate) fn undo(bundled: &dyn Bundled, of: &Call<'_>) {
    if let Some(Err(e)) = call(bundled, of, Command::Del) {
        tracing::warn!(error = %e, "give addresses back");
    }
}
