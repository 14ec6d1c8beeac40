//! What a daemon may have left behind: mounts, processes, links.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The mount points below `root` as `process` sees them (none = as we do), deepest first.
pub fn mounts(root: &Path, process: Option<u32>) -> Vec<PathBuf> {
    let process = process.map_or("self".to_owned(), |pid| pid.to_string());
    let table = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(root))
        .collect();
    points.reverse();
    points
}

/// Spaces and the like are octal in mount tables.
fn unescape(text: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"]
        .iter()
        .fold(text.to_owned(), |text, escape| text.replace(&escape[..4], &escape[4..]))
}

/// Processes other than `daemon` that work below `root`: those in containers
/// made from it, and those with its path on their command line. Containers have
/// process ids of their own; other namespaces may merely have been told of our
/// mounts.
pub fn processes(root: &Path, daemon: Option<u32>) -> Vec<String> {
    let root = root.to_string_lossy();
    let mine = fs::read_link("/proc/self/ns/pid").ok();
    let own = [Some(std::process::id()), daemon];
    let mut found = Vec::new();
    for pid in pids().into_iter().filter(|p| !own.contains(&Some(*p))) {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let elsewhere = fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| Some(ns) != mine);
        let inside = elsewhere && String::from_utf8_lossy(&read("mountinfo")).contains(&*root);
        // Clients have the socket's path on their command line.
        let named = command.contains(&*root) && !command.contains("unix://");
        if inside || named {
            found.push(format!("{pid}: {command}"));
        }
    }
    found
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The links attached to a bridge.
pub fn ports(bridge: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(format!("/sys/class/net/{bridge}/brif")).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Takes away what is left, so that one failure does not become many.
pub fn clean(root: &Path, bridge: &str) {
    for process in processes(root, None) {
        if let Some(pid) =
            process.split(':').next().and_then(|p| p.parse().ok()).and_then(rustix::process::Pid::from_raw)
        {
            _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    for point in mounts(root, None) {
        _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
    }
    if !bridge.is_empty() && Path::new("/sys/class/net").join(bridge).exists() {
        _ = Command::new("ip").args(["link", "delete", bridge]).status();
    }
}
