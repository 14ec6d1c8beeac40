//! The proxy as a step meets it: real sockets, real TLS.

#[allow(clippy::unwrap_used)] // of tests
mod support;

use std::sync::Arc;
use std::time::Duration;

use base::Digest;
use support::{Bench, Rules, finish};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn fetches_and_notes() {
    let bench = Bench::new(None).await;
    let more = "Accept-Encoding: gzip\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nX-Mine: 1\r\n";
    let said = bench.ask("GET", "http://user:word@a.test:80/text?q=1", more).await;
    assert!(said.starts_with("HTTP/1.1 404 "), "{said}");
    let said = bench.ask("GET", "http://a.test:80/text", more).await;
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\ntext"), "{said}");
    assert!(!said.to_lowercase().contains("x-there"), "{said}");
    let said = bench.ask("GET", "http://a.test/chunks", "").await;
    assert!(said.contains("200 OK"), "{said}");
    let asked = bench.asked.lock().unwrap().clone();
    assert!(
        asked[1].starts_with("GET /text HTTP/1.1\r\n") && asked[1].contains("x-mine: 1\r\n"),
        "{}",
        asked[1]
    );
    assert!(asked[1].contains("host: a.test\r\n"), "{}", asked[1]);
    for gone in ["accept-encoding", "proxy-connection", "upgrade", "word", "host: x"] {
        assert!(!asked.iter().any(|head| head.to_lowercase().contains(gone)), "{gone} in {asked:?}");
    }
    assert_eq!(
        bench.requests(),
        [
            "GET http://xxxxx:xxxxx@a.test/text?q=1 404",
            "GET http://a.test/text 200",
            "GET http://a.test/chunks 200"
        ]
    );
    let materials = bench.capture.materials();
    let urls: Vec<_> = materials.iter().map(|m| m.url.as_str()).collect();
    assert_eq!(urls, ["http://a.test/text", "http://a.test/chunks"]);
    assert!(materials.iter().all(|m| m.digest == Digest::of("text")));
    assert_eq!(bench.reasons(), ["unsuccessful_response"]);
    let env = bench.proxy.env();
    assert!(env.contains(&format!("https_proxy=http://{}", bench.address)), "{env:?}");
    assert!(env.contains(&"NO_PROXY=127.0.0.1,localhost,::1".to_owned()) && env.len() == 6, "{env:?}");
    bench.proxy.stop().await;
}

#[tokio::test]
async fn says_what_it_cannot_tell() {
    let bench = Bench::new(None).await;
    for (method, path, more, answer, reason) in [
        ("POST", ":80/text", "Content-Length: 2\r\n\r\nhi", "200", "method_not_materializable"),
        ("HEAD", ":80/text", "", "200", "method_not_materializable"),
        ("GET", ":80/text", "Range: bytes=0-1\r\n", "200", "partial_response"),
        ("GET", ":80/none", "", "404", "unsuccessful_response"),
        ("GET", ":80/cut", "", "200", "body_read_failed"),
        ("GET", ":1/text", "", "502", "upstream_error"),
        ("GET", ":80/upgrade", "Upgrade: x\r\n", "502", "upstream_error"),
    ] {
        let said = bench.ask(method, &format!("http://a.test{path}"), more).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {answer} ")), "{method} {path}: {said}");
        assert_eq!(bench.capture.incomplete().last().unwrap().reason, reason, "{method} {path}");
    }
    assert_eq!(bench.reasons().len(), 7);
    assert!(bench.capture.materials().is_empty());
    assert!(bench.asked.lock().unwrap()[0].ends_with("\r\n\r\nhi"));
    // Where it leads is known once that was fetched.
    bench.ask("GET", "http://a.test/from", "").await;
    assert_eq!(bench.capture.requests().last().unwrap().redirect, "http://a.test/text");
    bench.ask("GET", "http://a.test/text", "").await;
    assert_eq!(bench.capture.materials().len(), 2);
    assert_eq!(bench.reasons().len(), 7);
}

#[tokio::test]
async fn tls_ends_here() {
    let bench = Bench::new(Some(Arc::new(Rules))).await;
    // The server speaks no TLS, so that this shows both: the certificate is trusted, and
    // that of the server is not taken for granted.
    let stream = bench.tunnel("a.test:443", "a.test").await.unwrap();
    let said = finish(stream, "GET /text HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{said}");
    // Several requests in one tunnel, one of them to be answered by another server.
    let mut stream = bench.tunnel("secure.test:443", "secure.test").await.unwrap();
    stream.write_all(b"GET /text HTTP/1.1\r\nHost: secure.test\r\n\r\n").await.unwrap();
    let mut said = vec![0; 512];
    let n = stream.read(&mut said).await.unwrap();
    assert!(said[..n].starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&said[..n]));
    let said = finish(stream, "GET /denied HTTP/1.1\r\nHost: secure.test\r\n\r\n").await;
    assert!(said.contains("HTTP/1.1 403 Forbidden\r\n"), "{said}");
    assert_eq!(bench.requests(), ["GET https://a.test/text 502", "GET http://plain.test/text 200"]);
    for (server, name) in [("127.0.0.1:8443", "127.0.0.1"), ("[::1]:443", "::1")] {
        bench.tunnel(server, name).await.unwrap();
    }
    assert!(bench.tunnel("a.test:443", "b.test").await.is_err());
    // A tunnel within a tunnel, and something else than TLS.
    let stream = bench.tunnel("a.test:443", "a.test").await.unwrap();
    let said = finish(stream, "CONNECT b.test:443 HTTP/1.1\r\nHost: b.test\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 405 "), "{said}");
    let said = bench.send("CONNECT a.test:22 HTTP/1.1\r\nHost: a.test\r\n\r\nSSH-2.0-x\r\n").await;
    assert!(said.starts_with("HTTP/1.1 200 ") && !said.contains("SSH"), "{said}");
}

#[tokio::test]
async fn policy_decides() {
    let bench = Bench::new(Some(Arc::new(Rules))).await;
    for (method, url, status) in [
        ("GET", "http://a.test/denied", "403 Forbidden"),
        ("GET", "http://a.test/moved", "200 OK"),
        ("POST", "http://a.test/moved", "403 Forbidden"),
        ("GET", "http://other.test/text", "403 Forbidden"),
        ("POST", "http://a.test/text", "200 OK"),
    ] {
        let said = bench.ask(method, url, "").await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{method} {url}: {said}");
    }
    assert_eq!(bench.requests(), ["GET http://a.test/text 200", "POST http://a.test/text 200"]);
    assert_eq!(bench.asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn nonsense_is_answered_or_cut_off() {
    let bench = Bench::new(None).await;
    let headers = "X: y\r\n".repeat(300);
    let long = "x".repeat(200 << 10);
    for (request, status) in [
        ("\0\0\0\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n".to_owned(), "400"),
        ("CONNECT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(), "400"),
        ("GET ftp://a.test/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(), "502"),
        (format!("GET http://a.test/text HTTP/1.1\r\nHost: a\r\n{headers}\r\n"), "431"),
        (format!("GET http://a.test/{long} HTTP/1.1\r\nHost: a\r\n\r\n"), "4"),
    ] {
        let said = bench.send(&request).await;
        let line: String = request.chars().take(40).collect();
        assert!(said.split(' ').nth(1).is_some_and(|s| s.starts_with(status)), "{line:?}: {said}");
    }
    // Those that have nothing more to say.
    let mut stream = bench.connect().await;
    stream
        .write_all(b"GET http://a.test/text HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let said = finish(stream, "").await;
    assert!(said.ends_with("\r\n\r\ntext"), "{said}");
    // Clients of old, and those that take it for a server.
    let said = bench.send("GET http://a.test/chunks HTTP/1.0\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.0 200 OK\r\n") && said.ends_with("\r\n\r\ntext"), "{said}");
    let said = bench.send("GET /text HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n").await;
    assert!(said.ends_with("\r\n\r\ntext"), "{said}");
    assert_eq!(bench.requests().last().unwrap(), "GET http://b.test/text 200");
}

#[tokio::test]
async fn an_end_is_an_end() {
    let bench = Bench::new(None).await;
    let mut streams = Vec::new();
    for request in [
        "GET http://a.test/endless HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http",
        "CONNECT a.test:443 HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = bench.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    streams[0].read_exact(&mut [0; 100_000]).await.unwrap();
    streams[2].read_exact(&mut [0; 10]).await.unwrap();
    let (capture, address) = (bench.capture.clone(), bench.address);
    tokio::time::timeout(Duration::from_secs(10), bench.proxy.stop()).await.unwrap();
    assert_eq!(capture.incomplete()[0].reason, "body_read_failed");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    for mut stream in streams {
        let mut rest = Vec::new();
        _ = stream.read_to_end(&mut rest).await;
    }
}
