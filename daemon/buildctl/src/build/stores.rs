//! Directories that are image layouts: local caches, and images kept for other builds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base::{Descriptor, Digest, Failure, gotext};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use session::client::{Attachables, OciStore};

use super::options::{Attrs, Place};
use super::{Plan, layout};

/// Directories whose indexes are written when the build has ended.
#[derive(Default)]
pub(super) struct Layouts {
    /// Caches, with the tag.
    caches: Vec<(PathBuf, String)>,
    /// Caches of which the rest goes away.
    swept: Vec<(PathBuf, OciStore)>,
    /// Images.
    images: Vec<PathBuf>,
}

/// Gives the daemon the plan's local caches and image layouts as stores.
///
/// # Errors
/// A cache or layout that is incomplete or cannot be opened. A cache to read that is not there
/// yet is taken out of the plan.
pub(super) fn attach(plan: &mut Plan, attachables: &mut Attachables) -> Result<Layouts, Failure> {
    let mut layouts = Layouts::default();
    for entry in &plan.cache_exports {
        let attr = |key: &str| entry.attrs.get(key).map(String::as_str);
        match entry.kind.as_str() {
            "local" => {
                let dest = attr("dest").filter(|d| !d.is_empty());
                let dest = dest.ok_or_else(|| Failure::invalid("local cache exporter requires dest"))?;
                let store = OciStore::open(Path::new(dest), true)?;
                let tag = attr("tag").unwrap_or("latest").to_owned();
                if let Some(reset) = attr("reset") {
                    let reset = gotext::parse_bool(reset).ok_or_else(|| {
                        Failure::invalid(format!("failed to parse reset attribute {reset}"))
                    })?;
                    if reset {
                        layouts.swept.push((dest.into(), store.clone()));
                    }
                }
                layouts.caches.push((dest.into(), tag));
                attachables.store(format!("local:{dest}"), store);
            }
            "registry" if attr("ref").unwrap_or_default().is_empty() => {
                return Err(Failure::invalid("registry cache exporter requires ref"));
            }
            _ => {}
        }
    }
    let mut imports = Vec::new();
    for mut entry in std::mem::take(&mut plan.cache_imports) {
        match entry.kind.as_str() {
            "local" => match local_import(&entry.attrs)? {
                Some((store, digest)) => {
                    let src = entry.attrs.get("src").cloned().unwrap_or_default();
                    attachables.store(format!("local:{src}"), store);
                    entry.attrs.insert("digest".into(), digest);
                }
                // Said already: a build without this cache is still a build.
                None => continue,
            },
            "registry" if entry.attrs.get("ref").is_none_or(String::is_empty) => {
                return Err(Failure::invalid("registry cache importer requires ref"));
            }
            _ => {}
        }
        imports.push(entry);
    }
    plan.cache_imports = imports;
    for (_, place) in &plan.exports {
        if let Place::Store(path) = place {
            if !layouts.images.is_empty() {
                return Err(Failure::invalid("oci store key \"export\" already exists"));
            }
            attachables.store("export", OciStore::open(path, true)?);
            layouts.images.push(path.clone());
        }
    }
    Ok(layouts)
}

/// The store and the digest of a local cache; `None` when there is none yet.
fn local_import(attrs: &Attrs) -> Result<Option<(OciStore, String)>, Failure> {
    let src = attrs.get("src").filter(|s| !s.is_empty());
    let src = src.ok_or_else(|| Failure::invalid("local cache importer requires src"))?;
    let skip = |why: &dyn std::fmt::Display| {
        tracing::warn!("local cache import at {src} skipped: {why}");
        Ok(None)
    };
    let store = match OciStore::open(Path::new(src), false) {
        Ok(store) => store,
        Err(e) => return skip(&Failure::from(e)),
    };
    let digest = match attrs.get("digest").filter(|d| !d.is_empty()) {
        Some(digest) => digest.clone(),
        None => {
            let tag = attrs.get("tag").map_or("latest", String::as_str);
            match layout::find(Path::new(src), tag) {
                Ok(Some(descriptor)) => descriptor.digest.to_string(),
                Ok(None) => return skip(&format!("no digest found for tag {tag}")),
                Err(e) => return skip(&e),
            }
        }
    };
    match digest.parse::<Digest>() {
        Ok(parsed) if store.path(&parsed).exists() => Ok(Some((store, digest))),
        _ => skip(&format!("digest {digest} unavailable")),
    }
}

impl Layouts {
    /// Writes the indexes.
    ///
    /// # Errors
    /// When the daemon's answer makes no sense, or the disk refuses.
    pub(super) fn finish(&self, response: &BTreeMap<String, String>) -> Result<(), Failure> {
        let parse = |text: &[u8]| {
            serde_json::from_slice::<Descriptor>(text)
                .map_err(|e| Failure::invalid(format!("the daemon answered with no descriptor: {e}")))
        };
        if let Some(text) = response.get("cache.manifest").filter(|t| !t.is_empty()) {
            let descriptor = parse(text.as_bytes())?;
            for (path, tag) in &self.caches {
                layout::put(path, &descriptor, &[layout::Name::Tag(tag.clone())])?;
            }
        }
        if let Some(text) = response.get("containerimage.descriptor").filter(|t| !t.is_empty()) {
            let json =
                STANDARD.decode(text).map_err(|e| Failure::invalid(format!("bad image descriptor: {e}")))?;
            let descriptor = parse(&json)?;
            let names = match response.get("image.name") {
                Some(names) => names.split(',').map(|n| layout::Name::Image(n.to_owned())).collect(),
                None => vec![layout::Name::Tag("latest".into())],
            };
            for path in &self.images {
                layout::put(path, &descriptor, &names)?;
            }
        }
        for (path, store) in &self.swept {
            match layout::sweep(path, store) {
                Ok(count) => tracing::debug!("deleted {count} blobs of {}", path.display()),
                Err(e) => tracing::warn!("failed to reset cache store: {e}"),
            }
        }
        Ok(())
    }
}
