//! The stages of a Dockerfile.

use serde::{Serialize, Serializer};

use super::super::instructions::Stage;
use super::super::lint::Linter;
use super::super::{Error, instructions, parser};
use super::{Answer, Location, base64_list, is_false, json, table};

/// The stages of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Targets {
    /// In order.
    #[serde(serialize_with = "null_when_empty")]
    pub targets: Vec<Target>,
    /// The file.
    #[serde(serialize_with = "base64_list")]
    pub sources: Vec<Vec<u8>>,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its name, if any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// It is built when no other is asked for.
    #[serde(skip_serializing_if = "is_false")]
    pub default: bool,
    /// From the comment above it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The base, as it is written.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub base: String,
    /// `--platform`, as it is written.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// Where its `FROM` is.
    pub location: Location,
}

fn null_when_empty<S: Serializer>(targets: &[Target], s: S) -> Result<S::Ok, S::Error> {
    if targets.is_empty() { s.serialize_none() } else { s.collect_seq(targets) }
}

/// The stages of the file `data`.
///
/// # Errors
/// When it cannot be parsed.
pub fn list(data: &[u8]) -> Result<Targets, Error> {
    let file = instructions::parse(&parser::parse(data)?.nodes, &Linter::off())?;
    let last = file.stages.len();
    let target = |(at, stage): (usize, Stage)| Target {
        name: stage.name,
        default: at + 1 == last,
        description: stage.doc,
        base: stage.base_name,
        platform: stage.platform,
        location: stage.lines.into(),
    };
    Ok(Targets {
        targets: file.stages.into_iter().enumerate().map(target).collect(),
        sources: vec![data.to_vec()],
    })
}

impl Targets {
    /// The document.
    pub fn answer(&self) -> Answer {
        let mut text = String::from("TARGET\tDESCRIPTION\n");
        for target in &self.targets {
            let name = match (target.name.as_str(), target.default) {
                ("", true) => "(default)".to_owned(),
                (name, true) => format!("{name} (default)"),
                (name, false) => name.to_owned(),
            };
            text.push_str(&format!("{name}\t{}\n", target.description));
        }
        Answer { version: super::VERSION, json: json(self), text: table::align(&text, 1), status: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_stages() {
        let file = "# base is the bottom\nFROM --platform=$X alpine AS base\n\nFROM base\n";
        let answer = list(file.as_bytes()).unwrap().answer();
        assert_eq!(answer.text, "TARGET    DESCRIPTION\nbase      is the bottom\n(default) \n");
        let at = |line: u32| {
            let point = format!("{{\n              \"line\": {line}\n            }}");
            format!(
                "\"location\": {{\n        \"ranges\": [\n          {{\n            \"start\": {point},\n            \
                 \"end\": {point}\n          }}\n        ]\n      }}"
            )
        };
        let want = format!(
            "{{\n  \"targets\": [\n    {{\n      \"name\": \"base\",\n      \"description\": \"is the bottom\",\n      \
             \"base\": \"alpine\",\n      \"platform\": \"$X\",\n      {}\n    }},\n    {{\n      \"default\": true,\n      \
             \"base\": \"base\",\n      {}\n    }}\n  ],\n  \"sources\": [\n    \"{}\"\n  ]\n}}",
            at(2),
            at(4),
            super::super::encode(file.as_bytes())
        );
        assert_eq!(String::from_utf8(answer.json).unwrap(), want);
        let empty = String::from_utf8(list(b"ARG x").unwrap().answer().json).unwrap();
        assert!(empty.starts_with("{\n  \"targets\": null,"));
    }
}
