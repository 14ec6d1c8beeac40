//! Definitions that no Dockerfile makes: what clients of the API rely on, and
//! what attackers would like.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use integration::grpc::{blobs, connect, kept};
use integration::image::Image;
use integration::llb::{busybox, cache, exec, ignore_cache, input, mount, name, op, result, shell, source};
use integration::{Bench, Options, suite};
use prost::Message;
use proto::control::SolveRequest;
use proto::control::control_client::ControlClient;
use proto::google::rpc;
use proto::pb;
use proto::pb::CacheSharingOpt::{Locked, Shared};
use tempfile::TempDir;

struct Env {
    bench: Bench,
    /// Where devices are described.
    devices: TempDir,
}

fn main() -> ExitCode {
    let cases: [suite::Case<Env>; 17] = [
        ("one_cache_twice_in_a_step", one_cache_twice_in_a_step),
        ("a_cache_with_a_base_is_shared", a_cache_with_a_base_is_shared),
        ("steps_that_ignore_the_cache_empty_theirs", steps_that_ignore_the_cache_empty_theirs),
        ("merges_of_what_shares_layers", merges_of_what_shares_layers),
        ("copies_from_nothing", copies_from_nothing),
        ("layer_limits", layer_limits),
        ("results_of_earlier_releases", results_of_earlier_releases),
        ("errors_name_all_places", errors_name_all_places),
        ("a_digest_counts_where_it_is", a_digest_counts_where_it_is),
        ("devices_by_name", devices_by_name),
        ("devices_need_a_grant", devices_need_a_grant),
        ("caches_do_not_lead_out", caches_do_not_lead_out),
        ("mount_points_do_not_lead_out", mount_points_do_not_lead_out),
        ("removals_do_not_lead_out", removals_do_not_lead_out),
        ("huge_account_files", huge_account_files),
        ("results_for_other_platforms", results_for_other_platforms),
        ("images_without_layers", images_without_layers),
    ];
    suite::main(set_up, &cases, |env| {
        // Last: nobody else builds any more.
        blobs_are_listed_until_they_are_pruned(&env.bench)?;
        env.bench.finish()
    })
}

fn set_up() -> Result<Env> {
    let devices = TempDir::with_prefix("bk-cdi-")?;
    let toml = format!("[cdi]\nspecDirs = [\"{}\"]\n", devices.path().display());
    Ok(Env { bench: Bench::start(Options { toml, ..Options::default() })?, devices })
}

fn solve(env: &Env, definition: &pb::Definition) -> Result<()> {
    env.bench.buildctl.solve(&definition.encode_to_vec(), &[])?.said().map(drop)
}

fn fails(env: &Env, definition: &pb::Definition, parts: &[&str]) -> Result<()> {
    env.bench.buildctl.solve(&definition.encode_to_vec(), &[])?.fails_with(parts)
}

fn one_cache_twice_in_a_step(env: &Env) -> Result<()> {
    let base = busybox();
    let caches = ["/m1", "/m2"].map(|dest| cache(-1, dest, "twice", Locked)).to_vec();
    let step = shell(vec![input(&base, 0)], "test ! -e /m2/x; touch /m1/x; test -e /m2/x", caches);
    solve(env, &result(&[base, step]))
}

fn a_cache_with_a_base_is_shared(env: &Env) -> Result<()> {
    let base = busybox();
    let step = |own: &str, other: &str| {
        let wait = format!("touch /c/{own}; test -e /c/bin; while [ ! -e /c/{other} ]; do sleep 0.1; done");
        shell(vec![input(&base, 0)], &wait, vec![cache(0, "/c", "shared-base", Shared)])
    };
    let (a, b) = (step("a", "b"), step("b", "a"));
    let both = shell(
        vec![input(&base, 0), input(&a, 0), input(&b, 0)],
        "true",
        vec![mount(1, "/a", -1), mount(2, "/b", -1)],
    );
    solve(env, &result(&[base, a, b, both]))
}

fn steps_that_ignore_the_cache_empty_theirs(env: &Env) -> Result<()> {
    let base = busybox();
    let mounts = || vec![cache(-1, "/c", "emptied", Shared)];
    let fill = shell(vec![input(&base, 0)], "touch /c/x", mounts());
    solve(env, &result(&[base.clone(), fill]))?;
    let keep = shell(vec![input(&base, 0)], "test -e /c/x; touch /c/y", mounts());
    solve(env, &result(&[base.clone(), keep]))?;
    let anew = shell(vec![input(&base, 0)], "test ! -e /c/x; test ! -e /c/y", mounts());
    let mut definition = result(&[base, anew.clone()]);
    ignore_cache(&mut definition, &anew);
    solve(env, &definition)
}

fn merge(of: &[&pb::Op]) -> pb::Op {
    let inputs = of.iter().map(|of| input(of, 0)).collect();
    let merge = (0..).zip(of).map(|(input, _)| pb::MergeInput { input }).collect();
    op(inputs, Some(pb::op::Op::Merge(pb::MergeOp { inputs: merge })))
}

fn merges_of_what_shares_layers(env: &Env) -> Result<()> {
    let base = busybox();
    let start = shell(vec![input(&base, 0)], "mkdir /d; touch /d/old /d/gone", vec![]);
    let a = shell(vec![input(&start, 0)], "rm -r /d; mkdir /d; touch /d/a", vec![]);
    let b = shell(vec![input(&start, 0)], "touch /d/b; rm /d/old", vec![]);
    let (ab, ba) = (merge(&[&a, &b]), merge(&[&b, &a]));
    let look = |of: &pb::Op, want: &str| {
        shell(
            vec![input(of, 0)],
            &format!("test \"$(ls /d | xargs)\" = \"{want}\" || {{ ls /d; exit 1; }}"),
            vec![],
        )
    };
    // The last wins; what `a` deletes is what there was when it did.
    let (look_ab, look_ba) = (look(&ab, "a b gone"), look(&ba, "a b"));
    let all = [&base, &start, &a, &b].map(Clone::clone);
    solve(env, &result(&[&all[..], &[ab, look_ab]].concat()))?;
    solve(env, &result(&[&all[..], &[ba, look_ba]].concat()))
}

fn copies_from_nothing(env: &Env) -> Result<()> {
    let copy = |src: &str| {
        let action = pb::FileActionCopy {
            src: src.into(),
            dest: "/".into(),
            dir_copy_contents: true,
            ..Default::default()
        };
        let action = pb::FileAction {
            input: -1,
            secondary_input: -1,
            output: 0,
            action: Some(pb::file_action::Action::Copy(action)),
        };
        result(&[op(vec![], Some(pb::op::Op::File(pb::FileOp { actions: vec![action] })))])
    };
    solve(env, &copy("/"))?;
    fails(env, &copy("/foo"), &["/foo: no such file or directory"])
}

fn layer_limits(env: &Env) -> Result<()> {
    let limited = |limit: &str| {
        let source = pb::SourceOp {
            identifier: "docker-image://docker.io/library/busybox:latest".into(),
            attrs: [("image.layerlimit".to_owned(), limit.to_owned())].into(),
        };
        result(&[op(vec![], Some(pb::op::Op::Source(source)))])
    };
    solve(env, &limited("1"))?;
    for bad in ["0", "-1", "x"] {
        fails(env, &limited(bad), &[&format!("invalid layer limit {bad}")])?;
    }
    fails(env, &limited("99"), &["99"])
}

fn send(env: &Env, request: SolveRequest) -> Result<Result<(), tonic::Status>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = ControlClient::new(connect(env.bench.daemon.socket()).await?);
        Ok(client.solve(request).await.map(drop))
    })
}

fn results_of_earlier_releases(env: &Env) -> Result<()> {
    let asked = |version: i64, compression: &str| -> Result<Result<(), tonic::Status>> {
        let attrs = [
            ("name", format!("{}/out/release:{version}", env.bench.registry.host())),
            ("push", "true".into()),
            ("compression", compression.into()),
        ];
        let exporter = proto::control::Exporter {
            r#type: "image".into(),
            attrs: attrs.map(|(key, value)| (key.to_owned(), value)).into(),
        };
        let request = SolveRequest {
            r#ref: format!("release-{version}-{compression}"),
            definition: Some(result(&[busybox()])),
            exporters: vec![exporter],
            compatibility_version: version,
            ..Default::default()
        };
        send(env, request)
    };
    for (version, vendor) in [(0, "oci"), (10, "docker"), (20, "docker"), (30, "oci")] {
        asked(version, "gzip")??;
        let (_, manifest) = env.bench.registry.manifest("out/release", &version.to_string())?;
        let kind = manifest["mediaType"].as_str().unwrap_or_default();
        ensure!(kind.contains(vendor), "{version}: {manifest}");
    }
    asked(20, "zstd")??;
    for (version, compression, complaint) in [
        (10, "zstd", "compatibility-version 10 does not support"),
        (11, "gzip", "unsupported compatibility-version 11 (supported: [10 20 30])"),
        (31, "gzip", "unsupported compatibility-version 31: upgrade buildkit (max supported: 30)"),
    ] {
        let status = asked(version, compression)?.err().context("should have failed")?;
        ensure!(status.message().contains(complaint), "{version}: {status}");
    }
    Ok(())
}

fn errors_name_all_places(env: &Env) -> Result<()> {
    let base = busybox();
    let step = shell(vec![input(&base, 0)], "exit 7", vec![]);
    let mut definition = result(&[base, step.clone()]);
    let info = |filename: &str| pb::SourceInfo {
        filename: filename.into(),
        data: b"text".to_vec(),
        ..Default::default()
    };
    let location = |source_index, line| {
        let at = Some(pb::Position { line, character: 0 });
        pb::Location { source_index, ranges: vec![pb::Range { start: at, end: at }] }
    };
    let locations = vec![location(0, 7), location(1, 8), location(0, 9)];
    definition.source = Some(pb::Source {
        locations: [(name(&step), pb::Locations { locations })].into(),
        infos: vec![info("foo"), info("bar")],
    });
    let request = SolveRequest { r#ref: "places".into(), definition: Some(definition), ..Default::default() };
    let status = send(env, request)?.err().context("should have failed")?;
    let details = rpc::Status::decode(status.details())?.details;
    let of = |name: &str| -> Vec<String> {
        let own = details.iter().filter(|d| d.type_url.contains(name));
        own.map(|d| String::from_utf8_lossy(&d.value).into_owned()).collect()
    };
    let places = of("errdefs.Source");
    let lines: Vec<bool> =
        places.iter().zip(["9", "8", "7"]).map(|(p, line)| p.contains(&format!("\"line\":{line}"))).collect();
    // The last one given comes first.
    ensure!(places.len() == 3 && lines.iter().all(|l| *l), "{places:#?}");
    ensure!(places[1].contains("bar"), "{places:#?}");
    ensure!(of("ExitMessage").iter().any(|exit| exit.contains('7')), "{details:#?}");
    Ok(())
}

fn a_digest_counts_where_it_is(env: &Env) -> Result<()> {
    let host = env.bench.registry.host();
    Image::busybox()?.push(host, "library/origin", "latest")?;
    let (_, manifest) = env.bench.registry.manifest("library/origin", "latest")?;
    let answer = env.bench.registry.manifest("library/origin", "latest")?.0;
    let digest = answer.headers.get("docker-content-digest").with_context(|| format!("{manifest}"))?.clone();
    let at = |name: &str| result(&[source(&format!("docker-image://docker.io/library/{name}@{digest}"))]);
    solve(env, &at("origin"))?;
    fails(env, &at("elsewhere"), &["elsewhere"])
}

const DEVICES: &str = r#"
cdiVersion: "0.6.0"
kind: "free.com/device"
annotations:
  org.mobyproject.buildkit.device.autoallow: true
devices:
- name: foo
  annotations:
    org.mobyproject.buildkit.device.class: both
  containerEdits:
    env: [FOO=injected]
- name: node
  annotations:
    org.mobyproject.buildkit.device.class: both
  containerEdits:
    env: [NODE=injected]
    deviceNodes:
    - path: /dev/node
      hostPath: /dev/null
    additionalGids: [4242]
"#;

fn with_devices(base: &pb::Op, devices: &[(&str, bool)], command: &str) -> pb::Op {
    let mut step = shell(vec![input(base, 0)], command, vec![]);
    if let Some(pb::op::Op::Exec(exec)) = &mut step.op {
        exec.cdi_devices = devices
            .iter()
            .map(|(name, optional)| pb::CdiDevice { name: (*name).into(), optional: *optional })
            .collect();
    }
    step
}

fn devices_by_name(env: &Env) -> Result<()> {
    std::fs::write(env.devices.path().join("free.yaml"), DEVICES)?;
    let base = busybox();
    let look = "test -c /dev/node; echo x >/dev/node; test \"$NODE\" = injected; id -G | grep -w 4242";
    let node = with_devices(&base, &[("free.com/device=node", false), ("free.com/device=none", true)], look);
    solve(env, &result(&[base.clone(), node]))?;
    let first =
        with_devices(&base, &[("free.com/device", false)], "test \"$FOO\" = injected; test ! -e /dev/node");
    solve(env, &result(&[base.clone(), first]))?;
    for all in ["free.com/device=*", "both"] {
        let all = with_devices(&base, &[(all, false)], "test \"$FOO$NODE\" = injectedinjected");
        solve(env, &result(&[base.clone(), all]))?;
    }
    let workers = env.bench.buildctl.run(&["debug", "workers", "--format", "{{json .}}"])?.ok()?;
    ensure!(workers.contains("free.com/device=foo"), "{workers}");
    let missing = with_devices(&base, &[("free.com/device=none", false)], "true");
    fails(env, &result(&[base, missing]), &["required device \"free.com/device=none\" is not registered"])
}

fn devices_need_a_grant(env: &Env) -> Result<()> {
    let granted = DEVICES
        .replace("free.com", "granted.com")
        .replace("autoallow: true", "autoallow: false")
        .replace("both", "neither");
    std::fs::write(env.devices.path().join("granted.yaml"), granted)?;
    let base = busybox();
    let step = with_devices(&base, &[("granted.com/device=foo", false)], "test \"$FOO\" = injected");
    let definition = result(&[base.clone(), step]).encode_to_vec();
    let run = |args: &[&str]| env.bench.buildctl.solve(&definition, args);
    run(&[])?.fails_with(&["device granted.com/device=foo is requested by the build but not allowed"])?;
    run(&["--allow", "device=granted.com/device=node"])?.fails_with(&["not allowed"])?;
    for allowed in ["device=granted.com/device", "device=granted.com/device=foo", "device"] {
        run(&["--allow", allowed])?.ok()?;
    }
    let alias = with_devices(&base, &[("own", false)], "test \"$FOO\" = injected; true alias");
    let definition = result(&[base, alias]).encode_to_vec();
    env.bench
        .buildctl
        .solve(&definition, &["--allow", "device=granted.com/device=foo,alias=own"])?
        .ok()
        .map(drop)
}

/// A file of the host that no build may see or change.
fn secret() -> Result<(TempDir, String)> {
    let dir = TempDir::with_prefix("bk-host-")?;
    std::fs::write(dir.path().join("file"), "of the host")?;
    let path = dir.path().display().to_string();
    Ok((dir, path))
}

fn caches_do_not_lead_out(env: &Env) -> Result<()> {
    let (dir, host) = secret()?;
    let base = busybox();
    let caches = || vec![cache(-1, "/c", "leads-out", Shared)];
    let plant = shell(
        vec![input(&base, 0)],
        &format!(
            "ln -s {host} /c/link; ln -s {host}/file /c/file; ln -s ../../../..{host} /c/up; mkdir /c/dir"
        ),
        caches(),
    );
    solve(env, &result(&[base.clone(), plant]))?;
    for selector in ["/link", "/file", "/up", "/../../../../../../../etc", "/dir/../link"] {
        let mounts = vec![pb::Mount { selector: selector.into(), ..cache(-1, "/m", "leads-out", Shared) }];
        let look = shell(vec![input(&base, 0)], "cat /m/file /m; touch /m/planted; ls /m", mounts);
        let run = env.bench.buildctl.solve(&result(&[base.clone(), look]).encode_to_vec(), &[])?;
        ensure!(!run.to_string().contains("of the host"), "{selector}: {run}");
    }
    // Changed while others look: whoever mounts sees the cache or an error.
    let swap =
        format!("for i in $(seq 300); do rm -rf /c/s; mkdir /c/s; rm -rf /c/s; ln -s {host} /c/s; done");
    let swap = shell(vec![input(&base, 0)], &swap, caches());
    let mut ops = vec![base.clone(), swap];
    for i in 0..4 {
        let mounts = vec![pb::Mount { selector: "/s".into(), ..cache(-1, "/m", "leads-out", Shared) }];
        let look = shell(vec![input(&base, 0)], &format!("test ! -e /m/file; touch /m/planted{i}"), mounts);
        ops.push(look);
    }
    let ends = ops.iter().map(|op| input(op, 0)).collect();
    let mounts = (1..5).map(|i| mount(i, &format!("/r{i}"), -1)).collect();
    ops.push(shell(ends, "true", mounts));
    let run = env.bench.buildctl.solve(&result(&ops).encode_to_vec(), &[])?;
    ensure!(!run.to_string().contains("of the host"), "{run}");
    ensure!(std::fs::read_dir(dir.path())?.count() == 1, "something was planted");
    Ok(())
}

fn mount_points_do_not_lead_out(env: &Env) -> Result<()> {
    let (dir, host) = secret()?;
    let base = busybox();
    let plant = shell(
        vec![input(&base, 0)],
        &format!(
            "ln -s {host} /link; ln -s {host}/new /new; rm -rf /etc; ln -s {host} /etc; ln -s ../../..{host} /up"
        ),
        vec![],
    );
    let tmpfs = |dest: &str| pb::Mount { mount_type: pb::MountType::Tmpfs as i32, ..mount(-1, dest, -1) };
    for dest in ["/link/stub", "/new", "/up/stub/deep", "/link/../link/stub"] {
        let step = shell(vec![input(&plant, 0)], "true", vec![tmpfs(dest)]);
        // It works inside, or not at all.
        _ = env.bench.buildctl.solve(&result(&[base.clone(), plant.clone(), step]).encode_to_vec(), &[])?;
    }
    let cwd = pb::Meta { args: vec!["true".into()], cwd: "/link/made".into(), ..Default::default() };
    let step = exec(vec![input(&plant, 0)], cwd, vec![]);
    _ = env.bench.buildctl.solve(&result(&[base, plant, step]).encode_to_vec(), &[])?;
    ensure!(std::fs::read_dir(dir.path())?.count() == 1, "something was made on the host");
    Ok(())
}

fn removals_do_not_lead_out(env: &Env) -> Result<()> {
    let (dir, host) = secret()?;
    let base = busybox();
    let plant =
        shell(vec![input(&base, 0)], &format!("ln -s {host} /link; ln -s ../../..{host} /up"), vec![]);
    for path in ["/link/file", "/up/file", "/link/*", "/../../..{host}/file"] {
        let rm = pb::FileActionRm {
            path: path.replace("{host}", &host),
            allow_not_found: true,
            allow_wildcard: true,
        };
        let action = pb::FileAction {
            input: 0,
            secondary_input: -1,
            output: 0,
            action: Some(pb::file_action::Action::Rm(rm)),
        };
        let step = op(vec![input(&plant, 0)], Some(pb::op::Op::File(pb::FileOp { actions: vec![action] })));
        _ = env.bench.buildctl.solve(&result(&[base.clone(), plant.clone(), step]).encode_to_vec(), &[])?;
    }
    ensure!(std::fs::read_to_string(dir.path().join("file"))? == "of the host");
    Ok(())
}

fn huge_account_files(env: &Env) -> Result<()> {
    let base = busybox();
    for file in ["passwd", "group"] {
        // A hole: nothing to the disk, everything to who reads it.
        let plant = shell(vec![input(&base, 0)], &format!("truncate -s 1T /etc/{file}"), vec![]);
        let meta = |user: &str| pb::Meta {
            args: vec!["true".into()],
            cwd: "/".into(),
            user: user.into(),
            ..Default::default()
        };
        let user = if file == "passwd" { "nobody" } else { "0:nogroup" };
        let step = exec(vec![input(&plant, 0)], meta(user), vec![]);
        fails(env, &result(&[base.clone(), plant, step]), &[file])?;
    }
    Ok(())
}

fn blobs_are_listed_until_they_are_pruned(bench: &Bench) -> Result<()> {
    ensure!(!blobs(&bench.daemon)?.is_empty(), "the base image has blobs");
    let kept = kept(&bench.daemon, &bench.buildctl)?;
    ensure!(kept.is_empty(), "kept: {kept:#?}");
    Ok(())
}

fn results_for_other_platforms(env: &Env) -> Result<()> {
    let base = busybox();
    let step = shell(vec![input(&base, 0)], "echo for whom", Vec::new());
    let definition = result(&[base, step]).encode_to_vec();
    let said = |platforms: &str| {
        let opt = format!("platform={platforms}");
        env.bench.buildctl.solve(&definition, &["--opt", &opt])?.said()
    };
    let warning = "WARN: Multiple platforms requested but result is not multi-platform";
    let text = said("linux/amd64,linux/arm64")?;
    ensure!(text.contains(warning) && text.contains("Verifying build result"), "{text}");
    let text = env.bench.buildctl.solve(&definition, &["--output=type=tar,dest=/dev/null"])?.said()?;
    ensure!(!text.contains("WARN"), "{text}");
    Ok(())
}

fn images_without_layers(env: &Env) -> Result<()> {
    Image::empty()?.push(env.bench.registry.host(), "library/nothing", "latest")?;
    let (base, nothing) = (busybox(), source("docker-image://docker.io/library/nothing:latest"));
    let inputs = vec![input(&base, 0), input(&nothing, 0)];
    let look = shell(inputs, "test -z \"$(ls -A /n)\"", vec![mount(1, "/n", -1)]);
    solve(env, &result(&[base, nothing, look]))
}
