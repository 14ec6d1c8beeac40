//! The directory from which a runtime starts a container, and what is done to
//! the root file system for it. All of it is undone when the value goes.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use serde_json::Value;
use sys::mount::{Bind, Mounted};
use sys::path::Root;

use crate::cgroup::Cgroup;
use crate::filter::Filter;
use crate::ledger::{Ledger, Note};
use crate::places::Places;
use crate::process::{Process, Security, Source};
use crate::rootfs::{Stub, Stubs, create_cwd};
use crate::spec::{OWN_MOUNTS, Surroundings, container};
use crate::trust::Trust;
use crate::user::lookup_in;
use crate::{Attachment, Error};

/// What does not change from run to run.
#[derive(Debug)]
pub(crate) struct Machine {
    pub places: Places,
    pub ledger: Arc<Ledger>,
    pub cgroup_parent: String,
    /// The sandbox's system call filter, when it has been compiled.
    pub filter: Filter,
    pub unified_cgroup: bool,
    pub process_sandbox: bool,
    pub rootless: bool,
    pub in_user_namespace: bool,
    pub apparmor_profile: Option<String>,
    pub seccomp: bool,
    pub oom_score_adj: Option<i32>,
    pub capabilities: Vec<String>,
}

/// What a container sees of its network.
#[derive(Debug)]
pub(crate) struct Seen {
    pub attachment: Attachment,
    pub resolv_conf: String,
    /// The certificate of an authority that it has to trust.
    pub authority: Option<String>,
}

/// A prepared container.
pub(crate) struct Bundle {
    pub dir: PathBuf,
    pub cgroup: Cgroup,
    root: Root,
    stubs: Stubs,
    selected: Vec<Mounted>,
    trust: Option<Trust>,
    /// Until all else is gone.
    note: Option<Note>,
}

impl Bundle {
    /// Writes the bundle of a run and makes its mount points.
    pub(crate) fn create(machine: &Machine, process: &Process, network: &Seen) -> Result<Self, Error> {
        let root = Root::open(&process.rootfs)?;
        let dir = machine.places.bundle(&process.id);
        let parent =
            if process.cgroup_parent.is_empty() { &machine.cgroup_parent } else { &process.cgroup_parent };
        let cgroup = Cgroup::at(parent, &process.id, machine.unified_cgroup && !machine.rootless);
        let told = if machine.rootless { "" } else { &cgroup.path };
        let note = machine.ledger.note(&process.id, told)?;
        DirBuilder::new().mode(sys::directory::PRIVATE).create(&dir).map_err(Error::file("create", &dir))?;
        let mut bundle = Self {
            dir,
            cgroup,
            root,
            stubs: Stubs::default(),
            selected: Vec::new(),
            trust: None,
            note: Some(note),
        };
        bundle.cgroup.make();
        bundle.fill(machine, process, network)?;
        Ok(bundle)
    }

    fn fill(&mut self, machine: &Machine, process: &Process, network: &Seen) -> Result<(), Error> {
        let user = lookup_in(&self.root, &process.user)?;
        let sources = self.select(process)?;
        self.make_stubs(process, &sources)?;
        create_cwd(&self.root, &process.cwd, user.uid, user.gid)?;
        let (resolv_path, hosts_path) = (self.dir.join("resolv.conf"), self.dir.join("hosts"));
        write(&resolv_path, network.resolv_conf.as_bytes())?;
        write(&hosts_path, hosts(process).as_bytes())?;
        let free_loop = match process.security {
            Security::Insecure if !machine.in_user_namespace => sys::process::free_loop_device().ok(),
            _ => None,
        };
        let spec = container(
            process,
            &Surroundings {
                user,
                network: &network.attachment,
                resolv_conf: &resolv_path,
                hosts: &hosts_path,
                sources: &sources,
                cgroup_path: &self.cgroup.path,
                unified_cgroup: machine.unified_cgroup,
                process_sandbox: machine.process_sandbox,
                rootless: machine.rootless,
                in_user_namespace: machine.in_user_namespace,
                apparmor_profile: machine.apparmor_profile.as_deref(),
                seccomp: machine.seccomp,
                filter: machine.filter.annotation(),
                oom_score_adj: machine.oom_score_adj,
                capabilities: &machine.capabilities,
                free_loop,
            },
        )?;
        self.write_json("config.json", &spec)?;
        if let Some(authority) = &network.authority {
            self.trust = Trust::add(&self.root, authority)?;
        }
        Ok(())
    }

    /// Takes out of the root file system what must not stay in it and may be in a file that
    /// the process has changed. Nothing of the container may run any more.
    ///
    /// # Errors
    /// When it has to stay.
    pub(crate) fn restore(&mut self) -> Result<(), Error> {
        self.trust.take().map_or(Ok(()), |trust| trust.remove(&self.root))
    }

    /// Something of the container could not be ended: it stays in the ledger.
    pub(crate) fn give_up(&mut self) {
        if let Some(note) = self.note.take() {
            note.keep();
        }
    }

    /// Writes a file into the bundle.
    pub(crate) fn write_json(&self, name: &str, value: &Value) -> Result<(), Error> {
        let text = serde_json::to_vec(value).map_err(|e| Error::Invalid(e.to_string()))?;
        write(&self.dir.join(name), &text)
    }

    /// Mounts what selectors choose where the runtime can find it, by index of the mount.
    fn select(&mut self, process: &Process) -> Result<BTreeMap<usize, PathBuf>, Error> {
        let mut sources = BTreeMap::new();
        for (index, mount) in process.mounts.iter().enumerate() {
            let Source::Bind { path, selector } = &mount.source else { continue };
            if Path::new(selector).components().all(|c| !matches!(c, std::path::Component::Normal(_))) {
                continue;
            }
            let inside = Root::open(path)?;
            // The open file stands for what was found, whatever happens to its name.
            let found = rustix::fs::openat2(
                &inside,
                selector.as_str(),
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            )
            .map_err(|e| Error::file("open", selector)(e.into()))?;
            let stat = rustix::fs::fstat(&found).map_err(|e| Error::file("stat", selector)(e.into()))?;
            let target = self.dir.join(format!("mount{index}"));
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                std::fs::create_dir(&target).map_err(Error::file("create", &target))?;
            } else {
                write(&target, b"")?;
            }
            let handle = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
            let bind = Bind { recursive: true, readonly: mount.readonly };
            self.selected.push(sys::mount::bind(&handle, &target, bind)?);
            sources.insert(index, target);
        }
        Ok(sources)
    }

    /// Makes the mount points that would otherwise be made, and left, by the
    /// runtime. Those inside another mount are not ours.
    fn make_stubs(&mut self, process: &Process, sources: &BTreeMap<usize, PathBuf>) -> Result<(), Error> {
        let mut wanted: Vec<(PathBuf, Stub)> = Vec::new();
        for path in ["/etc/resolv.conf", "/etc/hosts"] {
            wanted.push((self.root.resolve(path, true)?, Stub::File));
        }
        for (index, mount) in process.mounts.iter().enumerate() {
            let stub = match (&mount.source, sources.get(&index)) {
                (Source::Bind { path, .. }, selected) => {
                    let path = selected.unwrap_or(path);
                    let meta = std::fs::metadata(path).map_err(Error::file("mount", path))?;
                    if meta.is_dir() { Stub::Directory } else { Stub::File }
                }
                _ => Stub::Directory,
            };
            wanted.push((self.root.resolve(&mount.dest, true)?, stub));
        }
        for (at, (path, stub)) in wanted.iter().enumerate() {
            let hidden = OWN_MOUNTS.iter().any(|own| path.starts_with(own))
                || wanted
                    .iter()
                    .enumerate()
                    .any(|(other, (above, _))| other != at && above != path && path.starts_with(above));
            if !hidden {
                self.stubs.create(&self.root, path, *stub, process.remove_mount_stubs_recursive)?;
            }
        }
        Ok(())
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if let Err(e) = self.restore() {
            tracing::warn!(error = %e, "restore the trusted certificates of a root file system");
        }
        self.stubs.remove(&self.root);
        self.selected.clear();
        if !self.cgroup.remove() {
            self.give_up();
        }
        remove_dir(&self.dir);
    }
}

/// Removes the directory of a bundle; nothing may be mounted in it any more.
pub(crate) fn remove_dir(dir: &Path) {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %dir.display(), error = %e, "remove bundle");
        }
        _ => {}
    }
}

fn write(path: &Path, data: &[u8]) -> Result<(), Error> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| file.write_all(data))
        .map_err(Error::file("write", path))
}

/// The text of `/etc/hosts`.
fn hosts(process: &Process) -> String {
    use std::fmt::Write as _;
    let hostname = if process.hostname.is_empty() { "buildkitsandbox" } else { &process.hostname };
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for extra in &process.extra_hosts {
        _ = writeln!(text, "{}\t{}", extra.ip, extra.host);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostAddress;

    #[test]
    fn hosts_are_as_clients_expect() {
        let process = Process {
            hostname: "box".into(),
            extra_hosts: vec![HostAddress { host: "db".into(), ip: "10.0.0.9".parse().unwrap() }],
            ..Process::default()
        };
        assert_eq!(
            hosts(&process),
            "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.9\tdb\n"
        );
    }
}
