//! Results in every form, read back by others than ourselves.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use base::Digest;
use integration::bench::Client::{Buildctl, Buildx};
use integration::bench::{names, text};
use integration::layout::{Layout, entries};
use integration::{Bench, Dockerd, Options, Project, suite};
use tempfile::TempDir;

struct Env {
    bench: Bench,
    engine: Dockerd,
}

fn main() -> ExitCode {
    suite::main(
        || Ok(Env { engine: Dockerd::start()?, bench: Bench::start(Options::default())? }),
        &[
            ("image_is_pushed", image_is_pushed),
            ("image_is_pushed_by_digest", image_is_pushed_by_digest),
            ("image_of_many_names", image_of_many_names),
            ("compressions", compressions),
            ("estargz", estargz),
            ("oci_file_and_directory", oci_file_and_directory),
            ("docker_file_loads", docker_file_loads),
            ("local_directory", local_directory),
            ("tar_file", tar_file),
            ("no_result", no_result),
            ("several_at_once", several_at_once),
            ("several_platforms", several_platforms),
            ("metadata", metadata),
            ("reproducible", reproducible),
            ("annotations", annotations),
        ],
        |env| env.bench.finish(),
    )
}

fn project() -> Result<Project> {
    Project::new(
        "FROM busybox\nRUN echo made >/made && rm /etc/group && mkdir -m 700 /d && ln -s made /link && ln /made /hard\n\
         COPY --chown=5:6 given /given\nCMD [\"cat\", \"/made\"]\n",
    )?
    .with("given", "given\n")
}

fn image_is_pushed(env: &Env) -> Result<()> {
    let (project, registry) = (project()?, &env.bench.registry);
    for (client, tag) in [(Buildx, "x"), (Buildctl, "c")] {
        let name = format!("{}/out/image:{tag}", registry.host());
        env.bench.build(client, &project, &[&format!("output=type=image,name={name},push=true")])?.ok()?;
        let (manifest, config) = registry.image("out/image", tag)?;
        let layers = manifest["layers"].as_array().context("layers")?;
        ensure!(
            layers.len() == 3 && config["rootfs"]["diff_ids"].as_array().map(Vec::len) == Some(3),
            "{manifest}"
        );
        // What the base brought is taken over as it is.
        let base = registry.image("library/busybox", "latest")?.0;
        ensure!(layers[0]["digest"] == base["layers"][0]["digest"]);
        let files = |layer: usize| -> Result<_> {
            entries(&registry.blob("out/image", layers[layer]["digest"].as_str().context("digest")?)?)
        };
        let made = files(1)?;
        ensure!(made["made"].data == b"made\n" || made["hard"].data == b"made\n");
        ensure!(made.contains_key("etc/.wh.group") && made["d"].mode & 0o777 == 0o700);
        ensure!(made["link"].kind == tar::EntryType::Symlink, "{:?}", made.keys());
        let given = files(2)?;
        ensure!(given["given"].owner == (5, 6) && given.len() == 1, "{:?}", given.keys());
    }
    Ok(())
}

fn image_is_pushed_by_digest(env: &Env) -> Result<()> {
    let name = format!("{}/out/digest", env.bench.registry.host());
    let output = format!("output=type=image,name={name},push=true,push-by-digest=true");
    let file = TempDir::with_prefix("bk-meta-")?;
    let meta = file.path().join("meta.json");
    let meta_arg = meta.display().to_string();
    env.bench.build(Buildctl, &project()?, &[&output, "--metadata-file", &meta_arg])?.ok()?;
    let meta: serde_json::Value = serde_json::from_slice(&std::fs::read(meta)?)?;
    let digest = meta["containerimage.digest"].as_str().context("no digest in the metadata")?;
    env.bench.registry.manifest("out/digest", digest)?;
    ensure!(env.bench.registry.manifest("out/digest", "latest").is_err(), "a tag was pushed");
    Ok(())
}

fn image_of_many_names(env: &Env) -> Result<()> {
    let host = env.bench.registry.host();
    let output = format!("output=type=image,\"name={host}/out/many:a,{host}/out/others:b\",push=true");
    env.bench.build(Buildx, &project()?, &[&output])?.ok()?;
    let a = env.bench.registry.manifest("out/many", "a")?.0;
    let b = env.bench.registry.manifest("out/others", "b")?.0;
    ensure!(a.body == b.body);
    Ok(())
}

fn compressions(env: &Env) -> Result<()> {
    let (project, host) = (project()?, env.bench.registry.host());
    for (compression, suffix) in [("uncompressed", ".tar"), ("zstd", ".tar+zstd"), ("gzip", ".tar+gzip")] {
        let output = format!(
            "output=type=image,name={host}/out/{compression},push=true,compression={compression},\
             force-compression=true,oci-mediatypes=true"
        );
        env.bench.build(Buildctl, &project, &[&output])?.ok()?;
        let (manifest, _) = env.bench.registry.image(&format!("out/{compression}"), "latest")?;
        for layer in manifest["layers"].as_array().context("layers")? {
            let kind = layer["mediaType"].as_str().unwrap_or_default();
            ensure!(kind.ends_with(suffix), "{compression}: {kind}");
        }
    }
    Ok(())
}

/// Layers with a table of contents, which anybody can read.
fn estargz(env: &Env) -> Result<()> {
    let (project, registry) = (project()?, &env.bench.registry);
    let output = |more: &str| {
        let host = registry.host();
        format!("output=type=image,name={host}/out/seekable,push=true,compression=estargz{more}")
    };
    let plain = output(",oci-mediatypes=false");
    let conflict = "\"compression=estargz\" conflicts with \"oci-mediatypes=false\"";
    env.bench.build(Buildctl, &project, &[&plain])?.fails_with(&[conflict])?;
    env.bench.build(Buildctl, &project, &[&output(",force-compression=true,oci-mediatypes=true")])?.ok()?;
    let (manifest, config) = registry.image("out/seekable", "latest")?;
    let layers = manifest["layers"].as_array().context("layers")?;
    for (at, layer) in layers.iter().enumerate() {
        let text = |key: &str| layer["annotations"][key].as_str().context(key.to_owned());
        let blob = registry.blob("out/seekable", layer["digest"].as_str().context("digest")?)?;
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&*blob), &mut tar)?;
        ensure!(config["rootfs"]["diff_ids"][at] == Digest::of(&tar).as_str(), "layer {at}");
        ensure!(text("io.containers.estargz.uncompressed-size")? == tar.len().to_string(), "layer {at}");
        let footer = &blob[blob.len() - 51..];
        ensure!(&footer[32..38] == b"STARGZ", "layer {at}: {footer:?}");
        let toc = usize::from_str_radix(std::str::from_utf8(&footer[16..32])?, 16)?;
        let found = entries(&blob[toc..])?;
        let toc = found.get("stargz.index.json").context("no table of contents")?;
        ensure!(text("containerd.io/snapshot/stargz/toc.digest")? == Digest::of(&toc.data).as_str());
    }
    let from = Project::new(&format!(
        "FROM {}/out/seekable\nRUN cat /made /given >/both && test ! -e /etc/group\n",
        registry.host()
    ))?;
    let tree = env.bench.export(Buildctl, &from, &[])?;
    ensure!(text(&tree, "both")? == "made\ngiven\n");
    Ok(())
}

fn oci_file_and_directory(env: &Env) -> Result<()> {
    let (project, out) = (project()?, TempDir::with_prefix("bk-out-")?);
    for client in [Buildx, Buildctl] {
        let path = out.path().join("image.tar");
        env.bench.build(client, &project, &[&format!("output=type=oci,dest={}", path.display())])?.ok()?;
        let layout = Layout::open(&path)?;
        let (_, config, layers) = layout.image()?;
        ensure!(layout.json("oci-layout")?["imageLayoutVersion"] == "1.0.0");
        ensure!(layers.len() == 3 && layers[2]["given"].data == b"given\n");
        ensure!(config["config"]["Cmd"] == serde_json::json!(["cat", "/made"]));
        let dir = out.path().join(format!("{client:?}"));
        let output = format!("output=type=oci,tar=false,dest={}", dir.display());
        env.bench.build(client, &project, &[&output])?.ok()?;
        ensure!(
            names(&dir)?.starts_with(&["blobs".to_owned(), "index.json".to_owned()]),
            "{:?}",
            names(&dir)?
        );
    }
    Ok(())
}

fn docker_file_loads(env: &Env) -> Result<()> {
    let (project, out) = (project()?, TempDir::with_prefix("bk-out-")?);
    for client in [Buildx, Buildctl] {
        let path = out.path().join("image.tar");
        let name = format!("loaded-{client:?}").to_lowercase();
        let output = format!("output=type=docker,name={name}:tag,dest={}", path.display());
        env.bench.build(client, &project, &[&output])?.ok()?;
        let said = env.engine.run(&["load", "-i", &path.display().to_string()])?.ok()?;
        ensure!(said.contains(&name), "{said}");
        let inspected = env.engine.run(&["image", "inspect", &format!("{name}:tag")])?.ok()?;
        let image: serde_json::Value = serde_json::from_str(&inspected)?;
        ensure!(image[0]["Config"]["Cmd"] == serde_json::json!(["cat", "/made"]), "{image}");
        let container = env.engine.run(&["create", "--network=none", &format!("{name}:tag")])?.ok()?;
        let tar = out.path().join("export.tar");
        let target = tar.display().to_string();
        env.engine.run(&["export", "-o", &target, container.trim()])?.ok()?;
        let files = entries(&std::fs::read(&tar)?)?;
        ensure!(files["made"].data == b"made\n" || files["hard"].data == b"made\n");
        ensure!(!files.contains_key("etc/group") && files["given"].owner == (5, 6));
    }
    Ok(())
}

fn local_directory(env: &Env) -> Result<()> {
    let project = project()?;
    for client in [Buildx, Buildctl] {
        let tree = env.bench.export(client, &project, &[])?;
        ensure!(text(&tree, "made")? == "made\n" && text(&tree, "given")? == "given\n");
        ensure!(!tree.path().join("etc/group").exists() && tree.path().join("etc/passwd").exists());
        ensure!(std::fs::read_link(tree.path().join("link"))?.as_os_str() == "made");
    }
    Ok(())
}

fn tar_file(env: &Env) -> Result<()> {
    let (project, out) = (project()?, TempDir::with_prefix("bk-out-")?);
    for client in [Buildx, Buildctl] {
        let path = out.path().join("files.tar");
        env.bench.build(client, &project, &[&format!("output=type=tar,dest={}", path.display())])?.ok()?;
        let files = entries(&std::fs::read(&path)?)?;
        ensure!(files["given"].data == b"given\n" && files["given"].owner == (5, 6));
        ensure!(files["d"].mode & 0o777 == 0o700 && files.contains_key("bin/busybox"));
        ensure!(files["hard"].kind == tar::EntryType::Link || files["made"].kind == tar::EntryType::Link);
    }
    // To standard output.
    let run = env.bench.build(
        Buildctl,
        &Project::new("FROM scratch\nCOPY Dockerfile /f\n")?,
        &["output=type=tar"],
    )?;
    ensure!(run.ok()?.contains("FROM scratch"));
    Ok(())
}

fn no_result(env: &Env) -> Result<()> {
    for client in [Buildx, Buildctl] {
        env.bench.build(client, &project()?, &[])?.ok()?;
    }
    env.bench.build(Buildctl, &project()?, &["output=type=nonsense"])?.fails_with(&["nonsense"])
}

fn several_at_once(env: &Env) -> Result<()> {
    let (project, out) = (project()?, TempDir::with_prefix("bk-out-")?);
    let tree = format!("output=type=local,dest={}", out.path().join("tree").display());
    let tar = format!("output=type=tar,dest={}", out.path().join("files.tar").display());
    let image = format!("output=type=image,name={}/out/several,push=true", env.bench.registry.host());
    env.bench.build(Buildctl, &project, &[&tree, &tar, &image])?.ok()?;
    ensure!(text(&out, "tree/given")? == "given\n");
    ensure!(entries(&std::fs::read(out.path().join("files.tar"))?)?.contains_key("given"));
    env.bench.registry.image("out/several", "latest")?;
    Ok(())
}

fn several_platforms(env: &Env) -> Result<()> {
    let project = Project::new("FROM scratch\nARG TARGETPLATFORM\nCOPY f /f\nENV P=$TARGETPLATFORM\n")?
        .with("f", "f")?;
    let output = format!("output=type=image,name={}/out/platforms,push=true", env.bench.registry.host());
    for (client, option) in
        [(Buildx, "--platform=linux/amd64,linux/arm64"), (Buildctl, "--opt=platform=linux/amd64,linux/arm64")]
    {
        env.bench.build(client, &project, &[&output, option])?.ok()?;
        let (_, index) = env.bench.registry.manifest("out/platforms", "latest")?;
        let entries = index["manifests"].as_array().context("no index")?;
        let platforms: Vec<_> = entries.iter().map(|m| m["platform"]["architecture"].clone()).collect();
        ensure!(platforms == ["amd64", "arm64"], "{index}");
        let tree = env.bench.export(client, &project, &[option])?;
        ensure!(names(tree.path())? == ["linux_amd64", "linux_arm64"]);
    }
    Ok(())
}

fn metadata(env: &Env) -> Result<()> {
    let dir = TempDir::with_prefix("bk-meta-")?;
    let path = dir.path().join("meta.json");
    let arg = format!("--metadata-file={}", path.display());
    let output = format!("output=type=image,name={}/out/metadata,push=true", env.bench.registry.host());
    for client in [Buildx, Buildctl] {
        env.bench.build(client, &project()?, &[&output, &arg])?.ok()?;
        let meta: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let digest = env.bench.registry.manifest("out/metadata", "latest")?.0.headers;
        ensure!(
            meta["containerimage.digest"].as_str() == digest.get("docker-content-digest").map(String::as_str),
            "{meta}"
        );
        std::fs::remove_file(&path)?;
    }
    Ok(())
}

fn reproducible(env: &Env) -> Result<()> {
    let host = env.bench.registry.host();
    let project = project()?;
    let mut bodies = Vec::new();
    for round in ["1", "2"] {
        let output =
            format!("output=type=image,name={host}/out/same:{round},push=true,rewrite-timestamp=true");
        env.bench
            .build(Buildctl, &project, &[&output, "no-cache", "build-arg:SOURCE_DATE_EPOCH=1700000000"])?
            .ok()?;
        bodies.push(env.bench.registry.manifest("out/same", round)?.0.body);
    }
    ensure!(bodies[0] == bodies[1], "two builds of the same gave two images");
    Ok(())
}

fn annotations(env: &Env) -> Result<()> {
    let output = format!(
        "output=type=image,name={}/out/annotated,push=true,oci-mediatypes=true,annotation.a=b,annotation-manifest-descriptor.c=d",
        env.bench.registry.host()
    );
    env.bench.build(Buildctl, &project()?, &[&output])?.ok()?;
    let (manifest, _) = env.bench.registry.image("out/annotated", "latest")?;
    ensure!(manifest["annotations"]["a"] == "b", "{manifest}");
    Ok(())
}
