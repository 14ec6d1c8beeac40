//! What a client asks for.

use std::collections::BTreeMap;

use base::Compatibility;
use proto::moby::buildkit::v1::sourcepolicy::Policy;
use proto::pb;

use crate::traces::SpanContext;

/// One build.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The client's name for it.
    pub id: String,
    /// The client's session; empty when there is none.
    pub session: String,
    /// LLB to build, unless a frontend is named.
    pub definition: Option<pb::Definition>,
    /// The frontend. Empty, and no definition: the client is its own frontend
    /// and comes through the gateway.
    pub frontend: String,
    /// The frontend's options.
    pub attrs: BTreeMap<String, String>,
    /// The frontend's inputs.
    pub inputs: BTreeMap<String, pb::Definition>,
    /// Where results go. None: they stay in the cache.
    pub exporters: Vec<ExporterSpec>,
    /// The client names further exporters when it has seen the result.
    pub session_exporters: bool,
    /// The client's span that the build is part of.
    pub parent: Option<SpanContext>,
    /// Remote caches to write.
    pub cache_exports: Vec<CacheEntry>,
    /// Remote caches to read.
    pub cache_imports: Vec<CacheEntry>,
    /// What the client allows the build to do beyond the sandbox.
    pub entitlements: Vec<String>,
    /// What the client says about sources.
    pub policy: Option<Policy>,
    /// The session of a client that is asked about sources; empty when none is.
    pub policy_session: String,
    /// Steps reach the network only through a proxy.
    pub proxy: bool,
    /// Not shown in the history.
    pub internal: bool,
    /// The release whose results are wanted.
    pub compatibility: Compatibility,
}

/// An exporter by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExporterSpec {
    /// Such as `image`.
    pub kind: String,
    /// Its options.
    pub attrs: BTreeMap<String, String>,
}

/// A remote cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheEntry {
    /// Such as `registry`.
    pub kind: String,
    /// Such as `ref`.
    pub attrs: BTreeMap<String, String>,
}
