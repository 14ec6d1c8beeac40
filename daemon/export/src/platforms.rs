//! Which platforms a result is for.

use std::collections::BTreeMap;

use base::Platform;
use base::gojson::nullable;
use serde::{Deserialize, Serialize};

use crate::error::Error;

pub(crate) const PLATFORMS: &str = "refs.platforms";
const CONFIG: &str = "containerimage.config";

/// A platform, and the id under which its tree and metadata are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PlatformEntry {
    /// The id.
    #[serde(rename = "ID", default)]
    pub id: String,
    /// The platform, normalised.
    #[serde(default)]
    pub platform: Platform,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Platforms {
    #[serde(default, deserialize_with = "nullable")]
    platforms: Vec<PlatformEntry>,
}

/// The platforms of a result: those its metadata names, or that of its image
/// config, or this machine's.
///
/// # Errors
/// When the metadata makes no sense.
pub fn platforms(metadata: &BTreeMap<String, Vec<u8>>) -> Result<Vec<PlatformEntry>, Error> {
    if let Some(json) = metadata.get(PLATFORMS) {
        let what = "failed to parse platforms passed to provenance processor";
        let mut list = match json.as_slice() {
            [] => Vec::new(),
            json => {
                let list: Option<Platforms> = serde_json::from_slice(json).map_err(Error::json(what))?;
                list.unwrap_or_default().platforms
            }
        };
        if list.is_empty() {
            return Err(Error::shape("invalid empty platforms index for exporter"));
        }
        for entry in &mut list {
            if entry.id.is_empty() {
                return Err(Error::shape("invalid empty platform key for exporter"));
            }
            if entry.platform.os.is_empty() || entry.platform.architecture.is_empty() {
                let what = format!("invalid platform value {:?} for exporter", entry.platform);
                return Err(Error::shape(what));
            }
            entry.platform = std::mem::take(&mut entry.platform).normalized();
        }
        return Ok(list);
    }
    let mut platform = Platform::host();
    if let Some(config) = metadata.get(CONFIG) {
        let config: Option<Platform> =
            serde_json::from_slice(config).map_err(Error::json("invalid image config"))?;
        // Who makes the config refuses `null` with words of its own.
        let config = config.unwrap_or_default();
        if config.os.is_empty() != config.architecture.is_empty() {
            return Err(Error::shape("invalid image config: os and architecture must be specified together"));
        }
        platform = config.normalized();
    }
    Ok(vec![PlatformEntry { id: platform.format_all(), platform }])
}

/// Metadata that may be there for one platform or in general.
pub fn metadata_for<'a>(
    metadata: &'a BTreeMap<String, Vec<u8>>,
    key: &str,
    platform: Option<&PlatformEntry>,
) -> Option<&'a [u8]> {
    let own = platform.and_then(|p| metadata.get(&format!("{key}/{}", p.id)));
    own.or_else(|| metadata.get(key)).map(Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_frontends_write() {
        let json =
            br#"{"Platforms":[{"ID":"linux/arm64","Platform":{"architecture":"aarch64","os":"linux"}}]}"#;
        let metadata = BTreeMap::from([(PLATFORMS.to_owned(), json.to_vec())]);
        let list = platforms(&metadata).unwrap();
        assert_eq!(
            (list[0].id.as_str(), list[0].platform.to_string().as_str()),
            ("linux/arm64", "linux/arm64")
        );
        for bad in [
            "{}",
            "",
            "[",
            "null",
            r#"{"Platforms":null}"#,
            r#"{"Platforms":[{"ID":""}]}"#,
            r#"{"Platforms":[{"ID":"x"}]}"#,
        ] {
            let metadata = BTreeMap::from([(PLATFORMS.to_owned(), bad.as_bytes().to_vec())]);
            assert!(platforms(&metadata).is_err(), "{bad}");
        }
    }

    #[test]
    fn falls_back_to_the_config_and_this_machine() {
        let config = br#"{"architecture":"s390x","os":"linux","config":{}}"#.to_vec();
        let metadata = BTreeMap::from([(CONFIG.to_owned(), config)]);
        assert_eq!(platforms(&metadata).unwrap()[0].id, "linux/s390x");
        assert_eq!(platforms(&BTreeMap::new()).unwrap()[0].platform, Platform::host());
        let metadata = BTreeMap::from([(CONFIG.to_owned(), br#"{"os":"linux"}"#.to_vec())]);
        assert!(platforms(&metadata).is_err());
    }
}
