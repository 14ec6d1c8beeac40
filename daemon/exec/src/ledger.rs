//! Which containers there are, on disk: for the daemon that comes after one that was killed.
//!
//! One file, with a slot for each container of those that run at the same time: noting one
//! is a write into the file, and no file is made or removed for it. It is as long as there
//! ever were containers at once.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::Error;
use crate::process::is_id;

/// Its place in the state directory.
const FILE: &str = "running";

/// Bytes of a slot: a page, so that a write is there as a whole or not at all however the
/// daemon ends, and long enough for every path that the kernel takes.
const SLOT: usize = 4096;

/// The file.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    taken: Mutex<Vec<bool>>,
    /// By slot, what was there.
    found: Mutex<Vec<Option<(String, String)>>>,
}

/// A container that an earlier daemon has left.
#[derive(Debug)]
pub(crate) struct Left {
    pub id: String,
    /// What its runtime was told of its cgroup; empty when nothing.
    pub cgroup: String,
    pub note: Note,
}

/// A container that is in the file as long as this value is.
#[derive(Debug)]
#[must_use = "dropping it forgets the container"]
pub(crate) struct Note {
    ledger: Arc<Ledger>,
    slot: usize,
    /// It stays in the file for all that.
    keep: bool,
}

impl Ledger {
    /// Opens the file below `state`.
    pub(crate) fn open(state: &Path) -> Result<Arc<Self>, Error> {
        let path = state.join(FILE);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::file("read", path)(e)),
            text => text.unwrap_or_default(),
        };
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        let found: Vec<_> = text.chunks(SLOT).map(parse).collect();
        let taken = Mutex::new(found.iter().map(Option::is_some).collect());
        Ok(Arc::new(Self { path, file, taken, found: Mutex::new(found) }))
    }

    /// What was in it. Told once; until then it stays there.
    pub(crate) fn left(self: &Arc<Self>) -> Vec<Left> {
        let found = std::mem::take(&mut *self.found.lock());
        let left = found.into_iter().enumerate().filter_map(|(slot, found)| {
            let (id, cgroup) = found?;
            Some(Left { id, cgroup, note: Note { ledger: self.clone(), slot, keep: false } })
        });
        left.collect()
    }

    /// Notes a container that is about to be made, and what its runtime will be told of its
    /// cgroup.
    pub(crate) fn note(self: &Arc<Self>, id: &str, cgroup: &str) -> Result<Note, Error> {
        let text = format!("{id}\n{cgroup}\0");
        if text.len() > SLOT || cgroup.contains('\0') {
            return Err(Error::Invalid(format!("cgroup {cgroup:?} is none that the kernel takes")));
        }
        let slot = {
            let mut taken = self.taken.lock();
            let free = taken.iter().position(|taken| !taken);
            let slot = free.unwrap_or(taken.len());
            match taken.get_mut(slot) {
                Some(taken) => *taken = true,
                None => taken.push(true),
            }
            slot
        };
        // From here on dropping it frees the slot.
        let note = Note { ledger: self.clone(), slot, keep: false };
        self.write(slot, text.as_bytes())?;
        Ok(note)
    }

    fn write(&self, slot: usize, text: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(text, (slot * SLOT) as u64).map_err(Error::file("write", &self.path))
    }
}

impl Note {
    /// Leaves the container in the file, for the next daemon: something of it could not be
    /// removed.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = self.ledger.write(self.slot, b"\0") {
            tracing::warn!(%error, "forget a container that has ended");
        }
        if let Some(taken) = self.ledger.taken.lock().get_mut(self.slot) {
            *taken = false;
        }
    }
}

/// The container of a slot and its cgroup. `None` for a free slot, and for what nobody noted.
fn parse(slot: &[u8]) -> Option<(String, String)> {
    let text = slot.split(|byte| *byte == 0).next()?;
    let (id, cgroup) = std::str::from_utf8(text).ok()?.split_once('\n')?;
    is_id(id).then(|| (id.to_owned(), cgroup.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the next daemon would find.
    fn left(dir: &Path) -> Vec<String> {
        let told = |left: Left| {
            let text = format!("{} {}", left.id, left.cgroup);
            left.note.keep();
            text
        };
        Ledger::open(dir).unwrap().left().into_iter().map(told).collect()
    }

    #[test]
    fn what_runs_is_found_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert!(ledger.left().is_empty());
        let one = ledger.note("one", "/buildkit/one").unwrap();
        let two = ledger.note("two", "system.slice:bk:two").unwrap();
        assert_eq!(left(dir.path()), ["one /buildkit/one", "two system.slice:bk:two"]);
        // The slot of one that has ended is used again, by a shorter one, too.
        drop(one);
        assert_eq!(left(dir.path()), ["two system.slice:bk:two"]);
        let three = ledger.note("3", "").unwrap();
        assert_eq!(left(dir.path()), ["3 ", "two system.slice:bk:two"]);
        drop((two, three));
        assert_eq!(left(dir.path()), [""; 0]);
    }

    #[test]
    fn what_is_left_stays_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        for id in ["one", "two"] {
            ledger.note(id, "").unwrap().keep();
        }
        // Nor does it go when nobody asks for it.
        drop(Ledger::open(dir.path()).unwrap());
        let next = Ledger::open(dir.path()).unwrap();
        let new = next.note("new", "").unwrap();
        let mut found = next.left();
        drop(found.remove(0));
        found.remove(0).note.keep();
        assert_eq!(left(dir.path()), ["two ", "new "]);
        let again = next.note("again", "").unwrap();
        assert_eq!(left(dir.path()), ["again ", "two ", "new "]);
        drop((new, again));
        assert_eq!(left(dir.path()), ["two "]);
    }

    #[test]
    fn a_cgroup_that_cannot_be_noted_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        for wrong in ["a\0b".to_owned(), "x".repeat(SLOT)] {
            assert!(ledger.note("id", &wrong).is_err());
        }
        assert_eq!(left(dir.path()), [""; 0]);
    }

    #[test]
    fn nonsense_is_no_container() {
        let dir = tempfile::tempdir().unwrap();
        let long = [b'a'; SLOT + 1];
        for text in [b"".as_slice(), b"\0", b"no line", b"../up\n/x\0", b"\n/x\0", b"\xff\n/x\0", &long] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(left(dir.path()), [""; 0]);
        }
    }
}
