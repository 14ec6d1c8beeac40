//! The image on a real Docker engine: built by our daemon and by Docker's own
//! builder, and driven by buildx and by hand as the README says.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::certificates::{Authority, Pair, VALID};
use integration::image::Image;
use integration::{
    Daemon, Dockerd, Net, Options, Project, Registry, Run, Service, places, process, suite, wait_for,
};
use tempfile::TempDir;

/// The engine's own address in its default network.
const GATEWAY: &str = "172.17.0.1";
const PORT: u16 = 5000;
/// A size nobody wants to see exceeded, with programs that are not optimised.
const LIMIT: u64 = 90 << 20;

/// Variants of the image, and the archives they are in.
const VARIANTS: [(&str, &str); 2] = [("root", "image.tar"), ("rootless", "rootless.tar")];

struct Bench {
    engine: Dockerd,
    authority: Authority,
    client: Pair,
    storage: TempDir,
    registry: Service,
    /// The image as an archive.
    archive: TempDir,
}

impl Bench {
    fn start() -> Result<Self> {
        let archive = TempDir::with_prefix("bk-image-")?;
        build_images(archive.path())?;
        let engine = Dockerd::with_networks()?;
        for (_, file) in VARIANTS {
            engine.run(&["load", "--input", &archive.path().join(file).display().to_string()])?.ok()?;
        }
        let (authority, storage) = (Authority::new()?, TempDir::with_prefix("bk-registry-")?);
        let client = authority.sign("client", "DNS:client", VALID)?;
        let registry = registry(&engine, &authority, storage.path())?;
        Ok(Self { engine, authority, client, storage, registry, archive })
    }

    /// Runs `sh` in `project` with this engine.
    fn shell(&self, project: &Project, script: &str) -> Result<Run> {
        let mut command = Command::new("sh");
        self.engine.equip(&mut command);
        command.current_dir(project.dir()).args(["-exc", script]);
        process::run(command)
    }

    fn buildx(&self, args: &[&str]) -> Result<Run> {
        self.engine.run(&[&["buildx"], args].concat())
    }

    /// Builds `project` and gives what `docker run` of it says.
    fn build_and_run(&self, builder: &str, project: &Project) -> Result<String> {
        let (dir, tag) = (project.dir().display().to_string(), format!("made-by-{builder}"));
        self.buildx(&["build", "--builder", builder, "--load", "--tag", &tag, &dir])?.ok()?;
        self.engine.run(&["run", "--rm", &tag])?.ok()
    }
}

/// What the image is made of, in a directory of its own.
fn image_context() -> Result<TempDir> {
    let context = TempDir::with_prefix("bk-image-context-")?;
    let mut copy = Command::new("cp");
    let source = places::workspace();
    copy.arg("-r")
        .args(["Dockerfile", "Makefile", "images"].map(|name| source.join(name)))
        .arg(context.path());
    process::run(copy)?.ok()?;
    Ok(context)
}

/// `make ARGS` there, with the programs under test.
fn make(context: &TempDir, args: &[&str]) -> Result<Command> {
    let mut make = Command::new("make");
    // The programs are built already.
    make.current_dir(context.path()).arg("--old-file=build").args(args);
    make.arg(format!("PROGRAMS={}", places::programs()?.display()));
    Ok(make)
}

/// Builds the images with our daemon.
fn build_images(into: &Path) -> Result<()> {
    let registry = Registry::start()?;
    Image::debian()?.push(registry.host(), "library/debian", "bookworm-slim")?;
    let mirror = Some(registry.host().to_owned());
    let mut daemon = Daemon::start(Options { net: Net::Host, mirror, ..Options::default() })?;
    let buildx = integration::Buildx::new(&daemon)?;
    let context = image_context()?;
    process::run(make(&context, &["image-programs"])?)?.ok()?;
    for ((variant, file), tag) in VARIANTS.into_iter().zip(["local", "rootless"]) {
        let output = format!("type=docker,name=buildkit-cni:{tag},dest={}", into.join(file).display());
        let variant = format!("--build-arg=VARIANT={variant}");
        buildx.build(context.path(), &["--output", &output, &variant])?.ok()?;
    }
    push_image(&registry, &buildx, &context)?;
    daemon.stop()
}

/// Lists the packages that are in a root file system.
const SCANNER: &str = r#"#!/bin/sh
set -e
cd "$BUILDKIT_SCAN_SOURCE/var/lib/dpkg/status.d"
{
    printf '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":'
    printf '{"SPDXID":"SPDXRef-DOCUMENT","spdxVersion":"SPDX-2.3","packages":['
    comma=
    for package in *; do
        field() { sed -n "s/^$1: //p" "$package"; }
        printf '%s{"name":"%s","versionInfo":"%s"}' "$comma" "$(field Package)" "$(field Version)"
        comma=,
    done
    printf ']}}'
} >"$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json"
"#;

/// The image in a registry says how it was made and what is in it.
fn push_image(registry: &Registry, buildx: &integration::Buildx, context: &TempDir) -> Result<()> {
    let scanner =
        Project::new("FROM debian:bookworm-slim\nCOPY --chmod=755 scan /scan\nENTRYPOINT [\"/scan\"]\n")?
            .with("scan", SCANNER)?;
    let (host, name) = (registry.host(), "built/appliance");
    let tool = format!("{host}/tools/scanner");
    buildx.build(scanner.dir(), &["--push", "--tag", &tool])?.ok()?;
    let mut push = make(
        context,
        &[
            "push",
            &format!("IMAGE={host}/{name}:1"),
            &format!("SCANNER={tool}"),
            &format!("BUILDX={}", buildx.program().display()),
        ],
    )?;
    buildx.equip(&mut push);
    process::run({
        push.env("BUILDX_BUILDER", "bench");
        push
    })?
    .ok()?;
    let listed = registry.statement(name, "1", "https://spdx.dev/Document")?;
    let packages = listed["packages"].as_array().context("packages")?;
    for package in ["git", "crun", "nftables", "ca-certificates"] {
        let found = packages.iter().find(|p| p["name"] == package);
        ensure!(found.is_some_and(|p| p["versionInfo"].is_string()), "{package}: {listed}");
    }
    let made = registry.statement(name, "1", "https://slsa.dev/provenance/v1")?;
    let materials = made["buildDefinition"]["resolvedDependencies"].as_array().context("materials")?;
    let is_base = |m: &serde_json::Value| m["uri"].as_str().is_some_and(|uri| uri.contains("debian@"));
    ensure!(materials.iter().any(is_base), "{made}");
    ensure!(made["buildDefinition"]["internalParameters"]["buildConfig"].is_object(), "{made}");
    Ok(())
}

/// A registry that only serves who shows a certificate, in the engine's network.
fn registry(engine: &Dockerd, authority: &Authority, storage: &Path) -> Result<Service> {
    let pair = authority.sign("registry", &format!("IP:{GATEWAY}"), VALID)?;
    let config = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 0.0.0.0:{PORT}\n  \
         tls:\n    certificate: {}\n    key: {}\n    clientcas: [{}]\n",
        storage.display(),
        pair.cert.display(),
        pair.key.display(),
        authority.cert().display()
    );
    let file = storage.join("config.yml");
    std::fs::write(&file, config)?;
    let enter = engine.inside(&["docker-registry", "serve"]);
    let args = enter.get_args().map(ToOwned::to_owned).chain([file.into_os_string()]);
    let args: Vec<_> = args.collect();
    Service::start("docker-registry", Path::new("nsenter"), args, &[], storage.join("log"))
}

fn main() -> ExitCode {
    suite::main(
        Bench::start,
        &[
            ("the_image_is_small_and_complete", image),
            ("docker_builds_it_as_well", stock),
            ("the_commands_of_the_readme", readme),
            ("the_docker_container_driver", driver),
            ("certificates_of_registries_are_obeyed", certificates),
            ("a_container_without_privileges_says_so", privileges),
            ("the_rootless_variant_needs_no_privileges", rootless),
        ],
        |b| {
            // A registry does not mind how it ends.
            drop(b.registry);
            drop(b.engine);
            Ok(())
        },
    )
}

/// Prints what its network is, so that one sees that it ran.
fn project() -> Result<Project> {
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \
        \"/bin/busybox ip -o -4 address show scope global > /network\"]\nCMD [\"/bin/busybox\", \"cat\", \"/network\"]\n";
    let project = Project::new(dockerfile)?.with("busybox", std::fs::read("/bin/busybox")?)?;
    std::fs::set_permissions(project.path("busybox"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(project)
}

fn image(b: &Bench) -> Result<()> {
    let size = std::fs::metadata(b.archive.path().join("image.tar"))?.len();
    println!("the image has {} MiB compressed", size >> 20);
    ensure!(size < LIMIT, "the image has {size} bytes");
    let script = "git --version && ssh -V && nft --version && iptables --version && runc --version && crun --version && \
        buildctl --version && buildkitd --version && /bin/true && test -s /etc/ssl/certs/ca-certificates.crt && \
        test -e /usr/lib/git-core/git-remote-https && /opt/cni/bin/bridge </dev/null | grep -q cniVersion || exit 1";
    let run = b.engine.run(&["run", "--rm", "--entrypoint=/bin/sh", "buildkit-cni:local", "-c", script])?;
    run.ok()?;
    let said = b.engine.run(&["inspect", "buildkit-cni:local"])?.ok()?;
    for part in
        ["/var/lib/buildkit", "Healthcheck", "/usr/bin/buildkitd", "org.opencontainers.image.licenses"]
    {
        ensure!(said.contains(part), "{part}: {said}");
    }
    Ok(())
}

fn stock(_: &Bench) -> Result<()> {
    // One in our own network, where packages can be fetched.
    let engine = Dockerd::start()?;
    let base = places::provided(places::cache().join("images/debian.tar"))?;
    engine.run(&["import", &base.display().to_string(), "debian:bookworm-slim"])?.ok()?;
    let context = image_context()?;
    let mut make = make(&context, &["image", "DOCKER_BUILD=docker build --network=host"])?;
    engine.equip(&mut make);
    process::run(make)?.ok()?;
    let run = engine.run(&["run", "--rm", "--network=none", "buildkit-cni:local", "--version"])?.ok()?;
    ensure!(run.split_whitespace().count() == 4, "{run}");
    Ok(())
}

fn readme(b: &Bench) -> Result<()> {
    let project = project()?;
    let by_hand = places::readme("docker run --detach")?;
    let said = b.shell(&project, &by_hand)?.ok()?;
    ensure!(said.contains("linux/"), "{said}");
    let healthy = || {
        let state =
            b.engine.run(&["inspect", "--format={{.State.Health.Status}}", "buildkitd"]).ok()?.ok().ok()?;
        (state.trim() == "healthy").then_some(())
    };
    wait_for("the container is healthy", Duration::from_secs(60), healthy)?;
    let size = b.engine.run(&["exec", "buildkitd", "sh", "-c", "grep VmRSS /proc/1/status"])?.ok()?;
    println!("idle: {}", size.trim());
    let driver = places::readme("docker buildx create --name appliance --driver docker-container")?;
    b.shell(&project, &driver)?.ok()?;
    b.engine.run(&["rm", "--force", "buildkitd"])?.ok()?;
    b.buildx(&["rm", "appliance"])?.ok()?;
    Ok(())
}

fn driver(b: &Bench) -> Result<()> {
    let create =
        ["create", "--name=driver", "--driver=docker-container", "--driver-opt=image=buildkit-cni:local"];
    let flags = ["--buildkitd-flags=--oci-worker-net=cni", "--bootstrap"];
    b.buildx(&[&create[..], &flags[..]].concat())?.ok()?;
    let said = b.buildx(&["inspect", "driver"])?.ok()?;
    for part in ["running", "v0.32.2", "linux/", "--oci-worker-net=cni", "worker.network"] {
        ensure!(said.contains(part), "{part}: {said}");
    }
    ensure!(b.buildx(&["ls"])?.ok()?.contains("driver"));
    let project = project()?;
    let network = b.build_and_run("driver", &project)?;
    ensure!(network.contains("eth0"), "{network}");
    let bake = "{\"target\": {\"default\": {\"output\": [\"type=cacheonly\"]}}}";
    project.write("docker-bake.json", bake)?;
    let file = project.path("docker-bake.json").display().to_string();
    let dir = project.dir().display().to_string();
    let mut command = b.engine.command(&["buildx", "bake", "--builder=driver", "--file", &file]);
    process::run({
        command.current_dir(&dir);
        command
    })?
    .ok()?;
    ensure!(b.buildx(&["du", "--builder=driver"])?.ok()?.contains("Total:"));
    history(b, "buildx_buildkit_driver0")?;
    b.buildx(&["prune", "--builder=driver", "--all", "--force"])?.ok()?;
    b.buildx(&["stop", "driver"])?.ok()?;
    let state =
        b.engine.run(&["inspect", "--format={{.State.ExitCode}}", "buildx_buildkit_driver0"])?.ok()?;
    ensure!(state.trim() == "0", "stopped with {state}");
    // It starts again, and goes.
    b.build_and_run("driver", &project)?;
    b.buildx(&["rm", "driver"])?.ok()?;
    Ok(())
}

/// Builds are remembered with what they said.
fn history(b: &Bench, container: &str) -> Result<()> {
    let buildctl = |args: &[&str]| b.engine.run(&[&["exec", container, "buildctl", "debug"], args].concat());
    let listed = buildctl(&["histories"])?.ok()?;
    let last = listed.lines().last().and_then(|l| l.split_whitespace().find(|w| w.len() == 25));
    let id = last.context(listed.clone())?;
    buildctl(&["logs", "--progress=plain", id])?.said().map(drop)
}

fn certificates(b: &Bench) -> Result<()> {
    let dir = TempDir::with_prefix("bk-driver-config-")?;
    let host = format!("{GATEWAY}:{PORT}");
    let mirror = "[registry.\"docker.io\"]\n  mirrors = [\"mirror.invalid\"]\n";
    let with = format!(
        "{mirror}[registry.\"{host}\"]\n  ca = [{:?}]\n  [[registry.\"{host}\".keypair]]\n    key = {:?}\n    cert = {:?}\n",
        b.authority.cert(),
        b.client.key,
        b.client.cert
    );
    let without = format!("{mirror}[registry.\"{host}\"]\n  ca = [{:?}]\n", b.authority.cert());
    let project = project()?;
    for (name, config) in [("with", with), ("without", without), ("bare", String::new())] {
        let file = dir.path().join(format!("{name}.toml"));
        std::fs::write(&file, config)?;
        let (file, name_flag) = (format!("--buildkitd-config={}", file.display()), format!("--name={name}"));
        let image = "--driver-opt=image=buildkit-cni:local";
        b.buildx(&["create", &name_flag, "--driver=docker-container", image, &file, "--bootstrap"])?.ok()?;
        let output = format!("--output=type=image,name={host}/{name},push=true");
        let dir = project.dir().display().to_string();
        let push = b.buildx(&["build", &format!("--builder={name}"), &output, &dir])?;
        let pushed = b
            .storage
            .path()
            .join("docker/registry/v2/repositories")
            .join(name)
            .join("_manifests/tags/latest");
        match name {
            "with" => {
                push.ok()?;
                ensure!(pushed.exists());
                let container = format!("buildx_buildkit_{name}0");
                let there = "/etc/buildkit/buildkitd.toml";
                let config = b.engine.run(&["exec", &container, "cat", there])?.ok()?;
                ensure!(
                    config.contains("mirror.invalid") && config.contains("/etc/buildkit/certs/"),
                    "{config}"
                );
            }
            "without" => push.fails_with(&[&host, "wants a client certificate"])?,
            _ => push.fails_with(&[&host, "certificate"])?,
        }
        ensure!(name == "with" || !pushed.exists());
        b.buildx(&["rm", name])?.ok()?;
    }
    Ok(())
}

fn privileges(b: &Bench) -> Result<()> {
    b.engine.run(&["run", "--rm", "buildkit-cni:local"])?.fails_with(&["--privileged"])
}

fn rootless(b: &Bench) -> Result<()> {
    let project = project()?;
    project.write("Dockerfile", "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"chown\", \"7:7\", \"/bin/busybox\"]\n\
        CMD [\"/bin/busybox\", \"stat\", \"-c\", \"owned by %u\", \"/bin/busybox\"]\n")?;
    let manual = places::manual("docs/operation.md", "docker run --detach --name rootless")?;
    b.shell(&project, &manual)?.ok()?;
    let said = b.build_and_run("by-nobody", &project)?;
    ensure!(said.contains("owned by 7"), "{said}");
    let owner = b.engine.run(&["exec", "rootless", "id", "-u"])?.ok()?;
    ensure!(owner.trim() == "1000", "{owner}");
    b.engine.run(&["rm", "--force", "rootless"])?.ok().map(drop)
}
