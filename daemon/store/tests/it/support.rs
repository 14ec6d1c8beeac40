//! Directories that go away, and archives made by somebody else's writer.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use store::{Options, Snapshotter, Store};

pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("store-test-{}", base::id::fresh()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn sub(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn store(&self) -> Store {
        self.store_as(Snapshotter::Overlay)
    }

    pub(crate) fn store_as(&self, snapshotter: Snapshotter) -> Store {
        Store::open(self.0.join("store"), Options { snapshotter, ..Options::default() }).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        _ = sys::mount::detach_below(&self.0);
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Every path below `dir` with what it is, for comparing trees.
pub(crate) fn listing(dir: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = vec![dir.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(dir).unwrap().display().to_string();
        let content = if meta.is_file() {
            base::Digest::of(fs::read(&path).unwrap()).short().to_owned()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            String::new()
        };
        if !name.is_empty() {
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            out.push(format!(
                "{name} {:o} {}:{} {:x} {} n{links} {content}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.rdev(),
                meta.mtime(),
            ));
        }
        if meta.is_dir() {
            rest.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    out.sort();
    out
}

pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: tar::EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        if kind == tar::EntryType::Directory {
            header.set_mode(0o750);
        }
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.entry(tar::EntryType::Regular, name, "", data.as_bytes())
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(tar::EntryType::Directory, name, "", b"")
    }

    pub(crate) fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(tar::EntryType::Symlink, name, to, b"")
    }

    pub(crate) fn link(self, name: &str, to: &str) -> Self {
        self.entry(tar::EntryType::Link, name, to, b"")
    }

    pub(crate) fn device(mut self, name: &str, major: u32, minor: u32) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(tar::EntryType::Char);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.0.append(&header, &b""[..]).unwrap();
        self
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let compression = store::Compression::default();
    let mut compressor = store::Compressor::new(compression, Vec::new()).unwrap();
    compressor.write_all(data).unwrap();
    compressor.finish().unwrap()
}
