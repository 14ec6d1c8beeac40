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
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub(crate) annotations: Texts,
}

/// An index.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub(crate) annotations: Texts,
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
        let found = LAYERS
            .iter()
            .position(|(oci, docker)| *oci == descriptor.media_type || *docker == descriptor.media_type);
        if let Some(at) = found {
            // The first three can be distributed, the others correspond to them.
            let at = if keep_nondist { at } else { at % 3 };
            let (oci, docker) = LAYERS[at];
            descriptor.media_type = (if self.oci { oci } else { docker }).to_owned();
        }
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
