//! Images by name, in the daemon's own store.
//!
//! A name keeps the image's manifests, configs and those of its layers that
//! are here. Layers that were never needed are not fetched for it.

use base::{Descriptor, Digest, Timestamp};
use serde::{Deserialize, Serialize};
use store::{Result, Rows, Store};

const NAMES: Rows<Named> = Rows::new("images");

/// An image that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its root.
    pub descriptor: Descriptor,
    /// When it got the name.
    pub updated: Timestamp,
}

/// The names. Clones are the same.
#[derive(Clone)]
pub struct Images(Store);

impl Images {
    /// Those of `store`.
    pub fn new(store: Store) -> Self {
        Self(store)
    }

    /// Gives `name` to an image and keeps `blobs` for it. Another image loses
    /// the name.
    ///
    /// # Errors
    /// When a blob is not here, or the database refuses.
    pub fn set(&self, name: &str, image: &Named, blobs: &[Digest]) -> Result<()> {
        let owner = owner(name);
        self.0.db().write(|tx| {
            self.0.blobs().release(tx, &owner)?;
            for digest in blobs {
                self.0.blobs().hold(tx, &owner, digest)?;
            }
            NAMES.put(tx, name, image)
        })
    }

    /// The image of this name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<Named>> {
        self.0.db().read(|tx| NAMES.get(tx, name))
    }

    /// All names.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self) -> Result<Vec<(String, Named)>> {
        let rows = self.0.db().read(|tx| NAMES.all(tx))?;
        Ok(rows.into_iter().filter_map(|(name, row)| Some((name, row.ok()?))).collect())
    }

    /// Takes the name away; whether there was one.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn remove(&self, name: &str) -> Result<bool> {
        self.0.db().write(|tx| {
            self.0.blobs().release(tx, &owner(name))?;
            NAMES.delete(tx, name)
        })
    }
}

fn owner(name: &str) -> String {
    format!("image:{name}")
}
