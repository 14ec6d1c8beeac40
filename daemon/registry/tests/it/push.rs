//! Uploads, with everything registries do differently.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::http::Method;
use base::Digest;
use base::descriptor::media;
use bytes::Bytes;
use registry::{Problem, Pushed};

use crate::mock::{Mock, Seen, answer, blob};

/// A registry that has nothing, mounts only from `full`, and takes at most
/// `most` bytes at once.
async fn taking(most: usize) -> (Mock, Arc<Mutex<Vec<u8>>>) {
    let stored = Arc::new(Mutex::new(Vec::new()));
    let store = stored.clone();
    let mock = Mock::start(move |seen: Seen| {
        let store = store.clone();
        async move {
            if seen.body.len() > most {
                return answer(413, &[], "");
            }
            match seen.method {
                Method::HEAD => answer(404, &[], ""),
                Method::POST if seen.param("from").is_some_and(|f| f == "full") => answer(201, &[], ""),
                Method::POST => {
                    store.lock().unwrap().clear();
                    answer(202, &[("location", "/v2/a/b/blobs/uploads/1?_state=a%2Bb")], "")
                }
                Method::PATCH => {
                    let mut store = store.lock().unwrap();
                    let range = format!("{}-{}", store.len(), store.len() + seen.body.len() - 1);
                    assert_eq!(seen.header("content-range"), range);
                    store.extend_from_slice(&seen.body);
                    let range = format!("0-{}", store.len() - 1);
                    answer(202, &[("location", "2?_state=c"), ("range", &range)], "")
                }
                _ => {
                    let mut store = store.lock().unwrap();
                    store.extend_from_slice(&seen.body);
                    let digest = Digest::of(&*store);
                    let asked = seen.param("digest").unwrap_or_else(|| digest.to_string());
                    assert_eq!(asked, digest.as_str());
                    answer(201, &[("docker-content-digest", digest.as_str())], "")
                }
            }
        }
    })
    .await;
    (mock, stored)
}

#[tokio::test]
async fn a_blob_goes_up_in_one_request() {
    let (mock, stored) = taking(1 << 20).await;
    let bytes = Bytes::from(vec![7; 300_000]);
    let position = Arc::new(AtomicU64::new(0));
    let watched = position.clone();
    let watch: registry::Watch = Arc::new(move |p| watched.store(p, Ordering::SeqCst));
    let repository = mock.repository().await;
    let pushed = repository
        .push_blob(&blob(&bytes), Arc::new(bytes.clone()), &["a/b".into(), "empty".into()], Some(watch))
        .await
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert!(*stored.lock().unwrap() == bytes);
    assert_eq!(position.load(Ordering::SeqCst), 300_000);
    let put = mock.seen().pop().unwrap();
    assert_eq!(put.path, "/v2/a/b/blobs/uploads/1");
    assert!(put.query.starts_with("_state=a%2Bb&digest="), "{}", put.query);
    assert_eq!(put.header("content-length"), "300000");
    assert_eq!(
        mock.seen().iter().filter(|s| s.method == Method::POST).count(),
        1,
        "the mount began an upload"
    );
}

#[tokio::test]
async fn a_blob_of_a_neighbour_is_mounted() {
    let (mock, _) = taking(0).await;
    let from = ["full".to_owned()];
    let pushed =
        mock.repository().await.push_blob(&blob(b"x"), Arc::new(Bytes::from("x")), &from, None).await;
    assert_eq!(pushed.unwrap(), Pushed::Mounted("full".into()));
    assert_eq!(mock.seen().pop().unwrap().param("mount").unwrap(), Digest::of("x").as_str());
}

#[tokio::test]
async fn what_is_too_much_at_once_goes_up_in_pieces() {
    let (mock, stored) = taking(600 << 10).await;
    let bytes: Bytes = (0..500_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
    let pushed = mock.repository().await.push_blob(&blob(&bytes), Arc::new(bytes.clone()), &[], None).await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    assert!(*stored.lock().unwrap() == bytes);
}

#[tokio::test]
async fn an_upload_starts_again_after_what_passes_and_not_after_what_does_not() {
    for (status, requests) in [(503, 1 + 4 * 2), (403, 1 + 2), (400, 1 + 2)] {
        let mock = Mock::start(move |seen| async move {
            match seen.method {
                Method::HEAD => answer(404, &[], ""),
                Method::POST => answer(202, &[("location", "http://127.0.0.1:1/x")], ""),
                _ => answer(status, &[], ""),
            }
        })
        .await;
        let host = mock.host.clone();
        let here = Mock::start(move |seen| {
            let location = format!("http://{host}/up?x=y");
            async move {
                match seen.method {
                    Method::HEAD => answer(404, &[], ""),
                    _ => answer(202, &[("location", &location)], ""),
                }
            }
        })
        .await;
        let error =
            here.repository().await.push_blob(&blob(b"x"), Arc::new(Bytes::from("x")), &[], None).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&status.to_string()), "{error}");
        assert_eq!(here.seen().len() + mock.seen().len(), requests, "{status}");
        assert!(mock.seen().iter().all(|s| s.line() == "PUT /up"));
    }
}

#[tokio::test]
async fn manifests_are_put_once_and_checked() {
    let lies = Arc::new(Mutex::new(false));
    let lie = lies.clone();
    let mock = Mock::start(move |seen: Seen| {
        let digest = if *lie.lock().unwrap() { Digest::of("other") } else { Digest::of(&seen.body) };
        async move {
            match (&seen.method, seen.path.ends_with("/there")) {
                (&Method::HEAD, true) => {
                    answer(200, &[("docker-content-digest", Digest::of("{}").as_str())], "")
                }
                (&Method::HEAD, false) => answer(404, &[], ""),
                _ => answer(201, &[("docker-content-digest", digest.as_str())], ""),
            }
        }
    })
    .await;
    let repository = mock.repository().await;
    let push = async |tag| repository.push_manifest(Bytes::from("{}"), media::OCI_MANIFEST, tag).await;
    assert_eq!(push(Some("there")).await.unwrap(), Digest::of("{}"));
    assert_eq!(mock.seen().len(), 1, "it was there");
    push(Some("new")).await.unwrap();
    assert_eq!(mock.seen()[2].header("content-type"), media::OCI_MANIFEST);
    push(None).await.unwrap();
    assert_eq!(mock.lines()[4], format!("PUT /v2/a/b/manifests/{}", Digest::of("{}")));
    *lies.lock().unwrap() = true;
    assert!(matches!(*push(Some("new")).await.unwrap_err().problem, Problem::Digest { .. }));
}
