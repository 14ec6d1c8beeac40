//! What is said about results, and what is remembered of builds.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use integration::bench::Client::{Buildctl, Buildx};
use integration::bench::text;
use integration::gateway::{Client, wait};
use integration::image::{self, Image};
use integration::{Bench, Options, Project, suite};
use proto::gateway as msg;
use proto::pb;
use serde_json::{Value, json};
use tempfile::TempDir;

const SLSA: &str = "https://slsa.dev/provenance/v1";
const SPDX: &str = "https://spdx.dev/Document";

struct Env {
    bench: Bench,
    /// With what provenance says of the daemon.
    _dir: TempDir,
}

fn main() -> ExitCode {
    suite::main(
        || {
            let dir = TempDir::with_prefix("bk-env-")?;
            std::fs::write(dir.path().join("a.json"), r#"{"fleet": "north"}"#)?;
            let toml = format!("provenanceEnvDir = {:?}\n", dir.path());
            let bench = Bench::start(Options { toml, ..Options::default() })?;
            Ok(Env { bench, _dir: dir })
        },
        &[
            ("provenance_of_an_image", provenance_of_an_image),
            ("provenance_in_full", provenance_in_full),
            ("provenance_beside_files", provenance_beside_files),
            ("provenance_that_cannot_be", provenance_that_cannot_be),
            ("provenance_of_frontends_in_containers", provenance_of_frontends_in_containers),
            ("what_leads_to_attestations", what_leads_to_attestations),
            ("list_of_contents", list_of_contents),
            ("history_of_builds", history_of_builds),
        ],
        |env| env.bench.finish(),
    )
}

fn project() -> Result<Project> {
    Project::new("FROM busybox\nARG SECRET_OF_MINE\nRUN echo made >/made\nCOPY given /given\n")?
        .with("given", "given\n")
}

/// What is said about the image `name`.
fn said_of(env: &Env, name: &str, kind: &str) -> Result<Value> {
    env.bench.registry.statement(name, "latest", kind)
}

/// What buildx asks for when nobody says anything.
fn provenance_of_an_image(env: &Env) -> Result<()> {
    let output = format!("output=type=image,name={}/out/said,push=true", env.bench.registry.host());
    let options = [&output, "build-arg:SECRET_OF_MINE=hidden", "--provenance=mode=min,inline-only=true"];
    env.bench.build(Buildx, &project()?, &options)?.ok()?;
    let said = said_of(env, "out/said", SLSA)?;
    let definition = &said["buildDefinition"];
    let used = &definition["resolvedDependencies"][0];
    let base = env.bench.registry.manifest("library/busybox", "latest")?.0;
    let digest = image::digest(&base.body);
    ensure!(
        used["uri"].as_str().is_some_and(|u| u.starts_with("pkg:docker/busybox@latest?platform=")),
        "{said}"
    );
    ensure!(used["digest"]["sha256"].as_str().is_some_and(|hex| digest.ends_with(hex)), "{said}");
    let request = &definition["externalParameters"]["request"];
    ensure!(request["frontend"] == "dockerfile.v0", "{said}");
    ensure!(request["locals"].as_array().is_some_and(|locals| locals.len() == 2), "{said}");
    ensure!(definition["internalParameters"]["fleet"] == "north", "{said}");
    // Little is told: nothing of arguments, nothing of the definition.
    ensure!(!said.to_string().contains("hidden"), "{said}");
    ensure!(definition["internalParameters"]["buildConfig"].is_null(), "{said}");
    ensure!(said["runDetails"]["metadata"]["buildkit_completeness"]["request"] == false, "{said}");
    Ok(())
}

fn provenance_in_full(env: &Env) -> Result<()> {
    let output = format!("output=type=image,name={}/out/full,push=true", env.bench.registry.host());
    let full =
        "--opt=attest:provenance=mode=max,version=v0.2,builder-id=https://example.com/me,reproducible=true";
    let options = [output.as_str(), full, "build-arg:SECRET_OF_MINE=told"];
    env.bench.build(Buildctl, &project()?, &options)?.ok()?;
    let said = said_of(env, "out/full", "https://slsa.dev/provenance/v0.2")?;
    ensure!(said["builder"]["id"] == "https://example.com/me", "{said}");
    ensure!(said["invocation"]["parameters"]["args"]["build-arg:SECRET_OF_MINE"] == "told", "{said}");
    ensure!(said["invocation"]["environment"]["fleet"] == "north", "{said}");
    ensure!(said["metadata"]["reproducible"] == true, "{said}");
    let steps = said["buildConfig"]["llbDefinition"].as_array().context("steps")?;
    let ran = steps.iter().any(|step| {
        step["op"]["Op"]["exec"]["meta"]["args"]
            .as_array()
            .is_some_and(|a| a.contains(&"echo made >/made".into()))
    });
    ensure!(
        ran && steps.iter().all(|s| s["op"]["Op"]["source"]["attrs"]["local.session"].is_null()),
        "{said}"
    );
    let metadata = &said["metadata"]["https://mobyproject.org/buildkit@v1#metadata"];
    ensure!(metadata["source"]["infos"][0]["filename"] == "Dockerfile", "{metadata}");
    let layers = metadata["layers"].as_object().context("layers")?;
    let (manifest, _) = env.bench.registry.image("out/full", "latest")?;
    let last = manifest["layers"].as_array().and_then(|l| l.last()).context("layers")?["digest"].clone();
    let found = layers.values().any(|chains| {
        chains[0].as_array().is_some_and(|c| c.last().is_some_and(|layer| layer["digest"] == last))
    });
    ensure!(found, "{metadata} does not have {last}");
    Ok(())
}

fn provenance_beside_files(env: &Env) -> Result<()> {
    let options = ["--opt=attest:provenance=mode=min,filename=how.json"];
    let out = env.bench.export(Buildctl, &project()?, &options)?;
    let said: Value = serde_json::from_str(&text(&out, "how.json")?)?;
    ensure!(said["predicateType"] == SLSA, "{said}");
    let subjects = said["subject"].as_array().context("subjects")?;
    ensure!(subjects.iter().any(|s| s["name"] == "given"), "{said}");
    // What is only for images is not written.
    let out = env.bench.export(Buildctl, &project()?, &["--opt=attest:provenance=inline-only=true"])?;
    ensure!(!out.path().join("provenance.json").exists());
    Ok(())
}

fn provenance_that_cannot_be(env: &Env) -> Result<()> {
    for (option, what) in [
        ("mode=most", "invalid mode \"most\""),
        ("version=v9", "invalid provenance SLSA version: v9"),
        ("complete-materials=true", "provenance materials are incomplete"),
    ] {
        let option = format!("--opt=attest:provenance={option}");
        env.bench.build(Buildctl, &project()?, &[&option])?.fails_with(&[what])?;
    }
    env.bench
        .build(Buildctl, &project()?, &["--opt=attest:other="])?
        .fails_with(&["unknown attestation type"])
}

fn provenance_of_frontends_in_containers(env: &Env) -> Result<()> {
    let host = env.bench.registry.host();
    let frontend = Image::frontend(json!({"moby.buildkit.frontend.caps": image::FRONTEND_CAPS}))?;
    frontend.push(host, "tools/frontend", "1")?;
    let source = format!("{host}/tools/frontend:1");
    let project = Project::new(&format!("# syntax={source}\nnot a Dockerfile at all\n"))?;
    let output = format!("output=type=image,name={host}/out/by-frontend,push=true");
    env.bench.build(Buildctl, &project, &[&output, "--opt=attest:provenance=mode=max"])?.ok()?;
    let said = said_of(env, "out/by-frontend", SLSA)?;
    let definition = &said["buildDefinition"];
    let request = &definition["externalParameters"]["request"];
    ensure!(request["frontend"] == "gateway.v0" && request["args"]["source"] == source, "{said}");
    // The frontend is as much a part of what was built as its base is.
    let used = definition["resolvedDependencies"].as_array().context("dependencies")?;
    let own = image::digest(&frontend.manifest);
    let has = |name: &str, digest: Option<&str>| {
        used.iter().any(|one| {
            one["uri"].as_str().is_some_and(|uri| uri.contains(name))
                && one["digest"]["sha256"].as_str().is_some_and(|hex| digest.is_none_or(|d| d.ends_with(hex)))
        })
    };
    ensure!(has("tools/frontend@1", Some(&own)) && has("busybox@", None), "{said}");
    ensure!(definition["internalParameters"]["buildConfig"]["llbDefinition"].is_array(), "{said}");
    Ok(())
}

/// What a client asks that is to judge an image before it is used.
fn what_leads_to_attestations(env: &Env) -> Result<()> {
    let host = env.bench.registry.host();
    let output = format!("output=type=image,name={host}/out/chained,push=true");
    env.bench.build(Buildctl, &project()?, &[&output, "--opt=attest:provenance=mode=min"])?.ok()?;
    let (answer, index) = env.bench.registry.manifest("out/chained", "latest")?;
    let ask = |name: &str, kinds: &[&str]| {
        let image = msg::ResolveSourceImageRequest {
            no_config: true,
            attestation_chain: true,
            resolve_attestations: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
        };
        let source = pb::SourceOp { identifier: format!("docker-image://{name}"), ..Default::default() };
        let request =
            msg::ResolveSourceMetaRequest { source: Some(source), image: Some(image), ..Default::default() };
        wait(async {
            let client = Client::begin(&env.bench.daemon, "", &[]).await?;
            let answer = client.gateway.client.clone().resolve_source_meta(request).await?.into_inner();
            client.finish().await?;
            Ok(answer.image.context("image")?.attestation_chain)
        })
    };
    let name = format!("{host}/out/chained:latest");
    let chain = ask(&name, &[SLSA])?.context("chain")?;
    ensure!(chain.root == image::digest(&answer.body), "{chain:?}");
    ensure!(index["manifests"][0]["digest"] == chain.image_manifest, "{chain:?}");
    ensure!(index["manifests"][1]["digest"] == chain.attestation_manifest, "{chain:?}");
    // Whoever judges has all of it, and can see that it belongs together.
    for (digest, blob) in &chain.blobs {
        ensure!(image::digest(&blob.data) == *digest, "{digest}");
    }
    let parsed = |digest: &str| -> Result<Value> {
        Ok(serde_json::from_slice(&chain.blobs.get(digest).with_context(|| digest.to_owned())?.data)?)
    };
    ensure!(parsed(&chain.root)? == index);
    let manifest = parsed(&chain.attestation_manifest)?;
    let statement = parsed(manifest["layers"][0]["digest"].as_str().context("layer")?)?;
    ensure!(statement["predicateType"] == SLSA, "{statement}");
    let subject = statement["subject"][0]["digest"]["sha256"].as_str().context("subject")?;
    ensure!(chain.image_manifest.ends_with(subject), "{statement}");
    // Statements nobody asked for stay where they are; an image alone leads nowhere.
    let other = ask(&name, &[SPDX])?.context("chain")?;
    ensure!(other.blobs.len() + 1 == chain.blobs.len(), "{other:?}");
    ensure!(ask("docker.io/library/busybox:latest", &[SLSA])?.is_none());
    Ok(())
}

fn list_of_contents(env: &Env) -> Result<()> {
    let host = env.bench.registry.host();
    let scanner = Project::new("FROM busybox\nCOPY --chmod=755 scan /scan\nENTRYPOINT [\"/scan\"]\n")?.with(
        "scan",
        "#!/bin/sh\nset -e\n[ \"$BUILDKIT_SCAN_COLOUR\" = blue ]\n[ -w /tmp ]\n\
         [ -f $BUILDKIT_SCAN_SOURCE/made ]\n\
         cat >$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json <<END\n\
         {\"_type\":\"https://in-toto.io/Statement/v0.1\",\"predicateType\":\"https://spdx.dev/Document\",\
         \"predicate\":{\"SPDXID\":\"SPDXRef-DOCUMENT\",\"spdxVersion\":\"SPDX-2.2\",\
         \"files\":[{\"SPDXID\":\"SPDXRef-File-1\",\"fileName\":\"/made\"},\
         {\"SPDXID\":\"SPDXRef-File-2\",\"fileName\":\"/nowhere\"}]}}\nEND\n",
    )?;
    let tool = format!("{host}/tools/scanner");
    env.bench.build(Buildctl, &scanner, &[&format!("output=type=image,name={tool},push=true")])?.ok()?;
    let scan = format!("--opt=attest:sbom=generator={tool},COLOUR=blue");
    let output = format!("output=type=image,name={host}/out/listed,push=true");
    env.bench.build(Buildctl, &project()?, &[&output, &scan])?.ok()?;
    let said = said_of(env, "out/listed", SPDX)?;
    let (manifest, _) = env.bench.registry.image("out/listed", "latest")?;
    // The layer of RUN: that of the base is below, that of COPY above.
    let layer = manifest["layers"][1]["digest"].as_str().context("layer")?;
    ensure!(said["files"][0]["comment"] == format!("layerID: {layer}"), "{said}");
    ensure!(said["files"][1]["comment"].is_null(), "{said}");
    ensure!(said["SPDXID"] == "SPDXRef-DOCUMENT", "{said}");
    Ok(())
}

/// The records of builds, as `buildctl` prints them.
fn records(env: &Env) -> Result<Vec<Value>> {
    let text = env.bench.buildctl.run(&["debug", "histories", "--format", "{{json .record}}"])?.ok()?;
    text.lines().filter(|l| !l.is_empty()).map(|l| Ok(serde_json::from_str(l)?)).collect()
}

fn history_of_builds(env: &Env) -> Result<()> {
    env.bench
        .build(Buildctl, &project()?, &["--opt=attest:provenance=builder-id=me", "label:x=history"])?
        .ok()?;
    let broken = Project::new("FROM busybox\nRUN echo why >&2; exit 3 # history\n")?;
    env.bench.build(Buildctl, &broken, &["label:x=history"])?.fails_with(&["exit code: 3"])?;
    let all = records(env)?;
    let of = |failed: bool| {
        let mut found = all.iter().filter(|r| r["FrontendAttrs"]["label:x"] == "history");
        found.rfind(|r| r["error"].is_null() != failed).with_context(|| format!("{all:?}"))
    };
    let get = |record: &Value, descriptor: &Value| -> Result<String> {
        let digest = descriptor["digest"].as_str().with_context(|| record.to_string())?;
        env.bench.buildctl.run(&["debug", "get", digest])?.ok()
    };
    let good = of(false)?;
    let said: Value = serde_json::from_str(&get(good, &good["Result"]["Attestations"][0])?)?;
    ensure!(said["runDetails"]["builder"]["id"] == "me", "{said}");
    ensure!(said["buildDefinition"]["internalParameters"]["buildConfig"].is_object(), "{said}");
    let bad = of(true)?;
    ensure!(!get(bad, &bad["externalError"])?.is_empty());
    let id = bad["Ref"].as_str().with_context(|| bad.to_string())?;
    let shown = env.bench.buildctl.run(&["debug", "logs", "--progress=plain", id])?.said()?;
    ensure!(shown.contains("why"), "{shown}");
    env.bench.buildctl.run(&["debug", "ctl", "--delete", id])?.ok()?;
    ensure!(records(env)?.iter().all(|r| r["Ref"] != id), "a deleted record is listed");
    Ok(())
}
