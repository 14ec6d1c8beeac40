//! From what a name stands for to the image for one platform.

use std::collections::BTreeMap;

use base::descriptor::media;
use base::gojson::nullable;
use base::{Descriptor, Digest, Platform};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::Deserialize;

use crate::Repository;
use crate::error::{Problem, Result};

/// Indexes within indexes that are followed.
const MAX_DEPTH: usize = 4;

/// The manifest of one image.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What the document says it is; old ones do not say.
    #[serde(default, deserialize_with = "nullable")]
    pub media_type: String,
    /// The image's config.
    pub config: Descriptor,
    /// Its layers, lowest first; `null` is how some write that there are none.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    /// Free text by key.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// What the document says it is; old ones do not say.
    #[serde(default, deserialize_with = "nullable")]
    pub media_type: String,
    /// Its entries.
    #[serde(default, deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
    /// Free text by key.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

/// What a name can stand for.
#[derive(Debug, Clone)]
pub enum Document {
    /// One image.
    Image(Box<Manifest>),
    /// Several.
    Index(Index),
}

/// An image for one platform.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest's descriptor.
    pub desc: Descriptor,
    /// The manifest, byte for byte.
    pub bytes: Bytes,
    /// The manifest, read.
    pub manifest: Manifest,
    /// The config, byte for byte.
    pub config: Bytes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// The media type of a manifest or index, judged by what is in it.
///
/// # Errors
/// [`Problem::Manifest`] when it is neither, or both.
pub fn detect(digest: &Digest, bytes: &[u8]) -> Result<String, Problem> {
    let invalid = |reason: String| Problem::Manifest { digest: digest.clone(), reason };
    let shape: Shape = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
    if shape.fs_layers.is_some() {
        return Err(Problem::SchemaOne);
    }
    let image = shape.config.is_some() || shape.layers.is_some();
    // A document that could be read as either is an attack: what was signed
    // as the one would be used as the other.
    let declared = shape.media_type.unwrap_or_default();
    let index = shape.manifests.is_some();
    let declares = |known: fn(&str) -> bool| declared.is_empty() || known(&declared);
    match (image, index) {
        (true, true) => Err(invalid("both a manifest and an index".into())),
        (true, false) if declares(media::is_manifest) => {
            Ok(if declared.is_empty() { media::OCI_MANIFEST.into() } else { declared })
        }
        (false, true) if declares(media::is_index) => {
            Ok(if declared.is_empty() { media::OCI_INDEX.into() } else { declared })
        }
        (false, false) => Err(invalid("neither a manifest nor an index".into())),
        _ => Err(invalid(format!("its content is not {declared}"))),
    }
}

impl Document {
    /// Reads a manifest or an index.
    ///
    /// # Errors
    /// [`Problem::Manifest`] when it is neither, both, or not what `desc` says.
    pub fn parse(desc: &Descriptor, bytes: &[u8]) -> Result<Self, Problem> {
        let invalid = |reason: String| Problem::Manifest { digest: desc.digest.clone(), reason };
        let found = detect(&desc.digest, bytes)?;
        let index = media::is_index(&found);
        let said = (media::is_index(&desc.media_type), media::is_manifest(&desc.media_type));
        if said == (true, false) && !index || said == (false, true) && index {
            return Err(invalid(format!("its content is not {}", desc.media_type)));
        }
        Ok(if index {
            Self::Index(serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?)
        } else {
            Self::Image(serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?)
        })
    }
}

/// The entries of an index that suit `platform`, the best first. Those that do
/// not say what they are for come last.
pub fn select<'a>(manifests: &'a [Descriptor], platform: &Platform) -> Vec<&'a Descriptor> {
    let platform = platform.clone().normalized();
    let rank = |d: &Descriptor| match &d.platform {
        Some(p) => platform.suits(&p.clone().normalized()),
        None => Some(u32::MAX),
    };
    let mut suitable: Vec<_> = manifests.iter().filter_map(|d| Some((rank(d)?, d))).collect();
    suitable.sort_by_key(|(rank, _)| *rank);
    suitable.into_iter().map(|(_, d)| d).collect()
}

/// The platform an image's config names.
#[derive(Deserialize)]
struct ConfigPlatform {
    #[serde(flatten)]
    platform: Platform,
}

/// The image behind `root` for `platform`: manifest and config, as `fetch` brings
/// and verifies them. An image that is not in an index is taken whatever it is for.
/// `about` says which document a problem is about.
///
/// # Errors
/// [`Problem::Platform`] when the index has nothing that suits, and everything
/// `fetch` returns.
pub async fn find<'a, E>(
    root: &Descriptor,
    platform: &Platform,
    fetch: &(dyn Fn(Descriptor) -> BoxFuture<'a, Result<Bytes, E>> + Sync),
    about: &(dyn Fn(&Digest, Problem) -> E + Sync),
) -> Result<Image, E> {
    let nothing_for = |desc: &Descriptor| {
        let (digest, platform) = (desc.digest.clone(), platform.to_string());
        about(&root.digest, Problem::Platform { digest, platform })
    };
    let mut desc = root.clone();
    for _ in 0..MAX_DEPTH {
        let bytes = fetch(desc.clone()).await?;
        let manifest = match Document::parse(&desc, &bytes).map_err(|p| about(&desc.digest, p))? {
            Document::Image(manifest) => manifest,
            Document::Index(index) => {
                let best = select(&index.manifests, platform).first().map(|d| (*d).clone());
                desc = best.ok_or_else(|| nothing_for(&desc))?;
                continue;
            }
        };
        let config = fetch(manifest.config.clone()).await?;
        if desc.digest != root.digest && desc.platform.is_none() && !config_suits(&config, platform) {
            return Err(nothing_for(root));
        }
        return Ok(Image { desc, bytes, manifest: *manifest, config });
    }
    let reason = "too many indexes within indexes".to_owned();
    Err(about(&root.digest, Problem::Manifest { digest: root.digest.clone(), reason }))
}

impl Repository {
    /// The image behind `root` for `platform`, as [`find`] finds it.
    ///
    /// # Errors
    /// Those of [`find`] and [`Repository::fetch`].
    pub async fn image(&self, root: &Descriptor, platform: &Platform) -> Result<Image> {
        let fetch = |desc: Descriptor| async move { self.fetch(&desc).await }.boxed();
        let about = |digest: &Digest, problem| match problem {
            Problem::Platform { .. } => problem.of(self.reference()),
            problem => self.about(digest, Some(problem)),
        };
        find(root, platform, &fetch, &about).await
    }
}

fn config_suits(config: &[u8], platform: &Platform) -> bool {
    serde_json::from_slice::<ConfigPlatform>(config)
        .is_ok_and(|c| platform.clone().normalized().suits(&c.platform.normalized()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: Option<&str>) -> Descriptor {
        let mut desc = Descriptor::new(media::OCI_MANIFEST, Digest::of(platform.unwrap_or("none")), 1);
        desc.platform = platform.map(|p| match p.parse::<Platform>() {
            Ok(p) => p,
            Err(e) => panic!("{e}"),
        });
        desc
    }

    #[test]
    fn takes_what_suits_best() {
        let entries: Vec<_> = [
            None,
            Some("linux/386"),
            Some("linux/arm/v6"),
            Some("linux/arm/v7"),
            Some("linux/amd64"),
            Some("linux/amd64/v2"),
            Some("windows/amd64"),
        ]
        .map(entry)
        .into();
        let pick = |platform: &str| {
            let names = select(&entries, &platform.parse().unwrap());
            names
                .iter()
                .map(|d| d.platform.as_ref().map_or(String::new(), ToString::to_string))
                .collect::<Vec<_>>()
        };
        assert_eq!(pick("linux/amd64"), ["linux/amd64", "linux/386", ""]);
        assert_eq!(pick("linux/amd64/v3"), ["linux/amd64/v2", "linux/amd64", "linux/386", ""]);
        assert_eq!(pick("linux/arm64"), ["linux/arm/v7", "linux/arm/v6", ""]);
        assert_eq!(pick("linux/s390x"), [""]);
    }

    #[test]
    fn refuses_what_could_be_read_two_ways() {
        let digest = Digest::of("");
        let detect = |text: &str| detect(&digest, text.as_bytes());
        assert!(detect(r#"{"config":{},"manifests":[]}"#).is_err());
        assert!(detect(&format!(r#"{{"mediaType":"{}","manifests":[]}}"#, media::OCI_MANIFEST)).is_err());
        assert!(detect("<html>").is_err() && detect("{}").is_err() && detect("[]").is_err());
        assert_eq!(detect(r#"{"layers":[]}"#).unwrap(), media::OCI_MANIFEST);
        assert_eq!(detect(r#"{"manifests":[]}"#).unwrap(), media::OCI_INDEX);
        let index = Descriptor::new(media::DOCKER_LIST, digest.clone(), 1);
        assert!(Document::parse(&index, br#"{"layers":[]}"#).is_err());
        assert!(Document::parse(&index, br#"{"manifests":[{"digest":"x"}]}"#).is_err());
    }
}
