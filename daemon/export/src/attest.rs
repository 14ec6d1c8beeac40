//! Attestations: in-toto statements about a result.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Digest, Failure, Platform, gojson, gopath};
use futures_util::future::try_join_all;
use refs::Ref;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use sys::path::{FileType, Root};

use crate::error::Error;
use crate::rawjson;

/// The media type of a statement in an image.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.in-toto+json";

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PROVENANCE: &str = "https://slsa.dev/provenance/";
/// A bill of materials.
const SPDX: &str = "https://spdx.dev/Document";

/// A predicate or a statement may have as many bytes.
const MAX_BYTES: u64 = 40 << 20;

/// Metadata: only for images.
const INLINE_ONLY: &str = "inline-only";
/// Metadata: which of several bills of materials is about the result itself.
const SBOM_CORE: &str = "sbom-core";

/// Something said about a result.
#[derive(Clone)]
pub struct Attestation {
    /// A predicate, or a directory of statements.
    pub kind: AttestationKind,
    /// What goes with it, such as `reason`.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// Where the predicate comes from.
    pub predicate: Predicate,
    /// The file or directory; of a predicate that is made, the name it gets.
    pub path: String,
    /// What sort of predicate; empty for a directory that may hold any.
    pub predicate_type: String,
    /// What it is about; the result when empty.
    pub subjects: Vec<Subject>,
}

/// What an [`Attestation`] consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttestationKind {
    /// One predicate.
    InToto,
    /// A directory of files, each with one statement.
    Bundle,
}

/// Where a predicate comes from.
#[derive(Clone)]
pub enum Predicate {
    /// The file at the attestation's path in a tree.
    File(Ref),
    /// This daemon makes it, once everything else is known.
    Made(Arc<dyn MakeContent>),
}

/// Makes a predicate.
#[async_trait]
pub trait MakeContent: Send + Sync {
    /// The predicate, as JSON.
    ///
    /// # Errors
    /// When it cannot be made.
    async fn make(&self) -> Result<Vec<u8>, Failure>;
}

#[async_trait]
impl MakeContent for Vec<u8> {
    async fn make(&self) -> Result<Vec<u8>, Failure> {
        Ok(self.clone())
    }
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The result, or something else.
    pub kind: SubjectKind,
    /// Its name; for the result an additional one.
    pub name: String,
    /// Its digests, unless it is the result.
    pub digests: Vec<Digest>,
}

/// Whether a subject is the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectKind {
    /// The result itself.
    This,
    /// Something else, by its digests.
    Raw,
}

impl Attestation {
    /// Only to be put into images.
    pub(crate) fn is_inline_only(&self) -> bool {
        self.metadata.get(INLINE_ONLY).is_some_and(|value| value == b"true")
    }

    fn is_core(&self) -> bool {
        let name = gopath::base(&self.path).split('.').next().unwrap_or_default();
        self.metadata.get(SBOM_CORE).is_some_and(|core| core == name.as_bytes())
    }

    /// Whether it is the bill of materials of the result itself.
    pub(crate) fn is_core_sbom(&self) -> bool {
        self.kind == AttestationKind::InToto && self.predicate_type == SPDX && self.is_core()
    }

    /// The predicate, as JSON.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) async fn content(&self) -> Result<Vec<u8>, Failure> {
        match &self.predicate {
            Predicate::Made(made) => made.make().await,
            Predicate::File(tree) => {
                let mount = tree.mount().await?;
                let path = self.path.clone();
                let what = "cannot read in-toto attestation";
                base::task::blocking(move || read(&Root::open(mount.path())?, path.as_ref()))
                    .await
                    .map_err(|e| e.context(what))
            }
        }
    }

    /// The same with another predicate.
    pub(crate) fn made(self, predicate: Arc<dyn MakeContent>) -> Self {
        Self { predicate: Predicate::Made(predicate), ..self }
    }
}

/// A named thing with its digests by algorithm, as statements have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

impl Named {
    pub(crate) fn new<'a>(name: impl Into<String>, digests: impl IntoIterator<Item = &'a Digest>) -> Self {
        let digest = digests.into_iter().map(|d| (d.algorithm().to_owned(), d.hex().to_owned())).collect();
        Self { name: name.into(), digest }
    }
}

/// A statement ready to be written.
pub(crate) struct Statement {
    /// The attestation's path.
    pub(crate) path: String,
    pub(crate) predicate_type: String,
    /// Compact JSON.
    pub(crate) json: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(rename = "_type")]
    kind: &'a str,
    predicate_type: &'a str,
    subject: Vec<Named>,
    predicate: Box<RawValue>,
}

/// A statement as somebody else wrote it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Foreign {
    #[serde(default)]
    predicate_type: String,
    #[serde(default)]
    subject: Option<Vec<Named>>,
    #[serde(default)]
    predicate: serde_json::Value,
}

fn bad(what: impl Into<String>) -> Error {
    Error::Attestation(what.into())
}

/// Bundles replaced by what is in them; the bill of materials of the result
/// itself comes first.
///
/// # Errors
/// When a bundle cannot be read, or a frontend claims provenance: only the
/// daemon can know it.
pub(crate) async fn unbundle(all: &[Attestation]) -> Result<Vec<Attestation>, Failure> {
    let lists = try_join_all(all.iter().map(|attestation| async move {
        match (&attestation.kind, &attestation.predicate) {
            (AttestationKind::InToto, Predicate::File(_))
                if attestation.predicate_type.starts_with(PROVENANCE) =>
            {
                Err(bad("frontend may not set provenance attestations").into())
            }
            (AttestationKind::InToto, _) => Ok(vec![attestation.clone()]),
            (AttestationKind::Bundle, Predicate::Made(_)) => {
                Err(bad("attestation bundle cannot have callback").into())
            }
            (AttestationKind::Bundle, Predicate::File(tree)) => {
                let mount = tree.mount().await?;
                let attestation = attestation.clone();
                base::task::blocking(move || open_bundle(&Root::open(mount.path())?, &attestation)).await
            }
        }
    }))
    .await?;
    let all: Vec<_> = lists.into_iter().flatten().collect();
    if all.iter().any(|a| a.predicate_type.is_empty()) {
        return Err(bad("in-toto attestation must have a predicate type").into());
    }
    let (mut core, others): (Vec<_>, Vec<_>) = all.into_iter().partition(Attestation::is_core);
    core.extend(others);
    Ok(core)
}

/// The statements in a directory of a tree.
fn open_bundle(root: &Root, bundle: &Attestation) -> Result<Vec<Attestation>, Failure> {
    let dir = root.resolve(&bundle.path, true)?;
    let mut out = Vec::new();
    for entry in root.open_dir(&dir)?.list()? {
        let path = root.resolve(dir.join(&entry.name), true)?;
        let bytes = read(root, &path)?;
        let foreign: Foreign =
            serde_json::from_slice(&bytes).map_err(Error::json("cannot decode in-toto statement"))?;
        let wanted = &bundle.predicate_type;
        if !wanted.is_empty() && foreign.predicate_type != *wanted {
            let found = foreign.predicate_type;
            let what = format!("bundle entry {found} does not match required predicate type {wanted}");
            return Err(bad(what).into());
        }
        if foreign.predicate_type.starts_with(PROVENANCE) {
            return Err(bad("frontend may not bundle provenance attestations").into());
        }
        let predicate = gojson::to_vec(&foreign.predicate).map_err(Error::json("cannot encode predicate"))?;
        let subjects = foreign.subject.unwrap_or_default().into_iter().map(|subject| Subject {
            kind: SubjectKind::Raw,
            name: subject.name,
            // What is no digest we know is no digest we can repeat.
            digests: subject.digest.iter().filter_map(|(k, v)| format!("{k}:{v}").parse().ok()).collect(),
        });
        out.push(Attestation {
            kind: AttestationKind::InToto,
            metadata: bundle.metadata.clone(),
            predicate: Predicate::Made(Arc::new(predicate)),
            path: gopath::join([bundle.path.as_str(), &entry.name.to_string_lossy()]),
            predicate_type: foreign.predicate_type,
            subjects: subjects.collect(),
        });
    }
    Ok(out)
}

fn read(root: &Root, path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    if FileType::from_raw_mode(root.stat(path)?.st_mode) != FileType::RegularFile {
        return Err(bad(format!("{} is not a regular file", path.display())).into());
    }
    let mut bytes = Vec::new();
    let file = root.open_read(path)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| sys::Error::new("read", path, e))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(bad(format!("{} exceeds {MAX_BYTES} bytes", path.display())).into());
    }
    Ok(bytes)
}

/// What each attestation says, as a statement about `subjects` unless it says
/// otherwise.
///
/// # Errors
/// When a predicate cannot be had, or is no JSON.
pub(crate) async fn statements(all: &[Attestation], subjects: &[Named]) -> Result<Vec<Statement>, Failure> {
    try_join_all(all.iter().map(|attestation| async move {
        let bytes = attestation.content().await?;
        Ok(statement(attestation, &bytes, subjects)?)
    }))
    .await
}

fn statement(attestation: &Attestation, predicate: &[u8], result: &[Named]) -> Result<Statement, Error> {
    let what = "failed to marshal attestation";
    let predicate: Box<RawValue> = match predicate {
        [] => to_raw_value(&()).map_err(Error::json(what))?,
        json => serde_json::from_slice(json).map_err(Error::json(what))?,
    };
    let mut subject = Vec::new();
    if attestation.subjects.is_empty() {
        subject.extend(result.iter().cloned());
    }
    for s in &attestation.subjects {
        match s.kind {
            SubjectKind::Raw => {
                let name = if s.name.is_empty() { "_" } else { &s.name };
                subject.push(Named::new(name, &s.digests));
            }
            SubjectKind::This => {
                for named in result {
                    subject.push(named.clone());
                    if !s.name.is_empty() && s.name != "_" {
                        subject.push(Named { name: s.name.clone(), digest: named.digest.clone() });
                    }
                }
            }
        }
    }
    let body = Body { kind: STATEMENT, predicate_type: &attestation.predicate_type, subject, predicate };
    let json = serde_json::to_string(&body).map_err(Error::json(what))?;
    Ok(Statement {
        path: attestation.path.clone(),
        predicate_type: attestation.predicate_type.clone(),
        json: rawjson::compact(&json),
    })
}

/// An image by each of its names, as package URLs.
///
/// # Errors
/// When a name is none.
pub(crate) fn image_subjects(
    names: &str,
    platform: &Platform,
    manifest: &Digest,
) -> Result<Vec<Named>, Error> {
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| Ok(Named::new(package_url("docker", name, Some(platform), &[])?, [manifest]))).collect()
}

/// `pkg:KIND/NAMESPACE/NAME@TAG?digest=…&platform=…` of an image `name`, and
/// further qualifiers, which come last in order of their names.
///
/// # Errors
/// When the name is none.
pub fn package_url(
    kind: &str,
    name: &str,
    platform: Option<&Platform>,
    further: &[(&str, &str)],
) -> Result<String, Error> {
    let bad = |source| Error::Name { name: format!("ref {name:?}"), source };
    let mut reference: registry::Reference = name.parse().map_err(bad)?;
    if reference.digest().is_none() {
        reference = reference.tag_name_only();
    }
    let familiar = reference.familiar_name();
    let mut parts: Vec<String> = familiar.split('/').map(|part| escape(part, false)).collect();
    if let (Some(last), Some(tag)) = (parts.last_mut(), reference.tag()) {
        last.push('@');
        last.push_str(&escape(tag, true));
    }
    let mut qualifiers = Vec::new();
    if let Some(digest) = reference.digest() {
        qualifiers.push(format!("digest={}", escape(digest.as_str(), false)));
    }
    if let Some(platform) = platform {
        qualifiers.push(format!("platform={}", escape(&platform.to_string(), false)));
    }
    qualifiers.extend(further.iter().map(|(key, value)| format!("{key}={}", escape(value, false))));
    let query = if qualifiers.is_empty() { String::new() } else { format!("?{}", qualifiers.join("&")) };
    Ok(format!("pkg:{kind}/{}{query}", parts.join("/")))
}

/// Percent encoding as Go's `url.QueryEscape` and, for a path, `url.PathEscape`.
fn escape(text: &str, path: bool) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            b'$' | b'&' | b'+' | b'=' | b':' | b'@' if path => out.push(char::from(b)),
            b' ' if !path => out.push('+'),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(subjects: Vec<Subject>) -> Attestation {
        Attestation {
            kind: AttestationKind::InToto,
            metadata: BTreeMap::new(),
            predicate: Predicate::Made(Arc::new(Vec::new())),
            path: "provenance.json".into(),
            predicate_type: "https://example.com/p".into(),
            subjects,
        }
    }

    #[test]
    fn statements_are_written_as_go_writes_them() {
        let digest = Digest::of("x");
        let platform = Platform::new("linux", "arm64", "");
        let subjects = image_subjects("example.com/a/b:1,alpine", &platform, &digest).unwrap();
        let statement = statement(&said(Vec::new()), b"{ \"z\": 1.0, \"a\": \"<\" }", &subjects).unwrap();
        let hex = digest.hex();
        assert_eq!(
            statement.json,
            format!(
                "{{\"_type\":\"https://in-toto.io/Statement/v1\",\"predicateType\":\"https://example.com/p\",\
                 \"subject\":[{{\"name\":\"pkg:docker/example.com/a/b@1?platform=linux%2Farm64\",\
                 \"digest\":{{\"sha256\":\"{hex}\"}}}},\
                 {{\"name\":\"pkg:docker/alpine@latest?platform=linux%2Farm64\",\
                 \"digest\":{{\"sha256\":\"{hex}\"}}}}],\"predicate\":{{\"z\":1.0,\"a\":\"\\u003c\"}}}}"
            )
        );
    }

    #[test]
    fn subjects_can_be_others() {
        let this = Named::new("self", [&Digest::of("self")]);
        let other = Subject { kind: SubjectKind::Raw, name: String::new(), digests: vec![Digest::of("o")] };
        let also = Subject { kind: SubjectKind::This, name: "also".into(), digests: Vec::new() };
        let statement = statement(&said(vec![other, also]), b"", &[this]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&statement.json).unwrap();
        let names: Vec<_> = json["subject"].as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
        assert_eq!(names, ["_", "self", "also"]);
        assert!(json["predicate"].is_null());
    }

    #[tokio::test]
    async fn bundles_are_opened_within_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sbom")).unwrap();
        let file = br#"{"_type":"x","predicateType":"https://spdx.dev/Document","subject":[{"name":"n","digest":{"sha256":"ab"}}],"predicate":{"b":1,"a":2}}"#;
        std::fs::write(dir.path().join("sbom/one.json"), file).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mut bundle = said(Vec::new());
        bundle.kind = AttestationKind::Bundle;
        bundle.path = "/sbom".into();
        bundle.predicate_type = String::new();
        let all = open_bundle(&root, &bundle).unwrap();
        assert_eq!(
            (all[0].path.as_str(), all[0].predicate_type.as_str()),
            ("/sbom/one.json", "https://spdx.dev/Document")
        );
        let Predicate::Made(made) = &all[0].predicate else { panic!("a predicate") };
        assert_eq!(made.make().await.unwrap(), br#"{"a":2,"b":1}"#);
        bundle.predicate_type = "https://example.com/p".into();
        assert!(open_bundle(&root, &bundle).is_err());
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("sbom/two.json")).unwrap();
        assert!(open_bundle(&root, &said(Vec::new())).is_err());
    }
}
