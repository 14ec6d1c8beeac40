//! The same calls give the same bytes, names and keys as the reference's
//! client and daemon.

use base::{Digest, Platform};
use llb::build::*;
use llb::{Graph, cachekey, dump};
use proto::pb;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Want {
    name: String,
    ops: Vec<WantOp>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
struct WantOp {
    digest: String,
    #[serde(default)]
    name: String,
    /// Of the operation; none for sources.
    #[serde(default)]
    key: String,
    /// Selector, and whether content may stand for the input.
    #[serde(default)]
    inputs: Vec<String>,
}

fn amd64() -> Platform {
    Platform::new("linux", "amd64", "")
}

fn args(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(|w| (*w).to_owned()).collect())
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

fn run(words: &[&str]) -> Run {
    Run { args: args(words), ..Run::default() }
}

fn busybox() -> State {
    let options = Options::new().platform(amd64());
    Image { options, ..Image::default() }.state("docker.io/library/busybox:latest").unwrap()
}

const HEX: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn alpine() -> State {
    Image {
        resolve_mode: ResolveMode::PreferLocal,
        record_type: "internal".into(),
        layer_limit: Some(2),
        checksum: Some(Digest::of("x")),
        options: Options::new().platform(Platform::new("linux", "arm64", "")),
    }
    .state(&format!("alpine@{HEX}"))
    .unwrap()
}

fn local() -> State {
    Local {
        session_id: "s".into(),
        include_patterns: texts(&["a", "<b>"]),
        exclude_patterns: texts(&["c"]),
        differ: Some((Differ::Metadata, true)),
        metadata_only: Some(texts(&["x"])),
        ..Local::default()
    }
    .state("src")
}

fn exec_mounts() -> State {
    let scratch = State::scratch();
    let mounts = vec![
        Mount::new("/z", &alpine()).readonly(),
        Mount::new("/a", &local()).selector("p/../q"),
        Mount::new("/c", &scratch).cache("id", CacheSharing::Locked),
        Mount::new("/ns", &scratch).cache("ns//ns", CacheSharing::Shared),
        Mount::new("/d", &scratch).cache("/d", CacheSharing::Shared),
        Mount::new("/t", &scratch).tmpfs(10),
        Mount::new("/a2", &local()).selector("/q/r").no_output(),
        Mount::new("/a3", &local()).selector("/q").readonly().content_cache(pb::MountContentCache::On),
        Mount::new("/z2", &alpine()).readonly().content_cache(pb::MountContentCache::Off),
        Mount::new("/out", &scratch),
    ];
    let resources = pb::LinuxResources { memory: 5, ..pb::LinuxResources::default() };
    let run = Run {
        mounts,
        secrets: vec![
            Secret {
                id: "i".into(),
                target: Some("/s".into()),
                owner: (0, 0, 0o400),
                optional: true,
                ..Secret::default()
            },
            Secret { id: "j".into(), env: Some("J".into()), owner: (0, 0, 0o400), ..Secret::default() },
        ],
        ssh: vec![
            Ssh { id: "k".into(), owner: (0, 0, 0o600), ..Ssh::default() },
            Ssh { target: "/k2".into(), owner: (0, 0, 0o600), optional: true, ..Ssh::default() },
        ],
        proxy: Some(ProxyEnv { http: "h".into(), no: "n".into(), ..ProxyEnv::default() }),
        devices: vec![Device { name: "v/d".into(), optional: true }],
        options: Options::new().linux_resources(resources),
        ..run(&["x"])
    };
    let state = busybox()
        .dir("/w")
        .extra_host("h", "1.2.3.4".parse().unwrap())
        .ulimit("nofile", 1, 2)
        .cgroup_parent("cg")
        .network(pb::NetMode::Host)
        .security(pb::SecurityMode::Insecure)
        .valid_exit_codes(vec![0, 3]);
    state.run(run).mount("/out").unwrap().clone()
}

fn copy(from: &State, src: &str, dest: &str, change: impl FnOnce(&mut Copy)) -> FileAction {
    let mut copy = Copy::new(from, src, dest);
    change(&mut copy);
    FileAction::Copy(Box::new(copy))
}

fn plain(state: &State, actions: Vec<FileAction>) -> State {
    state.file(actions, Options::new())
}

fn file() -> State {
    plain(
        &busybox().dir("/b"),
        vec![
            FileAction::Mkdir {
                path: "d".into(),
                mode: 0o755,
                parents: true,
                owner: Some(FileOwner::parse("me:7")),
                created: Some(1_700_000_000_000_000_005),
            },
            FileAction::Mkfile {
                path: "/f".into(),
                mode: 0o600,
                data: b"data\xff".to_vec(),
                owner: Some(FileOwner::ids(3, 4)),
                created: None,
            },
            FileAction::Rm { path: "x*".into(), allow_not_found: true, allow_wildcard: true },
            FileAction::Symlink { target: "/o".into(), path: "/n".into(), owner: None, created: None },
        ],
    )
}

fn copies() -> State {
    plain(
        &busybox(),
        vec![
            copy(&local(), "/a/b", "/x", |_| {}),
            copy(&local(), "/a", "/y", |_| {}),
            copy(&alpine(), "c", ".", |_| {}),
        ],
    )
}

fn state(name: &str) -> State {
    match name {
        "image" => busybox(),
        "image2" => alpine(),
        "local" => local(),
        "unique" => {
            let options = Options { local_unique_id: "uid".into(), ..Options::default() };
            Local { options, ..Local::default() }.state("u")
        }
        "http" => Http {
            checksum: Some(Digest::of("y")),
            filename: "n".into(),
            mode: 0o640,
            owner: (1, 2),
            auth_header_secret: "sec".into(),
            headers: Some(("a".into(), "u".into())),
            ..Http::default()
        }
        .state("https://e.com/f"),
        "git" => Git {
            reference: "v1".into(),
            subdir: "d".into(),
            keep_git_dir: true,
            checksum: "abc".into(),
            skip_submodules: true,
            mtime: "commit".into(),
            fetch_by_commit: true,
            auth_token_secret: "t".into(),
            ..Git::default()
        }
        .state("https://github.com/o/r.git"),
        "git-scheme" => Git::default().state("github.com/o/r"),
        "oci" => OciLayout {
            session_id: "se".into(),
            store_id: "st".into(),
            layer_limit: Some(3),
            options: Options::new().platform(amd64()),
        }
        .state(&format!("a/b@{HEX}")),
        "exec" => {
            let options =
                Options::new().name("name").ignore_cache().export_cache(true).group("g", "gn", true);
            let state = busybox().env("A", "b").dir("sub").user("u");
            state.run(Run { options, ..run(&["sh", "-c", "echo <&>"]) }).root().clone()
        }
        "exec-mounts" => exec_mounts(),
        "exec-readonly" => {
            let mounts = vec![Mount::new("/out", &State::scratch())];
            let exec = busybox().run(Run { readonly_root: true, mounts, ..run(&["x"]) });
            exec.mount("/out").unwrap().clone()
        }
        "exec-arm" => alpine().run(run(&["x"])).root().clone(),
        "file" => file(),
        "copy" => plain(
            &busybox(),
            vec![copy(&local(), "a/*.c", "/dst/", |c| {
                c.allow_wildcard = true;
                c.follow_symlinks = true;
                c.create_dest_path = true;
                c.include_patterns = texts(&["i"]);
                c.exclude_patterns = texts(&["e"]);
                c.required_paths = texts(&["r"]);
                c.chmod = Some(Chmod::Mode(0o700));
                c.owner = Some(FileOwner::parse("u"));
            })],
        ),
        "copies" => copies(),
        "copy-scratch" => plain(
            &State::scratch(),
            vec![copy(&local(), "/", "/", |c| {
                c.contents_only = true;
                c.attempt_unpack = true;
                c.always_replace = true;
                c.chmod = Some(Chmod::Symbolic("u+x".into()));
            })],
        ),
        "copy-self" => plain(&busybox(), vec![copy(&busybox(), "/a", "/b", |_| {})]),
        "merge" => State::merge(&[busybox(), local(), State::scratch(), alpine()], Options::new()),
        "diff" => State::diff(&busybox(), busybox().run(run(&["y"])).root(), Options::new()),
        "diff-scratch" => State::diff(&busybox(), &State::scratch(), Options::new()),
        "requires" => busybox().requires("pid", &[local(), alpine()]),
        "reset" => {
            let state = busybox().env("X", "1").env("Y", "2").env("X", "3");
            let state = state.reset(&alpine().dir("/q").env("Z", "1"));
            state.run(run(&["r"])).root().clone()
        }
        other => panic!("no such state: {other}"),
    }
}

fn written(state: &State) -> pb::Definition {
    state.marshal(&Defaults { platform: Some(amd64()), ..Defaults::default() }).unwrap()
}

fn got(definition: &pb::Definition) -> Vec<WantOp> {
    let graph = Graph::load(definition).unwrap();
    let describe = |digest: String| {
        let mut op = WantOp { digest, ..WantOp::default() };
        let Some(vertex) = graph.vertices().iter().find(|v| v.digest.as_str() == op.digest) else {
            return op;
        };
        vertex.name().clone_into(&mut op.name);
        if let Some(map) = cachekey::of(&vertex.op, &vertex.platform, vertex.inputs.len()).unwrap() {
            map.digest.as_str().clone_into(&mut op.key);
            op.inputs = map
                .inputs
                .iter()
                .map(|i| {
                    format!("{} {}", i.selector.as_ref().map_or("", Digest::as_str), i.content.is_some())
                })
                .collect();
        }
        op
    };
    definition.def.iter().map(|bytes| describe(Digest::of(bytes).as_str().to_owned())).collect()
}

#[test]
fn bytes_names_and_keys_are_the_references() {
    let wanted: Vec<Want> = serde_json::from_str(include_str!("../data/golden.json")).unwrap();
    for want in wanted {
        assert_eq!(got(&written(&state(&want.name))), want.ops, "{}", want.name);
    }
}

#[test]
fn dumps_are_the_references() {
    for (name, want) in
        [("exec-mounts", include_str!("../data/exec.json")), ("file", include_str!("../data/file.json"))]
    {
        let mut out = Vec::new();
        dump::json(&written(&state(name)), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), want, "{name}");
    }
    let mut out = Vec::new();
    dump::dot(&written(&copies()), &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), include_str!("../data/copies.dot"));
}

#[test]
fn a_received_definition_is_written_as_it_came() {
    for name in ["exec-mounts", "copies", "merge", "requires"] {
        let first = written(&state(name));
        let again = written(&State::from_definition(&first).unwrap());
        // Only the order may change: it comes from the operations alone now.
        let sorted = |d: &pb::Definition| d.def.iter().cloned().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(&again), sorted(&first), "{name}");
        assert_eq!(again.def.last(), first.def.last(), "{name}");
        assert_eq!(again.metadata, first.metadata, "{name}");
    }
}
