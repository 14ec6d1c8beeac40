//! Reading a result for a frontend: files, directories, what they are.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use base::{Failure, Kind};
use frontend::gateway::Stat;
use sys::path::{Dir, FileType, Root};

/// Frontends read configuration, not layers; what is larger is refused, since
/// it could not be sent anyway.
const MAX_FILE: u64 = 16 << 20;

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

/// What an entry is, with the mode bits of Go's `os.FileMode`.
fn describe(dir: &Dir, name: &str) -> Result<Stat, Failure> {
    let stat = dir.lstat(name)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    Ok(Stat {
        path: name.to_owned(),
        mode: tree::gomode::from_unix(stat.st_mode),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == FileType::RegularFile { stat.st_size } else { 0 },
        mod_time: stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec as i64,
        linkname: match kind {
            FileType::Symlink => dir.readlink(name)?.to_string_lossy().into_owned(),
            _ => String::new(),
        },
        ..Stat::default()
    })
}
