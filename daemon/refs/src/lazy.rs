//! Bringing lazy refs here.
//!
//! The layers of a chain are fetched and unpacked next to each other: with
//! overlays a layer can be unpacked before the ones below. Joining the chain,
//! which is cheap, then goes from the bottom up. A blob goes through once:
//! from its source into the store and, decompressed, into its directory, and
//! counts only when both digests came out as promised.
//!
//! None of this waits for the disk: what a kill takes away is brought here
//! again, and the first result that is built on it takes it along.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use base::task::blocking;
use base::{Failure, Kind};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use futures_util::stream::FuturesOrdered;
use store::{Applied, Ingest, LooseLayer, Pin, Whiteouts};

use crate::Error;
use crate::fetch::{BlobReader, Provider, pipe, pump};
use crate::held::{Held, Ref, snapshot_of};
use crate::model::{Blob, Content};
use crate::open::Inner;

impl Ref {
    /// Fetches and unpacks whatever is missing, siblings in parallel.
    ///
    /// # Errors
    /// [`Error::NoSource`], and those of the source.
    pub async fn ensure(&self) -> Result<(), Failure> {
        ensure(self.held.clone()).await
    }
}

/// A layer that is unpacked but not yet a snapshot.
pub(crate) struct Unpacked {
    pin: Pin,
    loose: LooseLayer,
    applied: Applied,
}

/// Brings a ref here. Of several who want the same layer at once, one works.
pub(crate) fn ensure(held: Arc<Held>) -> BoxFuture<'static, Result<(), Failure>> {
    async move {
        // The lazy layers on top of each other, and what they stand on.
        let mut lazy = Vec::new();
        let mut next = Some(&held);
        while let Some(held) = next {
            let record = held.record()?;
            if record.snapshot.is_some() {
                break;
            }
            if !matches!(record.content, Content::Layer { .. }) {
                composed(held).await?;
                break;
            }
            lazy.push(held.clone());
            next = held.parents.first();
        }
        // Bottom up; all are driven while the first in line is waited for.
        let mut arriving: FuturesOrdered<_> = lazy.into_iter().rev().map(arrive).collect();
        while let Some(layer) = arriving.next().await {
            let layer = layer?;
            let joined = || async { join(&layer).await };
            layer.refs.unlazy.run(layer.id.clone(), joined).await?;
        }
        Ok(())
    }
    .boxed()
}

async fn composed(held: &Arc<Held>) -> Result<(), Failure> {
    let work = || async {
        // Somebody may have been faster.
        if held.record()?.snapshot.is_some() {
            return Ok(());
        }
        try_join_all(held.parents.iter().cloned().map(ensure)).await?;
        crate::compose::build(held).await
    };
    held.refs.unlazy.run(held.id.clone(), work).await
}

fn blob_of(held: &Held) -> Result<Blob, Error> {
    let blob = held.record()?.blob.clone();
    blob.ok_or_else(|| Error::Invalid(format!("{} has neither files nor a blob", held.id)))
}

/// Everything that can be done without the layers below.
async fn arrive(held: Arc<Held>) -> Result<Arc<Held>, Failure> {
    let blob = blob_of(&held)?;
    if held.refs.ledger.store.snapshots().is_overlay() {
        let work = || async {
            if held.unpacked.lock().is_none() && held.record()?.snapshot.is_none() {
                let unpacked = unpack_loose(&held, &blob).await?;
                *held.unpacked.lock() = Some(unpacked);
            }
            Ok::<_, Failure>(())
        };
        held.refs.unlazy.run(format!("unpack/{}", held.id), work).await?;
    } else if held.record()?.snapshot.is_none() {
        local_blob(&held, &blob).await?;
    }
    Ok(held)
}

/// The rest, with the layers below in place.
async fn join(held: &Arc<Held>) -> Result<(), Failure> {
    if held.record()?.snapshot.is_some() {
        return Ok(());
    }
    let unpacked = held.unpacked.lock().take();
    if let Some(unpacked) = unpacked {
        let held = held.clone();
        return blocking(move || join_chain(&held, unpacked)).await;
    }
    let blob = blob_of(held)?;
    let pin = local_blob(held, &blob).await?;
    let permit = held.refs.unpacks.acquire().await;
    let counter = held.provider().map(|p| p.progress.counter(format!("extracting {}", pin.digest()), 0));
    let held = held.clone();
    let done = blocking(move || unpack_copy(&held, &pin, &blob)).await;
    drop((permit, counter));
    done
}

/// Unpacks the layer on its own, from the store or straight from its source.
async fn unpack_loose(held: &Arc<Held>, blob: &Blob) -> Result<Unpacked, Failure> {
    let inner = held.refs.clone();
    // Waiting for others must not take the place of those who work.
    let _permit = inner.unpacks.acquire().await.map_err(|_| Failure::canceled("shutting down"))?;
    let store = inner.ledger.store.clone();
    let digest = blob.descriptor.digest.clone();
    let pin = blocking({
        let (store, digest) = (store.clone(), digest.clone());
        move || Ok(store.blobs().pin(&digest)?)
    })
    .await?;
    let provider = held.provider();
    let extracting = provider.as_ref().map(|p| p.progress.counter(format!("extracting {digest}"), 0));
    let whiteouts = match held.parents.first() {
        Some(_) => Whiteouts::Overlay { userxattr: store.snapshots().userxattr() },
        None => Whiteouts::Remove,
    };
    let diff_id = blob.diff_id.clone();
    let begin = move |store: &store::Store| store.snapshots().begin_layer(&base::id::fresh());
    let done = if let Some(pin) = pin {
        blocking(move || {
            let loose = begin(&store)?;
            let applied = store::unpack_layer(pin.open()?, &loose.dir(), whiteouts, Some(&diff_id))?;
            Ok(Unpacked { pin, loose, applied })
        })
        .await
    } else {
        let provider = provider.ok_or_else(|| no_source(held, blob))?;
        let (feed, reader) = pipe();
        let descriptor = blob.descriptor.clone();
        let transfer = pump(provider, descriptor.clone(), feed);
        let work = blocking(move || {
            let loose = begin(&store)?;
            let mut tee = Tee { reader, ingest: store.blobs().ingest()? };
            let applied = store::unpack_layer(&mut tee, &loose.dir(), whiteouts, Some(&diff_id));
            // When the bytes are not those promised, that is what is wrong,
            // whatever unpacking them said.
            let broken = match &applied {
                Ok(_) => Ok(0),
                Err(_) => io::copy(&mut tee, &mut io::sink()),
            };
            let pin = match broken {
                Ok(_) => tee.ingest.commit(Some((&descriptor.digest, descriptor.size)), labels(&diff_id))?,
                Err(_) => return Err(applied.err().unwrap_or(store::Error::Canceled).into()),
            };
            Ok(Unpacked { pin, loose, applied: applied? })
        });
        both(transfer, work).await
    };
    drop(extracting);
    done.map_err(|e| e.context(format!("unpack layer {digest}")))
}

/// The transfer's own error is the better one: the other end only sees that
/// nothing comes any more.
async fn both<T>(
    transfer: impl Future<Output = Result<(), Failure>>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let (transfer, work) = tokio::join!(transfer, work);
    transfer?;
    work
}

fn labels(diff_id: &base::Digest) -> BTreeMap<String, String> {
    BTreeMap::from([("containerd.io/uncompressed".to_owned(), diff_id.to_string())])
}

fn no_source(held: &Held, blob: &Blob) -> Error {
    Error::NoSource { id: held.id.clone(), digest: blob.descriptor.digest.clone() }
}

/// Keeps what is read.
struct Tee {
    reader: BlobReader,
    ingest: Ingest,
}

impl Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buf)?;
        self.ingest.write_all(buf.get(..n).unwrap_or_default())?;
        Ok(n)
    }
}

/// The layers below are there: takes over what only they know, and makes the
/// layer a snapshot on them.
fn join_chain(held: &Held, unpacked: Unpacked) -> Result<(), Failure> {
    let Unpacked { pin, loose, applied } = unpacked;
    let store = &held.refs.ledger.store;
    let parent = held.parents.first().map(|below| snapshot_of(below)).transpose()?;
    if let Some(parent) = &parent {
        loose.own_root(parent)?;
        store::inherit(&loose.dir(), &applied.implied, &store.snapshots().chain(parent)?)?;
    }
    store.fail().pass("layer.unpacked")?;
    held.refs.ledger.change(false, |change| {
        store.snapshots().adopt(change.tx, &loose, parent.as_deref())?;
        set_unpacked(change, held, &pin, loose.id())
    })?;
    loose.keep();
    Ok(())
}

fn set_unpacked(
    change: &mut crate::ledger::Change<'_>,
    held: &Held,
    pin: &Pin,
    snapshot: &str,
) -> Result<(), Error> {
    let mut record = change.get(&held.id)?;
    record.snapshot = Some(snapshot.to_owned());
    record.size = None;
    debug_assert!(record.blobs().any(|b| b.descriptor.digest == *pin.digest()));
    change.put(&held.id, record)
}

/// Without overlays: unpacks onto a copy of what is below.
fn unpack_copy(held: &Held, pin: &Pin, blob: &Blob) -> Result<(), Failure> {
    let inner = &held.refs;
    let store = &inner.ledger.store;
    let parent = held.parents.first().map(|below| snapshot_of(below)).transpose()?;
    let id = base::id::fresh();
    store.snapshots().prepare(&id, parent.as_deref())?;
    let unpack = || -> Result<(), Failure> {
        let dir = store.snapshots().dir(&id);
        store::unpack_layer(pin.open()?, &dir, Whiteouts::Remove, Some(&blob.diff_id))?;
        Ok(inner.ledger.change(false, |change| {
            store.snapshots().commit(change.tx, &id)?;
            set_unpacked(change, held, pin, &id)
        })?)
    };
    unpack().inspect_err(|_| inner.drop_snapshot(&id))
}

/// The blob of a layer in the store, fetched if it is not there.
pub(crate) async fn local_blob(held: &Arc<Held>, blob: &Blob) -> Result<Pin, Failure> {
    let (inner, digest) = (held.refs.clone(), blob.descriptor.digest.clone());
    let key = digest.to_string();
    let work = || async {
        let known = {
            let (store, digest) = (inner.ledger.store.clone(), digest.clone());
            blocking(move || Ok(store.blobs().pin(&digest)?)).await?
        };
        if let Some(pin) = known {
            return Ok(pin);
        }
        let provider = held.provider().ok_or_else(|| no_source(held, blob))?;
        let pin = fetch(&inner, provider, blob).await?;
        let (held, kept) = (held.clone(), pin.clone());
        blocking(move || {
            // Writing the record again makes it hold the blob.
            held.refs.ledger.update(&held.id, false, |_| {})?;
            drop(kept);
            Ok(())
        })
        .await?;
        Ok(pin)
    };
    inner.blobs.run(key, work).await
}

async fn fetch(inner: &Arc<Inner>, provider: Provider, blob: &Blob) -> Result<Pin, Failure> {
    let (feed, mut reader) = pipe();
    let (descriptor, diff_id) = (blob.descriptor.clone(), blob.diff_id.clone());
    let transfer = pump(provider, descriptor.clone(), feed);
    let store = inner.ledger.store.clone();
    let work = blocking(move || {
        let mut ingest = store.blobs().ingest()?;
        io::copy(&mut reader, &mut ingest)
            .map_err(|e| Failure::new(Kind::Unavailable, format!("store {}: {e}", descriptor.digest)))?;
        Ok(ingest.commit(Some((&descriptor.digest, descriptor.size)), labels(&diff_id))?)
    });
    both(transfer, work).await
}
