//! Extended attributes, never following a final symbolic link.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// The value of `name`; `None` when there is none, or the file system has no
/// attributes at all.
///
/// # Errors
/// What the kernel said.
pub fn get(path: &Path, name: impl AsRef<OsStr>) -> Result<Option<Vec<u8>>> {
    let name = name.as_ref();
    // Most values are short (capabilities have 20 or 24 bytes).
    let mut size = 256;
    loop {
        let mut buf = vec![0; size];
        match fs::lgetxattr(path, name, &mut buf[..]) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(Some(buf));
            }
            Err(Errno::RANGE) => {}
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(Error::new("get attribute of", path, e)),
        }
        // It may grow in between, hence the loop.
        size = match fs::lgetxattr(path, name, &mut [0u8; 0][..]) {
            Ok(len) => len.max(size + 1),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(Error::new("get attribute of", path, e)),
        };
    }
}

/// Sets `name` to `value`.
///
/// # Errors
/// What the kernel said: `EOPNOTSUPP` when the file system has
/// no such attributes.
pub fn set(path: &Path, name: impl AsRef<OsStr>, value: &[u8]) -> Result<()> {
    fs::lsetxattr(path, name.as_ref(), value, XattrFlags::empty())
        .map_err(|e| Error::new("set attribute of", path, e))
}

/// Removes `name`; whether it was there.
///
/// # Errors
/// What the kernel said.
pub fn remove(path: &Path, name: impl AsRef<OsStr>) -> Result<bool> {
    match fs::lremovexattr(path, name.as_ref()) {
        Ok(()) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(Error::new("remove attribute of", path, e)),
    }
}

/// The names of all attributes, sorted; none when the file system has none.
///
/// # Errors
/// What the kernel said.
pub fn list(path: &Path) -> Result<Vec<OsString>> {
    let mut size = 256;
    let buf = loop {
        let mut buf = vec![0; size];
        match fs::llistxattr(path, &mut buf[..]) {
            Ok(len) => {
                buf.truncate(len);
                break buf;
            }
            Err(Errno::RANGE) => {}
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(Error::new("list attributes of", path, e)),
        }
        size = match fs::llistxattr(path, &mut [0u8; 0][..]) {
            Ok(len) => len.max(size + 1),
            Err(e) => return Err(Error::new("list attributes of", path, e)),
        };
    };
    let mut names: Vec<OsString> = buf
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    names.sort();
    Ok(names)
}

/// All attributes whose names begin with none of `but`, sorted.
///
/// # Errors
/// What the kernel said.
pub fn all(path: &Path, but: &[&str]) -> Result<Vec<(OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in list(path)? {
        if but.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes())) {
            continue;
        }
        // One that went away in between is not there.
        if let Some(value) = get(path, &name)? {
            found.push((name, value));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_gets_lists_and_removes() {
        let path = std::env::temp_dir().join(format!("sys-xattr-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let long = vec![7; 1000];
        set(&path, "user.long", &long).unwrap();
        set(&path, "user.a", b"").unwrap();
        assert_eq!(get(&path, "user.long").unwrap(), Some(long));
        assert_eq!(get(&path, "user.a").unwrap(), Some(Vec::new()));
        assert_eq!(get(&path, "user.b").unwrap(), None);
        assert_eq!(list(&path).unwrap(), ["user.a", "user.long"]);
        assert_eq!(all(&path, &["user.l"]).unwrap(), [("user.a".into(), Vec::new())]);
        assert!(remove(&path, "user.a").unwrap());
        assert!(!remove(&path, "user.a").unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
