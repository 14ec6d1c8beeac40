//! Where the files of running containers are.
//!
//! A container takes a dozen small files that are gone when it ends. In memory they cost
//! nothing; on a disk each costs time, and some file systems look through all those that were
//! removed lately whenever one is made. What has to outlive the daemon is not among them: see
//! [`crate::ledger`].

use std::path::{Path, PathBuf};

use sys::directory::{self, PRIVATE};
use sys::mount::{Mounted, Tmpfs};

use crate::Error;

/// In bytes. A container takes some 50 KiB.
const LIMIT: u64 = 1 << 30;

/// The directories.
#[derive(Debug)]
pub(crate) struct Places {
    dir: PathBuf,
    memory: Option<Mounted>,
}

impl Places {
    /// On disk below `state`, where an earlier daemon may have left something.
    pub(crate) fn open(state: &Path) -> Result<Self, Error> {
        let places = Self { dir: state.join("run"), memory: None };
        places.make()?;
        Ok(places)
    }

    /// In memory from now on, where that can be had.
    pub(crate) fn move_to_memory(&mut self) -> Result<(), Error> {
        match (Tmpfs { size: Some(LIMIT), mode: Some(PRIVATE) }).mount(&self.dir) {
            Ok(mounted) => self.memory = Some(mounted),
            Err(error) => tracing::info!(%error, "files of containers are on disk"),
        }
        self.make()
    }

    fn make(&self) -> Result<(), Error> {
        [self.bundles(), self.notes()].iter().try_for_each(|dir| Ok(directory::make(dir, PRIVATE)?))
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
