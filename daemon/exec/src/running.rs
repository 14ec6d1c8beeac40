//! Which containers run, on disk: for the daemon that comes after one that was killed.
//!
//! One file, with a slot for each container of those that run at the same time: noting one
//! is a write into the file, and no file is made or removed for it. It is as long as there
//! ever were containers at once since the daemon's start.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::Error;

/// Its place in the state directory.
pub(crate) const FILE: &str = "running";

/// Bytes of a slot: a page, so that a write is there as a whole or not at all however the
/// daemon ends, and long enough for every path that the kernel takes.
const SLOT: usize = 4096;

/// The file.
#[derive(Debug)]
pub(crate) struct Running {
    path: PathBuf,
    file: File,
    taken: Mutex<Vec<bool>>,
}

/// A container that an earlier daemon had started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub id: String,
    /// What its runtime was told of its cgroup.
    pub cgroup: String,
}

/// A container that is in the file as long as this value is.
#[derive(Debug)]
pub(crate) struct Note {
    running: Arc<Running>,
    slot: usize,
}

impl Running {
    /// Opens the file, and tells what is in it. That stays until [`Self::forget`].
    pub(crate) fn open(state: &Path) -> Result<(Self, Vec<Left>), Error> {
        let path = state.join(FILE);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::file("read", path)(e)),
            text => text.unwrap_or_default(),
        };
        let left = text.chunks(SLOT).filter_map(parse).collect();
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        Ok((Self { path, file, taken: Mutex::default() }, left))
    }

    /// Empties the file: nothing of an earlier daemon is left. Before the first note.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        self.file.set_len(0).map_err(Error::file("empty", &self.path))
    }

    /// Notes a container that is about to be made.
    pub(crate) fn note(self: &Arc<Self>, id: &str, cgroup: &str) -> Result<Note, Error> {
        let text = format!("{id}\n{cgroup}\0");
        if text.len() > SLOT || cgroup.contains('\0') {
            return Err(Error::Invalid(format!("cgroup {cgroup:?} is none that the kernel takes")));
        }
        let slot = {
            let mut taken = self.taken.lock();
            let slot = taken.iter().position(|taken| !taken).unwrap_or_else(|| {
                taken.push(false);
                taken.len() - 1
            });
            if let Some(free) = taken.get_mut(slot) {
                *free = true;
            }
            slot
        };
        // From here on dropping it frees the slot.
        let note = Note { running: self.clone(), slot };
        self.write(slot, text.as_bytes())?;
        Ok(note)
    }

    fn write(&self, slot: usize, text: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(text, (slot * SLOT) as u64).map_err(Error::file("write", &self.path))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Err(error) = self.running.write(self.slot, b"\0") {
            tracing::warn!(%error, "forget a container that has ended");
        }
        if let Some(taken) = self.running.taken.lock().get_mut(self.slot) {
            *taken = false;
        }
    }
}

fn parse(slot: &[u8]) -> Option<Left> {
    let text = slot.split(|byte| *byte == 0).next()?;
    let (id, cgroup) = std::str::from_utf8(text).ok()?.split_once('\n')?;
    crate::process::is_id(id).then(|| Left { id: id.to_owned(), cgroup: cgroup.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(dir: &Path) -> Vec<String> {
        Running::open(dir).unwrap().1.into_iter().map(|l| format!("{} {}", l.id, l.cgroup)).collect()
    }

    #[test]
    fn what_runs_is_found_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (running, none) = Running::open(dir.path()).unwrap();
        assert_eq!(none, []);
        let running = Arc::new(running);
        let one = running.note("one", "/buildkit/one").unwrap();
        let two = running.note("two", "system.slice:bk:two").unwrap();
        assert_eq!(left(dir.path()), ["one /buildkit/one", "two system.slice:bk:two"]);
        // The slot of one that has ended is used again, by a shorter one, too.
        drop(one);
        assert_eq!(left(dir.path()), ["two system.slice:bk:two"]);
        let three = running.note("3", "").unwrap();
        assert_eq!(left(dir.path()), ["3 ", "two system.slice:bk:two"]);
        drop((two, three));
        assert_eq!(left(dir.path()), [""; 0]);
    }

    #[test]
    fn a_cgroup_that_cannot_be_noted_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let running = Arc::new(Running::open(dir.path()).unwrap().0);
        for wrong in ["a\0b".to_owned(), "x".repeat(SLOT)] {
            assert!(running.note("id", &wrong).is_err());
        }
        assert_eq!(left(dir.path()), [""; 0]);
    }

    #[test]
    fn nonsense_is_no_container() {
        let dir = tempfile::tempdir().unwrap();
        for text in
            [b"".as_slice(), b"\0", b"no line", b"../up\n/x\0", b"\n/x\0", b"\xff\n/x\0", &[b'a'; SLOT + 1]]
        {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(left(dir.path()), [""; 0]);
        }
        Running::open(dir.path()).unwrap().0.forget().unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().len(), 0);
    }
}
