//! A machine with systemd: a container that boots, with our package installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::cgroup::Cgroup;
use crate::places;
use crate::process::{self, Run, Service, wait_for};

/// A Debian that has booted. Its network is its own and has no way out.
pub struct Machine {
    service: Option<Service>,
    leader: u32,
    dir: TempDir,
    // Dropped after the service has ended.
    _cgroup: Cgroup,
}

impl Machine {
    /// Makes the package from the programs under test, installs it, and boots.
    ///
    /// # Errors
    /// When one of that fails.
    pub fn boot() -> Result<Self> {
        let dir = TempDir::with_prefix("bk-machine-")?;
        let root = dir.path().join("root");
        std::fs::create_dir(&root)?;
        let base = places::provided(places::cache().join("images/machine.tar"))?;
        let mut unpack = Command::new("tar");
        unpack.arg("-C").arg(&root).arg("-xf").arg(base);
        process::run(unpack)?.ok()?;
        let mut package = Command::new(places::workspace().join("systemd/package.sh"));
        package.arg(places::programs()?).arg(root.join("buildkit.deb"));
        // Programs for tests are large, and the package is thrown away.
        package.env("DPKG_DEB_COMPRESSOR_TYPE", "none");
        process::run(package)?.ok().context("make the package")?;
        let mut install = Command::new("chroot");
        install.arg(&root).args(["dpkg", "--install", "/buildkit.deb"]);
        process::run(install)?.ok().context("install the package")?;

        let args = [
            "--quiet".to_owned(),
            "--boot".into(),
            format!("--directory={}", root.display()),
            format!("--machine=bk-{}", std::process::id()),
            "--register=no".into(),
            "--keep-unit".into(),
            "--private-network".into(),
            "--link-journal=no".into(),
            "--console=pipe".into(),
            // What builds need of a machine, and containers usually do not have.
            "--capability=all".into(),
            "--system-call-filter=@keyring bpf".into(),
        ];
        // Also where the host still has the older hierarchies.
        let env = [("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1".into())];
        // It makes groups where it starts, and in the root of a tree that is anybody's.
        let cgroup = Cgroup::new(&format!("bk-machine-{}", std::process::id()))?;
        let start = format!("{}exec systemd-nspawn \"$@\"", cgroup.enter());
        let args = ["-c".to_owned(), start, "sh".into()].into_iter().chain(args);
        let mut service =
            Service::start("systemd-nspawn", Path::new("sh"), args, &env, dir.path().join("log"))?;
        let pid = service.pid();
        // Its first process is the one that has become systemd.
        let init = || {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            let mut children = children.split_whitespace();
            let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            children.find(|pid| name(pid).trim() == "systemd")?.parse().ok()
        };
        let leader = service.wait_until(Duration::from_secs(30), init)?;
        let machine = Self { service: Some(service), leader, dir, _cgroup: cgroup };
        let up = || machine.run(&["systemctl", "is-active", "sockets.target"]).ok()?.ok().ok();
        wait_for("boot", Duration::from_secs(60), up).context(machine.console())?;
        Ok(machine)
    }

    fn console(&self) -> String {
        self.service.as_ref().map(Service::log).unwrap_or_default()
    }

    /// A file of it, seen from outside.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path.trim_start_matches('/'))
    }

    /// Writes a file in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content).with_context(|| path.display().to_string())
    }

    /// A command in it, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.leader.to_string(), "env", "-i"]);
        command.arg("PATH=/usr/sbin:/usr/bin:/sbin:/bin").args(args);
        command
    }

    /// Runs a command in it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Run> {
        process::run(self.command(args))
    }

    /// What its service manager says about a unit.
    ///
    /// # Errors
    /// When it says nothing.
    pub fn show(&self, unit: &str, property: &str) -> Result<String> {
        let said = self.run(&["systemctl", "show", "--value", "--property", property, unit])?.ok()?;
        Ok(said.trim().to_owned())
    }

    /// The log of a unit.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.run(&["journalctl", "--no-pager", "--boot", "--output=cat", "--unit", unit])?.ok()
    }

    /// Turns it off.
    ///
    /// # Errors
    /// When it does not go.
    pub fn power_off(mut self) -> Result<()> {
        self.service.take().map_or(Ok(()), |mut service| service.stop(Duration::from_secs(60)))
    }
}
