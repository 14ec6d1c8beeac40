//! Removes what an earlier daemon, which did not end in an orderly way, has left running.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sys::process::Process;

use crate::ledger::Left;
use crate::places::Places;
use crate::runtime::Runtime;
use crate::{bundle, cgroup};

/// For all of it to end, once it has been killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Removes these containers with their bundles and cgroups. What cannot be removed stays in
/// the ledger and is logged; it is in nobody's way.
pub(crate) fn reap(runtime: &Runtime, places: &Places, left: Vec<Left>) {
    if left.is_empty() {
        return;
    }
    let deadline = Instant::now() + PATIENCE;
    stop_runtimes(&left.iter().map(|left| places.bundle(&left.id)).collect::<Vec<_>>(), deadline);
    let mut groups = Vec::new();
    for Left { id, cgroup, .. } in &left {
        tracing::info!(id, "remove container of an earlier daemon");
        runtime.delete(id);
        groups.push(cgroup::groups(id, cgroup));
    }
    // All before the first is waited for.
    groups.iter().flatten().for_each(|group| cgroup::kill(group));
    for (Left { id, note, .. }, groups) in left.into_iter().zip(groups) {
        let gone = cgroup::remove_all(&groups, deadline);
        let dir = places.bundle(&id);
        let detached = sys::mount::detach_below(&dir);
        if let Err(e) = &detached {
            tracing::warn!(path = %dir.display(), error = %e, "unmount what an earlier daemon left");
        } else {
            bundle::remove_dir(&dir);
        }
        if !gone || detached.is_err() {
            note.keep();
        }
    }
}

/// Ends runtimes that had been started with one of `bundles`: one that is about to make its
/// container would make it after everything was looked for.
fn stop_runtimes(bundles: &[PathBuf], deadline: Instant) {
    let Ok(entries) = std::fs::read_dir("/proc") else { return };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ours = |word: &OsStr| bundles.iter().any(|bundle| bundle == Path::new(word));
    let runtimes: Vec<Process> = pids.filter_map(|pid| Process::told(pid, ours)).collect();
    for runtime in &runtimes {
        if let Err(e) = runtime.signal(Signal::KILL) {
            tracing::warn!(error = %e, "stop a runtime of an earlier daemon");
        }
    }
    for runtime in &runtimes {
        runtime.wait(deadline.saturating_duration_since(Instant::now()));
    }
}
