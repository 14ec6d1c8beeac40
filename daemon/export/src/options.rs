//! The options images are made with.

use std::collections::BTreeMap;
use std::str::FromStr;

use base::Compatibility;
use store::{Compression, CompressionKind};

use crate::annotations::Group;
use crate::epoch::{self, Epoch};
use crate::error::Error;

/// Options by name.
pub(crate) type Attrs = BTreeMap<String, String>;

/// How an image is to be made.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageOptions {
    /// Its names, comma-separated.
    pub(crate) name: String,
    pub(crate) compression: Compression,
    /// Layers whose files can be fetched one by one.
    pub(crate) estargz: bool,
    /// OCI media types rather than those of Docker; by circumstances when not said.
    pub(crate) oci_types: Option<bool>,
    /// Attestation manifests as OCI artifacts; by circumstances when not said.
    pub(crate) oci_artifact: Option<bool>,
    pub(crate) annotations: Group,
    /// The outer none: not said.
    pub(crate) epoch: Option<Epoch>,
    /// Keep attestations that are only wanted in images.
    pub(crate) inline_attestations: bool,
    /// Clamp times in layers too.
    pub(crate) rewrite_timestamp: bool,
    /// Keep layers that must not be distributed marked as such.
    pub(crate) prefer_nondist_layers: bool,
}

impl ImageOptions {
    /// Takes the options it knows out of `attrs`.
    ///
    /// # Errors
    /// An option that makes no sense.
    pub(crate) fn take(attrs: &mut Attrs, inline_attestations: bool) -> Result<Self, Error> {
        let annotations = Group::take(attrs)?;
        let epoch = epoch::take(attrs)?;
        // It is gzip to everybody else.
        let estargz = attrs.get("compression").is_some_and(|kind| kind == "estargz");
        if estargz {
            attrs.remove("compression");
        }
        let compression = compression(attrs)?;
        let plain = |attrs: &mut Attrs, key: &str| {
            attrs
                .remove(key)
                .map(|value| parse_bool(&format!("non-bool value specified for {key}"), &value))
                .transpose()
        };
        let options = Self {
            name: attrs.remove("name").unwrap_or_default(),
            compression,
            estargz,
            oci_types: plain(attrs, "oci-mediatypes")?,
            oci_artifact: plain(attrs, "oci-artifact")?,
            annotations,
            epoch,
            inline_attestations: plain(attrs, "attestation-inline")?.unwrap_or(inline_attestations),
            rewrite_timestamp: plain(attrs, "rewrite-timestamp")?.unwrap_or_default(),
            prefer_nondist_layers: plain(attrs, "prefer-nondist-layers")?.unwrap_or_default(),
        };
        options.validate()?;
        Ok(options)
    }

    /// Fills in what was not said.
    pub(crate) fn settle(&mut self, oci_types: bool, compatibility: Compatibility) {
        self.oci_types.get_or_insert(oci_types);
        let artifact = compatibility >= Compatibility::V30 && self.oci_types();
        self.oci_artifact.get_or_insert(artifact);
    }

    /// # Errors
    /// Options that exclude each other.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.oci_types == Some(false) && self.estargz {
            let what = "exporter option \"compression=estargz\" conflicts with \"oci-mediatypes=false\"";
            return Err(Error::Conflict(what));
        }
        if self.oci_types == Some(false) && self.oci_artifact == Some(true) {
            let what = "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"";
            return Err(Error::Conflict(what));
        }
        Ok(())
    }

    pub(crate) fn oci_types(&self) -> bool {
        self.oci_types == Some(true)
    }

    pub(crate) fn oci_artifact(&self) -> bool {
        self.oci_artifact == Some(true)
    }
}

/// Reads the layer options; they stay in `attrs`, as metadata.
///
/// # Errors
/// An option that makes no sense.
pub fn compression(attrs: &BTreeMap<String, String>) -> Result<Compression, Error> {
    let mut out = Compression::default();
    if let Some(kind) = attrs.get("compression") {
        out.kind = CompressionKind::from_str(kind)
            .map_err(|_| Error::Option { what: "unsupported compression type", value: kind.clone() })?;
    }
    if let Some(value) = attrs.get("force-compression") {
        let what = format!("non-bool value {value} specified for force-compression");
        out.force = value.is_empty() || parse_bool(&what, value)?;
    }
    if let Some(value) = attrs.get("compression-level") {
        let bad = || Error::NotInteger {
            what: format!("non-integer value {value} specified for compression-level"),
            value: value.clone(),
        };
        let level: i64 = value.parse().map_err(|_| bad())?;
        // Far beyond what any compression knows; it is clamped there.
        out.level = Some(i32::try_from(level).unwrap_or(if level < 0 { i32::MIN } else { i32::MAX }));
    }
    Ok(out)
}

/// Takes an option that is true when it is given without a value.
///
/// # Errors
/// When it is neither true nor false.
pub(crate) fn take_flag(attrs: &mut Attrs, key: &str, default: bool) -> Result<bool, Error> {
    match attrs.remove(key).as_deref() {
        None => Ok(default),
        Some("") => Ok(true),
        Some(value) => parse_bool(&format!("non-bool value specified for {key}"), value),
    }
}

/// Go's idea of true and false.
///
/// # Errors
/// When it is neither.
pub(crate) fn parse_bool(what: &str, value: &str) -> Result<bool, Error> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Error::NotBool { what: what.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pairs: &[(&str, &str)]) -> Result<(ImageOptions, Attrs), Error> {
        let mut attrs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ImageOptions::take(&mut attrs, false).map(|options| (options, attrs))
    }

    #[test]
    fn reads_options_and_leaves_the_rest() {
        let (options, rest) = take(&[
            ("name", "a,b"),
            ("oci-mediatypes", "false"),
            ("compression", "zstd"),
            ("force-compression", ""),
            ("compression-level", "3"),
            ("containerimage.config", "{}"),
        ])
        .unwrap();
        assert_eq!((options.name.as_str(), options.oci_types), ("a,b", Some(false)));
        assert_eq!(options.compression.kind, CompressionKind::Zstd);
        assert_eq!((options.compression.force, options.compression.level), (true, Some(3)));
        assert!(rest.contains_key("containerimage.config") && !rest.contains_key("name"));
    }

    #[test]
    fn errors_are_those_clients_know() {
        for (pair, want) in [
            (
                ("oci-mediatypes", "x"),
                "non-bool value specified for oci-mediatypes: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
            (("compression", "lz4"), "unsupported compression type lz4"),
            (
                ("force-compression", "x"),
                "non-bool value x specified for force-compression: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
            (
                ("compression-level", "x"),
                "non-integer value x specified for compression-level: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
        ] {
            assert_eq!(take(&[pair]).unwrap_err().to_string(), want);
        }
        let e = take(&[("oci-mediatypes", "false"), ("compression", "estargz")]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "exporter option \"compression=estargz\" conflicts with \"oci-mediatypes=false\""
        );
        let e = take(&[("oci-mediatypes", "false"), ("oci-artifact", "true")]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\""
        );
    }

    #[test]
    fn defaults_follow_the_compatibility_version() {
        let (mut options, _) = take(&[]).unwrap();
        options.settle(true, Compatibility::V30);
        assert!(options.oci_types() && options.oci_artifact());
        let (mut options, _) = take(&[]).unwrap();
        options.settle(true, Compatibility::V20);
        assert!(options.oci_types() && !options.oci_artifact());
    }
}
