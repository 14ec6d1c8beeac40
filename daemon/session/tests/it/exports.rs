//! Results from the daemon to the client.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use base::Failure;
use bytes::Bytes;
use parking_lot::Mutex;
use session::client::{Attachables, Target};
use session::fs::{Dir, Roots, Stat, Tree, mode};
use session::{Deliver, Error};

use crate::harness::{Daemon, listing};

fn paths(root: &Path) -> Vec<String> {
    listing(root).iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect()
}

fn to(exporter: i64) -> Deliver {
    Deliver { exporter, ..Deliver::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_go_into_directories() {
    let daemon = Daemon::start();
    let (from, merged, mirrored) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir_all(from.path().join("bin")).unwrap();
    std::fs::write(from.path().join("bin/tool"), vec![b'x'; 100_000]).unwrap();
    std::fs::write(from.path().join("bin/none"), "").unwrap();
    std::os::unix::fs::symlink("tool", from.path().join("bin/link")).unwrap();
    std::fs::hard_link(from.path().join("bin/tool"), from.path().join("twin")).unwrap();
    for old in [merged.path(), mirrored.path()] {
        std::fs::write(old.join("old"), "old").unwrap();
    }
    let mut attachables = Attachables::new();
    attachables.target(0, Target::Dir { path: merged.path().join("."), delete: false });
    attachables.target(1, Target::Dir { path: mirrored.path().to_owned(), delete: true });
    attachables.target(2, Target::Dir { path: merged.path().join("made/here"), delete: false });
    let (_session, caller) = daemon.attach(attachables).await;

    let tree: Arc<dyn Tree> =
        Arc::new(Dir::open(from.path()).unwrap().mapped(Arc::new(|_, stat: &mut Stat| {
            stat.mod_time = 1_000_000_000;
            (stat.uid, stat.gid) = (4711, 4711);
            true
        })));
    caller.send_dir(&to(0), tree.clone(), |_| {}).await.unwrap();
    assert_eq!(paths(merged.path()), ["bin", "bin/link", "bin/none", "bin/tool", "old", "twin"]);
    assert_eq!(std::fs::read(merged.path().join("twin")).unwrap().len(), 100_000);
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    for line in listing(merged.path()).iter().filter(|l| !l.starts_with("old")) {
        assert!(line.contains(&format!(" {uid}:{gid} 1000000000 ")), "{line}");
    }

    let e = caller.send_dir(&to(1), tree.clone(), |_| {}).await.unwrap_err();
    assert!(e.to_string().contains("mode=delete requires"), "{e}");
    let able = Deliver { multi_platform: true, ..to(1) };
    caller.send_dir(&able, tree.clone(), |_| {}).await.unwrap();
    assert_eq!(paths(mirrored.path()), ["bin", "bin/link", "bin/none", "bin/tool", "twin"]);

    let root = |name: &str| Stat { path: name.into(), mode: mode::DIR | 0o755, ..Stat::default() };
    let roots =
        Roots::new(vec![(root("linux_arm64"), tree.clone()), (root("linux_amd64"), tree.clone())]).unwrap();
    caller.send_dir(&to(2), Arc::new(roots), |_| {}).await.unwrap();
    let made = paths(&merged.path().join("made/here"));
    assert_eq!(made.len(), 12);
    assert_eq!(made[0], "linux_amd64");

    let e = caller.send_dir(&to(9), tree, |_| {}).await.unwrap_err();
    assert!(e.to_string().contains("exporter 9 not found"), "{e}");
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_into_files() {
    let daemon = Daemon::start();
    let written = Shared::default();
    let metadata = Arc::new(Mutex::new(BTreeMap::new()));
    let mut attachables = Attachables::new();
    let (file, seen) = (written.clone(), metadata.clone());
    attachables.target(
        0,
        Target::File(Box::new(move |metadata| {
            *seen.lock() = metadata;
            Ok(Some(Box::new(file.clone())))
        })),
    );
    attachables.target(1, Target::File(Box::new(|_| Ok(None))));
    let (_session, caller) = daemon.attach(attachables).await;

    let deliver = Deliver { metadata: [("Image.Name".into(), "a".into())].into(), ..to(0) };
    let mut file = caller.send_stream(&deliver).unwrap();
    for _ in 0..3 {
        file.write(Bytes::from(vec![1; 4 << 20])).await.unwrap();
    }
    file.finish().await.unwrap();
    assert_eq!(written.0.lock().len(), 12 << 20);
    assert_eq!(*metadata.lock(), [("image.name".to_owned(), "a".to_owned())].into());

    let mut file = caller.send_stream(&to(1)).unwrap();
    let result = async {
        loop {
            file.write(Bytes::from(vec![1; 1 << 20])).await?;
        }
    };
    let result: Result<(), Error> = result.await;
    assert!(matches!(result, Err(Error::Declined)), "{result:?}");

    let file = caller.send_stream(&to(1)).unwrap();
    assert!(matches!(file.finish().await, Err(Error::Declined)));
    let file = caller.send_stream(&to(5)).unwrap();
    let failure = Failure::from(file.finish().await.unwrap_err());
    assert_eq!(failure.to_string(), "exporter 5 not found");
}
