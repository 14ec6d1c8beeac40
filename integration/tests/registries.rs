//! Registries that fail, lie and hand out what no image is. The error names the
//! image, nothing of it is kept, and the daemon serves on.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Result, ensure};
use integration::bench::Client::{Buildctl, Buildx};
use integration::image::{Image, digest, raw_entry};
use integration::mock::{Mock, Reply, Request};
use integration::{Bench, Options, Project, suite};

fn main() -> ExitCode {
    suite::main(
        || Bench::start(Options::default()),
        &[
            ("unreachable_registry", unreachable_registry),
            ("registry_statuses", registry_statuses),
            ("wrong_digests", wrong_digests),
            ("truncated_blobs", truncated_blobs),
            ("registries_that_recover", registries_that_recover),
            ("manifests_that_are_none", manifests_that_are_none),
            ("layers_that_are_none", layers_that_are_none),
            ("layers_that_reach_out", layers_that_reach_out),
        ],
        Bench::finish_serving,
    )
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
    let mock = serving(parts(&image), move |request, reply| {
        if request.path.contains(&name) && request.method == "GET" { reply.cut() } else { reply }
    })?;
    bench.build(Buildctl, &from(mock.host())?, &[])?.fails_with(&[])?;
    ensure!(mock.seen().len() < 200);
    Ok(())
}

/// What goes away by itself is waited out, and what was got is not asked for again.
fn registries_that_recover(bench: &Bench) -> Result<()> {
    let layer = [raw_entry("big", tar::EntryType::Regular, "", &vec![7; 300_000]), vec![0; 1024]].concat();
    let image = Image::new(&layer, &["x"])?;
    let name = digest(&image.layer);
    for trouble in ["busy", "broken", "cut"] {
        let times = AtomicUsize::new(0);
        let name = name.clone();
        let mock = serving(parts(&image), move |request, reply| {
            if !request.path.contains(&name) || request.method != "GET" || times.fetch_add(1, Relaxed) > 0 {
                return reply;
            }
            match trouble {
                "busy" => Reply::new(429, "{}").header("Retry-After", "1"),
                "broken" => Reply::new(503, ""),
                _ => reply.cut(),
            }
        })?;
        bench.buildctl.run(&["prune", "--all"])?.ok()?;
        bench.build(Buildctl, &copying(mock.host())?, &[])?.ok()?;
    }
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
