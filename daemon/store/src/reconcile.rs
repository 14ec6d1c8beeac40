//! Making directory and database agree, before anything is served.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use base::Digest;

use crate::blobs::{BLOBS, blob_path};
use crate::db::Db;
use crate::snapshots::SNAPSHOTS;
use crate::{Error, Result, throw_away};

/// Mounts, unfinished blobs: what only the process knew that made them.
pub(crate) fn leftovers(root: &Path) -> Result<()> {
    let mounts = root.join("mounts");
    sys::mount::detach_below(&mounts)?;
    for name in names(&mounts)? {
        let path = mounts.join(name);
        // Not recursive: if something is mounted there after all, it is not ours to delete.
        if let Err(e) = fs::remove_dir(&path) {
            tracing::warn!(path = %path.display(), error = %e, "leaving a mount point behind");
        }
    }
    for name in names(&root.join("content/ingest"))? {
        throw_away(root, &root.join("content/ingest").join(name))?;
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Blob files and blob rows.
pub(crate) fn blobs(root: &Path, db: &Db) -> Result<()> {
    let mut known: HashSet<Digest> = HashSet::new();
    let mut lost = Vec::new();
    for (key, row) in db.read(|tx| BLOBS.all(tx))? {
        let (Ok(digest), Ok(row)) = (key.parse::<Digest>(), row) else {
            lost.push(key);
            continue;
        };
        let size = fs::metadata(blob_path(root, &digest)).map(|m| m.len());
        if size.is_ok_and(|size| size == row.size) {
            known.insert(digest);
        } else {
            lost.push(key);
        }
    }
    if !lost.is_empty() {
        tracing::warn!(count = lost.len(), "dropping blobs whose files are missing or damaged");
        db.write(|tx| lost.iter().try_for_each(|key| BLOBS.delete(tx, key).map(drop)))?;
    }
    let dir = root.join("content/blobs");
    for algorithm in names(&dir)? {
        let dir = dir.join(&algorithm);
        for hex in names(&dir)? {
            let digest = format!("{algorithm}:{hex}").parse::<Digest>();
            if !digest.is_ok_and(|d| known.contains(&d)) {
                throw_away(root, &dir.join(hex))?;
            }
        }
    }
    Ok(())
}

/// Snapshot directories and snapshot rows. A snapshot without its parent is none.
pub(crate) fn snapshots(root: &Path, db: &Db) -> Result<()> {
    let dir = root.join("snapshots");
    // What each of them needs.
    let mut rows: HashMap<String, Vec<String>> = HashMap::new();
    let mut lost = Vec::new();
    for (id, row) in db.read(|tx| SNAPSHOTS.all(tx))? {
        match row {
            Ok(row) if row.stack.is_some() || dir.join(&id).join("fs").is_dir() => {
                rows.insert(id, row.parent.into_iter().chain(row.stack.unwrap_or_default()).collect());
            }
            _ => lost.push(id),
        }
    }
    loop {
        let orphans: Vec<String> = rows
            .iter()
            .filter(|(_, needs)| needs.iter().any(|id| !rows.contains_key(id)))
            .map(|(id, _)| id.clone())
            .collect();
        if orphans.is_empty() {
            break;
        }
        for id in orphans {
            rows.remove(&id);
            lost.push(id);
        }
    }
    if !lost.is_empty() {
        tracing::warn!(count = lost.len(), "dropping snapshots whose directories or parents are missing");
        db.write(|tx| lost.iter().try_for_each(|id| SNAPSHOTS.delete(tx, id).map(drop)))?;
    }
    for name in names(&dir)? {
        if !rows.contains_key(&name) {
            throw_away(root, &dir.join(name))?;
        }
    }
    Ok(())
}
