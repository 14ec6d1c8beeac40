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

/// The daemon's environment: what there is in place of attributes, and what gives
/// access to clouds.
#[derive(Clone, Default)]
pub(crate) struct Env(BTreeMap<String, String>);

impl Env {
    /// That of this process.
    pub(crate) fn own() -> Self {
        let texts =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self(texts.collect())
    }

    /// A variable that is not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        text(&self.0, name)
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }
}

/// The names of a cache, between semicolons.
pub(crate) fn names(attrs: &Attrs) -> Vec<String> {
    attrs.get("name").map_or("buildkit", String::as_str).split(';').map(str::to_owned).collect()
}

/// A text that is not empty.
pub(crate) fn text<'a>(attrs: &'a Attrs, key: &str) -> Option<&'a str> {
    attrs.get(key).map(String::as_str).filter(|value| !value.is_empty())
}
