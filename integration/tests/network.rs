//! The networks of build steps, as the steps see them: everyone alone, nobody in, all out,
//! and nothing left.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::bench::{Client::Buildctl, text};
use integration::process::Reaped;
use integration::{Bench, Net, Options, Project, leak, suite, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let cases: [suite::Case<()>; 7] = [
        ("many_builds_with_one_port", |()| many_builds_with_one_port()),
        ("steps_are_alone", |()| steps_are_alone()),
        ("killed_with_32_running", |()| killed_with_32_running()),
        ("steps_leave_nothing", |()| steps_leave_nothing()),
        ("settings_take_effect", |()| settings_take_effect()),
        ("auto_says_why", |()| auto_says_why()),
        ("podmans_networks", |()| podmans_networks()),
    ];
    suite::main(|| Ok(()), &cases, |()| Ok(()))
}

/// A daemon on its own default network.
struct Bridged {
    bench: Bench,
    bridge: String,
}

impl Bridged {
    fn start(worker: &str, args: &[&str]) -> Result<Self> {
        Self::start_in("bridge", worker, args)
    }

    fn start_in(mode: &str, worker: &str, args: &[&str]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let bridge = format!("bkd{:x}n{count}", pid & 0xff_ffff);
        let subnet = format!("10.{}.{}.0/24", 228 + count % 24, pid % 256);
        let worker = format!(
            "networkMode = \"{mode}\"\nbridgeName = \"{bridge}\"\nbridgeSubnet = \"{subnet}\"\n{worker}"
        );
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let bench = Bench::start(Options { net: Net::Auto, worker, args, ..Options::default() })?;
        Ok(Self { bench, bridge })
    }

    /// What is written down of namespaces that exist.
    fn ledger(&self) -> Vec<serde_json::Value> {
        let entries = std::fs::read_dir(self.bench.daemon.root().join("net/ledger"));
        let entries = entries.into_iter().flatten().flatten();
        entries.filter_map(|e| serde_json::from_slice(&std::fs::read(e.path()).ok()?).ok()).collect()
    }

    /// The addresses of namespaces, those of steps that run among them.
    fn addresses(&self) -> Vec<String> {
        let of = |entry: &serde_json::Value| {
            let address = entry["result"]["ips"][0]["address"].as_str()?;
            Some(address.split('/').next()?.to_owned())
        };
        self.ledger().iter().filter_map(of).collect()
    }

    /// Everything of its network that can be counted.
    fn counts(&self) -> (usize, usize, usize, usize, usize) {
        let files = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().count();
        let net = self.bench.daemon.root().join("net");
        let tables = Command::new("nft").args(["list", "ruleset"]).output();
        let tables = tables.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
        let mine = tables.lines().filter(|l| l.contains(&self.bridge)).count();
        let given = std::fs::read_dir(net.join(format!("ipam/buildkit-{}", self.bridge)));
        let given = given.into_iter().flatten().flatten();
        let given = given.filter(|e| e.file_name().to_string_lossy().starts_with("10.")).count();
        (leak::ports(&self.bridge).len(), mine, given, files(&net.join("cni")), files(&net.join("ledger")))
    }

    fn spawn(&self, project: &Project, arg: usize) -> Result<Reaped> {
        let arg = format!("--opt=build-arg:N={arg}");
        let mut command = self.bench.buildctl.build_command(project.dir(), &[&arg]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Reaped(command.spawn()?))
    }

    /// A step that answers on port 8080, and its address.
    fn serve(&self) -> Result<(Reaped, String)> {
        let project = Project::new("FROM busybox\nRUN while :; do echo found | nc -l -p 8080; done\n")?;
        let server = self.spawn(&project, 0)?;
        // It must really serve, or nothing is proven: this host may look. Others of the
        // addresses are those of namespaces that wait for their step.
        let serves = |address: &String| {
            let mut stream = std::net::TcpStream::connect((address.as_str(), 8080)).ok()?;
            let mut said = String::new();
            std::io::Read::read_to_string(&mut stream, &mut said).ok()?;
            said.contains("found").then_some(())
        };
        let look = || self.addresses().into_iter().find(|address| serves(address).is_some());
        let address = wait_for("the step serves", PATIENCE, look).with_context(|| self.bench.daemon.log())?;
        Ok((server, address))
    }

    fn finish(self) -> Result<()> {
        let bridge = self.bridge.clone();
        self.bench.finish()?;
        ensure!(!Path::new("/sys/class/net").join(&bridge).exists(), "{bridge} is left");
        Ok(())
    }
}

/// Each step holds the port while the others do.
fn many_builds_with_one_port() -> Result<()> {
    const BUILDS: usize = 64;
    let bridged = Bridged::start("", &[])?;
    let project = Project::new(
        "FROM busybox\nARG N\nRUN echo $N; nc -l -p 8080 & sleep 2; kill -0 $! && netstat -ltn | grep -q :8080\n",
    )?;
    let builds: Vec<Reaped> = (0..BUILDS).map(|n| bridged.spawn(&project, n)).collect::<Result<_>>()?;
    for (n, mut build) in builds.into_iter().enumerate() {
        ensure!(
            build.0.wait()?.success(),
            "build {n} could not have the port: {}",
            bridged.bench.daemon.log()
        );
    }
    bridged.finish()
}

/// Says `word` to everybody who comes to a port of the host, which it tells.
fn answer(address: &str, word: &'static [u8]) -> Result<u16> {
    let listener = TcpListener::bind((address, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            _ = std::io::Write::write_all(&mut stream, word);
        }
    });
    Ok(port)
}

/// What a step with all privileges would do to reach a port of the host's loopback. It
/// succeeds when it does not get there.
fn to_loopback(gateway: &str, port: u16) -> String {
    format!(
        "ip link set lo down && ip addr del 127.0.0.1/8 dev lo \
         && echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet \
         && ip route add 127.0.0.1 via {gateway} && ip route get 127.0.0.1 | grep 'dev eth0' \
         && ! nc -w 2 127.0.0.1 {port} </dev/null | grep local"
    )
}

fn steps_are_alone() -> Result<()> {
    let bridged = Bridged::start("", &["--allow-insecure-entitlement=security.insecure"])?;
    let (mut server, other) = bridged.serve()?;
    let (local, port) = (answer("127.0.0.1", b"local")?, answer("0.0.0.0", b"host")?);
    let gateway = other.rsplit_once('.').map(|(net, _)| format!("{net}.1")).context("no address")?;
    let dir = bridged.bench.daemon.dir().display().to_string();
    let (bridge, marker) = (&bridged.bridge, std::process::id());
    let project = Project::new(&format!(
        "FROM busybox\n\
         RUN echo {marker}; ! nc -w 2 {other} 8080 </dev/null\n\
         RUN ! nc -w 2 127.0.0.1 {local} </dev/null | grep local \
             && ! nc -w 2 {gateway} {local} </dev/null | grep local\n\
         RUN nc -w 5 {gateway} {port} </dev/null | grep host\n\
         RUN ! test -e {dir}/buildkitd.sock\n\
         RUN --network=none ! ip route | grep default && ! ip link show eth0\n\
         RUN --security=insecure ! ip link show {bridge} && ! nsenter -t 1 -n ip link show {bridge} \
             && ! ls /proc/*/root{dir}/buildkitd.sock\n\
         RUN --security=insecure {}\n",
        to_loopback(&gateway, local)
    ))?;
    let allow = &["allow=security.insecure"];
    bridged.bench.build(Buildctl, &project, allow)?.ok()?;
    server.signal(rustix::process::Signal::INT);
    _ = server.0.wait();
    bridged.finish()
}

fn killed_with_32_running() -> Result<()> {
    const STEPS: usize = 32;
    let mut bridged = Bridged::start("cniPoolSize = 2\n", &[])?;
    let project = Project::new("FROM busybox\nARG N\nRUN echo $N; sleep 1000\n")?;
    let mut builds: Vec<Reaped> = (0..STEPS).map(|n| bridged.spawn(&project, n)).collect::<Result<_>>()?;
    let all = || {
        let running = bridged.bench.daemon.at_work();
        let running = running.iter().filter(|p| p.trim_end().ends_with(": sleep 1000")).count();
        (running >= STEPS).then_some(())
    };
    wait_for("all steps run", PATIENCE, all).with_context(|| bridged.bench.daemon.log())?;
    ensure!(bridged.counts().0 >= STEPS, "{:?}", bridged.counts());
    bridged.bench.daemon.crash()?;
    // It serves; of what was there only the two that are kept ready may be, and both are new.
    let (ports, _, given, namespaces, entries) = bridged.counts();
    let most = [ports, given, namespaces, entries].into_iter().max();
    ensure!(most <= Some(3), "{:?}\n{}", bridged.counts(), bridged.bench.daemon.log());
    for build in &mut builds {
        _ = build.0.wait();
    }
    bridged.bench.daemon.quiet_within(Duration::from_secs(5))?;
    bridged.bench.build(Buildctl, &Project::new("FROM busybox\nRUN ip addr show eth0\n")?, &[])?.ok()?;
    bridged.finish()
}

fn steps_leave_nothing() -> Result<()> {
    let bridged = Bridged::start("", &[])?;
    // The namespace by which the daemon tried its network waits for a first step for a while.
    let idle = || (bridged.counts().3 == 0 && bridged.counts().0 == 0).then(|| bridged.counts());
    let before = wait_for("no namespace is ready", PATIENCE, idle)?;
    let steps: String = (0..30).map(|n| format!("RUN echo {n} && ip addr show eth0\n")).collect();
    let project = Project::new(&format!("FROM busybox\n{steps}RUN false\n"))?;
    bridged.bench.build(Buildctl, &project, &["no-cache"])?.fails_with(&["RUN false"])?;
    let same = || (bridged.counts() == before).then_some(());
    wait_for("everything is as before", PATIENCE, same)
        .with_context(|| format!("{before:?} became {:?}", bridged.counts()))?;
    bridged.finish()
}

fn settings_take_effect() -> Result<()> {
    // The pool, and DNS.
    let bridged = Bridged::start(
        "cniPoolSize = 1\n[dns]\nnameservers = [\"192.0.2.53\"]\nsearchDomains = [\"example.test\"]\n",
        &["--oci-cni-pool-size=3"],
    )?;
    let ready = || (bridged.ledger().len() == 3).then_some(());
    wait_for("three are ready", PATIENCE, ready).with_context(|| format!("{:?}", bridged.counts()))?;
    let project =
        Project::new("FROM busybox AS b\nRUN cat /etc/resolv.conf > /r\nFROM scratch\nCOPY --from=b /r /\n")?;
    let conf = text(&bridged.bench.export(Buildctl, &project, &[])?, "r")?;
    ensure!(conf.contains("nameserver 192.0.2.53\n") && conf.contains("search example.test"), "{conf}");
    ensure!(conf.matches("nameserver").count() == 1, "{conf}");
    bridged.finish()?;

    // Flags go before the file: the network is that of the configuration named by them.
    let dir = tempfile::TempDir::with_prefix("bk-net-")?;
    let config = dir.path().join("flat.conflist");
    let path = config.display();
    std::fs::write(&config, r#"{"cniVersion":"1.0.0","name":"flat","plugins":[{"type":"only-here"}]}"#)?;
    std::fs::write(
        dir.path().join("only-here"),
        "#!/bin/sh\n[ $CNI_COMMAND = ADD ] && echo '{\"cniVersion\":\"1.0.0\"}'; exit 0\n",
    )?;
    std::fs::set_permissions(
        dir.path().join("only-here"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let args = vec![
        "--oci-worker-net=cni".into(),
        format!("--oci-cni-config-path={path}"),
        format!("--oci-cni-binary-dir={}", dir.path().display()),
    ];
    let bench = Bench::start(Options { net: Net::Host, args: args.clone(), ..Options::default() })?;
    let project = Project::new("FROM busybox\nRUN ! ip link show eth0 && ip link show lo\n")?;
    bench.build(Buildctl, &project, &["no-cache"])?.ok()?;
    bench.finish()?;

    // And the other way round.
    let host = Options { net: Net::Cni, args: vec!["--oci-worker-net=host".into()], ..Options::default() };
    let bench = Bench::start(host)?;
    let project = Project::new("FROM busybox AS b\nRUN ip -o link > /r\nFROM scratch\nCOPY --from=b /r /\n")?;
    let seen = text(&bench.export(Buildctl, &project, &[])?, "r")?;
    let count = std::fs::read_dir("/sys/class/net")?.count();
    ensure!(seen.lines().count() > 1 || count == 1, "not the host's network: {seen}");
    bench.finish()?;

    // What cannot work stops the start, and names the place.
    std::fs::remove_file(&config)?;
    for (args, named) in [(args, "flat.conflist"), (vec!["--oci-worker-net=sideways".into()], "sideways")] {
        let error = Bench::start(Options { net: Net::Host, args, ..Options::default() }).err();
        let error = format!("{:?}", error.with_context(|| format!("started in spite of {named}"))?);
        ensure!(error.contains(named), "{error}");
    }
    Ok(())
}

/// One line of the log says which network it is and why, whatever the outcome.
fn auto_says_why() -> Result<()> {
    let lines = |bench: &Bench| -> Vec<String> {
        let log = bench.daemon.log();
        log.lines().filter(|l| l.contains("network of build steps")).map(str::to_owned).collect()
    };
    let said = |bench: &Bench, parts: &[&str]| {
        let lines = lines(bench);
        ensure!(lines.len() == 1, "{lines:?}");
        ensure!(parts.iter().all(|part| lines[0].contains(part)), "{parts:?} are not in {lines:?}");
        Ok(())
    };
    let bridged = Bridged::start_in("auto", "", &[])?;
    said(&bridged.bench, &["INFO", "mode=\"cni\"", &bridged.bridge, "there is no ", "may make networks"])?;
    bridged.finish()?;

    let options = Options { args: vec!["--oci-worker-net=auto".into()], ..Options::default() };
    let bench = Bench::start(options)?;
    said(&bench, &["INFO", "mode=\"cni\"", "net.conflist", "the file is there"])?;
    bench.finish()?;

    let worker = "bridgeName = \"lo\"\n".into();
    let bench = Bench::start(Options { net: Net::Auto, worker, ..Options::default() })?;
    said(&bench, &["WARN", "mode=\"host\"", "no network can be made here", "is not a bridge"])?;
    bench.finish()
}

/// Networks that podman has written down, where the daemon was built to know them.
/// `BUILDKIT_TEST_NETAVARK` says that it was.
fn podmans_networks() -> Result<()> {
    let bridge = format!("bkv{:x}", std::process::id() & 0xff_ffff);
    let subnet = format!("10.253.{}", std::process::id() % 256);
    let dir = tempfile::TempDir::with_prefix("bk-net-")?;
    let path = dir.path().join("build.json");
    let network = serde_json::json!({
        "name": "build", "id": format!("{:064x}", std::process::id()), "driver": "bridge",
        "network_interface": bridge, "created": "2026-01-01T00:00:00Z", "ipv6_enabled": false,
        "internal": false, "dns_enabled": true, "ipam_options": {"driver": "host-local"},
        "subnets": [{
            "subnet": format!("{subnet}.0/24"), "gateway": format!("{subnet}.1"),
            "lease_range": {"start_ip": format!("{subnet}.100"), "end_ip": format!("{subnet}.200")},
        }],
    });
    std::fs::write(&path, network.to_string())?;
    let args = vec![
        "--oci-worker-net=netavark".into(),
        format!("--oci-cni-config-path={}", path.display()),
        "--allow-insecure-entitlement=security.insecure".into(),
    ];
    let options = Options { net: Net::Host, args, ..Options::default() };
    let bench = match Bench::start(options.clone()) {
        Ok(bench) => bench,
        Err(e) if std::env::var_os("BUILDKIT_TEST_NETAVARK").is_none() => {
            let said = format!("{e:?}");
            ensure!(said.contains("built without the feature `netavark`"), "{said}");
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let mut bridged = Bridged { bench, bridge };
    let log = bridged.bench.daemon.log();
    ensure!(log.contains("asked=\"netavark\"") && log.contains("build.json"), "{log}");
    let (_server, other) = bridged.serve()?;
    ensure!(other.starts_with(&format!("{subnet}.1")) && other.len() == subnet.len() + 4, "{other}");
    let port = answer(&format!("{subnet}.1"), b"host")?;
    let local = answer("127.0.0.1", b"local")?;
    let project = Project::new(&format!(
        "FROM busybox\nARG N\n\
         RUN : $N; ! nc -w 2 {other} 8080 </dev/null && nc -w 5 {subnet}.1 {port} </dev/null | grep host\n\
         RUN ip route | grep 'default via {subnet}.1'\n"
    ))?;
    let several: Vec<Reaped> = (0..4).map(|n| bridged.spawn(&project, n)).collect::<Result<_>>()?;
    for mut build in several {
        ensure!(build.0.wait()?.success(), "{}", bridged.bench.daemon.log());
    }
    // Netavark has the kernel route to the host's loopback.
    let sly = to_loopback(&format!("{subnet}.1"), local);
    let sly = Project::new(&format!("FROM busybox\nRUN --security=insecure {sly}\n"))?;
    bridged.bench.build(Buildctl, &sly, &["allow=security.insecure"])?.ok()?;

    // What a killed daemon leaves, the next one takes away; itself it leaves nothing.
    bridged.bench.daemon.crash()?;
    ensure!(bridged.counts().0 == 0, "{:?}", bridged.counts());
    let net = bridged.bench.daemon.root().join("net");
    let plain = Project::new(&format!("FROM busybox\nRUN ip route | grep 'default via {subnet}.1'\n"))?;
    bridged.bench.build(Buildctl, &plain, &["no-cache"])?.ok()?;
    let left = || -> Vec<String> {
        let dirs = ["ipam/build", "netavark/firewall/networks", "netavark/firewall/ports", "cni", "ledger"];
        let names = dirs.iter().flat_map(|dir| integration::bench::names(&net.join(dir)).unwrap_or_default());
        names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")).collect()
    };
    wait_for("nothing is left", PATIENCE, || left().is_empty().then_some(()))
        .with_context(|| format!("{:?}", left()))?;
    let rules = Command::new("nft").args(["list", "ruleset"]).output()?;
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    ensure!(!rules.contains(&subnet) && !rules.contains(&bridged.bridge), "{rules}");
    bridged.finish()?;

    // Nonsense is refused by name.
    std::fs::write(&path, network.to_string().replace("10.253.", "10.999."))?;
    let error = format!("{:?}", Bench::start(options).err().context("started on a broken network")?);
    ensure!(error.contains("build.json") && error.contains("not a network of podman"), "{error}");
    Ok(())
}
