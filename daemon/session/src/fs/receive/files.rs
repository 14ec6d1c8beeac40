//! The bytes of files, as they come.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use base::Digest;
use base::digest::Hasher;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use super::{Data, MapEntry, Shared};
use crate::Error;
use crate::fs::root::Root;
use crate::fs::writer::set_time;
use crate::fs::{Change, Changes, Stat};

/// Files being written. Senders send four at a time.
const MAX_OPEN: usize = 128;

/// Writes the bytes of files.
pub(super) struct Files {
    pub(super) root: Arc<Root>,
    pub(super) changes: Option<Arc<dyn Changes>>,
    pub(super) map: Option<MapEntry>,
    pub(super) shared: Arc<Shared>,
    pub(super) open: HashMap<u32, Open>,
}

pub(super) struct Open {
    stat: Stat,
    file: Option<File>,
    /// Permissions to be given back: the file could not be written with them.
    restore: Option<Mode>,
    hasher: Option<Hasher>,
}

impl Files {
    pub(super) fn run(mut self, mut data: mpsc::Receiver<Data>) -> Result<(), Error> {
        while let Some(item) = data.blocking_recv() {
            if item.data.is_empty() {
                self.complete(item.id)?;
            } else {
                self.write(item.id, &item.data)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, id: u32) -> Result<&mut Open, Error> {
        let Self { open, shared, changes, .. } = self;
        if !open.contains_key(&id) && open.len() >= MAX_OPEN {
            return Err(Error::Protocol(format!("more than {MAX_OPEN} files at once")));
        }
        match open.entry(id) {
            std::collections::hash_map::Entry::Occupied(slot) => Ok(slot.into_mut()),
            std::collections::hash_map::Entry::Vacant(slot) => {
                let stat = shared.requests.lock().sent.get(&id).cloned();
                let stat = stat.ok_or_else(|| Error::Protocol(format!("invalid file request {id}")))?;
                let hasher = changes.as_ref().map(|c| c.hasher(&stat)).transpose()?;
                Ok(slot.insert(Open { stat, file: None, restore: None, hasher }))
            }
        }
    }

    fn write(&mut self, id: u32, data: &[u8]) -> Result<(), Error> {
        let root = self.root.clone();
        let open = self.entry(id)?;
        if open.file.is_none() {
            let (file, restore) = open_for_writing(&root, &open.stat.path)
                .map_err(|e| Error::io("open", open.stat.path.clone(), e))?;
            open.restore = restore;
            open.file = Some(file);
        }
        if let Some(hasher) = &mut open.hasher {
            hasher.update(data);
        }
        match &mut open.file {
            Some(file) => file.write_all(data).map_err(|e| Error::io("write", open.stat.path.clone(), e)),
            None => Ok(()),
        }
    }

    fn complete(&mut self, id: u32) -> Result<(), Error> {
        self.entry(id)?;
        let Some(Open { stat, file, restore, hasher }) = self.open.remove(&id) else { return Ok(()) };
        drop(file);
        let mut wanted = stat.clone();
        if let Some(map) = &self.map {
            map(&stat.path, &mut wanted);
        }
        let end = || -> io::Result<()> {
            let (dir, name) = self.root.parent(&stat.path)?;
            if let Some(mode) = restore {
                rustix::fs::chmodat(&*dir, name, mode, rustix::fs::AtFlags::empty())?;
            }
            Ok(set_time(&*dir, name, wanted.mod_time)?)
        };
        end().map_err(|e| Error::io("complete", stat.path.clone(), e))?;
        if let (Some(changes), Some(hasher)) = (&self.changes, hasher) {
            let digest: Digest = hasher.finish();
            changes.changed(&stat.path, Change::Set { stat: &stat, digest: &digest })?;
        }
        self.shared.requests.lock().sent.remove(&id);
        self.shared.complete.notify_one();
        self.shared.send.notify_one();
        Ok(())
    }
}

/// Opens a file that was just made, for its owner alone if it must be.
fn open_for_writing(root: &Root, path: &str) -> io::Result<(File, Option<Mode>)> {
    match root.open_file(path, OFlags::WRONLY, Mode::empty()) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let (dir, name) = root.parent(path)?;
            let raw = rustix::fs::statat(&*dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
            let mode = Mode::from_raw_mode(raw.st_mode & 0o7777);
            rustix::fs::chmodat(&*dir, name, mode | Mode::WUSR, rustix::fs::AtFlags::empty())?;
            Ok((root.open_file(path, OFlags::WRONLY, Mode::empty())?, Some(mode)))
        }
        result => Ok((result?, None)),
    }
}
