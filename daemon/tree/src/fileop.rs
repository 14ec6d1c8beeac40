//! The file actions of a build: copy, make a file, make a directory, make a
//! symlink, remove.
//!
//! Paths are resolved inside the root they belong to, symlinks included; nothing
//! outside it is touched. Permission bits are exact, the umask has no say. Error
//! texts are those clients know, with paths as seen from inside.

use std::io::Write;
use std::path::{Path, PathBuf};

use base::{Classify, Failure, Kind, Timestamp};
use sys::path::{Dir, FileType, Make, Root};

pub use sys::path::Owner;

mod chmod;
mod copy;
mod data;
mod owner;
mod unpack;
mod wildcard;

pub use chmod::ModeSet;
pub use copy::copy;
pub use owner::{Who, owner};

/// Copies a path of one tree into another.
#[derive(Debug, Clone, Default)]
pub struct Copy {
    /// What to copy.
    pub src: String,
    /// Where to.
    pub dest: String,
    /// Permission bits of all that is copied, directories made on the way
    /// included; as they are when not given.
    pub mode: Option<u32>,
    /// As for `chmod`, such as `u+x`; beats `mode`. None when empty.
    pub mode_str: String,
    /// Follow a symlink at the end of `src`.
    pub follow_symlink: bool,
    /// Of a directory, copy what is in it.
    pub dir_copy_contents: bool,
    /// Unpack `src` if it is a tar, compressed or not.
    pub attempt_unpack: bool,
    /// Make the directories above `dest`; else they have to be there.
    pub create_dest_path: bool,
    /// `src` may hold wildcards.
    pub allow_wildcard: bool,
    /// Nothing matching is fine.
    pub allow_empty_wildcard: bool,
    /// The times of all that is copied; as they are when not given.
    pub timestamp: Option<Timestamp>,
    /// Only what matches one of these.
    pub include_patterns: Vec<String>,
    /// Not what matches these.
    pub exclude_patterns: Vec<String>,
    /// Replace what is in the way even if it is of another kind.
    pub always_replace_existing_dest_paths: bool,
}

/// Makes a file, or fills one that is there.
#[derive(Debug, Clone, Default)]
pub struct MkFile {
    /// Where.
    pub path: String,
    /// Permission bits of a new file.
    pub mode: u32,
    /// What is in it.
    pub data: Vec<u8>,
    /// Its times; now when not given.
    pub timestamp: Option<Timestamp>,
}

/// Makes a directory. One that is there stays as it is.
#[derive(Debug, Clone, Default)]
pub struct MkDir {
    /// Where.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Make those above it too.
    pub make_parents: bool,
    /// Its times; now when not given.
    pub timestamp: Option<Timestamp>,
}

/// Makes a symlink.
#[derive(Debug, Clone, Default)]
pub struct Symlink {
    /// What it says.
    pub oldpath: String,
    /// Where it is.
    pub newpath: String,
    /// Its times; now when not given.
    pub timestamp: Option<Timestamp>,
}

/// Removes a path and all below.
#[derive(Debug, Clone, Default)]
pub struct Rm {
    /// What.
    pub path: String,
    /// Nothing being there is fine.
    pub allow_not_found: bool,
    /// `path` may hold wildcards.
    pub allow_wildcard: bool,
}

/// A file action that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] sys::Error),
    /// The same, and what was being done.
    #[error("{what}: {source}")]
    While {
        /// What was being done.
        what: String,
        /// What went wrong.
        source: Box<Error>,
    },
    /// A wildcard matched nothing.
    #[error("{path} not found")]
    NoMatch {
        /// The wildcard.
        path: String,
    },
    /// A directory is to be copied over something else.
    #[error("cannot copy to non-directory: {}", .path.display())]
    NotADirectory {
        /// The something.
        path: PathBuf,
    },
    /// Something is to be copied over a directory.
    #[error("cannot replace to directory {} with file", .path.display())]
    IsADirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The root cannot be removed.
    #[error("rmPath: invalid empty path")]
    RemoveRoot,
    /// A pattern cannot be read.
    #[error("invalid {what}: [{}]: {source}", .patterns.join(" "))]
    Pattern {
        /// `includepatterns` or `excludepatterns`.
        what: &'static str,
        /// All of them.
        patterns: Vec<String>,
        /// What is wrong.
        source: base::patterns::Error,
    },
    /// A pattern turns out to be unreadable when it is used.
    #[error("failed to match {what}: {source}")]
    Match {
        /// `includepatterns` or `excludepatterns`.
        what: &'static str,
        /// What is wrong.
        source: base::patterns::Error,
    },
    /// A symbolic mode cannot be read.
    #[error("invalid mode {text:?}: invalid syntax")]
    Mode {
        /// What was given.
        text: String,
    },
    /// An owner's name needs a tree to look in.
    #[error("invalid missing {what} mount")]
    NoMount {
        /// `user` or `group`.
        what: &'static str,
    },
    /// Where accounts should be listed is something else.
    #[error("{} is not a regular file", .path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// The list of accounts is too long.
    #[error("{path:?} exceeds {limit} bytes")]
    TooLarge {
        /// The path.
        path: PathBuf,
        /// As long as it may be.
        limit: u64,
    },
    /// An archive cannot be read.
    #[error("unpack {}: {source}", .path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An archive holds something that cannot be unpacked.
    #[error("unhandled tar header type {kind}")]
    EntryType {
        /// The type byte.
        kind: u8,
    },
    /// An archive wants to leave the directory it is unpacked to.
    #[error("{name:?} is outside of {}", .dest.display())]
    Breakout {
        /// Its name for the entry.
        name: String,
        /// The directory.
        dest: PathBuf,
    },
    /// The work was given up.
    #[error("{0}")]
    Canceled(Failure),
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Sys(e) => e.kind(),
            Self::While { source, .. } => source.kind(),
            Self::NoMatch { .. } => Kind::NotFound,
            Self::Canceled(cause) => cause.kind(),
            _ => Kind::InvalidArgument,
        }
    }
}

impl Error {
    /// Says what was being done.
    fn during(what: impl Into<String>) -> impl FnOnce(sys::Error) -> Self {
        let what = what.into();
        move |e| Self::While { what, source: Box::new(e.into()) }
    }
}

/// Makes a directory.
///
/// # Errors
/// When something else is there, or the kernel refuses.
pub fn mkdir(root: &Root, action: &MkDir, owner: Option<Owner>) -> Result<(), Error> {
    let make = Make { mode: action.mode & 0o777, owner, time: action.timestamp };
    if action.make_parents {
        root.mkdir_all(&action.path, &make)?;
        return Ok(());
    }
    let path = root.resolve(&action.path, true)?;
    let (dir, name) = root.open_parent(&path).map_err(|e| sys::Error { call: "mkdir", path, ..e })?;
    match dir.mkdir(&name, make.mode) {
        Ok(true) => settle(&dir, Path::new(&name), owner, action.timestamp),
        Ok(false) => Ok(()),
        Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Makes a symlink.
///
/// # Errors
/// When something is there, or the kernel refuses.
pub fn symlink(root: &Root, action: &Symlink, owner: Option<Owner>) -> Result<(), Error> {
    let (dir, name) = place(root, &action.newpath, "symlink")?;
    dir.symlink(&action.oldpath, &name)?;
    settle(&dir, Path::new(&name), owner, action.timestamp)
}

/// Makes a file, or fills one that is there and keeps its permissions.
///
/// # Errors
/// When a directory is there, or the kernel refuses.
pub fn mkfile(root: &Root, action: &MkFile, owner: Option<Owner>) -> Result<(), Error> {
    let (dir, name) = place(root, &action.path, "open")?;
    let mut file = match dir.lstat_opt(&name)? {
        Some(_) => dir.open_truncated(&name)?,
        None => dir.create(&name, action.mode & 0o777)?,
    };
    file.write_all(&action.data).map_err(|e| sys::Error::new("write", dir.path_of(&name), e))?;
    drop(file);
    settle(&dir, Path::new(&name), owner, action.timestamp)
}

/// Removes paths.
///
/// # Errors
/// When nothing is there and that is not fine, or the kernel refuses.
pub fn rm(root: &Root, action: &Rm) -> Result<(), Error> {
    if !action.allow_wildcard {
        return remove(root, Path::new(&action.path), action.allow_not_found);
    }
    for path in wildcard::expand(root, &clean(&action.path), false)? {
        remove(root, &path, action.allow_not_found)?;
    }
    Ok(())
}

fn remove(root: &Root, path: &Path, allow_not_found: bool) -> Result<(), Error> {
    let path = lexical(path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::RemoveRoot);
    };
    let path = root.resolve(parent, true)?.join(name);
    if !allow_not_found {
        // A symlink to nowhere counts as nothing, here as elsewhere.
        match root.stat(&path) {
            Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    Ok(root.remove_all(path)?)
}

/// Where something new goes: symlinks are followed to the end, even to where
/// nothing is yet.
fn place(root: &Root, path: &str, call: &'static str) -> Result<(Dir, std::ffi::OsString), Error> {
    let path = root.resolve(lexical(Path::new(path)), true)?;
    root.open_parent(&path).map_err(|e| sys::Error { call, path, ..e }.into())
}

fn settle(dir: &Dir, name: &Path, owner: Option<Owner>, time: Option<Timestamp>) -> Result<(), Error> {
    if let Some(owner) = owner {
        dir.chown(name, owner)?;
    }
    if let Some(time) = time {
        dir.utimens(name, time, time)?;
    }
    Ok(())
}

/// The path from `/`, dots taken as text: `a/../b` is `/b` whatever `a` is.
fn lexical(path: &Path) -> PathBuf {
    use std::path::Component as C;
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            C::Normal(name) => out.push(name),
            C::ParentDir => _ = out.pop(),
            C::Prefix(_) | C::RootDir | C::CurDir => {}
        }
    }
    out
}

/// The path from `/`, cleaned, but for a `/` or `/.` at its end: those say that
/// a directory is meant.
fn clean(path: &str) -> String {
    let mut out = lexical(Path::new(path)).to_string_lossy().into_owned();
    let rest = if path.ends_with("/.") {
        "/."
    } else if path.ends_with('/') {
        "/"
    } else {
        return out;
    };
    if out == "/" {
        out.clear();
    }
    out.push_str(rest);
    out
}

fn kind_of(stat: &sys::path::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_but_keeps_what_says_directory() {
        for (path, want) in [
            ("", "/"),
            ("/", "/"),
            ("a", "/a"),
            ("a/", "/a/"),
            ("a/.", "/a/."),
            (".", "/"),
            ("/.", "/."),
            ("../..", "/"),
            ("/a//b/../c", "/a/c"),
        ] {
            assert_eq!(clean(path), want, "{path:?}");
        }
    }
}
