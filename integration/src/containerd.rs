//! A real containerd: to see whether it takes and runs what we build.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::leak;
use crate::process::{self, Run, Service};

/// Debian's `containerd` with a socket and data of its own.
pub struct Containerd {
    service: Option<Service>,
    dir: TempDir,
}

impl Containerd {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("bk-containerd-")?;
        let path = |name: &str| dir.path().join(name);
        // Kubernetes' part wants networks that are not there.
        let config = format!(
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\nroot = {:?}\nstate = {:?}\n[grpc]\n  address = {:?}\n\
             [ttrpc]\n  address = {:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = {:?}\n",
            path("root"),
            path("state"),
            path("socket"),
            path("socket.ttrpc"),
            path("opt")
        );
        std::fs::write(path("config.toml"), config)?;
        let args = ["--config".into(), path("config.toml").into_os_string()];
        let service = Service::start("containerd", Path::new("containerd"), args, &[], path("log"))?;
        let mut containerd = Self { service: Some(service), dir };
        let socket = containerd.socket();
        let answers = || process::run(ctr(&socket, &["version"])).ok()?.ok().ok();
        if let Some(service) = &mut containerd.service {
            service.wait_until(Duration::from_secs(30), answers)?;
        }
        Ok(containerd)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Runs `ctr ARGS`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Run> {
        process::run(ctr(&self.socket(), args))
    }
}

fn ctr(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket).args(args);
    command
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.service = None;
        leak::clean(self.dir.path(), "");
    }
}
