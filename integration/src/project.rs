//! Build contexts.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;

/// A directory with a Dockerfile and what it copies.
pub struct Project {
    dir: TempDir,
}

impl Project {
    /// One with just this Dockerfile.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(dockerfile: &str) -> Result<Self> {
        let project = Self { dir: TempDir::with_prefix("bk-project-")? };
        project.with("Dockerfile", dockerfile)
    }

    /// With one more file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn with(self, path: &str, content: impl AsRef<[u8]>) -> Result<Self> {
        self.write(path, content)?;
        Ok(self)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content)?;
        // Whatever the umask, tests that look at modes see the same.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
        Ok(())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
}
