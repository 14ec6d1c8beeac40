//! Paths in an image as the image's system has them. Inside the converter they
//! have slashes; a drive letter must be that of the system drive and is dropped.

use base::gopath;

const WINDOWS: &str = "windows";

/// A path is none of a Windows image's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadPath {
    #[error("No relative path specified in {}", base::gotext::quote(.0))]
    NoPath(String),
    #[error("UNC paths are not supported")]
    Unc,
    #[error("The specified path is not on the system drive (C:)")]
    Drive,
}

/// With slashes.
pub(super) fn to_slash(path: &str, os: &str) -> String {
    if os == WINDOWS { path.replace('\\', "/") } else { path.to_owned() }
}

fn from_slash(path: &str, os: &str) -> String {
    if os == WINDOWS { path.replace('/', "\\") } else { path.to_owned() }
}

/// Without the letter of the system drive.
pub(super) fn without_drive(path: &str, os: &str, keep_slash: bool) -> Result<String, BadPath> {
    if os != WINDOWS {
        return Ok(path.to_owned());
    }
    if path.len() == 2 && path.ends_with(':') {
        return Err(BadPath::NoPath(path.to_owned()));
    }
    let slashed = to_slash(path, os);
    if slashed.starts_with("//") {
        return Err(BadPath::Unc);
    }
    let rest = match slashed.split_once(':') {
        None => slashed.as_str(),
        Some((drive, rest)) if drive.eq_ignore_ascii_case("c") => rest,
        Some(_) => return Err(BadPath::Drive),
    };
    let clean = gopath::clean(rest);
    Ok(if keep_slash && clean.len() > 1 && rest.ends_with('/') { clean + "/" } else { clean })
}

/// Whether it begins at the root.
pub(super) fn is_abs(path: &str, os: &str) -> bool {
    without_drive(path, os, false).is_ok_and(|p| gopath::is_abs(&p))
}

/// An absolute path with slashes: `path`, below `parent` if it is relative.
pub(super) fn normalize(parent: &str, path: &str, os: &str, keep_slash: bool) -> Result<String, BadPath> {
    let given = to_slash(path, os);
    let parent = to_slash(parent, os);
    let parent = if parent.is_empty() { "/" } else { &parent };
    let mut parent = without_drive(parent, os, keep_slash)?;
    if !is_abs(&parent, os) {
        parent = gopath::join(["/", parent.as_str()]);
    }
    let path = if given.is_empty() { parent.as_str() } else { &given };
    let mut path = without_drive(path, os, keep_slash)?;
    if !is_abs(&path, os) {
        path = gopath::join([parent.as_str(), path.as_str()]);
    }
    if keep_slash {
        if given.ends_with('/') && !path.ends_with('/') {
            path.push('/');
        } else if given.ends_with("/.") {
            if path != "/" {
                path.push('/');
            }
            path.push('.');
        }
    }
    Ok(path)
}

/// A working directory, as the image's configuration has it.
pub(super) fn workdir(current: &str, path: &str, os: &str) -> Result<String, BadPath> {
    Ok(from_slash(&normalize(current, path, os, false)?, os))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_absolute_and_keeps_what_tells_directories() {
        assert_eq!(normalize("/a", "b/", "linux", true).unwrap(), "/a/b/");
        assert_eq!(normalize("/a", "./", "linux", true).unwrap(), "/a/");
        assert_eq!(normalize("/", "x/.", "linux", true).unwrap(), "/x/.");
        assert_eq!(normalize("/a", "/b//c", "linux", false).unwrap(), "/b//c");
        assert_eq!(workdir("", "x", "windows").unwrap(), "\\x");
        assert_eq!(normalize("/", "C:\\a\\", "windows", true).unwrap(), "/a/");
        assert_eq!(normalize("/", "d:\\a", "windows", true), Err(BadPath::Drive));
    }
}
