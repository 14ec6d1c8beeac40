//! Looks into what exporters wrote: tar files and OCI layouts.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use tar::{Archive, EntryType};

/// An entry of a tar file.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: EntryType,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u64, u64),
    /// A file's content.
    pub data: Vec<u8>,
}

/// Entries by path.
pub type Entries = BTreeMap<String, Entry>;

/// The entries of a tar file by path, without leading `./` and trailing `/`.
///
/// # Errors
/// When it is no tar file.
pub fn entries(bytes: &[u8]) -> Result<Entries> {
    let mut plain = Vec::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        MultiGzDecoder::new(bytes).read_to_end(&mut plain)?;
    } else {
        plain = bytes.to_vec();
    }
    let mut found = BTreeMap::new();
    for entry in Archive::new(plain.as_slice()).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().trim_start_matches("./").trim_end_matches('/').to_owned();
        let header = entry.header();
        let (kind, mode, owner) = (header.entry_type(), header.mode()?, (header.uid()?, header.gid()?));
        let mut data = Vec::new();
        entry.read_to_end(&mut data)?;
        found.insert(path, Entry { kind, mode, owner, data });
    }
    Ok(found)
}

/// An OCI layout in a tar file.
pub struct Layout(Entries);

impl Layout {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self(entries(&bytes)?))
    }

    /// A JSON file in it.
    ///
    /// # Errors
    /// When it is not there or not JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        let entry = self.0.get(path).with_context(|| format!("no {path} in {:?}", self.0.keys()))?;
        Ok(serde_json::from_slice(&entry.data)?)
    }

    /// The bytes a descriptor points to; their digest is checked.
    ///
    /// # Errors
    /// When they are not there, or others.
    pub fn blob(&self, descriptor: &Value) -> Result<&[u8]> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        let path = format!("blobs/{}", digest.replace(':', "/"));
        let data = &self.0.get(&path).with_context(|| format!("no {path}"))?.data;
        anyhow::ensure!(crate::image::digest(data) == digest, "{path} has other bytes");
        anyhow::ensure!(descriptor["size"].as_u64() == Some(data.len() as u64), "{path} has another size");
        Ok(data)
    }

    /// The manifest of the first image, its config, and its layers' entries.
    ///
    /// # Errors
    /// When something of it is missing.
    pub fn image(&self) -> Result<(Value, Value, Vec<Entries>)> {
        let mut manifest: Value =
            serde_json::from_slice(self.blob(&self.json("index.json")?["manifests"][0])?)?;
        if manifest["manifests"].is_array() {
            manifest = serde_json::from_slice(self.blob(&manifest["manifests"][0])?)?;
        }
        let config = serde_json::from_slice(self.blob(&manifest["config"])?)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        let layers = layers.iter().map(|l| entries(self.blob(l)?)).collect::<Result<_>>()?;
        Ok((manifest, config, layers))
    }
}
