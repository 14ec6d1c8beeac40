//! The record tree: what is known of a directory tree, by path.
//!
//! A key is an absolute clean path whose slashes are zero bytes, so that the
//! records of a directory stand together. The root is the empty key. A
//! directory has two records: `dir` is about all that is in it, `dir\0` about
//! its own header.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use base::Digest;
use proto::contenthash::{CacheRecord, CacheRecordType, CacheRecordWithPath, CacheRecords};

use super::header::Header;
use super::{Error, quote};
use crate::gomode;

/// As many symlinks are followed on one path.
const MAX_LINKS: usize = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Dir,
    DirHeader,
    Symlink,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    /// Not known until somebody asks.
    pub(super) digest: Option<Digest>,
    /// What a symlink says.
    pub(super) link: Vec<u8>,
}

impl Record {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, digest: None, link: Vec::new() }
    }
}

/// What the receiver of a file-sync learnt about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing is there any more.
    Removed,
    /// This is there now.
    Present {
        /// The header as it was received.
        header: Header,
        /// Header and content, see [`super::FileHasher`].
        digest: Digest,
    },
}

#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) tree: BTreeMap<Vec<u8>, Record>,
    /// Directories below which something changed; their digests are void.
    touched: BTreeSet<Vec<u8>>,
    /// Changes have come in since the digests were last made void.
    open: bool,
    /// Hard links whose first name may still come, by the path of that name.
    links: HashMap<Vec<u8>, Vec<Vec<u8>>>,
}

impl Records {
    /// The first record after `from`.
    pub(super) fn next(&self, from: Bound<&[u8]>) -> Option<(&Vec<u8>, &Record)> {
        self.tree.range::<[u8], _>((from, Bound::Unbounded)).next()
    }

    /// Looks `key` up, symlinks followed; those at the end only on request.
    /// The record is none when there is no such path; the key is then where it
    /// would be.
    pub(super) fn find(&self, key: &[u8], follow_last: bool) -> Result<(Vec<u8>, Option<&Record>), Error> {
        self.find_with(key, follow_last, |_, _| {})
    }

    fn find_with<'a>(
        &'a self,
        key: &[u8],
        follow_last: bool,
        mut seen: impl FnMut(&[u8], Option<&'a Record>),
    ) -> Result<(Vec<u8>, Option<&'a Record>), Error> {
        if let Some(record) = self.tree.get(key)
            && (!follow_last || record.kind != Kind::Symlink)
        {
            return Ok((key.to_vec(), Some(record)));
        }
        if key.is_empty() {
            return Ok((Vec::new(), None));
        }
        let path = to_path(key);
        let (mut rest, header) = match path.strip_suffix(b"/") {
            Some(path) => (path.to_vec(), true),
            None => (path, false),
        };
        let mut current: Vec<u8> = Vec::new();
        let mut found = None;
        let mut links = 0;
        while !rest.is_empty() {
            let (part, after) = match rest.iter().position(|b| *b == b'/') {
                Some(at) => (rest[..at].to_vec(), rest[at + 1..].to_vec()),
                None => (std::mem::take(&mut rest), Vec::new()),
            };
            rest = after;
            let next = join(&current, &part);
            found = self.tree.get(&to_key(&next));
            seen(&next, found);
            let Some(link) = found.filter(|r| r.kind == Kind::Symlink && (follow_last || !rest.is_empty()))
            else {
                current = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::Links);
            }
            rest = [&link.link, &b"/"[..], &rest].concat();
            if link.link.starts_with(b"/") {
                current.clear();
            }
        }
        if header {
            current.push(b'/');
            found = self.tree.get(&to_key(&current));
            seen(&current, found);
        }
        Ok((to_key(&current), found))
    }

    /// Whether the directory has to be read to know about `path`: it is not in
    /// the tree, and neither is a directory that would hold it.
    pub(super) fn needs_scan(&self, path: &[u8], follow_last: bool) -> Result<bool, Error> {
        let mut known = Vec::new();
        let mut parent_known = false;
        let (_, record) = self.find_with(&to_key(path), follow_last, |sub, record| {
            let mut sub = join(&[], sub);
            sub.push(b'/');
            let included = known.iter().any(|prefix: &Vec<u8>| sub.starts_with(prefix));
            match record {
                Some(record) => {
                    parent_known = record.kind != Kind::Symlink;
                    if !included {
                        known.push(sub);
                    }
                }
                None => parent_known = included,
            }
        })?;
        Ok(record.is_none() && !parent_known)
    }

    /// Takes in a change of the directory that is being received.
    pub(super) fn change(&mut self, path: &[u8], change: Change) {
        let path = join(&[], path);
        let mut key = to_key(&path);
        if !self.open {
            self.open = true;
            // The root is never received, yet must have a digest.
            if !self.tree.contains_key(&[0][..]) {
                let header = Record { digest: Some(Digest::of("")), ..Record::new(Kind::DirHeader) };
                self.tree.insert(vec![0], header);
                self.tree.insert(Vec::new(), Record::new(Kind::Dir));
            }
        }
        let Change::Present { header, digest } = change else {
            if self.tree.remove(&key).is_some_and(|old| old.kind == Kind::Dir) {
                self.remove_below(&key);
            }
            self.touched.insert(parent(&path));
            return;
        };
        let is_dir = header.mode & gomode::DIR != 0;
        let is_link = header.mode & gomode::SYMLINK != 0;
        if !is_dir && self.tree.get(&key).is_some_and(|old| old.kind == Kind::Dir) {
            self.remove_below(&key);
        }
        let mut record = Record::new(match (is_dir, is_link) {
            (true, _) => Kind::DirHeader,
            (_, true) => Kind::Symlink,
            _ => Kind::File,
        });
        record.digest = Some(digest);
        let mut holder = parent(&path);
        if is_link {
            record.link = header.link;
        } else if !header.link.is_empty() {
            // A hard link has the digest of its first name, which may come later.
            let first = join(&[], &header.link);
            if let Some(known) = self.tree.get(&to_key(&first)) {
                record = known.clone();
            }
            self.links.entry(first).or_default().push(key.clone());
        }
        if is_dir {
            self.tree.insert(key.clone(), Record::new(Kind::Dir));
            key.push(0);
            holder = path;
        } else if let Some(waiting) = self.links.remove(&path) {
            for link in waiting {
                self.touched.insert(parent(&to_path(&link)));
                self.tree.insert(link, record.clone());
            }
        }
        self.tree.insert(key, record);
        self.touched.insert(holder);
    }

    fn remove_below(&mut self, key: &[u8]) {
        let prefix = [key, &[0]].concat();
        let below: Vec<_> = self
            .tree
            .range::<[u8], _>((Bound::Included(&prefix[..]), Bound::Unbounded))
            .map(|(k, _)| k)
            .take_while(|k| k.starts_with(&prefix))
            .cloned()
            .collect();
        for key in below {
            self.tree.remove(&key);
        }
    }

    /// Makes void the digests of all directories above what changed.
    pub(super) fn settle(&mut self) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        for mut path in std::mem::take(&mut self.touched) {
            loop {
                if let Some(record) = self.tree.get_mut(&to_key(&path)) {
                    *record = Record::new(Kind::Dir);
                }
                if path.is_empty() {
                    break;
                }
                path = parent(&path);
            }
        }
    }

    /// Forgets hard links whose first name never came.
    pub(super) fn forget_links(&mut self) {
        self.links.clear();
    }

    /// In the form in which it is kept with a result; none when a path is not
    /// UTF-8 and so has no such form.
    pub(super) fn to_proto(&self) -> Option<CacheRecords> {
        let mut paths = Vec::with_capacity(self.tree.len());
        for (key, record) in &self.tree {
            let kind = match record.kind {
                Kind::File => CacheRecordType::File,
                Kind::Dir => CacheRecordType::Dir,
                Kind::DirHeader => CacheRecordType::DirHeader,
                Kind::Symlink => CacheRecordType::Symlink,
            };
            let record = CacheRecord {
                digest: record.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
                r#type: kind.into(),
                linkname: String::from_utf8(record.link.clone()).ok()?,
            };
            let path = String::from_utf8(key.clone()).ok()?;
            paths.push(CacheRecordWithPath { path, record: Some(record) });
        }
        Some(CacheRecords { paths })
    }

    pub(super) fn from_proto(records: CacheRecords) -> Result<Self, Error> {
        let mut tree = BTreeMap::new();
        for CacheRecordWithPath { path, record } in records.paths {
            let broken = || Error::Broken { path: quote(&to_path(path.as_bytes())) };
            let record = record.ok_or_else(broken)?;
            let kind = match CacheRecordType::try_from(record.r#type).map_err(|_| broken())? {
                CacheRecordType::File => Kind::File,
                CacheRecordType::Dir => Kind::Dir,
                CacheRecordType::DirHeader => Kind::DirHeader,
                CacheRecordType::Symlink => Kind::Symlink,
            };
            let digest = match record.digest.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| broken())?),
            };
            tree.insert(path.into_bytes(), Record { kind, digest, link: record.linkname.into_bytes() });
        }
        Ok(Self { tree, ..Self::default() })
    }
}

/// `part` seen from the directory `at`, as a clean absolute path; the root is
/// empty.
pub(super) fn join(at: &[u8], part: &[u8]) -> Vec<u8> {
    let mut out = at.to_vec();
    for name in part.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => out.truncate(out.iter().rposition(|b| *b == b'/').unwrap_or(0)),
            name => {
                out.push(b'/');
                out.extend_from_slice(name);
            }
        }
    }
    out
}

/// The directory that holds a clean path; the root is its own.
fn parent(path: &[u8]) -> Vec<u8> {
    path[..path.iter().rposition(|b| *b == b'/').unwrap_or(0)].to_vec()
}

pub(super) fn to_key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|b| if *b == b'/' { 0 } else { *b }).collect()
}

pub(super) fn to_path(key: &[u8]) -> Vec<u8> {
    key.iter().map(|b| if *b == 0 { b'/' } else { *b }).collect()
}
