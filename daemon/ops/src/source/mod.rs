//! Where files come from: `scheme://reference` and attributes.

mod credentials;
pub mod image;
pub(crate) mod local;
pub(crate) mod upload;

use std::sync::Arc;

use base::Failure;
use llb::cachekey::Source;
use proto::pb;
use solver::{KeyDigest, Operation};

use crate::{Error, Output, Worker};

/// The operation of a source.
pub(crate) fn operation(
    worker: Arc<Worker>,
    vertex: &llb::Vertex,
    op: &pb::SourceOp,
) -> Result<Arc<dyn Operation<Output>>, Failure> {
    let identifier = op.identifier.as_str();
    match identifier.split_once("://").map(|(scheme, _)| scheme) {
        Some("docker-image") => Ok(Arc::new(image::ImageSource::new(worker, vertex, op)?)),
        Some("local") => Ok(Arc::new(local::LocalSource::new(worker, op)?)),
        Some("http") => Ok(Arc::new(upload::UploadSource::new(worker, op)?)),
        Some(known @ ("git" | "https" | "oci-layout" | "docker-image+blob" | "oci-layout+blob")) => {
            Err(Error::Unsupported { what: format!("the source {known}://") }.into())
        }
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
