//! Many builds at once, clients that go away, and a daemon that is killed: what
//! comes out is right, and nothing is left that nobody needs.
//!
//! `BUILDKIT_TEST_KILLS` and `BUILDKIT_TEST_BUILDS` make it longer.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use integration::bench::Client::Buildctl;
use integration::bench::text;
use integration::grpc::kept;
use integration::process::Reaped;
use integration::{Bench, Options, Project, suite};
use refs::Refs;
use store::Store;

fn main() -> ExitCode {
    let cases: [suite::Case<Mutex<()>>; 3] = [
        ("a_daemon_that_is_killed", a_daemon_that_is_killed),
        ("many_builds_one_at_a_time", |turn| many_builds(turn, 1)),
        ("many_builds_four_at_a_time", |turn| many_builds(turn, 4)),
    ];
    suite::main(|| Ok(Mutex::new(())), &cases, |_| Ok(()))
}

fn count(name: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(otherwise),
    }
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A project whose builds share steps with those of others, and its result.
fn project(round: u64, number: u64) -> Result<(Project, String)> {
    let (shared, own) = (number % 3, format!("{round}-{number}"));
    let project = Project::new(&format!(
        "FROM busybox AS base\nRUN mkdir /d && echo base >/d/base\n\
         FROM base AS shared\nRUN echo {round}-{shared} >/d/shared && rm /d/base && sleep 0.2\n\
         FROM base AS own\nCOPY mark /d/\nRUN --mount=type=cache,target=/c,sharing=locked cat /d/base /d/mark >/d/own && echo >>/c/log\n\
         FROM scratch\nCOPY --from=shared /d /s\nCOPY --from=own /d /o\n"
    ))?
    .with("mark", &own)?;
    Ok((project, format!("base\n{own}")))
}

fn check(bench: &Bench, round: u64, number: u64) -> Result<()> {
    let (project, own) = project(round, number)?;
    let out = bench.export(Buildctl, &project, &[])?;
    ensure!(text(&out, "o/own")? == own, "{:?}", text(&out, "o/own"));
    ensure!(text(&out, "s/shared")? == format!("{round}-{}\n", number % 3));
    ensure!(!out.path().join("s/base").exists(), "a deleted file came back");
    Ok(())
}

fn client(bench: &Bench, project: &Project, options: &[&str]) -> Result<Reaped> {
    let mut command = bench.buildctl.build_command(project.dir(), options);
    Ok(Reaped(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

/// Looks at what a daemon has kept that has stopped: the files of every record can be read,
/// and its blobs are there and what they say they are. Tells how many records there are.
fn whole(root: &Path) -> Result<usize> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::open(root, store::Options::default())?;
        for blob in store.blobs().list()? {
            let found = base::Digest::of(&std::fs::read(store.blobs().path(&blob.digest))?);
            ensure!(found == blob.digest, "{} is {found}", blob.digest);
        }
        let refs = Refs::open(store, refs::Options::default()).await.map_err(Error::msg)?;
        let records = refs.usage(&[], None).await.map_err(Error::msg)?;
        for record in &records {
            let mount = if record.mutable {
                refs.get_mutable(&record.id).await?.mount().await.map_err(Error::msg)?
            } else {
                let found = refs.get(&record.id)?;
                if found.is_lazy() {
                    continue;
                }
                for layer in found.known_layers()?.unwrap_or_default() {
                    ensure!(layer.is_local()?, "{record:?} lacks {layer:?}");
                }
                found.mount().await.map_err(Error::msg)?
            };
            read(mount.path()).with_context(|| format!("{record:?}"))?;
            mount.unmount().await.map_err(Error::msg)?;
        }
        refs.close().await.map_err(Error::msg)?;
        Ok(records.len())
    })
}

/// Reads every file below a directory.
fn read(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read(&entry.path())?;
        } else if kind.is_file() {
            std::fs::read(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

fn a_daemon_that_is_killed(turn: &Mutex<()>) -> Result<()> {
    let _turn = turn.lock().map_err(|_| anyhow::anyhow!("another case panicked"))?;
    let mut bench = Bench::start(Options::default())?;
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for round in 0..count("BUILDKIT_TEST_KILLS", 4)? {
        let projects = (0..4).map(|n| Ok(project(round, n)?.0)).collect::<Result<Vec<_>>>()?;
        // Every other one wants layers, which are blobs.
        let options: [&[&str]; 2] = [&[], &["output=type=oci,dest=/dev/null"]];
        let wanted = projects.iter().zip(options.into_iter().cycle());
        let mut clients =
            wanted.map(|(p, options)| client(&bench, p, options)).collect::<Result<Vec<_>>>()?;
        sleep(Duration::from_millis(100 + dice.below(1900)));
        bench.daemon.crash()?;
        for client in &mut clients {
            _ = client.0.wait();
        }
        // What was finished is used, what was not is done again.
        for number in 0..4 {
            check(&bench, round, number).with_context(|| format!("round {round}, build {number}"))?;
        }
    }
    bench.daemon.stop()?;
    ensure!(whole(&bench.daemon.root())? > 0, "no record was looked at");
    bench.daemon.restart()?;
    let kept = kept(&bench.daemon, &bench.buildctl)?;
    ensure!(kept.is_empty(), "kept: {kept:#?}");
    check(&bench, 0, 0)?;
    bench.finish()
}

fn many_builds(turn: &Mutex<()>, parallelism: u64) -> Result<()> {
    let _turn = turn.lock().map_err(|_| anyhow::anyhow!("another case panicked"))?;
    let worker = format!("max-parallelism = {parallelism}\n");
    let bench = Bench::start(Options { worker, ..Options::default() })?;
    let mut dice = Dice(0x2545_f491_4f6c_dd1d + parallelism);
    let builds = count("BUILDKIT_TEST_BUILDS", 16)?;
    std::thread::scope(|scope| {
        let bench = &bench;
        let builds: Vec<_> = (0..builds)
            .map(|number| {
                let after = Duration::from_millis(dice.below(2500));
                let canceled = number % 4 == 3;
                scope.spawn(move || {
                    if !canceled {
                        return check(bench, 0, number);
                    }
                    let (project, _) = project(0, number)?;
                    let mut client = client(bench, &project, &[])?;
                    sleep(after);
                    _ = client.0.kill();
                    client.0.wait()?;
                    Ok(())
                })
            })
            .collect();
        builds
            .into_iter()
            .try_for_each(|build| build.join().map_err(|_| anyhow::anyhow!("a build panicked"))?)
    })?;
    bench.daemon.quiet_within(Duration::from_secs(10))?;
    let kept = kept(&bench.daemon, &bench.buildctl)?;
    ensure!(kept.is_empty(), "kept: {kept:#?}");
    bench.finish()
}
