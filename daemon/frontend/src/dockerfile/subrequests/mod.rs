//! Questions about a Dockerfile that are answered without building it: the
//! documents that clients show for `--call` and `--print`.
//!
//! A document has a form for programs, which is JSON as Go writes it, and one
//! for people, with columns. Working out what is in it may need the converter;
//! here is only how it is written.

mod definition;
pub mod lint;
pub mod outline;
mod table;
pub mod targets;

use base::failure::{Position, Range};
use serde::{Serialize, Serializer};

use super::Lines;

/// What is asked; the value of the option `requestid`.
pub mod id {
    /// Which questions there are.
    pub const DESCRIBE: &str = "frontend.subrequests.describe";
    /// The parameters of a build.
    pub const OUTLINE: &str = "frontend.outline";
    /// The stages.
    pub const TARGETS: &str = "frontend.targets";
    /// The warnings.
    pub const LINT: &str = "frontend.lint";
    /// The LLB.
    pub const CONVERT: &str = "frontend.convertllb";
}

/// An answer, ready to be a result's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The version of the question.
    pub version: &'static str,
    /// For programs.
    pub json: Vec<u8>,
    /// For people.
    pub text: String,
    /// What the client's exit status should be, where the question has one.
    pub status: Option<i32>,
}

impl Answer {
    /// Names and values of a result's metadata.
    pub fn metadata(self) -> Vec<(&'static str, Vec<u8>)> {
        let mut out = vec![("result.json", self.json), ("result.txt", self.text.into_bytes())];
        if let Some(status) = self.status {
            out.push(("result.statuscode", status.to_string().into_bytes()));
        }
        out.push(("version", self.version.as_bytes().to_vec()));
        out
    }
}

/// A question, in the answer to [`id::DESCRIBE`].
#[derive(Debug, Serialize)]
struct Request {
    name: &'static str,
    version: &'static str,
    r#type: &'static str,
    description: &'static str,
    opts: Option<&'static [Named]>,
    inputs: Option<&'static [Named]>,
    metadata: &'static [Named],
    refs: Option<&'static [Named]>,
}

#[derive(Debug, Serialize)]
struct Named {
    name: &'static str,
    description: &'static str,
}

const VERSION: &str = "1.0.0";
const METADATA: &[Named] =
    &[Named { name: "result.json", description: "" }, Named { name: "result.txt", description: "" }];

const fn request(name: &'static str, description: &'static str, opts: Option<&'static [Named]>) -> Request {
    Request {
        name,
        version: VERSION,
        r#type: "rpc",
        description,
        opts,
        inputs: None,
        metadata: METADATA,
        refs: None,
    }
}

const DESCRIBED: &[Request] = &[
    request(
        id::OUTLINE,
        "List all parameters current build target supports",
        Some(&[Named { name: "target", description: "Target build stage" }]),
    ),
    request(id::TARGETS, "List all targets current build supports", Some(&[])),
    request(id::DESCRIBE, "List available subrequest types", None),
];

/// The answer to [`id::DESCRIBE`]. The reference leaves out lint and convert.
pub fn describe() -> Answer {
    let mut table = String::from("NAME\tVERSION\tDESCRIPTION\n");
    for request in DESCRIBED {
        let name = request.name.trim_start_matches("frontend.");
        table.push_str(&format!("{name}\t{}\t{}\n", request.version, request.description));
    }
    Answer { version: VERSION, json: json(&DESCRIBED), text: table::align(&table, 1), status: None }
}

/// Indented JSON. What is written here has only text as keys and cannot fail.
fn json(document: &impl Serialize) -> Vec<u8> {
    base::gojson::to_vec_indent(document).unwrap_or_default()
}

/// Where something is, as the wire's `pb.Location`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Location {
    /// Which source, counted from zero.
    #[serde(rename = "sourceIndex", skip_serializing_if = "is_zero")]
    pub source_index: i32,
    /// The places.
    #[serde(serialize_with = "ranges", skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Range>,
}

impl Location {
    fn first_line(&self) -> i32 {
        self.ranges.first().map_or(0, |r| r.start.line)
    }
}

impl From<Lines> for Location {
    fn from(lines: Lines) -> Self {
        Self { source_index: 0, ranges: lines.ranges() }
    }
}

#[derive(Serialize)]
struct WireRange {
    start: WirePosition,
    end: WirePosition,
}

#[derive(Serialize)]
struct WirePosition {
    #[serde(skip_serializing_if = "is_zero")]
    line: i32,
    #[serde(skip_serializing_if = "is_zero")]
    character: i32,
}

fn ranges<S: Serializer>(ranges: &[Range], s: S) -> Result<S::Ok, S::Error> {
    let position = |p: Position| WirePosition { line: p.line, character: p.character };
    s.collect_seq(ranges.iter().map(|r| WireRange { start: position(r.start), end: position(r.end) }))
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// Bytes as Go's JSON has them.
fn base64<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&encode(bytes))
}

fn base64_list<S: Serializer>(list: &[Vec<u8>], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(list.iter().map(|bytes| encode(bytes)))
}

fn encode(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describes() {
        let answer = describe();
        let name = "subrequests.describe";
        assert_eq!(
            answer.text,
            format!(
                "NAME                 VERSION DESCRIPTION\n\
                 outline              1.0.0   List all parameters current build target supports\n\
                 targets              1.0.0   List all targets current build supports\n\
                 {name} 1.0.0   List available subrequest types\n"
            )
        );
        let json = String::from_utf8(answer.json.clone()).unwrap();
        assert!(json.starts_with("[\n  {\n    \"name\": \"frontend.outline\",\n    \"version\": \"1.0.0\","));
        assert!(json.contains("\"opts\": [],\n    \"inputs\": null,"));
        assert!(json.contains("\"opts\": null,"));
        assert_eq!(answer.metadata().len(), 3);
    }
}
