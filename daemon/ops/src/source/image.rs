//! `docker-image://` and `oci-layout://`: images in registries, and in layouts
//! that a client serves.
//!
//! An image is keyed twice: by its manifest, and by the chain of its layers, so
//! that two manifests of the same layers find the same result. Layers stay
//! where they are until somebody needs their files.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use base::once::Flight;
use base::{Descriptor, Digest, Failure, Platform, Timestamp, gojson};
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use proto::pb;
use refs::{BlobSource, Bytes, Layer, RecordType, Ref};
use registry::{Access, Chain, Reference, Registries};
use serde::{Deserialize, Serialize};
use session::Sessions;
use solver::{CacheMap, Operation};
use store::{Read as _, Store, Table};

use super::Attrs;
use super::credentials::SessionCredentials;
use super::layout::{Layout, LayoutBlobs};
use crate::used::Material;
use crate::worker::sessions;
use crate::{Cx, Error, Output, Worker};

const SCHEME: &str = "docker-image://";
const LAYOUT_SCHEME: &str = "oci-layout://";
/// Where a result says which image it was pulled as.
const ORIGIN: &str = "image.origin";
/// What is known of images by manifest, repository and platform.
const KNOWN: Table = Table("image-manifests");
/// So many are remembered; then it begins anew.
const MAX_KNOWN: usize = 1024;

/// Images in registries, on behalf of builds. What was learnt is remembered.
pub struct Images {
    registries: Registries,
    sessions: Sessions,
    store: Store,
    salt: [u8; 32],
    known: Mutex<BTreeMap<String, Arc<Image>>>,
    resolving: Flight<String, Arc<Image>>,
}

/// An image for one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// What the name stands for: a manifest or an index.
    pub root: Descriptor,
    /// The manifest.
    pub manifest: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The config, byte for byte.
    #[serde(with = "text")]
    pub config: Vec<u8>,
}

/// Configs are JSON, hence text.
mod text {
    use serde::{Deserialize as _, Deserializer, Serializer, de, ser};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(std::str::from_utf8(bytes).map_err(ser::Error::custom)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        String::deserialize(d).map(String::into_bytes).map_err(de::Error::custom)
    }
}

/// Where an image is.
#[derive(Debug, Clone)]
enum Place {
    Registry(Reference),
    /// In a layout only the digest counts; the name is for people.
    Layout {
        layout: Layout,
        name: String,
        digest: Digest,
    },
}

impl Place {
    /// The digest of what is meant, if the place says.
    fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry(reference) => reference.digest(),
            Self::Layout { digest, .. } => Some(digest),
        }
    }

    /// What is noted of a result, so that its layers can be had in a later build.
    /// Sessions end with their build, so that only the store's name is kept.
    fn origin(&self) -> String {
        match self {
            Self::Registry(reference) => reference.to_string(),
            Self::Layout { layout, .. } => format!("{LAYOUT_SCHEME}{}", layout.store()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout { name, .. } => f.write_str(name),
        }
    }
}

/// Which image is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    place: Place,
    platform: Platform,
    checksum: Option<String>,
}

impl Wanted {
    /// Reads a source operation.
    ///
    /// # Errors
    /// When it names no image.
    pub fn parse(op: &pb::SourceOp, platform: &Platform) -> Result<Self, Failure> {
        let attrs = Attrs::new(op);
        let place = if let Some(name) = op.identifier.strip_prefix(SCHEME) {
            Place::Registry(registry::parse(name)?.tag_name_only())
        } else if let Some(name) = op.identifier.strip_prefix(LAYOUT_SCHEME) {
            let no_digest = || Failure::invalid(format!("reference {name:?} must have digest"));
            let (_, digest) = name.rsplit_once('@').ok_or_else(no_digest)?;
            let digest = digest.parse::<Digest>().map_err(|e| Failure::invalid(e.to_string()))?;
            Place::Layout { layout: Layout::parse(&attrs)?, name: name.to_owned(), digest }
        } else {
            return Err(Error::UnknownScheme { identifier: op.identifier.clone() }.into());
        };
        attrs.parse(llb::attr::IMAGE_RESOLVE_MODE, |mode| match mode {
            // There is no store of images beside the registries, so all modes are one.
            "" | "default" | "pull" | "local" => Ok(()),
            _ => Err("unknown resolve mode".to_owned()),
        })?;
        Ok(Self {
            place,
            platform: platform.clone(),
            checksum: attrs.get(llb::attr::IMAGE_CHECKSUM).filter(|c| !c.is_empty()).map(str::to_owned),
        })
    }

    /// What provenance tells of it, when its name stands for `digest`.
    pub fn material(&self, digest: Digest) -> Material {
        Material::Image {
            reference: self.place.to_string(),
            platform: Some(self.platform.clone()),
            digest,
            local: matches!(self.place, Place::Layout { .. }),
        }
    }
}

impl Images {
    /// Images in `registries`, with the credentials of `sessions`.
    pub fn new(registries: Registries, sessions: Sessions, store: Store) -> Self {
        Self {
            registries,
            sessions,
            store,
            salt: rand::random(),
            known: Mutex::default(),
            resolving: Flight::default(),
        }
    }

    /// The registries.
    pub fn registries(&self) -> &Registries {
        &self.registries
    }

    /// Access to registries on behalf of the clients with these sessions.
    pub fn access(&self, sessions: &[String]) -> Access {
        let ids = sessions.iter().filter(|s| !s.is_empty()).cloned().collect();
        let sessions = self.sessions.clone();
        Access::new(Arc::new(SessionCredentials { sessions, ids, salt: self.salt }))
    }

    /// What `wanted` is now. Asks the registry what the name stands for, and
    /// for the rest only when it is not known.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn resolve(&self, wanted: &Wanted, sessions: &[String]) -> Result<Arc<Image>, Failure> {
        if let Some(digest) = wanted.place.digest()
            && let Some(image) = self.recall(digest, wanted)?
        {
            return check(image, wanted);
        }
        let key = format!("{:?} {} {}", wanted.place, wanted.platform.format_all(), sessions.join(" "));
        let image = self.resolving.run(key, || self.ask(wanted, sessions)).await?;
        check(image, wanted)
    }

    /// What leads from `root`, which [`Self::resolve`] found, to the attestations of
    /// an image in a registry, with the statements of these `predicates`.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn attestations(
        &self,
        wanted: &Wanted,
        root: &Descriptor,
        predicates: &[String],
        sessions: &[String],
    ) -> Result<Option<Chain>, Failure> {
        let Place::Registry(reference) = &wanted.place else { return Ok(None) };
        let repository = self.registries.repository(reference, &self.access(sessions)).await?;
        Ok(repository.attestations(root, &wanted.platform, predicates).await?)
    }

    async fn ask(&self, wanted: &Wanted, sessions: &[String]) -> Result<Arc<Image>, Failure> {
        let (root, found) = match &wanted.place {
            Place::Registry(reference) => {
                let access = self.access(sessions);
                let repository = self.registries.repository(reference, &access).await?;
                let root = repository.resolve().await?;
                if let Some(image) = self.recall(&root.digest, wanted)? {
                    return Ok(image);
                }
                let found = repository.image(&root, &wanted.platform).await?;
                (root, found)
            }
            Place::Layout { layout, name, digest } => {
                self.ask_client(layout, name, digest, &wanted.platform, sessions).await?
            }
        };
        let image = Arc::new(Image {
            root,
            manifest: found.desc,
            layers: found.manifest.layers,
            config: found.config.to_vec(),
        });
        self.remember(&image, wanted)?;
        Ok(image)
    }

    async fn ask_client(
        &self,
        layout: &Layout,
        name: &str,
        digest: &Digest,
        platform: &Platform,
        ids: &[String],
    ) -> Result<(Descriptor, registry::Image), Failure> {
        let about = |_: &Digest, problem: registry::Problem| {
            Failure::from(registry::Error { subject: name.to_owned(), problem: Box::new(problem) })
        };
        let size = layout.size(&self.sessions, ids, digest).await?;
        let bytes = layout.fetch(&self.sessions, ids, digest, registry::MAX_MANIFEST).await?;
        let media_type = registry::image::detect(digest, &bytes).map_err(|p| about(digest, p))?;
        let root = Descriptor::new(media_type, digest.clone(), size);
        let fetch = |desc: Descriptor| {
            let bytes = (desc.digest == *digest).then(|| bytes.clone());
            async move {
                match bytes {
                    Some(bytes) => Ok(bytes),
                    None => layout.fetch(&self.sessions, ids, &desc.digest, registry::MAX_CONFIG).await,
                }
            }
            .boxed()
        };
        let found = registry::image::find(&root, platform, &fetch, &about).await?;
        Ok((root, found))
    }

    fn recall(&self, root: &Digest, wanted: &Wanted) -> Result<Option<Arc<Image>>, Failure> {
        let Some(key) = key(root, wanted) else { return Ok(None) };
        if let Some(image) = self.known.lock().get(&key) {
            return Ok(Some(image.clone()));
        }
        let noted = self.store.db().read(|tx| tx.get(KNOWN, key.as_bytes()))?;
        let image = noted.and_then(|bytes| serde_json::from_slice::<Image>(&bytes).ok()).map(Arc::new);
        if let Some(image) = &image {
            self.known.lock().insert(key, image.clone());
        }
        Ok(image)
    }

    fn remember(&self, image: &Arc<Image>, wanted: &Wanted) -> Result<(), Failure> {
        let Some(key) = key(&image.root.digest, wanted) else { return Ok(()) };
        // A config that is no text is not remembered, and refused by who reads it.
        let Ok(value) = serde_json::to_vec(&**image) else { return Ok(()) };
        self.store.db().write_lazily(|tx| {
            let mut keys = Vec::new();
            tx.scan(KNOWN, b"", &mut |key, _| {
                keys.push(key.to_vec());
                true
            })?;
            if keys.len() >= MAX_KNOWN {
                for old in &keys {
                    tx.delete(KNOWN, old)?;
                }
            }
            tx.put(KNOWN, key.as_bytes(), &value)
        })?;
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(key, image.clone());
        Ok(())
    }

    /// Where the layers of an image come from.
    pub fn layers(&self, reference: Reference, access: Access) -> Arc<dyn BlobSource> {
        Arc::new(Layers { registries: self.registries.clone(), access, reference })
    }

    fn layers_of(&self, place: &Place, sessions: &[String]) -> Arc<dyn BlobSource> {
        match place {
            Place::Registry(reference) => self.layers(reference.clone(), self.access(sessions)),
            Place::Layout { layout, .. } => {
                LayoutBlobs::shared(layout.clone(), self.sessions.clone(), sessions.to_vec())
            }
        }
    }

    /// Gives a result that was pulled earlier, and is not all here, its source back.
    pub(crate) fn reattach(&self, result: &Ref, cx: &Cx) -> Result<(), Failure> {
        if !result.lacks_blobs()? {
            return Ok(());
        }
        let sessions = sessions(cx);
        let mut below = vec![result.clone()];
        while let Some(layer) = below.pop() {
            let origin = layer.get_meta(ORIGIN)?.and_then(|name| String::from_utf8(name).ok());
            let source = match origin.as_deref().map(|o| o.strip_prefix(LAYOUT_SCHEME).ok_or(o)) {
                Some(Err(name)) => self.layers(registry::parse(name)?, self.access(&sessions)),
                Some(Ok(store)) => {
                    LayoutBlobs::shared(Layout::of_any(store), self.sessions.clone(), sessions.clone())
                }
                None => {
                    below.extend(layer.parents());
                    continue;
                }
            };
            layer.attach(source, cx.progress.clone());
        }
        Ok(())
    }
}

/// Notes the image name under which the layers of `result` are found when it is
/// needed again.
///
/// # Errors
/// When the store refuses.
pub fn set_origin(result: &Ref, name: &str) -> Result<(), Failure> {
    Ok(result.set_meta(ORIGIN, name.as_bytes())?)
}

/// With the repository: who knows a digest need not be allowed to read it
/// everywhere, and it need not be everywhere.
///
/// `None` for layouts: another client's is another place.
fn key(root: &Digest, wanted: &Wanted) -> Option<String> {
    match &wanted.place {
        Place::Registry(reference) => {
            Some(format!("{root} {} {}", reference.name(), wanted.platform.format_all()))
        }
        Place::Layout { .. } => None,
    }
}

fn check(image: Arc<Image>, wanted: &Wanted) -> Result<Arc<Image>, Failure> {
    match &wanted.checksum {
        Some(expected) if image.root.digest.as_str() != expected => Err(Error::Checksum {
            digest: image.root.digest.clone(),
            reference: wanted.place.to_string(),
            expected: expected.clone(),
        }
        .into()),
        _ => Ok(image),
    }
}

struct Layers {
    registries: Registries,
    access: Access,
    reference: Reference,
}

#[async_trait]
impl BlobSource for Layers {
    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<Bytes, Failure> {
        let repository = self.registries.repository(&self.reference, &self.access).await?;
        Ok(Box::pin(repository.open(descriptor, offset).await?))
    }
}

/// The parts of an image's config that keys and layers are made of.
#[derive(Deserialize)]
struct Config {
    #[serde(default, deserialize_with = "gojson::nullable")]
    rootfs: RootFs,
    #[serde(default, deserialize_with = "gojson::nullable")]
    history: Vec<History>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default, rename = "type", deserialize_with = "gojson::nullable")]
    kind: String,
    #[serde(default, deserialize_with = "gojson::nullable")]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct History {
    #[serde(default, deserialize_with = "gojson::nullable")]
    created: Option<Timestamp>,
    #[serde(default, deserialize_with = "gojson::nullable")]
    empty_layer: bool,
}

/// An image as a source.
pub(crate) struct ImageSource {
    worker: Arc<Worker>,
    wanted: Wanted,
    record_type: RecordType,
    limit: Option<usize>,
    image: tokio::sync::OnceCell<Arc<Image>>,
}

/// What the first key is made of; the names are those of the reference.
#[derive(Serialize)]
struct ManifestKey<'a> {
    #[serde(rename = "Digest")]
    digest: &'a Digest,
    #[serde(rename = "OS")]
    os: &'a str,
    #[serde(rename = "Arch")]
    architecture: &'a str,
    #[serde(rename = "Variant", skip_serializing_if = "str::is_empty")]
    variant: &'a str,
    #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
    os_version: &'a str,
    #[serde(rename = "OSFeatures", skip_serializing_if = "<[String]>::is_empty")]
    os_features: &'a [String],
    #[serde(rename = "Limit", skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
}

impl ImageSource {
    /// The image, once it is known.
    pub(crate) fn material(&self) -> Option<Material> {
        self.image.get().map(|image| self.wanted.material(image.root.digest.clone()))
    }

    pub(crate) fn new(worker: Arc<Worker>, vertex: &llb::Vertex, op: &pb::SourceOp) -> Result<Self, Failure> {
        let attrs = Attrs::new(op);
        let wanted = Wanted::parse(op, &vertex.platform)?;
        let attribute = match wanted.place {
            Place::Registry(_) => llb::attr::IMAGE_LAYER_LIMIT,
            Place::Layout { .. } => llb::attr::OCI_LAYER_LIMIT,
        };
        let limit = attrs.parse(attribute, |limit| match limit.parse() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(format!("invalid layer limit {limit}")),
        })?;
        Ok(Self {
            wanted,
            record_type: attrs.record_type()?,
            limit,
            image: tokio::sync::OnceCell::new(),
            worker,
        })
    }

    async fn image(&self, cx: &Cx) -> Result<&Arc<Image>, Failure> {
        let resolve = || async {
            let counter = cx.progress.counter(format!("resolve {}", self.wanted.place), 0);
            let image = cx.scope.run(self.worker.images.resolve(&self.wanted, &sessions(cx))).await;
            counter.finish();
            image
        };
        self.image.get_or_try_init(resolve).await
    }

    /// The config, and the diff ids that count.
    fn config(&self, image: &Image) -> Result<Config, Failure> {
        let broken = |reason: String| Error::ImageConfig { reference: self.wanted.place.to_string(), reason };
        let mut config: Config = serde_json::from_slice(&image.config).map_err(|e| broken(e.to_string()))?;
        if let Some(limit) = self.limit {
            let layers = image.layers.len().min(config.rootfs.diff_ids.len());
            if limit > layers {
                return Err(Error::LayerLimit { limit, layers }.into());
            }
            config.rootfs.diff_ids.truncate(limit);
        }
        Ok(config)
    }

    fn manifest_key(&self, image: &Image) -> Result<String, Failure> {
        let platform = &self.wanted.platform;
        let key = ManifestKey {
            digest: &image.manifest.digest,
            os: &platform.os,
            architecture: &platform.architecture,
            variant: &platform.variant,
            os_version: &platform.os_version,
            os_features: &platform.os_features,
            limit: self.limit,
        };
        let json = gojson::to_vec(&key).map_err(|e| Failure::internal(e.to_string()))?;
        Ok(Digest::of(json).to_string())
    }

    fn layers(&self, image: &Image, config: &Config) -> Result<Vec<Layer>, Failure> {
        let diff_ids = &config.rootfs.diff_ids;
        let descriptors = &image.layers[..self.limit.unwrap_or(usize::MAX).min(image.layers.len())];
        if descriptors.len() != diff_ids.len() {
            let reason = format!("{} layers, but {} diff ids", descriptors.len(), diff_ids.len());
            return Err(Error::ImageConfig { reference: self.wanted.place.to_string(), reason }.into());
        }
        let mut created = config.history.iter().filter(|h| !h.empty_layer).map(|h| h.created);
        let layers = descriptors.iter().zip(diff_ids).map(|(descriptor, diff_id)| Layer {
            descriptor: descriptor.clone(),
            diff_id: diff_id.clone(),
            created_at: created.next().flatten(),
            description: format!("pulled from {}", self.wanted.place),
        });
        Ok(layers.collect())
    }
}

/// The OCI chain id: what stands for a stack of layers.
fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    Some(rest.iter().fold(first.clone(), |chain, diff_id| Digest::of(format!("{chain} {diff_id}"))))
}

#[async_trait]
impl Operation<Output> for ImageSource {
    async fn cache_map(&self, stage: usize, cx: &Cx) -> Result<CacheMap, Failure> {
        let image = self.image(cx).await?;
        let manifest = self.manifest_key(image)?;
        let config = self.config(image)?;
        let chain = Some(&config.rootfs)
            .filter(|rootfs| rootfs.kind == "layers")
            .and_then(|rootfs| chain_id(&rootfs.diff_ids));
        let key = match (stage, &chain) {
            (0, _) | (_, None) => manifest,
            (_, Some(chain)) => chain.to_string(),
        };
        let last = stage > 0 || chain.is_none();
        Ok(CacheMap { digest: super::key_digest(&key), deps: Vec::new(), last })
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, _: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let image = self.image(cx).await?;
        let layers = self.layers(image, &self.config(image)?)?;
        let source = self.worker.images.layers_of(&self.wanted.place, &sessions(cx));
        let result = self.worker.refs.image(layers, source, self.record_type, cx.progress.clone()).await?;
        if let Some(result) = &result {
            set_origin(result, &self.wanted.place.origin())?;
        }
        Ok(vec![result])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_may_be_written_as_null() {
        for text in ["{}", r#"{"rootfs":null,"history":null}"#, r#"{"rootfs":{"type":null,"diff_ids":null}}"#]
        {
            let config: Config = serde_json::from_str(text).unwrap();
            assert!(config.rootfs.diff_ids.is_empty() && config.history.is_empty(), "{text}");
        }
    }

    #[test]
    fn a_chain_of_one_is_itself() {
        let (a, b) = (Digest::of("a"), Digest::of("b"));
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(std::slice::from_ref(&a)), Some(a.clone()));
        assert_eq!(chain_id(&[a.clone(), b.clone()]), Some(Digest::of(format!("{a} {b}"))));
    }
}
