//! Control groups of a test's own, for programs that make more of them where they start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One group below the caller's, in every hierarchy a service manager writes to: the
/// unified one and, where it still exists, systemd's own. Goes, with everything that
/// was made below it, when dropped.
pub struct Cgroup(Vec<PathBuf>);

impl Cgroup {
    /// Makes it.
    ///
    /// # Errors
    /// When the hierarchies cannot be found or written to.
    pub fn new(name: &str) -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
        let own = std::fs::read_to_string("/proc/self/cgroup").context("control groups")?;
        let mut made = Self(Vec::new());
        for line in own.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let of = |mount: &&str| match controllers {
                "" => mount.contains(" - cgroup2 "),
                "name=systemd" => mount.contains(" - cgroup ") && mount.contains("name=systemd"),
                _ => false,
            };
            let Some(mount) = mounts.lines().find(of).and_then(|m| m.split(' ').nth(4)) else { continue };
            let group = Path::new(mount).join(path.trim_start_matches('/')).join(name);
            std::fs::create_dir(&group).with_context(|| group.display().to_string())?;
            made.0.push(group);
        }
        Ok(made)
    }

    /// A shell command line that moves the shell into it.
    #[must_use]
    pub fn enter(&self) -> String {
        self.0.iter().map(|group| format!("echo $$ > '{}/cgroup.procs' && ", group.display())).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.0.iter().for_each(|group| remove(group));
    }
}

/// Groups go from the leaves up; files in them go along.
fn remove(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    _ = std::fs::remove_dir(group);
}
