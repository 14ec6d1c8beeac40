//! `image`: names, indexes, attestations, registries.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::descriptor::media;
use export::{Attestation, AttestationKind, Images, Predicate};

use crate::support::{Bench, Registry, double, single};

fn provenance() -> Attestation {
    Attestation {
        kind: AttestationKind::InToto,
        metadata: BTreeMap::from([("inline-only".to_owned(), b"true".to_vec())]),
        predicate: Predicate::Made(Arc::new(br#"{"builder":{"id":""}}"#.to_vec())),
        path: "provenance.json".into(),
        predicate_type: "https://slsa.dev/provenance/v1".into(),
        subjects: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_keeps_the_image() {
    let bench = Bench::new().await;
    let tree = bench.file(None, "a", "1").await;
    let attrs = [("name", "one,two"), ("name-canonical", "")];
    let exported = bench.export("image", &attrs, &single(&tree), "").await.unwrap();
    assert!(exported.finalize.is_none());
    let digest = &exported.response["containerimage.digest"];
    let descriptor = exported.descriptor.clone().unwrap();
    assert_eq!(descriptor.media_type, media::OCI_MANIFEST);
    drop((exported.pins, tree));

    let images = Images::new(bench.deps.store.clone());
    let names: Vec<_> = images.list().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["one", &format!("one@{digest}"), "two", &format!("two@{digest}")]);
    bench.deps.store.blobs().collect().unwrap();
    let manifest = bench.json(digest);
    for blob in [&manifest["config"], &manifest["layers"][0]] {
        let digest = blob["digest"].as_str().unwrap().parse().unwrap();
        assert!(bench.deps.store.blobs().info(&digest).unwrap().is_some());
    }
    for name in names {
        assert!(images.remove(&name).unwrap());
    }
    bench.deps.store.blobs().collect().unwrap();
    assert!(bench.deps.store.blobs().info(&descriptor.digest).unwrap().is_none());
    assert_eq!(bench.said.statuses().last().unwrap(), "naming to two");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_platforms_make_an_index() {
    let bench = Bench::new().await;
    let (amd, arm) = (bench.file(None, "a", "1").await, bench.file(None, "b", "2").await);
    let attrs = [
        ("annotation-index.i", "1"),
        ("annotation[linux/arm64].m", "2"),
        ("annotation-manifest-descriptor[linux/arm64].d", "3"),
        ("oci-artifact", "true"),
    ];
    let mut source = double(&amd, &arm);
    source.attestations.insert("linux/arm64".into(), vec![provenance()]);
    let exported = bench.export("image", &attrs, &source, "").await.unwrap();
    assert!(!exported.response.contains_key("containerimage.config.digest"));
    let index = bench.json(&exported.response["containerimage.digest"]);
    assert_eq!(index["annotations"]["i"], "1");
    let manifests = index["manifests"].as_array().unwrap();
    let platforms: Vec<_> =
        manifests.iter().map(|m| m["platform"]["architecture"].as_str().unwrap()).collect();
    assert_eq!(platforms, ["amd64", "arm64", "unknown"]);
    assert_eq!(manifests[1]["annotations"]["d"], "3");
    assert_eq!(bench.json(manifests[1]["digest"].as_str().unwrap())["annotations"]["m"], "2");
    assert_eq!(manifests[2]["annotations"]["vnd.docker.reference.digest"], manifests[1]["digest"]);

    let attested = bench.json(manifests[2]["digest"].as_str().unwrap());
    assert_eq!(attested["artifactType"], "application/vnd.docker.attestation.manifest.v1+json");
    assert_eq!(attested["subject"]["digest"], manifests[1]["digest"]);
    assert_eq!(attested["config"]["data"], "e30=");
    let layer = &attested["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.in-toto+json");
    assert_eq!(layer["annotations"]["in-toto.io/predicate-type"], "https://slsa.dev/provenance/v1");
    let statement = bench.json(layer["digest"].as_str().unwrap());
    assert_eq!(statement["predicate"]["builder"]["id"], "");

    let wrong = [("annotation[linux/s390x].m", "2")];
    let e = bench.export("image", &wrong, &source, "").await.err().unwrap();
    assert_eq!(e.to_string(), "invalid annotation: no platform linux/s390x found in source");
    source.metadata.remove("refs.platforms");
    let e = bench.export("image", &[], &source, "").await.err().unwrap();
    assert_eq!(e.to_string(), "unable to export multiple refs, missing platforms mapping");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_what_the_registry_lacks_and_tags_last() {
    let bench = Bench::new().await;
    let registry = Registry::start().await;
    let (amd, arm) = (bench.file(None, "a", "1").await, bench.file(None, "b", "2").await);
    let name = format!("{}/team/app:v1", registry.host);
    let attrs = [("name", name.as_str()), ("push", "true")];
    let exported = bench.export("image", &attrs, &double(&amd, &arm), "").await.unwrap();
    assert!(registry.paths().is_empty(), "nothing leaves before the end");
    exported.finalize.unwrap().await.unwrap();
    let paths = registry.paths();
    assert_eq!(paths.iter().filter(|p| p.contains("/blobs/")).count(), 4, "{paths:?}");
    assert_eq!(paths.iter().filter(|p| p.contains("/manifests/sha256:")).count(), 2);
    let tagged = registry.has.lock()["/v2/team/app/manifests/v1"].clone();
    let digest = exported.response["containerimage.digest"].clone();
    assert_eq!(base::Digest::of(tagged).to_string(), digest);
    assert!(
        Images::new(bench.deps.store.clone()).list().unwrap().is_empty(),
        "pushed images need no name here"
    );
    let said = bench.said.statuses();
    assert!(said.contains(&"pushing layers".to_owned()));
    assert_eq!(said.last().unwrap(), &format!("pushing manifest for {name}@"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_by_digest_only_without_a_tag() {
    let bench = Bench::new().await;
    let registry = Registry::start().await;
    let tree = bench.file(None, "a", "1").await;
    let name = format!("{}/team/app", registry.host);
    let attrs = [("name", name.as_str()), ("push", ""), ("push-by-digest", "1")];
    let exported = bench.export("image", &attrs, &single(&tree), "").await.unwrap();
    exported.finalize.unwrap().await.unwrap();
    let digest = &exported.response["containerimage.digest"];
    let manifests: Vec<_> = registry.paths().into_iter().filter(|p| p.contains("/manifests/")).collect();
    assert_eq!(manifests, [format!("/v2/team/app/manifests/{digest}")]);

    let tagged = format!("{name}:v1");
    let attrs = [("name", tagged.as_str()), ("push", ""), ("push-by-digest", "1")];
    let exported = bench.export("image", &attrs, &single(&tree), "").await.unwrap();
    let e = exported.finalize.unwrap().await.unwrap_err();
    assert_eq!(e.to_string(), format!("failed to push {tagged}: can't push tagged ref {tagged} by digest"));
}

#[tokio::test(flavor = "multi_thread")]
async fn times_in_layers_are_clamped_but_for_the_base() {
    let bench = Bench::new().await;
    let lower = bench.file(None, "a", "1").await;
    let tree = bench.file(Some(&lower), "b", "2").await;
    let plain = bench.export("image", &[], &single(&tree), "").await.unwrap();
    let config = bench.json(&plain.response["containerimage.config.digest"]);
    let ids = config["rootfs"]["diff_ids"].as_array().unwrap().clone();

    let mut source = single(&tree);
    let base = format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"diff_ids":[{}]}}}}"#, ids[0]);
    source.metadata.insert("containerimage.base.config".into(), base.into_bytes());
    let attrs = [("rewrite-timestamp", "true"), ("source-date-epoch", "9")];
    let exported = bench.export("image", &attrs, &source, "").await.unwrap();
    let config = bench.json(&exported.response["containerimage.config.digest"]);
    assert_eq!(config["rootfs"]["diff_ids"][0], ids[0]);
    assert_ne!(config["rootfs"]["diff_ids"][1], ids[1]);
    let manifest = bench.json(&exported.response["containerimage.digest"]);
    let layer = &manifest["layers"][1];
    assert_eq!(layer["annotations"]["buildkit/rewritten-timestamp"], "9");
    let file =
        bench.deps.store.blobs().open_blob(&layer["digest"].as_str().unwrap().parse().unwrap()).unwrap();
    let mut tar = store::tar::Reader::new(store::Decompressor::new(file).unwrap());
    while let Some(header) = tar.next_entry().unwrap() {
        assert_eq!(header.mtime, 9);
    }
    assert!(
        bench.said.statuses().contains(
            &"rewriting layers with source-date-epoch 9 (1970-01-01 00:00:09 +0000 UTC)".to_owned()
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dangling_images_are_named_by_digest() {
    let bench = Bench::new().await;
    let tree = bench.file(None, "a", "1").await;
    let attrs = [("dangling-name-prefix", "moby-dangling"), ("danging-name-empty-only", "true")];
    let exported = bench.export("image", &attrs, &single(&tree), "").await.unwrap();
    let digest = &exported.response["containerimage.digest"];
    assert_eq!(exported.response["image.name"], format!("moby-dangling@{digest}"));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_building() {
    let bench = Bench::new().await;
    let resolve = |kind: &str, pair: (&str, &str)| {
        let attrs = BTreeMap::from([(pair.0.to_owned(), pair.1.to_owned())]);
        export::resolve(kind, 0, attrs, bench.deps.clone()).err().unwrap().to_string()
    };
    assert_eq!(resolve("x", ("a", "b")), "exporter \"x\" could not be found");
    let want = "non-bool value specified for push: strconv.ParseBool: parsing \"maybe\": invalid syntax";
    assert_eq!(resolve("image", ("push", "maybe")), want);
    assert_eq!(resolve("local", ("mode", "x")), "invalid local exporter mode \"x\"");
}
