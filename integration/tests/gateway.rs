//! Frontends that are not built in: the client itself, and programs in
//! containers; and the containers that they open.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use base::failure::Subject;
use base::{Detail, Secret};
use integration::bench::Client::{Buildctl, Buildx};
use integration::gateway::{Client, Process, Running, bind, connect, wait};
use integration::image::{FRONTEND_CAPS, Image};
use integration::{Bench, Options, Project, suite};
use llb::build::{Defaults, Image as Source, Mount, Options as Naming, Run, State};
use proto::gateway as msg;
use proto::gateway::exec_message::Input;
use proto::pb;
use serde_json::json;
use session::client::{Attachables, SecretSource};
use tonic::Code;

fn main() -> ExitCode {
    suite::main(
        || {
            let toml = "insecure-entitlements = [\"network.host\", \"security.insecure\"]\n";
            let bench = Bench::start(Options { toml: toml.to_owned(), ..Options::default() })?;
            let labels = json!({"moby.buildkit.frontend.caps": FRONTEND_CAPS});
            Image::frontend(labels)?.push(bench.registry.host(), "test/frontend", "1")?;
            let isolated = json!({"moby.buildkit.frontend.network.none": "true"});
            Image::frontend(isolated)?.push(bench.registry.host(), "test/isolated", "1")?;
            Ok(bench)
        },
        &[
            ("frontends_in_containers", frontends_in_containers),
            ("frontends_by_syntax", frontends_by_syntax),
            ("frontends_that_fail", frontends_that_fail),
            ("capabilities_of_frontends", capabilities_of_frontends),
            ("containers_of_frontends", containers_of_frontends),
            ("processes_in_containers", processes_in_containers),
            ("terminals", terminals),
            ("signals_and_release", signals_and_release),
            ("mounts_of_containers", mounts_of_containers),
            ("entitlements_of_containers", entitlements_of_containers),
            ("messages_that_make_no_sense", messages_that_make_no_sense),
            ("failed_steps_can_be_entered", failed_steps_can_be_entered),
            ("failed_file_actions_can_be_entered", failed_file_actions_can_be_entered),
            ("results_of_nothing", results_of_nothing),
            ("calls_without_a_build", calls_without_a_build),
        ],
        Bench::finish,
    )
}

fn busybox() -> Result<State> {
    Ok(Source::default().state("busybox")?)
}

fn definition(state: &State) -> Result<pb::Definition> {
    Ok(state.marshal(&Defaults::default())?)
}

fn shell(state: &State, script: &str, mounts: Vec<Mount>) -> llb::build::Exec {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    state.run(Run { args: Some(args), mounts, ..Run::default() })
}

/// A build by the test itself, and a container `c` of busybox in it.
async fn with_container(bench: &Bench, entitlements: &[&str]) -> Result<Client> {
    let client = Client::begin(&bench.daemon, "", entitlements).await?;
    let root = client.gateway.solve(definition(&busybox()?)?, false).await?;
    client.gateway.open("c", vec![bind(&root, "/")]).await?;
    Ok(client)
}

fn external(bench: &Bench, image: &str, opts: &[&str]) -> Result<integration::Run> {
    let source = format!("source={}/test/{image}", bench.registry.host());
    let opts = opts.iter().map(|o| format!("--opt={o}"));
    let out = ["build", "--progress=plain", "--frontend=gateway.v0", "--opt", &source].map(str::to_owned);
    let args: Vec<String> = out.into_iter().chain(opts).collect();
    bench.buildctl.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What the frontend said, in the metadata of the build.
fn said(bench: &Bench, image: &str, opts: &[&str]) -> Result<serde_json::Value> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("metadata.json");
    let source = format!("source={}/test/{image}", bench.registry.host());
    let metadata = format!("--metadata-file={}", file.display());
    let mut args = vec!["build", "--progress=plain", "--frontend=gateway.v0", "--opt", &source, &metadata];
    args.extend(opts.iter().flat_map(|o| ["--opt", o]));
    bench.buildctl.run(&args)?.ok()?;
    Ok(serde_json::from_slice(&std::fs::read(&file)?)?)
}

fn frontends_in_containers(bench: &Bench) -> Result<()> {
    let metadata = said(bench, "frontend:1", &["word=hello"])?;
    // What the step made, the worker's platform, operations in its own definition, no inputs.
    ensure!(metadata.get("frontend.said") == Some(&json!("hello/linux/2/")), "{metadata}");
    let metadata = said(bench, "isolated:1", &["mode=unknown"])?;
    let refused = json!("return reference no-such-result not found");
    ensure!(metadata.get("frontend.refused") == Some(&refused), "{metadata}");
    // By its digest.
    let digest = integration::image::digest(
        &Image::frontend(json!({"moby.buildkit.frontend.caps": FRONTEND_CAPS}))?.manifest,
    );
    said(bench, &format!("frontend:1@{digest}"), &["word=pinned"])?;
    Ok(())
}

fn frontends_by_syntax(bench: &Bench) -> Result<()> {
    let host = bench.registry.host();
    let project = Project::new(&format!("# syntax={host}/test/frontend:1\nnot a Dockerfile at all\n"))?;
    for (client, option) in [(Buildctl, "--opt=word=syntax"), (Buildx, "build-arg:WORD=syntax")] {
        let tree = bench.export(client, &project, &[option])?;
        let made = integration::bench::text(&tree, "made")?;
        ensure!(made.trim() == if client == Buildctl { "syntax" } else { "nothing" }, "{made}");
    }
    // The client can put another image in the place of one.
    let project = Project::new("# syntax=docker/dockerfile:1\nnot a Dockerfile either\n")?;
    let instead = format!("--opt=context:docker/dockerfile:1=docker-image://{host}/test/frontend:1");
    bench.build(Buildctl, &project, &[&instead])?.ok()?;
    Ok(())
}

fn frontends_that_fail(bench: &Bench) -> Result<()> {
    external(bench, "frontend:1", &["mode=exit"])?.fails_with(&["exit code: 3", "this frontend gives up"])?;
    external(bench, "frontend:1", &["mode=error", "word=tea"])?.fails_with(&["no tea here"])?;
    external(bench, "frontend:1", &["mode=silent"])?.fails_with(&["no result for incomplete build"])?;
    external(bench, "nothing:1", &[])?.fails_with(&["test/nothing:1"])?;
    let none = ["build", "--progress=plain", "--frontend=gateway.v0"];
    bench.buildctl.run(&none)?.fails_with(&["no source specified for gateway"])
}

fn capabilities_of_frontends(bench: &Bench) -> Result<()> {
    external(bench, "isolated:1", &["frontend.caps=moby.buildkit.frontend.contexts+forward"])?
        .fails_with(&["unsupported frontend capability moby.buildkit.frontend.contexts"])?;
    external(bench, "frontend:1", &["frontend.caps=moby.buildkit.frontend.contexts+forward"])?.ok()?;
    Ok(())
}

fn containers_of_frontends(bench: &Bench) -> Result<()> {
    let metadata = said(bench, "frontend:1", &["mode=container", "word=greetings"])?;
    ensure!(metadata.get("frontend.said") == Some(&json!("greetings from a container")), "{metadata}");
    Ok(())
}

fn processes_in_containers(bench: &Bench) -> Result<()> {
    wait(async {
        let client = with_container(bench, &[]).await?;
        let gateway = &client.gateway;
        // The first makes the container, the others join it.
        let first =
            gateway.start("c", Process::shell("echo first > /tmp/it; cat /tmp/it; sleep 600")).await?;
        let read = Process { stdin: Some(b"in and out".to_vec()), ..Process::shell("cat; cat /tmp/it >&2") };
        let ended = gateway.exec("c", read).await?;
        ensure!(ended.stdout == "in and out" && ended.code == 0, "{ended:?}");
        let mut who = Process::shell("id -u; pwd; echo $A$PATH");
        who.meta.user = "user".to_owned();
        who.meta.cwd = "/tmp".to_owned();
        who.meta.env = vec!["A=b".to_owned()];
        let told = gateway.exec("c", who).await?.ok()?;
        ensure!(told.starts_with("1000\n/tmp\nb/usr/local/sbin:"), "{told}");
        let failed = gateway.exec("c", Process::shell("exit 7")).await?;
        ensure!(failed.code == 7 && failed.error == "exit code: 7", "{failed:?}");
        let mut nobody = Process::shell("true");
        nobody.meta.user = "nobody-here".to_owned();
        let failed = gateway.exec("c", nobody).await?;
        ensure!(failed.code == 255 && failed.error.contains("nobody-here"), "{failed:?}");
        // What is released is ended, and that is how it went.
        let refused = gateway.release("c").await.err().context("released in peace")?;
        ensure!(refused.message().contains("exit code: 7"), "{refused}");
        let ended = first.end().await?;
        ensure!(ended.code != 0 && ended.error.contains("context canceled"), "{ended:?}");
        client.finish().await
    })
}

fn terminals(bench: &Bench) -> Result<()> {
    wait(async {
        let client = with_container(bench, &[]).await?;
        for _ in 0..2 {
            // The first time it is the first process, then another.
            let shell = Process { tty: true, ..Process::shell("exec sh") };
            let mut shell = client.gateway.start("c", shell).await?;
            let size = |rows, cols| Input::Resize(msg::ResizeMessage { rows, cols });
            shell.tell(size(33, 77)).await?;
            type_until(&mut shell, "stty size; tty; echo T=$TERM", "33 77").await?;
            shell.says("T=xterm").await?;
            shell.tell(size(44, 99)).await?;
            type_until(&mut shell, "stty size", "44 99").await?;
            if client
                .gateway
                .client
                .clone()
                .release_container(msg::ReleaseContainerRequest::default())
                .await
                .is_ok()
            {
                anyhow::bail!("released a container without a name");
            }
            type_line(&shell, "exit 9").await?;
            let ended = shell.end().await?;
            ensure!(ended.code == 9, "{ended:?}");
            client.gateway.release("c").await.err().context("released in peace")?;
            let root = client.gateway.solve(definition(&busybox()?)?, false).await?;
            client.gateway.open("c", vec![bind(&root, "/")]).await?;
            client.gateway.start("c", Process::shell("sleep 600")).await?;
        }
        client.finish().await
    })
}

async fn type_line(shell: &Running, line: &str) -> Result<()> {
    let data = format!("{line}\n").into_bytes();
    shell.tell(Input::File(msg::FdMessage { fd: 0, eof: false, data })).await
}

/// Types a line again until its answer is there: a size takes a moment to arrive.
async fn type_until(shell: &mut Running, line: &str, answer: &str) -> Result<()> {
    let pause = std::time::Duration::from_millis(300);
    for _ in 0..100 {
        type_line(shell, line).await?;
        if let Ok(said) = tokio::time::timeout(pause, shell.says(answer)).await {
            return said;
        }
    }
    anyhow::bail!("{line:?} is never answered with {answer:?}")
}

fn signals_and_release(bench: &Bench) -> Result<()> {
    wait(async {
        let client = with_container(bench, &[]).await?;
        let trap = "trap 'echo caught; exit 42' HUP; echo ready; while true; do sleep 0.1; done";
        let mut first = client.gateway.start("c", Process::shell(trap)).await?;
        first.says("ready").await?;
        let mut second = client.gateway.start("c", Process::shell(trap)).await?;
        second.says("ready").await?;
        let signal = |name: &str| Input::Signal(msg::SignalMessage { name: name.to_owned() });
        second.tell(signal("HUP")).await?;
        let ended = second.end().await?;
        ensure!(ended.code == 42 && ended.stdout.contains("caught"), "{ended:?}");
        first.tell(signal("SIGKILL")).await?;
        let ended = first.end().await?;
        ensure!(ended.code == 137, "{ended:?}");
        // One that was never released ends with the build.
        client
            .gateway
            .open("d", vec![bind(&client.gateway.solve(definition(&busybox()?)?, true).await?, "/")])
            .await?;
        client.gateway.start("d", Process::shell("sleep 600")).await?;
        client.finish().await
    })?;
    bench.daemon.quiet_within(std::time::Duration::from_secs(20))
}

fn mounts_of_containers(bench: &Bench) -> Result<()> {
    wait(async {
        let scope = base::task::Scope::root();
        let mut attachables = Attachables::new();
        attachables.secret("word", SecretSource::Value(Secret::new("mellon")));
        let session = attachables
            .open(connect(&bench.daemon).await?, "", &scope)
            .await
            .map_err(|e| anyhow::anyhow!("{e}"))?;
        let client = Client::begin(&bench.daemon, session.id(), &[]).await?;
        let gateway = &client.gateway;
        let root = gateway.solve(definition(&busybox()?)?, false).await?;
        let data = shell(
            &busybox()?,
            "echo data > /d/file; ln -s /etc/passwd /d/out",
            vec![Mount::new("/d", &State::scratch())],
        );
        let data = gateway.solve(definition(data.mount("/d").context("no mount")?)?, false).await?;
        let mount = |dest: &str, kind: pb::MountType| pb::Mount {
            dest: dest.to_owned(),
            mount_type: kind as i32,
            ..pb::Mount::default()
        };
        let cache = pb::CacheOpt { id: "gateway-test".to_owned(), sharing: 0 };
        let secret = pb::SecretOpt { id: "word".to_owned(), mode: 0o400, ..pb::SecretOpt::default() };
        let mounts = vec![
            bind(&root, "/"),
            pb::Mount { readonly: true, ..bind(&data, "/data") },
            pb::Mount { selector: "file".to_owned(), readonly: true, ..bind(&data, "/one") },
            pb::Mount { cache_opt: Some(cache), ..mount("/cache", pb::MountType::Cache) },
            pb::Mount { secret_opt: Some(secret), ..mount("/secret", pb::MountType::Secret) },
            mount("/memory", pb::MountType::Tmpfs),
        ];
        let host = pb::HostIp { host: "db.test".to_owned(), ip: "10.9.8.7".to_owned() };
        let request = msg::NewContainerRequest {
            container_id: "m".to_owned(),
            mounts,
            hostname: "box".to_owned(),
            extra_hosts: vec![host],
            network: pb::NetMode::None as i32,
            ..msg::NewContainerRequest::default()
        };
        gateway.open_with(request.clone()).await?;
        let twice = gateway.open_with(request).await.err().context("opened twice")?;
        ensure!(twice.code() == Code::AlreadyExists, "{twice}");
        let script = "cat /data/file /one /secret; echo; hostname; grep -c db.test /etc/hosts; \
                      touch /memory/x /cache/x /new; touch /data/x 2>/dev/null || echo readonly; echo $WORD; ls /sys/class/net";
        let mut process = Process::shell(script);
        process.secrets = vec![pb::SecretEnv { id: "word".into(), name: "WORD".into(), optional: false }];
        let told = gateway.exec("m", process).await?.ok()?;
        ensure!(told == "data\ndata\nmellon\nbox\n1\nreadonly\nmellon\nlo\n", "{told}");

        // The files of a container, by the index of the mount.
        let mut client_calls = gateway.client.clone();
        let read = |mount_index: i32, path: &str| {
            let mut calls = client_calls.clone();
            let request = msg::ReadFileRequest {
                r#ref: "m".to_owned(),
                file_path: path.to_owned(),
                mount_index,
                ..msg::ReadFileRequest::default()
            };
            async move { calls.read_file_container(request).await }
        };
        ensure!(read(1, "/file").await?.into_inner().data == b"data\n");
        ensure!(read(0, "/new").await?.into_inner().data.is_empty());
        for (index, path) in [(1, "file"), (9, "/file"), (-1, "/file"), (5, "/x"), (1, "/out")] {
            ensure!(read(index, path).await.is_err(), "{index} {path}");
        }
        let stat = msg::StatFileRequest { r#ref: "m".to_owned(), path: "/out".to_owned(), mount_index: 1 };
        let stat = client_calls.stat_file_container(stat).await?.into_inner().stat.context("no stat")?;
        ensure!(stat.linkname == "/etc/passwd", "{stat:?}");
        let list = msg::ReadDirRequest {
            r#ref: "m".to_owned(),
            dir_path: "/".to_owned(),
            mount_index: 3,
            ..msg::ReadDirRequest::default()
        };
        let list = client_calls.read_dir_container(list).await?.into_inner().entries;
        ensure!(list.iter().map(|e| e.path.as_str()).eq(["x"]), "{list:?}");
        gateway.release("m").await?;

        let missing =
            gateway.open("n", vec![bind(&root, "/"), bind("nothing", "/x")]).await.err().context("opened")?;
        ensure!(
            missing.message()
                == "failed to find ref nothing for \"/x\" mount: return reference nothing not found",
            "{missing}"
        );
        let rootless = gateway.open("n", vec![bind(&root, "/x")]).await;
        ensure!(rootless.is_err(), "a container without a root");
        client.finish().await?;
        session.close().await;
        Ok(())
    })
}

fn entitlements_of_containers(bench: &Bench) -> Result<()> {
    let caps = "grep CapEff /proc/self/status | cut -f 2";
    let open = |network: pb::NetMode, root: &str| msg::NewContainerRequest {
        container_id: "h".to_owned(),
        mounts: vec![bind(root, "/")],
        network: network as i32,
        ..msg::NewContainerRequest::default()
    };
    let insecure = || Process { security: pb::SecurityMode::Insecure as i32, ..Process::shell(caps) };
    wait(async {
        let client = with_container(bench, &[]).await?;
        let refused = client.gateway.exec("c", insecure()).await?;
        ensure!(refused.code == 255 && refused.error == "security.insecure is not allowed", "{refused:?}");
        let told = client.gateway.exec("c", Process::shell(caps)).await;
        // The refused process did not make the container: this one does.
        ensure!(told?.ok()?.trim() == "00000000a80425fb");
        let joined = client.gateway.exec("c", insecure()).await?;
        ensure!(joined.error == "security.insecure is not allowed", "{joined:?}");
        let unknown = client.gateway.exec("c", Process { security: 2, ..Process::shell("true") }).await?;
        ensure!(unknown.error == "invalid security mode 2", "{unknown:?}");
        let root = client.gateway.solve(definition(&busybox()?)?, false).await?;
        client.gateway.open_with(open(pb::NetMode::Host, &root)).await?;
        let refused = client.gateway.exec("h", Process::shell("true")).await?;
        ensure!(refused.error == "network.host is not allowed", "{refused:?}");
        let odd = msg::NewContainerRequest {
            network: 7,
            container_id: "o".into(),
            ..open(pb::NetMode::Host, &root)
        };
        ensure!(client.gateway.open_with(odd).await.is_err_and(|e| e.message().contains("network mode 7")));
        client.finish().await?;

        let client = with_container(bench, &["network.host", "security.insecure"]).await?;
        let told = client.gateway.exec("c", insecure()).await?.ok()?;
        ensure!(told.trim() != "00000000a80425fb", "{told}");
        let root = client.gateway.solve(definition(&busybox()?)?, false).await?;
        client.gateway.open_with(open(pb::NetMode::Host, &root)).await?;
        client.gateway.exec("h", Process::shell("true")).await?.ok()?;
        client.finish().await
    })
}

fn messages_that_make_no_sense(bench: &Bench) -> Result<()> {
    let mut init = msg::InitMessage { container_id: "c".to_owned(), ..msg::InitMessage::default() };
    let eof = Input::File(msg::FdMessage { fd: 0, eof: true, data: Vec::new() });
    wait(async {
        let client = with_container(bench, &[]).await?;
        let send = async |messages: Vec<(&str, Input)>| {
            let messages = messages
                .into_iter()
                .map(|(id, input)| msg::ExecMessage { process_id: id.to_owned(), input: Some(input) });
            let mut calls = client.gateway.client.clone();
            let mut answers = match calls.exec_process(tokio_stream::iter(messages.collect::<Vec<_>>())).await
            {
                Ok(answers) => answers.into_inner(),
                Err(status) => return status,
            };
            loop {
                match answers.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return tonic::Status::ok("the stream has ended"),
                    Err(status) => return status,
                }
            }
        };
        let is = |status: tonic::Status, code: Code, text: &str| {
            ensure!(status.code() == code && status.message().contains(text), "{status:?}");
            Ok(())
        };
        is(send(vec![("", eof.clone())]).await, Code::InvalidArgument, "ProcessID required")?;
        is(send(vec![("x", eof.clone())]).await, Code::NotFound, "IO for process \"x\" not found")?;
        init.container_id = "gone".to_owned();
        let gone = vec![("p", Input::Init(init.clone()))];
        is(send(gone).await, Code::NotFound, "container \"gone\" previously released or not created")?;
        init.container_id = "c".to_owned();
        let unknown = Input::Signal(msg::SignalMessage { name: "WHAT".to_owned() });
        let told = vec![("p", Input::Init(init.clone())), ("p", unknown)];
        is(send(told).await, Code::InvalidArgument, "Unknown signal WHAT")?;
        let twice = vec![("p", Input::Init(init.clone())), ("p", Input::Init(init.clone()))];
        is(send(twice).await, Code::AlreadyExists, "Process p already exists")?;
        let closed = vec![("p", Input::Init(init.clone())), ("p", eof.clone())];
        is(send(closed).await, Code::OutOfRange, "fd 0 unavailable to write")?;
        // Nothing to run is the fault of the process, not of the stream.
        is(send(vec![("p", Input::Init(init))]).await, Code::Ok, "")?;
        client.finish().await
    })
}

/// The ids of inputs and mounts in an error, its operation, and what of that failed.
type Failed = (Vec<String>, Vec<String>, pb::Op, Option<Subject>);

fn solve_detail(status: &tonic::Status) -> Result<Failed> {
    let failure = session::status::from_status(status);
    let found = failure.details().iter().find_map(|d| match d {
        Detail::Solve { inputs, mounts, op, subject, .. } => Some((inputs, mounts, op, subject)),
        _ => None,
    });
    let (inputs, mounts, op, subject) = found.with_context(|| format!("{failure:?} has no detail"))?;
    let op = prost::Message::decode(op.as_slice())?;
    Ok((inputs.clone(), mounts.clone(), op, *subject))
}

fn failed_steps_can_be_entered(bench: &Bench) -> Result<()> {
    wait(async {
        let client = Client::begin(&bench.daemon, "", &[]).await?;
        let gateway = &client.gateway;
        let script = "echo root > /left; echo one > /a/left; echo two > /b/left; false";
        let mounts = vec![
            Mount::new("/a", &State::scratch()),
            Mount::new("/b", &busybox()?).no_output(),
            Mount::new("/c", &busybox()?).readonly(),
        ];
        let failing = definition(shell(&busybox()?, script, mounts).root())?;
        let failed = gateway.solve(failing.clone(), true).await.err().context("solved")?;
        ensure!(failed.message().contains("did not complete successfully: exit code: 1"), "{failed}");
        let (inputs, mounts, op, subject) = solve_detail(&failed)?;
        ensure!((inputs.len(), mounts.len(), subject) == (4, 4, None), "{inputs:?} {mounts:?}");
        let Some(pb::op::Op::Exec(exec)) = op.op else { anyhow::bail!("{op:?} is no process") };
        let entered = exec
            .mounts
            .iter()
            .zip(&mounts)
            .map(|(m, id)| pb::Mount { readonly: m.readonly, ..bind(id, &m.dest) });
        gateway.open("debug", entered.collect()).await?;
        let told =
            gateway.exec("debug", Process::shell("cat /left /a/left /b/left; ls /c/bin/sh")).await?.ok()?;
        ensure!(told == "root\none\ntwo\n/c/bin/sh\n", "{told}");
        gateway.release("debug").await?;
        // As it was before.
        gateway.open("before", vec![bind(inputs.first().context("no root")?, "/")]).await?;
        gateway.exec("before", Process::shell("test ! -e /left")).await?.ok()?;
        gateway.release("before").await?;
        // Asked again, it says the same, and does not run again.
        let id = gateway.solve(failing, false).await?;
        for _ in 0..2 {
            let request = msg::EvaluateRequest { r#ref: id.clone() };
            let again = gateway.client.clone().evaluate(request).await.err().context("made")?;
            ensure!(solve_detail(&again)?.1.len() == 4, "{again}");
        }

        client.finish().await?;

        // What another build keeps is not this one's.
        let other = Client::begin(&bench.daemon, "", &[]).await?;
        let foreign = bind(inputs.first().context("no input")?, "/");
        ensure!(other.gateway.open("x", vec![foreign]).await.is_err(), "entered somebody else's step");
        other.finish().await
    })
}

fn failed_file_actions_can_be_entered(bench: &Bench) -> Result<()> {
    use llb::build::FileAction;
    wait(async {
        let client = Client::begin(&bench.daemon, "", &[]).await?;
        let gateway = &client.gateway;
        let actions = || -> Vec<FileAction> {
            let mkfile = |path: &str, data: &str| FileAction::Mkfile {
                path: path.to_owned(),
                mode: 0o644,
                data: data.as_bytes().to_vec(),
                owner: None,
                created: None,
            };
            let found = FileAction::Mkdir {
                path: "/found".to_owned(),
                mode: 0o755,
                parents: false,
                owner: None,
                created: None,
            };
            vec![found, mkfile("/found/file", "kept"), mkfile("/missing/file", "lost")]
        };
        let failing = definition(&State::scratch().file(actions(), Naming::default()))?;
        let failed = gateway.solve(failing, true).await.err().context("solved")?;
        let (inputs, mounts, op, subject) = solve_detail(&failed)?;
        ensure!(inputs.is_empty() && mounts.len() == 3, "{inputs:?} {mounts:?}");
        ensure!(
            subject == Some(Subject::File(2)) && matches!(op.op, Some(pb::op::Op::File(_))),
            "{subject:?}"
        );
        let root = gateway.solve(definition(&busybox()?)?, false).await?;
        let left = mounts.get(2).context("no mount")?;
        gateway.open("c", vec![bind(&root, "/"), bind(left, "/left")]).await?;
        let told = gateway.exec("c", Process::shell("cat /left/found/file")).await?.ok()?;
        ensure!(told == "kept", "{told}");
        client.finish().await
    })
}

fn results_of_nothing(bench: &Bench) -> Result<()> {
    wait(async {
        let client = Client::begin(&bench.daemon, "", &[]).await?;
        let state = busybox()?;
        let nothing = State::diff(&state, &state, Naming::default());
        let nothing = client.gateway.solve(definition(&nothing)?, true).await?;
        let mut calls = client.gateway.client.clone();
        let list = msg::ReadDirRequest {
            r#ref: nothing.clone(),
            dir_path: "/".into(),
            ..msg::ReadDirRequest::default()
        };
        ensure!(calls.read_dir(list).await?.into_inner().entries.is_empty());
        let read = msg::ReadFileRequest {
            r#ref: nothing,
            file_path: "/x".into(),
            ..msg::ReadFileRequest::default()
        };
        ensure!(calls.read_file(read).await.is_err_and(|e| e.code() == Code::NotFound));
        client.finish().await
    })
}

fn calls_without_a_build(bench: &Bench) -> Result<()> {
    wait(async {
        let channel = connect(&bench.daemon).await?;
        let mut nobody = integration::gateway::Gateway::new(channel, None).client;
        let refused = nobody.ping(msg::PingRequest {}).await.err().context("answered")?;
        ensure!(refused.message().contains("no buildid found in context"), "{refused}");
        Ok(())
    })
}
