//! Control groups: where a container's is, and what it says afterwards.
//!
//! On the unified hierarchy each run gets a group of its own that outlives the
//! container by a moment: the runtime makes its group inside, and what happened
//! there can still be read from the outer one when the runtime has cleaned up.
//! On the older hierarchies counters do not add up that way; there the runtime's
//! group stands alone and nothing is read.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base::Failure;

use crate::Error;

const ROOT: &str = "/sys/fs/cgroup";

/// The list of a group's processes.
const MEMBERS: &str = "cgroup.procs";

/// How long a group may be in use by processes that have been killed, and how often is looked.
const PATIENCE: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_millis(2);

/// The runtime's group, in that of a run.
const INNER: &str = "run";

/// The control group of one run.
#[derive(Debug)]
pub(crate) struct Cgroup {
    /// What the runtime is told.
    pub path: String,
    /// The group around it, ours to remove.
    outer: Option<PathBuf>,
}

/// Where the controllers are in the older hierarchies, takes the unified one that is mounted
/// beside them out of the sight of this mount namespace, which has to be the daemon's own.
/// `crun` refuses the mixture, and every runtime has one group fewer to make.
///
/// # Errors
/// What the kernel said.
pub fn hide_hybrid_cgroup() -> Result<(), Failure> {
    let unified = Path::new(ROOT).join("unified");
    if is_unified() || !unified.join("cgroup.controllers").exists() {
        return Ok(());
    }
    Ok(sys::mount::detach(&unified).map_err(Error::from)?)
}

/// The unified hierarchy is mounted where runtimes look for it.
pub(crate) fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Lets the kernel know that a process is about to change its group. Whoever is the first to
/// move one lets it wait for all processors, which takes longer than everything else about a
/// container; the next find that done. What is moved here is this process, to where it is:
/// nothing changes, and the wait passes while a container is prepared.
pub(crate) fn expect_move() {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(members) = own.lines().find_map(|line| members_of(Path::new(ROOT), line)) else { return };
    // Where only the superuser may move processes, the wait is over before it is refused.
    if let Err(e) = std::fs::write(&members, "0") {
        tracing::debug!(path = %members.display(), error = %e, "expect a move between cgroups");
    }
}

/// The list of members of the group this process is in by one line of `/proc/self/cgroup`:
/// `number:controllers:path`. `None` where it is not to be seen from here.
fn members_of(root: &Path, line: &str) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let hierarchy = controllers.strip_prefix("name=").unwrap_or(controllers);
    let members = root.join(hierarchy).join(path.strip_prefix('/')?).join(MEMBERS);
    // In a container, the path may be that of another group than the same path outside.
    let own = std::process::id().to_string();
    std::fs::read_to_string(&members).ok()?.lines().any(|pid| pid == own).then_some(members)
}

impl Cgroup {
    /// The place of a run below `parent`: a path, or a slice of systemd as
    /// `name.slice:prefix:`.
    pub(crate) fn at(parent: &str, id: &str, unified: bool) -> Self {
        if is_slice(parent) {
            return Self { path: format!("{parent}{id}"), outer: None };
        }
        let mut path = PathBuf::from("/");
        path.extend(Path::new(parent).components().filter(|c| matches!(c, std::path::Component::Normal(_))));
        if !parent.is_empty() {
            path.push("buildkit");
        } else {
            path = PathBuf::from("/buildkit");
        }
        path.push(id);
        let outer = Path::new(ROOT).join(path.strip_prefix("/").unwrap_or(&path));
        match unified {
            true => Self { path: path.join(INNER).to_string_lossy().into_owned(), outer: Some(outer) },
            false => Self { path: path.to_string_lossy().into_owned(), outer: None },
        }
    }

    /// Makes what is not the runtime's to make. Where that is refused, the runtime's stands alone.
    pub(crate) fn make(&mut self) {
        if let Some(outer) = &self.outer
            && sys::directory::make(outer, 0o755).is_err()
        {
            self.outer = None;
            self.path = without_inner(&self.path).to_owned();
        }
    }

    /// The kernel killed something in it because memory ran out.
    pub(crate) fn out_of_memory(&self) -> bool {
        let Some(outer) = &self.outer else { return false };
        std::fs::read_to_string(outer.join("memory.events"))
            .is_ok_and(|events| count(&events, "oom_kill") > 0)
    }

    /// Kills whatever still runs in it.
    pub(crate) fn kill(&self) {
        if let Some(outer) = &self.outer {
            kill(outer);
        }
    }

    /// Kills and removes what a runtime that was stopped halfway has left of it, for the
    /// container `id`; `false` when something has to stay.
    pub(crate) fn end(&self, id: &str) -> bool {
        let groups = groups(id, &self.path);
        groups.iter().for_each(|group| kill(group));
        remove_all(&groups, Instant::now() + PATIENCE)
    }

    /// Removes what is ours of it; `false` when it has to stay.
    pub(crate) fn remove(&self) -> bool {
        self.outer.as_ref().is_none_or(|outer| remove(outer, Instant::now() + PATIENCE))
    }
}

/// `parent` names a slice of systemd.
pub(crate) fn is_slice(parent: &str) -> bool {
    parent.contains(".slice") && parent.ends_with(':')
}

/// The group of a run, which may have been told to put its own inside.
fn without_inner(path: &str) -> &str {
    path.strip_suffix(INNER).and_then(|path| path.strip_suffix('/')).unwrap_or(path)
}

/// The group in which systemd puts what was asked of it as `name.slice:prefix:id`: a slice
/// is inside the one its name begins with, and all are inside `-.slice`.
fn scope(path: &str) -> Option<PathBuf> {
    let (slice, unit) = path.split_once(':')?;
    let (prefix, id) = unit.split_once(':')?;
    let name = slice.strip_suffix(".slice")?.trim_start_matches('-');
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    let parts = ends.filter_map(|end| name.get(..end)).filter(|part| !part.is_empty());
    let mut group: PathBuf = parts.map(|part| format!("{part}.slice")).collect();
    group.push(format!("{prefix}-{id}.scope"));
    Some(group)
}

/// The groups, one in each hierarchy, of the container `id`, whose runtime was told `path`.
/// Never those of anybody else, whatever the path says.
pub(crate) fn groups(id: &str, path: &str) -> Vec<PathBuf> {
    let Some(group) = group(id, path) else { return Vec::new() };
    let mut roots = vec![PathBuf::from(ROOT)];
    if let Ok(entries) = std::fs::read_dir(ROOT) {
        roots.extend(entries.flatten().map(|e| e.path()).filter(|p| p.join(MEMBERS).exists()));
    }
    roots.into_iter().map(|root| root.join(&group)).filter(|group| group.join(MEMBERS).exists()).collect()
}

fn group(id: &str, path: &str) -> Option<PathBuf> {
    let group = scope(path).unwrap_or_else(|| without_inner(path).trim_start_matches('/').into());
    let name = group.file_name()?.to_str()?;
    let scope = name.strip_suffix(".scope").and_then(|unit| unit.strip_suffix(id));
    let own = name == id || scope.is_some_and(|prefix| prefix.ends_with('-'));
    let inside = group.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    (own && inside).then_some(group)
}

/// Kills every process in a group and in those inside it.
pub(crate) fn kill(group: &Path) {
    if std::fs::write(group.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // The older hierarchies, and kernels before 5.14.
    children(group).iter().for_each(|child| kill(child));
    let text = std::fs::read_to_string(group.join(MEMBERS)).unwrap_or_default();
    for pid in text.lines().filter_map(|l| l.parse().ok()).filter_map(rustix::process::Pid::from_raw) {
        _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Removes groups as [`remove`] does, all that can be. Says whether all are gone.
pub(crate) fn remove_all(groups: &[PathBuf], deadline: Instant) -> bool {
    groups.iter().map(|group| remove(group, deadline)).fold(true, |all, gone| all & gone)
}

/// Removes a group with those inside it, whose processes have been killed and may need a
/// moment to end: until `deadline`. Says whether it is gone.
fn remove(group: &Path, deadline: Instant) -> bool {
    if !children(group).iter().all(|child| remove(child, deadline)) {
        return false;
    }
    loop {
        match std::fs::remove_dir(group) {
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(RETRY);
                // What was made while the others were killed.
                kill(group);
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %group.display(), error = %e, "remove cgroup");
                return false;
            }
            _ => return true,
        }
    }
}

fn children(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(group) else { return Vec::new() };
    let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    dirs.map(|e| e.path()).collect()
}

fn count(events: &str, name: &str) -> u64 {
    events
        .lines()
        .filter_map(|l| l.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_group_is_found_by_membership() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, other) = (dir.path().join("cpu,cpuacct/a:b"), dir.path().join("other"));
        for (group, members) in [(&mine, format!("1\n{}\n", std::process::id())), (&other, "1\n".into())] {
            std::fs::create_dir_all(group).unwrap();
            std::fs::write(group.join(MEMBERS), members).unwrap();
        }
        let find = |line| members_of(dir.path(), line);
        assert_eq!(find("3:cpu,cpuacct:/a:b"), Some(mine.join(MEMBERS)));
        for line in ["0::/other", "2:name=other:/", "4:memory:/", "0::", "", "x"] {
            assert_eq!(find(line), None, "{line}");
        }
    }

    #[test]
    fn paths_are_below_the_parent() {
        for (parent, expected) in [
            ("", "/buildkit/x"),
            ("/docker/abc", "/docker/abc/buildkit/x"),
            ("a/../b", "/a/b/buildkit/x"),
            ("system.slice:bk:", "system.slice:bk:x"),
        ] {
            assert_eq!(Cgroup::at(parent, "x", false).path, expected, "{parent}");
        }
    }

    #[test]
    fn a_run_has_a_group_around_the_runtimes() {
        let group = Cgroup::at("/docker", "x", true);
        assert_eq!(group.path, "/docker/buildkit/x/run");
        assert_eq!(group.outer.as_deref(), Some(Path::new("/sys/fs/cgroup/docker/buildkit/x")));
        assert_eq!(without_inner(&group.path), "/docker/buildkit/x");
        assert_eq!(without_inner("/buildkit/rerun"), "/buildkit/rerun");
    }

    #[test]
    fn only_a_containers_own_groups_are_found() {
        for (path, expected) in [
            ("/buildkit/x", Some("buildkit/x")),
            ("/docker/buildkit/x/run", Some("docker/buildkit/x")),
            ("system.slice:bk:x", Some("system.slice/bk-x.scope")),
            ("a-b-c.slice::x", Some("a.slice/a-b.slice/a-b-c.slice/-x.scope")),
            ("-.slice:bk:x", Some("bk-x.scope")),
            ("", None),
            ("/", None),
            ("/user.slice", None),
            ("/buildkit/y", None),
            ("/../x", None),
            ("system.slice:bk:y", None),
            ("system.slice:bk:yx", None),
        ] {
            assert_eq!(group("x", path).as_deref(), expected.map(Path::new), "{path}");
        }
    }

    #[test]
    fn counts_events() {
        let events = "low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\noom_group_kill 0\n";
        assert_eq!((count(events, "oom_kill"), count(events, "nothing")), (2, 0));
    }
}
