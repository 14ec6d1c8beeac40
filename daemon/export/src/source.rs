//! What is exported: a build's result.

use std::collections::BTreeMap;

use async_trait::async_trait;
use base::Failure;
use refs::Ref;
use store::Compression;

use crate::attest::Attestation;

/// A build's result: one tree, or one for each platform. No tree is an empty one.
#[derive(Clone, Default)]
pub struct Source {
    /// The tree, when there is only one.
    pub single: Option<Ref>,
    /// Trees by platform; an empty map when there is only one tree.
    pub refs: BTreeMap<String, Option<Ref>>,
    /// What goes with them, such as `containerimage.config`.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// What is said about them, by platform.
    pub attestations: BTreeMap<String, Vec<Attestation>>,
}

impl Source {
    /// Whether there is one tree per platform.
    pub(crate) fn is_map(&self) -> bool {
        !self.refs.is_empty()
    }

    /// The tree of a platform. A result with only one tree has that for every
    /// platform. The outer none says that there is no such platform.
    pub fn find(&self, platform: &str) -> Option<Option<&Ref>> {
        if self.refs.is_empty() {
            return Some(self.single.as_ref());
        }
        let found = self.refs.get(platform);
        let only = || self.refs.values().next().filter(|_| self.refs.len() == 1);
        found.or_else(only).map(Option::as_ref)
    }
}

/// Makes what an image config tells later builds about its layers.
#[async_trait]
pub trait InlineCache: Send + Sync {
    /// The entry for `platform`, or for the only tree; none when there is
    /// nothing to tell. Layers are as an exporter with `compression` has them.
    ///
    /// # Errors
    /// When it cannot be made.
    async fn entry(
        &self,
        platform: Option<&str>,
        compression: Compression,
    ) -> Result<Option<Vec<u8>>, Failure>;
}
