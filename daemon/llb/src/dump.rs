//! Definitions for people: one JSON object per operation, or a picture.

use std::collections::BTreeMap;
use std::io;

use base::Digest;
use base::gojson;
use prost::Message;
use proto::pb;
use proto::pb::file_action::Action;
use proto::pb::op::Op;
use serde::Serialize;

use crate::Error;
use crate::json::Json;

/// An operation with what goes with it.
struct Entry<'a> {
    op: pb::Op,
    digest: Digest,
    meta: Option<&'a pb::OpMetadata>,
}

fn entries(definition: &pb::Definition) -> Result<Vec<Entry<'_>>, Error> {
    definition
        .def
        .iter()
        .map(|bytes| {
            let op = pb::Op::decode(bytes.as_slice()).map_err(|e| Error::Decode(e.to_string()))?;
            let digest = Digest::of(bytes);
            let meta = definition.metadata.get(digest.as_str());
            Ok(Entry { op, digest, meta })
        })
        .collect()
}

/// A definition as Go writes it in JSON.
pub struct DefinitionJson<'a>(pub &'a pb::Definition);

impl Serialize for DefinitionJson<'_> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        Json(self.0).serialize(s)
    }
}

/// One line of JSON per operation, in the order of the definition.
///
/// # Errors
/// When it cannot be decoded or `out` fails.
pub fn json(definition: &pb::Definition, out: &mut impl io::Write) -> Result<(), DumpError> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Line<'a> {
        op: Json<'a, pb::Op>,
        digest: &'a str,
        op_metadata: Json<'a, pb::OpMetadata>,
    }
    let none = pb::OpMetadata::default();
    for entry in entries(definition)? {
        let line = Line {
            op: Json(&entry.op),
            digest: entry.digest.as_str(),
            op_metadata: Json(entry.meta.unwrap_or(&none)),
        };
        let mut bytes = gojson::to_vec(&line).map_err(io::Error::from)?;
        bytes.push(b'\n');
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// The whole definition as one indented JSON document: operations in the
/// canonical JSON of protobuf, metadata in that of Go.
///
/// # Errors
/// When it cannot be decoded.
pub fn document(definition: &pb::Definition) -> Result<Vec<u8>, Error> {
    #[derive(Serialize)]
    struct Document<'a> {
        def: BTreeMap<String, crate::protojson::Value>,
        metadata: BTreeMap<&'a str, Json<'a, pb::OpMetadata>>,
        source: crate::protojson::Value,
    }
    let entries = entries(definition)?;
    let def = entries.iter().map(|e| (e.digest.as_str().to_owned(), crate::protojson::op(&e.op))).collect();
    let metadata = definition.metadata.iter().map(|(k, v)| (k.as_str(), Json(v))).collect();
    let source = crate::protojson::source(&definition.source.clone().unwrap_or_default());
    let document = Document { def, metadata, source };
    gojson::to_vec_indent(&document).map_err(|e| Error::invalid(format!("write a definition: {e}")))
}

/// A picture in the language of Graphviz.
///
/// # Errors
/// When it cannot be decoded or `out` fails.
pub fn dot(definition: &pb::Definition, out: &mut impl io::Write) -> Result<(), DumpError> {
    let entries = entries(definition)?;
    writeln!(out, "digraph {{")?;
    for entry in &entries {
        let (name, shape) = look(entry);
        writeln!(out, "  {} [label={} shape={}];", quote(entry.digest.as_str()), quote(&name), quote(shape))?;
    }
    for entry in &entries {
        for (at, input) in entry.op.inputs.iter().enumerate() {
            let label = match &entry.op.op {
                Some(Op::Exec(exec)) => exec
                    .mounts
                    .iter()
                    .rfind(|m| usize::try_from(m.input) == Ok(at) && m.dest != "/")
                    .map_or("", |m| &m.dest),
                _ => "",
            };
            let (from, to) = (quote(&input.digest), quote(entry.digest.as_str()));
            writeln!(out, "  {from} -> {to} [label={}];", quote(label))?;
        }
    }
    writeln!(out, "}}")?;
    Ok(())
}

/// Why a definition could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It is no definition.
    #[error(transparent)]
    Definition(#[from] Error),
    /// It could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn quote(text: &str) -> String {
    base::gotext::quote(text)
}

fn look(entry: &Entry<'_>) -> (String, &'static str) {
    match &entry.op.op {
        Some(Op::Source(source)) => (source.identifier.clone(), "ellipse"),
        Some(Op::Exec(exec)) => (exec.meta.as_ref().map(|m| m.args.join(" ")).unwrap_or_default(), "box"),
        Some(Op::Build(_)) => ("build".to_owned(), "box3d"),
        Some(Op::Merge(_)) => ("merge".to_owned(), "invtriangle"),
        Some(Op::Diff(_)) => ("diff".to_owned(), "doublecircle"),
        Some(Op::File(file)) => {
            let names: Vec<String> = file.actions.iter().map(action).collect();
            (names.join(","), "note")
        }
        Some(Op::Passthrough(_)) | None => (entry.digest.as_str().to_owned(), "plaintext"),
    }
}

fn action(action: &pb::FileAction) -> String {
    match &action.action {
        Some(Action::Copy(a)) => format!("copy{{src={}, dest={}}}", a.src, a.dest),
        Some(Action::Mkfile(a)) => format!("mkfile{{path={}}}", a.path),
        Some(Action::Mkdir(a)) => format!("mkdir{{path={}}}", a.path),
        Some(Action::Rm(a)) => format!("rm{{path={}}}", a.path),
        Some(Action::Symlink(a)) => format!("symlink{{oldpath={}, newpath={}}}", a.oldpath, a.newpath),
        None => String::new(),
    }
}
