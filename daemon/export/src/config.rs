//! Image configs: what the frontend wrote, with the layers as they are.
//!
//! Everything this crate does not understand stays as it was written; keys
//! come out sorted. History entries are completed from what is known of the
//! layers, and times are clamped to the epoch unless they are those of the
//! base image.

use std::collections::BTreeMap;

use base::{Digest, Platform, gojson};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::content::Layer;
use crate::epoch::Time;
use crate::error::Error;
use crate::rawjson;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Says in the history who added the entry.
const COMMENT: &str = "buildkit.exporter.image.v0";

/// Said of a layer nobody described.
const UNDESCRIBED: &str = "created by buildkit";

/// One step in an image's history. The order of the fields is that of Go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<Time>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) created_by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) author: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) comment: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) empty_layer: bool,
}

/// The layers of a config. Without layers Go writes `null`.
#[derive(Serialize)]
struct RootFs<'a> {
    r#type: &'a str,
    diff_ids: Option<Vec<&'a Digest>>,
}

impl<'a> RootFs<'a> {
    fn new(diff_ids: impl Iterator<Item = &'a Digest>) -> Self {
        let list: Vec<_> = diff_ids.collect();
        Self { r#type: "layers", diff_ids: (!list.is_empty()).then_some(list) }
    }
}

/// What this crate has to know of a config.
#[derive(Deserialize)]
struct Known {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    history: Option<Vec<Step>>,
}

/// A config with nothing in it, in the order of Go's fields.
#[derive(Serialize)]
struct Bare<'a, C: Serialize> {
    #[serde(flatten)]
    platform: &'a Platform,
    config: C,
    rootfs: RootFs<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BareConfig {
    env: Vec<String>,
    working_dir: &'static str,
}

/// The config of a result that came with none.
pub(crate) fn default_config(platform: &Platform) -> Result<Vec<u8>, Error> {
    let config = BareConfig { env: vec![format!("PATH={PATH}")], working_dir: "/" };
    let bare = Bare { platform, config, rootfs: RootFs::new([].iter()) };
    gojson::to_vec(&bare).map_err(Error::json("failed to create empty image config"))
}

/// The config of an image that holds attestations.
pub(crate) fn attestation_config(layers: &[Digest]) -> Result<Vec<u8>, Error> {
    let platform = Platform { os: "unknown".into(), architecture: "unknown".into(), ..Platform::default() };
    let bare =
        Bare { platform: &platform, config: BTreeMap::<(), ()>::new(), rootfs: RootFs::new(layers.iter()) };
    gojson::to_vec(&bare).map_err(Error::json("failed to create attestations image config"))
}

/// What goes into a config besides what is in it.
pub(crate) struct Patch<'a> {
    pub(crate) layers: &'a [Layer],
    /// The config of the base image, whose history keeps its times.
    pub(crate) base: Option<&'a [u8]>,
    /// No time after this one.
    pub(crate) epoch: Option<&'a Time>,
    /// For later builds.
    pub(crate) inline_cache: Option<&'a [u8]>,
}

/// `config` with the layers, history, times and cache of `patch`.
///
/// # Errors
/// When it is no image config.
pub(crate) fn patch(config: &[u8], patch: &Patch<'_>) -> Result<Vec<u8>, Error> {
    let what = "failed to parse image config for patch";
    let fields: Option<BTreeMap<String, Box<RawValue>>> =
        serde_json::from_slice(config).map_err(Error::json(what))?;
    let mut fields = fields.ok_or_else(|| Error::shape("invalid null image config for export"))?;
    let known: Known =
        serde_json::from_slice(config).map_err(Error::json("invalid image config for export"))?;
    if known.os.is_empty() {
        return Err(Error::shape("invalid image config for export: missing os"));
    }
    if known.architecture.is_empty() {
        return Err(Error::shape("invalid image config for export: missing architecture"));
    }
    let mut history = complete(known.history, patch.layers);
    if let (Some(epoch), Some(history)) = (patch.epoch, &mut history) {
        let base = match patch.base.filter(|json| !json.is_empty()) {
            Some(json) => base_history(json)?,
            None => Vec::new(),
        };
        clamp(history, &base, epoch);
    }

    let mut set = |key: &str, value: Box<RawValue>| fields.insert(key.to_owned(), value);
    set("rootfs", raw(&RootFs::new(patch.layers.iter().map(|l| &l.diff_id)))?);
    set("history", raw(&history)?);
    if let Some(cache) = patch.inline_cache {
        set("moby.buildkit.cache.v0", raw(&STANDARD.encode(cache))?);
    }
    match (fields.get("created"), patch.epoch) {
        (Some(created), Some(epoch)) => {
            let what = "failed to unmarshal creation time";
            let created: Option<Time> = serde_json::from_str(created.get()).map_err(Error::json(what))?;
            if created.is_some_and(|created| created.is_after(epoch)) {
                fields.insert("created".to_owned(), raw(epoch)?);
            }
        }
        (Some(_), None) => {}
        (None, _) => {
            let last = history.iter().flatten().rev().find_map(|step| step.created.as_ref());
            let created = raw(&last)?;
            fields.insert("created".to_owned(), created);
        }
    }
    let mut out = String::from("{");
    for (key, value) in &fields {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(raw(key)?.get());
        out.push(':');
        out.push_str(&rawjson::compact(value.get()));
    }
    out.push('}');
    Ok(out.into_bytes())
}

fn raw(value: &impl Serialize) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(Error::json("failed to marshal config after patch"))
}

fn base_history(json: &[u8]) -> Result<Vec<Step>, Error> {
    #[derive(Deserialize)]
    struct Base {
        #[serde(default)]
        history: Option<Vec<Step>>,
    }
    let base: Base =
        serde_json::from_slice(json).map_err(Error::json("failed to unmarshal base image config"))?;
    Ok(base.history.unwrap_or_default())
}

/// No step after `epoch`, but for those the image has in common with its base.
fn clamp(history: &mut [Step], base: &[Step], epoch: &Time) {
    let own = history.iter().zip(base).take_while(|(step, base)| step == base).count();
    for step in history.iter_mut().skip(own) {
        if step.created.as_ref().is_none_or(|created| created.is_after(epoch)) {
            step.created = Some(epoch.clone());
        }
    }
}

/// One step with a layer for each layer, each with a time. None stays none when
/// there is nothing to say.
fn complete(history: Option<Vec<Step>>, layers: &[Layer]) -> Option<Vec<Step>> {
    let given = history.is_some();
    let mut history = history.unwrap_or_default();

    // More steps than layers: the rest must have been empty.
    let mut with_layer = 0;
    for step in &mut history {
        if with_layer >= layers.len() {
            step.empty_layer = true;
        }
        with_layer += usize::from(!step.empty_layer);
    }
    history.extend(layers.iter().skip(with_layer).map(|layer| Step {
        created: layer.created_at.map(Time::from),
        created_by:
            layer.description.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| UNDESCRIBED.to_owned()),
        comment: COMMENT.to_owned(),
        ..Step::default()
    }));
    let mut times = layers.iter().map(|layer| layer.created_at);
    for step in history.iter_mut().filter(|step| !step.empty_layer) {
        let time = times.next().flatten();
        if step.created.is_none() {
            step.created = time.map(Time::from);
        }
    }

    // A step without a time was with the first new layer after it, if there
    // is one, else with the last layer. In the middle it is the step before.
    let mut created = None;
    let mut missing = false;
    for step in &history {
        if step.created.is_none() {
            missing = true;
        } else {
            created.clone_from(&step.created);
            if missing {
                break;
            }
        }
    }
    missing = false;
    for step in &mut history {
        if step.created.is_none() {
            missing = true;
            step.created.clone_from(&created);
        } else if missing {
            created.clone_from(&step.created);
        }
    }
    (given || !history.is_empty()).then_some(history)
}

#[cfg(test)]
mod tests;
