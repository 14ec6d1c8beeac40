//! What nerdctl runs and reads, word for word, and a real containerd for what
//! comes out.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use integration::process::PATIENCE;
use integration::{Containerd, Daemon, Net, Options, Project, places, process, suite, wait_for};
use serde_json::Value;

struct Bench {
    daemon: Daemon,
    containerd: Containerd,
}

impl Bench {
    /// `buildctl` as nerdctl calls it.
    fn buildctl(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(places::program("buildctl")?);
        command.env_remove("BUILDKIT_HOST").arg(format!("--addr={}", self.daemon.addr())).args(args);
        Ok(command)
    }
}

fn main() -> ExitCode {
    suite::main(
        || {
            let daemon = Daemon::start(Options { net: Net::Host, ..Options::default() })?;
            Ok(Bench { daemon, containerd: Containerd::start()? })
        },
        &[
            ("finds_the_daemon_and_its_labels", workers),
            ("reads_help_and_version", programs),
            ("builds_into_a_pipe_that_containerd_imports", build),
            ("prunes", prune),
        ],
        |mut b| b.daemon.stop(),
    )
}

fn workers(b: &Bench) -> Result<()> {
    process::run(b.buildctl(&["debug", "workers"])?)?.ok()?;
    // Where nobody listens it goes on looking, without waiting.
    let mut nobody = Command::new(places::program("buildctl")?);
    nobody.args(["--addr", "unix:///run/buildkit-nobody/buildkitd.sock", "debug", "workers"]);
    process::run(nobody)?.fails_with(&["buildkit-nobody"])?;
    let said = process::run(b.buildctl(&["debug", "workers", "--format", "{{json .}}"])?)?.ok()?;
    let workers: Value = serde_json::from_str(&said)?;
    let labels = &workers[0]["labels"];
    ensure!(labels["org.mobyproject.buildkit.worker.executor"] == "oci", "{said}");
    ensure!(labels["org.mobyproject.buildkit.worker.snapshotter"].is_string(), "{said}");
    Ok(())
}

fn programs(_: &Bench) -> Result<()> {
    let run = |arg: &str| {
        let mut command = Command::new(places::program("buildkitd")?);
        command.arg(arg);
        process::run(command)?.ok()
    };
    // Its rootless set-up looks for the word before it asks for that network.
    ensure!(run("--help")?.contains("bridge"));
    let version = run("--version")?;
    let words: Vec<&str> = version.split_whitespace().collect();
    ensure!(words.len() == 4 && words.first() == Some(&"buildkitd"), "{version}");
    ensure!(words.get(2).is_some_and(|v| v.starts_with("v0.")), "{version}");
    Ok(())
}

fn build(b: &Bench) -> Result<()> {
    let dockerfile = "FROM scratch\nARG WHO\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"mkdir\", \"-p\", \"/proc\", \"/dev\"]\n\
        CMD [\"/bin/busybox\", \"echo\", \"built for nerdctl\"]\n";
    let project = Project::new(dockerfile)?.with("busybox", std::fs::read("/bin/busybox")?)?;
    std::fs::set_permissions(project.path("busybox"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let dir = project.dir().display();
    let metadata = project.path("metadata.json");
    let (context, dockerfile) = (format!("--local=context={dir}"), format!("--local=dockerfile={dir}"));
    let metadata_flag = format!("--metadata-file={}", metadata.display());
    let mut command = b.buildctl(&[
        "build",
        "--progress=auto",
        "--frontend=dockerfile.v0",
        &context,
        "--output=type=docker,name=docker.io/library/hello:latest",
        &dockerfile,
        "--opt=filename=Dockerfile",
        "--opt=build-arg:WHO=me",
        "--opt=label:org.example=yes",
        &metadata_flag,
    ])?;
    let archive = project.path("archive.tar");
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&archive)?).stderr(Stdio::piped());
    let mut child = process::Reaped(command.spawn()?);
    let status = wait_for("the build", PATIENCE, || child.0.try_wait().ok().flatten())?;
    ensure!(status.success(), "{status}");
    // This is where `--iidfile` comes from.
    let metadata: Value = serde_json::from_slice(&std::fs::read(metadata)?)?;
    ensure!(
        metadata["containerimage.digest"].as_str().is_some_and(|d| d.starts_with("sha256:")),
        "{metadata}"
    );
    b.containerd.run(&["images", "import", &archive.display().to_string()])?.ok()?;
    let name = "docker.io/library/hello:latest";
    let listed = b.containerd.run(&["images", "list", "--quiet"])?.ok()?;
    ensure!(listed.lines().any(|l| l == name), "{listed}");
    let id = format!("bk-nerdctl-{}", std::process::id());
    let said = b.containerd.run(&["run", "--rm", "--snapshotter=native", name, &id])?;
    ensure!(said.ok()?.contains("built for nerdctl"));
    Ok(())
}

fn prune(b: &Bench) -> Result<()> {
    let project = Project::new("FROM scratch\nCOPY file /\n")?.with("file", "to be pruned")?;
    let dir = project.dir().display();
    let (context, dockerfile) = (format!("--local=context={dir}"), format!("--local=dockerfile={dir}"));
    process::run(b.buildctl(&["build", "--frontend=dockerfile.v0", &context, &dockerfile])?)?.ok()?;
    let said = process::run(b.buildctl(&["prune", "--format={{json .}}", "--all"])?)?.ok()?;
    let records =
        serde_json::Deserializer::from_str(&said).into_iter::<Value>().collect::<Result<Vec<_>, _>>();
    let records = records.with_context(|| said.clone())?;
    ensure!(
        records.iter().all(|r| r["id"].is_string() && r["size"].is_number()) && !records.is_empty(),
        "{said}"
    );
    Ok(())
}
