//! What most tests need: a registry, a daemon that uses it for `docker.io`, and
//! both clients.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::clients::{Buildctl, Buildx};
use crate::daemon::{Daemon, Options};
use crate::process::Run;
use crate::project::Project;
use crate::registry::Registry;

/// A registry with `busybox` in it, a daemon and both clients.
pub struct Bench {
    /// The clients go first.
    pub buildx: Buildx,
    /// Our own client.
    pub buildctl: Buildctl,
    /// The daemon under test.
    pub daemon: Daemon,
    /// Stands for `docker.io`, and takes pushes.
    pub registry: Registry,
}

/// One of the two clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// `docker buildx`.
    Buildx,
    /// Our `buildctl`.
    Buildctl,
}

impl Bench {
    /// Starts everything.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn start(options: Options) -> Result<Self> {
        let registry = Registry::with_busybox()?;
        let mirror = Some(registry.host().to_owned());
        let daemon = Daemon::start(Options { mirror, ..options })?;
        Ok(Self { buildx: Buildx::new(&daemon)?, buildctl: Buildctl::new(&daemon)?, daemon, registry })
    }

    /// Stops everything.
    ///
    /// # Errors
    /// When the daemon does not stop in peace or leaves something behind.
    pub fn finish(mut self) -> Result<()> {
        self.daemon.stop()
    }

    /// As [`Self::finish`], of a daemon that was treated badly: it must still build, and
    /// nothing in it may have panicked.
    ///
    /// # Errors
    /// When it does not, or something has.
    pub fn finish_serving(self) -> Result<()> {
        let project = Project::new("FROM busybox\nRUN cat /proc/sys/kernel/random/uuid\n")?;
        self.build(Client::Buildctl, &project, &["no-cache"])?.ok()?;
        ensure!(!self.daemon.log().contains("panicked at"), "{}", self.daemon.log());
        self.finish()
    }

    /// A build of `project` with one of the clients; `options` as in
    /// [`Self::args`].
    ///
    /// # Errors
    /// When the client cannot be started.
    pub fn build(&self, client: Client, project: &Project, options: &[&str]) -> Result<Run> {
        let args = Self::args(client, options);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match client {
            Client::Buildx => self.buildx.build(project.dir(), &args),
            Client::Buildctl => self.buildctl.build(project.dir(), &args),
        }
    }

    /// Options in one spelling for both clients: `output=…`, `build-arg:K=V`,
    /// `target=…`, `label:K=V`, `secret=…`, `ssh=…`, `allow=…`, `network=…`,
    /// `no-cache`, `file=…`; anything else is passed on.
    pub fn args(client: Client, options: &[&str]) -> Vec<String> {
        let mut args = Vec::new();
        for option in options {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let (kind, key) = name.split_once(':').unwrap_or((name, ""));
            match (client, kind) {
                (_, "output" | "secret" | "ssh" | "allow") => args.push(format!("--{option}")),
                (_, "no-cache") => args.push("--no-cache".into()),
                (Client::Buildx, "build-arg" | "label" | "build-context") => {
                    args.push(format!("--{kind}={key}={value}"));
                }
                (Client::Buildx, "target" | "network") => args.push(format!("--{kind}={value}")),
                (Client::Buildctl, "build-arg" | "label") => args.push(format!("--opt={option}")),
                (Client::Buildctl, "target") => args.push(format!("--opt={option}")),
                (Client::Buildctl, "network") => args.push(format!("--opt=force-network-mode={value}")),
                _ => args.push((*option).to_owned()),
            }
        }
        args
    }

    /// Builds `project` and gives the resulting file tree.
    ///
    /// # Errors
    /// When the build fails.
    pub fn export(&self, client: Client, project: &Project, options: &[&str]) -> Result<TempDir> {
        let out = TempDir::with_prefix("bk-out-")?;
        let output = format!("output=type=local,dest={}", out.path().display());
        let options: Vec<&str> = options.iter().copied().chain([output.as_str()]).collect();
        self.build(client, project, &options)?.ok()?;
        Ok(out)
    }
}

/// The content of a file in an exported tree.
///
/// # Errors
/// When it cannot be read as text.
pub fn text(tree: &TempDir, path: &str) -> Result<String> {
    let path = tree.path().join(path);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The names in a directory, sorted.
///
/// # Errors
/// When it cannot be read.
pub fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
