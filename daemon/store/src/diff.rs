//! Changes as a layer archive.
//!
//! The digest of a layer is that of these bytes, so the order, the headers and
//! the formats are those every other builder writes: parents of a change are
//! listed before it, whiteouts are empty files of 1970 without owner, names of
//! users are left out, times are cut to seconds, and of the extended
//! attributes only file capabilities are kept.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::changes::{Change, ChangeKind};
use crate::tar::{Header, Kind, Writer};
use crate::{Error, Result};

/// Writes changes as a layer archive.
pub struct ChangeWriter<W: Write> {
    tar: Writer<W>,
    source: PathBuf,
    /// The first name of each file that has several.
    written: HashMap<u64, Vec<u8>>,
    /// Unmodified names of such files, needed if one of them is written.
    waiting: HashMap<u64, Vec<Vec<u8>>>,
    dirs: HashSet<PathBuf>,
}

impl<W: Write> ChangeWriter<W> {
    /// Writes to `output`, which should be buffered; files are read from `source`.
    pub fn new(output: W, source: impl Into<PathBuf>) -> Self {
        Self {
            tar: Writer::new(output),
            source: source.into(),
            written: HashMap::new(),
            waiting: HashMap::new(),
            dirs: HashSet::new(),
        }
    }

    /// Writes one change. They must come in the order of [`crate::double_walk`].
    ///
    /// # Errors
    /// When a file cannot be read or the output refuses.
    pub fn change(&mut self, change: &Change<'_>) -> Result<()> {
        if change.kind == ChangeKind::Delete {
            return self.whiteout(change.path);
        }
        let (path, meta) = (change.path, change.meta);
        let full = self.source.join(path);
        let Some(mut header) = header(path, &full, meta)? else { return Ok(()) };
        let mut others = Vec::new();
        if !meta.is_dir() && meta.nlink() > 1 {
            if let Some(first) = self.written.get(&meta.ino()) {
                header.kind = Kind::HardLink;
                header.link.clone_from(first);
                header.size = 0;
            } else if change.kind == ChangeKind::Unmodified {
                self.waiting.entry(meta.ino()).or_default().push(header.name);
                return Ok(());
            } else {
                self.written.insert(meta.ino(), header.name.clone());
                others = self.waiting.remove(&meta.ino()).unwrap_or_default();
            }
        } else if change.kind == ChangeKind::Unmodified {
            return Ok(());
        }
        if let Some(value) = sys::xattr::get(&full, "security.capability")?
            && !value.is_empty()
        {
            header.set_xattr(b"security.capability", &value);
        }
        self.parents(path)?;
        if meta.is_dir() {
            self.dirs.insert(path.to_owned());
        }
        self.entry(&header)?;
        if header.kind == Kind::Regular && header.size > 0 {
            self.data(&full, header.size)?;
        }
        let first = header.name.clone();
        for other in others {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(&other));
            header.name = other;
            header.kind = Kind::HardLink;
            header.link.clone_from(&first);
            header.size = 0;
            self.parents(&path)?;
            self.entry(&header)?;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &Path) -> Result<()> {
        let mut name = std::ffi::OsString::from(".wh.");
        name.push(path.file_name().unwrap_or_default());
        let path = path.with_file_name(name);
        self.parents(&path)?;
        self.entry(&Header::new(Kind::Regular, path.as_os_str().as_bytes()))
    }

    /// Lists the directories above, outermost first, unless they are listed.
    fn parents(&mut self, path: &Path) -> Result<()> {
        let mut missing = Vec::new();
        let mut next = path.parent();
        while let Some(parent) = next.filter(|p| !p.as_os_str().is_empty() && !self.dirs.contains(*p)) {
            missing.push(parent);
            next = parent.parent();
        }
        for parent in missing.into_iter().rev() {
            let full = self.source.join(parent);
            let meta = fs::metadata(&full).map_err(Error::io("stat", &full))?;
            self.dirs.insert(parent.to_owned());
            self.change(&Change { kind: ChangeKind::Modify, path: parent, meta: &meta })?;
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header) -> Result<()> {
        self.tar.header(header).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidInput => Error::archive(&header.name, e.to_string()),
            _ => Error::io("write", "layer")(e),
        })
    }

    fn data(&mut self, full: &Path, size: u64) -> Result<()> {
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
        let mut file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(full)
            .map_err(Error::io("open", full))?;
        let mut buf = vec![0; 128 << 10];
        let mut left = size;
        loop {
            let got = match file.read(&mut buf) {
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io("read", full)(e)),
            };
            left = match left.checked_sub(got as u64) {
                Some(left) if got > 0 => left,
                Some(0) => return Ok(()),
                _ => {
                    return Err(Error::io("read", full)(io::Error::other("size changed while it was read")));
                }
            };
            let part = buf.get(..got).unwrap_or_default();
            self.tar.write_all(part).map_err(Error::io("write", "layer"))?;
        }
    }

    /// Ends the archive and gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(self) -> Result<W> {
        self.tar.finish().map_err(Error::io("write", "layer"))
    }
}

/// The header of a file as it is on disk; sockets have none.
fn header(path: &Path, full: &Path, meta: &Metadata) -> Result<Option<Header>> {
    let kind = meta.file_type();
    let mut name = path.as_os_str().as_bytes().to_vec();
    let mut link = Vec::new();
    let mut size = 0;
    let kind = if kind.is_socket() {
        return Ok(None);
    } else if kind.is_dir() {
        name.push(b'/');
        Kind::Directory
    } else if kind.is_symlink() {
        let target = fs::read_link(full).map_err(Error::io("read link", full))?;
        link = target.as_os_str().as_bytes().to_vec();
        Kind::Symlink
    } else if kind.is_char_device() {
        Kind::Character
    } else if kind.is_block_device() {
        Kind::Block
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        size = meta.len();
        Kind::Regular
    };
    let mut header = Header::new(kind, name);
    header.link = link;
    header.size = size;
    header.mode = meta.mode() & 0o7777;
    header.uid = meta.uid().into();
    header.gid = meta.gid().into();
    header.mtime = meta.mtime();
    if matches!(kind, Kind::Character | Kind::Block) {
        header.dev_major = rustix::fs::major(meta.rdev());
        header.dev_minor = rustix::fs::minor(meta.rdev());
    }
    Ok(Some(header))
}
