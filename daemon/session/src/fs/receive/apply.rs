//! The difference between what is told and what is there.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Differ, MapEntry, Shared, Told};
use crate::Error;
use crate::fs::walk::Walk;
use crate::fs::writer::{Made, Writer};
use crate::fs::{Change, Changes, Stat, compare_paths};

/// Makes the difference between what is there and what is told.
pub(super) struct Apply {
    pub(super) walk: Option<Walk>,
    pub(super) writer: Writer,
    pub(super) map: Option<MapEntry>,
    pub(super) differ: Differ,
    pub(super) changes: Option<Arc<dyn Changes>>,
    pub(super) shared: Arc<Shared>,
}

impl Apply {
    pub(super) fn run(mut self, mut told: mpsc::Receiver<Option<Told>>) -> Result<Writer, Error> {
        // The end is told; silence means that the transfer was given up.
        let mut next = || told.blocking_recv().ok_or_else(|| Error::Broken("given up".into()));
        let mut there = self.next_there()?;
        let mut new = next()?;
        loop {
            match (&there, &new) {
                (None, None) => return Ok(self.writer),
                (Some(old), None) => {
                    self.remove(&old.path.clone())?;
                    there = self.next_there()?;
                }
                (Some(old), Some(item)) if compare_paths(&old.path, &item.stat.path).is_lt() => {
                    self.remove(&old.path.clone())?;
                    there = self.next_there()?;
                }
                (Some(old), Some(item)) if old.path == item.stat.path => {
                    if !self.same(old, &item.stat) {
                        if old.is_dir() && !item.stat.is_dir() {
                            self.skip();
                        }
                        self.set(item)?;
                    }
                    there = self.next_there()?;
                    new = next()?;
                }
                (_, Some(item)) => {
                    self.set(item)?;
                    new = next()?;
                }
            }
        }
    }

    fn next_there(&mut self) -> Result<Option<Stat>, Error> {
        let Some(walk) = &mut self.walk else { return Ok(None) };
        while let Some(entry) = walk.next()? {
            if let Some(stat) = walk.stat(&entry)? {
                return Ok(Some(stat));
            }
        }
        Ok(None)
    }

    fn skip(&mut self) {
        if let Some(walk) = &mut self.walk {
            walk.skip();
        }
    }

    fn same(&self, old: &Stat, new: &Stat) -> bool {
        if self.differ == Differ::None {
            return false;
        }
        let mut new = new.clone();
        if let Some(map) = &self.map {
            map(&old.path, &mut new);
        }
        (old.is_dir() || (old.size == new.size && old.mod_time == new.mod_time))
            && old.mode == new.mode
            && (old.uid, old.gid) == (new.uid, new.gid)
            && (old.devmajor, old.devminor) == (new.devmajor, new.devminor)
            && old.linkname == new.linkname
    }

    fn remove(&mut self, path: &str) -> Result<(), Error> {
        if self.writer.remove(path)? {
            self.skip();
            if let Some(changes) = &self.changes {
                changes.changed(path, Change::Removed)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, item: &Told) -> Result<(), Error> {
        match self.writer.set(&item.stat)? {
            Made::Nothing => {}
            Made::Whole => {
                if let Some(changes) = &self.changes {
                    let digest = changes.hasher(&item.stat)?.finish();
                    changes.changed(&item.stat.path, Change::Set { stat: &item.stat, digest: &digest })?;
                }
            }
            Made::Empty => {
                self.shared.requests.lock().waiting.push_back((item.id, item.stat.clone()));
                self.shared.send.notify_one();
            }
        }
        Ok(())
    }
}
