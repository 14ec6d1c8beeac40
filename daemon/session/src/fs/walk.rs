//! Walking a directory on disk.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, RawMode};
use rustix::io::Errno;

use super::root::{Root, proc_path};
use super::{Stat, mode};
use crate::Error;

/// Attributes that are another system's business.
const SKIPPED_XATTRS: &str = "com.apple.";

/// The entries of a directory in the order of a walk. Entries that vanish
/// meanwhile are passed over.
pub(super) struct Walk {
    root: Arc<Root>,
    xattrs: bool,
    stack: Vec<Level>,
    /// The directory to go into next, unless it is skipped.
    enter: Option<String>,
    /// The first path of each file with several links.
    inodes: HashMap<(u64, u64), String>,
}

struct Level {
    prefix: String,
    entries: std::vec::IntoIter<(OsString, rustix::fs::Stat)>,
}

/// An entry, before its details are read.
pub(super) struct Entry {
    name: OsString,
    prefix: String,
    raw: rustix::fs::Stat,
    /// The path, with what is not UTF-8 replaced.
    pub(super) path: String,
}

impl Entry {
    pub(super) fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.raw.st_mode) == FileType::Directory
    }

    pub(super) fn is_symlink(&self) -> bool {
        FileType::from_raw_mode(self.raw.st_mode) == FileType::Symlink
    }
}

impl Walk {
    /// A walk that reads extended attributes when `xattrs` says so.
    pub(super) fn new(root: Arc<Root>, xattrs: bool) -> Self {
        Self { root, xattrs, stack: Vec::new(), enter: Some(String::new()), inodes: HashMap::new() }
    }

    /// The next entry.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        if let Some(dir) = self.enter.take() {
            let entries = self.list(&dir)?;
            self.stack.push(Level { prefix: dir, entries: entries.into_iter() });
        }
        while let Some(level) = self.stack.last_mut() {
            let Some((name, raw)) = level.entries.next() else {
                self.stack.pop();
                continue;
            };
            let prefix = level.prefix.clone();
            let path = join(&prefix, &name.to_string_lossy());
            let entry = Entry { name, prefix, raw, path };
            if entry.is_dir() {
                self.enter = Some(entry.path.clone());
            }
            return Ok(Some(entry));
        }
        Ok(None)
    }

    /// Does not go into the directory that came last.
    pub(super) fn skip(&mut self) {
        self.enter = None;
    }

    /// All that is known of `entry`; `None` when it has vanished.
    pub(super) fn stat(&mut self, entry: &Entry) -> Result<Option<Stat>, Error> {
        let Some(name) = entry.name.to_str() else {
            return Err(Error::Protocol(format!("file name is not UTF-8: {:?}", entry.path)));
        };
        match self.read(entry, name) {
            Ok(stat) => Ok(Some(stat)),
            Err(e) if vanished(&e) => Ok(None),
            Err(e) => Err(Error::io("stat", entry.path.clone(), e)),
        }
    }

    fn read(&mut self, entry: &Entry, name: &str) -> io::Result<Stat> {
        let raw = &entry.raw;
        let mut stat = Stat {
            path: entry.path.clone(),
            // The bit of a socket is not sent: it becomes an empty file.
            mode: go_mode(raw.st_mode) & !mode::SOCKET,
            uid: raw.st_uid,
            gid: raw.st_gid,
            mod_time: nanos(raw.st_mtime, raw.st_mtime_nsec as i64),
            ..Stat::default()
        };
        if !entry.is_dir() {
            stat.size = raw.st_size;
            if stat.mode & mode::DEVICE != 0 {
                stat.devmajor = rustix::fs::major(raw.st_rdev).into();
                stat.devminor = rustix::fs::minor(raw.st_rdev).into();
            }
            if raw.st_nlink > 1 {
                let first = self.inodes.entry((raw.st_dev, raw.st_ino)).or_insert_with(|| stat.path.clone());
                if *first != stat.path {
                    stat.linkname = first.clone();
                }
            }
        }
        if entry.is_symlink() {
            let dir = self.root.dir(&entry.prefix)?;
            let target = rustix::fs::readlinkat(&*dir, name, Vec::new())?;
            stat.linkname = target.into_string().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        }
        if self.xattrs {
            self.read_xattrs(entry, name, &mut stat)?;
        }
        Ok(stat)
    }

    fn read_xattrs(&self, entry: &Entry, name: &str, stat: &mut Stat) -> io::Result<()> {
        let dir = self.root.dir(&entry.prefix)?;
        let path = proc_path(&*dir, name);
        let names = match sized(
            || rustix::fs::llistxattr_query(&path),
            |buffer| rustix::fs::llistxattr(&path, buffer),
        ) {
            Ok(names) => names,
            Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(()),
            // No `/proc`: nothing to read them through.
            Err(Errno::NOENT) if !std::path::Path::new("/proc/self/fd").exists() => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        for key in names.split(|b| *b == 0).filter_map(|n| std::str::from_utf8(n).ok()) {
            if key.is_empty() || key.starts_with(SKIPPED_XATTRS) {
                continue;
            }
            let query = || rustix::fs::lgetxattr_query(&path, key);
            if let Ok(value) = sized(query, |buffer| rustix::fs::lgetxattr(&path, key, buffer)) {
                stat.xattrs.insert(key.to_owned(), value);
            }
        }
        Ok(())
    }

    /// The entries of `dir` by name.
    fn list(&self, dir: &str) -> Result<Vec<(OsString, rustix::fs::Stat)>, Error> {
        match self.try_list(dir) {
            Ok(entries) => Ok(entries),
            Err(e) if vanished(&e) => Ok(Vec::new()),
            Err(e) => Err(Error::io("read directory", self.root.path().join(dir).display().to_string(), e)),
        }
    }

    fn try_list(&self, dir: &str) -> io::Result<Vec<(OsString, rustix::fs::Stat)>> {
        let fd = self.root.dir(dir)?;
        let mut entries = Vec::new();
        for item in rustix::fs::Dir::read_from(&*fd)? {
            let item = item?;
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            match rustix::fs::statat(&*fd, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(raw) => entries.push((OsString::from_vec(name.to_vec()), raw)),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
        Ok(entries)
    }
}

/// Calls `read` with a buffer of the size that `query` tells.
fn sized(
    query: impl Fn() -> rustix::io::Result<usize>,
    read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    loop {
        let size = query()?;
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; size];
        match read(&mut buffer) {
            Ok(n) => {
                buffer.truncate(n);
                return Ok(buffer);
            }
            // It grew in between.
            Err(Errno::RANGE) => {}
            Err(e) => return Err(e),
        }
    }
}

pub(super) fn vanished(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

pub(super) fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn nanos(seconds: i64, nanos: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// The kernel's mode in Go's bits.
fn go_mode(raw: RawMode) -> u32 {
    let kind = match FileType::from_raw_mode(raw) {
        FileType::Directory => mode::DIR,
        FileType::Symlink => mode::SYMLINK,
        FileType::BlockDevice => mode::DEVICE,
        FileType::CharacterDevice => mode::DEVICE | mode::CHAR_DEVICE,
        FileType::Fifo => mode::FIFO,
        FileType::Socket => mode::SOCKET,
        _ => 0,
    };
    let bit = |unix, go| if raw & unix != 0 { go } else { 0 };
    kind | (raw & 0o777) | bit(0o4000, mode::SETUID) | bit(0o2000, mode::SETGID) | bit(0o1000, mode::STICKY)
}
