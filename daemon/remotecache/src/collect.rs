//! From what the solver knows of a result to the records of a cache.
//!
//! First it is seen which results are to be had as layers, and those that are
//! missing are made, as far as the mode wants them: all of them, or only those
//! that the end result consists of. Then the records are linked as the solver's
//! keys are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use base::{Descriptor, Digest, Failure, Timestamp};
use futures_util::{StreamExt, TryStreamExt, stream};
use ops::Output;
use refs::{Compression, LayerBlob};
use solver::{KeyIndex, KeyNode, Keys, OpContext, ResultStore};

use crate::chains::{Chains, ItemId, Link, Stored};
use crate::imported::{Below, CREATED, DIFF_ID, Imported};

/// Results that are made into layers at the same time.
const AT_ONCE: usize = 8;

/// Which results a cache is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The layers of the end result.
    #[default]
    Min,
    /// Everything that was built on the way.
    Max,
}

/// Where a build's keys and results are.
#[derive(Clone)]
pub struct Known {
    /// The solver's memory.
    pub keys: Arc<dyn KeyIndex>,
    /// The results it remembers.
    pub results: Arc<dyn ResultStore<Output>>,
    /// Caches that were imported for the build, by the name of the source.
    pub imports: HashMap<Arc<str>, Arc<Imported>>,
}

/// A layer that can be had.
#[derive(Clone)]
pub(crate) struct Had {
    pub(crate) blob: LayerBlob,
    /// The image name under which it is known elsewhere.
    pub(crate) origin: Option<String>,
}

/// The records of a cache, and their layers.
#[derive(Default)]
pub(crate) struct Collected {
    pub(crate) chains: Chains,
    pub(crate) layers: HashMap<Digest, Had>,
}

/// A result as layers.
struct Remote {
    created: Timestamp,
    layers: Vec<Had>,
}

impl Known {
    /// Adds the records of one result of a build.
    ///
    /// # Errors
    /// When layers cannot be made, or the index cannot be read.
    pub(crate) async fn collect(
        &self,
        keys: &Arc<Keys>,
        mode: Mode,
        compression: Compression,
        cx: &OpContext<Output>,
        mut to: Collected,
    ) -> Result<Collected, Failure> {
        let mut remotes = self.remotes(keys, mode, compression, cx).await?;
        let (known, keys) = (self.clone(), keys.clone());
        base::task::blocking(move || {
            let mut walk = Walk { known: &known, found: HashMap::new(), chains: &mut to.chains };
            let mut made: Vec<Vec<ItemId>> = Vec::with_capacity(keys.nodes.len());
            for (at, node) in keys.nodes.iter().enumerate() {
                let mut results = Vec::new();
                if let Some(remote) = remotes.get_mut(at).and_then(Option::take) {
                    let mut layers = Vec::with_capacity(remote.layers.len());
                    for had in remote.layers {
                        let descriptor = describe(&had.blob);
                        to.layers.entry(descriptor.digest.clone()).or_insert(had);
                        layers.push(walk.chains.blob(descriptor));
                    }
                    results.push(Stored { created: remote.created, layers });
                }
                made.push(walk.node(node, &made, results)?);
            }
            Ok(to)
        })
        .await
    }

    async fn remotes(
        &self,
        keys: &Keys,
        mode: Mode,
        compression: Compression,
        cx: &OpContext<Output>,
    ) -> Result<Vec<Option<Remote>>, Failure> {
        let mut remotes: Vec<Option<Remote>> = keys.nodes.iter().map(|_| None).collect();
        if mode == Mode::Max {
            let each = |(at, node): (usize, &KeyNode)| (at, node.clone());
            let nodes: Vec<(usize, KeyNode)> = keys.nodes.iter().enumerate().map(each).collect();
            let work = nodes.into_iter().map(|(at, node)| async move {
                Ok::<_, Failure>((at, self.remote(&node, true, compression, cx).await?))
            });
            let mut work = stream::iter(work).buffer_unordered(AT_ONCE);
            while let Some((at, remote)) = work.try_next().await? {
                if let Some(place) = remotes.get_mut(at) {
                    *place = remote;
                }
            }
            return Ok(remotes);
        }
        // Consumers first: what is below a result that is there is only taken
        // when it is there too.
        let mut make: HashSet<usize> = keys.roots.iter().copied().collect();
        for (at, node) in keys.nodes.iter().enumerate().rev() {
            let made = make.contains(&at);
            let remote = self.remote(node, made, compression, cx).await?;
            if made && remote.is_none() {
                make.extend(node.deps.iter().flatten().map(|dep| dep.node));
            }
            if let Some(place) = remotes.get_mut(at) {
                *place = remote;
            }
        }
        Ok(remotes)
    }

    /// The layers of the first result of `node` that can be had.
    async fn remote(
        &self,
        node: &KeyNode,
        make: bool,
        compression: Compression,
        cx: &OpContext<Output>,
    ) -> Result<Option<Remote>, Failure> {
        // Sources are found by asking them again.
        if node.deps.is_empty() || node.export == Some(false) {
            return Ok(None);
        }
        for result in &node.results {
            let id = &result.record.id;
            let (found, origin) = match &result.source {
                None => (self.results.load(id, cx).await, None),
                Some(source) => match self.imports.get(source) {
                    Some(import) => (import.result(id, cx.progress.clone()).await, import.origin()),
                    None => continue,
                },
            };
            let tree = match found {
                Ok(Some(Some(tree))) => tree,
                Ok(_) => continue,
                Err(failure) => {
                    tracing::debug!(%failure, %id, "a result that cannot be exported");
                    continue;
                }
            };
            let layers = match tree.known_layers()? {
                Some(known) if !make && !compression.force => known,
                None if !make => continue,
                _ => tree.layers(compression).await?,
            };
            if !layers.is_empty() {
                let layers = layers.into_iter().map(|blob| Had { blob, origin: origin.clone() }).collect();
                return Ok(Some(Remote { created: result.record.created, layers }));
            }
        }
        Ok(None)
    }

    /// Every key from which `key` follows.
    fn below(&self, key: &str) -> Result<Vec<Below>, Failure> {
        let own = self.keys.backlinks(key)?.into_iter().map(|(from, link)| Below {
            key: from,
            input: link.input,
            digest: link.digest.root_key(i64::try_from(link.output).unwrap_or(i64::MAX)),
            selector: link.selector.as_ref().map_or_else(String::new, ToString::to_string),
        });
        let imported = self.imports.values().flat_map(|import| import.below(key).iter().cloned());
        Ok(own.chain(imported).collect())
    }
}

/// A layer's descriptor as caches have it.
fn describe(blob: &LayerBlob) -> Descriptor {
    let mut descriptor = blob.descriptor.clone();
    descriptor.media_type = export::layer_media_type(&descriptor.media_type, true).to_owned();
    descriptor.urls.clear();
    descriptor.annotations.insert(DIFF_ID.to_owned(), blob.diff_id.to_string());
    if let Some(created) = blob.created_at {
        descriptor.annotations.insert(CREATED.to_owned(), created.to_string());
    }
    descriptor
}

/// Links records as keys are linked.
struct Walk<'a> {
    known: &'a Known,
    /// The records of keys, as far as they were walked from above.
    found: HashMap<Arc<str>, Vec<ItemId>>,
    chains: &'a mut Chains,
}

impl Walk<'_> {
    fn node(
        &mut self,
        node: &KeyNode,
        made: &[Vec<ItemId>],
        results: Vec<Stored>,
    ) -> Result<Vec<ItemId>, Failure> {
        let deps: Vec<Vec<Link>> = node
            .deps
            .iter()
            .map(|uses| {
                let links = uses.iter().flat_map(|used| {
                    let selector = used.selector.as_ref().map_or_else(String::new, ToString::to_string);
                    let from = made.get(used.node).into_iter().flatten();
                    from.map(move |from| Link { from: *from, selector: selector.clone() })
                });
                links.collect()
            })
            .collect();
        for id in &node.ids {
            self.backlinks(id)?;
        }
        if deps.iter().any(Vec::is_empty) {
            return Ok(Vec::new());
        }
        if node.deps.is_empty() {
            self.twins(node)?;
        }
        // Random keys are of no use to others.
        let Ok(digest) = node.digest.root_key(node.output).parse::<Digest>() else { return Ok(Vec::new()) };
        Ok(vec![self.chains.add(&digest, &deps, results)])
    }

    /// Adds the other names of a source's result.
    fn twins(&mut self, node: &KeyNode) -> Result<(), Failure> {
        let Some(result) = node.results.iter().find(|r| r.source.is_none()) else { return Ok(()) };
        for id in self.known.keys.keys_of(&result.record.id)? {
            if !node.ids.contains(&id)
                && self.known.keys.backlinks(&id)?.is_empty()
                && let Ok(digest) = id.parse::<Digest>()
            {
                self.chains.add(&digest, &[], Vec::new());
            }
        }
        Ok(())
    }

    /// Adds everything from which `id` is known to follow.
    fn backlinks(&mut self, id: &Arc<str>) -> Result<(), Failure> {
        let mut stack = vec![(id.clone(), None::<Vec<Below>>)];
        while let Some((key, below)) = stack.pop() {
            let Some(below) = below else {
                if !self.found.contains_key(&key) {
                    // Of a circle, nothing.
                    self.found.insert(key.clone(), Vec::new());
                    let below = self.known.below(&key)?;
                    let next: Vec<_> = below.iter().map(|b| (b.key.clone(), None)).collect();
                    stack.push((key, Some(below)));
                    stack.extend(next);
                }
                continue;
            };
            let mut items = Vec::new();
            if below.is_empty()
                && let Ok(digest) = key.parse::<Digest>()
            {
                items.push(self.chains.add(&digest, &[], Vec::new()));
            }
            let mut ways: BTreeMap<Arc<str>, Vec<Vec<Link>>> = BTreeMap::new();
            for b in below {
                let inputs = ways.entry(b.digest).or_default();
                if inputs.len() <= b.input {
                    inputs.resize_with(b.input + 1, Vec::new);
                }
                let from = self.found.get(&b.key).into_iter().flatten();
                if let Some(links) = inputs.get_mut(b.input) {
                    links.extend(from.map(|from| Link { from: *from, selector: b.selector.clone() }));
                }
            }
            for (digest, deps) in ways {
                if let Ok(digest) = digest.parse::<Digest>()
                    && !deps.iter().any(Vec::is_empty)
                {
                    items.push(self.chains.add(&digest, &deps, Vec::new()));
                }
            }
            self.found.insert(key, items);
        }
        Ok(())
    }
}
