//! From what a file asks for to a process.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rustix::fs::{major, minor};
use serde_json::{Map, Value, json};

use super::file::{DeviceNode, Edits, IntelRdt};
use crate::process::{Device, Hook, Mount, Process, Source};

/// Adds what `edits` say.
pub(super) fn apply(edits: &Edits, process: &mut Process) -> Result<(), String> {
    process.env.extend(edits.env.iter().cloned());
    for node in &edits.device_nodes {
        let device = device(node)?;
        process.devices.retain(|d| d.path != device.path);
        process.devices.push(device);
    }
    for device in &edits.net_devices {
        process.net_devices.insert(device.host_interface_name.clone(), device.name.clone());
    }
    for mount in &edits.mounts {
        process.mounts.retain(|m| m.dest != mount.container_path);
        let is_bind = |option: &String| option == "bind" || option == "rbind";
        let (bind, mut options) =
            (mount.kind == "bind" || mount.options.iter().any(is_bind), mount.options.clone());
        options.retain(|option| !is_bind(option));
        let source = if bind {
            Source::Bind { path: mount.host_path.clone().into(), selector: String::new() }
        } else {
            Source::Other { kind: mount.kind.clone(), source: mount.host_path.clone() }
        };
        process.mounts.push(Mount { dest: mount.container_path.clone(), source, readonly: false, options });
    }
    // Parents first.
    process.mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
    process.hooks.extend(edits.hooks.iter().map(|hook| Hook {
        stage: hook.hook_name.clone(),
        path: hook.path.clone(),
        args: hook.args.clone(),
        env: hook.env.clone(),
        timeout: hook.timeout,
    }));
    if let Some(rdt) = &edits.intel_rdt {
        process.intel_rdt = Some(intel_rdt(rdt));
    }
    for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
        if !process.groups.contains(gid) {
            process.groups.push(*gid);
        }
    }
    Ok(())
}

/// A device node, with what the file leaves out taken from the host's.
fn device(node: &DeviceNode) -> Result<Device, String> {
    let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let mut device = Device {
        path: node.path.clone(),
        kind: node.kind.chars().next().unwrap_or_default(),
        major: node.major,
        minor: node.minor,
        mode: node.file_mode,
        access: if node.permissions.is_empty() { "rwm".to_owned() } else { node.permissions.clone() },
        uid: node.uid,
        gid: node.gid,
    };
    let whole = !node.kind.is_empty() && (node.major != 0 || node.kind == "p");
    let meta = match std::fs::symlink_metadata(host) {
        Ok(meta) => meta,
        // A vendor may describe a node that is not here.
        Err(_) if whole => return Ok(device),
        Err(e) => return Err(format!("failed to stat CDI host device {host:?}: {e}")),
    };
    let kind = match meta.file_type() {
        kind if kind.is_block_device() => 'b',
        kind if kind.is_char_device() => 'c',
        kind if kind.is_fifo() => 'p',
        _ if whole => return Ok(device),
        _ => return Err(format!("failed to stat CDI host device {host:?}: not a device node")),
    };
    device.mode = device.mode.or(Some(meta.mode() & 0o7777));
    if whole {
        return Ok(device);
    }
    if node.kind.is_empty() {
        device.kind = kind;
    } else if device.kind != kind {
        return Err(format!("device {host:?} is of type {kind}, not {}", node.kind));
    }
    if device.major == 0 && device.kind != 'p' {
        (device.major, device.minor) = (major(meta.rdev()), minor(meta.rdev()));
    }
    Ok(device)
}

/// As the container's description has it.
fn intel_rdt(rdt: &IntelRdt) -> Value {
    let mut out = Map::new();
    for (key, value) in [
        ("closID", &rdt.clos_id),
        ("l3CacheSchema", &rdt.l3_cache_schema),
        ("memBwSchema", &rdt.mem_bw_schema),
    ] {
        if !value.is_empty() {
            out.insert(key.to_owned(), json!(value));
        }
    }
    if !rdt.schemata.is_empty() {
        out.insert("schemata".to_owned(), json!(rdt.schemata));
    }
    if rdt.enable_monitoring {
        out.insert("enableMonitoring".to_owned(), json!(true));
    }
    out.into()
}
