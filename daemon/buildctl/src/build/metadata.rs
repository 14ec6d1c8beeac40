//! What a build leaves behind beside its results: the metadata file, cache metrics.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use base::Failure;
use base::rawjson;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::control::StatusResponse;
use serde::Serialize;

/// Writes a file so that nobody sees a part of it.
pub(super) fn write_whole(path: &str, data: &[u8]) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::internal(format!("write {path}: {e}"));
    let target = Path::new(path);
    let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = target.with_file_name(format!(".tmp-{name}-{}", base::id::fresh()));
    let write = std::fs::write(&temporary, data).and_then(|()| std::fs::rename(&temporary, target));
    write.map_err(|e| {
        _ = std::fs::remove_file(&temporary);
        fail(e)
    })
}

/// The exporters' answers as JSON. Those that are JSON objects in base64 are
/// shown as objects.
pub(super) fn metadata_json(response: &BTreeMap<String, String>) -> Vec<u8> {
    let mut out = String::from("{");
    for (i, (key, value)) in response.iter().enumerate() {
        let decoded = STANDARD.decode(value).ok().and_then(|b| String::from_utf8(b).ok());
        let object = decoded.filter(|text| {
            matches!(serde_json::from_str(text), Ok(serde_json::Value::Object(fields)) if !fields.is_empty())
        });
        let quote = |text: &str| {
            String::from_utf8(base::gojson::to_vec(&text).unwrap_or_default()).unwrap_or_default()
        };
        let comma = if i > 0 { "," } else { "" };
        out += &format!("{comma}{}:{}", quote(key), object.unwrap_or_else(|| quote(value)));
    }
    rawjson::indent(&(out + "}")).into_bytes()
}

/// Counts how much of a build was cached.
pub(super) struct Metrics {
    begun: Instant,
    /// By digest, in the order in which they came.
    steps: Vec<(String, Step)>,
}

#[derive(Default)]
struct Step {
    name: String,
    from: bool,
    cached: bool,
    completed: bool,
}

#[derive(Default, Serialize)]
struct Counts {
    total: u64,
    completed: u64,
    user_total: u64,
    user_cached: u64,
    user_completed: u64,
    user_cacheable: u64,
    from: u64,
    miss: u64,
    client_duration_ms: u64,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), steps: Vec::new() }
    }

    pub(super) fn update(&mut self, status: &StatusResponse) {
        for vertex in &status.vertexes {
            let at = self.steps.iter().position(|(digest, _)| *digest == vertex.digest);
            let at = at.unwrap_or_else(|| {
                let step = Step { name: vertex.name.clone(), ..Step::default() };
                self.steps.push((vertex.digest.clone(), step));
                self.steps.len() - 1
            });
            let Some((_, step)) = self.steps.get_mut(at) else { continue };
            step.from |= vertex.name.starts_with('[') && vertex.name.contains("] FROM");
            step.cached |= vertex.cached;
            step.completed |= vertex.completed.is_some();
        }
    }

    /// A line for each step that was not cached, and the counts as JSON.
    pub(super) fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let mut counts = Counts {
            client_duration_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..Counts::default()
        };
        for (_, step) in &self.steps {
            counts.total += 1;
            counts.completed += u64::from(step.completed);
            let ours = ["[internal]", "[auth]", "importing cache", "exporting "];
            if ours.iter().any(|prefix| step.name.starts_with(prefix)) {
                continue;
            }
            counts.user_total += 1;
            counts.user_cacheable += u64::from(!step.from);
            counts.user_completed += u64::from(step.completed);
            counts.from += u64::from(step.from);
            if step.cached {
                counts.user_cached += 1;
            } else if !step.from {
                counts.miss += 1;
                writeln!(out, "cache miss: {}", step.name)?;
            }
        }
        let json = serde_json::to_string(&counts)?;
        writeln!(out, "{json}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_unpacked() {
        let response = [
            ("containerimage.digest".to_owned(), "sha256:abc".to_owned()),
            ("containerimage.descriptor".to_owned(), STANDARD.encode(r#"{"z":1,"a":["x:y",{}]}"#)),
            ("number".to_owned(), STANDARD.encode("12")),
        ];
        let text = String::from_utf8(metadata_json(&response.into())).unwrap();
        assert_eq!(
            text,
            "{\n  \"containerimage.descriptor\": {\n    \"z\": 1,\n    \"a\": [\n      \"x:y\",\n      {}\n    ]\n  },\n  \
             \"containerimage.digest\": \"sha256:abc\",\n  \"number\": \"MTI=\"\n}"
        );
        assert_eq!(metadata_json(&BTreeMap::new()), b"{}");
    }

    #[test]
    fn misses_are_counted() {
        let mut metrics = Metrics::new();
        let vertex = |digest: &str, name: &str, cached| proto::control::Vertex {
            digest: digest.into(),
            name: name.into(),
            cached,
            completed: Some(prost_types::Timestamp::default()),
            ..Default::default()
        };
        metrics.update(&StatusResponse {
            vertexes: vec![
                vertex("1", "[internal] load", false),
                vertex("2", "[1/2] FROM x", false),
                vertex("3", "[2/2] RUN y", false),
                vertex("4", "[2/2] RUN z", true),
            ],
            ..Default::default()
        });
        let mut out = Vec::new();
        metrics.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with(
            "cache miss: [2/2] RUN y\n{\"total\":4,\"completed\":4,\"user_total\":3,\"user_cached\":1,"
        ));
        assert!(text.contains("\"user_cacheable\":2,\"from\":1,\"miss\":1"), "{text}");
    }
}
