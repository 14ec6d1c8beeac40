//! What sources turned out to be, for as long as a build runs.
//!
//! A name that can mean something else tomorrow means one thing in one build:
//! who asks second, be it a frontend, a policy or another step, gets the answer
//! that the first one got.

use std::collections::HashMap;
use std::sync::Arc;

use base::Failure;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::{git, http};
use crate::Behalf;

/// What was looked up in one build.
#[derive(Default)]
pub struct Resolved {
    pub(crate) http: Memory<http::Found>,
    pub(crate) git: Memory<git::Found>,
}

/// Answers by what was asked.
pub(crate) struct Memory<T>(Mutex<HashMap<String, Arc<OnceCell<T>>>>);

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Memory<T> {
    fn cell(&self, key: &str) -> Arc<OnceCell<T>> {
        self.0.lock().entry(key.to_owned()).or_default().clone()
    }

    fn known(&self, key: &str) -> Option<T> {
        self.0.lock().get(key).and_then(|cell| cell.get().cloned())
    }
}

impl Behalf {
    /// What one of the builds already knows under `key`.
    pub(crate) fn known<T: Clone>(&self, memory: fn(&Resolved) -> &Memory<T>, key: &str) -> Option<T> {
        self.builds.iter().find_map(|build| memory(&build.resolved).known(key))
    }

    /// What is known under `key`, or what `work` finds out; of several who want
    /// to know at once, one works. An error is nobody's knowledge.
    pub(crate) async fn once<T: Clone>(
        &self,
        memory: fn(&Resolved) -> &Memory<T>,
        key: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if let Some(known) = self.known(memory, key) {
            return Ok(known);
        }
        match self.builds.first() {
            Some(build) => memory(&build.resolved).cell(key).get_or_try_init(|| work).await.cloned(),
            None => work.await,
        }
    }
}
