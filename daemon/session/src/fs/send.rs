//! The sending end.
//!
//! One thread walks the tree, four read files. What the receiver asks for is
//! read from the connection without pause: ids are few bytes, and each can be
//! asked for once.

use std::collections::{HashMap, VecDeque};
use std::io::Read as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use parking_lot::{Condvar, Mutex};
use proto::fsutil::types::{Packet, packet::PacketType};
use tokio::sync::mpsc;

use super::{Stat, Tree};
use crate::Error;

/// Files read at once.
const READERS: usize = 4;
/// The most bytes of one packet.
const CHUNK: usize = 32 << 10;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Files that may be asked for.
    files: HashMap<u32, String>,
    wanted: VecDeque<(u32, String)>,
    closed: bool,
}

impl Shared {
    fn next(&self) -> Option<(u32, String)> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(item) = state.wanted.pop_front() {
                return Some(item);
            }
            self.changed.wait(&mut state);
        }
    }

    fn want(&self, id: u32) -> Result<(), Error> {
        let mut state = self.state.lock();
        let path = state.files.remove(&id);
        let path = path.ok_or_else(|| Error::Protocol(format!("invalid file id {id}")))?;
        state.wanted.push_back((id, path));
        self.changed.notify_one();
        Ok(())
    }
}

/// Ends the readers, however the transfer ends.
struct Close(Arc<Shared>);

impl Drop for Close {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.changed.notify_all();
    }
}

/// Offers `tree` to the receiver and serves its wishes until it has all.
///
/// # Errors
/// When the receiver breaks the rules, gives up or goes away, or the tree
/// cannot be walked. A file that cannot be opened is sent empty.
pub(crate) async fn send(
    tree: Arc<dyn Tree>,
    outgoing: mpsc::Sender<Packet>,
    incoming: impl Stream<Item = Result<Packet, tonic::Status>> + Send,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<(), Error> {
    let result = run(tree, &outgoing, incoming, Arc::new(progress)).await;
    if let Err(e) = &result {
        let data = Bytes::from(e.to_string());
        _ = outgoing.try_send(Packet { r#type: PacketType::PacketErr.into(), data, ..Default::default() });
    }
    result
}

async fn run(
    tree: Arc<dyn Tree>,
    outgoing: &mpsc::Sender<Packet>,
    incoming: impl Stream<Item = Result<Packet, tonic::Status>> + Send,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
) -> Result<(), Error> {
    let shared = Arc::new(Shared::default());
    let close = Close(shared.clone());
    let walk = {
        let (tree, shared, outgoing, progress) =
            (tree.clone(), shared.clone(), outgoing.clone(), progress.clone());
        thread(move || walk(&*tree, &shared, &outgoing, &*progress))
    };
    let readers = std::array::from_fn::<_, READERS, _>(|_| {
        let (tree, shared, outgoing, progress) =
            (tree.clone(), shared.clone(), outgoing.clone(), progress.clone());
        thread(move || {
            while let Some((id, path)) = shared.next() {
                read(&*tree, id, &path, &outgoing, &*progress)?;
            }
            Ok(())
        })
    });
    let listen = async move {
        tokio::pin!(incoming);
        while let Some(packet) = incoming.next().await {
            let packet = packet?;
            match PacketType::try_from(packet.r#type) {
                Ok(PacketType::PacketReq) => shared.want(packet.id)?,
                Ok(PacketType::PacketFin) => {
                    drop(close);
                    let fin = Packet { r#type: PacketType::PacketFin.into(), ..Default::default() };
                    return outgoing.send(fin).await.map_err(gone);
                }
                Ok(PacketType::PacketErr) => {
                    let message = String::from_utf8_lossy(&packet.data).into_owned();
                    return Err(Error::Remote { side: "receiver", message });
                }
                _ => return Err(Error::Protocol(format!("packet type {} from the receiver", packet.r#type))),
            }
        }
        Err(Error::Broken("receiver closed the stream".into()))
    };
    let readers = futures_util::future::try_join_all(readers);
    tokio::try_join!(listen, walk, readers).map(drop)
}

fn gone<T>(_: T) -> Error {
    Error::Broken("receiver went away".into())
}

/// Runs blocking work. That the receiver went away is for the one to say who
/// listens to it: it knows why.
async fn thread(work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    let result = base::task::blocking(move || match work() {
        Err(Error::Broken(_)) => Ok(false),
        result => Ok(result.map(|()| true)?),
    })
    .await?;
    if !result {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        return Err(gone(()));
    }
    Ok(())
}

fn walk(
    tree: &dyn Tree,
    shared: &Shared,
    outgoing: &mpsc::Sender<Packet>,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let mut links = Links::default();
    let mut next = 0u32;
    tree.walk(&mut |mut stat| {
        links.reset(&mut stat);
        let id = next;
        next = next.checked_add(1).ok_or_else(|| Error::Protocol("too many entries".into()))?;
        if stat.is_file() {
            shared.state.lock().files.insert(id, stat.path.clone());
        }
        progress(stat.path.len() as u64);
        let packet =
            Packet { r#type: PacketType::PacketStat.into(), stat: Some(stat.into()), ..Default::default() };
        outgoing.blocking_send(packet).map_err(gone)
    })?;
    outgoing.blocking_send(Packet::default()).map_err(gone)
}

fn read(
    tree: &dyn Tree,
    id: u32,
    path: &str,
    outgoing: &mpsc::Sender<Packet>,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let data = |data| Packet { r#type: PacketType::PacketData.into(), id, data, ..Default::default() };
    if let Ok(mut file) = tree.open(path) {
        loop {
            let mut buffer = BytesMut::zeroed(CHUNK);
            let n = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io("read", path, e)),
            };
            buffer.truncate(n);
            progress(n as u64);
            outgoing.blocking_send(data(buffer.freeze())).map_err(gone)?;
        }
    }
    outgoing.blocking_send(data(Bytes::new())).map_err(gone)
}

/// Hard links whose first path was filtered out: the next one takes its place.
#[derive(Default)]
struct Links {
    seen: HashMap<String, String>,
}

impl Links {
    fn reset(&mut self, stat: &mut Stat) {
        if stat.is_dir() || stat.is_symlink() {
            return;
        }
        if !stat.linkname.is_empty() {
            match self.seen.get(&stat.linkname) {
                Some(first) => stat.linkname = first.clone(),
                None => {
                    let original = std::mem::take(&mut stat.linkname);
                    self.seen.insert(original, stat.path.clone());
                }
            }
        }
        self.seen.insert(stat.path.clone(), stat.path.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_what_is_left_out_move_on() {
        let mut links = Links::default();
        let mut stat = |path: &str, to: &str| {
            let mut stat = Stat { path: path.into(), linkname: to.into(), ..Stat::default() };
            links.reset(&mut stat);
            stat.linkname
        };
        assert_eq!(stat("b", "a"), "", "the first is gone");
        assert_eq!(stat("c", "a"), "b");
        assert_eq!(stat("d", "b"), "b");
        assert_eq!(stat("e", ""), "");
    }
}
