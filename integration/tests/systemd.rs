//! The package on a machine with systemd: the socket starts the daemon and
//! outlives it, and the unit takes away what builds do not need.

use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::machine::Machine;
use integration::process::Reaped;
use integration::{places, process, suite, wait_for};
use tempfile::TempDir;

const SERVICE: &str = "buildkitd.service";
const SOCKET: &str = "buildkitd.socket";
const STEP: &str = "FROM scratch\nCOPY --from=tools busybox /bin/busybox\nRUN [\"/bin/busybox\", \"true\"]\n";

/// One machine; its daemon is one case's at a time.
struct Bench {
    machine: Machine,
    turn: Mutex<()>,
}

impl Bench {
    fn start() -> Result<Self> {
        let machine = Machine::boot()?;
        machine.write("/project/tools/busybox", std::fs::read("/bin/busybox")?)?;
        machine.run(&["chmod", "755", "/project/tools/busybox"])?.ok()?;
        Ok(Self { machine, turn: Mutex::new(()) })
    }

    /// With the daemon as the package configures it.
    fn turn(&self) -> Result<MutexGuard<'_, ()>> {
        let guard = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.configure("", "")?;
        self.machine.run(&["systemctl", "reset-failed"])?.ok()?;
        self.machine.run(&["systemctl", "stop", SERVICE])?.ok()?;
        self.machine.run(&["systemctl", "start", SOCKET])?.ok()?;
        Ok(guard)
    }

    fn configure(&self, toml: &str, flags: &str) -> Result<()> {
        self.machine.write("/etc/buildkit/buildkitd.toml", toml)?;
        self.machine.write("/etc/default/buildkitd", format!("BUILDKITD_OPTS={flags}\n"))
    }

    fn workers(&self) -> Result<String> {
        self.machine.run(&["buildctl", "debug", "workers"])?.ok()
    }

    /// `buildctl build` of a Dockerfile, in the background.
    fn begin(&self, dockerfile: &str) -> Result<Reaped> {
        self.machine.write("/project/Dockerfile", dockerfile)?;
        let mut command = self.machine.command(&[
            "buildctl",
            "build",
            "--progress=plain",
            "--frontend=dockerfile.v0",
            "--local=context=/project",
            "--local=dockerfile=/project",
            "--local=tools=/project/tools",
            "--opt=context:tools=local:tools",
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Reaped(command.spawn()?))
    }

    fn build(&self, dockerfile: &str) -> Result<String> {
        finish(self.begin(dockerfile)?)
    }

    fn pid(&self) -> Result<String> {
        self.machine.show(SERVICE, "MainPID")
    }

    fn finish(self) -> Result<()> {
        self.machine.power_off()
    }
}

/// A build's words; it must succeed.
fn finish(mut build: Reaped) -> Result<String> {
    let mut said = String::new();
    let mut pipe = build.0.stderr.take().context("no pipe")?;
    std::io::Read::read_to_string(&mut pipe, &mut said)?;
    let status = build.0.wait()?;
    ensure!(status.success(), "{status}\n{said}");
    Ok(said)
}

/// A build that says what it is at takes a while from then on.
///
/// Its client has requests to make until the end.
fn slow(seconds: u32, name: &str) -> String {
    format!(
        "FROM scratch\nCOPY --from=tools busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo {name}; /bin/busybox sleep {seconds}\"]\n"
    )
}

fn main() -> ExitCode {
    suite::main(
        Bench::start,
        &[
            ("the_first_client_starts_the_daemon", first_client),
            ("builds_through_the_socket", builds),
            ("the_commands_of_the_readme", readme),
            ("a_user_has_a_daemon_without_root", user),
            ("a_restart_loses_no_connection", restart),
            ("a_killed_daemon_comes_back_with_its_cache", killed),
            ("a_reload_keeps_builds_running", reload),
            ("a_broken_configuration_changes_nothing", broken_reload),
            ("stopping_waits_for_builds", stop),
            ("who_is_not_in_the_group_is_refused", group),
            ("the_daemon_has_few_privileges", privileges),
            ("a_start_that_cannot_work_is_not_repeated", no_loop),
            ("make_uninstall_takes_what_make_install_has_put", install),
        ],
        Bench::finish,
    )
}

fn first_client(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    ensure!(b.machine.show(SERVICE, "ActiveState")? == "inactive");
    let begin = Instant::now();
    b.workers()?;
    println!("first answer through the socket after {:?}", begin.elapsed());
    ensure!(b.machine.show(SERVICE, "ActiveState")? == "active");
    let status = b.machine.show(SERVICE, "StatusText")?;
    ensure!(status == "0 builds run", "{status}");
    Ok(())
}

fn builds(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    let said = b.build(STEP)?;
    ensure!(said.contains("RUN"), "{said}");
    // The steps' groups are below the unit's, and gone with the steps.
    let left = b.machine.run(&["ls", "/sys/fs/cgroup/system.slice/buildkitd.service"])?.ok()?;
    ensure!(left.lines().any(|l| l == "daemon"), "{left}");
    Ok(())
}

fn readme(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    b.machine.write("/readme/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")?;
    let script = format!("cd /readme; {}", places::readme("systemctl start buildkitd")?);
    b.machine.run(&["sh", "-exc", &script])?.ok()?;
    ensure!(b.machine.path("/readme/hello.tar").exists());
    Ok(())
}

fn user(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    let script = "useradd --create-home --uid 1001 builder; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 builder; \
        systemctl --global enable buildkitd.service; loginctl enable-linger builder";
    b.machine.run(&["sh", "-exc", script])?.ok()?;
    let socket = "unix:///run/user/1001/buildkit/buildkitd.sock";
    let state = || b.machine.run(&["buildctl", "--addr", socket, "debug", "workers"]).ok()?.ok().ok();
    let log = || b.machine.run(&["journalctl", "--no-pager", "--output=cat", "_UID=1001"]);
    wait_for("the user's daemon", Duration::from_secs(30), state)
        .with_context(|| log().map(|run| run.stdout).unwrap_or_default())?;
    b.machine.write("/project/Dockerfile", STEP)?;
    let build = format!(
        "buildctl --addr {socket} build --progress=plain --frontend=dockerfile.v0 --local=context=/project \
         --local=dockerfile=/project --local=tools=/project/tools --opt=context:tools=local:tools"
    );
    b.machine.run(&["sh", "-c", &build])?.ok()?;
    let owner =
        b.machine.run(&["stat", "-c", "%u", "/home/builder/.local/share/buildkit/buildkitd.lock"])?.ok()?;
    ensure!(owner.trim() == "1001", "{owner}");
    b.machine.run(&["loginctl", "disable-linger", "builder"])?.ok().map(drop)
}

fn restart(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    b.workers()?;
    let first = b.pid()?;
    let script = "rm -f /project/stop; n=0; while [ ! -e /project/stop ]; do \
        buildctl debug workers >/dev/null || echo failed; n=$((n+1)); done; echo $n clients";
    let mut command = b.machine.command(&["sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut clients = Reaped(command.spawn()?);
    for _ in 0..3 {
        b.machine.run(&["systemctl", "restart", SERVICE])?.ok()?;
        b.workers()?;
    }
    b.machine.write("/project/stop", "")?;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut clients.0.stdout.take().context("no pipe")?, &mut said)?;
    let mut complaints = String::new();
    std::io::Read::read_to_string(&mut clients.0.stderr.take().context("no pipe")?, &mut complaints)?;
    ensure!(!said.contains("failed") && said.contains("clients"), "{said}{complaints}");
    ensure!(b.pid()? != first);
    Ok(())
}

fn killed(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    let marked = format!("{STEP}ENV CASE=killed\nRUN [\"/bin/busybox\", \"date\"]\n");
    b.build(&marked)?;
    let first = b.pid()?;
    b.machine.run(&["sh", "-c", &format!("kill -9 {first}")])?.ok()?;
    let back = || b.pid().ok().filter(|pid| *pid != first && pid != "0");
    wait_for("the daemon comes back", Duration::from_secs(30), back)?;
    let said = b.build(&marked)?;
    ensure!(said.matches("CACHED").count() >= 2, "{said}");
    Ok(())
}

fn reload(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    b.workers()?;
    let pid = b.pid()?;
    let build = b.begin(&slow(3, "while-reloading"))?;
    let running = || (b.machine.show(SERVICE, "StatusText").ok()? == "1 build runs").then_some(());
    wait_for("the build runs", Duration::from_secs(20), running)?;
    b.configure("debug = true\nroot = \"/var/lib/elsewhere\"\n", "")?;
    b.machine.run(&["systemctl", "reload", SERVICE])?.ok()?;
    let told = || {
        let log = b.machine.journal(SERVICE).ok()?;
        (log.contains("configuration reloaded") && log.contains("key=\"root\"")).then_some(())
    };
    wait_for("the daemon reloads", Duration::from_secs(10), told).with_context(|| journal(b))?;
    finish(build)?;
    ensure!(b.pid()? == pid && b.machine.show(SERVICE, "ActiveState")? == "active");
    Ok(())
}

fn journal(b: &Bench) -> String {
    b.machine.journal(SERVICE).unwrap_or_default()
}

fn broken_reload(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    b.workers()?;
    let pid = b.pid()?;
    b.configure("[worker.oci]\nmax-parallelism = \"many\"\n", "")?;
    b.machine.run(&["systemctl", "reload", SERVICE])?.ok()?;
    let told = || journal(b).contains("buildkitd.toml:2: max-parallelism: ").then_some(());
    wait_for("the daemon complains", Duration::from_secs(10), told).with_context(|| journal(b))?;
    b.workers()?;
    ensure!(b.pid()? == pid);
    Ok(())
}

fn stop(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    b.configure("[system]\nshutdownGrace = \"30s\"\n", "")?;
    b.workers()?;
    let build = b.begin(&slow(3, "while-stopping"))?;
    let running = || (b.machine.show(SERVICE, "StatusText").ok()? == "1 build runs").then_some(());
    wait_for("the build runs", Duration::from_secs(20), running)?;
    b.machine.run(&["systemctl", "stop", SERVICE])?.ok()?;
    finish(build)?;
    let (status, result) = (b.machine.show(SERVICE, "ExecMainStatus")?, b.machine.show(SERVICE, "Result")?);
    ensure!((status.as_str(), result.as_str()) == ("0", "success"), "{status} {result}\n{}", journal(b));
    Ok(())
}

fn group(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    b.workers()?;
    let mode = b.machine.run(&["stat", "-c", "%a %U %G", "/run/buildkit/buildkitd.sock"])?.ok()?;
    ensure!(mode.trim() == "660 root buildkit", "{mode}");
    let ask = |group: &[&str]| {
        let mut args = vec!["setpriv", "--reuid=4242", "--regid=4242"];
        args.extend(group);
        args.extend(["buildctl", "debug", "workers"]);
        b.machine.run(&args)
    };
    ask(&["--clear-groups"])?.fails_with(&["ermission denied"])?;
    let entry = b.machine.run(&["getent", "group", "buildkit"])?.ok()?;
    let gid = entry.split(':').nth(2).context("group id")?;
    ask(&["--groups", gid])?.ok()?;
    Ok(())
}

fn privileges(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    b.workers()?;
    let status = b.machine.run(&["cat", &format!("/proc/{}/status", b.pid()?)])?.ok()?;
    // Without CAP_SYS_MODULE (16), CAP_SYS_RAWIO (17), CAP_SYS_BOOT (22) and CAP_SYS_TIME (25).
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let line = status.lines().find(|l| l.starts_with(set)).context(set)?;
        let held = u64::from_str_radix(line.rsplit('\t').next().context(set)?, 16)?;
        let given_up = (1 << 16) | (1 << 17) | (1 << 22) | (1 << 25);
        ensure!(held & given_up == 0 && held & (1 << 21) != 0, "{line}");
    }
    let unit = "/lib/systemd/system/buildkitd.service";
    let said =
        b.machine.run(&["systemd-analyze", "security", "--offline=true", "--no-pager", unit])?.said()?;
    let score = said.lines().find(|l| l.contains("Overall exposure level")).context(said.clone())?;
    let score = score.split_whitespace().find(|w| w.parse::<f32>().is_ok()).context("no score")?;
    let manual = std::fs::read_to_string(places::workspace().join("docs/security.md"))?;
    let promise = format!("`systemd-analyze security` gives {score}");
    ensure!(manual.contains(&promise), "docs/security.md should say: {promise}");
    Ok(())
}

fn no_loop(b: &Bench) -> Result<()> {
    let _turn = b.turn()?;
    b.configure("debug = maybe\n", "")?;
    if b.workers().is_ok() {
        bail!("served with a broken configuration");
    }
    let failed = || (b.machine.show(SERVICE, "ActiveState").ok()? == "failed").then_some(());
    wait_for("the unit fails", Duration::from_secs(20), failed)?;
    ensure!(b.machine.show(SERVICE, "NRestarts")? == "0");
    ensure!(b.machine.show(SERVICE, "ExecMainStatus")? == "78", "{}", journal(b));
    ensure!(journal(b).contains("buildkitd: /etc/buildkit/buildkitd.toml:1: "), "{}", journal(b));
    Ok(())
}

fn install(_: &Bench) -> Result<()> {
    let directory = TempDir::with_prefix("bk-install-")?;
    let programs = places::programs()?.display().to_string();
    let make = |goal: &str| {
        let mut make = Command::new("make");
        make.arg("--directory").arg(places::workspace()).args(["--silent", goal, "PREFIX=/opt/bk"]);
        make.arg(format!("DESTDIR={}", directory.path().display())).arg(format!("PROGRAMS={programs}"));
        process::run(make)?.ok()
    };
    let files = || {
        let mut find = Command::new("find");
        find.arg(directory.path()).args(["!", "-type", "d", "-printf", "%m /%P\n"]);
        process::run(find)?.ok()
    };
    make("install")?;
    let there = files()?;
    for file in [
        "755 /opt/bk/bin/buildkitd",
        "755 /opt/bk/bin/buildctl",
        "755 /opt/bk/libexec/buildkit-cni/buildkit-cni",
        "777 /opt/bk/libexec/buildkit-cni/bridge",
        "644 /opt/bk/lib/systemd/system/buildkitd.socket",
        "644 /opt/bk/lib/systemd/user/buildkitd.service",
    ] {
        ensure!(there.lines().any(|line| line == file), "{file} is missing:\n{there}");
    }
    let unit = std::fs::read_to_string(directory.path().join("opt/bk/lib/systemd/system/buildkitd.service"))?;
    ensure!(unit.contains("ExecStart=/opt/bk/bin/buildkitd"), "{unit}");
    make("uninstall")?;
    ensure!(files()?.is_empty(), "left: {}", files()?);
    Ok(())
}
