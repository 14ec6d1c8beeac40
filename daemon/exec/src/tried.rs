//! Which runtime was found to work, remembered for the next start.
//!
//! Trying one starts a container, which takes longer than everything else about a start.
//! What came out is true until something changes that it depends on: the programs, the
//! kernel that runs, what this process may do, and where its cgroups and `/proc` are.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base::digest::Hasher;

/// Its place in the state directory.
const FILE: &str = "tried";

/// What the outcome of a trial depends on.
pub(crate) struct Circumstances(String);

impl Circumstances {
    /// As they are now, for runtimes that would be tried in this order.
    pub(crate) fn now(rootless: bool, process_sandbox: bool, programs: &[PathBuf]) -> Self {
        let mut seen = Hasher::new();
        let mut tell = |name: &str, text: &str| seen.update(format!("{name}\0{}\0{text}", text.len()));
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let of = |text: &str, wanted: fn(&str) -> bool| {
            text.lines().filter(|line| wanted(line)).collect::<Vec<_>>().join("\n")
        };
        for program in programs {
            let stat = program.metadata().map(|m| (m.dev(), m.ino(), m.size(), m.ctime(), m.ctime_nsec()));
            tell("program", &format!("{program:?} {:?}", stat.ok()));
        }
        tell("daemon", &format!("{rootless} {process_sandbox}"));
        tell("boot", &read("/proc/sys/kernel/random/boot_id"));
        let privileges = |line: &str| {
            ["Cap", "NoNewPrivs", "Seccomp", "Uid", "Gid"].iter().any(|name| line.starts_with(name))
        };
        tell("privileges", &of(&read("/proc/self/status"), privileges));
        tell("ids", &(read("/proc/self/uid_map") + &read("/proc/self/gid_map")));
        tell("profile", &read("/proc/self/attr/current"));
        tell("cgroups", &read("/proc/self/cgroup"));
        // Without the numbers, which are others in every mount namespace.
        let mounts = read("/proc/self/mountinfo");
        let mounts = mounts.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        let kernels = |mount: &&str| {
            mount.split(' ').nth(1).is_some_and(|at| at.starts_with("/proc") || at.starts_with("/sys"))
        };
        tell("mounts", &mounts.filter(kernels).map(without_peers).collect::<Vec<_>>().join("\n"));
        Self(seen.finish().to_string())
    }

    /// The runtime that worked in just these.
    pub(crate) fn remembered(&self, state: &Path) -> Option<PathBuf> {
        let text = std::fs::read_to_string(state.join(FILE)).ok()?;
        let (seen, program) = text.split_once('\n')?;
        (seen == self.0).then(|| program.into())
    }

    /// Notes that it does. What cannot be noted is tried again.
    pub(crate) fn remember(&self, state: &Path, program: &Path) {
        let Some(program) = program.to_str() else { return };
        if let Err(error) = std::fs::write(state.join(FILE), format!("{}\n{program}", self.0)) {
            tracing::debug!(%error, "note which runtime works");
        }
    }
}

/// Without the groups of mounts that tell each other, which are numbers too.
fn without_peers(mount: &str) -> String {
    let peers = |field: &str| ["shared:", "master:", "propagate_from:"].iter().any(|p| field.starts_with(p));
    mount.split(' ').filter(|field| !peers(field)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_works_is_remembered_until_something_changes() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("runtime");
        std::fs::write(&program, "one").unwrap();
        let now = |sandbox| Circumstances::now(false, sandbox, std::slice::from_ref(&program));
        assert_eq!(now(true).remembered(dir.path()), None);
        now(true).remember(dir.path(), &program);
        assert_eq!(now(true).remembered(dir.path()).as_ref(), Some(&program));
        assert_eq!(now(false).remembered(dir.path()), None);
        // Another program of the same name.
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &program).unwrap();
        assert_eq!(now(true).remembered(dir.path()), None);
        // A note that is none.
        std::fs::write(dir.path().join(FILE), "nonsense").unwrap();
        assert_eq!(now(true).remembered(dir.path()), None);
    }

    #[test]
    fn mounts_without_numbers() {
        let mount = "/ /sys rw,nosuid shared:7 master:1 - sysfs sysfs rw";
        assert_eq!(without_peers(mount), "/ /sys rw,nosuid - sysfs sysfs rw");
    }
}
