//! Paths of a tree that match a pattern.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use base::patterns::glob;
use sys::path::{Entry, FileType, Root};

use super::Error;
use crate::contenthash::has_wildcard;

/// The paths that `pattern`, a path from `/`, matches, in order of names. What is
/// in a directory that matches is not looked at. Without wildcards it is the
/// path itself, whether or not it exists.
pub(super) fn expand(root: &Root, pattern: &str, follow: bool) -> Result<Vec<PathBuf>, Error> {
    let pattern = super::lexical(Path::new(pattern));
    let names: Vec<&OsStr> = pattern.iter().skip(1).collect();
    let Some(first) = names.iter().position(|name| has_wildcard(name.as_bytes())) else {
        return Ok(vec![pattern]);
    };
    let fixed: PathBuf = Path::new("/").join(names[..first].iter().collect::<PathBuf>());
    let rest: PathBuf = names[first..].iter().collect();
    let rest = rest.to_string_lossy();
    // A class such as `[^a]` may match a slash; nothing else does.
    let depth = if rest.contains('[') { usize::MAX } else { names.len() - first };

    let at = root.resolve(&fixed, follow || fixed.parent().is_none())?;
    let stat = root.lstat(&at)?;
    let mut found = Vec::new();
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(found);
    }
    let top = root.open_dir(&at)?;
    let entries = top.list()?.into_iter();
    let mut stack = vec![(top, PathBuf::new(), entries)];
    loop {
        let level = stack.len();
        let Some((dir, below, entries)) = stack.last_mut() else { return Ok(found) };
        let Some(Entry { name, kind }) = entries.next() else {
            stack.pop();
            continue;
        };
        let path = below.join(&name);
        if glob(&rest, &path.to_string_lossy()).unwrap_or(false) {
            found.push(at.join(path));
        } else if level < depth && is_dir(dir, &name, kind)? {
            let dir = dir.open_dir(&name)?;
            let entries = dir.list()?.into_iter();
            stack.push((dir, path, entries));
        }
    }
}

fn is_dir(dir: &sys::path::Dir, name: &OsStr, kind: FileType) -> Result<bool, Error> {
    Ok(match kind {
        FileType::Unknown => dir.is_dir(name)?,
        kind => kind == FileType::Directory,
    })
}
