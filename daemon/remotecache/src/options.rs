//! Attributes of caches, as clients write them.

use std::collections::BTreeMap;

use base::Failure;

use crate::Error;

/// Attributes by name.
pub type Attrs = BTreeMap<String, String>;

/// How a cache is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// Media types of OCI rather than those of Docker.
    pub(crate) oci: bool,
    /// One image manifest rather than an index.
    pub(crate) image_manifest: bool,
}

impl Form {
    /// # Errors
    /// Attributes that are neither true nor false.
    pub(crate) fn new(attrs: &Attrs) -> Result<Self, Failure> {
        let oci = flag(attrs, "oci-mediatypes")?.unwrap_or(true);
        let image_manifest = flag(attrs, "image-manifest")?.unwrap_or(oci);
        Ok(Self { oci, image_manifest })
    }

    /// # Errors
    /// When the two do not go together.
    pub(crate) fn check(self) -> Result<(), Error> {
        if self.image_manifest && !self.oci { Err(Error::NeedsOci) } else { Ok(()) }
    }
}

/// Something that is true or false.
///
/// # Errors
/// When it is neither.
pub(crate) fn flag(attrs: &Attrs, key: &'static str) -> Result<Option<bool>, Error> {
    let Some(value) = attrs.get(key) else { return Ok(None) };
    let parsed = base::gotext::parse_bool(value);
    parsed.map(Some).ok_or_else(|| Error::NotBool { key, value: value.clone() })
}

/// A text that is not empty.
pub(crate) fn text<'a>(attrs: &'a Attrs, key: &str) -> Option<&'a str> {
    attrs.get(key).map(String::as_str).filter(|value| !value.is_empty())
}
