//! The key graph and the results behind it, as the engine sees them.
//!
//! A key is a node. The key of an operation without inputs has a name that
//! follows from its digest ([`crate::KeyDigest::root_key`]); every other key has a
//! random name and is found by walking [`Link`]s from the keys of its inputs:
//! a key that can be reached from every input is the key of the operation. Keys
//! have results. What is stored here is enough to export a cache and to import
//! one.

use std::sync::Arc;

use async_trait::async_trait;
use base::{Digest, Failure, Timestamp};

use crate::context::OpContext;
use crate::graph::KeyDigest;

/// The name of a key.
pub type KeyId = Arc<str>;

/// From the key of an input to the key of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// Which input, from zero.
    pub input: usize,
    /// Which output of the operation.
    pub output: usize,
    /// The digest of the operation's cache map.
    pub digest: KeyDigest,
    /// Which part of the input matters.
    pub selector: Option<Digest>,
}

/// A result of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The name under which the [`ResultStore`] knows it.
    pub id: Arc<str>,
    /// When it was made; the newest is used.
    pub created: Timestamp,
}

/// A change of the key graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `from` leads to `to`.
    Link {
        /// The key of the input.
        from: KeyId,
        /// How.
        link: Link,
        /// The key of the operation.
        to: KeyId,
    },
    /// `key` has a result. One of the same id is replaced.
    Result {
        /// The key.
        key: KeyId,
        /// Its result.
        record: Record,
    },
}

/// The key graph. Calls are made from the engine's own task and have to be fast.
pub trait KeyIndex: Send + Sync {
    /// Whether there is a key of this name.
    fn exists(&self, key: &str) -> Result<bool, Failure>;

    /// Where `link` leads from `key`.
    fn links(&self, key: &str, link: &Link) -> Result<Vec<KeyId>, Failure>;

    /// Every link that leads to `key`, with the key it comes from.
    fn backlinks(&self, key: &str) -> Result<Vec<(KeyId, Link)>, Failure>;

    /// The results of `key`.
    fn results(&self, key: &str) -> Result<Vec<Record>, Failure>;

    /// The keys that have this result.
    fn keys_of(&self, result: &str) -> Result<Vec<KeyId>, Failure>;

    /// Names of all results.
    fn all_results(&self) -> Result<Vec<Arc<str>>, Failure>;

    /// Makes the changes, all or none.
    fn save(&self, changes: &[Change]) -> Result<(), Failure>;

    /// Forgets a result, and the keys that lead to no other.
    fn release(&self, result: &str) -> Result<(), Failure>;
}

/// Forgets the results that `exists` does not know. To be called at start and
/// after results were pruned.
///
/// # Errors
/// Those of the index.
pub fn sweep(index: &dyn KeyIndex, exists: impl Fn(&str) -> bool) -> Result<usize, Failure> {
    let mut gone = 0;
    for result in index.all_results()? {
        if !exists(&result) {
            index.release(&result)?;
            gone += 1;
        }
    }
    Ok(gone)
}

/// Where results are kept beyond a build.
#[async_trait]
pub trait ResultStore<R>: Send + Sync {
    /// Makes `result` one that [`Self::load`] finds, and names it.
    async fn save(&self, result: &R) -> Result<String, Failure>;

    /// Gets a result back; `None` when it is gone. Lazy results stay lazy: this
    /// fetches nothing that is not needed to hold the result.
    async fn load(&self, id: &str, cx: &OpContext<R>) -> Result<Option<R>, Failure>;

    /// Whether [`Self::load`] would find it. Called from the engine's task.
    fn exists(&self, id: &str) -> bool;
}

/// A further place where results are looked up, such as an imported cache.
/// What is found there is saved in the solver's own index when it is used.
pub struct Source<R> {
    /// Two sources of one id are the same.
    pub id: Arc<str>,
    /// Its key graph.
    pub keys: Arc<dyn KeyIndex>,
    /// Its results.
    pub results: Arc<dyn ResultStore<R>>,
}

impl<R> Clone for Source<R> {
    fn clone(&self) -> Self {
        Self { id: self.id.clone(), keys: self.keys.clone(), results: self.results.clone() }
    }
}
