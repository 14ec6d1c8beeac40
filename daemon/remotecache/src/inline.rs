//! A cache inside an image: its config says how its layers were made.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use base::{Digest, Failure, gojson};
use export::InlineCache;
use ops::Output;
use refs::Compression;
use solver::{OpContext, Solved};

use crate::Error;
use crate::chains::Chains;
use crate::collect::{Collected, Known, Mode};
use crate::config::{Chain, NEVER};
use crate::imported::DIFF_ID;

/// What images of a build are told about how they were made.
pub struct Inline {
    /// Where keys and results are.
    pub known: Known,
    /// The results; without a name when there is only one.
    pub results: Vec<(Option<String>, Arc<Solved<Output>>)>,
    /// On whose behalf layers are made.
    pub context: OpContext<Output>,
}

#[async_trait]
impl InlineCache for Inline {
    async fn entry(
        &self,
        platform: Option<&str>,
        compression: Compression,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let named = |name: &Option<String>| name.is_none() || name.as_deref() == platform;
        let mut found = self.results.iter().filter(|(name, _)| named(name));
        let only = || self.results.first().filter(|_| self.results.len() == 1);
        let Some((_, solved)) = found.next().or_else(only) else { return Ok(None) };
        let Some(tree) = &solved.result else { return Ok(None) };
        let _status = self.context.progress.counter("preparing layers for inline cache", 0);
        let layers: Vec<Digest> =
            tree.layers(compression).await?.into_iter().map(|l| l.descriptor.digest).collect();
        let collected = self
            .known
            .collect(&solved.keys, Mode::Min, compression, &self.context, Collected::default())
            .await?;
        Ok(records(&collected.chains, &layers)?)
    }
}

/// The records as an image of these layers has them; none when no result is
/// made of them.
pub(crate) fn records(all: &Chains, layers: &[Digest]) -> Result<Option<Vec<u8>>, Error> {
    let mut place: HashMap<Digest, usize> = HashMap::new();
    let mut blobs = HashMap::new();
    for (at, layer) in layers.iter().enumerate() {
        for blob in all.blobs() {
            let plain = blob.annotations.get(DIFF_ID).is_some_and(|diff_id| diff_id == layer.as_str());
            if blob.digest == *layer || plain {
                place.insert(blob.digest.clone(), at);
                blobs.insert(blob.digest.clone(), blob.clone());
            }
        }
    }
    let mut chains = Chains::default();
    chains.read(&all.config(&HashSet::new()), &blobs)?;
    let mut config = chains.config(&HashSet::new());
    if config.layers.is_empty() {
        return Ok(None);
    }
    let below = config.layers.clone();
    for record in &mut config.records {
        for result in std::mem::take(&mut record.results) {
            let mut stack = Vec::new();
            let mut next = usize::try_from(result.layer).ok();
            while let Some(layer) = next.and_then(|at| below.get(at)).filter(|_| stack.len() <= below.len()) {
                stack.push(&layer.blob);
                next = usize::try_from(layer.parent).ok();
            }
            stack.reverse();
            let places = stack.iter().map(|blob| place.get(*blob).and_then(|at| i64::try_from(*at).ok()));
            let missing = || Error::config("a layer of a result is not one of the image");
            let places = places.collect::<Option<Vec<i64>>>().ok_or_else(missing)?;
            let fits = |(at, blob): (usize, &&Digest)| {
                layers.get(at) == Some(*blob) || place.get(*blob) == Some(&at)
            };
            if stack.len() <= layers.len() && stack.iter().enumerate().all(fits) {
                let layer = i64::try_from(stack.len()).unwrap_or(i64::MAX) - 1;
                record.results.push(crate::config::Result { layer, ..result });
            } else {
                record.chains.push(Chain { layers: places, created: NEVER });
            }
        }
    }
    Ok(Some(gojson::to_vec(&config.records).map_err(|e| Error::config(e.to_string()))?))
}
