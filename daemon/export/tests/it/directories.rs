//! `local` and `tar`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use export::{Attestation, AttestationKind, Predicate, Source};
use session::client::{Attachables, Target};

use crate::support::{Bench, double, untar};

fn target(bench: &Bench, delete: bool) -> (Attachables, std::path::PathBuf) {
    let path = bench.dir.0.join("out");
    let mut client = Attachables::new();
    client.target(0, Target::Dir { path: path.clone(), delete });
    (client, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_with_the_epoch() {
    let bench = Bench::new().await;
    let tree = bench.file(None, "a", "1").await;
    let (client, path) = target(&bench, false);
    let session = bench.client(client).await;
    let source = Source { single: Some(tree), ..Source::default() };
    let exported = bench.export("local", &[("source-date-epoch", "7")], &source, session.id()).await.unwrap();
    assert!(exported.response.is_empty());
    assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "1");
    assert_eq!(path.join("a").metadata().unwrap().mtime(), 7);
    assert_eq!(bench.said.statuses(), ["copying files"]);
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn platforms_get_directories_unless_told_otherwise() {
    let bench = Bench::new().await;
    let (amd, arm) = (bench.file(None, "a", "1").await, bench.file(None, "b", "2").await);
    let (client, path) = target(&bench, false);
    let session = bench.client(client).await;
    let source = double(&amd, &arm);
    bench.export("local", &[], &source, session.id()).await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("linux_arm64/b")).unwrap(), "2");
    bench.export("local", &[("platform-split", "false")], &source, session.id()).await.unwrap();
    assert!(path.join("a").exists() && path.join("b").exists());
    let same = double(&amd, &amd);
    let e = bench.export("local", &[("platform-split", "false")], &same, session.id()).await.err().unwrap();
    let want = "cannot overwrite a from linux/amd64 with linux/arm64 when split option is disabled";
    assert_eq!(e.to_string(), want);
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_mode_sends_everything_at_once() {
    let bench = Bench::new().await;
    let (amd, arm) = (bench.file(None, "a", "1").await, bench.file(None, "b", "2").await);
    let (client, path) = target(&bench, true);
    std::fs::create_dir_all(path.join("linux_amd64")).unwrap();
    std::fs::write(path.join("linux_amd64/stale"), "x").unwrap();
    let session = bench.client(client).await;
    bench.export("local", &[("mode", "delete")], &double(&amd, &arm), session.id()).await.unwrap();
    assert!(path.join("linux_amd64/a").exists() && path.join("linux_arm64/b").exists());
    assert!(!path.join("linux_amd64/stale").exists());
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_lie_beside_the_files() {
    let bench = Bench::new().await;
    let tree = bench.file(None, "a", "1").await;
    let (client, path) = target(&bench, false);
    let session = bench.client(client).await;
    let metadata = BTreeMap::from([(
        "containerimage.config".to_owned(),
        br#"{"architecture":"amd64","os":"linux"}"#.to_vec(),
    )]);
    let mut source = Source { single: Some(tree), metadata, ..Source::default() };
    let said = Attestation {
        kind: AttestationKind::InToto,
        metadata: BTreeMap::new(),
        predicate: Predicate::Made(Arc::new(b"{}".to_vec())),
        path: "provenance.json".into(),
        predicate_type: "https://slsa.dev/provenance/v1".into(),
        subjects: Vec::new(),
    };
    source.attestations.insert("linux/amd64".into(), vec![said]);
    bench.export("local", &[("attestation-prefix", "x-")], &source, session.id()).await.unwrap();
    let text = std::fs::read_to_string(path.join("x-provenance.json")).unwrap();
    let statement: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(statement["subject"][0]["name"], "a");
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tarball_holds_the_files() {
    let bench = Bench::new().await;
    let (amd, arm) = (bench.file(None, "a", "1").await, bench.file(None, "b", "2").await);
    let path = bench.dir.0.join("out.tar");
    let mut client = Attachables::new();
    client.target(0, Target::file(path.clone()));
    let session = bench.client(client).await;
    let one = Source { single: Some(amd.clone()), ..Source::default() };
    bench.export("tar", &[], &one, session.id()).await.unwrap();
    assert_eq!(untar(&path), BTreeMap::from([("a".to_owned(), b"1".to_vec())]));
    bench.export("tar", &[], &double(&amd, &arm), session.id()).await.unwrap();
    assert_eq!(untar(&path)["linux_arm64/b"], b"2");
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_to_send_to_is_an_error() {
    let bench = Bench::new().await;
    let session = bench.client(Attachables::new()).await;
    let e = bench.export("local", &[], &Source::default(), session.id()).await.err().unwrap();
    assert_eq!(e.kind(), base::Kind::Unimplemented);
    session.close().await;
}
