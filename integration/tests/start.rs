//! Starts that cannot work: one line that says why and what to do, and a status
//! by which a service manager can tell whether to try again.

use std::fs::Permissions;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use integration::{Daemon, Net, Options, places, process, suite};
use tempfile::TempDir;

/// A daemon that others collide with.
type Bench = Daemon;

fn main() -> ExitCode {
    suite::main(
        || Daemon::start(Options { net: Net::Host, ..Options::default() }),
        &[
            ("a_broken_configuration", configuration),
            ("an_unknown_flag", flag),
            ("a_socket_that_is_taken", socket),
            ("a_port_that_is_taken", port),
            ("a_root_that_is_taken", root),
            ("a_root_open_to_all", open_root),
            ("a_root_that_is_let_go", let_go),
            ("a_runtime_that_is_missing", runtime),
            ("a_disk_without_overlays", overlay),
            ("too_few_privileges", privileges),
            ("a_full_disk", disk),
            ("a_port_for_everybody", everybody),
        ],
        |mut daemon| daemon.stop(),
    )
}

/// A start of a daemon in a directory of its own.
struct Start {
    dir: TempDir,
    program: PathBuf,
    /// Replaced where a case is about it.
    root: Option<PathBuf>,
    address: Option<String>,
}

impl Start {
    fn new() -> Result<Self> {
        let dir = TempDir::with_prefix("bk-start-")?;
        Ok(Self { dir, program: places::program("buildkitd")?, root: None, address: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs it after `prelude`, which `sh` reads in a mount namespace of its own. It
    /// has to end with `status`, and its last line has to say all of `parts`.
    fn fails(&self, prelude: &str, args: &[&str], status: i32, parts: &[&str]) -> Result<()> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-e", "-c", &format!("{prelude} \"$@\""), "sh"]).arg(&self.program);
        command.current_dir(self.dir.path());
        command.arg("--config").arg(self.path("buildkitd.toml"));
        command.arg("--root").arg(self.root.clone().unwrap_or_else(|| self.path("root")));
        let socket = format!("unix://{}", self.path("socket").display());
        command.args(["--addr", self.address.as_ref().unwrap_or(&socket)]).args(args);
        let run = process::run(command)?;
        let code = run.status.and_then(|s| s.code());
        let last = run.stderr.lines().last().unwrap_or_default().to_owned();
        ensure!(code == Some(status), "{run}");
        let said = if status == 2 { &run.stderr } else { &last };
        for part in parts {
            ensure!(said.contains(part), "should have said {part:?}: {run}");
        }
        ensure!(status == 2 || last.starts_with("buildkitd: "), "{run}");
        ensure!(!run.stderr.contains("panicked"), "{run}");
        Ok(())
    }
}

fn configuration(_: &Bench) -> Result<()> {
    let start = Start::new()?;
    let file = start.path("buildkitd.toml");
    std::fs::write(&file, "[grpc]\naddress = 5\n")?;
    start.fails("exec", &[], 78, &["buildkitd.toml:2: address: "])?;
    std::fs::write(&file, "[worker.oci]\nsnapshotter = \"zfs\"\n")?;
    start.fails("exec", &[], 78, &["zfs", "expected auto, overlayfs or native"])?;
    std::fs::write(&file, "[Cache.GHA.verify]\nrequired = true\n")?;
    start.fails("exec", &[], 78, &["[cache.gha] sign and verify", "neither signs"])?;
    std::fs::remove_file(&file)?;
    std::fs::create_dir(&file)?;
    start.fails("exec", &[], 78, &["read ", "buildkitd.toml", "directory"])
}

fn flag(_: &Bench) -> Result<()> {
    Start::new()?.fails("exec", &["--oci-worker-nett=cni"], 2, &["--oci-worker-nett", "--oci-worker-net"])
}

fn socket(daemon: &Bench) -> Result<()> {
    let start = Start { address: Some(daemon.addr()), ..Start::new()? };
    start.fails("exec", &[], 75, &["is in use: another daemon answers there"])
}

fn port(_: &Bench) -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let start = Start { address: Some(format!("tcp://{}", taken.local_addr()?)), ..Start::new()? };
    start.fails("exec", &["--allow-unauthenticated-tcp"], 75, &["another program listens there"])
}

fn root(daemon: &Bench) -> Result<()> {
    let start = Start { root: Some(daemon.root()), ..Start::new()? };
    start.fails("exec", &[], 75, &["another instance running?", "--root"])
}

/// A copy of a daemon that was killed may hold its root for a moment.
fn let_go(_: &Bench) -> Result<()> {
    let mut daemon = Daemon::start(Options { net: Net::Host, ..Options::default() })?;
    daemon.stop()?;
    let mut holder = Command::new("flock");
    holder.arg(daemon.root().join("buildkitd.lock")).args(["sh", "-c", "echo held; sleep 0.2"]);
    let mut holder = process::Reaped(holder.stdout(Stdio::piped()).spawn()?);
    let mut held = [0; 5];
    holder.0.stdout.as_mut().context("no output")?.read_exact(&mut held)?;
    daemon.restart()?;
    daemon.stop()
}

/// Files of builds have the permissions that were asked for, so nobody else may get there; the
/// root itself may be a directory that somebody else has made.
fn open_root(_: &Bench) -> Result<()> {
    let mut daemon = Daemon::start(Options { net: Net::Host, ..Options::default() })?;
    let root = daemon.root();
    let mode = |path: &Path| Ok::<_, anyhow::Error>(std::fs::metadata(path)?.permissions().mode() & 0o7777);
    ensure!(mode(&root)? == 0o700, "{:o}", mode(&root)?);
    for open in ["", "content", "snapshots", "mounts", "trash", "empty", "tmp", "executor", "store.db"] {
        std::fs::set_permissions(root.join(open), Permissions::from_mode(0o777))?;
    }
    daemon.restart()?;
    ensure!(mode(&root)? == 0o777, "{:o}", mode(&root)?);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&root)? {
        let entry = entry?;
        let (name, mode) = (entry.file_name().to_string_lossy().into_owned(), mode(&entry.path())?);
        let expected = match name.as_str() {
            "empty" => 0o755,
            _ if entry.file_type()?.is_dir() => 0o700,
            _ => 0o600,
        };
        ensure!(mode == expected, "{name} has {mode:o}");
        names.push(name);
    }
    ensure!(
        ["executor", "net", "store.db", "tmp"].iter().all(|n| names.contains(&(*n).to_owned())),
        "{names:?}"
    );
    ensure!(mode(&daemon.socket())? == 0o660, "{:o}", mode(&daemon.socket())?);
    daemon.stop()
}

fn runtime(_: &Bench) -> Result<()> {
    let start = Start::new()?;
    start.fails(
        "exec",
        &["--oci-worker-net=host", "--oci-worker-binary=/no/runc"],
        69,
        &["install runc or crun"],
    )
}

fn overlay(_: &Bench) -> Result<()> {
    let start = Start::new()?;
    for name in ["root", "lower", "upper", "work"] {
        std::fs::create_dir(start.path(name))?;
    }
    // An overlay is no place for overlays.
    let prelude = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root; exec";
    start.fails(prelude, &["--oci-worker-snapshotter=overlayfs"], 69, &["overlay", "native"])
}

fn privileges(_: &Bench) -> Result<()> {
    let start = Start::new()?;
    // Nobody has to be able to read it.
    let program = start.path("buildkitd");
    std::fs::hard_link(&start.program, &program)
        .or_else(|_| std::fs::copy(&start.program, &program).map(drop))?;
    let open = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
    };
    open(start.dir.path())?;
    let start = Start { program, ..start };
    start.fails("exec setpriv --reuid=65534 --clear-groups", &[], 77, &["must be started as root"])?;
    start.fails("exec setpriv --bounding-set=-sys_admin", &[], 77, &["CAP_SYS_ADMIN", "--privileged"])
}

fn disk(_: &Bench) -> Result<()> {
    let start = Start::new()?;
    std::fs::create_dir(start.path("root")).context("root")?;
    start.fails("mount -t tmpfs -o size=16k tmpfs root; exec", &[], 74, &["o space left on device", "--root"])
}

fn everybody(_: &Bench) -> Result<()> {
    let start = Start { address: Some("tcp://127.0.0.1:0".to_owned()), ..Start::new()? };
    start.fails("exec", &[], 78, &["--tlscacert", "--allow-unauthenticated-tcp"])
}
