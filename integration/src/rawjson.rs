//! Progress as a machine reads it: one JSON object per line.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

/// A step of a build, as its last event left it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// For people.
    pub name: String,
    /// Its result was found, not made.
    pub cached: bool,
    /// It began.
    pub started: bool,
    /// It ended.
    pub completed: bool,
    /// Why it failed.
    pub error: String,
    /// What it printed.
    pub log: String,
    /// The digests of the steps it needs.
    pub inputs: Vec<String>,
    /// The ids of its counters, and whether they ended.
    pub counters: BTreeMap<String, bool>,
}

/// All steps by digest.
///
/// # Errors
/// When a line is not JSON, or something in it is missing.
pub fn steps(text: &str) -> Result<BTreeMap<String, Step>> {
    let mut steps: BTreeMap<String, Step> = BTreeMap::new();
    for line in text.lines().filter(|l| l.starts_with('{')) {
        let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let list = |name: &str| event[name].as_array().cloned().unwrap_or_default();
        let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        for v in list("vertexes") {
            let step =
                steps.entry(v["digest"].as_str().context("vertex without digest")?.to_owned()).or_default();
            step.name = word(&v["name"]);
            step.cached |= v["cached"].as_bool().unwrap_or(false);
            step.started |= v["started"].is_string();
            step.completed = v["completed"].is_string();
            step.error = word(&v["error"]);
            step.inputs = v["inputs"].as_array().into_iter().flatten().map(word).collect();
        }
        for s in list("statuses") {
            let step =
                steps.entry(s["vertex"].as_str().context("status without vertex")?.to_owned()).or_default();
            step.counters.insert(word(&s["id"]), s["completed"].is_string());
        }
        for l in list("logs") {
            let step =
                steps.entry(l["vertex"].as_str().context("log without vertex")?.to_owned()).or_default();
            step.log.push_str(&decode(&word(&l["data"])));
        }
    }
    Ok(steps)
}

/// The step whose name contains `part`.
///
/// # Errors
/// When there is none.
pub fn step<'a>(steps: &'a BTreeMap<String, Step>, part: &str) -> Result<&'a Step> {
    let found = steps.values().find(|s| s.name.contains(part));
    found.with_context(|| {
        format!("no step {part:?} in {:?}", steps.values().map(|s| &s.name).collect::<Vec<_>>())
    })
}

/// Standard base64.
fn decode(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for six in text.bytes().filter_map(|b| ALPHABET.iter().position(|a| *a == b)) {
        bits = bits << 6 | six as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn decodes() {
        for (text, want) in
            [("", ""), ("YQ==", "a"), ("YWI=", "ab"), ("YWJj", "abc"), ("aGVsbG8K", "hello\n")]
        {
            assert_eq!(super::decode(text), want);
        }
    }
}
