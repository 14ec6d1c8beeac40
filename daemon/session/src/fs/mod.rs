//! The file transfer: one side walks a tree and tells what is there, the other
//! asks for the files it lacks.
//!
//! The wire knows packets of five sorts: `STAT` tells of an entry (its id is
//! its position, counted from zero; a `STAT` without an entry is the end),
//! `REQ` asks for the bytes of an id, `DATA` carries some of them (none: that
//! was all), `FIN` ends the transfer, first from the receiver and then from the
//! sender, and `ERR` gives up. Entries come in the order in which one walks a
//! tree: by name within a directory, a directory before what is in it.
//!
//! [`receive`] trusts nothing: order, cleanliness of paths, parents, link
//! targets and ids are checked before anything is written, and what is written
//! is reached from a directory descriptor without following links.

mod check;
mod filter;
mod receive;
mod root;
mod send;
mod tree;
mod walk;
mod writer;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use base::digest::Hasher;
use base::{Digest, Failure};
use proto::fsutil::types as wire;

pub use filter::Filter;
pub use receive::{Differ, METADATA_FILE, MapEntry, Receive, SelectEntry};
pub use tree::{Dir, Read, Roots, Tree};

pub(crate) use receive::{ensure_dir, receive};
pub(crate) use send::send;

/// Bits of Go's `os.FileMode`, as they travel. The lowest nine are permissions.
pub mod mode {
    #![allow(missing_docs)]
    pub const DIR: u32 = 1 << 31;
    pub const SYMLINK: u32 = 1 << 27;
    pub const DEVICE: u32 = 1 << 26;
    pub const FIFO: u32 = 1 << 25;
    pub const SOCKET: u32 = 1 << 24;
    pub const SETUID: u32 = 1 << 23;
    pub const SETGID: u32 = 1 << 22;
    pub const CHAR_DEVICE: u32 = 1 << 21;
    pub const STICKY: u32 = 1 << 20;
    pub const IRREGULAR: u32 = 1 << 19;
    /// What is not a regular file has one of these.
    pub const TYPE: u32 = DIR | SYMLINK | FIFO | SOCKET | DEVICE | CHAR_DEVICE | IRREGULAR;
}

/// What is known of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stat {
    /// Relative to the tree, clean, with `/`.
    pub path: String,
    /// See [`mode`].
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; zero for directories.
    pub size: i64,
    /// Nanoseconds since 1970.
    pub mod_time: i64,
    /// The target of a symbolic link, or the earlier entry a file is linked to.
    pub linkname: String,
    /// Of a device.
    pub devmajor: i64,
    /// Of a device.
    pub devminor: i64,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Stat {
    /// A directory.
    pub fn is_dir(&self) -> bool {
        self.mode & mode::DIR != 0
    }

    /// A symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode & mode::SYMLINK != 0
    }

    /// A regular file, or a hard link to one. Sender and receiver agree that
    /// these are the entries whose bytes can be asked for.
    pub fn is_file(&self) -> bool {
        self.mode & mode::TYPE == 0
    }

    /// The permissions and the three special bits as the kernel has them.
    pub fn permissions(&self) -> u32 {
        let bit = |go, unix| if self.mode & go != 0 { unix } else { 0 };
        (self.mode & 0o777)
            | bit(mode::SETUID, 0o4000)
            | bit(mode::SETGID, 0o2000)
            | bit(mode::STICKY, 0o1000)
    }
}

impl From<wire::Stat> for Stat {
    fn from(s: wire::Stat) -> Self {
        Self {
            path: s.path,
            mode: s.mode,
            uid: s.uid,
            gid: s.gid,
            size: s.size,
            mod_time: s.mod_time,
            linkname: s.linkname,
            devmajor: s.devmajor,
            devminor: s.devminor,
            xattrs: s.xattrs,
        }
    }
}

impl From<Stat> for wire::Stat {
    fn from(s: Stat) -> Self {
        Self {
            path: s.path,
            mode: s.mode,
            uid: s.uid,
            gid: s.gid,
            size: s.size,
            mod_time: s.mod_time,
            linkname: s.linkname,
            devmajor: s.devmajor,
            devminor: s.devminor,
            xattrs: s.xattrs,
        }
    }
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// It is new or differs; all its bytes are there.
    Set {
        /// As the sender told it.
        stat: &'a Stat,
        /// The hash of [`Changes::hasher`], after the bytes of the file.
        digest: &'a Digest,
    },
    /// It is no more, nor is anything below it.
    Removed,
}

/// Who wants to know what a transfer changed. Called from several threads;
/// files come in the order in which they are complete.
pub trait Changes: Send + Sync {
    /// A hash that has taken in what counts of `stat`; the bytes of a regular
    /// file are added to it.
    ///
    /// # Errors
    /// Ends the transfer.
    fn hasher(&self, stat: &Stat) -> Result<Hasher, Failure>;

    /// The entry `path` changed.
    ///
    /// # Errors
    /// Ends the transfer.
    fn changed(&self, path: &str, change: Change<'_>) -> Result<(), Failure>;
}

/// The order of a walk: `/` comes before every other character.
pub fn compare_paths(a: &str, b: &str) -> Ordering {
    let key = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
    a.bytes().map(key).cmp(b.bytes().map(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_come_first() {
        let mut paths = ["a-b", "a", "a/z", "a.b", "b", "a/b/c", "a/b"];
        paths.sort_by(|a, b| compare_paths(a, b));
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/z", "a-b", "a.b", "b"]);
    }

    #[test]
    fn modes_translate() {
        let stat = Stat { mode: mode::DIR | mode::STICKY | mode::SETGID | 0o755, ..Stat::default() };
        assert_eq!(stat.permissions(), 0o3755);
        assert!(stat.is_dir() && !stat.is_file());
    }
}
