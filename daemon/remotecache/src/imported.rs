//! A cache that was read: keys and results, as the solver looks them up.
//!
//! Layers stay where they are until somebody needs them. Those that can only be
//! had as long as a client is there are brought here when a result is used.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use base::progress::VertexSink;
use base::{Descriptor, Digest, Failure, Timestamp, digest};
use futures_util::future::try_join_all;
use ops::Output;
use refs::{BlobSource, Layer, RecordType, Refs};
use solver::{Change, KeyId, KeyIndex, Link, OpContext, Record, ResultStore};

use crate::chains::{Chains, ItemId};

/// The digest of a layer's uncompressed tar, as an annotation.
pub(crate) const DIFF_ID: &str = "containerd.io/uncompressed";
/// When a layer was made, as an annotation.
pub(crate) const CREATED: &str = "buildkit/createdat";
/// What a layer is, for people, as an annotation.
pub(crate) const DESCRIPTION: &str = "buildkit/description";

/// Where the layers of a cache come from.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) source: Arc<dyn BlobSource>,
    /// Only as long as the client is there.
    pub(crate) fleeting: bool,
    /// The image name under which results are found again later.
    pub(crate) origin: Option<String>,
}

#[derive(Default)]
struct Known {
    /// By input, digest of the operation with its output, and selector.
    links: HashMap<(usize, Arc<str>, Arc<str>), Vec<KeyId>>,
    below: Vec<Below>,
    results: Vec<Record>,
}

/// A key from which another follows.
#[derive(Debug, Clone)]
pub(crate) struct Below {
    pub(crate) key: KeyId,
    pub(crate) input: usize,
    /// What is done, output included.
    pub(crate) digest: Arc<str>,
    pub(crate) selector: String,
}

/// A cache, read.
pub struct Imported {
    keys: HashMap<KeyId, Known>,
    results: HashMap<Arc<str>, Vec<u32>>,
    layers: Vec<Option<Layer>>,
    place: Place,
    refs: Refs,
}

impl Imported {
    pub(crate) fn new(chains: &Chains, place: Place, refs: Refs) -> Self {
        let layers: Vec<Option<Layer>> = chains.blobs().iter().map(layer).collect();
        let mut keys: HashMap<KeyId, Known> = HashMap::new();
        let mut results = HashMap::new();
        let mut names: HashMap<ItemId, KeyId> = HashMap::new();
        for id in chains.sorted() {
            let Some(item) = chains.item(id) else { continue };
            let digest: Arc<str> = item.digest.as_str().into();
            let mut hasher = digest::Hasher::new();
            hasher.update(&*digest);
            let mut below = Vec::new();
            for (input, links) in item.parents.iter().enumerate() {
                let named =
                    links.iter().filter_map(|l| Some((names.get(&l.from)?.clone(), l.selector.clone())));
                let named: BTreeSet<(KeyId, String)> = named.collect();
                hasher.update(format!("\0{input}\0"));
                for (key, selector) in named {
                    hasher.update(format!("{key}\0{selector}\0"));
                    below.push(Below { key, input, digest: digest.clone(), selector });
                }
            }
            // Without inputs the name follows from the digest, as in every index.
            let name: KeyId =
                if item.parents.is_empty() { digest.clone() } else { hasher.finish().hex().into() };
            for link in &below {
                let way = (link.input, link.digest.clone(), link.selector.as_str().into());
                let to = keys.entry(link.key.clone()).or_default().links.entry(way).or_default();
                if !to.contains(&name) {
                    to.push(name.clone());
                }
            }
            let known = keys.entry(name.clone()).or_default();
            known.below.extend(below);
            for result in &item.results {
                let here = |at: &u32| layers.get(*at as usize).and_then(Option::as_ref);
                let Some(all) = result.layers.iter().map(here).collect::<Option<Vec<_>>>() else { continue };
                let mut hasher = digest::Hasher::new();
                all.iter().for_each(|layer| hasher.update(layer.descriptor.digest.as_str()));
                let result_id: Arc<str> = hasher.finish().as_str().into();
                if known.results.iter().all(|r| r.id != result_id) {
                    let created = result.created.max(Timestamp::EPOCH);
                    known.results.push(Record { id: result_id.clone(), created });
                }
                results.entry(result_id).or_insert_with(|| result.layers.clone());
            }
            names.insert(id, name);
        }
        Self { keys, results, layers, place, refs }
    }

    /// The keys from which `key` follows.
    pub(crate) fn below(&self, key: &str) -> &[Below] {
        self.keys.get(key).map_or(&[], |known| &known.below)
    }

    /// The image name under which its layers are found again.
    pub(crate) fn origin(&self) -> Option<String> {
        self.place.origin.clone()
    }

    /// The result `id` as a ref that may be lazy.
    ///
    /// # Errors
    /// When the store refuses, or layers that must be brought here cannot be.
    pub(crate) async fn result(&self, id: &str, progress: VertexSink) -> Result<Option<Output>, Failure> {
        let Some(places) = self.results.get(id) else { return Ok(None) };
        let layer = |at: &u32| self.layers.get(*at as usize).and_then(Option::as_ref).cloned();
        let Some(layers) = places.iter().map(layer).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let source = self.place.source.clone();
        let result = self.refs.image(layers, source, RecordType::Regular, progress).await?;
        let Some(result) = result else { return Ok(Some(None)) };
        if let Some(origin) = &self.place.origin {
            ops::source::image::set_origin(&result, origin)?;
        }
        if self.place.fleeting {
            let layers = result.known_layers()?.unwrap_or_default();
            try_join_all(layers.iter().map(|layer| layer.fetch())).await?;
        }
        Ok(Some(Some(result)))
    }
}

/// A layer whose files can be known; those that say too little are of no use.
fn layer(descriptor: &Descriptor) -> Option<Layer> {
    let noted = |key: &str| descriptor.annotations.get(key);
    let diff_id = match noted(DIFF_ID) {
        Some(text) => text.parse().ok()?,
        None if descriptor.media_type.ends_with(".tar") => descriptor.digest.clone(),
        None => return None,
    };
    let description =
        noted(DESCRIPTION).cloned().unwrap_or_else(|| format!("imported {}", descriptor.digest));
    let created_at = noted(CREATED).and_then(|text| Timestamp::parse(text));
    let mut descriptor = descriptor.clone();
    descriptor.annotations = BTreeMap::new();
    Some(Layer { descriptor, diff_id, created_at, description })
}

impl KeyIndex for Imported {
    fn exists(&self, key: &str) -> Result<bool, Failure> {
        Ok(self.keys.contains_key(key))
    }

    fn links(&self, key: &str, link: &Link) -> Result<Vec<KeyId>, Failure> {
        let Some(known) = self.keys.get(key) else { return Ok(Vec::new()) };
        let output = i64::try_from(link.output).unwrap_or(i64::MAX);
        let selector = link.selector.as_ref().map_or("", Digest::as_str);
        let way = (link.input, link.digest.root_key(output), Arc::from(selector));
        Ok(known.links.get(&way).cloned().unwrap_or_default())
    }

    /// None: what is done is only known by a digest of it here, see `below`.
    fn backlinks(&self, _: &str) -> Result<Vec<(KeyId, Link)>, Failure> {
        Ok(Vec::new())
    }

    fn results(&self, key: &str) -> Result<Vec<Record>, Failure> {
        Ok(self.keys.get(key).map(|known| known.results.clone()).unwrap_or_default())
    }

    fn keys_of(&self, result: &str) -> Result<Vec<KeyId>, Failure> {
        let has = |known: &Known| known.results.iter().any(|r| &*r.id == result);
        Ok(self.keys.iter().filter(|(_, known)| has(known)).map(|(key, _)| key.clone()).collect())
    }

    fn all_results(&self) -> Result<Vec<Arc<str>>, Failure> {
        Ok(self.results.keys().cloned().collect())
    }

    /// What was imported stays as it is; what is learnt goes to the solver's own index.
    fn save(&self, _: &[Change]) -> Result<(), Failure> {
        Ok(())
    }

    fn release(&self, _: &str) -> Result<(), Failure> {
        Ok(())
    }
}

#[async_trait]
impl ResultStore<Output> for Imported {
    async fn save(&self, _: &Output) -> Result<String, Failure> {
        Err(Failure::internal("an imported cache is not written to"))
    }

    async fn load(&self, id: &str, cx: &OpContext<Output>) -> Result<Option<Output>, Failure> {
        cx.scope.run(self.result(id, cx.progress.clone())).await
    }

    fn exists(&self, id: &str) -> bool {
        self.results.contains_key(id)
    }
}
