//! What the networks of build steps cost, and whether anything of them is left.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cni::chain::Chain;
use cni::{Attachment, BridgeConfig, Bundled, DefaultNetwork, NetworkConfig, Plugin};
use cni_plugins::Plugins;
use integration::{leak, places};
use sys::netns::NetNs;
use tempfile::TempDir;

use crate::cases::{Lab, Report, millis};
use crate::daemon::{Candidate, Net, PLUGINS, fresh};
use crate::definition::{BUSYBOX, Steps, chain};
use crate::table::{Unit, median};

/// Networks made and taken down per round and kind.
const NETWORKS: usize = 30;
const STEPS: usize = 100;
const BUILDS: usize = 64;

/// The default network made and taken down for one container: by the plugins in process as
/// the daemon calls them, by the same as programs, and by Debian's.
///
/// In a network namespace of its own. To make the container's namespace does not count, to
/// let go of it does: the daemon leaves links to the kernel, which removes them with it.
pub(crate) fn plugins(_: &Lab, _: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let dir = TempDir::with_prefix("bk-bench-net-")?;
    let links = dir.path().join("bin");
    std::fs::create_dir(&links)?;
    let program = places::program("buildkit-cni")?;
    for name in ["bridge", "host-local", "firewall"] {
        std::os::unix::fs::symlink(&program, links.join(name))?;
    }
    let theirs = places::provided(Path::new(PLUGINS).join("bridge"))?;
    let theirs = theirs.parent().context("directory of Debian's plugins")?.to_owned();
    let measured = NetNs::create(|| -> Result<Vec<(&str, f64)>> {
        let own = Plugins::new();
        let mut ways = Vec::new();
        for (at, (name, path, bundled)) in [
            ("in process", Vec::new(), own.clone() as Arc<dyn Bundled>),
            ("our programs", vec![links], Arc::new(Nothing)),
            ("Debian's programs, in Go", vec![theirs], Arc::new(Nothing)),
        ]
        .into_iter()
        .enumerate()
        {
            ways.push((name, network(&own, at, dir.path(), path, bundled)?, Vec::new()));
        }
        for round in 0..=NETWORKS {
            for (_, chain, samples) in &mut ways {
                let taken = connect(chain, dir.path())?;
                // The first makes the bridge and the rules.
                if round > 0 {
                    samples.push(millis(taken));
                }
            }
        }
        Ok(ways.iter().map(|(name, _, samples)| (*name, median(samples).unwrap_or_default())).collect())
    });
    for (name, figure) in measured?.1? {
        report(&format!("network made and taken down, {name}"), Unit::Millis, figure);
    }
    Ok(())
}

/// The default network on a bridge of its own. Debian's plugins get what they know of it.
fn network(
    own: &Plugins,
    at: usize,
    dir: &Path,
    path: Vec<PathBuf>,
    bundled: Arc<dyn Bundled>,
) -> Result<Chain> {
    let wanted = BridgeConfig {
        name: format!("bench{at}"),
        subnet: format!("10.{}.0.0/16", 80 + at).parse().ok(),
        addresses: dir.join(format!("ipam{at}")),
        avoid: Vec::new(),
    };
    let mut config = own.default_network(&wanted)?.config;
    if path.first().is_some_and(|p| p.starts_with(PLUGINS)) {
        config["plugins"][1]["ingressPolicy"] = "same-bridge".into();
    }
    let config = NetworkConfig::parse(config.to_string().as_bytes(), "default network")?;
    Ok(Chain::new(config, path, bundled))
}

fn connect(chain: &Chain, dir: &Path) -> Result<Duration> {
    let id = fresh();
    let netns = dir.join(&id);
    NetNs::create(|| {})?.0.bind(&netns)?;
    let attachment = Attachment {
        container_id: id,
        netns: Some(netns.clone()),
        ifname: "eth0".into(),
        ..Attachment::default()
    };
    let begun = Instant::now();
    let done = chain.add(&attachment).and_then(|result| chain.del(&attachment, Some(&result), true));
    let unbound = sys::netns::unbind(&netns);
    let taken = begun.elapsed();
    done?;
    unbound?;
    Ok(taken)
}

/// No plugin is bundled: all are programs.
struct Nothing;

impl Bundled for Nothing {
    fn plugin(&self, _: &str) -> Option<Arc<dyn Plugin>> {
        None
    }

    fn is_own_program(&self, _: &Path) -> bool {
        false
    }

    fn default_network(&self, wanted: &BridgeConfig) -> Result<DefaultNetwork, cni::Error> {
        Err(cni::Error::NoFreeRange(wanted.name.clone()))
    }

    fn remove_links(&self, _: &[String]) -> Result<(), cni::Error> {
        Ok(())
    }

    fn remove_default_network(&self, _: &DefaultNetwork) -> Result<(), cni::Error> {
        Ok(())
    }
}

/// Steps of one build each, in turn on the host's network and on the daemon's default one.
pub(crate) fn steps(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemons = [lab.daemon(candidate, Net::Host)?, lab.daemon(candidate, Net::Default)?];
    let mut samples = [Vec::new(), Vec::new()];
    for daemon in &daemons {
        daemon.solve(chain(1))?;
    }
    for _ in 0..STEPS {
        for (daemon, samples) in daemons.iter().zip(&mut samples) {
            samples.push(millis(daemon.solve(chain(1))?));
        }
    }
    let [host, own] = samples.map(|s| median(&s).unwrap_or_default());
    report("RUN of 100, host's network", Unit::Millis, host);
    report("RUN of 100, default network", Unit::Millis, own);
    report("RUN of 100, default over host's", Unit::Millis, own - host);
    Ok(())
}

/// Builds that all want the same port, each for a second.
pub(crate) fn ports(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Default)?;
    daemon.solve(chain(1))?;
    let build = || {
        let script = format!(
            ": {}; nc -l -p 8080 & sleep 1; kill -0 $! && netstat -ltn | grep -q '0.0.0.0:8080\\|:::8080'",
            fresh()
        );
        Steps::from(BUSYBOX).shell(&script).definition()
    };
    let taken = daemon.solve_all((0..BUILDS).map(|_| build()).collect())?;
    report("64 builds at once that bind port 8080 for 1 s", Unit::Millis, millis(taken));
    Ok(())
}

/// A thousand steps, and what there is of networks more than before.
pub(crate) fn left(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Default)?;
    daemon.solve(chain(1))?;
    let count = || -> Result<[usize; 4]> {
        let rules = Command::new("nft").args(["list", "ruleset"]).output().context("nft")?;
        ensure!(rules.status.success(), "nft: {}", String::from_utf8_lossy(&rules.stderr));
        let rules = String::from_utf8_lossy(&rules.stdout);
        let rules = rules.lines().filter(|l| l.contains(daemon.bridge())).count();
        let net = daemon.root().join("net");
        let files = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().count();
        let given = files(net.join(format!("ipam/buildkit-{}", daemon.bridge())));
        Ok([leak::ports(daemon.bridge()).len(), files(net.join("cni")), rules, given])
    };
    // A namespace that was made ahead waits for the next step for a while.
    std::thread::sleep(Duration::from_secs(5));
    let before = count()?;
    let mut taken = Duration::ZERO;
    for _ in 0..25 {
        taken += daemon.solve_all((0..4).map(|_| chain(10)).collect())?;
    }
    // The kernel removes links a moment after their namespace.
    let end = Instant::now() + Duration::from_secs(10);
    let mut after = count()?;
    while after != before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        after = count()?;
    }
    let more: usize = after.iter().zip(before).map(|(after, before)| after.abs_diff(before)).sum();
    report("1,000 RUN steps, four builds at once", Unit::Millis, millis(taken));
    report("links, namespaces, rules and addresses left of them", Unit::Things, more as f64);
    Ok(())
}

/// Killed while many steps run, it takes away what they had before it serves again.
pub(crate) fn killed(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let mut daemon = lab.daemon(candidate, Net::Default)?;
    daemon.solve(chain(1))?;
    daemon.stop()?;
    report("start to first answer, after an orderly end", Unit::Millis, millis(daemon.launch()?));
    let endless = || Steps::from(BUSYBOX).shell(&format!(": {}; sleep 1000", fresh())).definition();
    let taken = daemon.crash((0..32).map(|_| endless()).collect())?;
    report("start to first answer, after kill -9 with 32 steps running", Unit::Millis, millis(taken));
    Ok(())
}
