//! Images as chains of refs, without fetching anything.

use std::sync::Arc;

use base::progress::VertexSink;
use base::task::blocking;
use base::{Descriptor, Digest, Failure, Timestamp};

use crate::fetch::{BlobSource, Provider};
use crate::held::{Held, Ref};
use crate::model::{Blob, Content, Record, RecordType, chain};
use crate::open::Inner;
use crate::{Error, Refs};

/// A layer of an image that may not be here yet.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// When it was made, from the image's history.
    pub created_at: Option<Timestamp>,
    /// For people: `pulled from docker.io/library/alpine:3`.
    pub description: String,
}

impl Refs {
    /// A chain of refs for the layers of an image, bottom first; the last of
    /// them. Layers that are known by their chain are shared. Nothing is
    /// fetched. `None` for an image without layers.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn image(
        &self,
        layers: Vec<Layer>,
        source: Arc<dyn BlobSource>,
        record_type: RecordType,
        progress: VertexSink,
    ) -> Result<Option<Ref>, Failure> {
        let inner = self.inner.clone();
        blocking(move || {
            let provider = Provider { source, progress };
            let mut top: Option<Arc<Held>> = None;
            for layer in layers {
                let held = inner.image_layer(layer, top.take(), record_type)?;
                held.attach(provider.clone());
                top = Some(held);
            }
            Ok(top.map(Ref::new))
        })
        .await
    }
}

impl Inner {
    /// Finds the layer on top of `below`, or writes it down.
    fn image_layer(
        self: &Arc<Self>,
        layer: Layer,
        below: Option<Arc<Held>>,
        record_type: RecordType,
    ) -> Result<Arc<Held>, Error> {
        let under = below.as_ref().map(|below| below.record()).transpose()?;
        let blob = chain(Some(&layer.descriptor.digest), &layer.diff_id);
        let own_chain = chain(under.as_ref().and_then(|r| r.chain.as_ref()), &layer.diff_id);
        let blob_chain = chain(under.as_ref().and_then(|r| r.blob_chain.as_ref()), &blob);
        let mut spare = Vec::new();
        let mut state = self.ledger.lock();
        let known: Vec<String> = state.blob_chains.get(&blob_chain).into_iter().flatten().cloned().collect();
        for id in known {
            if let Ok(held) = self.hold_locked(&mut state, &id, &mut spare) {
                drop(state);
                // The guard of `below` may be the last one, if that is another record.
                drop((spare, below));
                return Ok(held);
            }
        }
        // The same files, compressed differently, on the same files: no need
        // to unpack them again.
        let below_snapshot = under.as_ref().and_then(|r| r.snapshot.clone());
        let twins: Vec<String> = state.chains.get(&own_chain).into_iter().flatten().cloned().collect();
        let parent_of = |id: &String| {
            let entry = state.entries.get(id).filter(|entry| !entry.dying)?;
            let snapshot = entry.record.snapshot.clone()?;
            let parent = match &entry.record.content {
                Content::Layer { parent } => parent.as_ref(),
                Content::Merge { .. } | Content::Diff { .. } => return None,
            };
            let parent = match parent {
                Some(parent) => Some(state.entries.get(parent)?.record.snapshot.clone()?),
                None => None,
            };
            (parent == below_snapshot && entry.record.committed_from.is_none()).then_some(snapshot)
        };
        let snapshot = twins.iter().find_map(parent_of);
        drop(state);
        drop(spare);
        let record = Record {
            record_type,
            description: layer.description,
            created_at: layer.created_at.unwrap_or_else(Timestamp::now),
            blob: Some(Blob { descriptor: layer.descriptor, diff_id: layer.diff_id }),
            chain: Some(own_chain),
            blob_chain: Some(blob_chain),
            ..Record::new(Content::Layer { parent: below.as_ref().map(|b| b.id.clone()) })
        };
        let record = record.on(under.as_slice())?;
        self.begin_shared(&base::id::fresh(), record, snapshot, below)
    }

    /// Begins a record that takes `snapshot` from others, if they still have
    /// it when it is written.
    fn begin_shared(
        self: &Arc<Self>,
        id: &str,
        mut record: Record,
        snapshot: Option<String>,
        below: Option<Arc<Held>>,
    ) -> Result<Arc<Held>, Error> {
        let held = Held::new(self.clone(), id, below.into_iter().collect());
        // After a kill the image is looked up again, so this need not be on
        // disk before something is built on it, which takes it along.
        self.ledger.change(false, |change| {
            if let Some(snapshot) = snapshot
                && self.ledger.store.snapshots().exists(change.tx, &snapshot)?
            {
                record.snapshot = Some(snapshot);
            }
            change.put_held(&held, record)
        })?;
        Ok(held)
    }
}
