//! Reading the tree: its names, and the digests of its files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use base::Digest;
use sys::path::{Dir, Entry, FileType, Root};

use super::header::{FileHasher, Header};
use super::records::{Kind, Record, to_key, to_path};
use super::{Error, quote};

/// One question for a digest reads with at most so many threads, and never with
/// more than there are processors.
pub const MAX_THREADS: usize = 4;

/// Files are handed out in runs of so many, which mostly share a directory.
const RUN: usize = 32;

/// How deep directories may nest. More than a path has room for.
const MAX_DEPTH: usize = 2048;

/// Enters everything at and below `path` that is not yet known into `tree`,
/// without digests. A path that does not exist is fine.
pub(super) fn names(root: &Root, path: &Path, tree: &mut BTreeMap<Vec<u8>, Record>) -> Result<(), Error> {
    let walk = |path: PathBuf| {
        let path = path.display().to_string();
        move |source| Error::Io { what: "failed to walk", path, source }
    };
    let stat = match root.lstat(path) {
        Ok(stat) => stat,
        Err(e) if e.source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(walk(path.to_owned())(e)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        let (dir, name) = root.open_parent(path)?;
        return enter(&dir, Path::new(&name), FileType::from_raw_mode(stat.st_mode), tree);
    }
    let top = root.open_dir(path).map_err(walk(path.to_owned()))?;
    enter(&top, Path::new("."), FileType::Directory, tree)?;
    let entries = top.list().map_err(walk(path.to_owned()))?.into_iter();
    let mut stack = vec![(top, entries)];
    loop {
        let depth = stack.len();
        let Some((dir, entries)) = stack.last_mut() else { return Ok(()) };
        let Some(Entry { name, mut kind }) = entries.next() else {
            stack.pop();
            continue;
        };
        if kind == FileType::Unknown {
            kind = FileType::from_raw_mode(dir.lstat(&name)?.st_mode);
        }
        enter(dir, Path::new(&name), kind, tree)?;
        if kind == FileType::Directory {
            if depth >= MAX_DEPTH {
                let source = sys::Error::new("open", dir.path(), io::Error::from_raw_os_error(NAMETOOLONG));
                return Err(walk(dir.path_of(&name))(source));
            }
            let sub = dir.open_dir(&name).map_err(walk(dir.path_of(&name)))?;
            let entries = sub.list().map_err(walk(dir.path_of(&name)))?.into_iter();
            stack.push((sub, entries));
        }
    }
}

const NAMETOOLONG: i32 = rustix::io::Errno::NAMETOOLONG.raw_os_error();

fn enter(dir: &Dir, name: &Path, kind: FileType, tree: &mut BTreeMap<Vec<u8>, Record>) -> Result<(), Error> {
    let path = dir.path_of(name);
    let mut key = to_key(path.as_os_str().as_bytes());
    if key == [0] {
        key.clear();
    }
    if tree.contains_key(&key) {
        return Ok(());
    }
    let mut record = Record::new(Kind::File);
    match kind {
        FileType::Directory => {
            tree.insert(key.clone(), Record::new(Kind::Dir));
            key.push(0);
            record.kind = Kind::DirHeader;
        }
        FileType::Symlink => {
            record.kind = Kind::Symlink;
            record.link = dir.readlink(name)?.as_os_str().as_bytes().to_vec();
        }
        _ => {}
    }
    tree.insert(key, record);
    Ok(())
}

/// The digests of files, directory headers and symlinks, in their order.
pub(super) fn digests(root: &Root, keys: &[&Vec<u8>]) -> Result<Vec<Digest>, Error> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors.min(MAX_THREADS).min(keys.len().div_ceil(RUN));
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        let mut reader = Reader { root, dir: None, buffer: vec![0; 64 << 10] };
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let from = next.fetch_add(RUN, Ordering::Relaxed);
            let Some(run) = keys.get(from..) else { break };
            for (at, key) in run.iter().take(RUN).enumerate() {
                let digest = reader.digest(key);
                failed.fetch_or(digest.is_err(), Ordering::Relaxed);
                done.push((from + at, digest));
            }
        }
        done
    };
    let mut done = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for other in others {
            match other.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    // Whoever was first to fail, the error is that of the first path.
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, digest)| digest).collect()
}

struct Reader<'a> {
    root: &'a Root,
    /// The directory that was last needed.
    dir: Option<(PathBuf, Dir)>,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    fn digest(&mut self, key: &[u8]) -> Result<Digest, Error> {
        let path = to_path(key.strip_suffix(&[0]).unwrap_or(key));
        let path = Path::new(OsStr::from_bytes(&path));
        let parent = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().map_or(Path::new("."), Path::new);
        let dir = match &mut self.dir {
            Some((at, dir)) if at == parent => dir,
            slot => &slot.insert((parent.to_owned(), self.root.open_dir(parent)?)).1,
        };
        let fail = |what| {
            let path = quote(path.as_os_str().as_bytes());
            move |source| Error::Io { what, path, source }
        };
        let stat = dir.lstat(name)?;
        let header = Header::read(dir, name, &stat).map_err(fail("failed to create hash for"))?;
        let mut hash = FileHasher::new(&header)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size > 0 {
            let mut file = dir.open_read(name).map_err(fail("failed to open"))?;
            loop {
                match file.read(&mut self.buffer) {
                    Ok(0) => break,
                    Ok(n) => hash.update(&self.buffer[..n]),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        let source = sys::Error::new("read", dir.path_of(name), e);
                        return Err(fail("failed to copy file data for")(source));
                    }
                }
            }
        }
        Ok(hash.finish())
    }
}
