//! A root file system made of busybox, and a look at what runs leave behind.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use base::task::Scope;
use cni::dns::Overrides;
use exec::{Config, Executor, Exit, HostNetwork, Io, Output, Process};

const BUSYBOX: &str = "/bin/busybox";

pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) executor: Executor,
    pub(crate) scope: Scope,
}

#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<Vec<u8>>>, Arc<Mutex<Vec<u8>>>);

impl Streams {
    pub(crate) fn text(&self) -> (String, String) {
        let text = |s: &Mutex<Vec<u8>>| String::from_utf8(s.lock().unwrap().clone()).unwrap();
        (text(&self.0), text(&self.1))
    }
}

/// Keeps what is written.
pub(crate) fn capture(io: Io) -> (Io, Streams) {
    let streams = Streams::default();
    let log = |to: &Arc<Mutex<Vec<u8>>>| {
        let to = to.clone();
        Output::Log(Box::new(move |data: &[u8]| to.lock().unwrap().extend_from_slice(data)))
    };
    (Io { stdout: log(&streams.0), stderr: log(&streams.1), ..io }, streams)
}

pub(crate) fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "etc", "mnt", "tmp", "run"] {
            std::fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        std::fs::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
        let applets = "sh cat echo ls id pwd hostname grep touch mount sleep kill true false wc df tail ps stty \
                       readlink ip ping wget nslookup head";
        for name in applets.split_ascii_whitespace() {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
        }
        std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/:/bin/sh\ndev:x:1000:100::/:/bin/sh\n")
            .unwrap();
        std::fs::write(rootfs.join("etc/group"), "root:x:0:\nusers:x:100:\naudio:x:29:dev\n").unwrap();
        let executor = executor(config(&dir.path().join("state"))).await;
        Self { dir, executor, scope: Scope::root() }
    }

    pub(crate) fn config(&self) -> Config {
        config(&self.state())
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    pub(crate) fn sh(&self, script: &str) -> Process {
        Process {
            args: vec!["/bin/sh".into(), "-c".into(), script.into()],
            cwd: "/".into(),
            rootfs: self.rootfs(),
            ..Process::default()
        }
    }

    pub(crate) async fn run(&self, process: Process) -> (Exit, String, String) {
        self.run_with(process, Io::default()).await
    }

    pub(crate) async fn run_with(&self, process: Process, io: Io) -> (Exit, String, String) {
        let (io, streams) = capture(io);
        let exit = self.executor.run(process, io, &self.scope).await.unwrap();
        let (out, err) = streams.text();
        (exit, out, err)
    }

    /// A container that runs on its own, as after a daemon that was killed.
    pub(crate) fn orphan(&self) -> Orphan {
        let dir = self.state().join("run/bundles/orphan");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(self.state().join("running"), "orphan\n/buildkit/orphan\0").unwrap();
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sleep", "1000"], "cwd": "/"},
            "root": {"path": self.rootfs()},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"cgroupsPath": "/buildkit/orphan", "namespaces": [{"type": "pid"}, {"type": "mount"}]},
        });
        std::fs::write(dir.join("config.json"), spec.to_string()).unwrap();
        let pid = dir.join("pid");
        let mut run = Command::new(self.executor.runtime());
        run.arg("--root").arg(self.state().join("run/runtime")).arg("run").arg("--bundle").arg(&dir);
        run.arg("--pid-file").arg(&pid).arg("orphan");
        let mut orphan = Orphan { runtime: run.spawn().unwrap(), pid: 0 };
        while orphan.pid == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            orphan.pid = std::fs::read_to_string(&pid).unwrap_or_default().parse().unwrap_or_default();
        }
        orphan
    }

    /// Neither bundle, runtime state, mount, process nor mount point is left.
    pub(crate) fn assert_clean(&self) {
        let names = |dir: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(dir).unwrap();
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        let mut state = names(&self.state());
        state.sort_unstable();
        assert_eq!(state, ["run", "running", "tried"]);
        for dir in ["run/bundles", "run/runtime"] {
            assert!(names(&self.state().join(dir)).is_empty(), "{dir}");
        }
        let running = std::fs::read(self.state().join("running")).unwrap();
        assert!(running.chunks(4096).all(|slot| slot.first() == Some(&0)));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
        let rootfs = self.rootfs();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            if let Ok(root) = std::fs::read_link(entry.path().join("root")) {
                assert!(!root.starts_with(&rootfs), "process {:?} is left", entry.file_name());
            }
        }
        assert!(!rootfs.join("etc/hosts").exists() && !rootfs.join("etc/resolv.conf").exists());
    }
}

/// A container that nobody waits for, and its first process.
pub(crate) struct Orphan {
    runtime: Child,
    pid: u32,
}

impl Orphan {
    /// Neither it nor its cgroup is there any more.
    pub(crate) fn assert_gone(&mut self) {
        assert!(!self.runtime.wait().unwrap().success());
        // Once its parent has ended, who waits for it is up to the system.
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
        let groups = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path());
        for group in groups.chain(["/sys/fs/cgroup".into()]) {
            assert!(!group.join("buildkit/orphan").exists(), "{group:?}");
        }
    }
}

/// With the network of the host.
pub(crate) async fn executor(config: Config) -> Executor {
    Executor::new(exec::prepare(config).await.unwrap(), Arc::new(HostNetwork::default()))
}

fn config(state: &Path) -> Config {
    Config {
        runtimes: vec![],
        search_path: "/usr/sbin:/usr/bin:/sbin:/bin".into(),
        state: state.into(),
        in_memory: false,
        cgroup_parent: String::new(),
        apparmor_profile: None,
        process_sandbox: true,
        rootless: false,
        oom_score_adj: None,
        dns: Overrides::default(),
    }
}
