//! One of the daemons to be compared, running.

use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use integration::grpc::connect;
use integration::leak;
use integration::process::{Service, tail};
use proto::control::control_client::ControlClient;
use proto::control::{InfoRequest, SolveRequest};
use proto::pb::Definition;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const START: Duration = Duration::from_secs(30);
/// Where Debian puts the CNI plugins.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

/// A daemon to be measured.
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
}

/// The network of its builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Net {
    Host,
    /// A bridge by Debian's plugins.
    Cni,
    /// The daemon's own bridge.
    Default,
}

/// One that runs, with a root directory of its own.
pub(crate) struct Daemon {
    client: Option<ControlClient<Channel>>,
    runtime: Runtime,
    service: Option<Service>,
    program: PathBuf,
    bridge: String,
    dir: TempDir,
}

impl Daemon {
    /// Starts one that asks `registry` for everything.
    pub(crate) fn start(candidate: &Candidate, net: Net, registry: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let dir = TempDir::with_prefix("bk-bench-")?;
        let bridge = format!("bkb{:x}n{count:x}", pid & 0xff_ffff);
        let subnet = format!("10.{}.{}.0/24", 64 + pid % 64, count % 256);
        std::fs::write(
            dir.path().join("buildkitd.toml"),
            config(net, dir.path(), &bridge, &subnet, registry),
        )?;
        std::fs::write(dir.path().join("net.conflist"), network(&bridge, &subnet, dir.path()))?;
        link_plugins(&dir.path().join("bin"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let program = candidate.program.clone();
        let mut daemon = Self { client: None, runtime, service: None, program, bridge, dir };
        daemon.launch()?;
        Ok(daemon)
    }

    /// Executes the program and waits for its first answer; says how long it took.
    pub(crate) fn launch(&mut self) -> Result<Duration> {
        let path = |name: &str| self.dir.path().join(name).into_os_string();
        let args = [
            "--config".into(),
            path("buildkitd.toml"),
            "--root".into(),
            path("root"),
            "--addr".into(),
            self.addr().into(),
            "--containerd-worker=false".into(),
            "--oci-worker-gc=false".into(),
        ];
        let mut search = std::env::var_os("PATH").unwrap_or_default();
        search.push(":");
        search.push(self.dir.path().join("bin"));
        let env = [("PATH", search)];
        let begun = Instant::now();
        let service = Service::start("buildkitd", &self.program, args, &env, self.dir.path().join("log"))?;
        self.service = Some(service);
        let socket = self.dir.path().join("buildkitd.sock");
        while Probe::connect(&socket).is_err() {
            if begun.elapsed() > START {
                bail!("does not listen:\n{}", tail(&self.log()));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let answered = self.runtime.block_on(async {
            let mut client = ControlClient::new(connect(socket).await?);
            client.info(InfoRequest::default()).await?;
            anyhow::Ok(client)
        });
        let client = answered.with_context(|| format!("does not answer:\n{}", self.log()))?;
        let taken = begun.elapsed();
        self.client = Some(client);
        Ok(taken)
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.client = None;
        match self.service.take() {
            Some(mut service) => service.stop(Duration::from_secs(30)),
            None => Ok(()),
        }
    }

    pub(crate) fn addr(&self) -> String {
        format!("unix://{}", self.dir.path().join("buildkitd.sock").display())
    }

    /// Where it keeps its state.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The bridge of its builds, if they have one.
    pub(crate) fn bridge(&self) -> &str {
        &self.bridge
    }

    fn log(&self) -> String {
        self.service.as_ref().map(Service::log).unwrap_or_default()
    }

    /// Builds a definition and says how long it took.
    pub(crate) fn solve(&self, definition: Definition) -> Result<Duration> {
        self.solve_all(vec![definition])
    }

    /// Builds definitions at the same time and says how long it took.
    pub(crate) fn solve_all(&self, definitions: Vec<Definition>) -> Result<Duration> {
        let client = self.client.as_ref().context("not running")?;
        self.runtime.block_on(async {
            let begun = Instant::now();
            let mut waiting = send(client, definitions);
            while let Some(solved) = waiting.join_next().await {
                solved??;
            }
            Ok(begun.elapsed())
        })
    }

    /// Kills it once as many steps `sleep 1000` as there are `definitions`, and starts it
    /// anew. Says how long it was until the first answer.
    pub(crate) fn crash(&mut self, definitions: Vec<Definition>) -> Result<Duration> {
        let steps = definitions.len();
        let client = self.client.take().context("not running")?;
        let mut service = self.service.take().context("not running")?;
        self.runtime.block_on(async {
            let mut waiting = send(&client, definitions);
            let begun = Instant::now();
            let asleep = || {
                let processes = leak::processes(self.dir.path(), Some(service.pid()));
                processes.iter().filter(|p| p.trim_end().ends_with(": sleep 1000")).count()
            };
            while asleep() < steps {
                if begun.elapsed() > START {
                    bail!("not all of {steps} steps run:\n{}", service.log());
                }
                if let Some(solved) = waiting.try_join_next() {
                    solved??;
                    bail!("a step ended that should not");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            service.kill();
            Ok(())
        })?;
        self.launch()
    }

    /// Memory that it occupies now, and the most it ever did, in MiB.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let pid = self.service.as_ref().context("not running")?.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).context("no such field")?;
            let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
            Ok(kib / 1024.0)
        };
        Ok((field("VmRSS")?, field("VmHWM")?))
    }
}

/// Has all of them built at once.
fn send(client: &ControlClient<Channel>, definitions: Vec<Definition>) -> JoinSet<Result<()>> {
    let mut waiting = JoinSet::new();
    for definition in definitions {
        let mut client = client.clone();
        let request =
            SolveRequest { r#ref: fresh(), definition: Some(definition), ..SolveRequest::default() };
        waiting.spawn(async move {
            let solved = client.solve(request).await;
            solved.map(drop).map_err(|status| anyhow::anyhow!("solve: {}", status.message()))
        });
    }
    waiting
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.client = None;
        self.service = None;
        leak::clean(self.dir.path(), &self.bridge);
    }
}

/// Debian's plugins by the names under which the reference looks for those of its own bridge.
fn link_plugins(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir)?;
    for name in ["bridge", "host-local", "loopback", "firewall"] {
        let link = dir.join(format!("buildkit-cni-{name}"));
        std::os::unix::fs::symlink(Path::new(PLUGINS).join(name), link)?;
    }
    Ok(())
}

/// Text that was never used before.
pub(crate) fn fresh() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn config(net: Net, dir: &Path, bridge: &str, subnet: &str, registry: &str) -> String {
    let net = match net {
        Net::Host => "networkMode = \"host\"\n".to_owned(),
        Net::Cni => format!(
            "networkMode = \"cni\"\ncniBinaryPath = \"{PLUGINS}\"\ncniConfigPath = \"{}\"\n",
            dir.join("net.conflist").display()
        ),
        Net::Default => {
            format!("networkMode = \"bridge\"\nbridgeName = \"{bridge}\"\nbridgeSubnet = \"{subnet}\"\n")
        }
    };
    format!(
        "[worker.oci]\n{net}[registry.\"docker.io\"]\nmirrors = [\"{registry}\"]\n\
         [registry.\"{registry}\"]\nhttp = true\ninsecure = true\n"
    )
}

fn network(bridge: &str, subnet: &str, dir: &Path) -> String {
    let ipam = json!({
        "type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": dir.join("ipam"),
    });
    let plugins = json!([
        {"type": "loopback"},
        {"type": "bridge", "bridge": bridge, "isDefaultGateway": true, "ipam": ipam},
    ]);
    json!({"cniVersion": "1.0.0", "name": bridge, "plugins": plugins}).to_string()
}
