//! What is measured, and how.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::image::Image;
use integration::{Project, Registry};
use tempfile::TempDir;

use crate::daemon::{Candidate, Daemon, Net, fresh};
use crate::definition::{BUSYBOX, Steps, chain};
use crate::images;
use crate::networks;
use crate::table::{Unit, median};

/// What all cases share.
pub(crate) struct Lab {
    registry: Registry,
    buildctl: PathBuf,
    /// For the client: no credentials of whoever runs this.
    home: TempDir,
}

/// Takes figures.
pub(crate) type Report<'a> = dyn FnMut(&str, Unit, f64) + 'a;

/// Something to measure.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// For `--help`.
    pub(crate) what: &'static str,
    /// What it measures is not the daemon.
    pub(crate) once: bool,
    pub(crate) run: fn(&Lab, &Candidate, &mut Report<'_>) -> Result<()>,
}

/// Everything, in the order of the table.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "start",
        what: "start to the first answer, memory of an idle daemon",
        once: false,
        run: start,
    },
    Case {
        name: "build",
        what: "a small build: cold, cached, and ten cached steps in one call",
        once: false,
        run: build,
    },
    Case {
        name: "chain",
        what: "30 RUN steps on top of each other, on each of three networks",
        once: false,
        run: chains,
    },
    Case { name: "concurrent", what: "32 builds at once", once: false, run: concurrent },
    Case {
        name: "context",
        what: "a context of 5,000 files: cold, unchanged, one file changed",
        once: false,
        run: context,
    },
    Case { name: "archive", what: "ADD of a tar of 20,000 files", once: false, run: archive },
    Case { name: "pull", what: "an image of 12 layers", once: false, run: pull },
    Case {
        name: "export",
        what: "a layer of a base system as an OCI archive, three compressions",
        once: false,
        run: export,
    },
    Case { name: "push", what: "the same to a registry", once: false, run: push },
    Case { name: "growth", what: "memory after 10 and 100 builds", once: false, run: growth },
    Case {
        name: "net-plugins",
        what: "the default network, by plugins in process, as our programs, as Debian's",
        once: true,
        run: networks::plugins,
    },
    Case {
        name: "net-steps",
        what: "100 RUN steps on the default network against 100 on the host's",
        once: false,
        run: networks::steps,
    },
    Case {
        name: "net-ports",
        what: "64 builds at once that bind the same port",
        once: false,
        run: networks::ports,
    },
    Case {
        name: "net-left",
        what: "1,000 RUN steps, and what is left of their networks",
        once: false,
        run: networks::left,
    },
    Case {
        name: "net-killed",
        what: "start to the first answer after kill -9 with 32 steps running",
        once: false,
        run: networks::killed,
    },
];

impl Lab {
    /// Starts the registry and fills it.
    pub(crate) fn set_up(buildctl: PathBuf) -> Result<Self> {
        let registry = Registry::with_busybox()?;
        Image::debian()?.push(registry.host(), "library/debian", "latest")?;
        images::push_layered(registry.host(), "library/layers", 12)?;
        Ok(Self { registry, buildctl, home: TempDir::with_prefix("bk-bench-home-")? })
    }

    pub(crate) fn daemon(&self, candidate: &Candidate, net: Net) -> Result<Daemon> {
        Daemon::start(candidate, net, self.registry.host())
    }

    /// `buildctl build` of a directory; says how long it took.
    fn build(&self, daemon: &Daemon, directory: &Path, args: &[&str]) -> Result<Duration> {
        let mut command = Command::new(&self.buildctl);
        command.env("DOCKER_CONFIG", self.home.path()).env_remove("BUILDKIT_HOST");
        command.args(["--addr", &daemon.addr(), "build", "--progress=plain", "--frontend=dockerfile.v0"]);
        command.arg("--local").arg(format!("context={}", directory.display()));
        command.arg("--local").arg(format!("dockerfile={}", directory.display()));
        command.args(args);
        // Waited for without polling: the figures are to be finer than that.
        let begun = Instant::now();
        let output = command.output().context("start buildctl")?;
        let taken = begun.elapsed();
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(taken)
    }
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The median time of several calls.
fn often(times: usize, mut call: impl FnMut() -> Result<Duration>) -> Result<f64> {
    let samples = (0..times).map(|_| call().map(millis)).collect::<Result<Vec<_>>>()?;
    Ok(median(&samples).unwrap_or_default())
}

fn start(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let mut daemon = lab.daemon(candidate, Net::Host)?;
    std::thread::sleep(Duration::from_secs(1));
    report("memory, idle", Unit::Mebibytes, daemon.memory()?.0);
    daemon.stop()?;
    let again = often(5, || {
        let taken = daemon.launch()?;
        daemon.stop()?;
        Ok(taken)
    })?;
    report("start to first answer", Unit::Millis, again);
    Ok(())
}

fn build(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Cni)?;
    let project = Project::new(
        "FROM busybox AS one\nWORKDIR /src\nCOPY src .\nRUN cat */* > /made\nRUN sha256sum /made > /sum\n\
         FROM busybox\nCOPY --from=one /made /sum /\nRUN sha256sum -c /sum || true\n",
    )?;
    images::files(&project.path("src"), 50, 1 << 10)?;
    report("small build, cold", Unit::Millis, millis(lab.build(&daemon, project.dir(), &[])?));
    let cached = often(7, || lab.build(&daemon, project.dir(), &[]))?;
    report("small build, cached", Unit::Millis, cached);
    let known =
        || (0..10).fold(Steps::from(BUSYBOX), |steps, i| steps.run(&format!("known-{i}"))).definition();
    daemon.solve(known())?;
    report("ten steps, cached, one call", Unit::Millis, often(21, || daemon.solve(known()))?);
    Ok(())
}

fn chains(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    const LENGTH: usize = 30;
    for (net, figure) in [
        (Net::Host, "RUN step, host network"),
        (Net::Default, "RUN step, the daemon's own bridge"),
        (Net::Cni, "RUN step, CNI network"),
    ] {
        let daemon = lab.daemon(candidate, net)?;
        daemon.solve(chain(1))?;
        let taken = daemon.solve(chain(LENGTH))?;
        report(figure, Unit::Millis, millis(taken) / LENGTH as f64);
    }
    Ok(())
}

fn concurrent(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Cni)?;
    daemon.solve(chain(1))?;
    let taken = daemon.solve_all((0..32).map(|_| chain(2)).collect())?;
    report("32 builds of two steps at once", Unit::Millis, millis(taken));
    Ok(())
}

fn context(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Host)?;
    let project = Project::new("FROM scratch\nCOPY files /files\n")?;
    images::files(&project.path("files"), 5_000, 32 << 10)?;
    let mut build = |figure: &str| -> Result<()> {
        report(figure, Unit::Millis, millis(lab.build(&daemon, project.dir(), &[])?));
        Ok(())
    };
    build("context of 5,000 files, 160 MB, cold")?;
    build("context, unchanged")?;
    project.write("files/000/000007", "changed")?;
    build("context, one file changed")?;
    report("memory, peak, context", Unit::Mebibytes, daemon.memory()?.1);
    Ok(())
}

fn archive(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Host)?;
    let project = Project::new("FROM scratch\nADD files.tar /\n")?;
    project.write("files.tar", images::archive(1, 20_000, 1 << 10)?)?;
    let taken = lab.build(&daemon, project.dir(), &[])?;
    report("ADD of a tar of 20,000 files", Unit::Millis, millis(taken));
    Ok(())
}

fn pull(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Host)?;
    let definition = Steps::from("docker.io/library/layers:latest").run("once").definition();
    report("pull and unpack 12 layers, one step", Unit::Millis, millis(daemon.solve(definition)?));
    report("memory, peak, pull", Unit::Mebibytes, daemon.memory()?.1);
    Ok(())
}

/// A build whose only new layer holds a copy of the base image's `/usr`.
fn heavy() -> Result<Project> {
    Project::new(&format!("FROM debian\nRUN cp -a /usr /copy && echo {} > /copy/mark\n", fresh()))
}

fn export(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Host)?;
    let out = TempDir::with_prefix("bk-bench-out-")?;
    for kind in ["uncompressed", "gzip", "zstd"] {
        let project = heavy()?;
        lab.build(&daemon, project.dir(), &[])?;
        let dest = out.path().join(kind);
        let output =
            format!("--output=type=oci,dest={},compression={kind},force-compression=true", dest.display());
        let taken = lab.build(&daemon, project.dir(), &[&output])?;
        report(&format!("export as OCI archive, {kind}"), Unit::Millis, millis(taken));
        std::fs::remove_file(dest)?;
    }
    report("memory, peak, export", Unit::Mebibytes, daemon.memory()?.1);
    Ok(())
}

fn push(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Host)?;
    let project = heavy()?;
    lab.build(&daemon, project.dir(), &[])?;
    let output = format!("--output=type=image,name={}/{}:latest,push=true", lab.registry.host(), fresh());
    report("push", Unit::Millis, millis(lab.build(&daemon, project.dir(), &[&output])?));
    Ok(())
}

fn growth(lab: &Lab, candidate: &Candidate, report: &mut Report<'_>) -> Result<()> {
    let daemon = lab.daemon(candidate, Net::Host)?;
    for builds in 1..=100 {
        daemon.solve(chain(2))?;
        if matches!(builds, 10 | 100) {
            // Jobs stay for a while after their end, for those who ask late.
            std::thread::sleep(Duration::from_secs(12));
            report(&format!("memory after {builds} builds"), Unit::Mebibytes, daemon.memory()?.0);
        }
    }
    Ok(())
}
