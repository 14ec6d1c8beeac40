//! Records of a cache and how they follow from each other, put in order.
//!
//! A record is named by the digest of what is done. It hangs on records of its
//! inputs; a record that can be reached from all inputs of an operation stands
//! for that operation. Two ways to the same record are joined, so that a cache
//! that is written twice is the same bytes. There are no circles.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use base::{Descriptor, Digest, Timestamp};

use crate::Error;
use crate::config::{self, Config};

/// Which record; see [`Chains`].
pub(crate) type ItemId = usize;

/// So many layers a tree may have; more cannot be stacked.
const MAX_LAYERS: usize = 1000;

/// Layers of a result by position in [`Chains::blobs`], bottom first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) created: Timestamp,
    pub(crate) layers: Vec<u32>,
}

/// A record of an input, and which part of the input matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) from: ItemId,
    pub(crate) selector: String,
}

/// How a record is reached from one of an input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    digest: Digest,
    input: usize,
    selector: String,
}

#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) digest: Digest,
    children: BTreeMap<Way, BTreeSet<ItemId>>,
    /// Per input.
    pub(crate) parents: Vec<BTreeSet<Link>>,
    pub(crate) results: Vec<Stored>,
}

/// All records of a cache.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    items: Vec<Item>,
    roots: BTreeMap<Digest, ItemId>,
    blobs: Vec<Descriptor>,
    blob_at: HashMap<Digest, u32>,
}

impl Chains {
    /// The place of a layer.
    pub(crate) fn blob(&mut self, descriptor: Descriptor) -> u32 {
        let next = u32::try_from(self.blobs.len()).unwrap_or(u32::MAX);
        let at = *self.blob_at.entry(descriptor.digest.clone()).or_insert(next);
        if at == next {
            self.blobs.push(descriptor);
        }
        at
    }

    /// All layers.
    pub(crate) fn blobs(&self) -> &[Descriptor] {
        &self.blobs
    }

    pub(crate) fn item(&self, id: ItemId) -> Option<&Item> {
        self.items.get(id)
    }

    /// Adds a record, or finds the one that stands for the same.
    pub(crate) fn add(&mut self, digest: &Digest, deps: &[Vec<Link>], results: Vec<Stored>) -> ItemId {
        if deps.is_empty() {
            let id = match self.roots.get(digest) {
                Some(id) => *id,
                None => {
                    let id = self.fresh(digest);
                    self.roots.insert(digest.clone(), id);
                    id
                }
            };
            self.keep(id, results);
            return id;
        }
        let mut common: Option<BTreeSet<ItemId>> = None;
        for (input, links) in deps.iter().enumerate() {
            let mut reached = BTreeSet::new();
            for link in links {
                let way = Way { digest: digest.clone(), input, selector: link.selector.clone() };
                let children = self.items.get(link.from).and_then(|item| item.children.get(&way));
                reached.extend(children.into_iter().flatten().copied());
            }
            common = Some(match common {
                None => reached,
                Some(common) => common.intersection(&reached).copied().collect(),
            });
        }
        let mut common = common.unwrap_or_default().into_iter();
        let (id, below) = match common.next() {
            Some(id) => {
                for other in common {
                    self.join(id, other);
                }
                (id, self.descendants(id))
            }
            None => (self.fresh(digest), HashSet::new()),
        };
        self.keep(id, results);
        for (input, links) in deps.iter().enumerate() {
            // What follows from it is not what it follows from.
            for link in links.iter().filter(|link| link.from != id && !below.contains(&link.from)) {
                self.link(id, input, link);
            }
        }
        id
    }

    fn fresh(&mut self, digest: &Digest) -> ItemId {
        let (children, parents) = (BTreeMap::new(), Vec::new());
        self.items.push(Item { digest: digest.clone(), children, parents, results: Vec::new() });
        self.items.len() - 1
    }

    fn keep(&mut self, id: ItemId, results: Vec<Stored>) {
        let Some(item) = self.items.get_mut(id) else { return };
        for result in results {
            // Of variants of one result the first counts.
            let known = |r: &Stored| r.created == result.created && r.layers.len() == result.layers.len();
            if !item.results.iter().any(known) {
                item.results.push(result);
            }
        }
    }

    fn link(&mut self, id: ItemId, input: usize, link: &Link) {
        let Some(item) = self.items.get_mut(id) else { return };
        if item.parents.len() <= input {
            item.parents.resize_with(input + 1, BTreeSet::new);
        }
        if let Some(parents) = item.parents.get_mut(input) {
            parents.insert(link.clone());
        }
        let way = Way { digest: item.digest.clone(), input, selector: link.selector.clone() };
        if let Some(from) = self.items.get_mut(link.from) {
            from.children.entry(way).or_default().insert(id);
        }
    }

    /// Makes two records that turned out to be the same one.
    fn join(&mut self, id: ItemId, other: ItemId) {
        let Some(item) = self.items.get_mut(other) else { return };
        let children = std::mem::take(&mut item.children);
        let parents = std::mem::take(&mut item.parents);
        let results = std::mem::take(&mut item.results);
        let digest = item.digest.clone();
        self.keep(id, results);
        for (input, links) in parents.into_iter().enumerate() {
            for link in links {
                let way = Way { digest: digest.clone(), input, selector: link.selector.clone() };
                if let Some(children) = self.items.get_mut(link.from).and_then(|i| i.children.get_mut(&way)) {
                    children.remove(&other);
                }
                if link.from != id {
                    self.link(id, input, &link);
                }
            }
        }
        for (way, children) in children {
            for child in children {
                let old = Link { from: other, selector: way.selector.clone() };
                let parents = self.items.get_mut(child).and_then(|c| c.parents.get_mut(way.input));
                if let Some(parents) = parents {
                    parents.remove(&old);
                }
                if child != id {
                    self.link(child, way.input, &Link { from: id, selector: way.selector.clone() });
                }
            }
        }
    }

    fn descendants(&self, id: ItemId) -> HashSet<ItemId> {
        let (mut seen, mut rest) = (HashSet::from([id]), vec![id]);
        while let Some(id) = rest.pop() {
            let children = self.items.get(id).into_iter().flat_map(|item| item.children.values().flatten());
            rest.extend(children.filter(|child| seen.insert(**child)));
        }
        seen
    }

    /// The records from which others or results follow, inputs before consumers.
    pub(crate) fn sorted(&self) -> Vec<ItemId> {
        let mut reached = HashSet::new();
        for root in self.roots.values() {
            if !reached.contains(root) {
                reached.extend(self.descendants(*root));
            }
        }
        let mut done = HashSet::new();
        let mut order = Vec::new();
        for start in 0..self.items.len() {
            let mut stack = if reached.contains(&start) { vec![(start, false)] } else { Vec::new() };
            while let Some((id, ready)) = stack.pop() {
                if ready {
                    order.push(id);
                } else if done.insert(id) {
                    stack.push((id, true));
                    let parents =
                        self.items.get(id).into_iter().flat_map(|item| item.parents.iter().flatten());
                    stack.extend(parents.map(|link| (link.from, false)));
                }
            }
        }
        order
    }

    /// The cache as it is written. `missing` are layers that cannot be had;
    /// results that need them are left out.
    pub(crate) fn config(&self, missing: &HashSet<u32>) -> Config {
        let mut config = Config::default();
        let mut layer_at: HashMap<(u32, i64), usize> = HashMap::new();
        let mut record_at: HashMap<ItemId, usize> = HashMap::new();
        for id in self.sorted() {
            let Some(item) = self.items.get(id) else { continue };
            let inputs = item.parents.iter().map(|links| {
                let input = |link: &Link| {
                    let at = *record_at.get(&link.from)?;
                    Some(config::Input { selector: link.selector.clone(), link: index(at) })
                };
                links.iter().filter_map(input).collect()
            });
            let mut record = config::Record {
                digest: Some(item.digest.clone()),
                inputs: inputs.collect(),
                ..Default::default()
            };
            let best = item.results.iter().min_by_key(|r| std::cmp::Reverse(r.created));
            if let Some(best) = best
                && !best.layers.is_empty()
                && !best.layers.iter().any(|blob| missing.contains(blob))
            {
                let mut parent = -1;
                for blob in &best.layers {
                    let Some(descriptor) = self.blobs.get(*blob as usize) else { continue };
                    let at = *layer_at.entry((*blob, parent)).or_insert_with(|| {
                        let blob = descriptor.digest.clone();
                        config.layers.push(config::Layer { blob, parent, annotations: None });
                        config.layers.len() - 1
                    });
                    parent = index(at);
                }
                record.results.push(config::Result { layer: parent, created: best.created });
            }
            record_at.insert(id, config.records.len());
            config.records.push(record);
        }
        config.sort();
        config
    }

    /// Adds the records of `config`. Layers are those of `blobs`; results that
    /// need others are left out, as others who read such caches do.
    ///
    /// # Errors
    /// When it points outside of itself, or in circles.
    pub(crate) fn read(&mut self, config: &Config, blobs: &HashMap<Digest, Descriptor>) -> Result<(), Error> {
        let mut layers = Vec::with_capacity(config.layers.len());
        for layer in &config.layers {
            layers.push(blobs.get(&layer.blob).map(|descriptor| self.blob(descriptor.clone())));
        }
        let mut items: Vec<Option<ItemId>> = vec![None; config.records.len()];
        for index in config.order()? {
            let Some(record) = config.records.get(index) else { continue };
            let mut deps = Vec::with_capacity(record.inputs.len());
            for inputs in &record.inputs {
                if inputs.is_empty() {
                    return Err(Error::config(format!("invalid empty input for record {index}")));
                }
                let link = |input: &config::Input| {
                    let from =
                        usize::try_from(input.link).ok().and_then(|at| items.get(at).copied().flatten());
                    let looping = || Error::config("invalid looping record");
                    Ok(Link { from: from.ok_or_else(looping)?, selector: input.selector.clone() })
                };
                deps.push(inputs.iter().map(link).collect::<Result<Vec<_>, Error>>()?);
            }
            let mut results = Vec::new();
            for result in &record.results {
                let found = chain(config, &layers, result.layer)?;
                results.extend(found.map(|layers| Stored { created: result.created, layers }));
            }
            for result in &record.chains {
                let mut found = Some(Vec::new());
                for at in &result.layers {
                    let layer = place(&layers, *at)?;
                    found = found.zip(*layer).map(|(mut all, layer)| {
                        all.push(layer);
                        all
                    });
                }
                let found = found.filter(|all| (1..=MAX_LAYERS).contains(&all.len()));
                results.extend(found.map(|layers| Stored { created: result.created, layers }));
            }
            let digest = record.digest.as_ref().ok_or_else(|| Error::config("record without digest"))?;
            let id = self.add(digest, &deps, results);
            if let Some(item) = items.get_mut(index) {
                *item = Some(id);
            }
        }
        Ok(())
    }
}

fn index(at: usize) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

fn place<T>(all: &[T], at: i64) -> Result<&T, Error> {
    let found = usize::try_from(at).ok().and_then(|at| all.get(at));
    found.ok_or_else(|| Error::config(format!("invalid layer index {at}")))
}

/// The layers from the bottom up to `top`; none when one of them is not to be had.
fn chain(config: &Config, layers: &[Option<u32>], top: i64) -> Result<Option<Vec<u32>>, Error> {
    let (mut all, mut next, mut steps) = (Some(Vec::new()), top, 0);
    while next != -1 {
        let layer = *place(layers, next)?;
        steps += 1;
        if steps > layers.len() {
            return Err(Error::config("invalid looping layer"));
        }
        if steps > MAX_LAYERS {
            return Ok(None);
        }
        all = all.zip(layer).map(|(mut all, layer)| {
            all.push(layer);
            all
        });
        next = place(&config.layers, next)?.parent;
    }
    Ok(all.filter(|all| !all.is_empty()).map(|mut all| {
        all.reverse();
        all
    }))
}

#[cfg(test)]
mod tests;
