//! Resolving names and transferring blobs when all goes well, or well in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::Method;
use base::descriptor::media;
use base::{Descriptor, Digest};
use bytes::Bytes;
use registry::{Access, HostConfig, Reference, Registries};
use tokio::io::AsyncReadExt;

use crate::mock::{Mock, answer, blob, broken, config};

#[tokio::test]
async fn a_name_is_resolved_by_head_alone_when_that_says_enough() {
    let digest = Digest::of("m");
    let named = digest.clone();
    let mock = Mock::start(move |_| {
        let headers = [
            ("content-type", media::OCI_INDEX),
            ("docker-content-digest", named.as_str()),
            ("content-length", "7"),
        ];
        let response = answer(200, &headers, ());
        async move { response }
    })
    .await;
    let desc = mock.repository().await.resolve().await.unwrap();
    assert_eq!(desc, Descriptor::new(media::OCI_INDEX, digest, 7));
    assert_eq!(mock.lines(), ["HEAD /v2/a/b/manifests/t"]);
    assert!(mock.seen()[0].header("accept").contains(media::OCI_INDEX));
    assert_eq!(mock.seen()[0].header("user-agent"), "buildkit/v0.32");
}

#[tokio::test]
async fn a_name_is_resolved_by_get_when_head_is_no_use() {
    for head_status in [200, 405] {
        let mock = Mock::start(move |seen| async move {
            match seen.method {
                Method::HEAD => answer(head_status, &[("content-type", "x")], ()),
                _ => answer(
                    200,
                    &[("content-type", "application/vnd.oci.image.manifest.v1+json; a=b")],
                    "body",
                ),
            }
        })
        .await;
        let desc = mock.repository().await.resolve().await.unwrap();
        assert_eq!(desc, Descriptor::new(media::OCI_MANIFEST, Digest::of("body"), 4));
    }
}

#[tokio::test]
async fn what_passes_is_waited_for_and_what_does_not_is_not() {
    for (status, attempts) in [(429, 3), (500, 3), (502, 3), (503, 3), (504, 3), (401, 1), (403, 1), (404, 1)]
    {
        let count = Arc::new(AtomicUsize::new(0));
        let mock =
            Mock::start(move |_| {
                let ready = count.fetch_add(1, Ordering::SeqCst) == 2;
                async move {
                    if ready { answer(200, &[], "x") } else { answer(status, &[("retry-after", "0")], "") }
                }
            })
            .await;
        let fetched = mock.repository().await.fetch(&blob(b"x")).await;
        assert_eq!(fetched.is_ok(), attempts > 1, "{status}");
        assert_eq!(mock.seen().len(), attempts, "{status}");
    }
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let bytes: Bytes = (0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
    for knows_ranges in [true, false] {
        let data = bytes.clone();
        let mock = Mock::start(move |seen| {
            let data = data.clone();
            async move {
                let start: usize = match seen.header("range") {
                    range if knows_ranges && !range.is_empty() => {
                        range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
                    }
                    _ => 0,
                };
                let (rest, total) = (data.slice(start..), data.len());
                let range = format!("bytes {start}-{}/{total}", total - 1);
                let length = rest.len().to_string();
                let mut headers = vec![("content-length", length.as_str())];
                if start > 0 {
                    headers.push(("content-range", &range));
                }
                // Without ranges each connection gets a little further.
                let reach = match (knows_ranges, seen.header("range")) {
                    (false, "") => 400_000,
                    (false, _) => total,
                    (true, _) => rest.len().min(450_000),
                };
                let body = if reach < rest.len() { broken(rest.slice(..reach)) } else { rest.into() };
                answer(if start > 0 { 206 } else { 200 }, &headers, body)
            }
        })
        .await;
        let mut got = Vec::new();
        let repository = mock.repository().await;
        repository.open(&blob(&bytes), 0).await.unwrap().read_to_end(&mut got).await.unwrap();
        assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
        assert!(mock.seen().len() > 1);

        got.clear();
        repository.open(&blob(&bytes), 1_000_000).await.unwrap().read_to_end(&mut got).await.unwrap();
        assert!(got == bytes[1_000_000..]);
    }
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_last() {
    let upstream =
        Mock::start(|_| async { answer(200, &[("content-type", media::OCI_MANIFEST)], "up") }).await;
    let empty = Mock::start(|_| async { answer(404, &[], "") }).await;
    let mirror = Mock::start(|seen| async move {
        match seen.path.contains("/blobs/") {
            true => answer(200, &[], "x"),
            false => answer(503, &[], ""),
        }
    })
    .await;
    let mut config = config();
    let mirrors = vec![
        "127.0.0.1:1".to_owned(), // nobody there
        format!("http://{}/pre/fix/", empty.host),
        mirror.host.clone(),
    ];
    config.hosts.insert(upstream.host.clone(), HostConfig { mirrors, ..HostConfig::default() });
    let registries = Registries::new(config);
    let repository = upstream.repository_for(&registries, &Access::anonymous()).await;

    assert_eq!(repository.resolve().await.unwrap().digest, Digest::of("up"));
    assert_eq!(empty.lines(), ["HEAD /v2/pre/fix/a/b/manifests/t"]);
    assert_eq!(empty.seen()[0].param("ns").unwrap(), upstream.host);
    assert_eq!(mirror.seen().len(), 1, "only the last host is waited for");
    assert!(upstream.seen().iter().all(|s| s.query.is_empty()));

    let before = upstream.seen().len();
    assert_eq!(repository.fetch(&blob(b"x")).await.unwrap(), "x");
    assert_eq!(upstream.seen().len(), before, "the mirror had it");
    let insecure = Access::anonymous().insecure(true);
    let seen = mirror.seen().len();
    upstream.repository_for(&registries, &insecure).await.resolve().await.unwrap();
    assert_eq!(mirror.seen().len(), seen, "no mirrors for those who asked for this very host");
}

#[tokio::test]
async fn other_addresses_of_a_blob_are_asked_as_nobody() {
    let elsewhere = Mock::start(|_| async { answer(200, &[], "x") }).await;
    let mock = Mock::start(|_| async { answer(404, &[], "") }).await;
    let mut desc = blob(b"x");
    desc.urls = vec!["ftp://x/y".into(), "nonsense".into(), format!("http://{}/foreign?a=b", elsewhere.host)];
    assert_eq!(mock.repository().await.fetch(&desc).await.unwrap(), "x");
    assert_eq!((mock.seen().len(), elsewhere.lines()), (0, vec!["GET /foreign".to_owned()]));
}

#[tokio::test]
async fn a_digest_that_is_no_manifest_may_be_a_blob() {
    let digest = Digest::of("odd");
    let mock = Mock::start(|seen| async move {
        let headers = [("content-type", "application/octet-stream"), ("content-length", "3")];
        if seen.path.contains("/blobs/") { answer(200, &headers, ()) } else { answer(404, &[], "") }
    })
    .await;
    let reference: Reference = format!("{}/a@{digest}", mock.host).parse().unwrap();
    let registries = Registries::new(config());
    let repository = registries.repository(&reference, &Access::anonymous()).await.unwrap();
    assert_eq!(repository.resolve().await.unwrap().size, 3);
    assert_eq!(repository.stat_blob(&digest).await.unwrap().size, 3);
}

/// A document, and where it is asked for.
fn document(value: &serde_json::Value) -> (Descriptor, Bytes) {
    let bytes = Bytes::from(value.to_string());
    let media_type = value["mediaType"].as_str().unwrap_or("application/json");
    (Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64), bytes)
}

#[tokio::test]
async fn attestations_and_their_signatures_are_found() {
    let entry = |(desc, _): &(Descriptor, Bytes), more: serde_json::Value| {
        let mut entry = serde_json::to_value(desc).unwrap();
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    };
    let manifest = |layers: Vec<serde_json::Value>| {
        let config = Descriptor::new("c", Digest::of("c"), 1);
        document(&serde_json::json!({"mediaType": media::OCI_MANIFEST, "config": config, "layers": layers}))
    };
    let predicate = |t: &str| serde_json::json!({"annotations": {"in-toto.io/predicate-type": t}});
    let (one, other) = (document(&"one".into()), document(&"other".into()));
    let attestations = manifest(vec![entry(&one, predicate("a")), entry(&other, predicate("b"))]);
    let image = manifest(Vec::new());
    let seal = document(&"seal".into());
    let signature = manifest(vec![entry(&seal, serde_json::json!({}))]);
    let amd64 = serde_json::json!({"platform": {"os": "linux", "architecture": "amd64"}});
    let about = serde_json::json!({
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image.0.digest.as_str(),
        },
    });
    let entries = [entry(&image, amd64), entry(&attestations, about)];
    let index = document(&serde_json::json!({"mediaType": media::OCI_INDEX, "manifests": entries}));
    let bundle = |kind: &str| serde_json::json!({"artifactType": kind});
    let referrers = serde_json::json!({"manifests": [
        entry(&image, bundle("application/vnd.dev.cosign.artifact.sig.v1+json")),
        entry(&signature, bundle("application/vnd.dev.sigstore.bundle.v0.3+json")),
    ]});
    let refers = format!("referrers/{}", attestations.0.digest);
    let tag = format!("manifests/{}", attestations.0.digest.as_str().replace(':', "-"));
    for known in [Some(&refers), Some(&tag), None] {
        let mut answers: std::collections::BTreeMap<String, Bytes> =
            [&one, &other, &attestations, &image, &seal, &signature, &index]
                .into_iter()
                .flat_map(|(d, bytes)| {
                    ["manifests", "blobs"].map(|kind| (format!("{kind}/{}", d.digest), bytes.clone()))
                })
                .collect();
        if let Some(tail) = known {
            answers.insert(tail.clone(), referrers.to_string().into());
        }
        let mock = Mock::start(move |seen| {
            let body = answers.get(seen.path.trim_start_matches("/v2/a/b/")).cloned();
            async move { body.map_or_else(|| answer(404, &[], ()), |body| answer(200, &[], body)) }
        })
        .await;
        let repository = mock.repository().await;
        let platform = "linux/amd64".parse().unwrap();
        let chain = repository.attestations(&index.0, &platform, &["b".to_owned()]).await.unwrap().unwrap();
        assert_eq!(chain.image.digest, image.0.digest);
        assert_eq!(chain.attestations.map(|d| d.digest), Some(attestations.0.digest.clone()));
        let expected = known.map(|_| signature.0.digest.clone());
        assert_eq!(chain.signature.map(|d| d.digest), expected);
        let brought: Vec<_> = chain.documents.iter().map(|(d, _)| &d.digest).collect();
        let signed = [&signature.0.digest, &seal.0.digest];
        let all = [&index.0.digest, &attestations.0.digest]
            .into_iter()
            .chain(signed.into_iter().filter(|_| known.is_some()))
            .chain([&other.0.digest]);
        assert_eq!(brought, all.collect::<Vec<_>>());
        let none = repository.attestations(&image.0, &platform, &[]).await.unwrap();
        assert!(none.is_none());
        let error = repository.attestations(&index.0, &"linux/s390x".parse().unwrap(), &[]).await;
        assert!(error.unwrap_err().to_string().contains("no match for platform"));
    }
}
