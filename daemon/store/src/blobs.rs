//! Blobs by digest: written once, verified, held by names, collected.
//!
//! A blob stays while an owner holds it, which is a row in the database and
//! goes with the owner's own transaction ([`Blobs::hold`]), or while somebody
//! has a [`Pin`], which ends with the process. [`Blobs::collect`] removes the
//! rest.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::digest::{Hasher, hex};
use base::{Digest, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::db::{Db, Read, Rows, Table, WriteTx};
use crate::{Error, Result, fail};

pub(crate) const BLOBS: Rows<BlobRow> = Rows::new("blobs");
/// `digest NUL owner`.
const HELD: Table = Table("blobs.held");
/// `owner NUL digest`.
const HOLDS: Table = Table("blobs.holds");

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BlobRow {
    pub(crate) size: u64,
    pub(crate) created: Timestamp,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

/// A blob that is here.
#[derive(Debug, Clone)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// When it came.
    pub created: Timestamp,
    /// What was noted about it.
    pub labels: BTreeMap<String, String>,
}

/// Blobs by digest. Clones are the same.
#[derive(Clone)]
pub struct Blobs(Arc<Inner>);

struct Inner {
    root: PathBuf,
    db: Db,
    sync: bool,
    fail: fail::Points,
    /// Who is pinned how often. Also the lock under which a name appears in or
    /// disappears from the directory, so that a blob that is collected and one
    /// that arrives again do not meet halfway.
    pins: Mutex<HashMap<Digest, usize>>,
}

pub(crate) fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    // Both parts were checked when the digest was parsed.
    root.join("content/blobs").join(digest.algorithm()).join(digest.hex())
}

impl Blobs {
    pub(crate) fn open(root: &Path, sync: bool, db: Db, fail: fail::Points) -> Self {
        Self(Arc::new(Inner { root: root.to_owned(), db, sync, fail, pins: Mutex::default() }))
    }

    /// What is known of a blob, if it is here.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        let row = self.0.db.read(|tx| BLOBS.get(tx, digest.as_str()))?;
        Ok(row.map(|row| BlobInfo {
            digest: digest.clone(),
            size: row.size,
            created: row.created,
            labels: row.labels,
        }))
    }

    /// All blobs.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self) -> Result<Vec<BlobInfo>> {
        let rows = self.0.db.read(|tx| BLOBS.all(tx))?;
        Ok(rows
            .into_iter()
            .filter_map(|(key, row)| {
                let (digest, row) = (key.parse().ok()?, row.ok()?);
                Some(BlobInfo { digest, size: row.size, created: row.created, labels: row.labels })
            })
            .collect())
    }

    /// Where a blob's bytes are.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        blob_path(&self.0.root, digest)
    }

    /// A directory without anything in it.
    pub(crate) fn nothing(&self) -> PathBuf {
        self.0.root.join("empty")
    }

    /// Opens a blob for reading. Pin it first when it may be collected.
    ///
    /// # Errors
    /// [`Error::NoBlob`].
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.path(digest);
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::NoBlob { digest: digest.clone() }),
            other => other.map_err(Error::io("open", &path)),
        }
    }

    /// A whole blob, if it has no more than `limit` bytes.
    ///
    /// # Errors
    /// [`Error::NoBlob`], or [`Error::Mismatch`] when it is larger.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.open_blob(digest)?;
        let path = self.path(digest);
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
        if bytes.len() as u64 > limit {
            return Err(Error::Mismatch {
                what: "size",
                expected: format!("at most {limit}"),
                found: "more".into(),
            });
        }
        Ok(bytes)
    }

    /// Keeps a blob while the guard is held; `None` when it is not here.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn pin(&self, digest: &Digest) -> Result<Option<Pin>> {
        // Pinned first: from now on it cannot go away.
        let pin = self.pin_name(digest);
        Ok(self.info(digest)?.map(|info| pin.sized(info.size)))
    }

    fn pin_name(&self, digest: &Digest) -> PinName {
        *self.0.pins.lock().entry(digest.clone()).or_default() += 1;
        PinName { blobs: self.clone(), digest: digest.clone() }
    }

    /// Notes `labels` about a blob beside those it has; an empty value removes one.
    ///
    /// # Errors
    /// [`Error::NoBlob`].
    pub fn label(&self, tx: &WriteTx, digest: &Digest, labels: &BTreeMap<String, String>) -> Result<()> {
        let mut row =
            BLOBS.get(tx, digest.as_str())?.ok_or_else(|| Error::NoBlob { digest: digest.clone() })?;
        merge_labels(&mut row.labels, labels);
        BLOBS.put(tx, digest.as_str(), &row)
    }

    /// Keeps a blob until `owner` lets it go.
    ///
    /// # Errors
    /// [`Error::NoBlob`].
    pub fn hold(&self, tx: &WriteTx, owner: &str, digest: &Digest) -> Result<()> {
        if BLOBS.get(tx, digest.as_str())?.is_none() {
            return Err(Error::NoBlob { digest: digest.clone() });
        }
        tx.put(HELD, &pair(digest.as_str(), owner), b"")?;
        tx.put(HOLDS, &pair(owner, digest.as_str()), b"")
    }

    /// Lets all go that `owner` holds.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn release(&self, tx: &WriteTx, owner: &str) -> Result<()> {
        for digest in self.held_by(tx, owner)? {
            tx.delete(HELD, &pair(digest.as_str(), owner))?;
        }
        tx.delete_prefix(HOLDS, &pair(owner, ""))
    }

    /// What `owner` holds.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn held_by(&self, tx: &impl Read, owner: &str) -> Result<Vec<Digest>> {
        let prefix = pair(owner, "");
        let keys = tx.keys(HOLDS, &prefix)?;
        let text = |key: Vec<u8>| String::from_utf8(key.get(prefix.len()..)?.to_vec()).ok();
        Ok(keys.into_iter().filter_map(|key| text(key)?.parse().ok()).collect())
    }

    /// Who holds `digest`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn holders(&self, tx: &impl Read, digest: &Digest) -> Result<Vec<String>> {
        let prefix = pair(digest.as_str(), "");
        let keys = tx.keys(HELD, &prefix)?;
        Ok(keys
            .into_iter()
            .filter_map(|key| String::from_utf8(key.get(prefix.len()..)?.to_vec()).ok())
            .collect())
    }

    /// Removes the blobs nobody holds or has pinned; the bytes that were freed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn collect(&self) -> Result<u64> {
        let mut freed = 0;
        for blob in self.list()? {
            if self.remove_unheld(&blob.digest)? {
                freed += blob.size;
            }
        }
        Ok(freed)
    }

    fn remove_unheld(&self, digest: &Digest) -> Result<bool> {
        let (root, path) = (&self.0.root, self.path(digest));
        let pins = self.0.pins.lock();
        if pins.contains_key(digest) {
            return Ok(false);
        }
        let removed = self.0.db.write_lazily(|tx| {
            if !self.holders(tx, digest)?.is_empty() {
                return Ok(false);
            }
            BLOBS.delete(tx, digest.as_str())
        })?;
        if removed {
            crate::throw_away(root, &path)?;
        }
        drop(pins);
        Ok(removed)
    }

    /// Begins a new blob.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn ingest(&self) -> Result<Ingest> {
        let path = self.0.root.join("content/ingest").join(base::id::fresh());
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        Ok(Ingest { blobs: self.clone(), path: Some(path), file, hasher: Hasher::new(), size: 0 })
    }

    /// A blob of these bytes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, bytes: &[u8], labels: BTreeMap<String, String>) -> Result<Pin> {
        let mut ingest = self.ingest()?;
        ingest.write_all(bytes).map_err(Error::io("write", self.0.root.join("content/ingest")))?;
        ingest.commit(None, labels)
    }
}

fn pair(a: &str, b: &str) -> Vec<u8> {
    [a.as_bytes(), b"\0", b.as_bytes()].concat()
}

fn merge_labels(into: &mut BTreeMap<String, String>, new: &BTreeMap<String, String>) {
    for (key, value) in new {
        if value.is_empty() {
            into.remove(key);
        } else {
            into.insert(key.clone(), value.clone());
        }
    }
}

struct PinName {
    blobs: Blobs,
    digest: Digest,
}

impl PinName {
    fn sized(self, size: u64) -> Pin {
        Pin(Arc::new((self, size)))
    }
}

impl Drop for PinName {
    fn drop(&mut self) {
        let mut pins = self.blobs.0.pins.lock();
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

/// Keeps a blob from being collected while it is held.
#[derive(Clone)]
pub struct Pin(Arc<(PinName, u64)>);

impl Pin {
    /// The blob.
    pub fn digest(&self) -> &Digest {
        &self.0.0.digest
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.0.1
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// [`Error::NoBlob`] when somebody deleted the file behind our back.
    pub fn open(&self) -> Result<File> {
        self.0.0.blobs.open_blob(self.digest())
    }
}

/// A blob in the making: an [`std::io::Write`]. Dropped, it leaves nothing.
pub struct Ingest {
    blobs: Blobs,
    /// Taken when it was renamed.
    path: Option<PathBuf>,
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Ingest {
    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Gives the blob its name, when it is the one that was `expected`.
    ///
    /// # Errors
    /// [`Error::Mismatch`]; nothing is left then.
    pub fn commit(
        mut self,
        expected: Option<(&Digest, u64)>,
        labels: BTreeMap<String, String>,
    ) -> Result<Pin> {
        let Some(path) = self.path.clone() else { return Err(Error::Canceled) };
        let mut digest = std::mem::take(&mut self.hasher).finish();
        if let Some((wanted, size)) = expected {
            if size != self.size {
                return Err(mismatch("size", size, self.size));
            }
            if wanted.algorithm() != digest.algorithm() {
                digest = rehash(&path, wanted.algorithm())?;
            }
            if *wanted != digest {
                return Err(mismatch("digest", wanted, digest));
            }
        }
        let inner = self.blobs.0.clone();
        if inner.sync {
            self.file.sync_data().map_err(Error::io("sync", &path))?;
        }
        inner.fail.pass("blob.verified")?;
        let pin = self.blobs.pin_name(&digest);
        let to = self.blobs.path(&digest);
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        {
            let _names = inner.pins.lock();
            fs::rename(&path, &to).map_err(Error::io("name", &to))?;
            self.path = None;
            inner.fail.pass("blob.named")?;
            inner.db.write_lazily(|tx| {
                let mut row = BLOBS.get(tx, digest.as_str())?.unwrap_or_else(|| BlobRow {
                    size: self.size,
                    created: Timestamp::now(),
                    labels: BTreeMap::new(),
                });
                merge_labels(&mut row.labels, &labels);
                BLOBS.put(tx, digest.as_str(), &row)
            })?;
        }
        Ok(pin.sized(self.size))
    }
}

fn mismatch(what: &'static str, expected: impl ToString, found: impl ToString) -> Error {
    Error::Mismatch { what, expected: expected.to_string(), found: found.to_string() }
}

/// The digest of a file in one of the rarer algorithms.
fn rehash(path: &Path, algorithm: &str) -> Result<Digest> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let sum = match algorithm {
        "sha384" => sum_file::<sha2::Sha384>(&mut file),
        _ => sum_file::<sha2::Sha512>(&mut file),
    }
    .map_err(Error::io("read", path))?;
    let text = format!("{algorithm}:{}", hex(&sum));
    text.parse().map_err(|_| mismatch("digest", "sha256, sha384 or sha512", algorithm))
}

fn sum_file<D: sha2::Digest>(file: &mut File) -> io::Result<Vec<u8>> {
    let mut hasher = D::new();
    let mut buf = vec![0; 128 << 10];
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(hasher.finalize().to_vec()),
            n => hasher.update(buf.get(..n).unwrap_or_default()),
        }
    }
}

impl Write for Ingest {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            // The next start would find it anyway.
            _ = fs::remove_file(path);
        }
    }
}
