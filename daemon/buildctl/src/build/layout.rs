//! OCI layouts on this side: which manifests they name, and what may go.

use std::collections::HashSet;
use std::io::{Seek, Write};
use std::path::Path;

use base::descriptor::media;
use base::{Descriptor, Digest, Failure, Kind};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use session::client::OciStore;

/// The full name of an image.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// The tag alone.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// How an image is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Tag(String),
    Image(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Index {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Descriptor>,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            schema_version: 2,
            media_type: media::OCI_INDEX.into(),
            manifests: Vec::new(),
            other: serde_json::Map::new(),
        }
    }
}

fn fail(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let text = format!("{verb} {}", path.display());
    move |e| {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Unknown };
        Failure::new(kind, format!("{text}: {e}"))
    }
}

fn read(root: &Path) -> Result<Index, Failure> {
    let path = root.join("index.json");
    let text = std::fs::read(&path).map_err(fail("could not read", &path))?;
    serde_json::from_slice(&text)
        .map_err(|e| Failure::invalid(format!("could not unmarshal {}: {e}", path.display())))
}

/// The manifest that `tag` names, by its full name or by its tag.
pub(super) fn find(root: &Path, tag: &str) -> Result<Option<Descriptor>, Failure> {
    let index = read(root)?;
    let by = |key: &str| {
        index.manifests.iter().find(|m| m.annotations.get(key).is_some_and(|v| v == tag)).cloned()
    };
    Ok(by(IMAGE_NAME).or_else(|| by(REF_NAME)))
}

/// Names a manifest; whatever had one of the names loses it. Others who do the
/// same at this time wait.
pub(super) fn put(root: &Path, descriptor: &Descriptor, names: &[Name]) -> Result<(), Failure> {
    let layout = root.join("oci-layout");
    std::fs::write(&layout, "{\"imageLayoutVersion\":\"1.0.0\"}")
        .map_err(fail("could not write", &layout))?;
    let path = root.join("index.json");
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(fail("could not open", &path))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|e| fail("could not lock", &path)(e.into()))?;
    let empty = file.metadata().map_err(fail("could not read", &path))?.len() == 0;
    let mut index = if empty { Index::default() } else { read(root)? };
    for name in names {
        insert(&mut index, descriptor, name);
    }
    let text = base::gojson::to_vec(&index).map_err(|e| Failure::internal(e.to_string()))?;
    let write =
        file.rewind().and_then(|()| file.write_all(&text)).and_then(|()| file.set_len(text.len() as u64));
    write.map_err(fail("could not write", &path))
}

fn insert(index: &mut Index, descriptor: &Descriptor, name: &Name) {
    let (image, reference) = match name {
        Name::Tag(tag) => ("", tag.as_str()),
        Name::Image(image) => (image.as_str(), tag_of(image)),
    };
    let annotation = |m: &Descriptor, key: &str| m.annotations.get(key).cloned().unwrap_or_default();
    index.manifests.retain(|m| annotation(m, REF_NAME) != reference || annotation(m, IMAGE_NAME) != image);
    let mut named = descriptor.clone();
    if !image.is_empty() {
        named.annotations.insert(IMAGE_NAME.into(), image.to_owned());
    }
    named.annotations.insert(REF_NAME.into(), reference.to_owned());
    index.manifests.push(named);
}

/// What stands behind the repository: the tag or digest.
fn tag_of(image: &str) -> &str {
    let Some((_, path)) = image.split_once('/') else { return image };
    match path.split_once('@') {
        Some((before, digest)) => match before.rsplit_once(':') {
            Some((_, _)) => &path[before.rfind(':').map_or(0, |at| at + 1)..],
            None => digest,
        },
        None => path.rsplit_once(':').map_or("", |(_, tag)| tag),
    }
}

/// Deletes blobs that no manifest of the index leads to.
pub(super) fn sweep(root: &Path, store: &OciStore) -> Result<usize, Failure> {
    let mut seen = HashSet::new();
    let mut todo: Vec<Descriptor> = read(root)?.manifests;
    while let Some(descriptor) = todo.pop() {
        if seen.insert(descriptor.digest.clone()) {
            todo.extend(children(store, &descriptor)?);
        }
    }
    let directory = root.join("blobs/sha256");
    let mut deleted = 0;
    for entry in std::fs::read_dir(&directory).map_err(fail("read", &directory))? {
        let entry = entry.map_err(fail("read", &directory))?;
        let Ok(digest) = format!("sha256:{}", entry.file_name().to_string_lossy()).parse::<Digest>() else {
            continue;
        };
        if !seen.contains(&digest) {
            std::fs::remove_file(entry.path()).map_err(fail("delete", &entry.path()))?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// What an index or manifest refers to.
fn children(store: &OciStore, descriptor: &Descriptor) -> Result<Vec<Descriptor>, Failure> {
    #[derive(Deserialize)]
    struct Refers {
        #[serde(default)]
        manifests: Vec<Descriptor>,
        config: Option<Descriptor>,
        #[serde(default)]
        layers: Vec<Descriptor>,
    }
    if !media::is_index(&descriptor.media_type) && !media::is_manifest(&descriptor.media_type) {
        return Ok(Vec::new());
    }
    let path = store.path(&descriptor.digest);
    let text = std::fs::read(&path).map_err(fail("read", &path))?;
    let refers: Refers = serde_json::from_slice(&text)
        .map_err(|e| Failure::invalid(format!("{} is no manifest: {e}", descriptor.digest)))?;
    Ok(refers.manifests.into_iter().chain(refers.config).chain(refers.layers).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_manifests() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = |text: &str| Descriptor::new(media::OCI_MANIFEST, Digest::of(text), 1);
        put(dir.path(), &manifest("a"), &[Name::Tag("latest".into())]).unwrap();
        put(dir.path(), &manifest("b"), &[Name::Image("example.com/x/y:1".into())]).unwrap();
        put(dir.path(), &manifest("c"), &[Name::Tag("latest".into())]).unwrap();
        let digest = |tag| find(dir.path(), tag).unwrap().map(|d| d.digest);
        assert_eq!(digest("latest"), Some(Digest::of("c")));
        assert_eq!(digest("example.com/x/y:1"), Some(Digest::of("b")));
        assert_eq!(digest("1"), Some(Digest::of("b")));
        assert_eq!(digest("none"), None);
        assert_eq!(read(dir.path()).unwrap().manifests.len(), 2);
        assert!(dir.path().join("oci-layout").exists());
    }

    #[test]
    fn tags_are_found() {
        assert_eq!(tag_of("example.com/x/y:1"), "1");
        assert_eq!(tag_of("example.com:80/x/y"), "");
        let digest = Digest::of("x");
        assert_eq!(tag_of(&format!("example.com/x@{digest}")), digest.as_str());
    }

    #[test]
    fn only_what_is_not_needed_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = OciStore::open(dir.path(), true).unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        let keep = |text: &str| {
            let digest = Digest::of(text);
            std::fs::write(store.path(&digest), text).unwrap();
            digest
        };
        let layer = keep("layer");
        let junk = keep("junk");
        let text = serde_json::json!({"layers": [Descriptor::new("x", layer.clone(), 5)]}).to_string();
        let manifest = keep(&text);
        put(dir.path(), &Descriptor::new(media::OCI_MANIFEST, manifest, 1), &[Name::Tag("latest".into())])
            .unwrap();
        assert_eq!(sweep(dir.path(), &store).unwrap(), 1);
        assert!(store.path(&layer).exists() && !store.path(&junk).exists());
    }
}
