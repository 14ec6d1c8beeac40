//! Devices by name, as the Container Device Interface describes them.
//!
//! Vendors put files into directories; each describes devices of one kind
//! (`vendor.com/class`) and what has to be added to a container that is to use
//! them. [`Devices`] finds them by `vendor.com/class=name`, by kind alone, or
//! by a class that an annotation gives them, and adds to a [`Process`] what
//! they say. The directories are read whenever somebody asks: what was put
//! there counts from then on. A file that is broken is passed over with a
//! warning, as are devices that two files of one directory describe.

mod edits;
mod file;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::process::Process;
use edits::apply;
use file::{Edits, Spec};

/// Gives devices a name of their own, by which several can be asked for.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// Whether a device may be used without being granted.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// A device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Nobody describes it.
    #[error("required device {} is not registered", base::gotext::quote(.0))]
    NotRegistered(String),
    /// Its file says what cannot be done.
    #[error("CDI device injection failed: {device}: {reason}")]
    Injection {
        /// The device.
        device: String,
        /// What is wrong.
        reason: String,
    },
}

impl base::Classify for DeviceError {
    fn kind(&self) -> base::Kind {
        match self {
            Self::NotRegistered(_) => base::Kind::NotFound,
            Self::Injection { .. } => base::Kind::Unknown,
        }
    }
}

/// A device that is described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// `vendor.com/class=name`.
    pub name: String,
    /// Builds may use it without being granted it.
    pub auto_allow: bool,
    /// Those of its file and its own.
    pub annotations: BTreeMap<String, String>,
}

/// Where devices are described.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    dirs: Vec<PathBuf>,
    auto_allowed: BTreeSet<String>,
}

/// A device as it was read.
struct Found {
    spec: Arc<Spec>,
    /// The rank of its directory; the last directory counts most.
    rank: usize,
    annotations: BTreeMap<String, String>,
    edits: Edits,
}

impl Devices {
    /// Devices described in `dirs`, of which later ones count more. Devices and
    /// kinds in `auto_allowed` need not be granted.
    pub fn new(dirs: Vec<PathBuf>, auto_allowed: impl IntoIterator<Item = String>) -> Self {
        Self { dirs, auto_allowed: auto_allowed.into_iter().collect() }
    }

    /// All devices, by name. Blocks.
    pub fn list(&self) -> Vec<DeviceInfo> {
        let all = self.read();
        all.into_iter()
            .map(|(name, found)| DeviceInfo {
                auto_allow: self.is_auto_allowed(&name, &found),
                annotations: found.annotations,
                name,
            })
            .collect()
    }

    /// The devices that `wanted` stand for, each once. Blocks.
    ///
    /// # Errors
    /// [`DeviceError::NotRegistered`] for the first that stands for none and is
    /// not optional.
    pub fn find<'a>(
        &self,
        wanted: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> Result<Vec<DeviceInfo>, DeviceError> {
        let list = self.list();
        let (mut out, mut seen) = (Vec::new(), HashSet::new());
        for (name, optional) in wanted {
            let found = select(&list, name);
            if found.is_empty() && !optional {
                return Err(DeviceError::NotRegistered(name.to_owned()));
            }
            if found.is_empty() {
                tracing::warn!(name, "optional device is not registered");
            }
            out.extend(found.into_iter().filter(|device| seen.insert(device.name.clone())).cloned());
        }
        Ok(out)
    }

    /// Adds to `process` what the devices that `wanted` stand for need. Blocks.
    ///
    /// # Errors
    /// Those of [`Self::find`], and what a file asks for that cannot be done.
    pub fn inject<'a>(
        &self,
        wanted: impl IntoIterator<Item = (&'a str, bool)>,
        process: &mut Process,
    ) -> Result<(), DeviceError> {
        let names = self.find(wanted)?;
        let mut all = self.read();
        let mut specs: HashSet<PathBuf> = HashSet::new();
        for DeviceInfo { name, .. } in names {
            let Some(found) = all.remove(&name) else { return Err(DeviceError::NotRegistered(name)) };
            let failed = |reason| DeviceError::Injection { device: name.clone(), reason };
            if specs.insert(found.spec.path.clone()) {
                apply(&found.spec.edits, process).map_err(failed)?;
            }
            apply(&found.edits, process).map_err(failed)?;
        }
        Ok(())
    }

    fn is_auto_allowed(&self, name: &str, found: &Found) -> bool {
        let kind = name.split_once('=').map_or(name, |(kind, _)| kind);
        let noted = found.annotations.get(AUTO_ALLOW).and_then(|v| base::gotext::parse_bool(v));
        self.auto_allowed.contains(name) || self.auto_allowed.contains(kind) || noted == Some(true)
    }

    fn read(&self) -> BTreeMap<String, Found> {
        let mut all: BTreeMap<String, Found> = BTreeMap::new();
        let mut twice: HashSet<String> = HashSet::new();
        for (rank, dir) in self.dirs.iter().enumerate() {
            for path in files(dir) {
                let (spec, devices) = match Spec::read(&path) {
                    Ok(read) => read,
                    Err(reason) => {
                        tracing::warn!(path = %path.display(), reason, "CDI file passed over");
                        continue;
                    }
                };
                let spec = Arc::new(spec);
                for device in devices {
                    let name = format!("{}={}", spec.kind, device.name);
                    if all.get(&name).is_some_and(|other| other.rank == rank) {
                        tracing::warn!(name, path = %path.display(), "CDI device is described twice");
                        twice.insert(name);
                        continue;
                    }
                    // What was in conflict further down does not matter any more.
                    twice.remove(&name);
                    let mut annotations = spec.annotations.clone();
                    annotations.extend(device.annotations);
                    all.insert(name, Found { spec: spec.clone(), rank, annotations, edits: device.edits });
                }
            }
        }
        all.retain(|name, _| !twice.contains(name));
        all
    }
}

/// The devices of `list` that a name stands for.
fn select<'a>(list: &'a [DeviceInfo], wanted: &str) -> Vec<&'a DeviceInfo> {
    let (kind, name) = wanted.split_once('=').unwrap_or((wanted, ""));
    let qualified =
        kind.split_once('/').is_some_and(|(vendor, class)| !vendor.is_empty() && !class.is_empty());
    if qualified {
        let of_kind =
            |device: &&DeviceInfo| device.name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('='));
        let found: Vec<_> = match name {
            "" => list.iter().find(of_kind).into_iter().collect(),
            "*" => list.iter().filter(of_kind).collect(),
            _ => list.iter().filter(|device| device.name == wanted).collect(),
        };
        if !found.is_empty() {
            return found;
        }
    }
    list.iter().filter(|device| device.annotations.get(CLASS).is_some_and(|class| class == wanted)).collect()
}

/// The files of a directory that describe devices, by name. One that is not
/// there has none.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => {
            if e.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(dir = %dir.display(), error = %e, "CDI directory passed over");
            }
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "json" || e == "yaml") && path.is_file())
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Source;

    fn devices(files: &[(&str, &str)]) -> (tempfile::TempDir, Devices) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let devices = Devices::new(
            ["static", "dynamic", "none"].map(|d| dir.path().join(d)).to_vec(),
            ["allowed.com/x".to_owned()],
        );
        (dir, devices)
    }

    const FOO: &str = "cdiVersion: \"0.6.0\"\nkind: vendor.com/dev\nannotations:\n  org.mobyproject.buildkit.device.autoallow: true\n  a.b/c: 7\n\
        containerEdits:\n  env: [ALL=1]\ndevices:\n- name: foo\n  annotations:\n    org.mobyproject.buildkit.device.class: fast\n  containerEdits:\n    env: [FOO=1]\n\
        - name: bar\n  containerEdits:\n    env: [BAR=1, ALL=2]\n    deviceNodes:\n    - path: /dev/mine\n      hostPath: /dev/null\n      permissions: rw\n      uid: 5\n\
        \x20   mounts:\n    - hostPath: /etc\n      containerPath: /mnt\n      options: [ro, nodev, bind]\n    additionalGids: [0, 44]\n\
        \x20   hooks:\n    - hookName: createContainer\n      path: /bin/x\n      args: [x, y]\n";

    fn names(devices: &Devices, wanted: &str) -> Vec<String> {
        devices.find([(wanted, true)]).unwrap().into_iter().map(|d| d.name).collect()
    }

    #[test]
    fn devices_are_found_by_name_kind_and_class() {
        let allowed = r#"{"cdiVersion":"0.5.0","kind":"allowed.com/x","devices":[{"name":"0","containerEdits":{"env":["A=1"]}}]}"#;
        let (_dir, devices) =
            devices(&[("static/foo.yaml", FOO), ("dynamic/x.json", allowed), ("static/no.txt", "")]);
        assert_eq!(names(&devices, "vendor.com/dev=foo"), ["vendor.com/dev=foo"]);
        assert_eq!(names(&devices, "vendor.com/dev"), ["vendor.com/dev=bar"]);
        assert_eq!(names(&devices, "vendor.com/dev=*"), ["vendor.com/dev=bar", "vendor.com/dev=foo"]);
        assert_eq!(names(&devices, "fast"), ["vendor.com/dev=foo"]);
        assert!(names(&devices, "vendor.com/de=*").is_empty());
        let list = devices.list();
        assert!(list.iter().all(|d| d.auto_allow), "{list:?}");
        assert_eq!(list[1].annotations["a.b/c"], "7");
        let missing = devices.find([("vendor.com/dev=no", false)]).unwrap_err();
        assert_eq!(missing.to_string(), r#"required device "vendor.com/dev=no" is not registered"#);
    }

    #[test]
    fn what_devices_need_is_added() {
        let (_dir, devices) = devices(&[("static/foo.yaml", FOO)]);
        let mut process = Process { env: vec!["FOO=0".into()], ..Process::default() };
        devices.inject([("vendor.com/dev=*", false), ("fast", false)], &mut process).unwrap();
        assert_eq!(process.env, ["FOO=0", "ALL=1", "BAR=1", "ALL=2", "FOO=1"]);
        let device = &process.devices[0];
        assert_eq!((device.path.as_str(), device.kind, device.major, device.minor), ("/dev/mine", 'c', 1, 3));
        assert_eq!((device.access.as_str(), device.uid, device.gid), ("rw", Some(5), None));
        let mount = &process.mounts[0];
        assert_eq!(mount.dest, "/mnt");
        assert!(matches!(&mount.source, Source::Bind { path, .. } if path == Path::new("/etc")));
        assert_eq!(mount.options, ["ro", "nodev"]);
        assert_eq!(process.groups, [44]);
        assert_eq!(process.hooks[0].stage, "createContainer");
    }

    #[test]
    fn broken_and_conflicting_files_are_passed_over() {
        let one = |name: &str, env: &str| {
            format!(
                "cdiVersion: 0.6.0\nkind: v.com/c\ndevices:\n- name: {name}\n  containerEdits:\n    env: [{env}]\n"
            )
        };
        let (_dir, devices) = devices(&[
            ("static/a.yaml", &one("same", "A=1")),
            ("static/b.yaml", &one("same", "A=2")),
            ("static/c.yaml", &one("other", "A=3")),
            ("dynamic/c.yaml", &one("other", "A=4")),
            ("static/d.yaml", &one("bad", "'=5'")),
            ("static/e.yaml", "kind: ["),
            ("static/f.yaml", &one("'-x'", "A=6")),
            (
                "static/g.yaml",
                "cdiVersion: 9.9.9\nkind: v.com/g\ndevices: [{name: x, containerEdits: {env: [A=1]}}]",
            ),
            (
                "static/h.yaml",
                "cdiVersion: 0.6.0\nkind: v.com/h\nwhat: 1\ndevices: [{name: x, containerEdits: {env: [A=1]}}]",
            ),
            ("static/i.yaml", "cdiVersion: 0.6.0\nkind: v.com/i\ndevices: [{name: x, containerEdits: {}}]"),
            ("static/j.yaml", "cdiVersion: 0.6.0\nkind: v.com/j\ndevices: []"),
            (
                "static/k.yaml",
                "cdiVersion: 0.6.0\nkind: -v.com/k\ndevices: [{name: x, containerEdits: {env: [A=1]}}]",
            ),
        ]);
        let list: Vec<_> = devices.list().into_iter().map(|d| d.name).collect();
        assert_eq!(list, ["v.com/c=other"]);
        let mut process = Process::default();
        devices.inject([("v.com/c=other", false)], &mut process).unwrap();
        assert_eq!(process.env, ["A=4"]);
    }
}
