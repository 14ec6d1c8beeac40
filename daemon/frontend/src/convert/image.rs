//! The configuration of an image, as it is read and written.
//!
//! Its JSON is a contract: digests of images and of history depend on the order
//! of fields and on what is left out when it is empty.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Platform;
use base::gojson::nullable;
use serde::{Deserialize, Deserializer, Serialize};

use super::epoch::Epoch;

/// An image's configuration, with Docker's additions. Fields are in the order
/// in which they are written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// When it was made, RFC 3339.
    #[serde(default, deserialize_with = "time", skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// What it runs on.
    #[serde(flatten)]
    pub platform: ImagePlatform,
    /// Its layers.
    #[serde(default)]
    pub rootfs: RootFs,
    /// How it came about.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// How to run it.
    #[serde(default, deserialize_with = "nullable")]
    pub config: Config,
}

/// What an image runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePlatform {
    /// Such as `amd64`.
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// Such as `linux`.
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// Windows builds.
    #[serde(
        rename = "os.version",
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Windows features.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// Such as `v7` of arm.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// The layers of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    /// Digests of the layers, lowest first; `null` when none were ever set.
    #[serde(default)]
    pub diff_ids: Option<Vec<String>>,
}

/// One step on the way to an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, deserialize_with = "time", skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which command.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// By whom.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// By which program.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// It made no layer.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub empty_layer: bool,
}

/// A set, written as an object of empty objects.
pub(super) type Set = BTreeMap<String, Empty>;

/// `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// How to run an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Config {
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: Set,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: Set,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub args_escaped: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
}

/// How to tell whether a container is well. Lengths of time in nanoseconds;
/// zero means: inherit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Healthcheck {
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

impl Image {
    /// An image without layers.
    pub fn empty(platform: &Platform) -> Self {
        let env = if platform.os == "windows" { Vec::new() } else { vec![format!("PATH={DEFAULT_PATH}")] };
        Self {
            platform: ImagePlatform {
                architecture: platform.architecture.clone(),
                os: platform.os.clone(),
                os_version: platform.os_version.clone(),
                os_features: platform.os_features.clone(),
                variant: platform.variant.clone(),
            },
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: None },
            config: Config { env, working_dir: "/".to_owned(), ..Config::default() },
            ..Self::default()
        }
    }

    /// What it runs on, as the rest of the daemon says it.
    pub fn runs_on(&self) -> Platform {
        let p = &self.platform;
        Platform {
            architecture: p.architecture.clone(),
            os: p.os.clone(),
            os_version: p.os_version.clone(),
            os_features: p.os_features.clone(),
            variant: p.variant.clone(),
        }
    }

    /// Says what it runs on.
    pub fn set_platform(&mut self, platform: Platform) {
        self.platform = ImagePlatform {
            architecture: platform.architecture,
            os: platform.os,
            os_version: platform.os_version,
            os_features: platform.os_features,
            variant: platform.variant,
        };
    }

    /// Whether it has no layers at all. Images of an old format do not list
    /// theirs, but their history tells.
    pub fn is_scratch(&self) -> bool {
        self.rootfs.diff_ids.as_ref().is_none_or(Vec::is_empty) && self.history.iter().all(|h| h.empty_layer)
    }

    /// Sets an environment variable, in its place if it is there.
    pub fn set_env(&mut self, key: &str, value: &str) {
        let new = format!("{key}={value}");
        let env = &mut self.config.env;
        match env.iter_mut().find(|e| e.split('=').next() == Some(key)) {
            Some(old) => *old = new,
            None => env.push(new),
        }
    }

    /// Notes a step.
    pub fn add_history(&mut self, created_by: String, layer: bool, epoch: Option<&Epoch>) {
        self.history.push(History {
            created: epoch.map(|e| e.text().to_owned()),
            created_by,
            author: String::new(),
            comment: "buildkit.dockerfile.v0".to_owned(),
            empty_layer: !layer,
        });
    }
}

/// `PATH` of images that set none.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Healthcheck {
    /// As the reference prints the value in histories.
    pub fn text(&self) -> String {
        let time = |nanos: i64| duration(Duration::from_nanos(nanos.unsigned_abs()));
        format!(
            "{{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            self.test.join(" "),
            time(self.interval),
            time(self.timeout),
            time(self.start_period),
            time(self.start_interval),
            self.retries
        )
    }
}

/// `time.Duration.String`: `1m30s`, `1.5s`, `10ms`, `0s`.
pub(super) fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let part = |value: u128, unit: u128| {
        let (whole, rest) = (value / unit, value % unit);
        let width = unit.ilog10() as usize;
        let fraction = format!("{rest:0width$}");
        let fraction = fraction.trim_end_matches('0');
        if rest == 0 { whole.to_string() } else { format!("{whole}.{fraction}") }
    };
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", part(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", part(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = part(nanos % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    }
}

/// A time is written again without what does not matter in it: zeros at the end
/// of the fraction, `Z` for no offset.
fn time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
    normal_time(&text).map(Some).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no time")))
}

fn normal_time(text: &str) -> Option<String> {
    let digits = |range: std::ops::Range<usize>| {
        text.get(range).is_some_and(|t| t.bytes().all(|b| b.is_ascii_digit()))
    };
    let mark = |at: usize, c: u8| text.as_bytes().get(at) == Some(&c);
    let fixed = digits(0..4)
        && mark(4, b'-')
        && digits(5..7)
        && mark(7, b'-')
        && digits(8..10)
        && mark(10, b'T')
        && digits(11..13)
        && mark(13, b':')
        && digits(14..16)
        && mark(16, b':')
        && digits(17..19);
    if !fixed {
        return None;
    }
    let (seconds, rest) = text.split_at(19);
    let zone_at = rest.find(['Z', '+', '-'])?;
    let (fraction, zone) = rest.split_at(zone_at);
    let fraction = match fraction.strip_prefix('.') {
        Some(f) if !f.is_empty() && f.bytes().all(|b| b.is_ascii_digit()) => {
            f.get(..9).unwrap_or(f).trim_end_matches('0')
        }
        None if fraction.is_empty() => "",
        _ => return None,
    };
    let zone = match zone {
        "Z" | "+00:00" | "-00:00" => "Z",
        z if z.len() == 6 && z.as_bytes().get(3) == Some(&b':') => z,
        _ => return None,
    };
    let dot = if fraction.is_empty() { "" } else { "." };
    Some(format!("{seconds}{dot}{fraction}{zone}"))
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(b: &bool) -> bool {
    !*b
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &i64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_go_writes() {
        let image = Image::empty(&Platform::new("linux", "arm64", ""));
        assert_eq!(
            String::from_utf8(base::gojson::to_vec(&image).unwrap()).unwrap(),
            r#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":null},"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"}}"#
        );
    }

    #[test]
    fn prints_times() {
        for (nanos, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (10_000_000, "10ms"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), want);
        }
        assert_eq!(normal_time("2024-01-02T03:04:05.120Z").unwrap(), "2024-01-02T03:04:05.12Z");
        assert_eq!(normal_time("2024-01-02T03:04:05+00:00").unwrap(), "2024-01-02T03:04:05Z");
        assert_eq!(normal_time("yesterday"), None);
    }
}
