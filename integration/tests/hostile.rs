//! Everything that comes from outside, at its worst. The daemon says what is
//! wrong, serves on, and keeps nothing half-made.

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::bench::Client::{Buildctl, Buildx};
use integration::image::raw_entry;
use integration::llb::{encode, input, op, source};
use integration::mock::{Mock, Reply};
use integration::process::{Reaped, run};
use integration::{Bench, Options, Project, suite};
use prost::Message;
use proto::pb;
use rustix::process::Signal;

fn main() -> ExitCode {
    suite::main(
        || Bench::start(Options::default()),
        &[
            ("nonsense_dockerfiles", nonsense_dockerfiles),
            ("huge_dockerfiles", huge_dockerfiles),
            ("corrupt_archives", corrupt_archives),
            ("clients_that_vanish", clients_that_vanish),
            ("broken_llb", broken_llb),
            ("links_in_the_build_that_lead_out", links_in_the_build_that_lead_out),
            ("not_even_grpc", not_even_grpc),
            ("pushes_that_are_refused", pushes_that_are_refused),
        ],
        Bench::finish_serving,
    )
}

fn nonsense_dockerfiles(bench: &Bench) -> Result<()> {
    let long = format!("FROM busybox\nRUN {}\n", "x".repeat(1 << 17));
    let deep = format!("FROM busybox\nENV A=${{{}x}}\n", "A:-${".repeat(2000));
    for dockerfile in [
        "\0\0\0",
        "FROM",
        "FROM busybox AS\n",
        "FROM Busybox\n",
        "FROM busybox@sha256:00\n",
        "FROM ${}\n",
        "FROM busybox\nRUN <<EOF\nno end",
        "FROM busybox\nCOPY --from=../.. a b\n",
        "FROM busybox\nADD --checksum=sha256:zz http://127.0.0.1:1/x /\n",
        "FROM busybox\nEXPOSE 99999999\n",
        "FROM busybox\nHEALTHCHECK --interval=never CMD x\n",
        "FROM busybox\nRUN --mount=type=bind,target=\n",
        "FROM busybox\nUSER\n",
        "FROM a AS b\nFROM b AS a\n",
        "FROM busybox\nENV X=${Y\n",
        "FROM --platform=what/ever/this/is busybox\n",
        "# syntax=nobody/has:this\nFROM busybox\n",
        &long,
        &deep,
    ] {
        let project = Project::new(dockerfile)?;
        bench
            .build(Buildctl, &project, &[])?
            .fails_with(&[])
            .map_err(|e| e.context(format!("{dockerfile:.60}")))?;
    }
    Ok(())
}

fn huge_dockerfiles(bench: &Bench) -> Result<()> {
    let many = format!("FROM busybox\n{}", "ENV A=b\n".repeat(5000));
    bench.build(Buildctl, &Project::new(&many)?, &[])?.ok()?;
    let large = format!("FROM scratch\n{}", "# filler filler filler\n".repeat(1 << 20));
    // There is no limit to comments, only to patience.
    let run = bench.build(Buildctl, &Project::new(&large)?, &[])?;
    ensure!(run.status.is_some_and(|s| s.code().is_some()), "{run}");
    Ok(())
}

fn corrupt_archives(bench: &Bench) -> Result<()> {
    let good = raw_entry("file", tar::EntryType::Regular, "", &[b'x'; 5000]);
    let mut packed = Vec::new();
    let mut gzip = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &good)?;
    gzip.finish()?;
    packed.truncate(packed.len() / 2);
    let project = Project::new("FROM scratch\nADD a.tar /\n")?.with("a.tar", &good[..2000])?;
    bench.build(Buildctl, &project, &[])?.fails_with(&[])?;
    project.write("a.tar", &packed)?;
    let run = bench.build(Buildctl, &project, &[])?;
    ensure!(run.status.is_some_and(|s| s.code().is_some()), "{run}");
    // What is no archive at all is copied as it is.
    project.write("a.tar", "just text")?;
    bench.build(Buildctl, &project, &[])?.ok()?;
    Ok(())
}

fn clients_that_vanish(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM scratch\nCOPY . /\n")?;
    for n in 0..40 {
        project.write(&format!("f{n}"), vec![n; 4 << 20])?;
    }
    for (round, wait) in [5_u64, 40, 120, 250].into_iter().enumerate() {
        project.write("round", round.to_string())?;
        for client in [Buildx, Buildctl] {
            let mut command = match client {
                Buildx => bench.buildx.build_command(project.dir(), &[]),
                Buildctl => bench.buildctl.build_command(project.dir(), &[]),
            };
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut client = Reaped(command.spawn()?);
            std::thread::sleep(Duration::from_millis(wait));
            client.signal(Signal::KILL);
            _ = client.0.wait();
        }
    }
    let tree = bench.export(Buildctl, &project, &[])?;
    ensure!(std::fs::read(tree.path().join("f39"))? == vec![39; 4 << 20]);
    bench.daemon.quiet_within(Duration::from_secs(5))
}

fn broken_llb(bench: &Bench) -> Result<()> {
    let base = source("docker-image://docker.io/library/busybox:latest");
    let end = |of: &pb::Op, index| op(vec![input(of, index)], None);
    let file = |action: pb::FileAction, inputs| {
        op(inputs, Some(pb::op::Op::File(pb::FileOp { actions: vec![action] })))
    };
    let action = |input, secondary_input, output| pb::FileAction {
        input,
        secondary_input,
        output,
        action: Some(pb::file_action::Action::Mkdir(pb::FileActionMkDir {
            path: "/x".into(),
            mode: 0o755,
            ..Default::default()
        })),
    };
    let exec = |mounts: Vec<pb::Mount>, network: i32, security: i32| {
        let meta = pb::Meta { args: vec!["true".into()], cwd: "/".into(), ..Default::default() };
        let exec = pb::ExecOp { meta: Some(meta), mounts, network, security, ..Default::default() };
        op(vec![input(&base, 0)], Some(pb::op::Op::Exec(exec)))
    };
    let mount =
        |input, dest: &str, output| pb::Mount { input, dest: dest.into(), output, ..Default::default() };
    let one = |bad: pb::Op| encode(&[base.clone(), bad.clone(), end(&bad, 0)]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("not protobuf", vec![0xff; 64]),
        (
            "an op that is not protobuf",
            pb::Definition { def: vec![vec![0xff; 9]], ..Default::default() }.encode_to_vec(),
        ),
        ("no such output", encode(&[base.clone(), end(&base, 7)])),
        ("a negative output", encode(&[base.clone(), end(&base, -1)])),
        ("an unknown input", encode(&[base.clone(), end(&source("docker-image://other"), 0)])),
        (
            "an op without a kind",
            one(op(vec![input(&base, 0)], Some(pb::op::Op::Build(pb::BuildOp::default())))),
        ),
        ("an unknown scheme", encode(&[source("gopher://x"), end(&source("gopher://x"), 0)])),
        (
            "an image that is no name",
            encode(&[source("docker-image://###"), end(&source("docker-image://###"), 0)]),
        ),
        ("a file input out of range", one(file(action(99, -1, 0), vec![input(&base, 0)]))),
        ("a negative file input", one(file(action(-7, -1, 0), vec![input(&base, 0)]))),
        ("a file output out of range", one(file(action(0, -1, 99), vec![input(&base, 0)]))),
        ("no file action", one(op(vec![input(&base, 0)], Some(pb::op::Op::File(pb::FileOp::default()))))),
        ("a mount of input 99", one(exec(vec![mount(99, "/", 0)], 0, 0))),
        ("a mount of input -5", one(exec(vec![mount(-5, "/", 0)], 0, 0))),
        ("no root mount", one(exec(vec![mount(0, "/x", 0)], 0, 0))),
        ("an unknown network", one(exec(vec![mount(0, "/", 0)], 77, 0))),
        ("an unknown security mode", one(exec(vec![mount(0, "/", 0)], 0, 77))),
        ("security without entitlement", one(exec(vec![mount(0, "/", 0)], 0, 1))),
        (
            "a merge of unknown inputs",
            one(op(
                vec![input(&base, 0)],
                Some(pb::op::Op::Merge(pb::MergeOp {
                    inputs: vec![pb::MergeInput { input: 9 }, pb::MergeInput { input: -3 }],
                })),
            )),
        ),
        (
            "a diff of unknown inputs",
            one(op(
                vec![input(&base, 0)],
                Some(pb::op::Op::Diff(pb::DiffOp {
                    lower: Some(pb::LowerDiffInput { input: 5 }),
                    upper: Some(pb::UpperDiffInput { input: -9 }),
                })),
            )),
        ),
        ("a local source of nobody", encode(&[source("local://nobody"), end(&source("local://nobody"), 0)])),
    ];
    for (name, definition) in cases {
        let run = bench.buildctl.solve(&definition, &[])?;
        run.fails_with(&[]).map_err(|e| e.context(name))?;
    }
    Ok(())
}

fn links_in_the_build_that_lead_out(bench: &Bench) -> Result<()> {
    let victim = tempfile::TempDir::with_prefix("bk-victim-")?;
    let there = victim.path().display();
    let project = Project::new(&format!(
        "FROM busybox AS a\nRUN ln -s {there} /link && ln -s /etc/passwd /file && mkdir /deep && ln -s ../../../../..{there} /deep/up\n\
         COPY Dockerfile /link/planted\nCOPY Dockerfile /deep/up/planted\nWORKDIR /link/dir\n\
         FROM scratch\nCOPY --from=a /link /l\nCOPY --from=a /file /f\n"
    ))?;
    let tree = bench.export(Buildctl, &project, &[])?;
    ensure!(std::fs::read_dir(victim.path())?.next().is_none(), "a build wrote outside its root");
    ensure!(
        !std::fs::read_to_string(tree.path().join("f"))?.contains("systemd"),
        "a build read outside its root"
    );
    Ok(())
}

fn not_even_grpc(bench: &Bench) -> Result<()> {
    use std::io::Write;
    let socket = bench.daemon.addr().trim_start_matches("unix://").to_owned();
    for bytes in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &[0; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket)?;
        _ = stream.write_all(bytes);
    }
    let mut command = bench.buildctl.command(&["debug", "workers"]);
    command.env("X", "y");
    run(command)?.ok()?;
    Ok(())
}

fn pushes_that_are_refused(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM busybox\nCOPY Dockerfile /\n")?;
    for status in [401, 403, 500] {
        let mock = Mock::start(move |request| match request.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            _ => Reply::new(status, r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#),
        })?;
        let name = format!("{}/p/q:r", mock.host());
        let run = bench.build(Buildctl, &project, &[&format!("output=type=image,name={name},push=true")])?;
        run.fails_with(&[&status.to_string()])?;
    }
    Ok(())
}
