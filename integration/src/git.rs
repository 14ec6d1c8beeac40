//! Repositories to build from, and a server for them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::process::{self, Service};
use crate::registry::free_port;

/// A directory with repositories, served over git's own protocol.
pub struct GitServer {
    host: String,
    root: TempDir,
    _service: Service,
}

impl GitServer {
    /// Starts one without repositories.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start() -> Result<Self> {
        let root = TempDir::with_prefix("bk-git-")?;
        let host = format!("127.0.0.1:{}", free_port()?);
        let port = host.trim_start_matches("127.0.0.1:");
        let base = root.path().join("served");
        std::fs::create_dir(&base)?;
        let args = [
            "daemon".to_owned(),
            "--export-all".to_owned(),
            "--reuseaddr".to_owned(),
            "--listen=127.0.0.1".to_owned(),
            format!("--port={port}"),
            format!("--base-path={}", base.display()),
        ];
        let env = [("HOME", root.path().as_os_str().to_owned())];
        let log = root.path().join("log");
        let mut service = Service::start("git daemon", Path::new("git"), args, &env, log)?;
        service.wait_until(Duration::from_secs(20), || std::net::TcpStream::connect(&host).ok())?;
        Ok(Self { host, root, _service: service })
    }

    /// The address of a repository.
    pub fn url(&self, name: &str) -> String {
        format!("git://{}/{name}", self.host)
    }

    /// An empty repository that is served as `name`.
    ///
    /// # Errors
    /// When git does not make it.
    pub fn repository(&self, name: &str) -> Result<Repository> {
        Repository::new(&self.root.path().join("served").join(name))
    }
}

/// A repository with files.
pub struct Repository {
    path: PathBuf,
}

impl Repository {
    /// An empty one at `path`.
    ///
    /// # Errors
    /// When git does not make it.
    pub fn new(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let repository = Self { path: path.to_owned() };
        repository.git(&["init", "--quiet", "--initial-branch=main"])?;
        // For whoever wants one commit and nothing else.
        repository.git(&["config", "uploadpack.allowAnySHA1InWant", "true"])?;
        Ok(repository)
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes files, and commits them and whatever else was changed. Gives the commit.
    ///
    /// # Errors
    /// When git does not take them.
    pub fn commit(&self, files: &[(&str, &str)]) -> Result<String> {
        for (name, content) in files {
            let path = self.path.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, content)?;
        }
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message=a change"])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Runs git in it. Dates are the same at all times.
    ///
    /// # Errors
    /// When it fails.
    pub fn git(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("git");
        command.current_dir(&self.path).args(args).envs([
            ("HOME", "/dev/null"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_AUTHOR_NAME", "a"),
            ("GIT_AUTHOR_EMAIL", "a@example.com"),
            ("GIT_COMMITTER_NAME", "a"),
            ("GIT_COMMITTER_EMAIL", "a@example.com"),
            ("GIT_AUTHOR_DATE", "2001-02-03T04:05:06Z"),
            ("GIT_COMMITTER_DATE", "2001-02-03T04:05:06Z"),
        ]);
        Ok(process::run(command)?.ok()?.trim().to_owned())
    }
}
