//! A daemon's worth of store and refs, and a registry that can misbehave.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use base::progress::VertexSink;
use base::{Descriptor, Digest, Failure, Kind};
use parking_lot::Mutex;
use refs::{BlobSource, Bytes, CompressionKind, Layer, NewRef, Options, RecordType, Ref, Refs};
use store::{Snapshotter, Store};
use tokio::io::{AsyncRead, ReadBuf};

pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("refs-test-{}", base::id::fresh()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) async fn refs(&self) -> Refs {
        self.refs_as(Snapshotter::Overlay).await
    }

    pub(crate) async fn refs_as(&self, snapshotter: Snapshotter) -> Refs {
        let options = store::Options { snapshotter, ..Default::default() };
        let store = Store::open(self.0.join("store"), options).unwrap();
        Refs::open(store, Options::default()).await.unwrap()
    }

    pub(crate) fn count(&self, below: &str) -> usize {
        fs::read_dir(self.0.join("store").join(below)).map_or(0, |d| d.count())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        _ = sys::mount::detach_below(&self.0);
        _ = fs::remove_dir_all(&self.0);
    }
}

/// As if the daemon had ended.
pub(crate) async fn close(refs: Refs) {
    refs.close().await.unwrap();
}

/// Commits a ref on `parent` with what `write` does.
pub(crate) async fn step(refs: &Refs, parent: Option<&Ref>, write: impl FnOnce(&Path)) -> Ref {
    let new = NewRef { description: "a step".into(), ..NewRef::default() };
    let mutable = refs.new_mutable(parent, new).await.unwrap();
    let mount = mutable.mount().await.unwrap();
    write(mount.path());
    mount.unmount().await.unwrap();
    mutable.commit().await.unwrap()
}

/// A step that writes one file.
pub(crate) async fn file(refs: &Refs, parent: Option<&Ref>, name: &str, text: &str) -> Ref {
    step(refs, parent, |root| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    })
    .await
}

/// The files of a ref: `name=text`, and names of everything else.
pub(crate) async fn tree(of: &Ref) -> Vec<String> {
    let mount = of.mount().await.unwrap();
    let mut out = Vec::new();
    let mut rest = vec![mount.path().to_owned()];
    while let Some(path) = rest.pop() {
        // What cannot be looked at is there all the same, and wrong.
        let name = path.strip_prefix(mount.path()).unwrap().display().to_string();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {
                if !name.is_empty() {
                    out.push(format!("{name}/"));
                }
                rest.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
            Ok(meta) if meta.is_file() => {
                out.push(format!("{name}={}", fs::read_to_string(&path).unwrap()));
            }
            Ok(_) => out.push(name),
            Err(_) => out.push(format!("{name}?")),
        }
    }
    out.sort();
    out
}

#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    pub(crate) opened: AtomicUsize,
    /// Streams break after so many bytes.
    pub(crate) breaks_after: Mutex<Option<usize>>,
    /// Every n-th byte is another one.
    pub(crate) lies: Mutex<bool>,
    pub(crate) running: AtomicUsize,
    pub(crate) most_running: AtomicUsize,
}

struct Stream {
    data: Vec<u8>,
    at: usize,
    breaks_at: Option<usize>,
    registry: Arc<Registry>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.registry.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.breaks_at.is_some_and(|at| self.at >= at) {
            return Poll::Ready(Err(std::io::Error::other("connection reset")));
        }
        let end = (self.at + buf.remaining().min(1000)).min(self.data.len());
        buf.put_slice(&self.data[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

/// The source that stands for a registry.
pub(crate) struct Source(pub(crate) Arc<Registry>);

#[async_trait]
impl BlobSource for Source {
    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<Bytes, Failure> {
        let registry = self.0.clone();
        registry.opened.fetch_add(1, Ordering::SeqCst);
        let Some(mut data) = registry.blobs.lock().get(&descriptor.digest).cloned() else {
            return Err(Failure::new(Kind::NotFound, "no such blob"));
        };
        if *registry.lies.lock() {
            let middle = data.len() / 2;
            data[middle] ^= 1;
        }
        let data = data.split_off(offset as usize);
        let breaks_at = *registry.breaks_after.lock();
        let running = registry.running.fetch_add(1, Ordering::SeqCst) + 1;
        registry.most_running.fetch_max(running, Ordering::SeqCst);
        Ok(Box::pin(Stream { data, at: 0, breaks_at, registry }))
    }
}

impl Registry {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn source(self: &Arc<Self>) -> Arc<dyn BlobSource> {
        Arc::new(Source(self.clone()))
    }

    /// A gzipped layer of these files; a name with a slash at the end is a directory.
    pub(crate) fn layer(&self, entries: &[(&str, &str)]) -> Layer {
        self.layer_as(CompressionKind::Gzip, entries)
    }

    pub(crate) fn layer_as(&self, kind: CompressionKind, entries: &[(&str, &str)]) -> Layer {
        let mut tar = store::tar::Writer::new(Vec::new());
        for (name, text) in entries {
            let (entry, mode) = match name.ends_with('/') {
                true => (store::tar::Kind::Directory, 0o750),
                false => (store::tar::Kind::Regular, 0o644),
            };
            let mut header = store::tar::Header::new(entry, *name);
            (header.mode, header.size, header.mtime) = (mode, text.len() as u64, 1_600_000_000);
            tar.header(&header).unwrap();
            tar.write_all(text.as_bytes()).unwrap();
        }
        let tar = tar.finish().unwrap();
        let diff_id = Digest::of(&tar);
        let compression = store::Compression { kind, ..Default::default() };
        let mut compressor = store::Compressor::new(compression, Vec::new()).unwrap();
        compressor.write_all(&tar).unwrap();
        let blob = compressor.finish().unwrap();
        let descriptor = Descriptor::new(kind.media_type(), Digest::of(&blob), blob.len() as u64);
        self.blobs.lock().insert(descriptor.digest.clone(), blob);
        Layer { descriptor, diff_id, created_at: None, description: "pulled from somewhere".into() }
    }

    pub(crate) async fn image(self: &Arc<Self>, refs: &Refs, layers: &[Layer]) -> Ref {
        let image = refs.image(layers.to_vec(), self.source(), RecordType::Regular, VertexSink::none());
        image.await.unwrap().unwrap()
    }
}
