//! The warnings about a Dockerfile.

use base::failure::SourceExcerpt;
use serde::Serialize;

use super::super::Lines;
use super::super::lint;
use super::definition::{self, Definition};
use super::{Answer, Location, base64, json};

/// What is wrong with a file.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    warnings: Option<Vec<Warning>>,
    sources: Vec<Source>,
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    error: Option<BuildError>,
    #[serde(skip)]
    file: SourceExcerpt,
}

#[derive(Debug, Clone, Serialize)]
struct Warning {
    #[serde(rename = "ruleName")]
    rule: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    location: Location,
}

#[derive(Debug, Clone, Serialize)]
struct BuildError {
    message: String,
    location: Location,
}

#[derive(Debug, Clone, Serialize)]
struct Source {
    #[serde(skip_serializing_if = "String::is_empty")]
    filename: String,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "base64")]
    data: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
    #[serde(skip_serializing_if = "String::is_empty")]
    language: String,
}

impl Report {
    /// Warnings about `file`, in the order in which they were found, and why
    /// its conversion ended, if it did: the text and, where it is about the
    /// file, the places.
    pub fn new(file: SourceExcerpt, warnings: &[lint::Warning], error: Option<(String, &[Lines])>) -> Self {
        let warning = |warning: &lint::Warning| Warning {
            rule: warning.rule.name,
            description: warning.rule.description,
            url: warning.rule.url,
            detail: warning.message.clone(),
            location: warning.lines.into(),
        };
        let source = Source {
            filename: file.filename.clone(),
            data: file.data.clone(),
            definition: file.definition.as_deref().and_then(definition::decode),
            language: file.language.clone(),
        };
        Self {
            warnings: (!warnings.is_empty()).then(|| warnings.iter().map(warning).collect()),
            sources: vec![source],
            error: error.map(|(message, lines)| BuildError { message, location: merged(lines) }),
            file,
        }
    }

    /// The document. Its status is one when there is anything in it.
    pub fn answer(&self) -> Answer {
        let mut warnings: Vec<&Warning> = self.warnings.iter().flatten().collect();
        warnings.sort_by(|a, b| {
            let line = |w: &Warning| w.location.first_line();
            line(a).cmp(&line(b))
        });
        let mut text = String::new();
        for Warning { rule, url, detail, location, .. } in warnings {
            text.push_str(&format!("\nWARNING: {rule}"));
            if !url.is_empty() {
                text.push_str(&format!(" - {url}"));
            }
            text.push_str(&format!("\n{detail}\n"));
            let excerpt = SourceExcerpt { ranges: location.ranges.clone(), ..self.file.clone() };
            text.push_str(&excerpt.show());
        }
        let clean = self.warnings.is_none() && self.error.is_none();
        Answer { version: super::VERSION, json: json(self), text, status: Some(i32::from(!clean)) }
    }
}

/// Several places as few ranges, in order: those that touch the same line are
/// one.
fn merged(places: &[Lines]) -> Location {
    let mut ranges: Vec<_> = places.iter().flat_map(|lines| lines.ranges()).collect();
    ranges.sort_by_key(|r| r.start.line);
    ranges.dedup_by(|next, kept| {
        let touches = next.start.line <= kept.end.line;
        if touches {
            kept.end.line = kept.end.line.max(next.end.line);
        }
        touches
    });
    Location { source_index: 0, ranges }
}

#[cfg(test)]
mod tests {
    use super::super::super::instructions;
    use super::super::super::lint::{Config, Linter};
    use super::super::super::parser;
    use super::*;

    fn report(text: &str) -> Answer {
        let linter = Linter::new(Config::default());
        let file = SourceExcerpt {
            filename: "Dockerfile".into(),
            language: "Dockerfile".into(),
            data: text.as_bytes().to_vec(),
            ..SourceExcerpt::default()
        };
        match parser::parse(text.as_bytes()).and_then(|p| instructions::parse(&p.nodes, &linter)) {
            Ok(_) => Report::new(file, &linter.take(), None),
            Err(error) => Report::new(file, &linter.take(), Some((error.to_string(), &error.locations))),
        }
        .answer()
    }

    #[test]
    fn writes_warnings() {
        let answer = report("FROM alpine as A\nMAINTAINER x\nFRO");
        assert_eq!(answer.status, Some(1));
        assert_eq!(
            answer.text,
            "\nWARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/\n\
             Stage name 'A' should be lowercase\n\
             Dockerfile:1\n--------------------\n   1 | >>> FROM alpine as A\n   2 |     MAINTAINER x\n   \
             3 |     FRO\n--------------------\n\
             \nWARNING: FromAsCasing - https://docs.docker.com/go/dockerfile/rule/from-as-casing/\n\
             'as' and 'FROM' keywords' casing do not match\n\
             Dockerfile:1\n--------------------\n   1 | >>> FROM alpine as A\n   2 |     MAINTAINER x\n   \
             3 |     FRO\n--------------------\n\
             \nWARNING: MaintainerDeprecated - \
             https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/\n\
             Maintainer instruction is deprecated in favor of using label\n\
             Dockerfile:2\n--------------------\n   1 |     FROM alpine as A\n   2 | >>> MAINTAINER x\n   \
             3 |     FRO\n--------------------\n"
        );
        let json: serde_json::Value = serde_json::from_slice(&answer.json).unwrap();
        assert_eq!(json["warnings"][2]["ruleName"], "MaintainerDeprecated");
        assert_eq!(json["buildError"]["location"]["ranges"][0]["start"]["line"], 3);
        let clean = report("FROM alpine");
        assert_eq!((clean.status, clean.text.as_str()), (Some(0), ""));
        assert!(
            clean.json.starts_with(b"{\n  \"warnings\": null,\n  \"sources\": [\n    {\n      \"filename\"")
        );
    }

    #[test]
    fn merges_places() {
        let lines = [Lines::new(4, 5), Lines::new(2, 2), Lines::new(5, 6)];
        let ranges = merged(&lines).ranges;
        let got: Vec<_> = ranges.iter().map(|r| (r.start.line, r.end.line)).collect();
        assert_eq!(got, [(2, 2), (4, 4), (5, 5), (6, 6)]);
    }
}
