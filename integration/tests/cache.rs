//! What is not done twice: within a daemon, across restarts, across daemons.

use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use integration::bench::Client::{self, Buildctl, Buildx};
use integration::bench::text;
use integration::process::run;
use integration::rawjson::{Step, steps};
use integration::{Bench, Options, Project, suite};

/// Some cases restart the daemon, so they take turns.
struct Env(Mutex<Bench>);

impl Env {
    fn with(&self, case: impl FnOnce(&mut Bench) -> Result<()>) -> Result<()> {
        let mut bench = self.0.lock().map_err(|_| anyhow::anyhow!("another case panicked"))?;
        case(&mut bench)
    }
}

fn main() -> ExitCode {
    let cases: [suite::Case<Env>; 7] = [
        ("the_second_build_is_cached", |e| e.with(|b| the_second_build_is_cached(b))),
        ("a_restart_forgets_nothing", |e| e.with(a_restart_forgets_nothing)),
        ("a_crash_forgets_nothing", |e| e.with(a_crash_forgets_nothing)),
        ("one_file_reruns_only_what_needs_it", |e| e.with(|b| one_file_reruns_only_what_needs_it(b))),
        ("two_builds_share_their_steps", |e| e.with(|b| two_builds_share_their_steps(b))),
        ("remote_caches_are_named_as_missing", |e| e.with(|b| remote_caches_are_named_as_missing(b))),
        ("prune_and_usage", |e| e.with(|b| prune_and_usage(b))),
    ];
    suite::main(
        || Ok(Env(Mutex::new(Bench::start(Options::default())?))),
        &cases,
        |env| env.0.into_inner().map_err(|_| anyhow::anyhow!("a case panicked"))?.finish(),
    )
}

type Steps = std::collections::BTreeMap<String, Step>;

/// Builds with `buildctl` and gives what happened.
fn watched(bench: &Bench, project: &Project, args: &[&str]) -> Result<Steps> {
    let args: Vec<&str> = args.iter().copied().chain(["--progress=rawjson"]).collect();
    let command = bench.buildctl.build_command(project.dir(), &args);
    let run = run(command)?;
    let found = steps(&format!("{}\n{}", run.stdout, run.stderr))?;
    run.ok()?;
    Ok(found)
}

/// The steps of the Dockerfile that were worked on.
fn ran(steps: &Steps) -> Vec<&str> {
    let own = |s: &&Step| {
        s.name.starts_with('[') && !s.name.starts_with("[internal]") && !s.name.contains(" FROM ")
    };
    let mut names: Vec<&str> =
        steps.values().filter(own).filter(|s| !s.cached).map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    names
}

fn project(mark: &str) -> Result<Project> {
    Project::new(&format!(
        "FROM busybox AS a\nRUN echo {mark}\nCOPY a /a\nRUN cat /a >/out\n\
         FROM busybox AS b\nCOPY b /b\nRUN cat /b >/out && date +%N >/when\n\
         FROM scratch\nCOPY --from=a /out /a\nCOPY --from=b /out /when /b/\n"
    ))?
    .with("a", "a\n")?
    .with("b", "b\n")
}

fn all_cached(bench: &Bench, project: &Project) -> Result<()> {
    let steps = watched(bench, project, &[])?;
    ensure!(ran(&steps).is_empty(), "worked on: {:?}", ran(&steps));
    ensure!(steps.values().filter(|s| s.cached).count() >= 6, "{steps:#?}");
    Ok(())
}

fn the_second_build_is_cached(bench: &Bench) -> Result<()> {
    let project = project("second")?;
    let first = watched(bench, &project, &[])?;
    ensure!(ran(&first).len() == 7, "{:?}", ran(&first));
    let pulls = |bench: &Bench| bench.daemon.log().matches("/blobs/").count();
    let before = pulls(bench);
    all_cached(bench, &project)?;
    ensure!(pulls(bench) == before, "a cached build asked for blobs");
    // The other client finds the same.
    let said = bench.build(Buildx, &project, &[])?.said()?;
    ensure!(said.matches("CACHED").count() >= 6, "{said}");
    Ok(())
}

fn a_restart_forgets_nothing(bench: &mut Bench) -> Result<()> {
    let project = project("restart")?;
    let before = text(&bench.export(Buildctl, &project, &[])?, "b/when")?;
    bench.daemon.restart()?;
    all_cached(bench, &project)?;
    ensure!(text(&bench.export(Buildx, &project, &[])?, "b/when")? == before);
    Ok(())
}

fn a_crash_forgets_nothing(bench: &mut Bench) -> Result<()> {
    let project = project("crash")?;
    let before = text(&bench.export(Buildctl, &project, &[])?, "b/when")?;
    // In the middle of something else, too.
    let busy = Project::new("FROM busybox\nRUN echo busy && sleep 30\n")?;
    let mut client = integration::process::Reaped(
        bench
            .buildctl
            .build_command(busy.dir(), &[])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?,
    );
    integration::wait_for("the step runs", std::time::Duration::from_secs(20), || {
        (!bench.daemon.at_work().is_empty()).then_some(())
    })?;
    bench.daemon.crash()?;
    _ = client.0.wait();
    ensure!(text(&bench.export(Buildx, &project, &[])?, "b/when")? == before, "the step ran again");
    bench.build(Buildctl, &busy_quick()?, &[])?.ok()?;
    Ok(())
}

fn busy_quick() -> Result<Project> {
    Project::new("FROM busybox\nRUN echo after the crash\n")
}

fn one_file_reruns_only_what_needs_it(bench: &Bench) -> Result<()> {
    let project = project("one file")?;
    watched(bench, &project, &[])?;
    project.write("b", "changed\n")?;
    let steps = watched(bench, &project, &[])?;
    let ran = ran(&steps);
    ensure!(ran.iter().all(|n| n.starts_with("[b ") || n.starts_with("[stage-2 2/2]")), "worked on: {ran:?}");
    ensure!(ran.len() == 3, "worked on: {ran:?}");
    // Only the time of a file differs: nothing to do.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(100);
    std::fs::File::options().write(true).open(project.path("a"))?.set_modified(later)?;
    all_cached(bench, &project)
}

fn two_builds_share_their_steps(bench: &Bench) -> Result<()> {
    let mark = std::process::id();
    let project = Project::new(&format!(
        "FROM busybox AS build\nRUN echo {mark} && sleep 2 && cat /proc/sys/kernel/random/uuid >/out\n\
         FROM scratch\nCOPY --from=build /out /\n"
    ))?;
    let outs = std::thread::scope(|scope| {
        let build = |client: Client| {
            let project = &project;
            scope.spawn(move || text(&bench.export(client, project, &[])?, "out"))
        };
        [build(Buildx), build(Buildctl), build(Buildctl)].map(|t| t.join())
    });
    let mut texts = Vec::new();
    for out in outs {
        texts.push(out.map_err(|_| anyhow::anyhow!("panicked"))??);
    }
    ensure!(texts[0] == texts[1] && texts[1] == texts[2], "the step ran more than once: {texts:?}");
    Ok(())
}

fn remote_caches_are_named_as_missing(bench: &Bench) -> Result<()> {
    let project = project("remote")?;
    for kind in ["type=inline", "type=registry,ref=127.0.0.1:1/x", "type=local,dest=/nowhere"] {
        let name = kind.split([',', '=']).nth(1).unwrap_or_default();
        bench.build(Buildctl, &project, &["--export-cache", kind])?.fails_with(&["cache exporter", name])?;
    }
    // A cache that cannot be read never fails a build; it says so and goes on.
    let import = ["--import-cache", "type=registry,ref=127.0.0.1:1/x"];
    let said = bench.build(Buildctl, &project, &import)?.said()?;
    ensure!(said.contains("importing cache manifest from 127.0.0.1:1/x"), "{said}");
    Ok(())
}

fn prune_and_usage(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM busybox\nRUN dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null\n")?;
    watched(bench, &project, &[])?;
    let usage = bench.buildctl.run(&["du", "--verbose"])?.ok()?;
    ensure!(usage.contains("dd if=/dev/urandom"), "{usage}");
    let total = |usage: &str| usage.lines().find(|l| l.starts_with("Total:")).unwrap_or_default().to_owned();
    ensure!(total(&usage).contains("MB") || total(&usage).contains("MiB"), "{usage}");
    let seen = bench.buildx.run(&["du", "--builder", "bench"])?.ok()?;
    ensure!(seen.contains("Total:"), "{seen}");
    bench.buildx.run(&["prune", "--builder", "bench", "--force", "--all"])?.ok()?;
    let usage = bench.buildctl.run(&["du"])?.ok()?;
    let amount: String = total(&usage).chars().filter(char::is_ascii_digit).collect();
    ensure!(amount.trim_start_matches('0').is_empty(), "left after prune --all: {usage}");
    Ok(())
}
