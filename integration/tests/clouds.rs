//! Caches in stores of objects: they bring results back, and when they do not,
//! people hear which one and why.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use base::Timestamp;
use integration::bench::Client::{self, Buildctl, Buildx};
use integration::bench::text;
use integration::mock::Reply;
use integration::{Bench, Options, Project, Store, process, stores, suite};

const ID: &str = "AKID";
const KEY: &str = "secret/key+";

/// All cases forget what the daemon has built, so they take turns.
struct Env(Mutex<Bench>);

impl Env {
    fn with(&self, case: impl FnOnce(&Bench) -> Result<()>) -> Result<()> {
        case(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn main() -> ExitCode {
    let cases: [suite::Case<Env>; 6] = [
        ("buckets_bring_results_back", |e| e.with(buckets_bring_results_back)),
        ("containers_bring_results_back", |e| e.with(containers_bring_results_back)),
        ("actions_bring_results_back", |e| e.with(actions_bring_results_back)),
        ("refusals_name_the_cache_and_the_place", |e| e.with(refusals_name_the_cache_and_the_place)),
        ("stores_that_are_busy_are_asked_again", |e| e.with(stores_that_are_busy_are_asked_again)),
        ("what_is_broken_is_named", |e| e.with(what_is_broken_is_named)),
    ];
    suite::main(
        || Ok(Env(Mutex::new(Bench::start(Options::default())?))),
        &cases,
        |env| env.0.into_inner().unwrap_or_else(PoisonError::into_inner).finish(),
    )
}

/// Says which run made it; of `large` bytes that do not get smaller.
fn unique(mark: &str, large: u32) -> Result<Project> {
    Project::new(&format!(
        "FROM busybox AS build\nRUN echo {mark} && cat /proc/sys/kernel/random/uuid >/side\n\
         RUN head -c {large} /dev/urandom >/large\n\
         FROM busybox\nCOPY --from=build /side /large /\nRUN cat /proc/sys/kernel/random/uuid >/out\n"
    ))
}

fn made(bench: &Bench, client: Client, project: &Project, options: &[&str]) -> Result<(String, String)> {
    let out = bench.export(client, project, options)?;
    Ok((text(&out, "side")?, text(&out, "out")?))
}

fn forget(bench: &Bench) -> Result<()> {
    bench.buildctl.run(&["prune", "--all"])?.ok()?;
    Ok(())
}

fn s3(store: &Store) -> String {
    let url = store.url();
    format!(
        "type=s3,bucket=cache,region=nowhere-1,endpoint_url={url},use_path_style=true,\
         access_key_id={ID},secret_access_key={KEY}"
    )
}

fn azblob(store: &Store) -> String {
    use base64::Engine as _;
    let key = base64::engine::general_purpose::STANDARD.encode(KEY);
    format!("type=azblob,account_url={}/acc,account_name=acc,secret_access_key={key}", store.url())
}

fn buckets_bring_results_back(bench: &Bench) -> Result<()> {
    let store = Store::s3(ID, KEY)?;
    let at = s3(&store);
    // Large enough to be sent in parts.
    let project = unique("bucket", 20 << 20)?;
    let write = format!("--export-cache={at},mode=max,prefix=p/,name=one;two");
    let before = made(bench, Buildctl, &project, &[&write])?;
    let names = store.names();
    ensure!(names.contains(&"p/manifests/one".to_owned()), "{names:?}");
    ensure!(names.contains(&"p/manifests/two".to_owned()), "{names:?}");
    ensure!(names.iter().filter(|name| name.starts_with("p/blobs/sha256:")).count() >= 5, "{names:?}");
    let parts = store.seen().iter().filter(|r| r.method == "PUT" && r.path.contains("partNumber=")).count();
    ensure!(parts >= 3, "sent in {parts} parts");
    forget(bench)?;
    // Nobody looks into the result, so that nothing has to be brought here.
    let read = format!("--cache-from={at},prefix=p/,name=two");
    let layers = || store.seen().iter().filter(|r| r.method == "GET" && r.path.contains("/blobs/")).count();
    bench.build(Buildx, &project, &[&read])?.ok()?;
    ensure!(layers() == 0, "{} layers were fetched for nobody", layers());
    ensure!(made(bench, Buildx, &project, &[&read])? == before, "not found in the bucket");
    ensure!(layers() > 0, "where is it from?");

    // What is there is not sent again, and made to look new when it has become old.
    let day = Timestamp::from_secs(Timestamp::now().secs() - 25 * 3600);
    store.edit(|_, object| object.modified = day);
    let asked = store.seen().len();
    let read = format!("--import-cache={at},prefix=p/,name=two");
    ensure!(made(bench, Buildctl, &project, &[&read, &write])? == before);
    let puts: Vec<_> = store.seen().split_off(asked).into_iter().filter(|r| r.method == "PUT").collect();
    let blobs = || puts.iter().filter(|r| r.path.contains("/blobs/"));
    ensure!(blobs().count() >= 5 && blobs().all(|r| r.headers.contains_key("x-amz-copy-source")), "{puts:?}");
    store.edit(|name, object| assert!(object.modified > day, "{name} is still old"));
    Ok(())
}

fn containers_bring_results_back(bench: &Bench) -> Result<()> {
    let store = Store::azure("acc", KEY)?;
    let at = azblob(&store);
    let project = unique("container", 20 << 20)?;
    let before = made(bench, Buildctl, &project, &[&format!("--export-cache={at},mode=max,prefix=p")])?;
    let names = store.names();
    ensure!(names.contains(&"p/manifests/buildkit".to_owned()), "{names:?}");
    ensure!(names.iter().filter(|name| name.starts_with("p/blobs/sha256:")).count() >= 5, "{names:?}");
    let blocks = store.seen().iter().filter(|r| r.path.contains("comp=block&")).count();
    ensure!(blocks >= 3, "sent in {blocks} blocks");
    forget(bench)?;
    let read = format!("--cache-from={at},prefix=p");
    ensure!(made(bench, Buildx, &project, &[&read])? == before, "not found in the container");
    Ok(())
}

fn actions_bring_results_back(bench: &Bench) -> Result<()> {
    let token = stores::token();
    for second in [false, true] {
        let store = Store::actions(&token)?;
        let project = unique(&format!("actions {second}"), 20 << 20)?;
        let url = store.url();
        // As on a runner: everything is in the client's environment.
        let build = |caches: &[&str]| {
            let out = tempfile::TempDir::with_prefix("bk-out-")?;
            let output = format!("--output=type=local,dest={}", out.path().display());
            let args: Vec<&str> = caches.iter().copied().chain([output.as_str()]).collect();
            let mut command = bench.buildctl.build_command(project.dir(), &args);
            command.env("ACTIONS_RUNTIME_TOKEN", &token);
            command.env("ACTIONS_CACHE_SERVICE_V2", if second { "true" } else { "false" });
            command.env("ACTIONS_CACHE_URL", if second { "http://127.0.0.1:1/" } else { &url });
            command.env("ACTIONS_RESULTS_URL", &url);
            process::run(command)?.ok()?;
            anyhow::Ok((text(&out, "side")?, text(&out, "out")?))
        };
        let (write, read) = ("--export-cache=type=gha,mode=max,scope=s", "--import-cache=type=gha,scope=s");
        let before = build(&[write])?;
        let hash = base::Digest::of("refs/heads/main");
        let index = format!("index-s-1-{}#1", &hash.hex()[..8]);
        ensure!(store.names().contains(&index), "{:?}", store.names());
        forget(bench)?;
        ensure!(build(&[read])? == before, "not found in the service");
        // The description is written again, nothing else.
        ensure!(build(&[read, write])? == before);
        let names = store.names();
        ensure!(names.contains(&index.replace("#1", "#2")), "{names:?}");
        let twirp = store.seen().iter().filter(|r| r.path.starts_with("/twirp/")).count();
        ensure!((twirp > 0) == second, "{twirp} requests in the second version");
    }
    Ok(())
}

fn refusals_name_the_cache_and_the_place(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM busybox\nRUN echo refused\n")?;
    let (bucket, container) = (Store::s3(ID, KEY)?, Store::azure("acc", KEY)?);
    let service = Store::actions(&stores::token())?;
    let wrong_s3 = s3(&bucket).replace(KEY, "other");
    let nowhere = s3(&bucket).replace("bucket=cache", "bucket=elsewhere");
    let wrong_azblob = azblob(&container).replace("secret_access_key=", "secret_access_key=AAAA");
    let wrong_gha = format!("type=gha,url={},token={}", service.url(), stores::token().replace(".eA", ".eB"));
    for (cache, title, said) in [
        (&wrong_s3, "exporting cache to Amazon S3", ["403 Forbidden", "/cache/"]),
        (&nowhere, "exporting cache to Amazon S3", ["NoSuchBucket", "/elsewhere/"]),
        (
            &wrong_azblob,
            "exporting cache to Azure Blob Storage",
            ["AuthenticationFailed", "/acc/buildkit-cache"],
        ),
        (&wrong_gha, "exporting to GitHub Actions Cache", ["401 Unauthorized", "who are you?"]),
    ] {
        let write = format!("--export-cache={cache}");
        bench.build(Buildctl, &project, &[&write])?.fails_with(&[title, said[0], said[1]])?;
        bench.build(Buildctl, &project, &[&format!("{write},ignore-error=true")])?.ok()?;
        // A cache that cannot be read never fails a build.
        let read = bench.build(Buildctl, &project, &[&format!("--import-cache={cache}")])?.said()?;
        let kind = cache.split(['=', ',']).nth(1).unwrap_or_default();
        ensure!(read.contains(&format!("importing cache manifest from {kind}:")), "{read}");
        ensure!(read.contains(said[0]) && read.contains(said[1]), "{read}");
    }
    for (cache, said) in [
        (
            "type=s3,region=r",
            "failed to configure s3 cache exporter: bucket ($AWS_BUCKET) not set for s3 cache",
        ),
        ("type=azblob", "failed to configure azblob cache exporter: failed to create azblob config: either"),
        ("type=gha,url=http://h,token=x", "failed to configure gha cache exporter: invalid token"),
    ] {
        bench.build(Buildctl, &project, &[&format!("--export-cache={cache}")])?.fails_with(&[said])?;
    }
    Ok(())
}

fn stores_that_are_busy_are_asked_again(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM busybox\nRUN echo busy\n")?;
    let store = Store::s3(ID, KEY)?;
    let write = format!("--export-cache={}", s3(&store));
    let slow = || Reply::new(503, "<Error><Code>SlowDown</Code></Error>");
    // The first time.
    let asked = Mutex::new(HashSet::new());
    store.trouble(move |request| {
        asked.lock().ok()?.insert((request.method.clone(), request.path.clone())).then(slow)
    });
    bench.build(Buildctl, &project, &[&write])?.ok()?;
    ensure!(store.names().contains(&"manifests/buildkit".to_owned()), "{:?}", store.names());
    store.trouble(move |_| Some(slow()));
    let asked = store.seen().len();
    let once = format!("{write},retry_max_attempts=1,name=other");
    bench.build(Buildctl, &project, &[&once])?.fails_with(&["/cache/blobs/", "503 Service Unavailable"])?;
    ensure!(store.seen().len() > asked, "not asked at all");

    let (token, count) = (stores::token(), Arc::new(AtomicU32::new(0)));
    let store = Store::actions(&token)?;
    let write = format!("--export-cache=type=gha,url_v2={},token={token},timeout=2s", store.url());
    let counted = count.clone();
    store.trouble(move |request| {
        let limited = request.path.starts_with("/twirp/") && counted.fetch_add(1, Ordering::SeqCst) % 5 != 4;
        limited.then(|| Reply::new(429, r#"{"message":"too often"}"#).header("Retry-After", "0"))
    });
    bench.build(Buildctl, &project, &[&write])?.ok()?;
    store.trouble(|_| Some(Reply::new(429, r#"{"message":"too often"}"#).header("Retry-After", "30")));
    bench.build(Buildctl, &project, &[&write])?.fails_with(&["429 Too Many Requests", "too often"])?;
    store.peace();
    bench.build(Buildctl, &project, &[&write])?.ok()?;
    Ok(())
}

fn what_is_broken_is_named(bench: &Bench) -> Result<()> {
    let store = Store::s3(ID, KEY)?;
    let (write, read) =
        (format!("--export-cache={},mode=max", s3(&store)), format!("--import-cache={}", s3(&store)));
    let project = unique("broken", 1000)?;
    let before = made(bench, Buildctl, &project, &[&write])?;
    forget(bench)?;
    // Transfers that break off are taken up again.
    let broken = Arc::new(AtomicU32::new(0));
    let counted = broken.clone();
    let mut layers = BTreeMap::new();
    store.edit(|name, object| {
        layers.insert(format!("/cache/{}", name.replace(':', "%3A")), object.bytes.clone());
    });
    store.trouble(move |request| {
        let whole = request.method == "GET" && !request.headers.contains_key("range");
        let content =
            layers.get(&request.path).filter(|_| whole && request.path.contains("/blobs/"))?.clone();
        counted.fetch_add(1, Ordering::SeqCst);
        Some(Reply::new(200, content).cut())
    });
    ensure!(made(bench, Buildctl, &project, &[&read])? == before, "a broken transfer was the end of it");
    ensure!(broken.load(Ordering::SeqCst) > 0, "nothing broke");
    store.peace();
    // Layers that are not what they are called are not used.
    forget(bench)?;
    store.edit(|name, object| {
        if name.starts_with("blobs/") {
            object.bytes.truncate(object.bytes.len() / 2)
        }
    });
    let out = tempfile::TempDir::with_prefix("bk-out-")?;
    let output = format!("output=type=local,dest={}", out.path().display());
    let place = format!("{}/cache/blobs/sha256%3A", store.url());
    bench.build(Buildctl, &project, &[&read, &output])?.fails_with(&["fetch sha256:", &place])?;
    let after = made(bench, Buildctl, &project, &[])?;
    ensure!(after.0 != before.0 && after.1 != before.1, "made of layers that are not those promised");
    store.edit(|name, object| {
        if name.starts_with("manifests/") {
            object.bytes.truncate(10)
        }
    });
    let said = bench.build(Buildctl, &project, &[&read])?.said()?;
    ensure!(said.contains("invalid cache config"), "{said}");
    Ok(())
}
