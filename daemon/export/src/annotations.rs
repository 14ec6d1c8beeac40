//! Annotations of manifests, indexes and their descriptors, out of options
//! such as `annotation-manifest[linux/amd64].org.example.key`.

use std::collections::BTreeMap;

use base::Platform;

use crate::error::Error;

/// Free text by key.
pub(crate) type Texts = BTreeMap<String, String>;

/// What is to be annotated, for one platform or all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Annotations {
    pub(crate) index: Texts,
    pub(crate) index_descriptor: Texts,
    pub(crate) manifest: Texts,
    pub(crate) manifest_descriptor: Texts,
}

/// By platform; the empty one is for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Group(BTreeMap<String, Annotations>);

impl Group {
    /// Takes the annotations out of `attrs`.
    ///
    /// # Errors
    /// An annotation of something that cannot be annotated, or of no platform.
    pub(crate) fn take(attrs: &mut BTreeMap<String, String>) -> Result<Self, Error> {
        let mut group = Self::default();
        for (key, value) in std::mem::take(attrs) {
            match Key::parse(&key)? {
                Some(parsed) => group.add(parsed, value),
                None => _ = attrs.insert(key, value),
            }
        }
        Ok(group)
    }

    /// Adds those a frontend left in its metadata; they win.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub(crate) fn add_metadata(&mut self, metadata: &BTreeMap<String, Vec<u8>>) -> Result<(), Error> {
        for (key, value) in metadata {
            if let Some(parsed) = Key::parse(key)? {
                self.add(parsed, String::from_utf8_lossy(value).into_owned());
            }
        }
        Ok(())
    }

    fn add(&mut self, key: Key, value: String) {
        let of = self.0.entry(key.platform).or_default();
        let texts = match key.what {
            What::Index => &mut of.index,
            What::IndexDescriptor => &mut of.index_descriptor,
            What::Manifest => &mut of.manifest,
            What::ManifestDescriptor => &mut of.manifest_descriptor,
        };
        texts.insert(key.key, value);
    }

    /// Those for `platform`. There is only one index: what is said of it for
    /// any platform is for all.
    pub(crate) fn of(&self, platform: Option<&Platform>) -> Annotations {
        let mut out = Annotations::default();
        for a in self.0.values() {
            out.index.extend(a.index.clone());
            out.index_descriptor.extend(a.index_descriptor.clone());
        }
        let own = platform.map(Platform::format_all);
        for a in [Some(String::new()), own].into_iter().flatten().filter_map(|key| self.0.get(&key)) {
            out.manifest.extend(a.manifest.clone());
            out.manifest_descriptor.extend(a.manifest_descriptor.clone());
        }
        out
    }

    /// Each platform that has any of its own.
    pub(crate) fn platforms(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(|key| !key.is_empty())
    }

    /// Whether there are some that only OCI media types have room for.
    pub(crate) fn need_oci(&self) -> bool {
        self.0.values().any(|a| {
            !(a.index.is_empty() && a.index_descriptor.is_empty() && a.manifest_descriptor.is_empty())
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Index,
    IndexDescriptor,
    Manifest,
    ManifestDescriptor,
}

struct Key {
    what: What,
    platform: String,
    key: String,
}

impl Key {
    /// `annotation[-WHAT]["["PLATFORM"]"].KEY`; none when it is something else.
    fn parse(text: &str) -> Result<Option<Self>, Error> {
        let Some(mut rest) = text.strip_prefix("annotation") else { return Ok(None) };
        let mut what = "";
        if let Some(after) = rest.strip_prefix('-') {
            let end = after.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).unwrap_or(after.len());
            (what, rest) = after.split_at(end);
            if what.is_empty() {
                return Ok(None);
            }
        }
        let mut platform = "";
        if let Some(after) = rest.strip_prefix('[') {
            let Some((inner, after)) = after.split_once(']') else { return Ok(None) };
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '-');
            if inner.is_empty() || !inner.chars().all(allowed) {
                return Ok(None);
            }
            (platform, rest) = (inner, after);
        }
        let Some(key) = rest.strip_prefix('.') else { return Ok(None) };
        if key.is_empty() || key.contains(['\t', '\n', '\x0c', '\r', ' ']) {
            return Ok(None);
        }
        let what = match what {
            "index" => What::Index,
            "index-descriptor" => What::IndexDescriptor,
            "" | "manifest" => What::Manifest,
            "manifest-descriptor" => What::ManifestDescriptor,
            other => {
                return Err(Error::Option { what: "unrecognized annotation type", value: other.to_owned() });
            }
        };
        let platform = match platform {
            "" => String::new(),
            text => text
                .parse::<Platform>()
                .map_err(|e| Error::Option { what: "invalid annotation:", value: e.to_string() })?
                .format_all(),
        };
        Ok(Some(Self { what, platform, key: key.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn sorts_annotations_by_what_they_are_of() {
        let mut all = attrs(&[
            ("annotation.a.b", "1"),
            ("annotation-manifest[linux/arm64].a.b", "2"),
            ("annotation-index.i", "3"),
            ("annotation-index-descriptor.d", "4"),
            ("annotation-manifest-descriptor[linux/arm64].m", "5"),
            ("annotation", "no"),
            ("annotation.with space", "no"),
            ("name", "x"),
        ]);
        let group = Group::take(&mut all).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["annotation", "annotation.with space", "name"]);
        let arm = group.of(Some(&Platform::new("linux", "arm64", "")));
        assert_eq!(arm.manifest["a.b"], "2");
        assert_eq!(arm.index["i"], "3");
        let amd = group.of(Some(&Platform::new("linux", "amd64", "")));
        assert_eq!((amd.manifest["a.b"].as_str(), amd.manifest_descriptor.len()), ("1", 0));
        assert_eq!(group.platforms().collect::<Vec<_>>(), ["linux/arm64"]);
        assert!(group.need_oci());
    }

    #[test]
    fn refuses_what_cannot_be_annotated() {
        let e = Group::take(&mut attrs(&[("annotation-layer.a", "1")])).unwrap_err();
        assert_eq!(e.to_string(), "unrecognized annotation type layer");
    }
}
