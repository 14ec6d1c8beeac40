//! Owners by name, looked up in the accounts of a tree.

use std::io::{self, Read};
use std::path::Path;

use sys::path::{FileType, Owner, Root};

use super::Error;

/// Lists of accounts may be as long as this.
const MAX_BYTES: u64 = 10 << 20;

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// By name, as in the lists of accounts of a tree.
    Name(String),
    /// By number.
    Id(u32),
}

/// The owner that `user` and `group` mean. Without a group it is the user's own,
/// or for a number the group of the same number. An unknown name is root.
///
/// # Errors
/// A name without a tree to look in, or accounts that cannot be read.
pub fn owner(
    user: Option<(&Who, Option<&Root>)>,
    group: Option<(&Who, Option<&Root>)>,
) -> Result<Owner, Error> {
    let mut owner = Owner::default();
    match user {
        Some((Who::Id(id), _)) => owner = Owner { uid: *id, gid: *id },
        Some((Who::Name(name), root)) => {
            let root = root.ok_or(Error::NoMount { what: "user" })?;
            if let Some(line) = find(root, "/etc/passwd", name)? {
                owner = Owner { uid: number(&line, 2), gid: number(&line, 3) };
            }
        }
        None => {}
    }
    match group {
        Some((Who::Id(id), _)) => owner.gid = *id,
        Some((Who::Name(name), root)) => {
            let root = root.ok_or(Error::NoMount { what: "group" })?;
            if let Some(line) = find(root, "/etc/group", name)? {
                owner.gid = number(&line, 2);
            }
        }
        None => {}
    }
    Ok(owner)
}

/// The first line about `name`.
fn find(root: &Root, path: &str, name: &str) -> Result<Option<String>, Error> {
    let path = root.resolve(path, true)?;
    let file = match root.open_read(&path) {
        Ok(file) => file,
        Err(e) if matches!(e.source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    if FileType::from_raw_mode(root.stat(&path)?.st_mode) != FileType::RegularFile {
        return Err(Error::NotRegular { path });
    }
    let text = read(file, &path)?;
    let line = text.lines().map(str::trim).find(|line| line.split(':').next() == Some(name));
    Ok(line.map(str::to_owned))
}

fn read(file: std::fs::File, path: &Path) -> Result<String, Error> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| sys::Error::new("read", path, e))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::TooLarge { path: path.to_owned(), limit: MAX_BYTES });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is no number is zero.
fn number(line: &str, at: usize) -> u32 {
    line.split(':').nth(at).and_then(|text| text.parse().ok()).unwrap_or(0)
}
