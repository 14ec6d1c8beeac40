//! Steps that reach the network only through a proxy: what they can fetch, what is told
//! of it, and that nothing else gets through or stays.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::bench::{self, Client::Buildctl, text};
use integration::gateway::{Client, Process, bind};
use integration::layout::entries;
use integration::llb::{busybox, input, result, shell};
use integration::mock::{Mock, Reply};
use integration::process::Reaped;
use integration::{Bench, Net, Options, Project, image, leak, suite, wait_for};
use prost::Message as _;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const PROXY: &str = "--proxy-network";
/// Where programs look for whom to trust.
const TRUST: &str = "/etc/ssl/certs/ca-certificates.crt";

fn main() -> ExitCode {
    let cases: [suite::Case<Env>; 9] = [
        ("requests_are_seen_and_told", requests_are_seen_and_told),
        ("layers_are_told", layers_are_told),
        ("policies_decide", policies_decide),
        ("tls_is_looked_into", tls_is_looked_into),
        ("modes_decide_what_is_reached", modes_decide_what_is_reached),
        ("materials_that_cannot_be_told", materials_that_cannot_be_told),
        ("nothing_stays_in_the_result", nothing_stays_in_the_result),
        ("rubbish_does_no_harm", rubbish_does_no_harm),
        ("killed_while_it_serves", |_| killed_while_it_serves()),
    ];
    suite::main(Env::start, &cases, |env| {
        // Every namespace went with its step.
        let none = || env.namespaces().is_empty().then_some(());
        wait_for("namespaces are gone", PATIENCE, none).with_context(|| env.bench.daemon.log())?;
        env.bench.finish()
    })
}

/// A daemon on a bridge of its own, and a server on this host that steps could reach there.
struct Env {
    bench: Bench,
    server: Mock,
    /// The server, as steps see it.
    there: String,
}

impl Env {
    fn start() -> Result<Self> {
        Self::start_with(0, &["--allow-insecure-entitlement=network.host"])
    }

    fn start_with(number: u32, args: &[&str]) -> Result<Self> {
        let pid = std::process::id();
        let net = format!("10.{}.{}", 216 + number, pid % 256);
        let worker = format!(
            "networkMode = \"bridge\"\nbridgeName = \"bkp{:x}n{number}\"\nbridgeSubnet = \"{net}.0/24\"\n",
            pid & 0xff_ffff
        );
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let bench = Bench::start(Options { net: Net::Auto, worker, args, ..Options::default() })?;
        let server = Mock::start_on("0.0.0.0:0", |request| match request.path.split('?').next() {
            Some("/text") => Reply::new(200, "text\n"),
            Some("/from") => Reply::new(302, "").header("Location", "/text"),
            _ => Reply::new(404, "nothing\n"),
        })?;
        let there = format!("http://{net}.1:{}", server.port());
        Ok(Self { bench, server, there })
    }

    fn namespaces(&self) -> BTreeSet<String> {
        let names = bench::names(&self.bench.daemon.root().join("net/cni"));
        names.unwrap_or_default().into_iter().collect()
    }

    /// What the server was asked, of what ends with `mark`.
    fn asked(&self, mark: &str) -> usize {
        self.server.seen().iter().filter(|r| r.path.ends_with(mark)).count()
    }
}

/// The statement beside an exported tree.
fn statement(tree: &tempfile::TempDir) -> Result<Value> {
    let statement: Value = serde_json::from_str(&text(tree, "provenance.json")?)?;
    Ok(statement["predicate"].clone())
}

fn requests_are_seen_and_told(env: &Env) -> Result<()> {
    let there = &env.there;
    let project = Project::new(&format!(
        "FROM busybox AS b\n\
         RUN wget -q -O /got '{there}/from?seen' && wget -q -O /got '{there}/text?seen' && grep text /got\n\
         RUN unset HTTP_PROXY HTTPS_PROXY http_proxy https_proxy; wget -q -O- '{there}/text?leak' 2>&1 | grep -i unreachable && ! ip route | grep .\n\
         RUN --network=none ! env | grep -i '^http.*proxy='\n\
         FROM scratch\nCOPY --from=b /got /\n"
    ))?;
    let out = tempfile::TempDir::with_prefix("bk-out-")?;
    let output = format!("output=type=local,dest={}", out.path().display());
    let told = "--opt=attest:provenance=mode=max";
    let said = env.bench.build(Buildctl, &project, &[PROXY, told, &output])?.said()?;
    let parts = [
        "proxy network requests:".to_owned(),
        format!("- GET {there}/from?seen -> 302"),
        format!("- GET {there}/text?seen -> 200"),
    ];
    for part in parts {
        ensure!(said.contains(&part), "{part} is not in {said}");
    }
    ensure!(env.asked("?seen") == 2 && env.asked("?leak") == 0, "{:?}", env.server.seen());
    let told = statement(&out)?;
    let used = told["buildDefinition"]["resolvedDependencies"].as_array().context("dependencies")?;
    let material = used.iter().find(|m| m["uri"] == format!("{there}/text?seen"));
    let digest = image::digest(b"text\n");
    ensure!(
        material.is_some_and(|m| Some(format!("sha256:{}", m["digest"]["sha256"].as_str().unwrap_or("")))
            == Some(digest.clone())),
        "{told}"
    );
    let metadata = &told["runDetails"]["metadata"];
    ensure!(metadata["buildkit_metadata"]["network"]["mode"] == "proxy", "{metadata}");
    ensure!(metadata["buildkit_metadata"]["network"]["proxy"].is_null(), "{metadata}");
    ensure!(metadata["buildkit_hermetic"].is_null(), "{metadata}");
    // Without it nothing of that is there.
    let out = env.bench.export(Buildctl, &Project::new("FROM busybox AS b\nRUN ! env | grep -i '^http.*proxy=' && touch /x\nFROM scratch\nCOPY --from=b /x /\n")?, &["--opt=attest:provenance=mode=max"])?;
    ensure!(statement(&out)?["runDetails"]["metadata"]["buildkit_metadata"]["network"].is_null());
    Ok(())
}

/// The step has another digest than in the definition, and is found for all that.
fn layers_are_told(env: &Env) -> Result<()> {
    let (registry, name) = (&env.bench.registry, "out/proxied");
    let project = Project::new("FROM busybox\nRUN echo made >/made\n")?;
    let output = format!("output=type=image,name={}/{name},push=true", registry.host());
    let told = "--opt=attest:provenance=mode=max";
    env.bench.build(Buildctl, &project, &[PROXY, told, &output])?.ok()?;
    let said = registry.statement(name, "latest", "https://slsa.dev/provenance/v1")?;
    let layers = &said["runDetails"]["metadata"]["buildkit_metadata"]["layers"];
    let (manifest, _) = registry.image(name, "latest")?;
    let made = &manifest["layers"][1]["digest"];
    let ends_with_it = |chain: &Value| {
        chain.as_array().and_then(|chain| chain.last()).is_some_and(|layer| layer["digest"] == *made)
    };
    let told = layers.as_object().is_some_and(|steps| steps.values().any(|chains| ends_with_it(&chains[0])));
    ensure!(made.is_string() && told, "{layers} does not have {made}");
    Ok(())
}

fn policies_decide(env: &Env) -> Result<()> {
    let there = &env.there;
    let project = Project::new(&format!(
        "FROM busybox\n\
         RUN ! wget -S -O- '{there}/text?denied' 2>/log; cat /log; grep '403 Forbidden' /log\n\
         RUN wget -q -O- '{there}/moved?policy' | grep text\n\
         RUN {} | grep 403\n",
        ask("POST", &format!("{there}/moved?policy"))
    ))?;
    let rules = [
        rule("DENY", "*?denied", ""),
        rule("CONVERT", &format!("{there}/moved?policy"), &format!("{there}/text?converted")),
    ];
    let policy = policy(&project, &rules)?;
    let said = env.bench.build(Buildctl, &project, &[PROXY, &policy])?.said()?;
    ensure!(said.contains(&format!("- GET {there}/text?converted -> 200")), "{said}");
    ensure!(!said.contains(&format!("- GET {there}/text?denied")), "{said}");
    ensure!(!said.contains(&format!("- POST {there}")), "{said}");
    ensure!(env.asked("?denied") == 0 && env.asked("?converted") == 1, "{:?}", env.server.seen());
    ensure!(env.asked("/moved?policy") == 0, "{:?}", env.server.seen());
    Ok(())
}

/// Programs that know how to speak to a proxy are let through TLS, and check with whom.
fn tls_is_looked_into(env: &Env) -> Result<()> {
    let client = "openssl s_client -quiet -verify_return_error -proxy ${HTTPS_PROXY#http://} \
                  -connect secure.test:443 -servername secure.test -verify_hostname secure.test";
    let ask = "printf 'GET /text HTTP/1.1\\r\\nHost: elsewhere.test\\r\\nConnection: close\\r\\n\\r\\n'";
    let project = Project::new(&format!(
        "FROM busybox\nCOPY --chmod=755 root /\n\
         RUN --network=none mkdir -p /etc/ssl/certs && echo >{TRUST}\n\
         RUN {ask} | {client} -CAfile {TRUST} | grep text\n\
         RUN {ask} | {client} -no-CAfile -no-CApath -no-CAstore 2>&1 | grep 'verify error'\n"
    ))?;
    let mut libraries = std::process::Command::new("ldd");
    libraries.arg("/usr/bin/openssl");
    let libraries = integration::process::run(libraries)?.ok()?;
    let libraries = libraries.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/usr/bin/openssl"]) {
        project.write(&format!("root{file}"), std::fs::read(file)?)?;
    }
    // The server speaks no TLS: it is asked in another's place.
    let inside = format!("{}/text?inside", env.there);
    let policy = policy(&project, &[rule("CONVERT", "https://secure.test:443/text", &inside)])?;
    let said = env.bench.build(Buildctl, &project, &[PROXY, &policy])?.said()?;
    ensure!(said.contains(&format!("- GET {inside} -> 200")), "{said}");
    ensure!(env.asked("?inside") == 1, "{:?}", env.server.seen());
    Ok(())
}

/// A rule of a source policy.
fn rule(action: &str, from: &str, to: &str) -> String {
    let updates =
        if to.is_empty() { String::new() } else { format!(r#","updates":{{"identifier":"{to}"}}"#) };
    format!(r#"{{"action":"{action}","selector":{{"identifier":"{from}"}}{updates}}}"#)
}

/// The flag with a policy of these rules.
fn policy(project: &Project, rules: &[String]) -> Result<String> {
    project.write("policy.json", format!(r#"{{"rules":[{}]}}"#, rules.join(",")))?;
    Ok(format!("--source-policy-file={}", project.path("policy.json").display()))
}

/// Asks the proxy without a client that knows it.
fn ask(method: &str, url: &str) -> String {
    format!(
        "printf '{method} {url} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' | \
         nc $(echo ${{HTTP_PROXY#http://}} | tr : ' ')"
    )
}

fn modes_decide_what_is_reached(env: &Env) -> Result<()> {
    let local = Mock::start(|_| Reply::new(200, "local\n"))?;
    let url = format!("http://{}/", local.host());
    let fetch = format!("env NO_PROXY= no_proxy= wget -q -O- {url}");
    // This host's loopback is not where the network of steps leads.
    let sandboxed = Project::new(&format!("FROM busybox\nRUN ! {fetch}\n"))?;
    let said = env.bench.build(Buildctl, &sandboxed, &[PROXY])?.said()?;
    ensure!(said.contains(&format!("- GET {url} -> 502")) && local.seen().is_empty(), "{said}");
    let asking = Project::new(&format!("FROM busybox\nRUN --network=host {fetch} | grep local\n"))?;
    env.bench.build(Buildctl, &asking, &[PROXY])?.fails_with(&["network.host is not allowed"])?;
    ensure!(local.seen().is_empty());
    let said = env.bench.build(Buildctl, &asking, &[PROXY, "allow=network.host"])?.said()?;
    ensure!(said.contains(&format!("- GET {url} -> 200")) && local.seen().len() == 1, "{said}");
    Ok(())
}

fn materials_that_cannot_be_told(env: &Env) -> Result<()> {
    let there = &env.there;
    let step = shell(
        vec![input(&busybox(), 0)],
        &format!("wget -q -O- {there}/missing || {}", ask("POST", &format!("{there}/text?post"))),
        Vec::new(),
    );
    let definition = result(&[busybox(), step]).encode_to_vec();
    let strict = "--opt=attest:provenance=mode=max,complete-materials=true";
    let out = tempfile::TempDir::with_prefix("bk-out-")?;
    let output = format!("--output=type=local,dest={}", out.path().display());
    env.bench.buildctl.solve(&definition, &[PROXY, strict, &output])?.fails_with(&[
        "provenance materials are incomplete",
        &format!("{there}/missing"),
        "unsuccessful_response",
        "method_not_materializable",
    ])?;
    let told = "--opt=attest:provenance=mode=max";
    env.bench.buildctl.solve(&definition, &[PROXY, told, "--no-cache", &output])?.ok()?;
    let metadata = statement(&out)?["runDetails"]["metadata"].clone();
    ensure!(metadata["buildkit_completeness"]["resolvedDependencies"] == false, "{metadata}");
    let incomplete = metadata["buildkit_metadata"]["network"]["proxy"]["incomplete"].as_array().cloned();
    let incomplete = incomplete.with_context(|| metadata.to_string())?;
    let reasons: Vec<_> = incomplete.iter().filter_map(|i| i["reason"].as_str()).collect();
    ensure!(reasons == ["unsuccessful_response", "method_not_materializable"], "{metadata}");
    ensure!(
        incomplete.iter().all(|i| i["op"].as_str().is_some_and(|op| op.starts_with("sha256:"))),
        "{metadata}"
    );
    // What can be told in full is no reason to refuse.
    let fine = shell(vec![input(&busybox(), 0)], &format!("wget -q -O- '{there}/text?fine'"), Vec::new());
    let definition = result(&[busybox(), fine]).encode_to_vec();
    env.bench.buildctl.solve(&definition, &[PROXY, strict, &output])?.ok()?;
    Ok(())
}

fn nothing_stays_in_the_result(env: &Env) -> Result<()> {
    let name = format!("{}/out/proxied", env.bench.registry.host());
    let seen = format!("grep 'buildkit proxy CA begin' {TRUST} && grep 'END CERTIFICATE' {TRUST}");
    let project = Project::new(&format!(
        "FROM busybox\n\
         RUN --network=none mkdir -p /etc/ssl/certs && echo base >{TRUST}\n\
         RUN {seen} && echo other >/other\n\
         RUN {seen} && echo more >>{TRUST}\n\
         RUN cp {TRUST} /tmp/new && mv /tmp/new {TRUST} && {seen}\n\
         RUN --network=none test \"$(cat {TRUST})\" = \"$(printf 'base\\nmore')\"\n"
    ))?;
    let output = format!("output=type=image,name={name},push=true");
    env.bench.build(Buildctl, &project, &[PROXY, &output])?.ok()?;
    let (manifest, _) = env.bench.registry.image("out/proxied", "latest")?;
    let layers = manifest["layers"].as_array().context("layers")?;
    let layer = |at: usize| -> Result<_> {
        let digest = layers.get(at).and_then(|l| l["digest"].as_str()).context("layer")?;
        entries(&env.bench.registry.blob("out/proxied", digest)?)
    };
    // A step that does not touch the file has it not in its layer.
    let untouched = layer(2)?;
    ensure!(untouched.contains_key("other"), "{:?}", untouched.keys());
    ensure!(!untouched.keys().any(|k| k.starts_with("etc/ssl")), "{:?}", untouched.keys());
    let file = TRUST.trim_start_matches('/');
    for at in [3, 4] {
        let changed = layer(at)?;
        let data = changed.get(file).map(|e| String::from_utf8_lossy(&e.data).into_owned());
        ensure!(data.as_deref() == Some("base\nmore\n"), "layer {at}: {data:?}");
    }
    // Nor what a step leaves that failed.
    let failing = Project::new(&format!("FROM {name}\nRUN {seen} && false\n"))?;
    env.bench.build(Buildctl, &failing, &[PROXY])?.fails_with(&["exit code: 1"])
}

fn rubbish_does_no_harm(env: &Env) -> Result<()> {
    let there = &env.there;
    // Many at once that never ask, one that asks for the proxy itself, and headers without end.
    // Whoever is left when the step ends does not keep it.
    let project = Project::new(&format!(
        "FROM busybox\n\
         RUN p=${{HTTP_PROXY#http://}}; h=${{p%:*}}; n=${{p#*:}}; \
             for i in $(seq 40); do sleep 1000 | nc $h $n & done; \
             head -c 1000000 /dev/urandom | nc -w 2 $h $n >/dev/null; \
             (printf 'GET / HTTP/1.1\\r\\n'; yes 'X: y' | head -c 1000000) | nc -w 2 $h $n | head -c 100; \
             (printf \"CONNECT $p HTTP/1.1\\r\\n\\r\\n\"; sleep 1) | nc -w 2 $h $n | head -c 100; \
             (printf \"GET $HTTP_PROXY/text HTTP/1.0\\r\\n\\r\\n\"; sleep 1) | nc -w 5 $h $n | head -c 100; \
             wget -q -O- '{there}/text?after' | grep text\n"
    ))?;
    env.bench.build(Buildctl, &project, &[PROXY])?.ok()?;
    ensure!(env.asked("?after") == 1);
    Ok(())
}

/// For all builds when the daemon says so; and what a killed daemon leaves is gone.
fn killed_while_it_serves() -> Result<()> {
    let mut env = Env::start_with(1, &[PROXY])?;
    let there = env.there.clone();
    let project = Project::new(&format!(
        "FROM busybox\nRUN wget -q -O- '{there}/text?before' | grep text && sleep 1000\n"
    ))?;
    let mut command = env.bench.buildctl.build_command(project.dir(), &[]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut build = Reaped(command.spawn()?);
    let runs = || {
        let running = env.bench.daemon.at_work();
        running.iter().any(|p| p.trim_end().ends_with(": sleep 1000")).then_some(())
    };
    wait_for("the step runs", PATIENCE, runs).with_context(|| env.bench.daemon.log())?;
    // One for the step, one for what its proxy fetches.
    let before = env.namespaces();
    ensure!(before.len() >= 2, "{before:?}");
    env.bench.daemon.crash()?;
    _ = build.0.wait();
    let left = env.namespaces();
    ensure!(left.is_disjoint(&before), "{left:?} of {before:?}\n{}", env.bench.daemon.log());
    let mounts = leak::mounts(&env.bench.daemon.root().join("net"), Some(env.bench.daemon.pid()));
    let earlier = |mount: &Path| before.iter().any(|name| mount.ends_with(name));
    ensure!(!mounts.iter().any(|mount| earlier(mount)), "{mounts:?} of {before:?}");
    let plain = Project::new("FROM busybox\nRUN env | grep '^HTTPS_PROXY=http://10.89.0.1:'\n")?;
    env.bench.build(Buildctl, &plain, &["no-cache"])?.ok()?;
    containers_have_it_too(&env)?;
    env.bench.finish()
}

/// A container that a client opens reaches the network in the same way, whichever of its
/// processes asks.
fn containers_have_it_too(env: &Env) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = Client::begin(&env.bench.daemon, "", &[]).await?;
        let root = client.gateway.solve(result(&[busybox()]), false).await?;
        client.gateway.open("c", vec![bind(&root, "/")]).await?;
        let fetch = format!("wget -q -O- '{}/text?container'", env.there);
        let mut first = client.gateway.start("c", Process::shell(&format!("{fetch}; sleep 600"))).await?;
        first.says("text").await?;
        let mut other = Process::shell(&fetch);
        other.meta.env = vec!["A=b".to_owned()];
        ensure!(client.gateway.exec("c", other).await?.ok()? == "text\n");
        ensure!(env.asked("?container") == 2, "{:?}", env.server.seen());
        // It says how the first process ended.
        _ = client.gateway.release("c").await;
        client.finish().await
    })
}
