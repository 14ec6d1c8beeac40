//! What people and programs see while a build runs.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use integration::bench::Client::{Buildctl, Buildx};
use integration::process::run;
use integration::rawjson::{step, steps};
use integration::{Bench, Options, Project, suite};

fn main() -> ExitCode {
    suite::main(
        || Bench::start(Options::default()),
        &[
            ("every_step_begins_and_ends", every_step_begins_and_ends),
            ("output_arrives_whole_and_in_order", output_arrives_whole_and_in_order),
            ("plain_text", plain_text),
            ("a_failure_is_at_its_step", a_failure_is_at_its_step),
            ("much_output_is_cut_not_lost_in", much_output_is_cut_not_lost_in),
            ("warnings", warnings),
            ("history", history),
            ("transfers_are_counted", transfers_are_counted),
        ],
        Bench::finish,
    )
}

fn every_step_begins_and_ends(bench: &Bench) -> Result<()> {
    let project =
        Project::new("FROM busybox AS a\nRUN echo one\nFROM scratch\nCOPY --from=a /etc/passwd /p\n")?;
    let command = bench.buildctl.build_command(project.dir(), &["--no-cache", "--progress=rawjson"]);
    let run = run(command)?;
    let steps = steps(&format!("{}\n{}", run.stdout, run.stderr))?;
    run.ok()?;
    for found in steps.values() {
        ensure!(found.completed && found.error.is_empty(), "{found:?}");
        ensure!(found.started || found.cached, "{found:?}");
        ensure!(found.counters.values().all(|done| *done), "{found:?}");
        for input in &found.inputs {
            ensure!(steps.contains_key(input), "{} needs a step nobody told about", found.name);
        }
    }
    for name in [
        "[internal] load build definition from Dockerfile",
        "[internal] load metadata for docker.io/library/busybox:latest",
        "[internal] load .dockerignore",
        "] FROM docker.io/library/busybox:latest@sha256:",
        "[a 2/2] RUN echo one",
        "[stage-1 1/1] COPY --from=a /etc/passwd /p",
    ] {
        step(&steps, name)?;
    }
    ensure!(step(&steps, "RUN echo one")?.log == "one\n");
    Ok(())
}

fn output_arrives_whole_and_in_order(bench: &Bench) -> Result<()> {
    let project =
        Project::new("FROM busybox\nRUN for i in $(seq 2000); do echo line $i; done; printf 'no end'\n")?;
    let command = bench.buildctl.build_command(project.dir(), &["--no-cache", "--progress=rawjson"]);
    let run = run(command)?;
    let steps = steps(&format!("{}\n{}", run.stdout, run.stderr))?;
    run.ok()?;
    let want: String = (1..=2000).map(|i| format!("line {i}\n")).collect();
    ensure!(step(&steps, "seq 2000")?.log == format!("{want}no end"));
    Ok(())
}

fn plain_text(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM busybox\nRUN echo to out; echo to err >&2\n")?;
    for client in [Buildx, Buildctl] {
        let said = bench.build(client, &project, &["no-cache"])?.said()?;
        for part in [
            "[internal] load build definition",
            "] FROM docker.io/library/busybox",
            "] RUN echo to out",
            " to out",
            " to err",
            "DONE",
        ] {
            ensure!(said.contains(part), "{part:?} is missing:\n{said}");
        }
        let again = bench.build(client, &project, &[])?.said()?;
        ensure!(again.contains("CACHED"), "{again}");
    }
    Ok(())
}

fn a_failure_is_at_its_step(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM busybox\nRUN echo before\nRUN echo last words; exit 7\n")?;
    let command = bench.buildctl.build_command(project.dir(), &["--progress=rawjson"]);
    let run = run(command)?;
    let steps = steps(&format!("{}\n{}", run.stdout, run.stderr))?;
    let failed = step(&steps, "exit 7")?;
    ensure!(failed.error.contains("exit code: 7") && failed.log == "last words\n", "{failed:?}");
    ensure!(step(&steps, "echo before")?.error.is_empty());
    run.fails_with(&["exit code: 7"])
}

fn much_output_is_cut_not_lost_in(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox\nRUN yes 0123456789012345678901234567890123456789 | head -c 8000000; echo; echo the-end\n",
    )?;
    let said = bench.build(Buildctl, &project, &["no-cache"])?.said()?;
    ensure!(said.contains("output clipped, log limit"), "8 MB of output were not cut");
    ensure!(said.len() < 6_000_000, "{} bytes of output", said.len());
    Ok(())
}

fn warnings(bench: &Bench) -> Result<()> {
    let project = Project::new("from busybox AS One\nMAINTAINER me\nENV key value\nCMD echo x\n")?;
    let command = bench.buildctl.build_command(project.dir(), &["--progress=rawjson"]);
    let run = run(command)?;
    let all = format!("{}{}", run.stdout, run.stderr);
    run.ok()?;
    for rule in ["\"warnings\":", "/dockerfile/rule/stage-name-casing/"] {
        ensure!(all.contains(rule), "{rule} is missing: {all}");
    }
    let said = bench.build(Buildctl, &project, &["build-arg:BUILDKIT_DOCKERFILE_CHECK=error=true"])?;
    said.fails_with(&["lint"])
}

fn history(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM scratch\nCOPY Dockerfile /history-case\n")?;
    let file = project.path("ref");
    let arg = format!("--ref-file={}", file.display());
    bench.build(Buildctl, &project, &[&arg])?.ok()?;
    let id = std::fs::read_to_string(&file)?;
    let listed = bench.buildctl.run(&["debug", "histories"])?.ok()?;
    ensure!(listed.contains(id.trim()), "{listed}");
    let logs = bench.buildctl.run(&["debug", "logs", "--progress=plain", id.trim()])?.said()?;
    ensure!(logs.contains("COPY Dockerfile /history-case"), "{logs}");
    Ok(())
}

fn transfers_are_counted(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM scratch\nCOPY big /\n")?.with("big", vec![1; 3 << 20])?;
    let said = bench.build(Buildx, &project, &[])?.said()?;
    ensure!(said.contains("transferring context: 3.15MB"), "{said}");
    Ok(())
}
