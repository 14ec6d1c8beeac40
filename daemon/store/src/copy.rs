//! A tree copied as it is: owners, permissions, times, attributes, devices,
//! and files with several names still being one file.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

use crate::{Error, Result};

/// Copies what is in `from` into the existing directory `to`, and the
/// attributes of `from` itself. Sockets are left out. The kernel shares the
/// blocks where the file system can.
///
/// # Errors
/// What the file system says; what was copied until then stays.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Copy { names: HashMap::new() };
    let meta = fs::symlink_metadata(from).map_err(Error::io("stat", from))?;
    copy.children(from, to)?;
    copy_attributes(from, to, &meta)
}

struct Copy {
    /// Where the copy of a file with several names is.
    names: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    fn children(&mut self, from: &Path, to: &Path) -> Result<()> {
        for entry in fs::read_dir(from).map_err(Error::io("read", from))? {
            let entry = entry.map_err(Error::io("read", from))?;
            let meta = entry.metadata().map_err(Error::io("stat", entry.path()))?;
            self.entry(&entry.path(), &to.join(entry.file_name()), &meta)?;
        }
        Ok(())
    }

    fn entry(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
        if meta.file_type().is_socket() {
            return Ok(());
        }
        if !meta.is_dir() && meta.nlink() > 1 {
            if let Some(first) = self.names.get(&(meta.dev(), meta.ino())) {
                return fs::hard_link(first, to).map_err(Error::io("link", to));
            }
            self.names.insert((meta.dev(), meta.ino()), to.to_owned());
        }
        copy_one(from, to, meta)?;
        if meta.is_dir() {
            self.children(from, to)?;
        }
        copy_attributes(from, to, meta)
    }
}

/// Makes `to` what `from` is, a directory empty, without attributes.
pub(crate) fn copy_one(from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
    let kind = meta.file_type();
    if kind.is_dir() {
        return fs::create_dir(to).map_err(Error::io("create", to));
    }
    if kind.is_symlink() {
        let target = fs::read_link(from).map_err(Error::io("read link", from))?;
        return symlink(target, to).map_err(Error::io("create", to));
    }
    if kind.is_file() {
        let mut source = File::open(from).map_err(Error::io("open", from))?;
        let mut copy = File::create_new(to).map_err(Error::io("create", to))?;
        return std::io::copy(&mut source, &mut copy).map(drop).map_err(Error::io("copy", from));
    }
    let kind = FileType::from_raw_mode(meta.mode());
    rustix::fs::mknodat(CWD, to, kind, Mode::from_raw_mode(0o600), meta.rdev())
        .map_err(Error::io("create", to))
}

/// Gives `to` the attributes of `from`, the overlay's own among them left out.
pub(crate) fn copy_attributes(from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
    lchown(to, Some(meta.uid()), Some(meta.gid())).map_err(Error::io("chown", to))?;
    for (name, value) in sys::xattr::all(from, &["trusted.overlay.", "user.overlay."])? {
        match sys::xattr::set(to, &name, &value) {
            Err(e) if e.source.kind() == std::io::ErrorKind::Unsupported => {
                tracing::debug!(path = %to.display(), name = %String::from_utf8_lossy(name.as_bytes()), "attribute not kept");
            }
            other => other?,
        }
    }
    if !meta.is_symlink() {
        rustix::fs::chmod(to, Mode::from_raw_mode(meta.mode() & 0o7777)).map_err(Error::io("chmod", to))?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: meta.atime(), tv_nsec: meta.atime_nsec() },
        last_modification: Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() },
    };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Error::io("set times of", to))
}
