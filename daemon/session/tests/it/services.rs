//! Secrets, credentials, agents, uploads, stores.

use std::sync::Arc;
use std::time::Duration;

use base::{Digest, Failure, Kind, Secret};
use bytes::Bytes;
use session::client::{
    Agent, Attachables, Authority, Credential, Credentials, OciStore, SecretSource, Uploads,
};
use session::{Error, SocketOptions, Token, TokenRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::Daemon;

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_told_or_not_found() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("s"), "from a file").unwrap();
    std::fs::write(dir.path().join("large"), vec![0; 500 * 1024 + 1]).unwrap();
    let mut attachables = Attachables::new();
    attachables.secret("file", SecretSource::File(dir.path().join("s")));
    attachables.secret("large", SecretSource::File(dir.path().join("large")));
    attachables.secret("value", SecretSource::Value(Secret::new("from here")));
    let (_session, caller) = daemon.attach(attachables).await;
    assert_eq!(caller.secret("file").await.unwrap(), b"from a file");
    assert_eq!(caller.secret("value").await.unwrap(), b"from here");
    assert!(matches!(caller.secret("none").await, Err(Error::NoSecret { .. })));
    let e = caller.secret("large").await.unwrap_err();
    assert!(e.to_string().contains("invalid secret size"), "{e}");

    let (_session, bare) = daemon.attach(Attachables::new()).await;
    assert!(matches!(bare.secret("file").await, Err(Error::NoSecret { .. })));
    assert_eq!(bare.credentials("x").await.unwrap().0, "");
    assert!(bare.token_authority("x", b"salt").await.unwrap().is_none());
    assert!(bare.find_exporters(Default::default(), Vec::new()).await.unwrap().is_empty());
    bare.finalize_export(Default::default()).await.unwrap();
    assert_eq!(bare.shared_key(), "key");
    assert!(bare.supports("/GRPC.health.v1.Health/check"));
}

struct Known;

struct Key;

impl Authority for Key {
    fn public_key(&self) -> [u8; 32] {
        [3; 32]
    }

    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [4; 64]
    }
}

#[tonic::async_trait]
impl Credentials for Known {
    async fn lookup(&self, host: &str) -> Result<Credential, Failure> {
        Ok(Credential { username: host.into(), secret: Secret::new("s"), ..Credential::default() })
    }

    async fn fetch_token(&self, request: TokenRequest) -> Result<Token, Failure> {
        Ok(Token { token: Secret::new(request.realm), expires_in: 60, issued_at: 0 })
    }

    async fn authority(&self, host: &str, _: &[u8]) -> Result<Option<Box<dyn Authority>>, Failure> {
        Ok(if host == "h" { Some(Box::new(Key)) } else { None })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_answered_for() {
    let daemon = Daemon::start();
    let mut attachables = Attachables::new();
    attachables.credentials(Arc::new(Known));
    let (_session, caller) = daemon.attach(attachables).await;
    assert_eq!(caller.credentials("h").await.unwrap().0, "h");
    let token =
        caller.fetch_token(TokenRequest { realm: "r".into(), ..TokenRequest::default() }).await.unwrap();
    assert_eq!((token.token.expose(), token.expires_in), ("r", 60));
    assert_eq!(caller.token_authority("h", b"salt").await.unwrap(), Some([3; 32]));
    assert_eq!(caller.token_authority("other", b"salt").await.unwrap(), None);
    let signed = caller.sign_token_authority("h", b"salt", b"payload").await.unwrap().unwrap();
    assert_eq!(&signed[64..], b"payload");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_reached_through_a_socket() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent");
    let echo = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = echo.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await.unwrap();
                all.reverse();
                socket.write_all(&all).await.unwrap();
            });
        }
    });
    let mut attachables = Attachables::new();
    attachables.agent("default", Agent { socket: path, raw: true });
    let (_session, caller) = daemon.attach(attachables).await;
    caller.check_agent("default").await.unwrap();
    assert!(
        caller.check_agent("other").await.unwrap_err().to_string().contains("unset ssh forward key other")
    );

    let options = SocketOptions { id: String::new(), uid: 0, gid: 0, mode: 0o600 };
    let forwarded = caller.forward_agent(dir.path(), options).await.unwrap();
    let mut socket = tokio::net::UnixStream::connect(forwarded.path()).await.unwrap();
    let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 255) as u8).collect();
    socket.write_all(&sent).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut got = Vec::new();
    socket.read_to_end(&mut got).await.unwrap();
    assert!(got.iter().rev().eq(sent.iter()));
    let path = forwarded.path().to_owned();
    drop(forwarded);
    assert!(!path.exists() && !path.parent().unwrap().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_pulled_once() {
    let daemon = Daemon::start();
    let uploads = Uploads::default();
    let data = vec![5u8; 1 << 20];
    let url = uploads.add(std::io::Cursor::new(data.clone()));
    let path = url.strip_prefix("http://buildkit-session").unwrap();
    let mut attachables = Attachables::new();
    attachables.uploads(uploads);
    let (_session, caller) = daemon.attach(attachables).await;
    let mut upload = caller.pull("buildkit-session", path).await.unwrap();
    let mut got = Vec::new();
    while let Some(bytes) = upload.next().await.unwrap() {
        got.extend_from_slice(&bytes);
    }
    assert_eq!(got, data);
    let again = caller.pull("buildkit-session", path).await.err().unwrap();
    assert!(again.to_string().contains("no http response from session"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_read_and_written() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().unwrap();
    let store = OciStore::open(dir.path(), true).unwrap();
    let mut attachables = Attachables::new();
    attachables.store("export", store.clone());
    let (_session, caller) = daemon.attach(attachables).await;
    let data = Bytes::from((0..3_000_000u32).map(|i| (i % 253) as u8).collect::<Vec<_>>());
    let digest = Digest::of(&data);
    let size = data.len() as u64;

    let e = Failure::from(caller.blob_info("export", &digest).await.unwrap_err());
    assert_eq!(e.kind(), Kind::NotFound);
    let mut writer = caller.write_blob("export", "ref", &digest, size).await.unwrap().unwrap();
    assert_eq!(writer.offset(), 0);
    writer.write(data.clone()).await.unwrap();
    writer.commit().await.unwrap();
    assert!(caller.write_blob("export", "ref", &digest, size).await.unwrap().is_none());
    assert_eq!(std::fs::read(store.path(&digest)).unwrap(), data);
    assert_eq!(caller.blob_info("export", &digest).await.unwrap().size, size);

    for (offset, length) in [(0, 0), (1_000_000, 0), (5, 10), (size, 0)] {
        let mut reader = caller.read_blob("export", &digest, offset, length).await.unwrap();
        let mut got = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            got.extend_from_slice(&bytes);
        }
        let end = if length == 0 { data.len() } else { (offset + length) as usize };
        assert_eq!(got, data[offset as usize..end]);
    }
    let e = Failure::from(caller.read_blob("export", &digest, size + 1, 0).await.err().unwrap());
    assert_eq!(e.kind(), Kind::OutOfRange);
    assert!(
        caller.blob_info("other", &digest).await.unwrap_err().to_string().contains("unknown store other")
    );

    let wrong = Digest::of("something else");
    let mut writer = caller.write_blob("export", "bad", &wrong, 3).await.unwrap().unwrap();
    writer.write(Bytes::from_static(b"abc")).await.unwrap();
    let e = writer.commit().await.unwrap_err();
    assert!(e.to_string().contains("unexpected commit digest"), "{e}");
    assert!(!store.path(&wrong).exists());
    assert_eq!(std::fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_session_will_do() {
    let daemon = Daemon::start();
    let (_session, caller) = daemon.attach(Attachables::new()).await;
    let ids = ["x:".to_owned() + caller.id()];
    let id = daemon.sessions.any(&ids, |c| async move { Ok(c.id().to_owned()) }).await.unwrap();
    assert_eq!(id, caller.id());
    let waiting = daemon.sessions.get("late", Duration::from_secs(30));
    let none = tokio::time::timeout(Duration::from_millis(20), waiting).await;
    assert!(none.is_err(), "it waits");
}
