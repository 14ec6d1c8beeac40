//! The daemon's own place in the unified hierarchy of control groups.
//!
//! A group with processes in it can have none below it that limit anything.
//! Where the daemon is the master of a group, in a container or by `Delegate=`
//! of its unit, it therefore moves into a group of its own inside that one, and
//! makes the groups of build steps beside it.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// Takes possession of what was delegated. Gives the parent for the groups of
/// build steps, if it is another than the root.
///
/// To be called before there are threads. What goes wrong is logged: builds
/// still run then, only their limits may not work.
pub(crate) fn settle() -> Option<String> {
    match try_settle(Path::new(ROOT)) {
        Ok(parent) => parent,
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "arrange control groups");
            None
        }
    }
}

fn try_settle(root: &Path) -> Result<Option<String>> {
    if !root.join("cgroup.controllers").exists() {
        return Ok(None);
    }
    let mut own = own_group()?;
    // Asked for by the image, as in the reference's.
    if std::env::var_os("BUILDKIT_SETUP_CGROUPV2_ROOT").is_some_and(|v| !v.is_empty() && v != "0") {
        if own != "/" {
            sys::process::own_cgroup_namespace(root).context("make the control group a root")?;
            own = own_group()?;
        }
        if own == "/" {
            divide(root, "init")?;
        }
        return Ok(None);
    }
    let group = below(root, &own);
    let delegated = ["trusted.delegate", "user.delegate"]
        .iter()
        .any(|name| matches!(sys::xattr::get(&group, name), Ok(Some(value)) if value == b"1"));
    if own == "/" || !delegated {
        return Ok(None);
    }
    divide(&group, "daemon")?;
    Ok(Some(own))
}

/// The path of this process in the unified hierarchy.
fn own_group() -> Result<String> {
    let text = std::fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(path.unwrap_or("/").to_owned())
}

fn below(root: &Path, group: &str) -> PathBuf {
    let parts = Path::new(group).components().filter(|c| matches!(c, Component::Normal(_)));
    root.components().chain(parts).collect()
}

/// Moves all processes of `group` into its child `leaf`, and lets groups beside
/// that one have limits of every kind there is.
fn divide(group: &Path, leaf: &str) -> Result<()> {
    let read = |name: &str| {
        let path = group.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let write = |path: PathBuf, text: &str| {
        std::fs::write(&path, text).with_context(|| format!("write {text:?} to {}", path.display()))
    };
    let inner = group.join(leaf);
    if !inner.is_dir() {
        sys::directory::make(&inner, 0o755)?;
    }
    for pid in read("cgroup.procs")?.lines() {
        // One that ended meanwhile is no loss; one that stays shows below.
        _ = write(inner.join("cgroup.procs"), pid);
    }
    for controller in read("cgroup.controllers")?.split_whitespace() {
        write(group.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_move_into_the_leaf_and_controllers_are_enabled() {
        let group = tempfile::tempdir().unwrap();
        let file = |name: &str| group.path().join(name);
        std::fs::write(file("cgroup.procs"), "41\n").unwrap();
        std::fs::write(file("cgroup.controllers"), "memory\n").unwrap();
        divide(group.path(), "init").unwrap();
        assert_eq!(std::fs::read_to_string(file("init/cgroup.procs")).unwrap(), "41");
        assert_eq!(std::fs::read_to_string(file("cgroup.subtree_control")).unwrap(), "+memory");
    }

    #[test]
    fn no_unified_hierarchy_no_group() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(try_settle(empty.path()).unwrap(), None);
        assert_eq!(below(Path::new("/a"), "/../b/c"), Path::new("/a/b/c"));
    }
}
