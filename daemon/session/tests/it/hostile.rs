//! Clients that break the rules.

use std::path::Path;
use std::pin::Pin;

use base::Failure;
use bytes::Bytes;
use futures_util::StreamExt;
use proto::fsutil::types::packet::PacketType;
use proto::fsutil::types::{Packet, Stat};
use proto::moby::filesync::v1::file_sync_server::{FileSync, FileSyncServer};
use session::fs::{Receive, mode};
use session::{Caller, SyncDir};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::harness::{Daemon, listing};

const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";

/// Says its lines, whatever it is asked, and then waits.
struct Script(Vec<Packet>);

type Packets = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for Script {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let lines = futures_util::stream::iter(self.0.clone()).map(Ok);
        // Listening keeps the line open until the daemon hangs up.
        let rest = request.into_inner().filter(|_| std::future::ready(false));
        Ok(Response::new(lines.chain(rest).boxed()))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn stat(path: &str, mode: u32, linkname: &str) -> Packet {
    let stat = Stat { path: path.into(), mode, linkname: linkname.into(), ..Stat::default() };
    Packet { r#type: PacketType::PacketStat.into(), stat: Some(stat), ..Packet::default() }
}

fn file(path: &str) -> Packet {
    stat(path, 0o644, "")
}

fn dir(path: &str) -> Packet {
    stat(path, mode::DIR | 0o755, "")
}

fn data(id: u32, bytes: &'static [u8]) -> Packet {
    Packet { r#type: PacketType::PacketData.into(), id, data: Bytes::from_static(bytes), ..Packet::default() }
}

fn other(kind: PacketType) -> Packet {
    Packet { r#type: kind.into(), ..Packet::default() }
}

async fn attach(daemon: &Daemon, script: Vec<Packet>) -> Caller {
    let mut routes = tonic::service::RoutesBuilder::default();
    routes.add_service(FileSyncServer::new(Script(script)));
    daemon.attach_routes(routes.routes(), &[DIFF_COPY], &[]).await
}

async fn sync(daemon: &Daemon, script: Vec<Packet>, dest: &Path) -> Result<(), Failure> {
    let caller = attach(daemon, script).await;
    let receive = Receive { dest: dest.to_owned(), ..Receive::default() };
    Ok(caller.sync_dir(SyncDir { name: "x".into(), receive, ..SyncDir::default() }).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_rules_are_named_and_lead_nowhere() {
    let daemon = Daemon::start();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "untouched").unwrap();
    let away = outside.path().to_str().unwrap();
    let end = || other(PacketType::PacketStat);
    let cases: Vec<(Vec<Packet>, &str)> = vec![
        (vec![file("../secret"), end()], "out of the tree"),
        (vec![file(&format!("{away}/secret")), end()], "absolute path"),
        (vec![stat("a", mode::SYMLINK | 0o777, away), file("a/secret"), end()], "parent is missing"),
        (vec![file("b"), file("a"), end()], "out of order"),
        (vec![file("a"), file("a"), end()], "out of order"),
        (vec![stat("a", 0o644, secret.to_str().unwrap()), end()], "unknown path"),
        (vec![stat("a", mode::SYMLINK | 0o777, away), stat("b", 0o644, "a"), end()], "unknown path"),
        (vec![file(&"n".repeat(300)), end()], "name is too long"),
        (vec![file(&"n/".repeat(4000)), end()], "too long"),
        (vec![file("a"), end(), data(7, b"x")], "invalid file request 7"),
        (vec![data(0, b"x")], "invalid file request 0"),
        (vec![dir("a"), end(), data(0, b"x")], "invalid file request 0"),
        (vec![end(), file("late")], "after the last entry"),
        (vec![end(), end()], "second end"),
        (vec![other(PacketType::PacketFin)], "end before the end"),
        (vec![other(PacketType::PacketReq)], "request from the sender"),
        (vec![Packet { r#type: 99, ..Packet::default() }], "unknown packet type 99"),
        (vec![Packet { data: "sorry".into(), ..other(PacketType::PacketErr) }], "error from sender: sorry"),
        (
            vec![Packet { stat: Some(Stat { uid: u32::MAX, ..file("a").stat.unwrap() }), ..file("a") }],
            "attributes",
        ),
        (
            vec![Packet {
                stat: Some(Stat { devmajor: -1, mode: mode::DEVICE, ..file("a").stat.unwrap() }),
                ..file("a")
            }],
            "device",
        ),
    ];
    for (script, why) in cases {
        let dest = tempfile::tempdir().unwrap();
        let failure = sync(&daemon, script, dest.path()).await.unwrap_err();
        assert!(failure.to_string().contains(why), "expected {why:?}: {failure}");
    }
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "untouched");
    assert_eq!(listing(outside.path()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_destination_is_replaced_not_followed() {
    let daemon = Daemon::start();
    let (dest, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(outside.path().join("f"), "old").unwrap();
    std::os::unix::fs::symlink(outside.path(), dest.path().join("a")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("f"), dest.path().join("b")).unwrap();
    let script = vec![dir("a"), file("a/f"), file("b"), other(PacketType::PacketStat)];
    let caller = attach(&daemon, script).await;
    let receive = Receive { dest: dest.path().to_owned(), ..Receive::default() };
    let transfer = caller.sync_dir(SyncDir { name: "x".into(), receive, ..SyncDir::default() });
    // The files never come; everything else is done without them.
    let done = async {
        while !dest.path().join("a").symlink_metadata().unwrap().is_dir()
            || dest.path().join("b").symlink_metadata().unwrap().is_symlink()
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = transfer => panic!("the script does not end"),
        () = done => {}
    }
    assert_eq!(std::fs::read_to_string(outside.path().join("f")).unwrap(), "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_heart_beat_is_let_go() {
    let daemon = Daemon::start();
    let mut routes = tonic::service::RoutesBuilder::default();
    routes.add_service(FileSyncServer::new(Script(Vec::new())));
    let fast = [(session::metadata::SESSION_HEALTH_TIMEOUT, "1000")];
    let caller = daemon.attach_routes(routes.routes(), &[DIFF_COPY], &fast).await;
    let dest = tempfile::tempdir().unwrap();
    let receive = Receive { dest: dest.path().to_owned(), ..Receive::default() };
    let waiting = caller.sync_dir(SyncDir { name: "x".into(), receive, ..SyncDir::default() });
    let failure = Failure::from(waiting.await.unwrap_err());
    assert!(failure.to_string().contains("session healthcheck failed fatally"), "{failure}");
    assert!(daemon.sessions.find(caller.id()).is_none());
}
