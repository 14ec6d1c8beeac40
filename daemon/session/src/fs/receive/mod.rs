//! The receiving end.
//!
//! Three things go on at once. The connection is read without pause into a
//! queue that is bounded in bytes: many small frames left unread would end the
//! connection (see [`crate::STREAM_WINDOW`]). One thread compares what is told
//! with what is there and makes the difference on disk; it never waits for the
//! sender. One thread writes the bytes of files as they come. Requests are
//! sent a bounded number ahead.

mod apply;
mod files;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::Failure;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use proto::fsutil::types::{Packet, packet::PacketType};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::check::Check;
use super::root::{Root, create_all};
use super::walk::Walk;
use super::writer::Writer;
use super::{Changes, Stat};
use crate::Error;
use apply::Apply;
use files::Files;

/// Where [`Receive::metadata_only`] leaves all that was told: for each entry
/// four bytes of length, little-endian, and the entry as protobuf.
pub const METADATA_FILE: &str = ".fsutil-metadata";

/// Bytes that may wait to be looked at.
const QUEUE_BYTES: usize = 32 << 20;
/// Packets that may wait to be looked at.
const QUEUE: usize = 1 << 17;
/// What a packet costs beside its bytes.
const PACKET_COST: usize = 128;
/// Files asked for and not yet there.
const AHEAD: usize = 512;
/// The most bytes of [`METADATA_FILE`].
const MAX_METADATA: usize = 1 << 30;

/// How long a lost sender may take to say why.
const FAREWELL: Duration = Duration::from_secs(2);

/// Looks at an entry, may change it, and says whether it is wanted.
pub type MapEntry = Arc<dyn Fn(&str, &mut Stat) -> bool + Send + Sync>;
/// Says of an entry whether it is wanted.
pub type SelectEntry = Arc<dyn Fn(&str, &Stat) -> bool + Send + Sync>;

/// When a file counts as unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Differ {
    /// Never.
    None,
    /// When size, time, mode, owner, device and link target are the same.
    #[default]
    Metadata,
}

/// How to receive.
#[derive(Default)]
pub struct Receive {
    /// The directory; it must exist.
    pub dest: PathBuf,
    /// What is there and not told of stays.
    pub merge: bool,
    /// When a file counts as unchanged.
    pub differ: Differ,
    /// Changes entries before they are made, or leaves them out.
    pub map: Option<MapEntry>,
    /// Only entries for which it holds are made, with their parents; all
    /// entries are written down in [`METADATA_FILE`].
    pub metadata_only: Option<SelectEntry>,
    /// Who wants to know.
    pub changes: Option<Arc<dyn Changes>>,
    /// Called with the number of bytes received so far.
    pub progress: Option<Box<dyn FnMut(u64) + Send>>,
}

/// What the parts of a transfer share.
struct Shared {
    requests: Mutex<Requests>,
    /// A request may be sent, or there will be no more.
    send: Notify,
    /// A file is complete.
    complete: Notify,
}

#[derive(Default)]
struct Requests {
    waiting: VecDeque<(u32, Stat)>,
    sent: HashMap<u32, Stat>,
    closed: bool,
}

/// An entry on its way to the disk.
struct Told {
    id: u32,
    stat: Stat,
}

struct Data {
    id: u32,
    data: Bytes,
    _permit: OwnedSemaphorePermit,
}

/// Takes a transfer to its end. Answers go into `outgoing`, which is dropped
/// at the end.
///
/// # Errors
/// When the sender breaks the rules, gives up or goes away, or the disk fails.
/// What was made until then stays.
pub(crate) async fn receive(
    options: Receive,
    outgoing: mpsc::Sender<Packet>,
    incoming: impl Stream<Item = Result<Packet, tonic::Status>> + Send,
) -> Result<(), Error> {
    let result = run(options, &outgoing, incoming).await;
    if let Err(e) = &result {
        let data = Bytes::from(e.to_string());
        // The sender may be stuck; it is told if it can be told at once.
        _ = outgoing.try_send(Packet { r#type: PacketType::PacketErr.into(), data, ..Default::default() });
    }
    result
}

async fn run(
    options: Receive,
    outgoing: &mpsc::Sender<Packet>,
    incoming: impl Stream<Item = Result<Packet, tonic::Status>> + Send,
) -> Result<(), Error> {
    let Receive { dest, merge, differ, map, metadata_only, changes, progress } = options;
    let shared =
        Arc::new(Shared { requests: Mutex::default(), send: Notify::new(), complete: Notify::new() });
    let root = {
        let dest = dest.clone();
        base::task::blocking(move || {
            let root = Root::open(&dest).map_err(|e| Error::io("open", dest.display().to_string(), e))?;
            Ok(Arc::new(root))
        })
        .await?
    };
    let (queue_tx, queue_rx) = mpsc::channel(QUEUE);
    let (told_tx, told_rx) = mpsc::channel(1024);
    let (data_tx, data_rx) = mpsc::channel(1024);

    let apply = Apply {
        walk: (!merge).then(|| Walk::new(root.clone(), false)),
        writer: Writer::new(root.clone(), map.clone()),
        map: map.clone(),
        differ,
        changes: changes.clone(),
        shared: shared.clone(),
    };
    let files = Files { root, changes, map, shared: shared.clone(), open: HashMap::new() };
    let apply = blocking(move || apply.run(told_rx));
    let files = blocking(move || files.run(data_rx));

    let pump = pump(incoming, queue_tx, progress);
    let dispatch = Dispatch { check: Check::default(), select: metadata_only, shared: &shared }
        .run(queue_rx, told_tx, data_tx);
    let ask = ask(&shared, outgoing);
    let finish = async {
        let writer = apply.await?;
        shared.requests.lock().closed = true;
        shared.send.notify_one();
        shared.idle().await;
        blocking(move || writer.finish()).await?;
        send(outgoing, Packet { r#type: PacketType::PacketFin.into(), ..Default::default() }).await
    };
    let (metadata, (), (), (), ()) = tokio::try_join!(dispatch, pump, ask, finish, files)?;
    match metadata {
        Some(bytes) => blocking(move || write_metadata(&dest, &bytes)).await,
        None => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => Err(Failure::internal("file transfer panicked").into()),
        Err(_) => Err(Failure::canceled("the runtime is shutting down").into()),
    }
}

async fn send(outgoing: &mpsc::Sender<Packet>, packet: Packet) -> Result<(), Error> {
    if outgoing.send(packet).await.is_err() {
        // What comes in mostly says why.
        tokio::time::sleep(FAREWELL).await;
        return Err(Error::Broken("sender went away".into()));
    }
    Ok(())
}

/// Reads without pause, up to [`QUEUE_BYTES`].
async fn pump(
    incoming: impl Stream<Item = Result<Packet, tonic::Status>> + Send,
    queue: mpsc::Sender<(Packet, OwnedSemaphorePermit)>,
    mut progress: Option<Box<dyn FnMut(u64) + Send>>,
) -> Result<(), Error> {
    tokio::pin!(incoming);
    let budget = Arc::new(Semaphore::new(QUEUE_BYTES));
    let mut total = 0u64;
    let mut finished = false;
    while let Some(packet) = incoming.next().await {
        let packet = packet?;
        let size = packet.encoded_len();
        total += size as u64;
        if let Some(progress) = &mut progress {
            progress(total);
        }
        finished |= packet.r#type() == PacketType::PacketFin;
        let cost = u32::try_from((size + PACKET_COST).min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let permit = budget.clone().acquire_many_owned(cost).await;
        let Ok(permit) = permit else { break };
        if finished {
            // After the end only silence is of interest.
            _ = queue.try_send((packet, permit));
        } else {
            hand_on(&queue, (packet, permit)).await;
        }
    }
    Ok(())
}

/// Sends requests, not too many ahead of the answers.
async fn ask(shared: &Shared, outgoing: &mpsc::Sender<Packet>) -> Result<(), Error> {
    loop {
        let notified = shared.send.notified();
        let next = {
            let mut requests = shared.requests.lock();
            let next = if requests.sent.len() < AHEAD { requests.waiting.pop_front() } else { None };
            match next {
                Some((id, stat)) => {
                    requests.sent.insert(id, stat);
                    Some(id)
                }
                None if requests.closed && requests.waiting.is_empty() => return Ok(()),
                None => None,
            }
        };
        match next {
            Some(id) => {
                let packet = Packet { r#type: PacketType::PacketReq.into(), id, ..Default::default() };
                send(outgoing, packet).await?;
            }
            None => notified.await,
        }
    }
}

impl Shared {
    /// Waits until every file asked for is there.
    async fn idle(&self) {
        loop {
            let complete = self.complete.notified();
            {
                let requests = self.requests.lock();
                if requests.waiting.is_empty() && requests.sent.is_empty() {
                    return;
                }
            }
            complete.await;
        }
    }
}

/// Sorts packets and checks them.
struct Dispatch<'a> {
    check: Check,
    select: Option<SelectEntry>,
    shared: &'a Shared,
}

impl Dispatch<'_> {
    /// Gives what goes into [`METADATA_FILE`].
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<(Packet, OwnedSemaphorePermit)>,
        told: mpsc::Sender<Option<Told>>,
        data: mpsc::Sender<Data>,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut told = Some(told);
        let mut metadata = self.select.is_some().then(Vec::new);
        let mut parents: Vec<Told> = Vec::new();
        while let Some((packet, permit)) = queue.recv().await {
            match PacketType::try_from(packet.r#type) {
                Ok(PacketType::PacketStat) => {
                    let Some(stat) = packet.stat else {
                        let Some(told) = told.take() else {
                            return Err(Error::Protocol("second end of entries".into()));
                        };
                        hand_on(&told, None).await;
                        continue;
                    };
                    let Some(told) = &told else {
                        return Err(Error::Protocol("entry after the last entry".into()));
                    };
                    if let Some(buffer) = &mut metadata {
                        if stat.path == METADATA_FILE {
                            continue;
                        }
                        record(buffer, &stat)?;
                    }
                    let stat = Stat::from(stat);
                    let id = self.check.entry(&stat)?;
                    let Some(select) = &self.select else {
                        hand_on(told, Some(Told { id, stat })).await;
                        continue;
                    };
                    // Parents are made when something in them is wanted.
                    let (parent, _) = super::check::split(&stat.path);
                    while parents.last().is_some_and(|p| !under(parent, &p.stat.path)) {
                        parents.pop();
                    }
                    if select(&stat.path, &stat) {
                        for parent in parents.drain(..) {
                            hand_on(told, Some(parent)).await;
                        }
                        hand_on(told, Some(Told { id, stat })).await;
                    } else if stat.is_dir() {
                        parents.push(Told { id, stat });
                    }
                }
                Ok(PacketType::PacketData) => {
                    if !self.shared.requests.lock().sent.contains_key(&packet.id) {
                        return Err(Error::Protocol(format!("invalid file request {}", packet.id)));
                    }
                    let item = Data { id: packet.id, data: packet.data, _permit: permit };
                    hand_on(&data, item).await;
                }
                Ok(PacketType::PacketFin) => {
                    let requests = self.shared.requests.lock();
                    if told.is_some() || !requests.closed || !requests.sent.is_empty() {
                        return Err(Error::Protocol("end before the end".into()));
                    }
                    return Ok(metadata);
                }
                Ok(PacketType::PacketErr) => {
                    let message = String::from_utf8_lossy(&packet.data).into_owned();
                    return Err(Error::Remote { side: "sender", message });
                }
                Ok(PacketType::PacketReq) => return Err(Error::Protocol("request from the sender".into())),
                Err(_) => return Err(Error::Protocol(format!("unknown packet type {}", packet.r#type))),
            }
        }
        Err(Error::Broken("sender closed the stream".into()))
    }
}

/// Sends to another part of this transfer. When that has failed, it will say
/// why, and this part is dropped.
async fn hand_on<T>(to: &mpsc::Sender<T>, item: T) {
    if to.send(item).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn under(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn record(buffer: &mut Vec<u8>, stat: &proto::fsutil::types::Stat) -> Result<(), Error> {
    let len = stat.encoded_len();
    if buffer.len() + len + 4 > MAX_METADATA {
        return Err(Error::Protocol(format!("more than {MAX_METADATA} bytes of metadata")));
    }
    buffer.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    buffer.extend_from_slice(&stat.encode_to_vec());
    Ok(())
}

fn write_metadata(dest: &Path, bytes: &[u8]) -> Result<(), Error> {
    let path = dest.join(METADATA_FILE);
    let fail = |e| Error::io("write", path.display().to_string(), e);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).open(&path).map_err(fail)?;
    file.write_all(bytes).map_err(fail)
}

/// Makes sure that the directory `dest` is there.
pub(crate) fn ensure_dir(dest: &Path) -> Result<(), Error> {
    create_all(dest, 0o700).map_err(|e| Error::io("create", dest.display().to_string(), e))
}
