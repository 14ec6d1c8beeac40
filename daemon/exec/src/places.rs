//! Where the files of running containers are.
//!
//! A container takes a dozen small files that are gone when it ends. In memory they cost
//! nothing; on a disk each costs time, and some file systems look through all those that were
//! removed lately whenever one is made. What has to outlive the daemon is not among them: see
//! [`crate::running`].

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sys::mount::{Mounted, Tmpfs};

use crate::Error;

/// In bytes. A container takes some 50 KiB.
const LIMIT: u64 = 1 << 30;

/// Permissions of directories: processes of other users find their files by name.
const MODE: u32 = 0o711;

/// The directories.
#[derive(Debug)]
pub(crate) struct Places {
    dir: PathBuf,
    _memory: Option<Mounted>,
}

impl Places {
    /// Below `state`; in memory, if that is wanted and can be had.
    pub(crate) fn open(state: &Path, in_memory: bool) -> Result<Self, Error> {
        let dir = state.join("run");
        make(&dir)?;
        let memory = in_memory.then(|| Tmpfs { size: Some(LIMIT), mode: Some(MODE) }.mount(&dir));
        let memory = memory.transpose().unwrap_or_else(|error| {
            tracing::info!(%error, "files of containers are on disk");
            None
        });
        let places = Self { dir, _memory: memory };
        make(&places.bundles())?;
        make(&places.notes())?;
        Ok(places)
    }

    fn bundles(&self) -> PathBuf {
        self.dir.join("bundles")
    }

    /// The bundle of a container.
    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.bundles().join(id)
    }

    /// What the OCI runtime remembers.
    pub(crate) fn notes(&self) -> PathBuf {
        self.dir.join("runtime")
    }
}

fn make(dir: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(MODE).create(dir).map_err(Error::file("create", dir))
}
