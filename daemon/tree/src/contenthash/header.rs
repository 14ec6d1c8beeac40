//! The digest of one file: a header in the manner of the old "tarsum v1", then
//! the content.
//!
//! The header has neither name nor modification time: names enter where
//! directories are digested, and times must not matter. Each field is written
//! as its name and its value, with nothing in between.

use std::collections::BTreeMap;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use base::Digest;
use base::digest::Hasher;
use sys::path::{Dir, FileType, Stat};

use super::Error;
use crate::gomode;

/// What enters the digest of a file besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// As in [`gomode`].
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// In bytes; of no concern unless it is a regular file.
    pub size: i64,
    /// What a symlink says; for a regular file the name it is a hard link to.
    pub link: Vec<u8>,
    /// Major device number.
    pub major: i64,
    /// Minor device number.
    pub minor: i64,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Header {
    /// The header of `name` in `dir`.
    ///
    /// Devices have no numbers here: the digests this has to equal are made
    /// without them when they are made from a directory.
    pub(super) fn read(dir: &Dir, name: &Path, stat: &Stat) -> sys::Result<Self> {
        let mut mode = gomode::from_unix(stat.st_mode);
        let mut link = Vec::new();
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            link = dir.readlink(name)?.into_os_string().into_vec();
            mode |= 0o777;
        }
        let xattrs = dir.xattrs(name)?;
        Ok(Self {
            mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size,
            link,
            major: 0,
            minor: 0,
            xattrs: xattrs.into_iter().map(|(k, v)| (k.as_bytes().to_vec(), v)).collect(),
        })
    }
}

/// The digest of a file in the making: the header is in it, content may follow.
#[derive(Clone)]
pub struct FileHasher(Hasher);

impl FileHasher {
    /// Begins with the header.
    ///
    /// # Errors
    /// When the mode is of no kind that can be digested.
    pub fn new(header: &Header) -> Result<Self, Error> {
        // A tar stream has no word for these two; they count as regular files.
        let mode = header.mode & !(gomode::SOCKET | gomode::IRREGULAR);
        let (kind, size, link) = if mode & gomode::TYPE == 0 {
            ('0', header.size, &[][..])
        } else if mode & gomode::DIR != 0 {
            ('5', 0, &[][..])
        } else if mode & gomode::SYMLINK != 0 {
            ('2', 0, &header.link[..])
        } else if mode & gomode::DEVICE != 0 {
            (if mode & gomode::CHAR_DEVICE != 0 { '3' } else { '4' }, 0, &[][..])
        } else if mode & gomode::NAMED_PIPE != 0 {
            ('6', 0, &[][..])
        } else {
            return Err(Error::Mode { mode });
        };
        let mut hash = Hasher::new();
        let permissions = gomode::permissions(mode);
        let (uid, gid) = (header.uid, header.gid);
        hash.update(format!("namemode{permissions}uid{uid}gid{gid}size{size}typeflag{kind}linkname"));
        hash.update(link);
        hash.update(format!("unamegnamedevmajor{}devminor{}", header.major, header.minor));
        for (key, value) in &header.xattrs {
            let foreign = key.starts_with(b"security.") || key.starts_with(b"system.");
            if !foreign || key == b"security.capability" {
                hash.update(key);
                hash.update(value);
            }
        }
        Ok(Self(hash))
    }

    /// Adds content.
    pub fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.update(bytes);
    }

    /// The hash as it stands, for whoever adds the content himself.
    pub fn into_inner(self) -> Hasher {
        self.0
    }

    /// The digest of the header and all content added.
    pub fn finish(self) -> Digest {
        self.0.finish()
    }
}

impl std::io::Write for FileHasher {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
