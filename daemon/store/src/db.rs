//! The one database: tables of bytes by bytes, and transactions over all of them.
//!
//! One file, so that a result, its snapshot, its blobs and its keys can become
//! visible in one step. Every crate names its own tables; this module knows
//! only `meta`, which holds the version of the schema. Values are JSON where a
//! person may want to read them ([`Rows`]), or whatever the owner likes.
//!
//! A file of a later schema is refused. One that cannot be read is moved to
//! `.bak` and a new one begun: everything in it can be built again.

use std::fs::{File, Permissions};
use std::marker::PhantomData;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The version of the tables' layout. Raise it when an older program would
/// misread what a newer one wrote.
const SCHEMA: u64 = 1;

const META: Table = Table("meta");

/// Pages kept in memory, bytes.
const CACHE: usize = 64 << 20;

/// A table of bytes by bytes, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table(pub &'static str);

impl Table {
    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.0)
    }
}

/// The one database. Clones are the same.
#[derive(Clone)]
pub struct Db(Arc<redb::Database>);

impl Db {
    /// Opens the file, or begins one.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let db = match open_file(path) {
            Ok(db) => db,
            Err(e) if is_corrupt(&e) => {
                let backup = backup_path(path);
                tracing::error!(error = %e, backup = %backup.display(), "database is unreadable, beginning a new one");
                std::fs::rename(path, &backup).map_err(Error::io("back up", path))?;
                open_file(path).map_err(Error::db("open"))?
            }
            Err(e) => return Err(Error::db("open")(e)),
        };
        let db = Self(Arc::new(db));
        db.check_schema(path)?;
        Ok(db)
    }

    fn check_schema(&self, path: &Path) -> Result<()> {
        let found = self.read(|tx| tx.get(META, b"schema"))?;
        match found.map(|v| v.try_into().map(u64::from_le_bytes)) {
            None => self.write(|tx| tx.put(META, b"schema", &SCHEMA.to_le_bytes())),
            Some(Ok(version)) if version <= SCHEMA => Ok(()),
            Some(Ok(version)) => Err(Error::Newer { path: path.to_owned(), found: version, known: SCHEMA }),
            Some(Err(_)) => {
                Err(Error::Row { table: META.0, key: "schema".into(), reason: "not eight bytes".into() })
            }
        }
    }

    /// Reads one consistent state.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<T, E: From<Error>>(&self, read: impl FnOnce(&ReadTx) -> Result<T, E>) -> Result<T, E> {
        read(&ReadTx(self.0.begin_read().map_err(Error::db("read"))?))
    }

    /// All of `write`, or nothing; on disk when it returns. Blocks, also for
    /// other writers: do not call it from within `write`.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write<T, E: From<Error>>(&self, write: impl FnOnce(&WriteTx) -> Result<T, E>) -> Result<T, E> {
        self.write_as(Durability::Immediate, write)
    }

    /// As [`Self::write`], on disk with the next [`Self::write`]: what is lost
    /// by a kill in between must not matter.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write_lazily<T, E: From<Error>>(
        &self,
        write: impl FnOnce(&WriteTx) -> Result<T, E>,
    ) -> Result<T, E> {
        self.write_as(Durability::None, write)
    }

    fn write_as<T, E: From<Error>>(
        &self,
        durability: Durability,
        write: impl FnOnce(&WriteTx) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tx = self.0.begin_write().map_err(Error::db("write"))?;
        tx.set_durability(durability).map_err(Error::db("write"))?;
        let tx = WriteTx(tx);
        match write(&tx) {
            Ok(value) => {
                tx.0.commit().map_err(Error::db("commit"))?;
                Ok(value)
            }
            Err(e) => {
                tx.0.abort().map_err(Error::db("abort"))?;
                Err(e)
            }
        }
    }
}

fn open_file(path: &Path) -> Result<redb::Database, redb::Error> {
    // Root's alone, also where others may pass through the directory.
    let private = File::options().write(true).create(true).truncate(false).mode(0o600).open(path);
    private.and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))?;
    // A damaged page can trip an assertion in there; that is damage too.
    let open = || redb::Database::builder().set_cache_size(CACHE).create(path);
    match std::panic::catch_unwind(open) {
        Ok(result) => Ok(result?),
        Err(_) => Err(redb::Error::Corrupted("inconsistent pages".into())),
    }
}

fn is_corrupt(error: &redb::Error) -> bool {
    use std::io::ErrorKind as E;
    match error {
        redb::Error::Corrupted(_) | redb::Error::RepairAborted | redb::Error::UpgradeRequired(_) => true,
        redb::Error::Io(e) => matches!(e.kind(), E::InvalidData | E::UnexpectedEof),
        _ => false,
    }
}

fn backup_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".bak");
    name.into()
}

/// One consistent state of the database.
pub struct ReadTx(redb::ReadTransaction);

/// Changes that happen together.
pub struct WriteTx(redb::WriteTransaction);

/// What both kinds of transaction read with.
pub trait Read {
    /// The value of `key`.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Calls `each` with every key that begins with `prefix`, in order, until
    /// it gives false.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn scan(&self, table: Table, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()>;

    /// The keys that begin with `prefix`, in order.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn keys(&self, table: Table, prefix: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        self.scan(table, prefix, &mut |key, _| {
            keys.push(key.to_vec());
            true
        })?;
        Ok(keys)
    }
}

fn scan_table(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
    each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<()> {
    for row in table.range::<&[u8]>(prefix..).map_err(Error::db("read"))? {
        let (key, value) = row.map_err(Error::db("read"))?;
        if !key.value().starts_with(prefix) || !each(key.value(), value.value()) {
            break;
        }
    }
    Ok(())
}

impl Read for ReadTx {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let table = match self.0.open_table(table.definition()) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            other => other.map_err(Error::db("read"))?,
        };
        Ok(table.get(key).map_err(Error::db("read"))?.map(|v| v.value().to_vec()))
    }

    fn scan(&self, table: Table, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        match self.0.open_table(table.definition()) {
            Err(TableError::TableDoesNotExist(_)) => Ok(()),
            other => scan_table(&other.map_err(Error::db("read"))?, prefix, each),
        }
    }
}

impl Read for WriteTx {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let table = self.0.open_table(table.definition()).map_err(Error::db("read"))?;
        Ok(table.get(key).map_err(Error::db("read"))?.map(|v| v.value().to_vec()))
    }

    fn scan(&self, table: Table, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        scan_table(&self.0.open_table(table.definition()).map_err(Error::db("read"))?, prefix, each)
    }
}

impl WriteTx {
    /// Sets `key`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        let mut table = self.0.open_table(table.definition()).map_err(Error::db("write"))?;
        table.insert(key, value).map_err(Error::db("write"))?;
        Ok(())
    }

    /// Removes `key`; whether it was there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn delete(&self, table: Table, key: &[u8]) -> Result<bool> {
        let mut table = self.0.open_table(table.definition()).map_err(Error::db("write"))?;
        Ok(table.remove(key).map_err(Error::db("write"))?.is_some())
    }

    /// Removes all keys that begin with `prefix`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn delete_prefix(&self, table: Table, prefix: &[u8]) -> Result<()> {
        for key in self.keys(table, prefix)? {
            self.delete(table, &key)?;
        }
        Ok(())
    }
}

/// A table of JSON values by text.
pub struct Rows<V> {
    table: Table,
    value: PhantomData<fn() -> V>,
}

impl<V> Clone for Rows<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Rows<V> {}

impl<V: Serialize + DeserializeOwned> Rows<V> {
    /// The table of this name.
    pub const fn new(name: &'static str) -> Self {
        Self { table: Table(name), value: PhantomData }
    }

    /// The same table as bytes.
    pub const fn table(self) -> Table {
        self.table
    }

    fn parse(self, key: &[u8], value: &[u8]) -> Result<V> {
        serde_json::from_slice(value).map_err(|e| self.bad(key, e.to_string()))
    }

    fn bad(self, key: &[u8], reason: String) -> Error {
        Error::Row { table: self.table.0, key: String::from_utf8_lossy(key).into_owned(), reason }
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`Error::Row`] when it does not parse.
    pub fn get(self, tx: &impl Read, key: &str) -> Result<Option<V>> {
        tx.get(self.table, key.as_bytes())?.map(|v| self.parse(key.as_bytes(), &v)).transpose()
    }

    /// Sets `key`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(self, tx: &WriteTx, key: &str, value: &V) -> Result<()> {
        let json = serde_json::to_vec(value).map_err(|e| self.bad(key.as_bytes(), e.to_string()))?;
        tx.put(self.table, key.as_bytes(), &json)
    }

    /// Removes `key`; whether it was there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn delete(self, tx: &WriteTx, key: &str) -> Result<bool> {
        tx.delete(self.table, key.as_bytes())
    }

    /// All rows, by key. Rows that do not parse are given as errors beside
    /// their keys, so that the owner can drop them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn all(self, tx: &impl Read) -> Result<Vec<(String, Result<V>)>> {
        let mut rows = Vec::new();
        tx.scan(self.table, b"", &mut |key, value| {
            rows.push((String::from_utf8_lossy(key).into_owned(), self.parse(key, value)));
            true
        })?;
        Ok(rows)
    }
}
