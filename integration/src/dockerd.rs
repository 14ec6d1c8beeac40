//! A real Docker engine, only to see whether it understands what we export.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::leak;
use crate::process::{self, Run, Service};

/// Debian's `dockerd` on a socket and data of its own, without networks.
pub struct Dockerd {
    service: Option<Service>,
    dir: TempDir,
}

impl Dockerd {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("bk-docker-")?;
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("daemon.json"), "{}")?;
        let args = [
            format!("--config-file={}", path("daemon.json").display()),
            format!("--host=unix://{}", path("docker.sock").display()),
            format!("--data-root={}", path("data").display()),
            format!("--exec-root={}", path("exec").display()),
            format!("--pidfile={}", path("pid").display()),
            "--bridge=none".into(),
            "--iptables=false".into(),
            "--ip6tables=false".into(),
            "--ip-forward=false".into(),
            "--storage-driver=overlay2".into(),
        ];
        let service = Service::start("dockerd", Path::new("dockerd"), args, &[], path("log"))?;
        let mut dockerd = Self { service: Some(service), dir };
        let info = dockerd.command(&["version"]);
        let answers = move || {
            let mut command = Command::new("docker");
            command.args(info.get_args());
            process::run(command).ok()?.ok().ok()
        };
        if let Some(service) = &mut dockerd.service {
            service.wait_until(Duration::from_secs(60), answers)?;
        }
        Ok(dockerd)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg(format!("--host=unix://{}", self.socket().display())).args(args);
        command.env("DOCKER_CONFIG", self.dir.path());
        command
    }

    /// Runs `docker ARGS`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Run> {
        process::run(self.command(args))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.service = None;
        leak::clean(self.dir.path(), "");
    }
}
