//! Bills of materials told in which layers their files are.
//!
//! A scanner sees the result as one tree. A file that a bill names and nothing
//! is said about gets the digest of the layer that brought it, as a comment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{Digest, Failure, gojson, gopath};
use serde_json::{Value, json};
use store::Decompressor;
use store::tar::Reader;

use crate::attest::Attestation;
use crate::content::Layer;

/// `attestation` with comments, if it is a bill of materials of the result
/// itself and can be read; otherwise as it is.
///
/// # Errors
/// When a layer cannot be had.
pub(crate) async fn supplement(attestation: Attestation, layers: &[Layer]) -> Result<Attestation, Failure> {
    if !attestation.is_core_sbom() || layers.is_empty() {
        return Ok(attestation);
    }
    let bytes = attestation.content().await?;
    // What is no such document is passed on as it is.
    let Ok(mut document) = serde_json::from_slice::<Value>(&bytes) else { return Ok(attestation) };
    let Some(files) = document.get_mut("files").and_then(Value::as_array_mut) else {
        return Ok(attestation);
    };
    let mut wanted: BTreeSet<String> = files.iter().filter(|f| is_bare(f)).filter_map(name).collect();
    let mut found = BTreeMap::new();
    for layer in layers.iter().rev() {
        if wanted.is_empty() {
            break;
        }
        let pin = layer.bytes.fetch().await?;
        let (names, rest) = base::task::blocking(move || brought(&pin, wanted)).await?;
        wanted = rest;
        found.extend(names.into_iter().map(|name| (name, layer.descriptor.digest.clone())));
    }
    for file in files.iter_mut().filter(|f| is_bare(f)) {
        let layer: Option<&Digest> = name(file).and_then(|name| found.get(&name));
        if let Some(digest) = layer {
            file["comment"] = format!("layerID: {digest}").into();
        }
    }
    if let Some(object) = document.as_object_mut() {
        let info = object.entry("creationInfo").or_insert_with(|| json!({}));
        let tool = json!(format!("Tool: buildkit-{}", base::version::VERSION));
        match info.get_mut("creators").and_then(Value::as_array_mut) {
            Some(creators) => creators.push(tool),
            None => {
                if let Some(info) = info.as_object_mut() {
                    info.insert("creators".to_owned(), json!([tool]));
                }
            }
        }
    }
    let bytes = gojson::to_vec(&document).map_err(|e| Failure::internal(e.to_string()))?;
    Ok(attestation.made(Arc::new(bytes)))
}

/// Whether nothing is said about a file.
fn is_bare(file: &Value) -> bool {
    file.get("comment").and_then(Value::as_str).is_none_or(str::is_empty)
}

fn name(file: &Value) -> Option<String> {
    Some(gopath::join(["/", file.get("fileName")?.as_str()?]))
}

/// Which of `wanted` are in a layer, and the others.
fn brought(
    layer: &store::Pin,
    mut wanted: BTreeSet<String>,
) -> Result<(Vec<String>, BTreeSet<String>), Failure> {
    let mut names = Vec::new();
    let bytes = Decompressor::new(layer.open()?)
        .map_err(|e| Failure::internal(format!("read layer {}: {e}", layer.digest())))?;
    let mut tar = Reader::new(bytes);
    while let Some(header) = tar.next_entry()? {
        let path = gopath::join(["/", &String::from_utf8_lossy(&header.name)]);
        if wanted.remove(&path) {
            names.push(path);
        }
    }
    Ok((names, wanted))
}
