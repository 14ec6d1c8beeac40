//! Makes a root file system trust an authority for as long as a process runs in it.
//!
//! The certificate is put at the end of the file in which programs look for those
//! they trust, and taken out again whatever became of the file: what the process
//! wrote stays, and an untouched file is in every respect as it was, so that it
//! is no part of what the process changed. The file is written to in place, since
//! packages replace it by renaming another over it, which a mount would forbid.

use std::cmp::Reverse;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::FileType;
use sys::path::{Dir, Root, Stat};

use crate::Error;
use crate::rootfs::times;

/// Where the programs of Linux look for whom to trust; the first that is there is used.
const FILES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Around the certificate, as scripts know it.
const BEGIN: &str = "\n# buildkit proxy CA begin\n";
const END: &str = "# buildkit proxy CA end\n";

/// Largest file that is searched, in bytes.
const LIMIT: u64 = 10 << 20;

/// A certificate in a file of a root file system.
#[derive(Debug)]
pub(crate) struct Trust {
    name: &'static str,
    /// Without links.
    path: PathBuf,
    certificate: String,
    /// What was added at the end.
    block: String,
    before: Stat,
    after: Stat,
}

impl Trust {
    /// Adds `certificate`. None where programs have no such file, or it cannot be written.
    pub(crate) fn add(root: &Root, certificate: &str) -> Result<Option<Self>, Error> {
        let there = FILES.iter().find_map(|name| {
            let path = root.resolve(name, true).ok()?;
            let before = root.lstat(&path).ok().filter(is_file)?;
            Some((*name, path, before))
        });
        let Some((name, path, before)) = there else { return Ok(None) };
        let (dir, last) = root.open_parent(&path)?;
        let file = match dir.open_write(&last) {
            Err(e) if e.source.kind() == std::io::ErrorKind::ReadOnlyFilesystem => return Ok(None),
            other => other?,
        };
        let failed = |e| Error::file("write", name)(e);
        let size = size(&before);
        let mut end = [b'\n'];
        if let Some(at) = size.checked_sub(1) {
            file.read_exact_at(&mut end, at).map_err(failed)?;
        }
        let line = if end == [b'\n'] { "" } else { "\n" };
        let block = format!("{line}{BEGIN}{}\n{END}", certificate.trim_end());
        let mut trust =
            Self { name, path, certificate: certificate.trim_end().to_owned(), block, before, after: before };
        let written =
            file.write_all_at(trust.block.as_bytes(), size).and_then(|()| Ok(rustix::fs::fstat(&file)?));
        match written {
            Ok(after) => trust.after = after,
            Err(e) => {
                file.set_len(size).and_then(|()| trust.set_time(&dir, &before)).map_err(failed)?;
                return Err(failed(e));
            }
        }
        Ok(Some(trust))
    }

    /// Takes the certificate out again.
    ///
    /// # Errors
    /// When it may still be there.
    pub(crate) fn remove(self, root: &Root) -> Result<(), Error> {
        let failed = |e| Error::file("write", self.name)(e);
        // Something else at this place is the work of the process.
        if root.resolve(&self.path, true).ok().as_ref() != Some(&self.path) {
            return Ok(());
        }
        let Ok((dir, last)) = root.open_parent(&self.path) else { return Ok(()) };
        let Some(now) = dir.lstat_opt(&last)?.filter(is_file) else { return Ok(()) };
        let file = dir.open_write(&last)?;
        let untouched = same_times(&now, &self.after) && now.st_ino == self.after.st_ino;
        let before = size(&self.before);
        if self.ends(&file, &now).map_err(failed)? {
            file.set_len(before).map_err(failed)?;
        } else if !self.cut(&file, &now)? {
            return Ok(());
        }
        self.set_time(&dir, if untouched { &self.before } else { &now }).map_err(failed)
    }

    /// Whether the file is as long as it was, and ends with what was added.
    fn ends(&self, file: &File, now: &Stat) -> std::io::Result<bool> {
        let before = size(&self.before);
        if size(now) != before + self.block.len() as u64 {
            return Ok(false);
        }
        let mut end = vec![0; self.block.len()];
        file.read_exact_at(&mut end, before)?;
        Ok(end == self.block.as_bytes())
    }

    /// Cuts it out of what the process has made of the file. Whether it was there.
    fn cut(&self, file: &File, now: &Stat) -> Result<bool, Error> {
        if size(now) > LIMIT {
            return Err(Error::TooLarge { path: self.name, limit: LIMIT });
        }
        let failed = |e| Error::file("write", self.name)(e);
        let mut text = Vec::new();
        file.take(LIMIT).read_to_end(&mut text).map_err(failed)?;
        let marked = format!("{BEGIN}{}\n{END}", self.certificate);
        let plain = format!("{}\n", self.certificate);
        let mut rest = text.as_slice();
        let mut kept = Vec::with_capacity(text.len());
        let mut found = false;
        while let Some((at, length)) = first(rest, &[&marked, &plain, &self.certificate]) {
            kept.extend_from_slice(rest.get(..at).unwrap_or_default());
            rest = rest.get(at + length..).unwrap_or_default();
            found = true;
        }
        if found {
            kept.extend_from_slice(rest);
            file.write_all_at(&kept, 0).and_then(|()| file.set_len(kept.len() as u64)).map_err(failed)?;
        }
        Ok(found)
    }

    fn set_time(&self, dir: &Dir, as_of: &Stat) -> std::io::Result<()> {
        let (access, change) = times(as_of);
        let name = self.path.file_name().unwrap_or_default();
        dir.utimens(name, access, change).map_err(|e| e.source)
    }
}

/// Where the first of `wanted` begins, and the length of the longest that begins there.
fn first(text: &[u8], wanted: &[&str]) -> Option<(usize, usize)> {
    let found = wanted.iter().filter_map(|what| {
        let at = text.windows(what.len()).position(|window| window == what.as_bytes())?;
        Some((at, what.len()))
    });
    found.min_by_key(|(at, length)| (*at, Reverse(*length)))
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

fn same_times(a: &Stat, b: &Stat) -> bool {
    (a.st_mtime, a.st_mtime_nsec) == (b.st_mtime, b.st_mtime_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    /// A root file system with one such file, and the path of that file.
    fn with(content: &str) -> (tempfile::TempDir, Root, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/ssl/certs/ca-certificates.crt");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root, path)
    }

    #[test]
    fn an_untouched_file_is_as_before() {
        for content in ["", "first\n", "no end of line"] {
            let (_dir, root, path) = with(content);
            let before = std::fs::metadata(&path).unwrap();
            let trust = Trust::add(&root, CERTIFICATE).unwrap().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with(content) && text.contains(CERTIFICATE), "{text}");
            assert!(text.contains("\n# buildkit proxy CA begin\n-----BEGIN"), "{text}");
            trust.remove(&root).unwrap();
            let after = std::fs::metadata(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
            assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
        }
    }

    #[test]
    fn what_the_process_wrote_stays() {
        // Put before, behind, replaced by another file, and sorted into others.
        for (prefix, suffix, marks) in
            [("new\n", "", true), ("", "more\n", true), ("a\n", "b\n", true), ("a\n", "b\n", false)]
        {
            let (_dir, root, path) = with("old\n");
            let trust = Trust::add(&root, CERTIFICATE).unwrap().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let (text, kept) = if marks { (text, "old\n") } else { (CERTIFICATE.to_owned(), "") };
            std::fs::write(path.with_extension("new"), format!("{prefix}{text}{suffix}")).unwrap();
            std::fs::rename(path.with_extension("new"), &path).unwrap();
            trust.remove(&root).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{prefix}{kept}{suffix}"));
        }
    }

    #[test]
    fn links_do_not_lead_out() {
        let (dir, root, path) = with("");
        let outside = tempfile::tempdir().unwrap();
        let other = outside.path().join("ca.crt");
        std::fs::write(&other, "outside\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        assert!(Trust::add(&root, CERTIFICATE).unwrap().is_none());

        // Nor when the process puts them there.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "inside\n").unwrap();
        let trust = Trust::add(&root, CERTIFICATE).unwrap().unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        std::fs::write(&other, std::fs::read(dir.path().join("moved")).unwrap()).unwrap();
        symlink(&other, &path).unwrap();
        trust.remove(&root).unwrap();
        assert!(std::fs::read_to_string(&other).unwrap().contains(CERTIFICATE));
    }

    #[test]
    fn the_first_file_is_used_and_none_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(Trust::add(&root, CERTIFICATE).unwrap().is_none());
        std::fs::create_dir_all(dir.path().join("etc/ssl/real")).unwrap();
        std::fs::write(dir.path().join("etc/ssl/real/bundle"), "x\n").unwrap();
        symlink("real/bundle", dir.path().join("etc/ssl/cert.pem")).unwrap();
        let trust = Trust::add(&root, CERTIFICATE).unwrap().unwrap();
        assert!(std::fs::read_to_string(dir.path().join("etc/ssl/real/bundle")).unwrap().contains("AAAA"));
        trust.remove(&root).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("etc/ssl/real/bundle")).unwrap(), "x\n");
    }
}
