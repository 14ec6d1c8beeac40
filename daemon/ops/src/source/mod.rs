//! Where files come from: `scheme://reference` and attributes.

pub(crate) mod blob;
mod credentials;
mod disposition;
mod file;
pub mod git;
pub mod http;
pub mod image;
mod layout;
pub(crate) mod local;
mod resolved;
mod sign;

use std::io::{self, Read};
use std::sync::Arc;

use base::Failure;
use base::gourl::Url;
use llb::cachekey::Source;
use proto::pb;
use refs::RecordType;
use ring::digest::Context;
use solver::{KeyDigest, Operation};

pub use resolved::Resolved;

use crate::{Error, Output, Worker};

/// The operation of a source.
pub(crate) fn operation(
    worker: Arc<Worker>,
    vertex: &llb::Vertex,
    op: &pb::SourceOp,
) -> Result<Arc<dyn Operation<Output>>, Failure> {
    let identifier = op.identifier.as_str();
    match identifier.split_once("://").map(|(scheme, _)| scheme) {
        Some("docker-image" | "oci-layout") => Ok(Arc::new(image::ImageSource::new(worker, vertex, op)?)),
        Some(blob::REGISTRY_SCHEME | blob::LAYOUT_SCHEME) => Ok(Arc::new(blob::BlobFile::new(worker, op)?)),
        Some("local") => Ok(Arc::new(local::LocalSource::new(worker, op)?)),
        Some("http" | "https") => Ok(Arc::new(http::HttpSource::new(worker, op)?)),
        Some("git") => Ok(Arc::new(git::GitSource::new(worker, op)?)),
        _ => Err(Error::UnknownScheme { identifier: identifier.to_owned() }.into()),
    }
}

/// Attributes of a source, read with errors that name them.
pub(crate) struct Attrs<'a>(&'a pb::SourceOp);

impl<'a> Attrs<'a> {
    pub(crate) fn new(op: &'a pb::SourceOp) -> Self {
        Self(op)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a str> {
        self.0.attrs.get(key).map(String::as_str)
    }

    pub(crate) fn parse<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        parse(value).map(Some).map_err(|reason| Error::Attribute {
            identifier: self.0.identifier.clone(),
            key: key.to_owned(),
            value: value.to_owned(),
            reason,
        })
    }

    /// A JSON list of strings; empty when it is absent.
    pub(crate) fn list(&self, key: &str) -> Result<Vec<String>, Error> {
        let list = self.parse(key, |text| serde_json::from_str(text).map_err(|e| e.to_string()))?;
        Ok(list.unwrap_or_default())
    }

    /// What the result of a source is for.
    pub(crate) fn record_type(&self) -> Result<RecordType, Error> {
        let kind = self.parse(llb::attr::IMAGE_RECORD_TYPE, |kind| match kind {
            "" | "regular" => Ok(RecordType::Regular),
            "internal" => Ok(RecordType::Internal),
            "frontend" => Ok(RecordType::Frontend),
            _ => Err("unknown record type".to_owned()),
        });
        Ok(kind?.unwrap_or_default())
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key) == Some("true")
    }
}

/// The digest of a source's cache map.
pub(crate) fn key_digest(key: &str) -> KeyDigest {
    match llb::cachekey::source_digest(key) {
        Source::Key(digest) => KeyDigest::Stable(digest),
        Source::Random(hex) => KeyDigest::Random(hex.into()),
    }
}

/// What a source is known as: an identifier without what policy and provenance
/// have no use for, such as the credentials of a repository. Others are what they are.
pub fn normalized(op: &pb::SourceOp) -> String {
    match op.identifier.split_once("://").map(|(scheme, _)| scheme) {
        Some("git") => git::Wanted::parse(op).map_or_else(|_| op.identifier.clone(), |w| w.identifier()),
        _ => op.identifier.clone(),
    }
}

/// A number as Go's `strconv.ParseInt` reads it when the text says the base.
pub(crate) fn integer(text: &str) -> Result<i64, String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, lower.get(2..)),
        [b'0', b'o', ..] => (8, lower.get(2..)),
        [b'0', b'b', ..] => (2, lower.get(2..)),
        [b'0', _, ..] => (8, lower.get(1..)),
        _ => (10, Some(lower.as_str())),
    };
    // A second sign is none.
    let digits = digits.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit())).unwrap_or_default();
    i64::from_str_radix(digits, base).map(|n| sign * n).map_err(|e| e.to_string())
}

/// A URL as people may see it: without its user and password.
pub(crate) fn redacted(text: &str) -> String {
    const MASK: &str = "xxxxx";
    let Ok(mut url) = Url::parse(text) else { return text.to_owned() };
    let Some(user) = &mut url.user else { return text.to_owned() };
    if !user.name.is_empty() {
        MASK.clone_into(&mut user.name);
    }
    if let Some(password) = &mut user.password {
        MASK.clone_into(password);
    }
    url.to_string()
}

/// Takes all that is left in `file` into `context`.
fn digest_all(file: &mut impl Read, context: &mut Context) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => context.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_say_their_base() {
        for (text, n) in [("0", 0), ("0644", 0o644), ("0o644", 0o644), ("420", 420), ("0x1F", 31), ("-1", -1)]
        {
            assert_eq!(integer(text), Ok(n), "{text}");
        }
        for text in ["", "08", "0x", "+-1", "0x-1", "1a", "99999999999999999999"] {
            assert!(integer(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_see_no_credentials() {
        assert_eq!(redacted("https://u:p@h/a?b"), "https://xxxxx:xxxxx@h/a?b");
        assert_eq!(redacted("https://token@h/a"), "https://xxxxx@h/a");
        assert_eq!(redacted("https://h/a"), "https://h/a");
        assert_eq!(redacted("git@h:a/b"), "git@h:a/b");
    }
}
