//! Putting the results of several platforms together.

use std::collections::BTreeMap;

use base::{Failure, Platform, gojson};
use serde::Serialize;

use crate::convert::{Epoch, Image};
use crate::gateway::{FrontendResult, RefId, Refs};

/// What was built for one platform.
#[derive(Debug, Clone)]
pub struct Built {
    /// What was asked for; `None`: nothing in particular.
    pub platform: Option<Platform>,
    /// The files.
    pub reference: Option<RefId>,
    /// The configuration of the image.
    pub image: Image,
    /// That of the image it is based on.
    pub base_image: Option<Image>,
    /// The time that times of files are limited to.
    pub epoch: Option<Epoch>,
}

impl Built {
    /// The platform's name in the result.
    pub fn id(&self) -> String {
        self.wanted().format_all()
    }

    fn wanted(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::host).normalized()
    }
}

/// One result from those of all platforms: one reference, or one per platform
/// when `by_platform`.
///
/// # Errors
/// When a configuration has no JSON form, which none has.
pub fn assemble(built: Vec<Built>, by_platform: bool) -> Result<FrontendResult, Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Platforms {
        platforms: Vec<Entry>,
    }
    #[derive(Serialize)]
    struct Entry {
        #[serde(rename = "ID")]
        id: String,
        #[serde(rename = "Platform")]
        platform: Platform,
    }
    let write = |e: serde_json::Error| Failure::internal(format!("failed to marshal image config: {e}"));

    let mut result = FrontendResult::default();
    let mut refs = BTreeMap::new();
    let mut entries = Vec::with_capacity(built.len());
    for one in built {
        let id = one.id();
        let mut platform = one.wanted();
        if platform.os == "windows" && one.image.platform.os == platform.os {
            if platform.os_version.is_empty() {
                platform.os_version.clone_from(&one.image.platform.os_version);
            }
            if platform.os_features.is_empty() {
                platform.os_features.clone_from(&one.image.platform.os_features);
            }
        }
        let mut add = |key: &str, value: Vec<u8>| {
            let key = if by_platform { format!("{key}/{id}") } else { key.to_owned() };
            result.metadata.insert(key, value);
        };
        add("containerimage.config", gojson::to_vec(&one.image).map_err(write)?);
        if let Some(base) = &one.base_image {
            add("containerimage.base.config", gojson::to_vec(base).map_err(write)?);
        }
        if let Some(epoch) = &one.epoch {
            add("source.date.epoch", epoch.seconds().to_string().into_bytes());
        }
        if by_platform {
            refs.insert(id.clone(), one.reference);
        } else {
            result.refs = Refs::Single(one.reference);
        }
        entries.push(Entry { id, platform });
    }
    if by_platform {
        result.refs = Refs::ByPlatform(refs);
    }
    let platforms = gojson::to_vec(&Platforms { platforms: entries }).map_err(write)?;
    result.metadata.insert("refs.platforms".to_owned(), platforms);
    Ok(result)
}
