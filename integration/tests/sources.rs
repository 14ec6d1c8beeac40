//! Files by URL, repositories, layouts of the client, and who may say which of them
//! are used. Servers that lie are among them.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use integration::bench::Client::{Buildctl, Buildx};
use integration::bench::{names, text};
use integration::git::{GitServer, Repository};
use integration::image::{Image, digest, push_blob};
use integration::llb::{result, source};
use integration::mock::{Mock, Reply, Request};
use integration::{Bench, Options, Project, suite};
use prost::Message as _;
use proto::pb;
use tempfile::TempDir;

fn main() -> ExitCode {
    suite::main(
        || Bench::start(Options::default()),
        &[
            ("files_by_url", files_by_url),
            ("files_with_checksums", files_with_checksums),
            ("files_for_those_who_may", files_for_those_who_may),
            ("contexts_by_url", contexts_by_url),
            ("web_servers_that_lie", web_servers_that_lie),
            ("repositories", repositories),
            ("repositories_as_contexts", repositories_as_contexts),
            ("repositories_that_move_on", repositories_that_move_on),
            ("repositories_for_those_who_may", repositories_for_those_who_may),
            ("repositories_that_reach_out", repositories_that_reach_out),
            ("bundles_of_repositories", bundles_of_repositories),
            ("references_that_are_none", references_that_are_none),
            ("layouts_of_the_client", layouts_of_the_client),
            ("policies", policies),
        ],
        Bench::finish_serving,
    )
}

fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}

fn methods(mock: &Mock) -> Vec<String> {
    mock.seen().into_iter().map(|request| request.method).collect()
}

fn files_by_url(bench: &Bench) -> Result<()> {
    let changed = std::sync::Arc::new(AtomicBool::new(false));
    let state = changed.clone();
    let packed = gzip(b"packed")?;
    let mock = Mock::start(move |request: &Request| match request.path.as_str() {
        "/dir/file%20name?query" => {
            let (etag, body) = if state.load(Relaxed) { ("W/\"2\"", "second") } else { ("\"1\"", "first") };
            Reply::new(200, body)
                .header("ETag", etag)
                .header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
        }
        "/packed" => Reply::new(200, packed.clone()).header("Content-Encoding", "gzip"),
        "/elsewhere" => Reply::new(302, "").header("Location", "/dir/file%20name?query"),
        _ => Reply::new(404, ""),
    })?;
    let url = format!("http://{}/dir/file%20name?query", mock.host());
    let project = Project::new(&format!("FROM scratch\nADD --chmod=640 {url} /a/\n"))?;
    let tree = bench.export(Buildx, &project, &[])?;
    ensure!(text(&tree, "a/file name")? == "first");
    let meta = std::fs::metadata(tree.path().join("a/file name"))?;
    ensure!(meta.mode() & 0o7777 == 0o640 && meta.mtime() == 784_111_777, "{meta:?}");
    // What is known is only asked about.
    bench.export(Buildctl, &project, &[])?;
    ensure!(methods(&mock) == ["GET", "HEAD"], "{:?}", methods(&mock));
    let seen = mock.seen();
    ensure!(seen[1].headers.get("if-none-match").is_some_and(|etag| etag == "\"1\""), "{:?}", seen[1]);
    changed.store(true, Relaxed);
    ensure!(text(&bench.export(Buildctl, &project, &[])?, "a/file name")? == "second");
    ensure!(methods(&mock) == ["GET", "HEAD", "HEAD", "GET"], "{:?}", methods(&mock));

    let project = Project::new(&format!(
        "FROM scratch\nADD http://{host}/packed http://{host}/elsewhere /\n",
        host = mock.host()
    ))?;
    let tree = bench.export(Buildctl, &project, &[])?;
    ensure!(text(&tree, "packed")? == "packed" && text(&tree, "elsewhere")? == "second");
    Ok(())
}

fn files_with_checksums(bench: &Bench) -> Result<()> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "inside", &b"files"[..])?;
    let archive = gzip(&tar.into_inner()?)?;
    let checksum = digest(&archive);
    let mock = Mock::start(move |_| Reply::new(200, archive.clone()))?;
    let url = format!("http://{}/a.tar.gz", mock.host());
    let project = Project::new(&format!("FROM scratch\nADD --checksum={checksum} --unpack {url} /\n"))?;
    for _ in 0..2 {
        ensure!(text(&bench.export(Buildx, &project, &[])?, "inside")? == "files");
    }
    // What is known by its digest is not even asked about.
    ensure!(methods(&mock) == ["GET"], "{:?}", methods(&mock));
    let wrong = digest(b"something else");
    let project = Project::new(&format!("FROM scratch\nADD --checksum={wrong} {url} /\n"))?;
    bench.build(Buildctl, &project, &[])?.fails_with(&["digest mismatch", &url, &checksum, &wrong])
}

fn files_for_those_who_may(bench: &Bench) -> Result<()> {
    let mock = Mock::start(|request| match request.headers.get("authorization").map(String::as_str) {
        Some("Bearer hush") => Reply::new(200, "told"),
        _ => Reply::new(401, "no"),
    })?;
    let project = Project::new(&format!("FROM scratch\nADD http://{}/secret /\n", mock.host()))?
        .with("token", "hush")?;
    bench.build(Buildctl, &project, &[])?.fails_with(&["invalid response status 401"])?;
    let secret = format!("secret=id=HTTP_AUTH_TOKEN_127.0.0.1,src={}", project.path("token").display());
    let tree = bench.export(Buildctl, &project, &[&secret])?;
    ensure!(text(&tree, "secret")? == "told");
    ensure!(!bench.daemon.log().contains("hush"));
    Ok(())
}

fn build_of(bench: &Bench, context: &str, out: &TempDir, more: &[&str]) -> Result<integration::Run> {
    let context = format!("--opt=context={context}");
    let output = format!("--output=type=local,dest={}", out.path().display());
    let mut args = vec!["build", "--progress=plain", "--frontend=dockerfile.v0", &context, &output];
    args.extend(more);
    bench.buildctl.run(&args)
}

fn contexts_by_url(bench: &Bench) -> Result<()> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in [("Dockerfile", "FROM scratch\nCOPY data /\n"), ("data", "in an archive")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data.as_bytes())?;
    }
    let archive = gzip(&tar.into_inner()?)?;
    let mock = Mock::start(move |request| match request.path.as_str() {
        "/context.tar.gz" => Reply::new(200, archive.clone()),
        _ => Reply::new(200, "FROM scratch\nCOPY <<-E /made\n\tby a file alone\n\tE\n"),
    })?;
    let out = TempDir::with_prefix("bk-out-")?;
    build_of(bench, &format!("http://{}/context.tar.gz", mock.host()), &out, &[])?.ok()?;
    ensure!(text(&out, "data")? == "in an archive");
    build_of(bench, &format!("http://{}/Dockerfile", mock.host()), &out, &[])?.ok()?;
    ensure!(text(&out, "made")? == "by a file alone\n");
    Ok(())
}

fn web_servers_that_lie(bench: &Bench) -> Result<()> {
    let mock = Mock::start(|request| match request.path.as_str() {
        "/missing" => Reply::new(404, ""),
        "/cut" => Reply::new(200, vec![b'x'; 1 << 20]).cut(),
        "/notgzip" => Reply::new(200, "plain").header("Content-Encoding", "gzip"),
        "/halfgzip" => match gzip(&[7; 100_000]) {
            Ok(packed) => Reply::new(200, &packed[..packed.len() / 2]).header("Content-Encoding", "gzip"),
            Err(_) => Reply::new(500, ""),
        },
        "/file" => Reply::new(302, "").header("Location", "file:///etc/passwd"),
        "/round" => Reply::new(302, "").header("Location", "/round"),
        "/unchanged" => Reply::new(304, ""),
        "/name" => {
            Reply::new(200, "x").header("Content-Disposition", "attachment; filename=\"../../../etc/x\"")
        }
        _ => Reply::new(500, ""),
    })?;
    for (path, parts) in [
        ("missing", &["404"][..]),
        ("cut", &["/cut"]),
        ("notgzip", &[]),
        ("halfgzip", &[]),
        ("file", &["/file", "redirect to \"file:///etc/passwd\" cannot be followed"]),
        ("round", &["/round", "redirect"]),
        ("unchanged", &[]),
    ] {
        let project = Project::new(&format!("FROM scratch\nADD http://{}/{path} /\n", mock.host()))?;
        let run = bench.build(Buildctl, &project, &[])?;
        run.fails_with(parts).with_context(|| path.to_owned())?;
    }
    // A context is called what we call it, whatever the server says.
    let out = TempDir::with_prefix("bk-out-")?;
    build_of(bench, &format!("http://{}/name", mock.host()), &out, &[])?
        .fails_with(&["dockerfile parse error"])?;
    let used = bench.buildctl.run(&["du", "--verbose"])?.ok()?;
    ensure!(!used.contains("/cut") && !used.contains("/halfgzip"), "{used}");
    Ok(())
}

fn repositories(bench: &Bench) -> Result<()> {
    let server = GitServer::start()?;
    let below = server.repository("below.git")?;
    below.commit(&[("deep", "submodule")])?;
    let repository = server.repository("repo.git")?;
    let first = repository.commit(&[("file", "one"), ("dir/inner", "sub"), ("run.sh", "#!/bin/sh\n")])?;
    repository.git(&["tag", "--annotate", "v1", "--message=v1"])?;
    repository.git(&["checkout", "--quiet", "-b", "feature/x"])?;
    let second = repository.commit(&[("file", "two")])?;
    repository.git(&["checkout", "--quiet", "main"])?;
    repository.git(&["submodule", "--quiet", "add", &server.url("below.git"), "module"])?;
    let third = repository.commit(&[("file", "three")])?;
    let url = server.url("repo.git");
    let export = |add: &str| -> Result<TempDir> {
        let project = Project::new(&format!("FROM scratch\nADD {add} /\n"))?;
        bench.export(Buildctl, &project, &[]).with_context(|| add.to_owned())
    };
    let tree = export(&url)?;
    ensure!(text(&tree, "file")? == "three" && text(&tree, "module/deep")? == "submodule");
    ensure!(!tree.path().join(".git").exists());
    ensure!(std::fs::metadata(tree.path().join("file"))?.mode() & 0o7777 == 0o644);
    let tree = export(&format!("{url}?submodules=false"))?;
    ensure!(names(&tree.path().join("module"))?.is_empty());
    ensure!(text(&export(&format!("{url}#feature/x"))?, "file")? == "two");
    ensure!(text(&export(&format!("{url}?tag=v1&subdir=dir"))?, "inner")? == "sub");
    ensure!(text(&export(&format!("{url}#{second}"))?, "file")? == "two");
    ensure!(text(&export(&format!("{url}?ref=v1&checksum={first}"))?, "file")? == "one");
    ensure!(
        text(&export(&format!("{url}?branch=feature/x&checksum={second}&fetch-by-commit=1"))?, "file")?
            == "two"
    );
    let tree = export(&format!("--keep-git-dir=true {url}#v1"))?;
    let kept = Repository::new(tree.path())?;
    ensure!(kept.git(&["-c", "safe.directory=*", "rev-parse", "HEAD"])? == first);
    ensure!(kept.git(&["-c", "safe.directory=*", "remote", "get-url", "origin"])? == url);
    for (add, part) in [
        (format!("--checksum={third} {url}#v1"), "expected checksum to match"),
        (format!("--checksum=nothex {url}#v1"), "expected hex commit hash"),
        (format!("{url}#nowhere"), "repository does not contain ref nowhere"),
        (format!("{url}#main:no/such/dir"), "no/such/dir"),
        (server.url("missing.git"), "missing.git"),
    ] {
        let project = Project::new(&format!("FROM scratch\nADD {add} /\n"))?;
        bench.build(Buildx, &project, &[])?.fails_with(&[part]).with_context(|| add.clone())?;
    }
    Ok(())
}

fn repositories_as_contexts(bench: &Bench) -> Result<()> {
    let server = GitServer::start()?;
    let repository = server.repository("repo.git")?;
    repository.commit(&[
        ("Dockerfile", "FROM scratch\nCOPY --from=other data /\nCOPY Dockerfile /\n"),
        ("other/data", "of another context"),
    ])?;
    let url = server.url("repo.git");
    let out = TempDir::with_prefix("bk-out-")?;
    let other = format!("--opt=context:other={url}#main:other");
    build_of(bench, &format!("{url}?mtime=commit"), &out, &[&other])?.ok()?;
    ensure!(text(&out, "data")? == "of another context");
    ensure!(std::fs::metadata(out.path().join("Dockerfile"))?.mtime() == 981_173_106);
    let output = format!("--output=type=local,dest={}", out.path().display());
    let context = format!("other={url}#main:other");
    let args = ["build", "--builder=bench", "--provenance=false", "--build-context", &context, &output, &url];
    bench.buildx.run(&args)?.ok()?;
    Ok(())
}

fn repositories_that_move_on(bench: &Bench) -> Result<()> {
    let server = GitServer::start()?;
    let repository = server.repository("repo.git")?;
    repository.commit(&[("file", "one")])?;
    repository.git(&["tag", "v1"])?;
    repository.git(&["branch", "topic"])?;
    let url = server.url("repo.git");
    let project = |reference: &str| Project::new(&format!("FROM scratch\nADD {url}#{reference} /\n"));
    let read = |reference: &str| text(&bench.export(Buildctl, &project(reference)?, &[])?, "file");
    ensure!(read("main")? == "one" && read("v1")? == "one" && read("topic")? == "one");
    // The branch goes on, the tag is made anew, and a branch becomes a directory of branches.
    repository.commit(&[("file", "two")])?;
    repository.git(&["tag", "--force", "v1"])?;
    repository.git(&["branch", "--delete", "--force", "topic"])?;
    repository.git(&["branch", "topic/next"])?;
    ensure!(read("main")? == "two" && read("v1")? == "two" && read("topic/next")? == "two");
    // Nothing new is nothing to do.
    let said = bench.build(Buildctl, &project("main")?, &[])?.said()?;
    ensure!(said.contains("CACHED"), "{said}");
    Ok(())
}

/// A repository, file by file: what servers without git do.
fn dumb(repository: &Repository, may: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Result<Mock> {
    repository.git(&["update-server-info"])?;
    let root = repository.path().join(".git");
    Mock::start(move |request| {
        if !may(request) {
            return Reply::new(401, "").header("WWW-Authenticate", "Basic");
        }
        let path = request.path.split('?').next().unwrap_or_default();
        let path = path.trim_start_matches("/repo.git/").trim_start_matches('/').to_owned();
        match std::fs::read(root.join(path)) {
            Ok(data) => Reply::new(200, data),
            Err(_) => Reply::new(404, ""),
        }
    })
}

fn repositories_for_those_who_may(bench: &Bench) -> Result<()> {
    let directory = TempDir::with_prefix("bk-git-")?;
    let repository = Repository::new(directory.path())?;
    repository.commit(&[("file", "private")])?;
    // `x-access-token:hush`.
    let known = "basic eC1hY2Nlc3MtdG9rZW46aHVzaA==";
    let server = dumb(&repository, move |r| r.headers.get("authorization").is_some_and(|a| a == known))?;
    let project = Project::new(&format!("FROM scratch\nADD http://{}/repo.git#main /\n", server.host()))?
        .with("token", "hush")?;
    bench.build(Buildctl, &project, &[])?.fails_with(&["failed to fetch remote", server.host()])?;
    for name in ["GIT_AUTH_TOKEN".to_owned(), format!("GIT_AUTH_TOKEN.{}", server.host())] {
        let secret = format!("secret=id={name},src={}", project.path("token").display());
        let tree = bench.export(Buildctl, &project, &["no-cache", &secret])?;
        ensure!(text(&tree, "file")? == "private");
    }
    // Credentials in an address are nobody's business.
    let url = format!("http://user:hush@{}/repo.git#nowhere", server.host());
    let project = Project::new(&format!("FROM scratch\nADD {url} /\n"))?;
    let run = bench.build(Buildctl, &project, &[])?;
    let complaint = run.stderr.replace(&url, "");
    ensure!(!complaint.contains("hush") && complaint.contains("xxxxx:xxxxx"), "{complaint}");
    ensure!(!bench.buildctl.run(&["du", "--verbose"])?.ok()?.contains("hush"));
    Ok(())
}

fn repositories_that_reach_out(bench: &Bench) -> Result<()> {
    let server = GitServer::start()?;
    let private = TempDir::with_prefix("bk-git-")?;
    Repository::new(private.path())?.commit(&[("secret", "of this machine")])?;
    let repository = server.repository("repo.git")?;
    symlink("/etc", repository.path().join("link"))?;
    repository.commit(&[("dir/file", "x")])?;
    let url = server.url("repo.git");
    for subdir in ["link", "link/ssl", "../../../etc", "dir/file"] {
        let project = Project::new(&format!("FROM scratch\nADD {url}#main:{subdir} /\n"))?;
        bench
            .build(Buildctl, &project, &[])?
            .fails_with(&["invalid subdir"])
            .with_context(|| subdir.to_owned())?;
    }
    // A submodule on this machine, and one that is a command.
    let reaching = server.repository("reaching.git")?;
    let target = private.path().display().to_string();
    reaching.git(&["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", &target, "module"])?;
    reaching.commit(&[("file", "x")])?;
    let project = Project::new(&format!("FROM scratch\nADD {} /\n", server.url("reaching.git")))?;
    bench.build(Buildctl, &project, &[])?.fails_with(&["failed to update submodules"])?;
    let marker = private.path().join("executed");
    let command = format!("ext::sh -c touch%20{}", marker.display());
    reaching.git(&["config", "--file=.gitmodules", "submodule.module.url", &command])?;
    reaching.commit(&[("file", "y")])?;
    bench.build(Buildctl, &project, &[])?.fails_with(&["failed to update submodules"])?;
    ensure!(!marker.exists());
    // What a repository would like to have run when it is checked out.
    let hook = repository.path().join(".git/hooks/post-checkout");
    std::fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", marker.display()))?;
    let project = Project::new(&format!("FROM scratch\nADD --keep-git-dir=true {url} /\n"))?;
    bench.build(Buildctl, &project, &[])?.ok()?;
    ensure!(!marker.exists());
    Ok(())
}

fn bundles_of_repositories(bench: &Bench) -> Result<()> {
    let server = GitServer::start()?;
    let repository = server.repository("repo.git")?;
    let commit = repository.commit(&[("file", "bundled")])?;
    let solve = |url: &str, attrs: &[(&str, &str)], out: &TempDir| {
        let mut source = source(&format!("{url}#main"));
        if let Some(pb::op::Op::Source(source)) = &mut source.op {
            source.attrs = attrs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            source.attrs.insert("git.fullurl".into(), url.into());
        }
        let output = format!("type=local,dest={}", out.path().display());
        bench.buildctl.solve(&result(&[source]).encode_to_vec(), &["--output", &output])
    };
    let made = TempDir::with_prefix("bk-out-")?;
    solve(&server.url("repo.git"), &[("git.checkoutbundle", "true")], &made)?.ok()?;
    let file = made.path().join("bundle");
    let listed = repository.git(&["bundle", "list-heads", &file.display().to_string()])?;
    ensure!(listed == format!("{commit} refs/heads/main"), "{listed}");

    // Where the repository is gone, the bundle is enough.
    drop(server);
    let bundle = std::fs::read(&file)?;
    push_blob(bench.registry.host(), "test/bundle", &bundle)?;
    let at = format!("docker-image+blob://{}/test/bundle@{}", bench.registry.host(), digest(&bundle));
    let (bundle, gone) = (("git.bundle", at.as_str()), "git://127.0.0.1:9/repo.git");
    let out = TempDir::with_prefix("bk-out-")?;
    solve(gone, &[bundle, ("git.checksum", &commit)], &out)?.ok()?;
    ensure!(names(out.path())? == ["file"] && text(&out, "file")? == "bundled");
    let other = "0".repeat(commit.len());
    solve(gone, &[bundle, ("git.checksum", &other)], &out)?
        .fails_with(&[&format!("commit {other} not found")])?;
    solve(gone, &[bundle], &out)?.fails_with(&["git.bundle requires git.checksum to be set"])?;
    let lying = format!("docker-image+blob://{}/test/bundle@{}", bench.registry.host(), digest(b"other"));
    solve(gone, &[("git.bundle", &lying), ("git.checksum", &commit)], &out)?
        .fails_with(&["failed to fetch git bundle"])
}

fn references_that_are_none(bench: &Bench) -> Result<()> {
    let server = GitServer::start()?;
    server.repository("repo.git")?.commit(&[("file", "x")])?;
    let url = server.url("repo.git");
    let out = TempDir::with_prefix("bk-out-")?;
    for reference in
        ["--upload-pack=touch%20/tmp/never", "-h", "+main", "a..b", "refs/heads/*", "main%5E%7B%7D"]
    {
        build_of(bench, &format!("{url}#{reference}"), &out, &[])?
            .fails_with(&["invalid git ref"])
            .with_context(|| reference.to_owned())?;
    }
    // A server that names objects that are none.
    let lie = Mock::start(|request| match request.path.split('?').next() {
        Some("/repo.git/info/refs") => Reply::new(200, "--output=/tmp/never\trefs/heads/main\n"),
        Some("/repo.git/HEAD") => Reply::new(200, "ref: refs/heads/--option\n"),
        _ => Reply::new(404, ""),
    })?;
    for reference in ["", "#main"] {
        build_of(bench, &format!("http://{}/repo.git{reference}", lie.host()), &out, &[])?
            .fails_with(&[lie.host()])?;
    }
    // One that never ends.
    let endless = Mock::start(|_| Reply::new(200, vec![b'a'; 1 << 20]))?;
    build_of(bench, &format!("http://{}/repo.git", endless.host()), &out, &[])?.fails_with(&[endless.host()])
}

fn layouts_of_the_client(bench: &Bench) -> Result<()> {
    let layout = TempDir::with_prefix("bk-layout-")?;
    let image = Image::busybox()?;
    let name = image.write_layout(layout.path(), "latest")?;
    let project = Project::new("FROM base\nRUN echo built on a layout >/out\n")?;
    let store = format!("--oci-layout=store={}", layout.path().display());
    let context = format!("--opt=context:base=oci-layout://store@{name}");
    let tree = bench.export(Buildctl, &project, &[&store, &context])?;
    ensure!(text(&tree, "out")? == "built on a layout\n");
    let context = format!("build-context:base=oci-layout://{}", layout.path().display());
    let tree = bench.export(Buildx, &project, &["no-cache", &context])?;
    ensure!(text(&tree, "out")? == "built on a layout\n");
    // A client without the layout, and one whose layout lies.
    let context = format!("--opt=context:base=oci-layout://store@{}", digest(b"nothing"));
    bench.build(Buildctl, &project, &[&store, &context])?.fails_with(&["not found"])?;
    let changed = TempDir::with_prefix("bk-layout-")?;
    let image = Image::new(&gzip(b"no tar")?, &["x"])?;
    let name = image.write_layout(changed.path(), "latest")?;
    let blob = changed.path().join("blobs/sha256").join(digest(&image.config).trim_start_matches("sha256:"));
    std::fs::write(blob, "{}")?;
    let store = format!("--oci-layout=store={}", changed.path().display());
    let context = format!("--opt=context:base=oci-layout://store@{name}");
    bench.build(Buildctl, &project, &[&store, &context])?.fails_with(&["has the digest"])
}

fn policies(bench: &Bench) -> Result<()> {
    let mock = Mock::start(|request| Reply::new(200, request.path.clone()))?;
    let host = mock.host().to_owned();
    let project = Project::new(&format!("FROM scratch\nADD http://{host}/asked /f\n"))?;
    let with = |json: &str| -> Result<String> {
        project.write("policy.json", json)?;
        Ok(format!("--source-policy-file={}", project.path("policy.json").display()))
    };
    let policy =
        with(&format!(r#"{{"rules":[{{"action":"DENY","selector":{{"identifier":"http://{host}/*"}}}}]}}"#))?;
    let said = format!("source \"http://{host}/asked\" denied by policy");
    bench
        .build(Buildctl, &project, &[&policy])?
        .fails_with(&["error evaluating the source policy", &said])?;
    ensure!(mock.seen().is_empty(), "{:?}", mock.seen());
    let policy = with(&format!(
        r#"{{"rules":[{{"action":"CONVERT","selector":{{"identifier":"http://{host}/(.*)","matchType":"REGEX"}},
           "updates":{{"identifier":"http://{host}/given","attrs":{{"http.filename":"asked"}}}}}}]}}"#
    ))?;
    ensure!(text(&bench.export(Buildctl, &project, &[&policy])?, "f")? == "/given");
    ensure!(text(&bench.export(Buildctl, &project, &[])?, "f")? == "/asked");
    // Images, which frontends ask for beforehand.
    let image = Project::new("FROM busybox\nRUN true\n")?;
    let deny = with(r#"{"rules":[{"action":"DENY","selector":{"identifier":"docker-image://*"}}]}"#)?;
    bench.build(Buildctl, &image, &[&deny])?.fails_with(&["denied by policy"])?;
    let other = with(
        r#"{"rules":[{"action":"CONVERT","selector":{"identifier":"docker-image://docker.io/library/nothing:*"},
           "updates":{"identifier":"docker-image://docker.io/library/busybox:${1}"}}]}"#,
    )?;
    let nothing = Project::new("FROM nothing\nRUN true\n")?;
    bench.build(Buildctl, &nothing, &[&other])?.ok()?;
    let circle = with(
        r#"{"rules":[{"action":"CONVERT","selector":{"identifier":"docker-image://*"},
           "updates":{"identifier":"docker-image://${1}x"}}]}"#,
    )?;
    bench.build(Buildctl, &image, &[&circle])?.fails_with(&["too many operations"])
}
