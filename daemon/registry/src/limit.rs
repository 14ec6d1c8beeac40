//! How many transfers run at once per registry.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Per host: slots for blobs, and one slot more that only documents may use, so
/// that a manifest never waits behind gigabytes.
pub(crate) struct Limits {
    size: usize,
    hosts: Mutex<HashMap<String, Slots>>,
}

#[derive(Clone)]
struct Slots {
    blobs: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// A slot, free again when dropped.
pub(crate) struct Slot {
    _held: (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>),
}

impl Limits {
    pub(crate) fn new(size: usize) -> Self {
        Self { size: size.max(1), hosts: Mutex::default() }
    }

    /// Waits for a slot to transfer something of `media_type`.
    pub(crate) async fn slot(&self, domain: &str, media_type: &str) -> Slot {
        let slots = {
            let mut hosts = self.hosts.lock();
            match hosts.get(domain) {
                Some(slots) => slots.clone(),
                None => {
                    let slots = Slots {
                        blobs: Arc::new(Semaphore::new(self.size)),
                        all: Arc::new(Semaphore::new(self.size.saturating_add(1))),
                    };
                    hosts.insert(domain.to_owned(), slots.clone());
                    slots
                }
            }
        };
        // Nobody closes the semaphores, so an error cannot happen; without a
        // permit the transfer would merely be unlimited.
        let blob = match media_type.ends_with("+json") {
            true => None,
            false => slots.blobs.acquire_owned().await.ok(),
        };
        Slot { _held: (blob, slots.all.acquire_owned().await.ok()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_pass_blobs() {
        let limits = Limits::new(1);
        let blob = limits.slot("h", "layer").await;
        let document = limits.slot("h", "x+json").await;
        let other = limits.slot("other", "layer").await;
        let wait = limits.slot("h", "layer");
        tokio::pin!(wait);
        assert!(futures_util::poll!(&mut wait).is_pending());
        drop((document, other));
        assert!(futures_util::poll!(&mut wait).is_pending());
        drop(blob);
        wait.await;
    }
}
