//! How provenance was asked for: `attest:provenance=mode=max,…`.

use std::collections::BTreeMap;

use base::Failure;
use base::failure::{Detail, IncompleteMaterial};
use base::gotext::{parse_bool, quote};

use super::Capture;

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing the author of the build may want to keep: no arguments, labels,
    /// names of secrets.
    Min,
    /// All, with the definition and its layers.
    Max,
}

/// Which form it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// SLSA v0.2.
    V02,
    /// SLSA v1.
    V1,
}

impl Version {
    pub(crate) fn predicate_type(self) -> &'static str {
        match self {
            Self::V02 => "https://slsa.dev/provenance/v0.2",
            Self::V1 => "https://slsa.dev/provenance/v1",
        }
    }
}

/// How provenance was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) mode: Mode,
    pub(crate) version: Version,
    pub(crate) builder_id: String,
    /// Whether the author claims that the result is always the same.
    pub(crate) reproducible: bool,
    /// Refuse a build that used more than can be told.
    pub(crate) complete_materials: bool,
    /// The name of its file, where it is written to one.
    pub(crate) filename: String,
    /// Only for images.
    pub(crate) inline_only: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            mode: Mode::Max,
            version: Version::V1,
            builder_id: String::new(),
            reproducible: false,
            complete_materials: false,
            filename: "provenance.json".to_owned(),
            inline_only: false,
        }
    }
}

impl Terms {
    /// Reads the options of `attest:provenance`. Those nobody knows are passed
    /// over.
    ///
    /// # Errors
    /// A value that makes no sense.
    pub(crate) fn read(attrs: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let flag = |key: &str| match attrs.get(key) {
            None => Ok(false),
            Some(value) => parse_bool(value).ok_or_else(|| {
                Failure::invalid(format!(
                    "failed to parse {key} flag {0}: strconv.ParseBool: parsing {0}: invalid syntax",
                    quote(value)
                ))
            }),
        };
        let default = Self::default();
        Ok(Self {
            mode: match attrs.get("mode").map(String::as_str) {
                None | Some("max" | "full") => Mode::Max,
                Some("min") => Mode::Min,
                Some(other) => return Err(Failure::invalid(format!("invalid mode {}", quote(other)))),
            },
            version: match attrs.get("version").map(String::as_str) {
                None | Some("v1") => Version::V1,
                Some("v0.2") => Version::V02,
                Some("") => return Err(Failure::invalid("provenance SLSA version cannot be empty")),
                Some(other) => {
                    return Err(Failure::invalid(format!("invalid provenance SLSA version: {other}")));
                }
            },
            builder_id: attrs.get("builder-id").cloned().unwrap_or_default(),
            reproducible: flag("reproducible")?,
            complete_materials: flag("complete-materials")?,
            filename: attrs.get("filename").cloned().unwrap_or(default.filename),
            inline_only: attrs.get("inline-only").and_then(|v| parse_bool(v)).unwrap_or_default(),
        })
    }
}

/// Why a build that has to tell all of its materials cannot.
pub(crate) fn incomplete(capture: &Capture) -> Failure {
    let mut text = "provenance materials are incomplete".to_owned();
    for name in capture.locals() {
        let name = if name.is_empty() { "<unnamed>" } else { name };
        text.push_str(&format!("\n  - {name}\n    reason: local_source"));
    }
    for IncompleteMaterial { name, method, uri, reason, .. } in &capture.uncaptured {
        text.push_str(&format!("\n  - {name}"));
        for (key, value) in [("method", method.as_str()), ("url", uri), ("reason", reason)] {
            if !value.is_empty() {
                text.push_str(&format!("\n    {key}: {value}"));
            }
        }
    }
    if capture.incomplete && capture.uncaptured.is_empty() {
        text.push_str("\n  - a step used more than can be told");
    }
    let locals = capture.locals().map(|name| IncompleteMaterial {
        name: name.to_owned(),
        reason: "local_source".to_owned(),
        ..IncompleteMaterial::default()
    });
    let details = Detail::Materials(locals.chain(capture.uncaptured.iter().cloned()).collect());
    Failure::new(base::Kind::FailedPrecondition, text).with(details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Terms, Failure> {
        Terms::read(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn reads_what_clients_ask_for() {
        let terms =
            read(&[("mode", "min"), ("version", "v0.2"), ("inline-only", "true"), ("x", "y")]).unwrap();
        assert_eq!((terms.mode, terms.version, terms.inline_only), (Mode::Min, Version::V02, true));
        assert_eq!(read(&[]).unwrap(), Terms::default());
        for (pair, want) in [
            (("mode", "x"), "invalid mode \"x\""),
            (("version", "v2"), "invalid provenance SLSA version: v2"),
            (
                ("reproducible", "x"),
                "failed to parse reproducible flag \"x\": strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
        ] {
            assert_eq!(read(&[pair]).unwrap_err().to_string(), want);
        }
    }
}
