//! The files: YAML, of which JSON is a part, checked whole.

use std::collections::{BTreeMap, HashSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Versions of the format, all read alike: later ones only add.
const VERSIONS: [&str; 10] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// When a container's hooks run.
const STAGES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
/// Bytes of a file.
const MAX: u64 = 4 << 20;

/// A file, less its devices.
pub(super) struct Spec {
    pub(super) path: PathBuf,
    /// `vendor.com/class`.
    pub(super) kind: String,
    pub(super) annotations: BTreeMap<String, String>,
    /// For whoever uses one of its devices.
    pub(super) edits: Edits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

/// A device of a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(rename = "containerEdits")]
    pub(super) edits: Edits,
}

/// What is added to a container.
#[derive(Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) net_devices: Vec<NetDevice>,
    pub(super) hooks: Vec<Hook>,
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<IntelRdt>,
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceNode {
    pub(super) path: String,
    pub(super) host_path: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    pub(super) name: String,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct IntelRdt {
    #[serde(rename = "closID")]
    pub(super) clos_id: String,
    pub(super) l3_cache_schema: String,
    pub(super) mem_bw_schema: String,
    pub(super) schemata: Vec<String>,
    pub(super) enable_monitoring: bool,
}

impl Spec {
    /// Reads a file, or says why it cannot be used.
    pub(super) fn read(path: &Path) -> Result<(Self, Vec<Device>), String> {
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
        file.take(MAX).read_to_string(&mut text).map_err(|e| e.to_string())?;
        let file: File = serde_saphyr::from_str(&text).map_err(|e| e.to_string())?;
        if !VERSIONS.contains(&file.cdi_version.as_str()) {
            return Err(format!("unknown version {:?}", file.cdi_version));
        }
        let named = file.kind.split_once('/').is_some_and(|(vendor, class)| {
            [vendor, class].iter().all(|name| {
                name.starts_with(|c: char| c.is_ascii_alphabetic()) && is_name(name, &['_', '-', '.'])
            })
        });
        if !named {
            return Err(format!("invalid kind {:?}", file.kind));
        }
        file.container_edits.check()?;
        let mut names = HashSet::new();
        for device in &file.devices {
            if !is_name(&device.name, &['_', '-', '.', ':']) {
                return Err(format!("invalid device name {:?}", device.name));
            }
            if !names.insert(&device.name) {
                return Err(format!("device {} is there twice", device.name));
            }
            if device.edits == Edits::default() {
                return Err(format!("device {} adds nothing", device.name));
            }
            device.edits.check()?;
        }
        if file.devices.is_empty() {
            return Err("no devices".to_owned());
        }
        let File { kind, annotations, container_edits: edits, devices, .. } = file;
        Ok((Self { path: path.to_owned(), kind, annotations, edits }, devices))
    }
}

/// Letters, digits and some more within.
fn is_name(name: &str, within: &[char]) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    name.starts_with(plain) && name.ends_with(plain) && name.chars().all(|c| plain(c) || within.contains(&c))
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        let variable = |env: &String| env.find('=').is_none_or(|at| at == 0);
        let of_hooks = self.hooks.iter().flat_map(|hook| &hook.env);
        if let Some(env) = self.env.iter().chain(of_hooks).find(|env| variable(env)) {
            return Err(format!("invalid environment variable {env:?}"));
        }
        for DeviceNode { path, kind, permissions, .. } in &self.device_nodes {
            if path.is_empty() {
                return Err("a device without a path".to_owned());
            }
            if !matches!(kind.as_str(), "" | "b" | "c" | "u" | "p") {
                return Err(format!("device {path:?}: invalid type {kind:?}"));
            }
            if permissions.chars().any(|c| !matches!(c, 'r' | 'w' | 'm')) {
                return Err(format!("device {path:?}: invalid permissions {permissions:?}"));
            }
        }
        for hook in &self.hooks {
            if !STAGES.contains(&hook.hook_name.as_str()) || hook.path.is_empty() {
                return Err(format!("invalid hook {:?}", hook.hook_name));
            }
        }
        for mount in &self.mounts {
            if mount.host_path.is_empty() || mount.container_path.is_empty() {
                return Err("a mount without a path".to_owned());
            }
        }
        let (mut hosts, mut names) = (HashSet::new(), HashSet::new());
        for NetDevice { host_interface_name: host, name } in &self.net_devices {
            if host.is_empty() || name.is_empty() || !hosts.insert(host) || !names.insert(name) {
                return Err(format!("network device {name:?} ({host:?}) is unnamed or there twice"));
            }
        }
        match self.intel_rdt.as_ref().map(|rdt| rdt.clos_id.as_str()) {
            Some("." | "..") => Err("invalid closID".to_owned()),
            Some(id) if id != "/" && (id.len() >= 4096 || id.contains(['/', '\n'])) => {
                Err("invalid closID".to_owned())
            }
            _ => Ok(()),
        }
    }
}
