use super::*;
use crate::content::Fetch;
use async_trait::async_trait;
use base::{Descriptor, Failure, Timestamp};
use std::sync::Arc;

struct Nowhere;

#[async_trait]
impl Fetch for Nowhere {
    async fn fetch(&self) -> Result<store::Pin, Failure> {
        Err(Failure::internal("nowhere"))
    }
}

fn layer(name: &str, secs: i64, description: &str) -> Layer {
    Layer {
        descriptor: Descriptor::new("t", Digest::of(name), 1),
        diff_id: Digest::of(name),
        created_at: Some(Timestamp::from_secs(secs)),
        description: Some(description.to_owned()),
        bytes: Arc::new(Nowhere),
    }
}

/// Config, names of layers, epoch, base config; what moby/buildkit v0.32.2 makes
/// of it or, after an exclamation mark, says of it. Layer N was made at
/// N·1000 s; one without a description is called `nodesc`.
#[rustfmt::skip]
const GOLDEN: &[(&str, &str, i64, &str, &str)] = &[
    (r#"{"architecture":"amd64","os":"linux"}"#, "", -1, r#""#, r#"{"architecture":"amd64","created":null,"history":null,"os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#),
    (r#"{"architecture":"amd64","os":"linux","history":[]}"#, "", -1, r#""#, r#"{"architecture":"amd64","created":null,"history":[],"os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#),
    (r#"{"architecture":"amd64","os":"linux"}"#, "one nodesc", -1, r#""#, r#"{"architecture":"amd64","created":"1970-01-01T00:33:20Z","history":[{"created":"1970-01-01T00:16:40Z","created_by":"one step","comment":"buildkit.exporter.image.v0"},{"created":"1970-01-01T00:33:20Z","created_by":"created by buildkit","comment":"buildkit.exporter.image.v0"}],"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed","sha256:9ee439961cac1842d3f56a6e872658b4f1747a09ca90b95c005cc7defa6665d9"]}}"#),
    (r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["a<b", "é"], "X": 1.50},"zzz":[1, {"b":2,"a":1}],"history":[{"created":"2020-01-01T00:00:00Z","created_by":"base"},{"created_by":"ENV a=b","empty_layer":true},{"created_by":"RUN x","comment":"buildkit.dockerfile.v0"}]}"#, "one two", -1, r#""#, r#"{"architecture":"amd64","config":{"Cmd":["a\u003cb","é"],"X":1.50},"created":"1970-01-01T00:33:20Z","history":[{"created":"2020-01-01T00:00:00Z","created_by":"base"},{"created":"1970-01-01T00:33:20Z","created_by":"ENV a=b","empty_layer":true},{"created":"1970-01-01T00:33:20Z","created_by":"RUN x","comment":"buildkit.dockerfile.v0"}],"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed","sha256:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"]},"zzz":[1,{"b":2,"a":1}]}"#),
    (r#"{"architecture":"amd64","os":"linux","history":[{"created":"0001-01-01T00:00:00Z"},{"created":"2023-05-05T01:02:03.450Z","created_by":"x"},{"created_by":"y","empty_layer":true}],"created":"2023-05-05T01:02:03.4500+02:00"}"#, "one", 5000, r#""#, r#"{"architecture":"amd64","created":"1970-01-01T01:23:20Z","history":[{"created":"0001-01-01T00:00:00Z"},{"created":"1970-01-01T01:23:20Z","created_by":"x","empty_layer":true},{"created":"1970-01-01T01:23:20Z","created_by":"y","empty_layer":true}],"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"]}}"#),
    (r#"{"architecture":"amd64","os":"linux","history":[{"created":"2020-01-01T00:00:00Z","created_by":"base"},{"created":"2021-01-01T00:00:00Z","created_by":"RUN"}],"created":"2021-01-01T00:00:00Z"}"#, "one two", 1500000000, r#"{"architecture":"amd64","os":"linux","history":[{"created":"2020-01-01T00:00:00Z","created_by":"base"}]}"#, r#"{"architecture":"amd64","created":"2017-07-14T02:40:00Z","history":[{"created":"2020-01-01T00:00:00Z","created_by":"base"},{"created":"2017-07-14T02:40:00Z","created_by":"RUN"}],"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed","sha256:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"]}}"#),
    (r#"{"architecture":"amd64","os":"linux","history":[{"created_by":"a"},{"created_by":"b"},{"created_by":"c"}]}"#, "one", -1, r#""#, r#"{"architecture":"amd64","created":"1970-01-01T00:16:40Z","history":[{"created":"1970-01-01T00:16:40Z","created_by":"a"},{"created":"1970-01-01T00:16:40Z","created_by":"b","empty_layer":true},{"created":"1970-01-01T00:16:40Z","created_by":"c","empty_layer":true}],"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"]}}"#),
    (r#"{"architecture":"amd64","os":"linux","history":[{"created_by":"a","empty_layer":true},{"created_by":"b","empty_layer":true}]}"#, "one two three", 2500, r#""#, r#"{"architecture":"amd64","created":"1970-01-01T00:41:40Z","history":[{"created":"1970-01-01T00:16:40Z","created_by":"a","empty_layer":true},{"created":"1970-01-01T00:16:40Z","created_by":"b","empty_layer":true},{"created":"1970-01-01T00:16:40Z","created_by":"one step","comment":"buildkit.exporter.image.v0"},{"created":"1970-01-01T00:33:20Z","created_by":"two step","comment":"buildkit.exporter.image.v0"},{"created":"1970-01-01T00:41:40Z","created_by":"three step","comment":"buildkit.exporter.image.v0"}],"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed","sha256:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3","sha256:8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f"]}}"#),
    (r#"{"architecture":"amd64","os":"linux","created":null,"history":null}"#, "one", 100, r#""#, r#"{"architecture":"amd64","created":null,"history":[{"created":"1970-01-01T00:01:40Z","created_by":"one step","comment":"buildkit.exporter.image.v0"}],"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"]}}"#),
    (r#"{"architecture":"amd64"}"#, "one", -1, r#""#, r#"!invalid image config for export: missing os"#),
    (r#"{"os":"linux"}"#, "one", -1, r#""#, r#"!invalid image config for export: missing architecture"#),
    (r#"null"#, "one", -1, r#""#, r#"!invalid null image config for export"#),
];

#[test]
fn patches_as_the_reference_does() {
    for (config, names, epoch, base, want) in GOLDEN {
        let layers: Vec<_> = names
            .split_whitespace()
            .zip(1..)
            .map(|(name, n)| {
                let description = if name == "nodesc" { String::new() } else { format!("{name} step") };
                layer(name, n * 1000, &description)
            })
            .collect();
        let epoch = Some(*epoch).filter(|e| *e >= 0).and_then(Time::from_secs);
        let base = Some(base.as_bytes()).filter(|b| !b.is_empty());
        let with = Patch { layers: &layers, base, epoch: epoch.as_ref(), inline_cache: None };
        let got = match patch(config.as_bytes(), &with) {
            Ok(json) => String::from_utf8(json).unwrap(),
            Err(e) => format!("!{e}"),
        };
        assert_eq!(got, *want, "{config}");
    }
}

#[test]
fn makes_configs_of_nothing_as_the_reference_does() {
    let platform = Platform::new("linux", "amd64", "");
    let config = String::from_utf8(default_config(&platform).unwrap()).unwrap();
    let want = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":null}}"#;
    assert_eq!(config, want);
    let config = String::from_utf8(attestation_config(&[Digest::of("x")]).unwrap()).unwrap();
    let want = r#"{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"]}}"#;
    assert_eq!(config, want);
}

#[test]
fn carries_the_inline_cache() {
    let with = Patch { layers: &[], base: None, epoch: None, inline_cache: Some(b"{}") };
    let json = patch(br#"{"architecture":"a","os":"o"}"#, &with).unwrap();
    assert!(String::from_utf8(json).unwrap().contains(r#""moby.buildkit.cache.v0":"e30=","os":"o""#));
}
