//! Everything that comes from outside, at its worst. The daemon says what is
//! wrong, serves on, and keeps nothing half-made.

use std::collections::BTreeMap;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::bench::Client::{Buildctl, Buildx};
use integration::image::{Image, digest};
use integration::mock::{Mock, Reply, Request};
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
            ("unreachable_registry", unreachable_registry),
            ("registry_statuses", registry_statuses),
            ("wrong_digests", wrong_digests),
            ("truncated_blobs", truncated_blobs),
            ("manifests_that_are_none", manifests_that_are_none),
            ("layers_that_are_none", layers_that_are_none),
            ("layers_that_reach_out", layers_that_reach_out),
            ("corrupt_archives", corrupt_archives),
            ("clients_that_vanish", clients_that_vanish),
            ("broken_llb", broken_llb),
            ("links_in_the_build_that_lead_out", links_in_the_build_that_lead_out),
            ("not_even_grpc", not_even_grpc),
            ("pushes_that_are_refused", pushes_that_are_refused),
        ],
        |bench| {
            serves_on(&bench)?;
            bench.finish()
        },
    )
}

/// The daemon is well.
fn serves_on(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM busybox\nRUN cat /proc/sys/kernel/random/uuid\n")?;
    bench.build(Buildctl, &project, &["no-cache"])?.ok()?;
    ensure!(!bench.daemon.log().contains("panicked at"), "{}", bench.daemon.log());
    Ok(())
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

fn unreachable_registry(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM 127.0.0.1:1/nobody/home:v1\n")?;
    for client in [Buildx, Buildctl] {
        bench.build(client, &project, &[])?.fails_with(&["127.0.0.1:1/nobody/home:v1", "refused"])?;
    }
    let nowhere = Project::new("FROM registry.invalid/x:y\n")?;
    bench.build(Buildctl, &nowhere, &[])?.fails_with(&["registry.invalid/x:y"])
}

fn from(host: &str) -> Result<Project> {
    Project::new(&format!("FROM {host}/lie:latest\nRUN true\n"))
}

fn registry_statuses(bench: &Bench) -> Result<()> {
    for (status, part) in
        [(401, "401"), (403, "403"), (404, "not found"), (429, "429"), (500, "500"), (503, "503")]
    {
        let mock =
            Mock::start(move |_| Reply::new(status, r#"{"errors":[{"code":"X","message":"told so"}]}"#))?;
        bench
            .build(Buildctl, &from(mock.host())?, &[])?
            .fails_with(&[&format!("{}/lie:latest", mock.host()), part])?;
        let asked = mock.seen().len();
        ensure!(asked < 100, "{status}: asked {asked} times");
    }
    Ok(())
}

/// Needs the image's files but runs nothing in it.
fn copying(host: &str) -> Result<Project> {
    Project::new(&format!("FROM {host}/lie:latest\nCOPY Dockerfile /\n"))
}

/// What an image is made of, by path below `/v2/lie/`.
type Parts = BTreeMap<String, (&'static str, Vec<u8>)>;

fn parts(image: &Image) -> Parts {
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let blob = "application/octet-stream";
    BTreeMap::from([
        ("manifests/latest".into(), (manifest, image.manifest.clone())),
        (format!("manifests/{}", digest(&image.manifest)), (manifest, image.manifest.clone())),
        (format!("blobs/{}", digest(&image.config)), (blob, image.config.clone())),
        (format!("blobs/{}", digest(&image.layer)), (blob, image.layer.clone())),
    ])
}

/// A registry with these parts; `twist` may change each answer.
fn serving(parts: Parts, twist: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Result<Mock> {
    Mock::start(move |request| {
        let path = request.path.split('?').next().unwrap_or_default().trim_start_matches("/v2/lie/");
        let reply = match parts.get(path) {
            Some((kind, bytes)) => Reply::new(200, bytes.clone())
                .header("Content-Type", kind)
                .header("Docker-Content-Digest", &digest(bytes)),
            None => Reply::new(404, ""),
        };
        twist(request, reply)
    })
}

fn wrong_digests(bench: &Bench) -> Result<()> {
    // Of its own, so that no other case depends on what is made of it.
    let image =
        Image::new(&[raw_entry("own", tar::EntryType::Regular, "", b"x"), vec![0; 1024]].concat(), &["x"])?;
    for part in ["blobs/", "manifests/sha256:"] {
        let mock = serving(parts(&image), move |request, mut reply| {
            if request.path.contains(part)
                && request.method == "GET"
                && let Some(last) = reply.body.last_mut()
            {
                *last ^= 1;
            }
            reply
        })?;
        bench.build(Buildctl, &from(mock.host())?, &[])?.fails_with(&["sha256:"])?;
        // Nothing of the lie is kept: once the registry is honest, all is well.
    }
    let honest = serving(parts(&image), |_, reply| reply)?;
    bench.build(Buildctl, &copying(honest.host())?, &[])?.ok()?;
    Ok(())
}

fn truncated_blobs(bench: &Bench) -> Result<()> {
    let image = Image::new(&vec![0; 1 << 20], &["x"])?;
    let name = digest(&image.layer);
    let mock = serving(parts(&image), move |request, mut reply| {
        if request.path.contains(&name) && request.method == "GET" {
            let whole = reply.body.len();
            reply.body.truncate(whole / 2);
            return reply.claiming(whole);
        }
        reply
    })?;
    bench.build(Buildctl, &from(mock.host())?, &[])?.fails_with(&[])?;
    ensure!(mock.seen().len() < 200);
    Ok(())
}

fn manifests_that_are_none(bench: &Bench) -> Result<()> {
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let index = "application/vnd.oci.image.index.v1+json";
    let loops = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{index}","digest":"sha256:{}","size":5}}]}}"#,
        "0".repeat(64)
    );
    let negative = r#"{"schemaVersion":2,"config":{"digest":"sha256:00","size":-1},"layers":[]}"#;
    let traversal = r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"../../../etc/passwd","size":1},"layers":[]}"#;
    let both = r#"{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}"#;
    for (kind, body) in [
        (manifest, "<html>".to_owned()),
        (manifest, "{}".to_owned()),
        (manifest, "[".repeat(1 << 16)),
        (manifest, negative.to_owned()),
        (manifest, traversal.to_owned()),
        (manifest, both.to_owned()),
        (index, loops),
        (index, r#"{"schemaVersion":2,"manifests":[]}"#.to_owned()),
        ("text/html", "<html>".to_owned()),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}".to_owned()),
    ] {
        let bytes = body.clone().into_bytes();
        let parts = BTreeMap::from([
            ("manifests/latest".to_owned(), (kind, bytes.clone())),
            (format!("manifests/{}", digest(&bytes)), (kind, bytes)),
        ]);
        let mock = serving(parts, |_, reply| reply)?;
        let run = bench.build(Buildctl, &from(mock.host())?, &[])?;
        run.fails_with(&[]).map_err(|e| e.context(format!("{kind}: {body:.80}")))?;
    }
    Ok(())
}

fn layers_that_are_none(bench: &Bench) -> Result<()> {
    let mut zeros = Image::new(&[0; 1024], &["x"])?;
    for layer in [
        b"no gzip at all".to_vec(),
        vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0],
        zeros.layer[..zeros.layer.len() - 4].to_vec(),
    ] {
        let text = String::from_utf8(zeros.manifest.clone())?;
        let size = format!("\"size\":{}", zeros.layer.len());
        let manifest = text
            .replace(&digest(&zeros.layer), &digest(&layer))
            .replace(&size, &format!("\"size\":{}", layer.len()));
        zeros = Image { layer, manifest: manifest.into_bytes(), config: zeros.config };
        let mock = serving(parts(&zeros), |_, reply| reply)?;
        bench.build(Buildctl, &from(mock.host())?, &[])?.fails_with(&[])?;
        zeros = Image::new(&[0; 1024], &["x"])?;
    }
    Ok(())
}

/// A tar file with one entry whose path is written as it is.
fn raw_entry(path: &str, kind: tar::EntryType, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    let name = &mut header.as_old_mut().name;
    let length = path.len().min(name.len());
    name[..length].copy_from_slice(&path.as_bytes()[..length]);
    let target = &mut header.as_old_mut().linkname;
    target[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn layers_that_reach_out(bench: &Bench) -> Result<()> {
    let victim = tempfile::TempDir::with_prefix("bk-victim-")?;
    let outside = victim.path().join("planted").display().to_string();
    let up = format!("{}{}", "../".repeat(12), outside.trim_start_matches('/'));
    let link = |target: &str| raw_entry("l", tar::EntryType::Symlink, target, &[]);
    let directory = victim.path().display().to_string();
    for tar in [
        raw_entry(&up, tar::EntryType::Regular, "", b"x"),
        raw_entry(&outside, tar::EntryType::Regular, "", b"x"),
        [link(&directory), raw_entry("l/planted", tar::EntryType::Regular, "", b"x")].concat(),
        [
            link(&format!("{}{}", "../".repeat(12), directory.trim_start_matches('/'))),
            raw_entry("l/planted", tar::EntryType::Regular, "", b"x"),
        ]
        .concat(),
        raw_entry("h", tar::EntryType::Link, "../../../../../../../../etc/passwd", &[]),
        [link(&directory), raw_entry("l/.wh..wh..opq", tar::EntryType::Regular, "", b"")].concat(),
        raw_entry(".wh...", tar::EntryType::Regular, "", b""),
    ] {
        let mut whole = tar;
        whole.resize(whole.len() + 1024, 0);
        let image = Image::new(&whole, &["x"])?;
        let mock = serving(parts(&image), |_, reply| reply)?;
        // Whether the layer is refused or put in its place does not matter.
        let project = copying(mock.host())?;
        let out = tempfile::TempDir::with_prefix("bk-out-")?;
        let output = format!("output=type=tar,dest={}", out.path().join("t").display());
        let run = bench.build(Buildctl, &project, &[&output])?;
        ensure!(run.status.is_some(), "hung: {run}");
        ensure!(!victim.path().join("planted").exists(), "a layer wrote outside its root");
    }
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

fn encode(ops: &[pb::Op]) -> Vec<u8> {
    pb::Definition { def: ops.iter().map(Message::encode_to_vec).collect(), ..pb::Definition::default() }
        .encode_to_vec()
}

fn op(inputs: Vec<pb::Input>, op: Option<pb::op::Op>) -> pb::Op {
    pb::Op { inputs, op, ..pb::Op::default() }
}

fn source(identifier: &str) -> pb::Op {
    let source = pb::SourceOp { identifier: identifier.into(), ..pb::SourceOp::default() };
    op(Vec::new(), Some(pb::op::Op::Source(source)))
}

fn input(of: &pb::Op, index: i64) -> pb::Input {
    pb::Input { digest: digest(&of.encode_to_vec()), index }
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
