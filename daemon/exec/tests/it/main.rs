//! Real containers with a real runtime. Needs root, a runtime and a static busybox.

#[allow(clippy::unwrap_used)] // of tests
mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use base::Failure;
use base::task::Scope;
use exec::{HostAddress, Io, Mount, NetworkMode, Output, Process, Reason, Security, Source, WindowSize};
use support::{Bench, executor, lines};

#[tokio::test(flavor = "multi_thread")]
async fn output_and_exit_codes() {
    let bench = Bench::new().await;
    let (exit, out, err) = bench.run(bench.sh("echo out; echo err >&2; exit 7")).await;
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert_eq!((exit.code, exit.success), (7, false));
    let failure = exit.check_process(&bench.sh("x").args).unwrap_err();
    assert_eq!(failure.to_string(), r#"process "/bin/sh -c x" did not complete successfully: exit code: 7"#);
    let allowed = Process { valid_exit_codes: Some(vec![7]), ..bench.sh("exit 7") };
    assert!(bench.run(allowed).await.0.success);
    let (killed, ..) = bench.run(bench.sh("sh -c 'kill -9 $$'; exit $?")).await;
    assert_eq!(killed.code, 137);
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_is_as_expected() {
    let bench = Bench::new().await;
    let script = "hostname; id; pwd; echo $PATH; echo $A; cat /etc/hosts; grep -c . /etc/resolv.conf; \
                  grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; ls /run | wc -l; ls /proc/1/exe; \
                  mount -t tmpfs x /mnt 2>&1; touch /sys/x 2>&1; echo x >/etc/hosts";
    let process = Process {
        env: vec!["A=1".into(), "A=2".into()],
        cwd: "/made/dir".into(),
        user: "dev".into(),
        extra_hosts: vec![HostAddress { host: "db".into(), ip: "10.9.8.7".parse().unwrap() }],
        ..bench.sh(script)
    };
    let (_, out, err) = bench.run(process).await;
    let expected = [
        "buildkitsandbox",
        "uid=1000(dev) gid=100(users) groups=29(audio),100(users)",
        "/made/dir",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "2",
        "127.0.0.1\tlocalhost buildkitsandbox",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.9.8.7\tdb",
    ];
    let said = lines(&out);
    assert_eq!(said[..expected.len()], expected, "{out}{err}");
    for part in ["CapBnd:\t00000000a80425fb", "NoNewPrivs:\t0", "Seccomp:\t2", "permission denied"] {
        assert!(out.contains(part), "{part} in {out}{err}");
    }
    assert!(err.contains("Permission denied") || err.contains("Read-only"), "{err}");
    let made = bench.rootfs().join("made/dir").metadata().unwrap();
    assert_eq!((made.uid(), made.gid(), made.permissions().mode() & 0o777), (1000, 100, 0o755));
    assert!(!bench.rootfs().join("etc/hosts").exists() && !bench.rootfs().join("etc/resolv.conf").exists());
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn insecure_may_do_more() {
    let bench = Bench::new().await;
    let script =
        "grep Seccomp: /proc/self/status; mount -t tmpfs x /mnt && echo mounted; ls /dev/fuse /dev/loop0";
    let process = Process { security: Security::Insecure, ..bench.sh(script) };
    let (exit, out, err) = bench.run(process).await;
    assert_eq!(lines(&out), ["Seccomp:\t0", "mounted", "/dev/fuse", "/dev/loop0"], "{err}");
    assert!(exit.success);
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_and_their_places() {
    let bench = Bench::new().await;
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(outside.path().join("sub")).unwrap();
    std::fs::write(outside.path().join("sub/file"), "content").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", outside.path().join("evil")).unwrap();
    let bind = |dest: &str, selector: &str, readonly| Mount {
        dest: dest.into(),
        source: Source::Bind { path: outside.path().into(), selector: selector.into() },
        readonly,
        options: vec![],
    };
    let tmpfs = Mount {
        dest: "/tmp/t".into(),
        source: Source::Tmpfs { size: 1 << 20 },
        readonly: false,
        options: vec!["noexec".into()],
    };
    let process = Process {
        mounts: vec![
            bind("/m/all", "", true),
            bind("m/file", "/sub/file", true),
            bind("/m/sub", "sub", false),
            tmpfs,
        ],
        remove_mount_stubs_recursive: true,
        ..bench.sh(
            "cat /m/file; ls /m/all/sub; touch /m/all/x || echo ro; touch /m/sub/new; df -k /tmp/t | tail -1",
        )
    };
    let (exit, out, err) = bench.run(process).await;
    assert!(exit.success, "{out}{err}");
    assert!(out.starts_with("contentfile\nro\n"), "{out}{err}");
    assert!(out.contains("1024"), "{out}");
    assert!(outside.path().join("sub/new").exists());
    assert!(!bench.rootfs().join("m").exists());
    let escape = Process { mounts: vec![bind("/m", "/evil", true)], ..bench.sh("true") };
    let failure = bench.executor.run(escape, Io::default(), &bench.scope).await.unwrap_err();
    assert!(failure.to_string().contains("/evil"), "{failure}");
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_root_is_read_only() {
    let bench = Bench::new().await;
    let process = Process { readonly_rootfs: true, ..bench.sh("touch /x") };
    let (exit, _, err) = bench.run(process).await;
    assert!(!exit.success && err.contains("Read-only file system"), "{err}");
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_start_says_why() {
    let bench = Bench::new().await;
    let process = Process { args: vec!["/no/such".into()], ..bench.sh("") };
    let (exit, ..) = bench.run(process).await;
    let Some(Reason::NotStarted(text)) = &exit.reason else { panic!("{exit:?}") };
    assert!(text.contains("/no/such"), "{text}");
    let unknown = Process { user: "nobody-here".into(), ..bench.sh("true") };
    let failure = bench.executor.run(unknown, Io::default(), &bench.scope).await.unwrap_err();
    assert_eq!(failure.to_string(), "unable to find user nobody-here: no matching entries in passwd file");
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_kills() {
    let bench = Bench::new().await;
    let scope = bench.scope.child();
    let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
    let io =
        Io { stdout: Output::Log(Box::new(move |data| _ = sender.try_send(data.to_vec()))), ..Io::default() };
    let run = bench.executor.run(bench.sh("trap '' TERM INT; echo up; sleep 1000 & sleep 1000"), io, &scope);
    let cancel = async {
        assert_eq!(receiver.recv().await.unwrap(), b"up\n");
        scope.cancel(Failure::canceled("client gone"));
    };
    let (result, ()) = tokio::join!(run, cancel);
    assert_eq!(result.unwrap_err().to_string(), "client gone");
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_while_it_starts() {
    let bench = Bench::new().await;
    for delay in [0, 3, 8, 15, 25] {
        let scope = bench.scope.child();
        let run = bench.executor.run(bench.sh("sleep 1000"), Io::default(), &scope);
        let cancel = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            scope.cancel(Failure::canceled("no more"));
        };
        let (result, ()) = tokio::join!(run, cancel);
        assert_eq!(result.unwrap_err().to_string(), "no more");
    }
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_future_kills() {
    let bench = Bench::new().await;
    let (started, wait) = tokio::sync::oneshot::channel();
    let io = Io { started: Some(started), ..Io::default() };
    tokio::select! {
        _ = bench.executor.run(bench.sh("sleep 1000"), io, &bench.scope) => panic!("ended"),
        _ = wait => {}
    }
    bench.scope.close().await;
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn input_signals_and_a_second_process() {
    let bench = Bench::new().await;
    let io = Io { stdin: Some(Box::new(&b"over\n"[..])), ..Io::default() };
    let (exit, out, _) = bench.run_with(bench.sh("read x; echo $x; read y || echo end"), io).await;
    assert!(exit.success);
    assert_eq!(out, "over\nend\n");

    let (signal, signals) = tokio::sync::mpsc::channel(1);
    let process = Process {
        id: "first".into(),
        ..bench.sh("trap 'echo got; exit 3' TERM; while :; do sleep 0.05; done")
    };
    let first = bench.run_with(process, Io { signals: Some(signals), ..Io::default() });
    let second = async {
        let described =
            Process { env: vec!["X=y".into()], ..bench.sh("echo $X; ps | grep -c 'trap'; exit 5") };
        let result = loop {
            let (io, streams) = support::capture(Io::default());
            match bench.executor.exec("first", described.clone(), io, &bench.scope).await {
                Ok(exit) => break (exit, streams.text().0),
                Err(e) => assert!(e.to_string().contains("not found"), "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        signal.send(15).await.unwrap();
        result
    };
    let ((exit, out, _), (other, said)) = tokio::join!(first, second);
    assert_eq!((exit.code, out.as_str()), (3, "got\n"));
    assert_eq!(other.code, 5);
    assert!(said.starts_with("y\n"), "{said}");
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size() {
    let bench = Bench::new().await;
    let (resize, sizes) = tokio::sync::mpsc::channel(1);
    resize.send(WindowSize { rows: 33, columns: 99 }).await.unwrap();
    let script = "test -t 1 && echo tty; size() { while ! stty size 2>/dev/null | grep -q \"$1\"; do sleep 0.02; done; echo is $1; }; \
                  size '33 99'; size '44 77'";
    let process = Process { tty: true, ..bench.sh(script) };
    let (seen, mut first) = tokio::sync::mpsc::unbounded_channel();
    let stdout = Output::Log(Box::new(move |data| _ = seen.send(data.to_vec())));
    let io = Io { resize: Some(sizes), stdout, ..Io::default() };
    let mut out = Vec::new();
    let watch = async {
        while let Some(data) = first.recv().await {
            out.extend(data);
            if String::from_utf8_lossy(&out).contains("is 33 99") {
                _ = resize.try_send(WindowSize { rows: 44, columns: 77 });
            }
        }
    };
    let (exit, ()) = tokio::join!(bench.executor.run(process, io, &bench.scope), watch);
    let exit = exit.unwrap();
    let out = String::from_utf8_lossy(&out);
    assert!(exit.success, "{out}");
    assert_eq!(lines(&out), ["tty", "is 33 99", "is 44 77"]);
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_host_and_none() {
    let bench = Bench::new().await;
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let script = "readlink /proc/self/ns/net; ls /sys/class/net | wc -l";
    let (_, out, _) = bench.run(Process { network: NetworkMode::Host, ..bench.sh(script) }).await;
    assert_eq!(lines(&out).first().copied(), own.to_str());
    let (_, out, _) = bench.run(Process { network: NetworkMode::None, ..bench.sh(script) }).await;
    assert_ne!(lines(&out).first().copied(), own.to_str());
    bench.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_reaps_the_old_ones_containers() {
    let bench = Bench::new().await;
    // With the runtime's notes and without: those are not there any more if they were in memory.
    for remembered in [true, false] {
        let mut orphan = bench.orphan();
        if !remembered {
            for dir in ["runtime", "bundles"] {
                std::fs::remove_dir_all(bench.state().join("run").join(dir).join("orphan")).unwrap();
            }
        }
        let executor = executor(bench.config()).await;
        orphan.assert_gone();
        drop(executor);
        bench.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_processes_are_refused() {
    let bench = Bench::new().await;
    for process in [
        Process { id: "../x".into(), ..bench.sh("") },
        Process { args: vec![], ..bench.sh("") },
        Process { args: vec!["a\0b".into()], ..bench.sh("") },
        Process { rootfs: "rootfs".into(), ..bench.sh("") },
    ] {
        assert!(bench.executor.run(process, Io::default(), &Scope::root()).await.is_err());
    }
    bench.assert_clean();
}
