//! An LLB definition as JSON of the Go structs, for sources in lint reports.

use std::collections::BTreeMap;

use prost::Message as _;
use proto::pb;
use serde::Serialize;

use super::{base64_list, is_false};

/// A definition, without what a source's own has not: it names no sources.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Definition {
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "base64_list")]
    def: Vec<Vec<u8>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, Metadata>,
    #[serde(rename = "Source", skip_serializing_if = "Option::is_none")]
    source: Option<Empty>,
}

#[derive(Debug, Clone, Serialize)]
struct Empty {}

#[derive(Debug, Clone, Serialize)]
struct Metadata {
    #[serde(skip_serializing_if = "is_false")]
    ignore_cache: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    description: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    export_cache: Option<ExportCache>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    caps: BTreeMap<String, bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress_group: Option<ProgressGroup>,
}

#[derive(Debug, Clone, Serialize)]
struct ExportCache {
    #[serde(rename = "Value", skip_serializing_if = "is_false")]
    value: bool,
}

#[derive(Debug, Clone, Serialize)]
struct ProgressGroup {
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "is_false")]
    weak: bool,
}

/// The definition that `bytes` are; `None` when they are none.
pub(super) fn decode(bytes: &[u8]) -> Option<Definition> {
    let definition = pb::Definition::decode(bytes).ok()?;
    Some(Definition {
        def: definition.def,
        metadata: definition.metadata.into_iter().map(|(digest, m)| (digest, metadata(m))).collect(),
        source: definition.source.map(|_| Empty {}),
    })
}

fn metadata(m: pb::OpMetadata) -> Metadata {
    Metadata {
        ignore_cache: m.ignore_cache,
        description: m.description,
        export_cache: m.export_cache.map(|e| ExportCache { value: e.value }),
        caps: m.caps,
        progress_group: m.progress_group.map(|g| ProgressGroup { id: g.id, name: g.name, weak: g.weak }),
    }
}
