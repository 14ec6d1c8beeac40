//! The clients: our `buildctl`, and a `docker buildx` nobody has modified.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::places;
use crate::process::{self, Run};

/// `buildctl` for one daemon.
pub struct Buildctl {
    program: PathBuf,
    addr: String,
    config: TempDir,
}

impl Buildctl {
    /// For `daemon`.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn new(daemon: &Daemon) -> Result<Self> {
        let config = TempDir::with_prefix("bk-buildctl-")?;
        Ok(Self { program: places::program("buildctl")?, addr: daemon.addr(), config })
    }

    /// `buildctl ARGS`, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("DOCKER_CONFIG", self.config.path()).env_remove("BUILDKIT_HOST");
        command.args(["--addr", &self.addr]).args(args);
        command
    }

    /// Runs `buildctl ARGS`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Run> {
        process::run(self.command(args))
    }

    /// `buildctl build` of the Dockerfile in `directory`, not yet started.
    /// Progress is plain text unless `args` say otherwise.
    pub fn build_command(&self, directory: &Path, args: &[&str]) -> Command {
        let directory = directory.display();
        let mut command = self.command(&["build", "--frontend=dockerfile.v0"]);
        if !args.iter().any(|a| a.starts_with("--progress")) {
            command.arg("--progress=plain");
        }
        command.arg("--local").arg(format!("context={directory}"));
        command.arg("--local").arg(format!("dockerfile={directory}"));
        command.args(args);
        command
    }

    /// Runs `buildctl build` of the Dockerfile in `directory`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn build(&self, directory: &Path, args: &[&str]) -> Result<Run> {
        process::run(self.build_command(directory, args))
    }

    /// Runs `buildctl build` of an LLB definition.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn solve(&self, definition: &[u8], args: &[&str]) -> Result<Run> {
        let mut command = self.command(&["build", "--progress=plain"]);
        command.args(args);
        process::run_with(command, definition)
    }
}

/// `docker buildx` with the remote driver for one daemon.
pub struct Buildx {
    program: PathBuf,
    home: TempDir,
}

impl Buildx {
    /// For `daemon`.
    ///
    /// # Errors
    /// When it has not been fetched, or does not like the daemon.
    pub fn new(daemon: &Daemon) -> Result<Self> {
        let buildx = Self { program: places::buildx()?, home: TempDir::with_prefix("bk-buildx-")? };
        buildx.run(&["create", "--name", "bench", "--driver", "remote", &daemon.addr()])?.ok()?;
        Ok(buildx)
    }

    /// `docker buildx ARGS`, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        self.equip(&mut command);
        command.args(args);
        command
    }

    /// The program itself.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Has whatever `command` starts use this as its buildx.
    pub fn equip(&self, command: &mut Command) {
        let home = self.home.path();
        command.env("HOME", home).env("DOCKER_CONFIG", home).env("BUILDX_CONFIG", home.join("buildx"));
        for inherited in ["BUILDKIT_HOST", "BUILDX_BUILDER", "DOCKER_HOST", "DOCKER_CONTEXT"] {
            command.env_remove(inherited);
        }
    }

    /// Runs `docker buildx ARGS`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Run> {
        process::run(self.command(args))
    }

    /// `docker buildx build` of `directory`, not yet started. No provenance
    /// unless asked for: most tests want to see the image as such.
    pub fn build_command(&self, directory: &Path, args: &[&str]) -> Command {
        let mut command = self.command(&["build", "--builder", "bench", "--progress", "plain"]);
        if !args.iter().any(|a| a.starts_with("--provenance") || a.starts_with("--attest")) {
            command.arg("--provenance=false");
        }
        command.args(args).arg(directory);
        command
    }

    /// Runs `docker buildx build` of `directory`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn build(&self, directory: &Path, args: &[&str]) -> Result<Run> {
        process::run(self.build_command(directory, args))
    }
}
