//! The description of a container, in the words of the OCI runtime specification.
//!
//! The sandbox is the one that containerd gives by default: its own pid, ipc,
//! uts, mount and network namespaces, Docker's capabilities, masked and
//! read-only paths in `/proc` and `/sys`; without a `/run` of its own, because
//! what an image keeps there belongs to it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::process::{Device, Hook, Mount, Process, Resources, Security, Source, Ulimit};
use crate::user::User;
use crate::{Attachment, Error, filter, seccomp};

const VERSION: &str = "1.0.2";
/// The variable that processes get which have none of its name.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HOSTNAME: &str = "buildkitsandbox";

/// Capabilities in a sandbox.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Devices a privileged process gets besides loop devices: path, kind, major, minor.
const PRIVILEGED_DEVICES: [(&str, char, u32, u32); 6] = [
    ("/dev/kmsg", 'c', 1, 11),
    ("/dev/cuse", 'c', 10, 203),
    ("/dev/fuse", 'c', 10, 229),
    ("/dev/kvm", 'c', 10, 232),
    ("/dev/net/tun", 'c', 10, 200),
    ("/dev/loop-control", 'c', 10, 237),
];

/// Loop devices offered beyond the first free one.
const SPARE_LOOPS: u32 = 7;

/// What the machine and the configuration add to a process.
pub(crate) struct Surroundings<'a> {
    pub user: User,
    pub network: &'a Attachment,
    pub resolv_conf: &'a Path,
    pub hosts: &'a Path,
    /// Mounts of the process with selectors already resolved, by index.
    pub sources: &'a BTreeMap<usize, std::path::PathBuf>,
    pub cgroup_path: &'a str,
    pub unified_cgroup: bool,
    pub process_sandbox: bool,
    pub rootless: bool,
    pub in_user_namespace: bool,
    pub apparmor_profile: Option<&'a str>,
    pub seccomp: bool,
    /// The filter as it was compiled before, encoded.
    pub filter: Option<&'a str>,
    pub oom_score_adj: Option<i32>,
    /// Capabilities of the daemon.
    pub capabilities: &'a [String],
    /// First free loop device, if loop devices can be had.
    pub free_loop: Option<u32>,
}

/// Where the mounts that every sandbox has hide paths of the root file system.
pub(crate) const OWN_MOUNTS: [&str; 3] = ["/proc", "/dev", "/sys"];

/// The description of a container.
pub(crate) fn container(process: &Process, around: &Surroundings<'_>) -> Result<Value, Error> {
    let insecure = process.security == Security::Insecure;
    let hostname = if process.hostname.is_empty() { HOSTNAME } else { &process.hostname };
    let mut linux = Map::new();
    linux.insert("namespaces".into(), namespaces(around).into());
    let (mut masked, mut readonly) = (MASKED.to_vec(), READONLY.to_vec());
    if insecure {
        masked.clear();
        readonly.clear();
    } else if !around.process_sandbox {
        masked.retain(|p| !p.starts_with("/proc/"));
        readonly.retain(|p| !p.starts_with("/proc/"));
    }
    linux.insert("maskedPaths".into(), json!(masked));
    linux.insert("readonlyPaths".into(), json!(readonly));
    if !around.rootless {
        linux.insert("cgroupsPath".into(), around.cgroup_path.into());
        linux.insert("resources".into(), resources(process, insecure));
    }
    let devices = devices(process, around);
    if !devices.is_empty() {
        linux.insert("devices".into(), devices.into());
    }
    if !process.net_devices.is_empty() {
        let names = process.net_devices.iter().map(|(host, name)| (host.clone(), json!({"name": name})));
        linux.insert("netDevices".into(), names.collect::<Map<_, _>>().into());
    }
    if let Some(rdt) = &process.intel_rdt {
        linux.insert("intelRdt".into(), rdt.clone());
    }
    let capabilities = capabilities(insecure, around);
    let mut annotations = Map::new();
    if around.seccomp && !insecure {
        if let Some(compiled) = around.filter {
            annotations.insert(filter::ANNOTATION.into(), compiled.into());
        }
        let names: Vec<String> = CAPABILITIES.iter().map(|c| (*c).to_owned()).collect();
        linux.insert("seccomp".into(), json!(seccomp::filter(std::env::consts::ARCH, &names)));
    }
    let mut words = self::process(process, &around.user);
    if let Some(words) = words.as_object_mut() {
        words.insert("capabilities".into(), capabilities);
        if let Some(adjust) = around.oom_score_adj {
            words.insert("oomScoreAdj".into(), adjust.into());
        }
        if let Some(profile) = around.apparmor_profile.filter(|_| !insecure) {
            words.insert("apparmorProfile".into(), profile.into());
        }
    }
    let mut spec = json!({
        "ociVersion": VERSION,
        "process": words,
        "root": {"path": text(&process.rootfs)?, "readonly": process.readonly_rootfs},
        "hostname": hostname,
        "mounts": mounts(process, around)?,
        "linux": linux,
        "annotations": annotations,
    });
    if let (false, Some(spec)) = (process.hooks.is_empty(), spec.as_object_mut()) {
        spec.insert("hooks".into(), hooks(&process.hooks).into());
    }
    Ok(spec)
}

fn hooks(hooks: &[Hook]) -> Map<String, Value> {
    let mut stages: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for Hook { stage, path, args, env, timeout } in hooks {
        let mut hook = json!({"path": path, "args": args, "env": env});
        if let (Some(timeout), Some(hook)) = (timeout, hook.as_object_mut()) {
            hook.insert("timeout".into(), json!(timeout));
        }
        stages.entry(stage).or_default().push(hook);
    }
    stages.into_iter().map(|(stage, list)| (stage.to_owned(), list.into())).collect()
}

/// The description of a process, without its privileges.
pub(crate) fn process(process: &Process, user: &User) -> Value {
    let mut groups = user.groups.clone();
    if !groups.contains(&user.gid) {
        groups.insert(0, user.gid);
    }
    groups.extend(&process.groups);
    let mut words = json!({
        "terminal": process.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": groups},
        "args": process.args,
        "env": environment(&process.env),
        "cwd": if process.cwd.is_empty() { "/" } else { &process.cwd },
        "noNewPrivileges": false,
    });
    if !process.ulimits.is_empty()
        && let Some(words) = words.as_object_mut()
    {
        words.insert("rlimits".into(), process.ulimits.iter().map(rlimit).collect());
    }
    words
}

fn environment(env: &[String]) -> Vec<&str> {
    let mut out: Vec<&str> = Vec::with_capacity(env.len() + 1);
    let mut at: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in env {
        let Some((name, _)) = entry.split_once('=') else { continue };
        match at.get(name).and_then(|i| out.get_mut(*i)) {
            Some(earlier) => *earlier = entry,
            None => {
                at.insert(name, out.len());
                out.push(entry);
            }
        }
    }
    if !at.contains_key("PATH") {
        out.push(DEFAULT_PATH);
    }
    out
}

fn rlimit(limit: &Ulimit) -> Value {
    // -1 is RLIM_INFINITY.
    json!({
        "type": format!("RLIMIT_{}", limit.name.to_ascii_uppercase()),
        "hard": limit.hard.cast_unsigned(),
        "soft": limit.soft.cast_unsigned(),
    })
}

fn namespaces(around: &Surroundings<'_>) -> Vec<Value> {
    let mut list = Vec::new();
    if around.process_sandbox {
        list.push(json!({"type": "pid"}));
    }
    list.extend(["ipc", "uts", "mount"].map(|kind| json!({"type": kind})));
    match around.network {
        Attachment::Host => {}
        Attachment::Path(path) => list.push(json!({"type": "network", "path": path})),
        Attachment::Isolated => list.push(json!({"type": "network"})),
    }
    if around.unified_cgroup && !around.rootless {
        list.push(json!({"type": "cgroup"}));
    }
    list
}

fn capabilities(insecure: bool, around: &Surroundings<'_>) -> Value {
    if insecure {
        let all = around.capabilities;
        json!({"bounding": all, "permitted": all, "effective": all, "inheritable": all, "ambient": all})
    } else {
        json!({"bounding": CAPABILITIES, "permitted": CAPABILITIES, "effective": CAPABILITIES})
    }
}

fn resources(process: &Process, insecure: bool) -> Value {
    let mut rules = if insecure {
        vec![
            json!({"allow": true, "type": "c", "access": "rwm"}),
            json!({"allow": true, "type": "b", "access": "rwm"}),
        ]
    } else {
        vec![json!({"allow": false, "access": "rwm"})]
    };
    // A pipe needs no leave.
    rules.extend(process.devices.iter().filter(|d| matches!(d.kind, 'b' | 'c')).map(
        |d| json!({"allow": true, "type": d.kind, "major": d.major, "minor": d.minor, "access": d.access}),
    ));
    let Resources { memory, memory_swap, cpu_shares, cpu_period, cpu_quota, cpuset_cpus, cpuset_mems } =
        &process.resources;
    let mut limits = Map::new();
    limits.insert("devices".into(), rules.into());
    let mut group = |name: &str, fields: &[(&str, bool, Value)]| {
        let set: Map<String, Value> = fields
            .iter()
            .filter(|(_, given, _)| *given)
            .map(|(key, _, value)| ((*key).to_owned(), value.clone()))
            .collect();
        if !set.is_empty() {
            limits.insert(name.into(), set.into());
        }
    };
    group(
        "memory",
        &[("limit", *memory != 0, json!(memory)), ("swap", *memory_swap != 0, json!(memory_swap))],
    );
    let cfs = *cpu_period != 0 || *cpu_quota != 0;
    group(
        "cpu",
        &[
            ("shares", *cpu_shares != 0, json!(cpu_shares)),
            ("quota", cfs, json!(cpu_quota)),
            ("period", cfs, json!(cpu_period)),
            ("cpus", !cpuset_cpus.is_empty(), json!(cpuset_cpus)),
            ("mems", !cpuset_mems.is_empty(), json!(cpuset_mems)),
        ],
    );
    limits.into()
}

fn devices(process: &Process, around: &Surroundings<'_>) -> Vec<Value> {
    let mut list: Vec<Value> = Vec::new();
    if process.security == Security::Insecure && !around.in_user_namespace {
        list.extend(PRIVILEGED_DEVICES.iter().map(
            |(path, kind, major, minor)| json!({"path": path, "type": kind, "major": major, "minor": minor}),
        ));
        let last = around.free_loop.unwrap_or(0) + SPARE_LOOPS;
        list.extend(
            (0..=last).map(|n| json!({"path": format!("/dev/loop{n}"), "type": "b", "major": 7, "minor": n})),
        );
    }
    let own = |id: u32| (id > 0).then_some(id);
    for Device { path, kind, major, minor, mode, uid, gid, .. } in &process.devices {
        let mut device = Map::from_iter([("path".to_owned(), json!(path)), ("type".to_owned(), json!(kind))]);
        device.extend([("major".to_owned(), json!(major)), ("minor".to_owned(), json!(minor))]);
        let known = [
            ("fileMode", *mode),
            ("uid", uid.or(own(around.user.uid))),
            ("gid", gid.or(own(around.user.gid))),
        ];
        device.extend(known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?)))));
        list.push(device.into());
    }
    list
}

fn mounts(process: &Process, around: &Surroundings<'_>) -> Result<Vec<Value>, Error> {
    let insecure = process.security == Security::Insecure;
    let writable = if insecure { "rw" } else { "ro" };
    let mount = |dest: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": dest, "type": kind, "source": source, "options": options});
    let file = |source: &Path, dest: &str| -> Result<Value, Error> {
        Ok(mount(dest, "bind", text(source)?, &["nosuid", "noexec", "nodev", "rbind", "ro"]))
    };
    let closed = ["nosuid", "noexec", "nodev"];
    let mut list = vec![
        if around.process_sandbox {
            mount("/proc", "proc", "proc", &closed)
        } else {
            mount("/proc", "bind", "/proc", &["rbind"])
        },
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &closed),
    ];
    if !around.rootless {
        list.push(mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", writable]));
        list.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &[writable, "nosuid", "noexec", "nodev"]));
    }
    list.push(file(around.resolv_conf, "/etc/resolv.conf")?);
    list.push(file(around.hosts, "/etc/hosts")?);
    for (index, wanted) in process.mounts.iter().enumerate() {
        list.push(wanted_mount(wanted, around.sources.get(&index).map(std::path::PathBuf::as_path))?);
    }
    // Of two mounts at one place the later stands where the earlier stood.
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    let mut unique: Vec<Value> = Vec::with_capacity(list.len());
    for entry in list {
        let dest = entry.get("destination").and_then(Value::as_str).unwrap_or_default().to_owned();
        match at.get(&dest).and_then(|i| unique.get_mut(*i)) {
            Some(earlier) => *earlier = entry,
            None => {
                at.insert(dest, unique.len());
                unique.push(entry);
            }
        }
    }
    if around.in_user_namespace {
        unique.iter_mut().for_each(keep_locked_flags);
    }
    Ok(unique)
}

fn wanted_mount(wanted: &Mount, selected: Option<&Path>) -> Result<Value, Error> {
    let mut options: Vec<String> = Vec::new();
    let (kind, source) = match &wanted.source {
        Source::Bind { path, .. } => {
            options.push("rbind".into());
            ("bind", text(selected.unwrap_or(path))?)
        }
        Source::Tmpfs { size } => {
            options.push("nosuid".into());
            if *size > 0 {
                options.push(format!("size={size}"));
            }
            ("tmpfs", "tmpfs")
        }
        Source::Other { kind, source } => (kind.as_str(), source.as_str()),
    };
    if wanted.readonly {
        options.push("ro".into());
    }
    for option in &wanted.options {
        if !options.contains(option) {
            options.push(option.clone());
        }
    }
    Ok(json!({"destination": wanted.dest, "type": kind, "source": source, "options": options}))
}

/// In a user namespace a bind mount must keep the flags its source has: the
/// kernel refuses to clear them.
fn keep_locked_flags(mount: &mut Value) {
    use rustix::fs::StatVfsMountFlags as F;
    if mount.get("type").and_then(Value::as_str) != Some("bind") {
        return;
    }
    let flags = mount.get("source").and_then(Value::as_str).and_then(|s| rustix::fs::statvfs(s).ok());
    let (Some(flags), Some(options)) =
        (flags.map(|f| f.f_flag), mount.get_mut("options").and_then(Value::as_array_mut))
    else {
        return;
    };
    for (flag, word) in [
        (F::RDONLY, "ro"),
        (F::NODEV, "nodev"),
        (F::NOEXEC, "noexec"),
        (F::NOSUID, "nosuid"),
        (F::NOATIME, "noatime"),
        (F::NODIRATIME, "nodiratime"),
        (F::RELATIME, "relatime"),
    ] {
        if flags.contains(flag) && !options.iter().any(|o| o == word) {
            options.push(word.into());
        }
    }
}

fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| Error::Invalid(format!("path {} is not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around<'a>(sources: &'a BTreeMap<usize, std::path::PathBuf>, all: &'a [String]) -> Surroundings<'a> {
        Surroundings {
            user: User { uid: 1, gid: 2, groups: vec![3] },
            network: &Attachment::Host,
            resolv_conf: Path::new("/s/resolv.conf"),
            hosts: Path::new("/s/hosts"),
            sources,
            cgroup_path: "/buildkit/x",
            unified_cgroup: true,
            process_sandbox: true,
            rootless: false,
            in_user_namespace: false,
            apparmor_profile: Some("p"),
            seccomp: true,
            filter: None,
            oom_score_adj: Some(5),
            capabilities: all,
            free_loop: Some(2),
        }
    }

    fn build(process: &Process, change: impl FnOnce(&mut Surroundings<'_>)) -> Value {
        let (sources, all) = (BTreeMap::new(), vec!["CAP_SYS_ADMIN".to_owned()]);
        let mut around = around(&sources, &all);
        change(&mut around);
        container(process, &around).unwrap()
    }

    fn destinations(spec: &Value) -> Vec<&str> {
        spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_sandbox_is_closed() {
        let spec = build(&Process::default(), |_| {});
        assert_eq!(spec["process"]["user"], json!({"uid": 1, "gid": 2, "additionalGids": [2, 3]}));
        assert_eq!(spec["process"]["capabilities"]["bounding"], json!(CAPABILITIES));
        assert_eq!(spec["process"]["capabilities"].get("ambient"), None);
        assert_eq!(spec["process"]["apparmorProfile"], "p");
        assert_eq!(spec["process"].get("rlimits"), None);
        assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": false, "access": "rwm"}]));
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(spec["hostname"], "buildkitsandbox");
        assert_eq!(
            destinations(&spec),
            [
                "/proc",
                "/dev",
                "/dev/pts",
                "/dev/shm",
                "/dev/mqueue",
                "/sys",
                "/sys/fs/cgroup",
                "/etc/resolv.conf",
                "/etc/hosts"
            ]
        );
    }

    #[test]
    fn an_insecure_one_is_open() {
        let process = Process { security: Security::Insecure, ..Process::default() };
        let spec = build(&process, |_| {});
        assert_eq!(spec["process"]["capabilities"]["ambient"], json!(["CAP_SYS_ADMIN"]));
        assert_eq!(spec["linux"]["maskedPaths"], json!([]));
        assert_eq!(spec["linux"].get("seccomp"), None);
        assert_eq!(spec["process"].get("apparmorProfile"), None);
        let devices = spec["linux"]["devices"].as_array().unwrap();
        assert_eq!(devices.last().unwrap()["path"], "/dev/loop9");
        assert_eq!(spec["mounts"][5]["options"], json!(["nosuid", "noexec", "nodev", "rw"]));
    }

    #[test]
    fn later_mounts_take_the_place_of_earlier() {
        let tmpfs = |dest: &str, size| Mount {
            dest: dest.into(),
            source: Source::Tmpfs { size },
            readonly: true,
            options: vec!["nosuid".into()],
        };
        let process = Process {
            mounts: vec![tmpfs("/dev/shm", 0), tmpfs("/x", 1), tmpfs("/x", 4096)],
            ..Process::default()
        };
        let spec = build(&process, |_| {});
        assert_eq!(spec["mounts"][3]["options"], json!(["nosuid", "ro"]));
        assert_eq!(spec["mounts"][9]["options"], json!(["nosuid", "size=4096", "ro"]));
        assert_eq!(destinations(&spec).len(), 10);
    }

    #[test]
    fn rootless_has_no_cgroup_and_no_sys() {
        let spec = build(&Process::default(), |a| {
            a.rootless = true;
            a.process_sandbox = false;
        });
        assert_eq!(spec["linux"].get("cgroupsPath"), None);
        assert!(!destinations(&spec).iter().any(|d| d.starts_with("/sys")));
        assert_eq!(spec["linux"]["maskedPaths"], json!(["/sys/firmware", "/sys/devices/virtual/powercap"]));
        assert_eq!(spec["linux"]["namespaces"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn limits_only_when_asked_for() {
        let process = Process {
            resources: Resources { memory: 1024, cpu_quota: 500, ..Resources::default() },
            ulimits: vec![Ulimit { name: "nofile".into(), soft: 10, hard: -1 }],
            ..Process::default()
        };
        let spec = build(&process, |_| {});
        assert_eq!(spec["linux"]["resources"]["memory"], json!({"limit": 1024}));
        assert_eq!(spec["linux"]["resources"]["cpu"], json!({"quota": 500, "period": 0}));
        assert_eq!(
            spec["process"]["rlimits"],
            json!([{"type": "RLIMIT_NOFILE", "hard": u64::MAX, "soft": 10}])
        );
    }

    #[test]
    fn the_environment_has_each_name_once() {
        let env: Vec<String> = ["A=1", "B", "A=2", "C="].map(str::to_owned).into();
        assert_eq!(environment(&env), ["A=2", "C=", DEFAULT_PATH]);
    }
}
