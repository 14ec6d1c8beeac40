//! Every instruction of a Dockerfile, with both clients.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use integration::bench::Client::{Buildctl, Buildx};
use integration::bench::{names, text};
use integration::image::Image;
use integration::{Bench, Options, Project, suite};

fn main() -> ExitCode {
    let options = Options {
        // Some cases ask for the host's network.
        toml: "insecure-entitlements = [\"network.host\", \"security.insecure\"]".into(),
        ..Options::default()
    };
    suite::main(
        || Bench::start(options),
        &[
            ("stages", stages),
            ("scratch", scratch),
            ("args_and_environment", args_and_environment),
            ("copy_wildcards_and_attributes", copy_wildcards_and_attributes),
            ("copy_from_image", copy_from_image),
            ("copy_links_and_modes", copy_links_and_modes),
            ("add_unpacks_local_archives", add_unpacks_local_archives),
            ("run_in_every_form", run_in_every_form),
            ("heredocs", heredocs),
            ("user_and_workdir", user_and_workdir),
            ("cache_mounts", cache_mounts),
            ("bind_and_tmpfs_mounts", bind_and_tmpfs_mounts),
            ("secrets", secrets),
            ("ssh_agents", ssh_agents),
            ("networks", networks),
            ("container_surroundings", container_surroundings),
            ("system_calls_stay_filtered", system_calls_stay_filtered),
            ("a_distribution_as_base", a_distribution_as_base),
            ("image_config", image_config),
            ("healthcheck_and_onbuild", healthcheck_and_onbuild),
            ("dockerignore", dockerignore),
            ("named_contexts", named_contexts),
            ("no_cache", no_cache),
            ("failures_show_the_place", failures_show_the_place),
            ("a_failing_run_shows_its_output", a_failing_run_shows_its_output),
            ("another_dockerfile", another_dockerfile),
        ],
        Bench::finish,
    )
}

fn stages(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS one\nRUN echo one >/out\n\
         FROM busybox AS unused\nRUN exit 1\n\
         FROM one AS two\nRUN echo two >>/out\n\
         FROM scratch AS last\nCOPY --from=two /out /out\nCOPY --from=0 /out /first\n",
    )?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        ensure!(text(&tree, "out")? == "one\ntwo\n");
        ensure!(text(&tree, "first")? == "one\n");
        ensure!(names(tree.path())? == ["first", "out"]);
        let tree = bench.export(client, &project, &["target=one"])?;
        ensure!(text(&tree, "out")? == "one\n" && tree.path().join("bin/busybox").exists());
        bench.build(client, &project, &["target=three"])?.fails_with(&["three", "not"])?;
    }
    Ok(())
}

fn scratch(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM scratch\nCOPY a /b/\n")?.with("a", "x")?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        ensure!(text(&tree, "b/a")? == "x");
    }
    Ok(())
}

fn args_and_environment(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "ARG BASE=nothing\nARG GLOBAL=g\nFROM ${BASE} AS build\nARG GLOBAL\nARG GIVEN=default\nARG UNSET\n\
         ENV A=1 B=\"two words\"\nENV C=${A}-${GIVEN:+given} D=${UNSET:-fallback}\nENV E old style\n\
         RUN echo \"$GLOBAL|$GIVEN|$A|$B|$C|$D|$E|$TARGETARCH\" >/out && env | sort >/env\n\
         FROM scratch\nCOPY --from=build /out /env /\n",
    )?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &["build-arg:BASE=busybox", "build-arg:GIVEN=mine"])?;
        // TARGETARCH is only there for those who declare it.
        ensure!(
            text(&tree, "out")? == "g|mine|1|two words|1-given|fallback|old style|\n",
            "{}",
            text(&tree, "out")?
        );
        let env = text(&tree, "env")?;
        ensure!(env.contains("\nGIVEN=mine\n") && !env.contains("BASE=") && !env.contains("UNSET"), "{env}");
    }
    Ok(())
}

fn copy_wildcards_and_attributes(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS build\nWORKDIR /w\nCOPY *.txt d?r/ ./in/\nCOPY --chown=user:staff --chmod=640 a.txt own\n\
         COPY --chown=7:8 dir nested\nCOPY [\"with space\", \"/w/sp\"]\nCOPY --chmod=u+x,g-r a.txt symbolic\n\
         RUN stat -c '%u:%g %a' own nested/sub/y symbolic >/stat\n\
         FROM scratch\nCOPY --from=build /w /stat /\n",
    )?
    .with("a.txt", "a")?
    .with("b.txt", "b")?
    .with("c.md", "c")?
    .with("with space", "s")?
    .with("dir/sub/y", "y")?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        ensure!(names(&tree.path().join("in"))? == ["a.txt", "b.txt", "sub"], "{:?}", names(tree.path())?);
        ensure!(text(&tree, "nested/sub/y")? == "y" && text(&tree, "sp")? == "s");
        ensure!(text(&tree, "stat")? == "1000:50 640\n7:8 644\n0:0 704\n", "{}", text(&tree, "stat")?);
    }
    // A pattern may match nothing as long as it is a pattern.
    let nothing = Project::new("FROM busybox\nCOPY nothing*here /\n")?;
    bench.build(Buildctl, &nothing, &[])?.ok()?;
    Ok(())
}

fn copy_from_image(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM scratch\nCOPY --from=busybox:latest /etc/passwd /p\n")?;
    let tree = bench.export(Buildx, &project, &[])?;
    ensure!(text(&tree, "p")?.starts_with("root:"));
    let missing = Project::new("FROM scratch\nCOPY --from=nobody/knows:this /x /x\n")?;
    bench.build(Buildctl, &missing, &[])?.fails_with(&["nobody/knows:this"])
}

fn copy_links_and_modes(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "# syntax-less\nFROM busybox AS build\nCOPY --link tree /l/tree\nCOPY --parents tree/./deep/file /parents/\n\
         COPY --exclude=*.skip tree /excluded\n\
         FROM scratch\nCOPY --from=build /l /l\nCOPY --from=build /parents /parents\nCOPY --from=build /excluded /excluded\n",
    )?
    .with("tree/deep/file", "f")?
    .with("tree/no.skip", "n")?;
    std::os::unix::fs::symlink("deep/file", project.path("tree/link"))?;
    std::os::unix::fs::symlink("/etc/passwd", project.path("tree/outside"))?;
    std::fs::set_permissions(project.path("tree/deep/file"), std::fs::Permissions::from_mode(0o4751))?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        let at = |path: &str| tree.path().join(path);
        ensure!(std::fs::read_link(at("l/tree/link"))?.as_os_str() == "deep/file");
        ensure!(std::fs::read_link(at("l/tree/outside"))?.as_os_str() == "/etc/passwd");
        ensure!(std::fs::metadata(at("l/tree/deep/file"))?.mode() & 0o7777 == 0o4751);
        ensure!(text(&tree, "parents/deep/file")? == "f");
        ensure!(names(&at("excluded"))? == ["deep", "link", "outside"]);
    }
    Ok(())
}

fn add_unpacks_local_archives(bench: &Bench) -> Result<()> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o600);
    header.set_uid(3);
    header.set_gid(4);
    tar.append_data(&mut header, "d/f", &b"hi"[..])?;
    let plain = tar.into_inner()?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain)?;
    let project = Project::new(
        "FROM busybox AS build\nADD plain.tar packed.tar.gz /both/\nADD plain.tar /plain/\nCOPY plain.tar /copied/\n\
         ADD --unpack=false packed.tar.gz /kept/\n\
         RUN stat -c '%u:%g %a %s' /both/d/f /copied/plain.tar >/stat && ls /kept >>/stat\n\
         FROM scratch\nCOPY --from=build /stat /plain/ /\n",
    )?
    .with("plain.tar", &plain)?
    .with("packed.tar.gz", gzip.finish()?)?;
    let tree = bench.export(Buildx, &project, &[])?;
    let want = format!("3:4 600 2\n0:0 644 {}\npacked.tar.gz\n", plain.len());
    ensure!(text(&tree, "stat")? == want, "{}", text(&tree, "stat")?);
    ensure!(text(&tree, "d/f")? == "hi");
    Ok(())
}

fn run_in_every_form(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS build\nRUN echo shell $HOME >/shell\nRUN [\"sh\", \"-c\", \"echo exec >/exec\"]\n\
         SHELL [\"/bin/sh\", \"-ec\"]\nRUN false || true; echo other >/other\n\
         RUN echo a \\\n  # a comment in between\n  b >/lines\n\
         FROM scratch\nCOPY --from=build /shell /exec /other /lines /\n",
    )?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        ensure!(text(&tree, "shell")? == "shell /root\n");
        ensure!(text(&tree, "exec")? == "exec\n");
        ensure!(text(&tree, "other")? == "other\n");
        ensure!(text(&tree, "lines")? == "a   b\n" || text(&tree, "lines")? == "a b\n");
    }
    Ok(())
}

fn heredocs(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS build\nARG name=value\nRUN <<EOF\nset -e\necho one >/run\necho two >>/run\nEOF\n\
         RUN <<'EOF' cat >/quoted\n$name\nEOF\n\
         RUN <<FILE sh\n#!/bin/sh\necho by $name >/script\nFILE\n\
         COPY <<EOF /plain\nname is $name\nEOF\n\
         COPY <<\"A\" <<-B /two/\nraw $name\nA\n\t\tstripped\nB\n\
         FROM scratch\nCOPY --from=build /run /quoted /script /plain /two /\n",
    )?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        ensure!(text(&tree, "run")? == "one\ntwo\n");
        ensure!(text(&tree, "quoted")? == "$name\n");
        ensure!(text(&tree, "script")? == "by value\n");
        ensure!(text(&tree, "plain")? == "name is value\n");
        ensure!(text(&tree, "A")? == "raw $name\n" && text(&tree, "B")? == "stripped\n");
    }
    Ok(())
}

fn user_and_workdir(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS build\nWORKDIR /a\nWORKDIR b/../c\nENV D=dir\nWORKDIR $D\nRUN pwd >/tmp/where\nUSER user\n\
         RUN id -u >/tmp/id; id -g >>/tmp/id; echo $HOME >>/tmp/id\nUSER 12:34\nRUN id -u >/tmp/n; id -g >>/tmp/n\n\
         WORKDIR /made\nUSER 0\nRUN stat -c %u /made >/tmp/made\n\
         FROM scratch\nCOPY --from=build /tmp /\n",
    )?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        ensure!(text(&tree, "where")? == "/a/c/dir\n");
        ensure!(text(&tree, "id")? == "1000\n1000\n/home\n", "{}", text(&tree, "id")?);
        ensure!(text(&tree, "n")? == "12\n34\n");
        ensure!(text(&tree, "made")? == "12\n", "a working directory is the user's");
    }
    let unknown = Project::new("FROM busybox\nUSER nobody-here\nRUN id\n")?;
    bench.build(Buildx, &unknown, &[])?.fails_with(&["nobody-here"])
}

fn cache_mounts(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS build\nARG ROUND\n\
         RUN --mount=type=cache,target=/c,id=cache-mounts echo $ROUND >>/c/rounds && cat /c/rounds >/out\n\
         RUN --mount=type=cache,target=/c,id=cache-mounts,readonly sh -c '! touch /c/x 2>/dev/null'\n\
         RUN --mount=type=cache,target=/own,uid=5,gid=6,mode=0700,id=cache-own stat -c '%u:%g %a' /own >>/out\n\
         RUN --mount=type=cache,target=/l,id=cache-locked,sharing=locked echo locked >/l/f\n\
         RUN --mount=type=cache,target=/p,id=cache-private,sharing=private ls /p >>/out\n\
         RUN test ! -e /c/rounds\n\
         FROM scratch\nCOPY --from=build /out /\n",
    )?;
    let first = bench.export(Buildx, &project, &["build-arg:ROUND=1"])?;
    ensure!(text(&first, "out")? == "1\n5:6 700\n", "{}", text(&first, "out")?);
    let second = bench.export(Buildctl, &project, &["build-arg:ROUND=2"])?;
    ensure!(text(&second, "out")? == "1\n2\n5:6 700\n", "{}", text(&second, "out")?);
    Ok(())
}

fn bind_and_tmpfs_mounts(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS tools\nRUN echo tool >/tool\n\
         FROM busybox AS build\n\
         RUN --mount=target=/src cat /src/data/x >/out && ! touch /src/y 2>/dev/null\n\
         RUN --mount=type=bind,source=data,target=/d,rw touch /d/new && ls /d >>/out\n\
         RUN --mount=from=tools,source=/tool,target=/t cat /t >>/out\n\
         RUN --mount=type=tmpfs,target=/scratch,size=1m echo x >/scratch/f && grep ' /scratch tmpfs' /proc/mounts\n\
         RUN test ! -e /scratch/f && test ! -e /d/new\n\
         FROM scratch\nCOPY --from=build /out /\n",
    )?
    .with("data/x", "from context\n")?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        ensure!(text(&tree, "out")? == "from context\nnew\nx\ntool\n", "{}", text(&tree, "out")?);
    }
    Ok(())
}

fn secrets(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS build\n\
         RUN --mount=type=secret,id=token cat /run/secrets/token >/out && stat -c '%u %a' /run/secrets/token >>/out\n\
         RUN --mount=type=secret,id=token,target=/x/y,uid=9,mode=0440 stat -c '%u %a' /x/y >>/out\n\
         RUN --mount=type=secret,id=token,env=TOKEN echo env $TOKEN >>/out\n\
         RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent\n\
         RUN test ! -e /run/secrets/token\n\
         FROM scratch\nCOPY --from=build /out /\n",
    )?
    .with("secret.txt", "hush\n")?;
    let secret = format!("secret=id=token,src={}", project.path("secret.txt").display());
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[&secret])?;
        ensure!(text(&tree, "out")? == "hush\n0 400\n9 440\nenv hush\n", "{}", text(&tree, "out")?);
    }
    let required = Project::new("FROM busybox\nRUN --mount=type=secret,id=must,required true\n")?;
    bench.build(Buildx, &required, &[])?.fails_with(&["must", "not found"])?;
    ensure!(!bench.daemon.log().contains("hush"), "the secret is in the daemon's log");
    Ok(())
}

struct Agent(std::process::Child);

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn ssh_agents(bench: &Bench) -> Result<()> {
    let dir = tempfile::TempDir::with_prefix("bk-ssh-")?;
    let key = dir.path().join("key");
    let mut make = std::process::Command::new("ssh-keygen");
    make.args(["-q", "-t", "ed25519", "-N", "", "-C", "build@key", "-f"]).arg(&key);
    integration::process::run(make)?.ok()?;
    let project = Project::new(
        "FROM busybox AS build\nRUN --mount=type=ssh test -S \"$SSH_AUTH_SOCK\" && stat -c '%u %a' $SSH_AUTH_SOCK >/out\n\
         RUN --mount=type=ssh,uid=1000,mode=0666,target=/agent test -S /agent && stat -c '%u %a' /agent >>/out\n\
         RUN test -z \"$SSH_AUTH_SOCK\"\n\
         FROM scratch\nCOPY --from=build /out /\n",
    )?;
    let socket = dir.path().join("agent");
    let mut serve = std::process::Command::new("ssh-agent");
    serve.arg("-D").arg("-a").arg(&socket);
    let _agent = Agent(serve.stdout(std::process::Stdio::null()).spawn()?);
    integration::process::wait_for("the agent", std::time::Duration::from_secs(10), || {
        socket.exists().then_some(())
    })?;
    let mut add = std::process::Command::new("ssh-add");
    add.arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket);
    integration::process::run(add)?.ok()?;
    for (client, source) in [(Buildx, &key), (Buildctl, &key), (Buildctl, &socket)] {
        let ssh = format!("ssh=default={}", source.display());
        let tree = bench.export(client, &project, &[&ssh])?;
        ensure!(text(&tree, "out")? == "0 600\n1000 666\n", "{}", text(&tree, "out")?);
    }
    let required = Project::new("FROM busybox\nRUN --mount=type=ssh,required true\n")?;
    bench.build(Buildctl, &required, &[])?.fails_with(&["ssh"])
}

fn networks(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS build\nRUN ip -o link | cut -d: -f2 | cut -d@ -f1 | sort | xargs >/default\n\
         RUN --network=none ls /sys/class/net | sort | xargs >/none\n\
         RUN --network=default ip route >/routes\n\
         FROM busybox AS host\nRUN --network=host ip -o link | wc -l >/host\n\
         FROM scratch AS plain\nCOPY --from=build /default /none /routes /\n\
         FROM scratch AS all\nCOPY --from=host /host /\n",
    )?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &["target=plain", "no-cache"])?;
        ensure!(
            ["eth0 lo\n", "eth1 lo\n"].contains(&&*text(&tree, "default")?),
            "{}",
            text(&tree, "default")?
        );
        ensure!(text(&tree, "none")? == "lo\n", "{}", text(&tree, "none")?);
        ensure!(text(&tree, "routes")?.contains("default via"));
        let tree = bench.export(client, &project, &["target=all", "allow=network.host"])?;
        let links = std::fs::read_dir("/sys/class/net")?.count();
        ensure!(text(&tree, "host")?.trim().parse::<usize>()? >= links.min(1));
        bench.build(client, &project, &["target=all", "no-cache"])?.fails_with(&["network.host"])?;
    }
    Ok(())
}

fn container_surroundings(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS build\nRUN hostname >/out; cat /etc/hosts >>/out; test -s /etc/resolv.conf\n\
         RUN cat /proc/1/comm >>/out; test -c /dev/null && test -c /dev/tty; mount | grep -c ' on /proc' >/dev/null\n\
         RUN ! mount -t tmpfs none /mnt 2>/dev/null; grep CapEff /proc/self/status >>/out\n\
         RUN umask >>/out; ! echo x 2>/dev/null >/proc/sys/kernel/hostname\n\
         FROM scratch\nCOPY --from=build /out /\n",
    )?;
    let tree = bench.export(Buildx, &project, &["no-cache"])?;
    let out = text(&tree, "out")?;
    ensure!(out.starts_with("buildkitsandbox\n"), "{out}");
    ensure!(out.contains("127.0.0.1\tlocalhost") && out.contains("buildkitsandbox"), "{out}");
    ensure!(out.contains("CapEff:\t00000000a80425fb") && out.contains("0022"), "{out}");
    Ok(())
}

/// Later steps get the filter in another form than the first: it has to forbid the same.
fn system_calls_stay_filtered(bench: &Bench) -> Result<()> {
    let step = "RUN grep ^Seccomp /proc/self/status >>/out; unshare -U true 2>/dev/null && echo open >>/out || true\n";
    let project = Project::new(&format!(
        "FROM busybox AS build\n{}FROM scratch\nCOPY --from=build /out /\n",
        step.repeat(4)
    ))?;
    let tree = bench.export(Buildctl, &project, &["no-cache"])?;
    let out = text(&tree, "out")?;
    let words: Vec<&str> = out.split_whitespace().collect();
    ensure!(words == ["Seccomp:", "2", "Seccomp_filters:", "1"].repeat(4), "{out}");
    Ok(())
}

/// A base of thousands of files with owners, links and a package database that can tell
/// whether each of them arrived as it was packed.
fn a_distribution_as_base(bench: &Bench) -> Result<()> {
    Image::debian()?.push(bench.registry.host(), "library/debian", "small")?;
    let project = Project::new(
        "FROM debian:small AS build\nRUN dpkg --verify >/verified && dpkg-query -W -f '${Package}\\n' | grep -x dpkg\n\
         RUN useradd --create-home --uid 1234 builder && chown builder: /verified\nUSER builder\nWORKDIR /home/builder\n\
         RUN id -un >name && stat -c %U /verified >>name && perl -e 'print \"perl\\n\"' >>name\n\
         FROM scratch\nCOPY --from=build /verified /home/builder/name /\n",
    )?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        ensure!(text(&tree, "name")? == "builder\nbuilder\nperl\n");
        // Documentation that was left out of the image is missing; nothing may have changed.
        let changed: Vec<String> = text(&tree, "verified")?
            .lines()
            .filter(|l| !l.starts_with("missing"))
            .map(str::to_owned)
            .collect();
        ensure!(changed.is_empty(), "{changed:?}");
    }
    Ok(())
}

fn image_config(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox\nMAINTAINER somebody\nLABEL a=b \"c d\"=\"e f\"\nENV X=y\nEXPOSE 80 53/udp\nVOLUME /data [\"/more\"]\n\
         VOLUME [\"/json\"]\nUSER daemon\nWORKDIR /w\nENTRYPOINT [\"/entry\", \"arg\"]\nCMD echo shell\nSTOPSIGNAL SIGUSR1\n",
    )?;
    for (client, tag) in [(Buildx, "config-x"), (Buildctl, "config-c")] {
        let name = format!("{}/test/config:{tag}", bench.registry.host());
        let output = format!("output=type=image,name={name},push=true");
        bench.build(client, &project, &[&output, "label:given=here"])?.ok()?;
        let (_, config) = bench.registry.image("test/config", tag)?;
        let c = &config["config"];
        ensure!(config["author"] == "somebody", "{config}");
        ensure!(c["Labels"] == serde_json::json!({"a": "b", "c d": "e f", "given": "here"}), "{c}");
        ensure!(c["Env"].as_array().is_some_and(|e| e.iter().any(|v| v == "X=y")), "{c}");
        ensure!(c["ExposedPorts"] == serde_json::json!({"80/tcp": {}, "53/udp": {}}), "{c}");
        ensure!(c["Volumes"].get("/json").is_some() && c["Volumes"].get("/data").is_some(), "{c}");
        ensure!(c["User"] == "daemon" && c["WorkingDir"] == "/w" && c["StopSignal"] == "SIGUSR1", "{c}");
        ensure!(c["Entrypoint"] == serde_json::json!(["/entry", "arg"]), "{c}");
        ensure!(c["Cmd"] == serde_json::json!(["/bin/sh", "-c", "echo shell"]), "{c}");
        let history = config["history"].as_array().map_or(0, Vec::len);
        ensure!(history > 10, "history has {history} entries");
    }
    Ok(())
}

fn healthcheck_and_onbuild(bench: &Bench) -> Result<()> {
    let host = bench.registry.host();
    let base = Project::new(
        "FROM busybox\nHEALTHCHECK --interval=5s --timeout=1m --retries=3 CMD [\"true\"]\n\
         ONBUILD COPY extra /extra\nONBUILD RUN echo onbuild >>/extra\n",
    )?;
    bench
        .build(Buildx, &base, &[&format!("output=type=image,name={host}/test/onbuild:1,push=true")])?
        .ok()?;
    let (_, config) = bench.registry.image("test/onbuild", "1")?;
    let check = &config["config"]["Healthcheck"];
    ensure!(check["Interval"] == 5_000_000_000_u64 && check["Retries"] == 3, "{check}");
    ensure!(check["Test"] == serde_json::json!(["CMD", "true"]), "{check}");
    ensure!(config["config"]["OnBuild"][0] == "COPY extra /extra", "{config}");
    let child =
        Project::new(&format!("FROM {host}/test/onbuild:1\nHEALTHCHECK NONE\n"))?.with("extra", "given\n")?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &child, &[])?;
        ensure!(text(&tree, "extra")? == "given\nonbuild\n");
    }
    Ok(())
}

fn dockerignore(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM scratch\nCOPY . /\n")?
        .with(
            ".dockerignore",
            "# comment\n*.log\n!keep.log\nsecret\n**/deep.tmp\nDockerfile\n.dockerignore\n",
        )?
        .with("a.log", "")?
        .with("keep.log", "")?
        .with("secret/x", "")?
        .with("d/deep.tmp", "")?
        .with("d/file", "")?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        ensure!(names(tree.path())? == ["d", "keep.log"], "{:?}", names(tree.path())?);
        ensure!(names(&tree.path().join("d"))? == ["file"]);
    }
    let ignored =
        Project::new("FROM scratch\nCOPY gone /\n")?.with(".dockerignore", "gone\n")?.with("gone", "")?;
    bench.build(Buildx, &ignored, &[])?.fails_with(&["gone", "not found"])
}

fn named_contexts(bench: &Bench) -> Result<()> {
    let other = Project::new("")?.with("file", "other\n")?;
    let project = Project::new("FROM base\nCOPY --from=extra /file /file\n")?;
    let dir = other.dir().display().to_string();
    let extra = format!("build-context:extra={dir}");
    let tree = bench.export(Buildx, &project, &["build-context:base=docker-image://busybox", &extra])?;
    ensure!(text(&tree, "file")? == "other\n" && tree.path().join("bin/sh").exists());
    let local = format!("extra={dir}");
    let args = [
        "--opt",
        "context:base=docker-image://busybox",
        "--opt",
        "context:extra=local:extra",
        "--local",
        &local,
    ];
    let tree = bench.export(Buildctl, &project, &args)?;
    ensure!(text(&tree, "file")? == "other\n");
    Ok(())
}

fn no_cache(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS build\nRUN cat /proc/sys/kernel/random/uuid >/out\nFROM scratch\nCOPY --from=build /out /\n",
    )?;
    let out = |options: &[&str]| text(&bench.export(Buildx, &project, options)?, "out");
    let first = out(&[])?;
    ensure!(out(&[])? == first, "the step ran again");
    ensure!(out(&["no-cache"])? != first, "the step did not run again");
    // Its cache mounts are new then, and those of other builds are not.
    let project = Project::new(
        "FROM busybox AS build\nARG ROUND\n\
         RUN --mount=type=cache,target=/no-cache-plain echo $ROUND >>/no-cache-plain/f && cat /no-cache-plain/f >/out\n\
         RUN --mount=type=cache,target=/based,id=no-cache-based,from=busybox,source=/etc \
         echo $ROUND >>/based/no-cache && cat /based/no-cache >>/out\n\
         FROM scratch\nCOPY --from=build /out /\n",
    )?;
    for (options, want) in [
        (&["build-arg:ROUND=1"][..], "1\n1\n"),
        (&["build-arg:ROUND=2"], "1\n2\n1\n2\n"),
        (&["build-arg:ROUND=3", "no-cache"], "3\n3\n"),
        (&["build-arg:ROUND=4"], "3\n4\n3\n4\n"),
    ] {
        let tree = bench.export(Buildx, &project, options)?;
        ensure!(text(&tree, "out")? == want, "{options:?}: {}", text(&tree, "out")?);
    }
    Ok(())
}

fn failures_show_the_place(bench: &Bench) -> Result<()> {
    for (dockerfile, parts) in [
        (
            "FROM busybox\nRUN echo fine\n\nRUN exit 42\n",
            &["exit code: 42", "Dockerfile:4", ">>> RUN exit 42"][..],
        ),
        ("FROM busybox\nCOPPY a b\n", &["Dockerfile:2", "unknown instruction: COPPY", "did you mean"]),
        (
            "FROM busybox\nCOPY missing /\n",
            &["Dockerfile:2", "failed to calculate checksum of ref", "\"/missing\": not found"],
        ),
        ("FROM busybox AS x\nFROM y-not-there:1\n", &["y-not-there:1"]),
        ("RUN true\n", &["no build stage in current context"]),
        ("", &["empty"]),
        ("FROM busybox\nENV\n", &["Dockerfile:2", "ENV"]),
        ("FROM busybox\nRUN --mount=type=nonsense true\n", &["nonsense"]),
        ("FROM busybox AS self\nCOPY --from=self /a /b\n", &["self"]),
    ] {
        let project = Project::new(dockerfile)?;
        for client in [Buildx, Buildctl] {
            bench.build(client, &project, &[])?.fails_with(parts)?;
        }
    }
    Ok(())
}

fn a_failing_run_shows_its_output(bench: &Bench) -> Result<()> {
    let project =
        Project::new("FROM busybox\nRUN echo to-stdout; echo to-stderr >&2; sh -c 'kill -9 $$'; exit $?\n")?;
    for client in [Buildx, Buildctl] {
        bench.build(client, &project, &[])?.fails_with(&["to-stdout", "to-stderr", "137"])?;
    }
    Ok(())
}

fn another_dockerfile(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM nothing\n")?.with("sub/Other", "FROM scratch\nCOPY sub/Other /o\n")?;
    let file = project.path("sub/Other").display().to_string();
    let tree = bench.export(Buildx, &project, &["-f", &file])?;
    ensure!(text(&tree, "o")?.contains("sub/Other"));
    let tree = bench.export(Buildctl, &project, &["--opt", "filename=sub/Other"])?;
    ensure!(text(&tree, "o")?.contains("sub/Other"));
    Ok(())
}
