//! `oci` and `docker`.

use base::Digest;
use export::Source;
use session::client::{Attachables, OciStore, Target};

use crate::support::{Bench, double, single, untar};

#[tokio::test(flavor = "multi_thread")]
async fn an_oci_archive_holds_everything() {
    let bench = Bench::new().await;
    let base = bench.file(None, "a", "1").await;
    let top = bench.file(Some(&base), "b", "2").await;
    let path = bench.dir.0.join("out.tar");
    let mut client = Attachables::new();
    client.target(0, Target::file(path.clone()));
    let session = bench.client(client).await;
    let attrs = [("name", "alpine,example.com/x:1"), ("annotation.note", "kept")];
    let exported = bench.export("oci", &attrs, &single(&top), session.id()).await.unwrap();

    let response = &exported.response;
    assert_eq!(response["image.name"], "docker.io/library/alpine:latest,example.com/x:1");
    let files = untar(&path);
    assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
    assert!(!files.contains_key("manifest.json"));
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("blobs/sha256/") && name.len() > 13)
    {
        assert_eq!(name, &format!("blobs/sha256/{}", Digest::of(bytes).hex()));
    }
    let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let listed = index["manifests"].as_array().unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0]["digest"], response["containerimage.digest"].as_str());
    assert_eq!(listed[0]["annotations"]["org.opencontainers.image.ref.name"], "latest");
    assert_eq!(listed[1]["annotations"]["io.containerd.image.name"], "example.com/x:1");
    assert_eq!(listed[0]["platform"]["architecture"], "amd64");

    let manifest = bench.json(&response["containerimage.digest"]);
    assert_eq!(manifest["annotations"]["note"], "kept");
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let config = bench.json(&response["containerimage.config.digest"]);
    assert_eq!(config["config"]["Cmd"][0], "sh");
    assert_eq!(config["history"][1]["created_by"], "write b");
    assert_eq!(config["history"][1]["comment"], "buildkit.exporter.image.v0");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    let said = bench.said.statuses();
    let begun = ["exporting layers", "exporting manifest ", "exporting config ", "sending tarball"];
    assert_eq!(said, begun);
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_archive_can_be_loaded() {
    let bench = Bench::new().await;
    let tree = bench.file(None, "a", "1").await;
    let path = bench.dir.0.join("out.tar");
    let mut client = Attachables::new();
    client.target(0, Target::file(path.clone()));
    let session = bench.client(client).await;
    let attrs = [("name", "alpine"), ("oci-mediatypes", "false"), ("source-date-epoch", "5")];
    let exported = bench.export("docker", &attrs, &single(&tree), session.id()).await.unwrap();
    let files = untar(&path);
    let list: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    assert_eq!(list[0]["RepoTags"][0], "alpine:latest");
    assert!(files.contains_key(list[0]["Config"].as_str().unwrap()));
    assert!(files.contains_key(list[0]["Layers"][0].as_str().unwrap()));
    let manifest = bench.json(&exported.response["containerimage.digest"]);
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let config = bench.json(&exported.response["containerimage.config.digest"]);
    assert_eq!(config["created"], "1970-01-01T00:00:05Z");
    assert_eq!(config["history"][0]["created"], "1970-01-01T00:00:05Z");
    let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let created = &index["manifests"][0]["annotations"]["org.opencontainers.image.created"];
    assert_eq!(created, "1970-01-01T00:00:05Z");

    let many = double(&tree, &tree);
    let e = bench.export("docker", &[], &many, session.id()).await.err().unwrap();
    assert_eq!(e.to_string(), "docker exporter does not currently support exporting manifest lists");
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_decline() {
    let bench = Bench::new().await;
    let tree = bench.file(None, "a", "1").await;
    let mut client = Attachables::new();
    client.target(0, Target::File(Box::new(|_| Ok(None))));
    let session = bench.client(client).await;
    bench.export("oci", &[], &single(&tree), session.id()).await.unwrap();
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_go_into_a_content_store() {
    let bench = Bench::new().await;
    let (amd, arm) = (bench.file(None, "a", "1").await, bench.file(None, "b", "2").await);
    let path = bench.dir.0.join("layout");
    let mut client = Attachables::new();
    client.store("export", OciStore::open(&path, true).unwrap());
    let session = bench.client(client).await;
    let source = double(&amd, &arm);
    let exported = bench.export("oci", &[("tar", "false")], &source, session.id()).await.unwrap();
    let root: Digest = exported.response["containerimage.digest"].parse().unwrap();
    let blobs = path.join("blobs/sha256");
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(blobs.join(root.hex())).unwrap()).unwrap();
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    // Two layers, two configs, two manifests and the index.
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 7);
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_result_is_an_image() {
    let bench = Bench::new().await;
    let path = bench.dir.0.join("out.tar");
    let mut client = Attachables::new();
    client.target(0, Target::file(path.clone()));
    let session = bench.client(client).await;
    let exported = bench.export("docker", &[], &Source::default(), session.id()).await.unwrap();
    let manifest = bench.json(&exported.response["containerimage.digest"]);
    assert!(manifest["layers"].is_null());
    let files = untar(&path);
    let list: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    assert!(list[0]["RepoTags"].is_null() && list[0]["Layers"].is_null());
    session.close().await;
}
