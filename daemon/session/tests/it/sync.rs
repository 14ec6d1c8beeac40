//! Directories from the client to the daemon.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::digest::Hasher;
use base::{Failure, Kind};
use parking_lot::Mutex;
use session::client::Attachables;
use session::fs::{Change, Changes, Dir, METADATA_FILE, Receive, Stat};
use session::{Caller, SyncDir};

use crate::harness::{Daemon, listing};

#[derive(Default)]
struct Seen {
    changes: Mutex<BTreeMap<String, Option<String>>>,
    stall: AtomicBool,
}

impl Changes for Seen {
    fn hasher(&self, stat: &Stat) -> Result<Hasher, Failure> {
        let mut hasher = Hasher::new();
        hasher.update(stat.path.as_bytes());
        Ok(hasher)
    }

    fn changed(&self, path: &str, change: Change<'_>) -> Result<(), Failure> {
        if self.stall.swap(false, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_secs(2));
        }
        let digest = match change {
            Change::Set { digest, .. } => Some(digest.to_string()),
            Change::Removed => None,
        };
        self.changes.lock().insert(path.to_owned(), digest);
        Ok(())
    }
}

fn receive(dest: &Path) -> Receive {
    Receive { dest: dest.to_owned(), ..Receive::default() }
}

async fn sync(caller: &Caller, receive: Receive) -> Result<(), Failure> {
    let sync = SyncDir { name: "context".into(), receive, ..SyncDir::default() };
    Ok(caller.sync_dir(sync).await?)
}

fn fill(root: &Path) {
    std::fs::create_dir_all(root.join("dir/sub")).unwrap();
    std::fs::write(root.join("dir/file"), "bytes").unwrap();
    std::fs::write(root.join("dir/empty"), "").unwrap();
    std::fs::write(root.join("dir/sub/big"), vec![7; 1 << 20]).unwrap();
    std::fs::hard_link(root.join("dir/file"), root.join("dir/twin")).unwrap();
    std::fs::write(root.join("run"), "#!").unwrap();
    std::fs::set_permissions(root.join("run"), PermissionsExt::from_mode(0o6755)).unwrap();
    std::fs::write(root.join("closed"), "x").unwrap();
    std::fs::set_permissions(root.join("closed"), PermissionsExt::from_mode(0o000)).unwrap();
    symlink("/nowhere", root.join("away")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let old = std::time::UNIX_EPOCH + Duration::new(1_000_000, 5);
    for path in ["dir/file", "dir/sub", "dir"] {
        std::fs::File::open(root.join(path)).unwrap().set_modified(old).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_arrives_as_it_is_and_is_kept_up_to_date() {
    let daemon = Daemon::start();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(from.path());
    rustix::fs::lsetxattr(from.path().join("run"), "user.note", b"hello", rustix::fs::XattrFlags::empty())
        .ok();
    let mut attachables = Attachables::new();
    attachables.raw_dir("context", Dir::open(from.path()).unwrap());
    let (_session, caller) = daemon.attach(attachables).await;

    let seen = Arc::new(Seen::default());
    let with = |seen: &Arc<Seen>| Receive { changes: Some(seen.clone()), ..receive(to.path()) };
    sync(&caller, with(&seen)).await.unwrap();
    assert_eq!(listing(to.path()), listing(from.path()));
    let inode = |path| std::fs::metadata(to.path().join(path)).unwrap().ino();
    assert_eq!(inode("dir/file"), inode("dir/twin"));
    let mut buffer = [0u8; 16];
    if rustix::fs::lgetxattr(from.path().join("run"), "user.note", &mut buffer[..]).is_ok() {
        let n = rustix::fs::lgetxattr(to.path().join("run"), "user.note", &mut buffer[..]).unwrap();
        assert_eq!(&buffer[..n], b"hello");
    }
    let all = seen.changes.lock().clone();
    assert_eq!(all.len(), 10);
    let mut expected = Hasher::new();
    expected.update(b"dir/file");
    expected.update(b"bytes");
    assert_eq!(all["dir/file"], Some(expected.finish().to_string()));

    // Nothing changed: nothing is done.
    let seen = Arc::new(Seen::default());
    sync(&caller, with(&seen)).await.unwrap();
    assert!(seen.changes.lock().is_empty());

    // A directory becomes a file and the other way round; something goes away.
    std::fs::remove_dir_all(from.path().join("dir/sub")).unwrap();
    std::fs::write(from.path().join("dir/sub"), "now a file").unwrap();
    std::fs::remove_file(from.path().join("run")).unwrap();
    std::fs::create_dir(from.path().join("run")).unwrap();
    std::fs::write(from.path().join("run/new"), "new").unwrap();
    std::fs::remove_file(from.path().join("away")).unwrap();
    let seen = Arc::new(Seen::default());
    sync(&caller, with(&seen)).await.unwrap();
    let strip = |path: &Path| {
        let all = listing(path);
        all.into_iter().filter(|l| !l.starts_with("dir ")).collect::<Vec<_>>()
    };
    assert_eq!(strip(to.path()), strip(from.path()));
    let seen = seen.changes.lock().clone();
    assert_eq!(seen["away"], None);
    assert!(seen["dir/sub"].is_some() && seen["run/new"].is_some());
    assert!(!seen.contains_key("dir/file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_narrow_what_is_sent() {
    let daemon = Daemon::start();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(from.path());
    std::fs::write(from.path().join("größe"), "x").unwrap();
    let mut attachables = Attachables::new();
    attachables.dir("context", from.path()).unwrap();
    let (_session, caller) = daemon.attach(attachables).await;
    let names = |path: &Path| {
        let all = listing(path);
        all.iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let request = SyncDir {
        name: "context".into(),
        include: vec!["dir".into(), "größe".into()],
        exclude: vec!["**/sub".into(), "dir/file".into()],
        receive: receive(to.path()),
        ..SyncDir::default()
    };
    caller.sync_dir(request).await.unwrap();
    assert_eq!(names(to.path()), ["dir", "dir/empty", "dir/twin", "größe"]);

    let request = SyncDir {
        name: "context".into(),
        receive: Receive {
            metadata_only: Some(Arc::new(|path, _| path == "dir/sub/big")),
            ..receive(to.path())
        },
        ..SyncDir::default()
    };
    caller.sync_dir(request).await.unwrap();
    assert_eq!(names(to.path()), [METADATA_FILE, "dir", "dir/sub", "dir/sub/big"]);
    let metadata = std::fs::read(to.path().join(METADATA_FILE)).unwrap();
    let (mut rest, mut count) = (metadata.as_slice(), 0);
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        rest = &tail[u32::from_le_bytes(*len) as usize..];
        count += 1;
    }
    assert_eq!(count, 11);

    let e = caller
        .sync_dir(SyncDir { name: "x".into(), receive: receive(to.path()), ..SyncDir::default() })
        .await;
    let failure = Failure::from(e.unwrap_err());
    assert_eq!(
        (failure.kind(), failure.to_string()),
        (Kind::NotFound, "no access allowed to dir \"x\"".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_survive_a_slow_receiver() {
    let daemon = Daemon::start();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in 0..300 {
        let path = from.path().join(format!("{dir:03}"));
        std::fs::create_dir(&path).unwrap();
        for file in 0..100 {
            std::fs::write(path.join(format!("{file:02}")), "tiny").unwrap();
        }
    }
    let mut attachables = Attachables::new();
    attachables.dir("context", from.path()).unwrap();
    let (_session, caller) = daemon.attach(attachables).await;
    let seen = Arc::new(Seen::default());
    seen.stall.store(true, Ordering::SeqCst);
    sync(&caller, Receive { changes: Some(seen.clone()), ..receive(to.path()) }).await.unwrap();
    assert_eq!(seen.changes.lock().len(), 30_300);
    assert_eq!(std::fs::read(to.path().join("299/99")).unwrap(), b"tiny");
    assert!(daemon.sessions.find(caller.id()).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_is_named() {
    struct Signal(tokio::sync::mpsc::UnboundedSender<()>);
    impl Changes for Signal {
        fn hasher(&self, _: &Stat) -> Result<Hasher, Failure> {
            Ok(Hasher::new())
        }
        fn changed(&self, _: &str, _: Change<'_>) -> Result<(), Failure> {
            _ = self.0.send(());
            Ok(())
        }
    }
    let daemon = Daemon::start();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for i in 0..2000 {
        std::fs::write(from.path().join(format!("{i:04}")), vec![1; 64 << 10]).unwrap();
    }
    let mut attachables = Attachables::new();
    attachables.dir("context", from.path()).unwrap();
    let (session, caller) = daemon.attach(attachables).await;
    let id = session.id().to_owned();
    let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
    let transfer = sync(&caller, Receive { changes: Some(Arc::new(Signal(tx))), ..receive(to.path()) });
    let vanish = async {
        rx.recv().await.unwrap();
        drop(session);
    };
    let (result, ()) = tokio::join!(transfer, vanish);
    let failure = result.unwrap_err();
    assert!(failure.to_string().starts_with(&format!("session {id} is gone: ")), "{failure}");
    assert_eq!(failure.kind(), Kind::Canceled);
    caller.gone().await;
    assert!(daemon.sessions.find(&id).is_none());
}
