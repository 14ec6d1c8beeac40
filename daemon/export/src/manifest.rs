//! Manifests and indexes as JSON, in the order of Go's fields, and media types.

use base::descriptor::media;
use base::{Descriptor, gojson};
use serde::{Deserialize, Serialize};

use crate::annotations::Texts;
use crate::content::Layer;
use crate::error::Error;

/// What attestation manifests call themselves.
pub(crate) const ATTESTATION: &str = "application/vnd.docker.attestation.manifest.v1+json";

/// The config of an artifact: `{}`.
pub(crate) const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Media types of layers: OCI, Docker, and the two that say that the layer must
/// not be distributed.
const LAYERS: [(&str, &str); 6] = [
    (media::OCI_LAYER, media::DOCKER_LAYER),
    (media::OCI_LAYER_GZIP, media::DOCKER_LAYER_GZIP),
    (media::OCI_LAYER_ZSTD, media::DOCKER_LAYER_ZSTD),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    ),
];

/// A manifest. Empty lists of layers are `null`, as Go writes them.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What it says it is.
    #[serde(default)]
    pub media_type: String,
    /// What kind of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Option<Vec<Descriptor>>,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free text by key.
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub annotations: Texts,
}

/// An index.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// What it says it is.
    #[serde(default)]
    pub media_type: String,
    /// The entries.
    pub manifests: Vec<Descriptor>,
    /// Free text by key.
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub annotations: Texts,
}

/// The types an image is made of: those of OCI, or of Docker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Types {
    pub(crate) manifest: &'static str,
    pub(crate) index: &'static str,
    pub(crate) config: &'static str,
    oci: bool,
}

impl Types {
    pub(crate) fn new(oci: bool) -> Self {
        if oci {
            Self { manifest: media::OCI_MANIFEST, index: media::OCI_INDEX, config: media::OCI_CONFIG, oci }
        } else {
            Self {
                manifest: media::DOCKER_MANIFEST,
                index: media::DOCKER_LIST,
                config: media::DOCKER_CONFIG,
                oci,
            }
        }
    }

    /// The descriptor of a layer in a manifest of these types.
    pub(crate) fn layer(self, layer: &Layer, keep_nondist: bool) -> Descriptor {
        let mut descriptor = layer.descriptor.clone();
        descriptor.media_type = layer_type(&descriptor.media_type, self.oci, keep_nondist).to_owned();
        if !keep_nondist {
            descriptor.urls.clear();
        }
        if self.oci {
            descriptor.annotations.retain(|key, _| !is_private(key));
        } else {
            // Docker's manifests have no room for them.
            descriptor.annotations.clear();
        }
        descriptor
    }
}

/// The media type of a layer that may be distributed, in the words of OCI or of
/// Docker. One that is of neither stays.
pub fn layer_media_type(media_type: &str, oci: bool) -> &str {
    layer_type(media_type, oci, false)
}

fn layer_type(media_type: &str, oci: bool, keep_nondist: bool) -> &str {
    let is = |(a, b): &(&str, &str)| *a == media_type || *b == media_type;
    let Some(at) = LAYERS.iter().position(is) else { return media_type };
    // The first three can be distributed, the others correspond to them.
    let (in_oci, in_docker) = LAYERS[if keep_nondist { at } else { at % 3 }];
    if oci { in_oci } else { in_docker }
}

/// Whether a layer is not to be given away.
pub(crate) fn is_nondistributable(media_type: &str) -> bool {
    LAYERS[3..].iter().any(|(oci, docker)| *oci == media_type || *docker == media_type)
}

fn is_private(key: &str) -> bool {
    matches!(key, "containerd.io/uncompressed" | "buildkit/createdat")
        || key.starts_with("containerd.io/distribution.source.")
}

/// JSON as manifests and indexes are written.
///
/// # Errors
/// Never in fact.
pub(crate) fn json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    gojson::to_vec_indent(value).map_err(Error::json("failed to marshal manifest"))
}
