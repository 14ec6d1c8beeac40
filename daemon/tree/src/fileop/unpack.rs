//! Unpacking archives as `ADD` does.
//!
//! An archive is a regular file that, decompressed if need be, begins with a
//! valid tar header; anything else is copied. The directory it is unpacked to
//! plays `/` for the names and links in it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use base::Timestamp;
use base::task::Scope;
use rustix::fs::makedev;
use sys::path::{Dir, FileType, Make, Root};
use tar::{Archive, Entry, EntryType};

use super::{Copy, Error, Owner, kind_of, lexical};

/// Extended attributes stand in PAX records with this prefix.
const XATTR: &str = "SCHILY.xattr.";

/// Unpacks `path` of `src` into the destination of `action`; `false` when it is
/// no archive.
pub(super) fn unpack(
    scope: &Scope,
    src: &Root,
    path: &Path,
    dest: &Root,
    action: &Copy,
    owner: Option<Owner>,
) -> Result<bool, Error> {
    let path = src.resolve(lexical(path), true)?;
    if !is_archive(src, &path) {
        return Ok(false);
    }
    let dest_path = dest.resolve(lexical(Path::new(&action.dest)), true)?;
    dest.mkdir_all(&dest_path, &Make { mode: 0o755, owner, time: action.timestamp })?;
    let root = dest.open_dir(&dest_path)?.into_root();
    let broken = |source| Error::Archive { path: path.clone(), source };
    let reader = decompress(src.open_read(&path)?).map_err(broken)?;
    let mut archive = Archive::new(reader);
    let mut unpacker = Unpacker { root: &root, dest: &dest_path, owner, dirs: Vec::new() };
    for entry in archive.entries().map_err(broken)? {
        scope.check().map_err(Error::Canceled)?;
        unpacker.entry(entry.map_err(broken)?, &path)?;
    }
    unpacker.finish()?;
    Ok(true)
}

fn is_archive(src: &Root, path: &Path) -> bool {
    let regular = src.lstat(path).is_ok_and(|stat| kind_of(&stat) == FileType::RegularFile);
    let first = || {
        let mut archive = Archive::new(decompress(src.open_read(path).ok()?).ok()?);
        archive.entries().ok()?.next()?.ok().map(drop)
    };
    regular && first().is_some()
}

/// The file's content, decompressed if its first bytes are those of a known
/// compression.
fn decompress(file: File) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::with_capacity(64 << 10, file);
    let head = file.fill_buf()?;
    let skippable = |m: &[u8]| matches!(m, [0x50..=0x5f, 0x2a, 0x4d, 0x18, _, _, _, _, ..]);
    Ok(if head.starts_with(b"BZh") {
        Box::new(bzip2::bufread::MultiBzDecoder::new(file))
    } else if head.starts_with(&[0x1f, 0x8b, 0x08]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(file))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable(head) {
        Box::new(zstd::Decoder::with_buffer(file)?)
    } else {
        Box::new(file)
    })
}

struct Unpacker<'a> {
    /// The directory it is unpacked to.
    root: &'a Root,
    /// Where that is, for messages.
    dest: &'a Path,
    owner: Option<Owner>,
    /// Directories, whose times change while files are put in.
    dirs: Vec<(PathBuf, Timestamp, Timestamp)>,
}

/// What PAX records say beyond what the tar reader understands.
#[derive(Default)]
struct Pax {
    access: Option<Timestamp>,
    change: Option<Timestamp>,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Unpacker<'_> {
    fn entry(&mut self, mut entry: Entry<'_, Box<dyn Read>>, archive: &Path) -> Result<(), Error> {
        let broken = |source| Error::Archive { path: archive.to_owned(), source };
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let given = entry.path().map_err(broken)?.into_owned();
        let name = self.inside(&given)?;
        let whole = name == Path::new("/");
        if !whole {
            let parent = name.parent().unwrap_or(Path::new("/"));
            let implied = Make { mode: 0o755, owner: Some(Owner::default()), time: None };
            if let Err(e) = self.root.lstat(parent) {
                if e.source.kind() != io::ErrorKind::NotFound {
                    return Err(e.into());
                }
                self.root.mkdir_all(parent, &implied)?;
            }
        }
        let (dir, last) = self.root.open_parent(&name)?;
        let last = Path::new(&last);
        let is_dir = kind == EntryType::Directory || (kind.is_file() && given.as_os_str().is_empty());
        if let Some(there) = dir.lstat_opt(last)? {
            let there_dir = kind_of(&there) == FileType::Directory;
            if there_dir && whole {
                return Ok(());
            }
            if !there_dir || !is_dir {
                dir.remove_all(last)?;
            }
        }
        let pax = pax(&mut entry).map_err(broken)?;
        let mode = entry.header().mode().map_err(broken)? & 0o7777;
        let mut follows = true;
        match kind {
            EntryType::Directory => _ = dir.mkdir(last, mode)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = dir.create(last, mode)?;
                io::copy(&mut entry, &mut file).map_err(broken)?;
            }
            EntryType::Block | EntryType::Char | EntryType::Fifo => {
                let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
                let device =
                    makedev(number(entry.header().device_major()), number(entry.header().device_minor()));
                let kind = match kind {
                    EntryType::Block => FileType::BlockDevice,
                    EntryType::Char => FileType::CharacterDevice,
                    _ => FileType::Fifo,
                };
                dir.mknod(last, kind, mode, device)?;
            }
            EntryType::Link => {
                let target = entry.link_name().map_err(broken)?.unwrap_or_default().into_owned();
                let target = lexical(&target);
                let (from, from_name) = self.root.open_parent(&target)?;
                dir.link(&from, &from_name, last)?;
                follows = kind_of(&dir.lstat(last)?) != FileType::Symlink;
            }
            EntryType::Symlink => {
                let target = entry.link_name().map_err(broken)?.unwrap_or_default().into_owned();
                dir.symlink(target, last)?;
                follows = false;
            }
            other => return Err(Error::EntryType { kind: other.as_byte() }),
        }
        let id = |n: io::Result<u64>| n.ok().and_then(|n| u32::try_from(n).ok());
        let owner = match self.owner {
            Some(owner) => owner,
            None => Owner {
                uid: id(entry.header().uid()).unwrap_or(0),
                gid: id(entry.header().gid()).unwrap_or(0),
            },
        };
        dir.chown(last, owner)?;
        for (key, value) in &pax.xattrs {
            set_xattr(&dir, last, key, value)?;
        }
        if follows {
            dir.chmod(last, mode)?;
        }
        let change = pax.change.unwrap_or_else(|| {
            let secs = entry.header().mtime().ok().and_then(|secs| i64::try_from(secs).ok());
            bounded(secs.and_then(|secs| secs.checked_mul(1_000_000_000)))
        });
        let access = pax.access.map_or(change, |access| access.max(change));
        if kind != EntryType::Link || follows {
            dir.utimens(last, access, change)?;
        }
        if kind == EntryType::Directory {
            self.dirs.push((name, access, change));
        }
        Ok(())
    }

    /// The name as a path from `/`. It may pass through `..`, not end outside.
    fn inside(&self, name: &Path) -> Result<PathBuf, Error> {
        use std::path::Component as C;
        let mut depth = 0_i64;
        let absolute = name.is_absolute();
        for part in name.components() {
            match part {
                C::Normal(_) => depth += 1,
                C::ParentDir => depth -= 1,
                C::Prefix(_) | C::RootDir | C::CurDir => {}
            }
            if depth < 0 && !absolute {
                let name = name.to_string_lossy().into_owned();
                return Err(Error::Breakout { name, dest: self.dest.to_owned() });
            }
        }
        Ok(lexical(name))
    }

    fn finish(self) -> Result<(), Error> {
        for (path, access, change) in self.dirs {
            let (dir, name) = self.root.open_parent(&path)?;
            dir.utimens(name, access, change)?;
        }
        Ok(())
    }
}

fn set_xattr(dir: &Dir, name: &Path, key: &OsString, value: &[u8]) -> Result<(), Error> {
    use rustix::io::Errno;
    match dir.set_xattr(name, key, value) {
        // Not every file system has them, not everybody may set them.
        Err(e)
            if [Errno::OPNOTSUPP, Errno::PERM]
                .iter()
                .any(|errno| e.source.raw_os_error() == Some(errno.raw_os_error())) =>
        {
            Ok(())
        }
        other => Ok(other?),
    }
}

fn pax(entry: &mut Entry<'_, Box<dyn Read>>) -> io::Result<Pax> {
    use std::os::unix::ffi::OsStringExt;
    let mut out = Pax::default();
    let Some(records) = entry.pax_extensions()? else { return Ok(out) };
    for record in records {
        let record = record?;
        match record.key_bytes() {
            b"atime" => out.access = time(record.value_bytes()),
            b"mtime" => out.change = time(record.value_bytes()),
            key => {
                if let Some(key) = key.strip_prefix(XATTR.as_bytes()) {
                    out.xattrs.push((OsString::from_vec(key.to_vec()), record.value_bytes().to_vec()));
                }
            }
        }
    }
    Ok(out)
}

/// Decimal seconds with a fraction.
fn time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (secs, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let whole: i64 = secs.parse().ok()?;
    let nanos = if secs.starts_with('-') { -nanos } else { nanos };
    Some(bounded(whole.checked_mul(1_000_000_000).and_then(|n| n.checked_add(nanos))))
}

/// Times before 1970 and beyond what counts in nanoseconds are 1970.
fn bounded(nanos: Option<i64>) -> Timestamp {
    Timestamp::from_nanos(nanos.unwrap_or(0).max(0))
}
