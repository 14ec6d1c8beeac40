//! Registries that lie, break off, never end, or are no registries.

use axum::body::Body;
use axum::http::Method;
use base::descriptor::media;
use base::{Classify, Descriptor, Digest, Kind};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use registry::{Error, MAX_CONFIG, Problem};
use tokio::io::AsyncReadExt;

use crate::mock::{Mock, answer, blob, broken};

fn endless() -> Body {
    Body::from_stream(stream::repeat(()).map(|()| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 8192]))))
}

async fn fetch_from(
    make: impl Fn() -> axum::response::Response + Clone + Send + Sync + 'static,
    desc: &Descriptor,
) -> Error {
    let mock = Mock::start(move |_| {
        let response = make();
        async move { response }
    })
    .await;
    mock.repository().await.fetch(desc).await.unwrap_err()
}

#[tokio::test]
async fn the_wrong_bytes_are_refused() {
    let error = fetch_from(|| answer(200, &[], "lie"), &blob(b"yes")).await;
    assert!(matches!(*error.problem, Problem::Digest { .. }), "{error}");
    assert!(error.to_string().contains(Digest::of("yes").as_str()), "{error}");
    assert_eq!(error.kind(), Kind::DataLoss);
    let error = fetch_from(|| answer(200, &[], "longer"), &blob(b"yes")).await;
    assert!(matches!(*error.problem, Problem::Size { expected: 3, actual: 6 }), "{error}");
}

#[tokio::test]
async fn a_blob_that_always_breaks_off_is_given_up() {
    let short = || answer(200, &[("content-length", "3")], broken(Bytes::from_static(b"ye")));
    let error = fetch_from(short, &blob(b"yes")).await;
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    let error = fetch_from(
        || answer(200, &[], Body::from_stream(stream::once(async { Ok::<_, std::io::Error>("ye") }))),
        &blob(b"yes"),
    )
    .await;
    assert!(matches!(*error.problem, Problem::Truncated { expected: 3, actual: 2 }), "{error}");
}

#[tokio::test]
async fn endless_bodies_end() {
    let desc = blob(b"yes");
    let error = fetch_from(|| answer(200, &[], endless()), &desc).await;
    assert!(matches!(*error.problem, Problem::Size { expected: 3, .. }), "{error}");

    let mock = Mock::start(|seen| async move {
        match seen.method {
            Method::HEAD => answer(200, &[("content-type", media::OCI_MANIFEST)], ()),
            _ => answer(200, &[("content-type", media::OCI_MANIFEST)], endless()),
        }
    })
    .await;
    let error = mock.repository().await.resolve().await.unwrap_err();
    assert!(matches!(*error.problem, Problem::TooLarge { .. }), "{error}");

    let error = fetch_from(|| answer(500, &[], endless()), &desc).await;
    assert!(matches!(*error.problem, Problem::Status { code: 500, .. }), "{error}");
}

#[tokio::test]
async fn absurd_sizes_are_refused_before_anything_is_asked() {
    let mock = Mock::start(|_| async { answer(200, &[], "") }).await;
    let repository = mock.repository().await;
    for size in [MAX_CONFIG + 1, u64::MAX] {
        let desc = Descriptor::new(media::OCI_CONFIG, Digest::of(""), size);
        let error = repository.fetch(&desc).await.unwrap_err();
        assert!(matches!(*error.problem, Problem::TooLarge { .. }), "{error}");
    }
    assert!(mock.seen().is_empty());
    let mock = Mock::start(|_| async {
        let headers = [
            ("content-length", "18446744073709551615"),
            (
                "docker-content-digest",
                "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
        ];
        answer(200, &headers, ())
    })
    .await;
    mock.repository().await.resolve().await.unwrap_err();
}

#[tokio::test]
async fn a_digest_that_names_other_bytes_is_refused() {
    for digest in [Digest::of("other").to_string(), "sha256:../../etc".into(), "md5:00".into()] {
        let named = digest.clone();
        let mock = Mock::start(move |seen| {
            let named = named.clone();
            async move {
                let head = seen.method == Method::HEAD && !named.contains("..");
                let headers = [("content-type", media::OCI_MANIFEST), ("docker-content-digest", &*named)];
                if head { answer(405, &[], ()) } else { answer(200, &headers, "body") }
            }
        })
        .await;
        let error = mock.repository().await.resolve().await.unwrap_err();
        assert!(matches!(*error.problem, Problem::Digest { .. } | Problem::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn pages_for_browsers_are_no_manifests() {
    let mock =
        Mock::start(|_| async { answer(200, &[("content-type", "text/html; charset=utf-8")], "<html>") })
            .await;
    let error = mock.repository().await.resolve().await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}/a/b:t: ", mock.host)), "{error}");
    assert!(error.contains("a page for browsers"), "{error}");
    let mock =
        Mock::start(|_| async { answer(404, &[("content-type", "text/html")], "<html><h1>Not here") }).await;
    let error = mock.repository().await.resolve().await.unwrap_err();
    assert_eq!(error.to_string(), format!("{}/a/b:t: not found", mock.host));
    assert!(error.is_not_found() && error.kind() == Kind::NotFound);
}

#[tokio::test]
async fn errors_say_who_answered_what() {
    let body = r#"{"errors":[{"code":"DENIED","message":"quota used up"}]}"#;
    let mock = Mock::start(move |seen| async move {
        if seen.method == Method::HEAD { answer(403, &[], ()) } else { answer(403, &[], body) }
    })
    .await;
    let error = mock.repository().await.resolve().await.unwrap_err();
    let text = error.to_string();
    for part in
        ["/a/b:t: pull access denied", "403", "DENIED: quota used up", "no credentials were used", &mock.host]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(error.kind(), Kind::PermissionDenied);
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn redirects_do_not_go_round_for_ever() {
    let mock =
        Mock::start(|seen| async move { answer(307, &[("location", &format!("{}x", seen.path))], "") }).await;
    let error = mock.repository().await.fetch(&blob(b"x")).await.unwrap_err().to_string();
    assert!(error.contains("too many redirects"), "{error}");
    for location in ["file:///etc/passwd", "http://", "\u{1}"] {
        let mock = Mock::start(move |_| async move {
            let location = axum::http::HeaderValue::from_bytes(location.as_bytes());
            let mut response = answer(302, &[], "");
            response
                .headers_mut()
                .insert("location", location.unwrap_or(axum::http::HeaderValue::from_static("gopher:x")));
            response
        })
        .await;
        let error = mock.repository().await.fetch(&blob(b"x")).await.unwrap_err().to_string();
        assert!(error.contains("redirect to"), "{error}");
    }
}

#[tokio::test]
async fn ranges_that_were_not_asked_for_are_refused() {
    let mock =
        Mock::start(|_| async { answer(206, &[("content-range", "bytes 0-9/10")], "0123456789") }).await;
    let error = mock.repository().await.open(&blob(b"0123456789"), 5).await.err().unwrap().to_string();
    assert!(error.contains("asked for bytes from 5 on"), "{error}");
}

#[tokio::test]
async fn a_reader_gives_the_typed_error_back() {
    let mock =
        Mock::start(|_| async { answer(200, &[], Body::from_stream(endless().into_data_stream().take(3))) })
            .await;
    let desc = Descriptor::new(media::OCI_LAYER, Digest::of(""), 10_000);
    let mut reader = mock.repository().await.open(&desc, 0).await.unwrap();
    let error = reader.read_to_end(&mut Vec::new()).await.unwrap_err();
    let error = Error::from_io(error).unwrap();
    assert!(matches!(*error.problem, Problem::Size { expected: 10_000, .. }), "{error}");
}
