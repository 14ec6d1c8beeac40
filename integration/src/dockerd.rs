//! A real Docker engine: to see whether it understands what we export, and to
//! run our image the way people do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::leak;
use crate::places;
use crate::process::{self, Run, Service};

/// `runc` where `--privileged` asks for capabilities that the machine, being a container
/// itself, does not have: they are left out.
const RUNTIME: &str = r#"#!/bin/sh
have=$(setpriv --dump | sed -n 's/^Capability bounding set: //p')
lack=none
for capability in $(setpriv --list-caps); do
    case ",$have," in
    *",$capability,"*) ;;
    *) lack="$lack|CAP_$(echo "$capability" | tr a-z A-Z)" ;;
    esac
done
previous=
for argument in "$@"; do
    case $previous in
    --bundle) file=$argument/config.json ;;
    --process) file=$argument ;;
    *) file= ;;
    esac
    [ -z "$file" ] || sed -i -E "s/\"($lack)\",?//g; s/,\]/]/g" "$file"
    previous=$argument
done
exec runc "$@"
"#;

/// Debian's `dockerd` on a socket and data of its own.
pub struct Dockerd {
    service: Option<Service>,
    dir: TempDir,
}

impl Dockerd {
    /// Starts one without networks of its own, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start() -> Result<Self> {
        let alone = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"];
        Self::launch("exec \"$@\"", &alone)
    }

    /// Starts one with the networks it has by default, all of them in a network
    /// namespace that has no way out: [`Self::inside`] runs programs there.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn with_networks() -> Result<Self> {
        Self::launch("exec unshare --net sh -c 'ip link set lo up; exec \"$@\"' dockerd \"$@\"", &[])
    }

    fn launch(script: &str, flags: &[&str]) -> Result<Self> {
        let dir = TempDir::with_prefix("bk-docker-")?;
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("daemon.json"), "{}")?;
        std::fs::write(path("runtime"), RUNTIME)?;
        std::fs::set_permissions(path("runtime"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut args = vec![
            "-c".into(),
            script.to_owned(),
            "sh".into(),
            "dockerd".into(),
            format!("--config-file={}", path("daemon.json").display()),
            format!("--host=unix://{}", path("docker.sock").display()),
            format!("--data-root={}", path("data").display()),
            format!("--exec-root={}", path("exec").display()),
            format!("--pidfile={}", path("pid").display()),
            "--storage-driver=overlay2".into(),
            format!("--add-runtime=here={}", path("runtime").display()),
            "--default-runtime=here".into(),
        ];
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let service = Service::start("dockerd", Path::new("/bin/sh"), args, &[], path("log"))?;
        let plugins = path("cli-plugins");
        std::fs::create_dir(&plugins)?;
        std::os::unix::fs::symlink(places::buildx()?, plugins.join("docker-buildx"))?;
        let mut dockerd = Self { service: Some(service), dir };
        let mut question = Command::new("docker");
        question.arg(format!("--host={}", dockerd.address())).arg("version");
        let answers = || {
            let mut command = Command::new(question.get_program());
            command.args(question.get_args());
            process::run(command).ok()?.ok().ok()
        };
        if let Some(service) = &mut dockerd.service {
            service.wait_until(Duration::from_secs(60), answers)?;
        }
        Ok(dockerd)
    }

    fn address(&self) -> String {
        format!("unix://{}", self.dir.path().join("docker.sock").display())
    }

    /// Where it keeps everything.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Gives a command this engine, and `docker` the plugin buildx.
    pub fn equip(&self, command: &mut Command) {
        for inherited in ["BUILDKIT_HOST", "BUILDX_BUILDER", "DOCKER_CONTEXT"] {
            command.env_remove(inherited);
        }
        command
            .env("DOCKER_HOST", self.address())
            .env("HOME", self.dir.path())
            .env("DOCKER_CONFIG", self.dir.path())
            .env("BUILDX_CONFIG", self.dir.path().join("buildx"));
    }

    /// `docker ARGS`, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        self.equip(&mut command);
        command.args(args);
        command
    }

    /// Runs `docker ARGS`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Run> {
        process::run(self.command(args))
    }

    /// A command in its network namespace, not yet started.
    pub fn inside(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.service.as_ref().map_or(0, Service::pid);
        command.arg(format!("--net=/proc/{pid}/ns/net")).args(args);
        self.equip(&mut command);
        command
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.service = None;
        leak::clean(self.dir.path(), "");
    }
}
