//! Reading a result for a frontend: files, directories, what they are.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path};

use base::{Failure, Kind};
use frontend::gateway::Stat;
use sys::path::{Dir, FileType, Root};

/// Frontends read configuration, not layers; what is larger is refused, since
/// it could not be sent anyway.
const MAX_FILE: u64 = 16 << 20;

/// Reads from an empty tree, for which a directory is made below `scratch`.
pub(crate) fn with_nothing<T>(
    scratch: &Path,
    read: impl FnOnce(&Path) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let dir = scratch.join(format!("empty-{}", base::id::fresh()));
    std::fs::create_dir(&dir).map_err(|e| sys::Error::new("mkdir", &dir, e))?;
    let outcome = read(&dir);
    std::fs::remove_dir(&dir).map_err(|e| sys::Error::new("rmdir", &dir, e))?;
    outcome
}

pub(crate) fn read(root: &Path, path: &str, range: Option<(u64, u64)>) -> Result<Vec<u8>, Failure> {
    let fail = |e| Failure::from(sys::Error::new("read", path, e));
    let mut file = Root::open(root)?.open_read(path)?;
    let metadata = file.metadata().map_err(fail)?;
    if metadata.is_dir() {
        return Err(Failure::invalid(format!("read {path}: is a directory")));
    }
    if !metadata.is_file() {
        return Err(Failure::invalid(format!("read {path}: not a regular file")));
    }
    let (offset, length) = range.unwrap_or((0, 0));
    let length = if length == 0 { metadata.len().saturating_sub(offset) } else { length };
    if length > MAX_FILE {
        let text = format!("read {path}: {length} bytes are more than the {MAX_FILE} that can be read");
        return Err(Failure::new(Kind::ResourceExhausted, text));
    }
    file.seek(SeekFrom::Start(offset)).map_err(fail)?;
    let mut data = Vec::new();
    file.take(length).read_to_end(&mut data).map_err(fail)?;
    Ok(data)
}

pub(crate) fn list(root: &Path, path: &str, include: &str) -> Result<Vec<Stat>, Failure> {
    let dir = Root::open(root)?.open_dir(path)?;
    let mut found = Vec::new();
    for entry in dir.list()? {
        let name = entry.name.to_string_lossy().into_owned();
        let wanted = include.is_empty()
            || base::patterns::glob(include, &name).map_err(|e| Failure::invalid(e.to_string()))?;
        if wanted {
            found.push(describe(&dir, &name)?);
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

pub(crate) fn stat(root: &Path, path: &str) -> Result<Stat, Failure> {
    let root = Root::open(root)?;
    let resolved = root.resolve(path, true)?;
    if resolved == Path::new("/") {
        let mut stat = describe(&root.open_dir("/")?, ".")?;
        stat.path = "/".to_owned();
        return Ok(stat);
    }
    let (dir, name) = root.open_parent(&resolved)?;
    describe(&dir, &name.to_string_lossy())
}

/// The path, if it begins at the root, as paths in containers must.
pub(crate) fn absolute(path: &str) -> Result<&str, Failure> {
    if path.starts_with('/') {
        return Ok(path);
    }
    Err(Failure::invalid(format!("can't make {path} relative to /")))
}

/// As [`stat`], of one of several trees that make up a file system: a link that
/// leads out of this one stands for itself, and whoever asked looks elsewhere.
pub(crate) fn stat_within(root: &Path, path: &str) -> Result<Stat, Failure> {
    let mut leads_out = false;
    let resolved = Root::open(root)?.resolve_with(path, true, |link, target| {
        let mut depth = link.components().count().saturating_sub(2);
        for part in target.components() {
            match part {
                Component::RootDir | Component::Prefix(_) => leads_out = true,
                Component::ParentDir if depth == 0 => leads_out = true,
                Component::ParentDir => depth -= 1,
                Component::Normal(_) => depth += 1,
                Component::CurDir => {}
            }
        }
    })?;
    if !leads_out {
        return stat(root, &resolved.to_string_lossy());
    }
    let root = Root::open(root)?;
    let unresolved = root.resolve(path, false)?;
    let (dir, name) = root.open_parent(&unresolved)?;
    describe(&dir, &name.to_string_lossy())
}

/// What an entry is, with the mode bits of Go's `os.FileMode`.
fn describe(dir: &Dir, name: &str) -> Result<Stat, Failure> {
    let stat = dir.lstat(name)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    Ok(Stat {
        path: name.to_owned(),
        mode: tree::gomode::from_unix(stat.st_mode),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == FileType::Directory { 0 } else { stat.st_size },
        mod_time: stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec as i64,
        linkname: match kind {
            FileType::Symlink => dir.readlink(name)?.to_string_lossy().into_owned(),
            _ => String::new(),
        },
        ..Stat::default()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_out_of_a_tree_stand_for_themselves() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/file"), "data").unwrap();
        symlink("file", dir.path().join("sub/near")).unwrap();
        symlink("../sub/file", dir.path().join("sub/around")).unwrap();
        symlink("../../etc/passwd", dir.path().join("sub/out")).unwrap();
        symlink("/sub/file", dir.path().join("absolute")).unwrap();
        for (path, link) in [
            ("/sub/near", ""),
            ("/sub/around", ""),
            ("/sub/out", "../../etc/passwd"),
            ("/absolute", "/sub/file"),
        ] {
            let stat = stat_within(dir.path(), path).unwrap();
            assert_eq!(stat.linkname, link, "{path}");
            let size = if link.is_empty() { "data".len() } else { link.len() };
            assert_eq!(stat.size, size as i64, "{path}");
        }
        assert!(absolute("sub").is_err());
    }
}
