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
    let cases: [suite::Case<Env>; 10] = [
        ("the_second_build_is_cached", |e| e.with(|b| the_second_build_is_cached(b))),
        ("a_restart_forgets_nothing", |e| e.with(a_restart_forgets_nothing)),
        ("a_crash_forgets_nothing", |e| e.with(a_crash_forgets_nothing)),
        ("one_file_reruns_only_what_needs_it", |e| e.with(|b| one_file_reruns_only_what_needs_it(b))),
        ("two_builds_share_their_steps", |e| e.with(|b| two_builds_share_their_steps(b))),
        ("remote_caches_bring_results_back", |e| e.with(|b| remote_caches_bring_results_back(b))),
        ("images_tell_how_they_were_made", |e| e.with(|b| images_tell_how_they_were_made(b))),
        ("small_caches_have_the_end_result_only", |e| e.with(|b| small_caches_have_the_end_result_only(b))),
        ("broken_caches_break_no_build", |e| e.with(|b| broken_caches_break_no_build(b))),
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

/// Two stages and what comes out of both; nothing of it is another project's, too.
fn project(mark: &str) -> Result<Project> {
    Project::new(&format!(
        "FROM busybox AS a\nRUN echo {mark}\nCOPY a /a\nRUN cat /a >/out\n\
         FROM busybox AS b\nCOPY b /b\nRUN cat /b >/out && date +%N >/when\n\
         FROM scratch\nCOPY --from=a /out /a\nCOPY --from=b /out /when /b/\n"
    ))?
    .with("a", format!("{mark} a\n"))?
    .with("b", format!("{mark} b\n"))
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

/// Two stages; the result says which run made it.
fn unique(mark: &str) -> Result<Project> {
    Project::new(&format!(
        "FROM busybox AS build\nRUN echo {mark} && cat /proc/sys/kernel/random/uuid >/side\n\
         FROM busybox\nCOPY a /a\nCOPY --from=build /side /b\nRUN cat /proc/sys/kernel/random/uuid >/out\n"
    ))?
    .with("a", "a\n")
}

fn forget(bench: &Bench) -> Result<()> {
    bench.buildctl.run(&["prune", "--all"])?.ok()?;
    Ok(())
}

/// What identifies the runs that made a result.
fn marks(bench: &Bench, client: Client, project: &Project, options: &[&str]) -> Result<(String, String)> {
    let out = bench.export(client, project, options)?;
    Ok((text(&out, "b")?, text(&out, "out")?))
}

/// Flags that write and read a cache at `place`.
fn flags(client: Client, write: &str, read: &str) -> (String, String) {
    match client {
        Buildctl => (format!("--export-cache={write}"), format!("--import-cache={read}")),
        Buildx => (format!("--cache-to={write}"), format!("--cache-from={read}")),
    }
}

fn remote_caches_bring_results_back(bench: &Bench) -> Result<()> {
    let dir = tempfile::TempDir::with_prefix("bk-cache-")?;
    let (host, dir) = (bench.registry.host(), dir.path().display());
    for (client, name, options) in [
        (Buildctl, "plain", ""),
        (Buildx, "index", ",image-manifest=false"),
        (Buildctl, "docker", ",oci-mediatypes=false"),
        (Buildx, "zstd", ",compression=zstd,force-compression=true"),
    ] {
        let project = unique(name)?;
        let at = format!("type=registry,ref={host}/cache/{name}");
        let (write, read) = flags(client, &format!("{at},mode=max{options}"), &at);
        let before = marks(bench, client, &project, &[&write])?;
        forget(bench)?;
        ensure!(marks(bench, client, &project, &[&read])? == before, "{name}: not found in the registry");
        // What was found is written on, here to a directory, and found there.
        let (write, read) = flags(
            client,
            &format!("type=local,dest={dir}/{name},mode=max{options}"),
            &format!("type=local,src={dir}/{name}"),
        );
        ensure!(marks(bench, client, &project, &[&write])? == before);
        forget(bench)?;
        ensure!(marks(bench, client, &project, &[&read])? == before, "{name}: not found in the directory");
        // Nor is anything lost when the directory is gone.
        ensure!(marks(bench, client, &project, &[])? == before, "{name}: forgotten again");
    }
    let (manifest, config) = bench.registry.image("cache/plain", "latest")?;
    ensure!(manifest["config"]["mediaType"] == "application/vnd.buildkit.cacheconfig.v0", "{manifest}");
    let layers = config["layers"].as_array().map_or(0, Vec::len);
    ensure!(layers == manifest["layers"].as_array().map_or(0, Vec::len) && layers >= 5, "{config}");
    let (_, index) = bench.registry.manifest("cache/docker", "latest")?;
    ensure!(index["mediaType"] == "application/vnd.docker.distribution.manifest.list.v2+json", "{index}");
    let twice = format!("--export-cache=type=registry,ref={host}/cache/x");
    let project = unique("twice")?;
    bench
        .build(Buildctl, &project, &[&twice, &twice])?
        .fails_with(&["duplicate cache exports [registry]"])?;
    let nobody = "--export-cache=type=registry,ref=127.0.0.1:1/x";
    bench.build(Buildctl, &project, &[nobody])?.fails_with(&["127.0.0.1:1"])?;
    bench.build(Buildctl, &project, &[&format!("{nobody},ignore-error=true")])?.ok()?;
    let unknown = ["--export-cache=type=nonsense"];
    bench.build(Buildctl, &project, &unknown)?.fails_with(&["unknown cache exporter: \"nonsense\""])?;
    Ok(())
}

fn images_tell_how_they_were_made(bench: &Bench) -> Result<()> {
    let project = unique("inline")?;
    let image = format!("{}/cache/inline:1", bench.registry.host());
    let push = format!("--output=type=image,name={image},push=true");
    bench.build(Buildctl, &project, &[&push, "--export-cache=type=inline"])?.ok()?;
    let (_, config) = bench.registry.image("cache/inline", "1")?;
    ensure!(config["moby.buildkit.cache.v0"].is_string(), "{config}");
    let before = marks(bench, Buildctl, &project, &[])?;
    forget(bench)?;
    let read = format!("--import-cache=type=registry,ref={image}");
    let after = marks(bench, Buildctl, &project, &[&read])?;
    ensure!(after == before, "{after:?} is not {before:?}");
    Ok(())
}

fn small_caches_have_the_end_result_only(bench: &Bench) -> Result<()> {
    let project = unique("small")?;
    let at = format!("type=registry,ref={}/cache/small", bench.registry.host());
    let (write, read) = flags(Buildx, &at, &at);
    let before = marks(bench, Buildx, &project, &[&write])?;
    let (_, config) = bench.registry.image("cache/small", "latest")?;
    ensure!(config["layers"].as_array().map_or(0, Vec::len) == 4, "{config}");
    forget(bench)?;
    ensure!(marks(bench, Buildx, &project, &[&read])? == before);
    Ok(())
}

fn broken_caches_break_no_build(bench: &Bench) -> Result<()> {
    let cache = tempfile::TempDir::with_prefix("bk-cache-")?;
    let project = unique("broken")?;
    let at = cache.path().display();
    let (write, read) =
        flags(Buildctl, &format!("type=local,dest={at},mode=max"), &format!("type=local,src={at}"));
    let before = marks(bench, Buildctl, &project, &[&write])?;
    // The bytes of every layer are others than those that are named.
    let blobs = cache.path().join("blobs/sha256");
    let mut config = None;
    for name in integration::bench::names(&blobs)? {
        let path = blobs.join(&name);
        let mut bytes = std::fs::read(&path)?;
        if !bytes.starts_with(b"{") {
            bytes.reverse();
            std::fs::write(&path, bytes)?;
        } else if bytes.starts_with(b"{\"layers\"") {
            config = Some(path);
        }
    }
    forget(bench)?;
    let after = marks(bench, Buildctl, &project, &[&read])?;
    ensure!(after.1 != before.1 && after.0 != before.0, "made of layers that are not those promised");
    // A description that is not what it is called, and one that is not there.
    let config = config.ok_or_else(|| anyhow::anyhow!("no description in the cache"))?;
    std::fs::write(&config, "{}")?;
    let said = bench.build(Buildctl, &project, &[&read])?.said()?;
    ensure!(
        said.contains("importing cache manifest from local:") && said.contains("has the content of"),
        "{said}"
    );
    std::fs::remove_file(&config)?;
    bench.build(Buildctl, &project, &[&read])?.ok()?;
    let nobody = ["--import-cache=type=registry,ref=127.0.0.1:1/x"];
    let said = bench.build(Buildctl, &project, &nobody)?.said()?;
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
