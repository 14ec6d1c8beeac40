//! What every plugin reads from its call.

use std::path::Path;

use cni::{Call, Code, NetworkResult, PluginError};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use sys::netns::NetNs;

/// The configuration, as this plugin understands it.
pub(crate) fn read<T: DeserializeOwned>(call: &Call<'_>) -> Result<T, PluginError> {
    T::deserialize(call.config).map_err(|e| PluginError::new(Code::Decode, format!("configuration: {e}")))
}

/// Name of the network.
pub(crate) fn network<'a>(call: &Call<'a>) -> &'a str {
    call.config.get("name").and_then(serde_json::Value::as_str).unwrap_or_default()
}

/// The result of the plugins before this one.
pub(crate) fn previous(call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
    match call.config.get("prevResult") {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(value) => NetworkResult::read(value.clone()).map(Some),
    }
}

/// The result of the plugins before this one, without which it can do nothing.
pub(crate) fn chained(call: &Call<'_>, plugin: &str) -> Result<NetworkResult, PluginError> {
    previous(call)?.ok_or_else(|| {
        PluginError::new(Code::InvalidConfig, format!("{plugin} must be called after another plugin"))
    })
}

/// The file that is the container's namespace.
pub(crate) fn netns_path<'a>(call: &Call<'a>) -> Result<&'a Path, PluginError> {
    call.attachment
        .netns
        .as_deref()
        .ok_or_else(|| PluginError::new(Code::InvalidEnvironment, "CNI_NETNS is missing"))
}

/// The container's namespace.
pub(crate) fn netns(call: &Call<'_>) -> Result<NetNs, PluginError> {
    NetNs::open(netns_path(call)?).map_err(|e| PluginError::new(Code::UnknownContainer, e.to_string()))
}

/// The container's namespace, if it still exists.
pub(crate) fn remaining_netns(call: &Call<'_>) -> Option<NetNs> {
    call.attachment.netns.as_deref().and_then(|path| NetNs::open(path).ok())
}

/// The value of one of the caller's arguments.
pub(crate) fn argument<'a>(call: &Call<'a>, key: &str) -> Option<&'a str> {
    call.attachment.args.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
}

/// A system call failed while `what` was to be done.
pub(crate) fn failed(what: &str) -> impl Fn(Errno) -> PluginError + '_ {
    move |e| PluginError::new(Code::Io, format!("{what}: {}", std::io::Error::from(e)))
}

/// As [`failed`], for errors of the standard library.
pub(crate) fn failed_io(what: &str) -> impl Fn(std::io::Error) -> PluginError + '_ {
    move |e| PluginError::new(Code::Io, format!("{what}: {e}"))
}

/// Something of the system's own crate failed.
pub(crate) fn failed_sys(e: sys::Error) -> PluginError {
    PluginError::new(Code::Io, e.to_string())
}
