//! Other hosts than this one: an older kernel, without nftables, that cannot be told the layers
//! of an overlay one by one, with control groups in one hierarchy or in many.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::bench::text;
use integration::cgroup::Cgroup;
use integration::guest::{self, Hierarchy};
use integration::process::{self, Reaped, Run};
use integration::{Buildctl, Daemon, Net, Options, Project, Registry, suite, wait_for};
use rustix::process::Signal;
use tempfile::TempDir;

const GROUPS: &str = "/sys/fs/cgroup";
const PATIENCE: Duration = Duration::from_secs(60);
const MEMORY: &str = "33554432";

fn main() -> ExitCode {
    let unified: [suite::Case<Registry>; 8] = [
        ("layers_are_overlays", layers_are_overlays),
        ("runc_holds_limits", |registry| runtime_holds_limits(registry, "runc")),
        ("crun_holds_limits", |registry| runtime_holds_limits(registry, "crun")),
        ("a_service_divides_its_group", a_service_divides_its_group),
        ("a_container_divides_its_group", |registry| a_container_divides_its_group(registry, false)),
        ("a_container_divides_its_namespace", |registry| a_container_divides_its_group(registry, true)),
        ("a_kill_leaves_no_groups", |registry| a_kill_leaves_no_groups(registry, Hierarchy::Unified)),
        ("a_bridge_without_nftables", a_bridge_without_nftables),
    ];
    let legacy: [suite::Case<Registry>; 2] = [
        ("limits_hold", limits_hold_in_all_hierarchies),
        ("a_kill_leaves_no_groups", |registry| a_kill_leaves_no_groups(registry, Hierarchy::Legacy)),
    ];
    let outside: [suite::Case<()>; 2] = [
        ("with_one_hierarchy", |()| guest::run(Hierarchy::Unified)),
        ("with_many_hierarchies", |()| guest::run(Hierarchy::Legacy)),
    ];
    let inside = |cases: &[suite::Case<Registry>]| suite::main(Registry::with_busybox, cases, |_| Ok(()));
    match guest::inside() {
        Some(Hierarchy::Unified) => inside(&unified),
        Some(Hierarchy::Legacy) => inside(&legacy),
        None => suite::main(|| Ok(()), &outside, |()| Ok(())),
    }
}

/// A daemon and its client.
struct Pair {
    client: Buildctl,
    daemon: Daemon,
}

impl Pair {
    fn start(registry: &Registry, options: Options) -> Result<Self> {
        let mirror = Some(registry.host().to_owned());
        let daemon = Daemon::start(Options { mirror, ..options })?;
        Ok(Self { client: Buildctl::new(&daemon)?, daemon })
    }

    /// A file of what `project` builds.
    fn file(&self, project: &Project, name: &str) -> Result<String> {
        let out = TempDir::with_prefix("bk-out-")?;
        let output = format!("--output=type=local,dest={}", out.path().display());
        self.client.build(project.dir(), &[&output])?.ok()?;
        text(&out, name)
    }
}

/// Of a daemon whose steps are on the host's network.
fn on_host() -> Options {
    Options { net: Net::Host, ..Options::default() }
}

/// Where controllers have the groups of a daemon that was started in no particular one.
fn places(hierarchy: Hierarchy) -> Vec<PathBuf> {
    match hierarchy {
        Hierarchy::Unified => vec![GROUPS.into()],
        Hierarchy::Legacy => ["memory", "cpu", "pids"].map(|c| Path::new(GROUPS).join(c)).into(),
    }
}

/// Files of lower layers are seen, changed and gone where upper ones say so, in a stack that
/// would not fit into a page of options if all paths were whole.
fn layers_are_overlays(registry: &Registry) -> Result<()> {
    let mut pair = Pair::start(registry, on_host())?;
    let steps: String = (0..40).map(|n| format!("COPY file /deep/{n}\n")).collect();
    let dockerfile = format!(
        "FROM busybox\n{steps}RUN ls /deep | wc -l > /count && rm /deep/7 && echo changed > /deep/8\n\
         RUN ls /deep | wc -l >> /count && cat /deep/8 >> /count && cat /deep/9 >> /count\n"
    );
    let project = Project::new(&dockerfile)?.with("file", "as it was\n")?;
    let count = pair.file(&project, "count")?;
    ensure!(count.split_whitespace().eq("40 39 changed as it was".split(' ')), "{count:?}");
    let log = pair.daemon.log();
    ensure!(!log.contains("overlays do not work"), "{log}");
    pair.daemon.stop()
}

fn runtime_holds_limits(registry: &Registry, runtime: &str) -> Result<()> {
    let mut pair = Pair::start(registry, Options { worker: format!("binary = \"{runtime}\""), ..on_host() })?;
    holds_limits(&pair, Path::new(GROUPS))?;
    pair.daemon.stop()
}

/// As systemd starts it with `Delegate=yes`.
fn a_service_divides_its_group(registry: &Registry) -> Result<()> {
    let (_cgroup, group, before) = new_group("bk-service")?;
    sys::xattr::set(&group, "trusted.delegate", b"1")?;
    let mut pair = Pair::start(registry, Options { before, ..on_host() })?;
    lies_in(&pair, &group.join("daemon"))?;
    holds_limits(&pair, &group)?;
    pair.daemon.stop()
}

/// As its image has it, in the host's cgroup namespace and in one of its own.
fn a_container_divides_its_group(registry: &Registry, own_namespace: bool) -> Result<()> {
    let (_cgroup, group, mut before) = new_group("bk-container")?;
    if own_namespace {
        before += "exec unshare --cgroup --mount sh -c \
                   'umount /sys/fs/cgroup && mount -t cgroup2 cgroup /sys/fs/cgroup && exec \"$@\"' sh \"$@\"; ";
    }
    let env = vec![("BUILDKIT_SETUP_CGROUPV2_ROOT".to_owned(), "1".to_owned())];
    let mut pair = Pair::start(registry, Options { before, env, ..on_host() })?;
    lies_in(&pair, &group.join("init"))?;
    holds_limits(&pair, &group)?;
    pair.daemon.stop()
}

/// A group of its own, as a service manager makes it; what a shell does to enter it.
fn new_group(name: &str) -> Result<(Cgroup, PathBuf, String)> {
    let cgroup = Cgroup::new(name)?;
    let root = Path::new(GROUPS);
    for controller in std::fs::read_to_string(root.join("cgroup.controllers"))?.split_whitespace() {
        std::fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    let before = cgroup.enter();
    Ok((cgroup, root.join(name), before))
}

fn lies_in(pair: &Pair, group: &Path) -> Result<()> {
    let members = read(&group.join("cgroup.procs"))?;
    let pid = pair.daemon.pid().to_string();
    ensure!(members.lines().any(|member| member == pid), "{pid} is not in {}: {members}", group.display());
    Ok(())
}

/// A step has the limits it was given, is told when it reached one, and leaves no group.
fn holds_limits(pair: &Pair, root: &Path) -> Result<()> {
    let running = Running::start(pair, root)?;
    ensure!(read(&running.group.join("run/memory.max"))? == MEMORY, "memory");
    ensure!(read(&running.group.join("run/cpu.max"))? == "50000 100000", "processor");
    running.stop()?;
    too_large(pair)?.fails_with(&["cannot allocate memory"])?;
    no_groups(&[root.to_owned()])
}

fn limits_hold_in_all_hierarchies(registry: &Registry) -> Result<()> {
    let mut pair = Pair::start(registry, on_host())?;
    let root = Path::new(GROUPS);
    let running = Running::start(&pair, &root.join("memory"))?;
    let id = running.group.file_name().context("a group has a name")?;
    let of = |file: &str| read(&root.join("cpu/buildkit").join(id).join(file));
    ensure!(read(&running.group.join("memory.limit_in_bytes"))? == MEMORY, "memory");
    ensure!(of("cpu.cfs_quota_us")? == "50000", "processor");
    running.stop()?;
    too_large(&pair)?.fails_with(&["exit code: 137"])?;
    no_groups(&places(Hierarchy::Legacy))?;
    pair.daemon.stop()
}

/// What ran when the daemon was killed is ended by the next, with its groups.
fn a_kill_leaves_no_groups(registry: &Registry, hierarchy: Hierarchy) -> Result<()> {
    let roots = places(hierarchy);
    let mut pair = Pair::start(registry, on_host())?;
    let root = roots.first().context("there are controllers")?;
    let running = Running::start(&pair, root)?;
    pair.daemon.crash()?;
    pair.daemon.quiet_within(PATIENCE)?;
    drop(running);
    no_groups(&roots)?;
    pair.daemon.stop()
}

/// The bridge works, through rules of the older kind, which go with the daemon.
fn a_bridge_without_nftables(registry: &Registry) -> Result<()> {
    let worker = "networkMode = \"bridge\"\nbridgeName = \"bkold0\"\nbridgeSubnet = \"10.229.7.0/24\"";
    let rules = || process::run(Command::new("iptables-save"))?.ok();
    let options = Options { net: Net::Auto, worker: worker.into(), ..on_host() };
    let mut pair = Pair::start(registry, options)?;
    let project = Project::new("FROM busybox\nRUN ip route > /route && ping -c 1 -w 30 10.229.7.1\n")?;
    let route = pair.file(&project, "route")?;
    ensure!(route.contains("default via 10.229.7.1"), "{route}");
    ensure!(rules()?.contains("10.229.7.0/24"), "{}", rules()?);
    pair.daemon.stop()?;
    ensure!(!rules()?.contains("10.229.7."), "{}", rules()?);
    Ok(())
}

/// A build whose step runs until it is stopped, with limits.
struct Running {
    client: Reaped,
    /// The group of its step.
    group: PathBuf,
    _project: Project,
}

impl Running {
    /// `root` is where the daemon's groups are.
    fn start(pair: &Pair, root: &Path) -> Result<Self> {
        let project = Project::new("FROM busybox\nRUN sleep 1000\n")?;
        let limits = ["--opt=cpuquota=50000", "--opt=cpuperiod=100000"];
        let mut command = pair.client.build_command(project.dir(), &limits);
        command.arg(format!("--opt=memory={MEMORY}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let client = Reaped(command.spawn()?);
        let at_work = || pair.daemon.at_work().iter().any(|p| p.ends_with("sleep 1000 ")).then_some(());
        wait_for("the step runs", PATIENCE, at_work).with_context(|| pair.daemon.log())?;
        let mut groups = groups(root);
        let Some(group) = groups.pop() else { bail!("the step has no group in {}", root.display()) };
        ensure!(groups.is_empty(), "there are more groups: {groups:?}");
        Ok(Self { client, group, _project: project })
    }

    /// Interrupts it. Its group goes.
    fn stop(mut self) -> Result<()> {
        self.client.signal(Signal::INT);
        self.client.0.wait()?;
        wait_for("the group goes", PATIENCE, || (!self.group.exists()).then_some(()))
    }
}

/// A step that needs more memory than it may have.
fn too_large(pair: &Pair) -> Result<Run> {
    let project = Project::new("FROM busybox\nRUN dd if=/dev/zero of=/dev/null bs=64M count=1\n")?;
    pair.client.build(project.dir(), &[&format!("--opt=memory={MEMORY}")])
}

/// The groups of steps.
fn groups(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.join("buildkit")).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn no_groups(roots: &[PathBuf]) -> Result<()> {
    let left = || roots.iter().flat_map(|root| groups(root)).collect::<Vec<_>>();
    wait_for("groups go", Duration::from_secs(10), || left().is_empty().then_some(()))
        .with_context(|| format!("{:?}", left()))
}

fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}
