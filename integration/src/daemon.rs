//! The daemon under test.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tempfile::TempDir;

use crate::leak;
use crate::places;
use crate::process::{self, Service, tail, wait_for};

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(20);
/// Where Debian puts the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// The network that builds get by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// The daemon decides.
    Auto,
    /// A bridge of the test's own, through CNI.
    Cni,
    /// The host's.
    Host,
}

/// How the daemon is to be started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The network of builds.
    pub net: Net,
    /// Asked instead of `docker.io`.
    pub mirror: Option<String>,
    /// More tables of configuration, in TOML.
    pub toml: String,
    /// More lines of the table `worker.oci`.
    pub worker: String,
    /// More flags.
    pub args: Vec<String>,
    /// More variables of its environment.
    pub env: Vec<(String, String)>,
    /// What a shell does before it becomes the daemon, as `Cgroup::enter` has it.
    pub before: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            net: Net::Cni,
            mirror: None,
            toml: String::new(),
            worker: String::new(),
            args: Vec::new(),
            env: Vec::new(),
            before: String::new(),
        }
    }
}

/// `buildkitd` with a root directory, socket and bridge of its own.
pub struct Daemon {
    service: Option<Service>,
    options: Options,
    bridge: String,
    subnet: String,
    dir: TempDir,
}

impl Daemon {
    /// Starts one and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(options: Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let mut daemon = Self {
            service: None,
            options,
            bridge: format!("bkt{:x}n{count}", pid & 0xff_ffff),
            subnet: format!("10.{}.{}.{}/28", 128 + pid % 100, (pid / 100) % 256, (count % 16) * 16),
            dir: TempDir::with_prefix("bk-daemon-")?,
        };
        daemon.write_config()?;
        daemon.launch()?;
        Ok(daemon)
    }

    fn write_config(&self) -> Result<()> {
        let mut text = format!("{}\n[worker.oci]\n{}\n", self.options.toml, self.options.worker);
        match self.options.net {
            Net::Auto => {}
            Net::Host => text.push_str("networkMode = \"host\"\n"),
            Net::Cni => text.push_str(&format!(
                "networkMode = \"cni\"\ncniBinaryPath = \"{PLUGINS}\"\ncniConfigPath = \"{}\"\n",
                self.path("net.conflist").display()
            )),
        }
        if let Some(mirror) = &self.options.mirror {
            text.push_str(&format!("[registry.\"docker.io\"]\nmirrors = [\"{mirror}\"]\n"));
        }
        std::fs::write(self.path("buildkitd.toml"), text)?;
        let ipam = json!({
            "type": "host-local", "ranges": [[{"subnet": self.subnet}]],  "dataDir": self.path("ipam"),
        });
        let plugins = json!([
            {"type": "bridge", "bridge": self.bridge, "isDefaultGateway": true, "ipam": ipam},
        ]);
        let network = json!({"cniVersion": "1.0.0", "name": self.bridge, "plugins": plugins});
        std::fs::write(self.path("net.conflist"), network.to_string())?;
        Ok(())
    }

    fn launch(&mut self) -> Result<()> {
        let program = places::program("buildkitd")?;
        let mut args: Vec<OsString> = vec![
            "-c".into(),
            format!("{}exec \"$@\"", self.options.before).into(),
            "sh".into(),
            program.into(),
            "--debug".into(),
            "--config".into(),
            self.path("buildkitd.toml").into(),
            "--root".into(),
            self.root().into(),
            "--addr".into(),
            self.addr().into(),
            "--containerd-worker=false".into(),
            "--oci-worker-gc=false".into(),
        ];
        args.extend(self.options.args.iter().map(OsString::from));
        let env: Vec<_> =
            self.options.env.iter().map(|(name, value)| (name.as_str(), OsString::from(value))).collect();
        let mut service = Service::start("buildkitd", Path::new("sh"), args, &env, self.path("log"))?;
        // The socket is there before the daemon is ready to serve.
        let socket = self.socket();
        service.wait_until(START, || UnixStream::connect(&socket).ok())?;
        let (client, addr) = (places::program("buildctl")?, self.addr());
        let serves = || {
            let mut command = std::process::Command::new(&client);
            command.args(["--addr", &addr, "debug", "workers"]);
            process::run(command).ok()?.ok().ok()
        };
        service.wait_until(START, serves)?;
        self.service = Some(service);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where it keeps its state.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// The directory with everything of it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its address.
    pub fn addr(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.path("buildkitd.sock")
    }

    /// Its process id, zero when it is stopped.
    pub fn pid(&self) -> u32 {
        self.service.as_ref().map_or(0, Service::pid)
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.service.as_ref().map(Service::log).unwrap_or_default()
    }

    /// Build processes that are there right now, and links of build networks
    /// that a process can still be in.
    pub fn at_work(&self) -> Vec<String> {
        leak::processes(self.dir.path(), Some(self.pid()))
    }

    /// Waits until no build process is left.
    ///
    /// # Errors
    /// When some are still there after `patience`.
    pub fn quiet_within(&self, patience: Duration) -> Result<()> {
        let quiet = || self.at_work().is_empty().then_some(());
        wait_for("build processes end", patience, quiet)
            .with_context(|| format!("left: {:#?}\n{}", self.at_work(), tail(&self.log())))
    }

    /// Stops it and starts it again on the same state.
    ///
    /// # Errors
    /// As for [`Self::stop`] and [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// Kills it as a power failure would, and starts it again on the same state.
    ///
    /// # Errors
    /// When it does not start.
    pub fn crash(&mut self) -> Result<()> {
        if let Some(mut service) = self.service.take() {
            service.kill();
        }
        self.launch()
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it does not end by itself and in peace, or leaves a mount, a process
    /// or a link behind.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut service) = self.service.take() else { return Ok(()) };
        service.stop(STOP)?;
        let log = service.log();
        if let Some(panic) = log.lines().find(|l| l.contains("panicked at") || l.contains("goroutine 1 [")) {
            bail!("the daemon panicked: {panic}\n{}", tail(&log));
        }
        // Links go when the kernel gets round to it after their namespace.
        let dir = self.dir.path();
        let left = || (leak::mounts(dir, None), leak::processes(dir, None), leak::ports(&self.bridge));
        let gone = || {
            let (mounts, processes, links) = left();
            (mounts.is_empty() && processes.is_empty() && links.is_empty()).then_some(())
        };
        wait_for("everything gone", Duration::from_secs(5), gone)
            .map_err(|_| anyhow::anyhow!("left behind: {:#?}\n{}", left(), tail(&log)))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.service = None;
        leak::clean(self.dir.path(), &self.bridge);
    }
}
