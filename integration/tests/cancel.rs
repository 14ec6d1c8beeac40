//! Builds that are given up: nothing of them goes on.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::bench::Client::{self, Buildctl, Buildx};
use integration::process::Reaped;
use integration::{Bench, Options, Project, leak, suite, wait_for};
use rustix::process::Signal;

const PROMPT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cases: [suite::Case<()>; 7] = [
        ("interrupted_buildctl", |()| interrupted(Buildctl, Signal::INT)),
        ("interrupted_buildx", |()| interrupted(Buildx, Signal::INT)),
        ("killed_buildctl", |()| interrupted(Buildctl, Signal::KILL)),
        ("killed_buildx", |()| interrupted(Buildx, Signal::KILL)),
        ("stubborn_processes", |()| stubborn_processes()),
        ("a_step_others_wait_for_goes_on", |()| a_step_others_wait_for_goes_on()),
        ("a_daemon_told_to_stop_ends_builds", |()| a_daemon_told_to_stop_ends_builds()),
    ];
    suite::main(|| Ok(()), &cases, |()| Ok(()))
}

/// A build whose step runs until it is stopped.
struct Busy {
    bench: Bench,
    client: Reaped,
    project: Project,
}

fn spawn(bench: &Bench, client: Client, project: &Project) -> Result<Reaped> {
    let mut command: Command = match client {
        Client::Buildx => bench.buildx.build_command(project.dir(), &[]),
        Client::Buildctl => bench.buildctl.build_command(project.dir(), &[]),
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Reaped(command.spawn()?))
}

fn busy(client: Client, script: &str) -> Result<Busy> {
    let bench = Bench::start(Options::default())?;
    let project = Project::new(&format!("FROM busybox\nRUN {script}\n"))?;
    let client = spawn(&bench, client, &project)?;
    wait_for("the step runs", Duration::from_secs(30), || working(&bench).then_some(()))
        .with_context(|| bench.daemon.log())?;
    Ok(Busy { bench, client, project })
}

fn working(bench: &Bench) -> bool {
    bench.daemon.at_work().iter().any(|p| p.contains("sleep"))
}

impl Busy {
    /// Nothing of the step is left, and the daemon still builds.
    fn over(mut self) -> Result<()> {
        self.bench.daemon.quiet_within(PROMPT)?;
        _ = self.client.0.wait();
        let quick = Project::new("FROM busybox\nRUN echo still here\n")?;
        self.bench.build(Buildctl, &quick, &[])?.ok()?;
        self.bench.daemon.quiet_within(PROMPT)?;
        let runs = self.bench.daemon.root();
        let mounts = leak::mounts(&runs, Some(self.bench.daemon.pid()));
        // Not the file system in which bundles are.
        let left: Vec<_> = mounts.iter().filter(|m| m.to_string_lossy().contains("/executor/run/")).collect();
        ensure!(left.is_empty(), "mounts of a step are left: {left:?}");
        self.bench.finish()
    }
}

fn interrupted(client: Client, signal: Signal) -> Result<()> {
    let busy = busy(client, "sleep 1000 & sleep 1000")?;
    busy.client.signal(signal);
    busy.over()
}

fn stubborn_processes() -> Result<()> {
    let script = "trap '' INT TERM HUP; (setsid sh -c 'trap \"\" TERM; while :; do sleep 5; done' &) ; while :; do sleep 5; done";
    let busy = busy(Buildctl, script)?;
    busy.client.signal(Signal::INT);
    busy.over()
}

fn a_step_others_wait_for_goes_on() -> Result<()> {
    let busy = busy(Buildctl, "sleep 4")?;
    let mut other = spawn(&busy.bench, Buildx, &busy.project)?;
    // The other build is behind the same step once the daemon has its session.
    std::thread::sleep(Duration::from_secs(1));
    busy.client.signal(Signal::INT);
    std::thread::sleep(Duration::from_secs(1));
    ensure!(working(&busy.bench), "the step was stopped although somebody waits for it");
    let status = other.0.wait()?;
    ensure!(status.success(), "the other build failed: {}", busy.bench.daemon.log());
    busy.over()
}

fn a_daemon_told_to_stop_ends_builds() -> Result<()> {
    let mut busy = busy(Buildctl, "sleep 1000")?;
    busy.bench.daemon.stop()?;
    let status = busy.client.0.wait()?;
    ensure!(!status.success(), "the client believes that all went well");
    Ok(())
}
