//! Requests as they come and as builds take them; records as they go out.

use std::collections::BTreeMap;

use base::{Compatibility, Failure};
use build::{CacheEntry, ExporterSpec, Request, timestamp};
use proto::control as wire;
use refs::{PrunePolicy, Usage};

/// A `SolveRequest`.
pub(crate) fn request(r: wire::SolveRequest) -> Result<Request, Failure> {
    let compatibility = Compatibility::asked(r.compatibility_version)?;
    let mut exporters: Vec<ExporterSpec> =
        r.exporters.into_iter().map(|e| ExporterSpec { kind: e.r#type, attrs: e.attrs }).collect();
    if exporters.is_empty() && !r.exporter_deprecated.is_empty() {
        exporters.push(ExporterSpec { kind: r.exporter_deprecated, attrs: r.exporter_attrs_deprecated });
    }
    // Other values, such as `context`, mean something to frontends only.
    let is_time = |epoch: &&String| epoch.is_empty() || base::gotext::parse_int(epoch, 64).is_ok();
    if let Some(epoch) = r.frontend_attrs.get("build-arg:SOURCE_DATE_EPOCH").filter(is_time) {
        for exporter in &mut exporters {
            exporter.attrs.entry("source-date-epoch".to_owned()).or_insert_with(|| epoch.clone());
        }
    }
    let (cache_exports, cache_imports) = caches(r.cache.unwrap_or_default());
    Ok(Request {
        id: r.r#ref,
        session: r.session,
        // One without operations is an empty result; none at all is something else.
        definition: r.definition,
        frontend: r.frontend,
        attrs: r.frontend_attrs,
        inputs: r.frontend_inputs,
        exporters,
        session_exporters: r.enable_session_exporter,
        parent: None,
        cache_exports,
        cache_imports,
        entitlements: r.entitlements,
        policy: r.source_policy,
        policy_session: r.source_policy_session,
        proxy: r.proxy_network,
        internal: r.internal,
        compatibility,
    })
}

fn caches(c: wire::CacheOptions) -> (Vec<CacheEntry>, Vec<CacheEntry>) {
    let entry = |e: wire::CacheOptionsEntry| CacheEntry { kind: e.r#type, attrs: e.attrs };
    let registry = |reference: String, mut attrs: BTreeMap<String, String>| {
        attrs.insert("ref".to_owned(), reference);
        CacheEntry { kind: "registry".to_owned(), attrs }
    };
    let mut exports: Vec<_> = c.exports.into_iter().map(entry).collect();
    if !c.export_ref_deprecated.is_empty() {
        exports.push(registry(c.export_ref_deprecated, c.export_attrs_deprecated));
    }
    let mut imports: Vec<_> = c.imports.into_iter().map(entry).collect();
    imports.extend(c.import_refs_deprecated.into_iter().map(|r| registry(r, BTreeMap::new())));
    (exports, imports)
}

/// A record of disk usage.
pub(crate) fn usage(u: Usage) -> wire::UsageRecord {
    wire::UsageRecord {
        id: u.id,
        mutable: u.mutable,
        in_use: u.in_use,
        size: i64::try_from(u.size).unwrap_or(i64::MAX),
        created_at: Some(timestamp(u.created_at)),
        last_used_at: u.last_used_at.map(timestamp),
        usage_count: i64::try_from(u.usage_count).unwrap_or(i64::MAX),
        description: u.description,
        record_type: u.record_type.as_str().to_owned(),
        shared: u.shared,
        parents: u.parents,
        ..wire::UsageRecord::default()
    }
}

/// A rule of garbage collection.
pub(crate) fn policy(p: &PrunePolicy) -> wire::types::GcPolicy {
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    wire::types::GcPolicy {
        all: p.all,
        keep_duration: p.keep_duration.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)),
        reserved_space: bytes(p.reserved),
        filters: p.filters.clone(),
        max_used_space: bytes(p.max_used),
        min_free_space: bytes(p.min_free),
    }
}

/// What this program is.
pub(crate) fn version() -> wire::types::BuildkitVersion {
    use base::version::{DOCKERFILE, PACKAGE, REVISION, VERSION};
    wire::types::BuildkitVersion {
        package: PACKAGE.to_owned(),
        version: VERSION.to_owned(),
        revision: REVISION.to_owned(),
        dockerfile_version: DOCKERFILE.to_owned(),
    }
}
