//! Content digests of directory trees, equal byte for byte to those of other
//! implementations: they are part of cache keys.
//!
//! A [`ContentHash`] remembers what it has learnt of one tree in records (see
//! [`records`]) and reads only what a question needs. The records can be kept
//! with the tree's owner and filled by a file-sync receiver as files arrive.
//!
//! What enters a digest:
//! - a file: its header and content, see [`FileHasher`];
//! - a directory, as a whole: for its header and then each entry in order of
//!   names, the entry's key relative to the directory (slashes are zero bytes)
//!   and the digest in its text form;
//! - with wildcards or patterns: the same, over everything that matched, with
//!   directory headers in place of whole directories; parents of matches count,
//!   empty selections are the digest of nothing.
//!
//! Symlinks inside a directory are digested as such, never followed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base::digest::Hasher;
use base::{Classify, Digest, Kind as Code};
use prost::Message;
use proto::contenthash::CacheRecords;
use sys::path::Root;

mod header;
mod read;
mod records;
mod select;

pub use header::{FileHasher, Header};
pub use records::Change;
pub(crate) use select::has_wildcard;

use records::{Kind, Record, Records, join, to_key, to_path};

/// What to digest of a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opts {
    /// Follow a symlink at the end of the path.
    pub follow_links: bool,
    /// The path may hold `*`, `?` and `[…]`.
    pub wildcard: bool,
    /// Only what matches one of these, relative to the path.
    pub include: Vec<String>,
    /// Not what matches these.
    pub exclude: Vec<String>,
    /// Something selected must begin with each of these.
    pub required: Vec<String>,
}

impl Opts {
    fn selects(&self) -> bool {
        self.wildcard || !self.include.is_empty() || !self.exclude.is_empty()
    }
}

/// Why there is no digest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is there.
    #[error("{path}: not found")]
    NotFound {
        /// The path, quoted.
        path: String,
    },
    /// A path goes through symlinks without end.
    #[error("too many links")]
    Links,
    /// A pattern cannot be read.
    #[error("invalid {what}: [{}]: {source}", .patterns.join(" "))]
    Pattern {
        /// `includepatterns` or `excludepatterns`.
        what: &'static str,
        /// All of them.
        patterns: Vec<String>,
        /// What is wrong.
        source: base::patterns::Error,
    },
    /// A pattern turns out to be unreadable when it is used.
    #[error("failed to match {what}: {source}")]
    Match {
        /// `includepatterns` or `excludepatterns`.
        what: &'static str,
        /// What is wrong.
        source: base::patterns::Error,
    },
    /// A wildcard cannot be read.
    #[error(transparent)]
    Wildcard(#[from] base::patterns::Error),
    /// A file is of a kind that has no digest.
    #[error("unknown file mode {mode:#o}")]
    Mode {
        /// As in [`crate::gomode`].
        mode: u32,
    },
    /// Kept records cannot be read.
    #[error("broken record of {path}")]
    Broken {
        /// The path, quoted.
        path: String,
    },
    /// Kept records are no protobuf.
    #[error("broken records: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// The tree cannot be read.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: String,
        /// Why not.
        source: sys::Error,
    },
    /// The same, where there is nothing to add.
    #[error(transparent)]
    Sys(#[from] sys::Error),
    /// The answer needs the tree itself.
    #[error("the tree is not at hand")]
    Unmounted,
}

impl Classify for Error {
    fn kind(&self) -> Code {
        match self {
            // Clients see no code with this in the reference: `NotFound` would be
            // put in front of the text, and be read as something else's.
            Self::NotFound { .. } => Code::Unknown,
            Self::Links | Self::Pattern { .. } | Self::Match { .. } | Self::Wildcard(_) => {
                Code::InvalidArgument
            }
            Self::Io { source, .. } | Self::Sys(source) => source.kind(),
            Self::Mode { .. } | Self::Broken { .. } | Self::Undecodable(_) | Self::Unmounted => {
                Code::Internal
            }
        }
    }
}

/// What is known of the contents of one directory tree.
///
/// All methods block: on the disk, and on one another.
#[derive(Debug, Default)]
pub struct ContentHash {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: Records,
    /// There is something new to keep.
    unsaved: bool,
}

impl ContentHash {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let records = Records::from_proto(CacheRecords::decode(bytes)?)?;
        Ok(Self { state: Mutex::new(State { records, unsaved: false }) })
    }

    /// Everything known, in the form `contenthash.CacheRecords`. None when a
    /// name in the tree is not UTF-8: there is no such form then.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        state.records.settle();
        state.unsaved = false;
        state.records.to_proto().map(|records| records.encode_to_vec())
    }

    /// Whether something was learnt since it was last encoded or decoded.
    pub fn is_unsaved(&self) -> bool {
        self.lock().unsaved
    }

    /// Takes in what a file-sync receiver did to `path`. Directories above it
    /// lose their digests; their own headers stay.
    pub fn change(&self, path: impl AsRef<Path>, change: Change) {
        let mut state = self.lock();
        state.records.change(path.as_ref().as_os_str().as_bytes(), change);
        state.unsaved = true;
    }

    /// Ends a transfer: what it said about hard links is of no use to the next.
    pub fn end_changes(&self) {
        let mut state = self.lock();
        state.records.settle();
        state.records.forget_links();
    }

    /// The digest of `path` if it can be told without the tree.
    ///
    /// # Errors
    /// As for [`Self::checksum`].
    pub fn known(&self, path: &str, opts: &Opts) -> Result<Option<Digest>, Error> {
        match self.lock().digest(None, path, opts) {
            Ok(digest) => Ok(Some(digest)),
            Err(Error::Unmounted) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The digest of `path` in the tree at `root`.
    ///
    /// Reads with at most [`MAX_THREADS`] threads.
    ///
    /// # Errors
    /// When there is no such path, a required one is missing, a pattern is
    /// malformed or the tree cannot be read.
    pub fn checksum(&self, root: &Root, path: &str, opts: &Opts) -> Result<Digest, Error> {
        self.lock().digest(Some(root), path, opts)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Records are only ever replaced whole, so a panic leaves no half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub use read::MAX_THREADS;

impl State {
    fn digest(&mut self, root: Option<&Root>, path: &str, opts: &Opts) -> Result<Digest, Error> {
        self.records.settle();
        if !opts.selects() {
            return self.whole(root, &join(&[], path.as_bytes()), opts.follow_links);
        }
        let (prefix, chosen) = self.select(root, path, opts)?;
        let mut digests = Vec::with_capacity(chosen.len());
        for item in &chosen {
            let record = self.records.tree.get(&item.key);
            let digest = if item.follow && record.is_some_and(|r| r.kind == Kind::Symlink) {
                self.whole(root, &join(&[], &item.path), opts.follow_links)?
            } else {
                record.and_then(|r| r.digest.clone()).ok_or_else(|| not_found(&item.key))?
            };
            digests.push(digest);
        }
        if let ([item], [digest]) = (&chosen[..], &digests[..])
            && last(path.as_bytes()) == last(&item.path)
        {
            return Ok(digest.clone());
        }
        if chosen.is_empty() {
            return Ok(Digest::of(""));
        }
        let mut hash = Hasher::new();
        for (item, digest) in chosen.iter().zip(digests) {
            match to_key(item.path.strip_prefix(&prefix[..]).unwrap_or(&item.path)) {
                key if key.is_empty() => hash.update([0]),
                key => hash.update(key),
            }
            hash.update(digest.as_str());
        }
        Ok(hash.finish())
    }

    /// The digest of one path, everything below included.
    fn whole(&mut self, root: Option<&Root>, path: &[u8], follow: bool) -> Result<Digest, Error> {
        let key = to_key(path);
        if let (_, Some(Record { digest: Some(digest), .. })) = self.records.find(&key, follow)? {
            return Ok(digest.clone());
        }
        if self.records.needs_scan(path, follow)? {
            self.scan(root, path, follow)?;
        }
        let (found, record) = self.records.find(&key, follow)?;
        let record = record.ok_or_else(|| not_found(&key))?;
        if let Some(digest) = &record.digest {
            return Ok(digest.clone());
        }
        let is_dir = record.kind == Kind::Dir;
        let mut wanted = BTreeSet::new();
        if is_dir {
            let below = [&found[..], &[0]].concat();
            for (key, record) in
                self.records.tree.range::<[u8], _>((Bound::Included(&below[..]), Bound::Unbounded))
            {
                if !key.starts_with(&below) {
                    break;
                }
                if record.digest.is_none() {
                    wanted.insert(key.clone());
                }
            }
        }
        wanted.insert(found.clone());
        self.fill(root, &wanted)?;
        self.records.tree.get(&found).and_then(|r| r.digest.clone()).ok_or_else(|| not_found(&found))
    }

    /// Gives each of these records, and none else, its digest. Directories need
    /// theirs below to be there or among them.
    fn fill(&mut self, root: Option<&Root>, wanted: &BTreeSet<Vec<u8>>) -> Result<(), Error> {
        if wanted.is_empty() {
            return Ok(());
        }
        let is_dir = |key: &Vec<u8>| self.records.tree.get(key).is_some_and(|r| r.kind == Kind::Dir);
        let (dirs, files): (Vec<_>, Vec<_>) = wanted.iter().partition(|key| is_dir(key));
        if !files.is_empty() {
            let digests = read::digests(root.ok_or(Error::Unmounted)?, &files)?;
            for (key, digest) in files.into_iter().zip(digests) {
                self.set(key, digest);
            }
        }
        // Backwards, what is below comes before what is above.
        for key in dirs.into_iter().rev() {
            let digest = self.directory(key)?;
            self.set(key, digest);
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], digest: Digest) {
        if let Some(record) = self.records.tree.get_mut(key) {
            record.digest = Some(digest);
            self.unsaved = true;
        }
    }

    /// The digest of a directory from those of its entries.
    fn directory(&self, key: &[u8]) -> Result<Digest, Error> {
        let mut hash = Hasher::new();
        let header = [key, &[0]].concat();
        let own = self.records.tree.get(&header).and_then(|r| r.digest.as_ref());
        hash.update([0]);
        hash.update(own.ok_or_else(|| not_found(&header))?.as_str());
        let mut from = Bound::Excluded(header.clone());
        while let Some((sub, record)) = self.records.next(from.as_ref().map(|k| &k[..])) {
            let Some(name) = sub.strip_prefix(key).filter(|_| sub.starts_with(&header)) else { break };
            hash.update(name);
            hash.update(record.digest.as_ref().ok_or_else(|| not_found(sub))?.as_str());
            from = match record.kind {
                // On behind what is in it. Names that begin with 0xff are
                // beyond the mark and count twice; so they do elsewhere.
                Kind::Dir => Bound::Included([&sub[..], &[0, 0xff]].concat()),
                _ => Bound::Excluded(sub.clone()),
            };
        }
        Ok(hash.finish())
    }

    /// Reads the names in the directory that holds `path`, and all below, into
    /// the records, and the symlinks on the way there.
    fn scan(&mut self, root: Option<&Root>, path: &[u8], follow: bool) -> Result<(), Error> {
        let root = root.ok_or(Error::Unmounted)?;
        let tree = &mut self.records.tree;
        let path = root.resolve_with(OsStr::from_bytes(path), follow, |at, target| {
            let link = target.as_os_str().as_bytes().to_vec();
            let key = to_key(at.as_os_str().as_bytes());
            tree.entry(key).or_insert(Record { kind: Kind::Symlink, digest: None, link });
        })?;
        read::names(root, path.parent().unwrap_or(&path), tree)
    }
}

fn not_found(key: &[u8]) -> Error {
    Error::NotFound { path: quote(&to_path(key)) }
}

fn quote(path: &[u8]) -> String {
    base::gotext::quote(&String::from_utf8_lossy(path))
}

/// The last name of a path, as Go's `path.Base`.
fn last(path: &[u8]) -> &[u8] {
    if path.is_empty() {
        return b".";
    }
    path.rsplit(|b| *b == b'/').find(|name| !name.is_empty()).unwrap_or(b"/")
}
