//! Bytes of blobs, from wherever they are to the thread that needs them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::progress::{Counter, VertexSink};
use base::{Descriptor, Failure, Kind};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

/// A stream of a blob's bytes.
pub type Bytes = Pin<Box<dyn AsyncRead + Send>>;

/// Where the bytes of a blob come from: a registry, a session, a remote cache.
#[async_trait]
pub trait BlobSource: Send + Sync + 'static {
    /// The bytes of the blob from `offset` on. They are verified by who reads
    /// them; after a broken stream it is asked again with a higher offset.
    ///
    /// # Errors
    /// When they cannot be had.
    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<Bytes, Failure>;
}

/// A source, and who is told how far it got.
#[derive(Clone)]
pub(crate) struct Provider {
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) progress: VertexSink,
}

/// How often a broken stream is taken up again without having got any further.
const RETRIES: u32 = 5;

/// Chunks on their way to the reader.
const IN_FLIGHT: usize = 16;
const CHUNK: usize = 128 << 10;

enum Piece {
    Data(bytes::Bytes),
    /// All of it was sent; a channel that just ends was given up.
    End,
}

/// What a blocking thread reads from.
pub(crate) struct BlobReader {
    pieces: mpsc::Receiver<Piece>,
    current: bytes::Bytes,
    ended: bool,
}

/// The two ends: [`pump`] feeds one, a blocking thread reads the other.
pub(crate) fn pipe() -> (BlobFeed, BlobReader) {
    let (sender, pieces) = mpsc::channel(IN_FLIGHT);
    (BlobFeed(sender), BlobReader { pieces, current: bytes::Bytes::new(), ended: false })
}

/// Where [`pump`] puts the bytes.
pub(crate) struct BlobFeed(mpsc::Sender<Piece>);

impl io::Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::other("the transfer was given up")),
            }
        }
        let n = self.current.len().min(buf.len());
        if let Some(buf) = buf.get_mut(..n) {
            self.current.copy_to_slice(buf);
        }
        Ok(n)
    }
}

/// Brings a whole blob to the reader, over broken streams if need be. Ends
/// quietly when the reader has gone, which has its own reason to tell.
///
/// # Errors
/// Those of the source; too many bytes, or too few in spite of all retries.
pub(crate) async fn pump(provider: Provider, descriptor: Descriptor, feed: BlobFeed) -> Result<(), Failure> {
    let mut counter = provider.progress.counter(descriptor.digest.to_string(), descriptor.size);
    let (mut offset, mut tries) = (0, 0);
    loop {
        let before = offset;
        let failure = match read_on(&provider, &descriptor, &mut offset, &feed, &mut counter).await {
            Ok(Outcome::Done) => {
                _ = feed.0.send(Piece::End).await;
                counter.finish();
                return Ok(());
            }
            Ok(Outcome::Gone) => return Ok(()),
            Err(failure) => failure,
        };
        tries = if offset > before { 0 } else { tries + 1 };
        if !is_transient(&failure) || tries > RETRIES {
            return Err(failure.context(format!("fetch {}", descriptor.digest)));
        }
        tracing::debug!(digest = %descriptor.digest, offset, error = %failure, "taking up a broken transfer");
        tokio::time::sleep(Duration::from_millis(100) * 2u32.saturating_pow(tries)).await;
    }
}

enum Outcome {
    Done,
    /// The reader has gone.
    Gone,
}

fn is_transient(failure: &Failure) -> bool {
    matches!(failure.kind(), Kind::Unavailable | Kind::DeadlineExceeded | Kind::Aborted)
}

async fn read_on(
    provider: &Provider,
    descriptor: &Descriptor,
    offset: &mut u64,
    feed: &BlobFeed,
    counter: &mut Counter,
) -> Result<Outcome, Failure> {
    let mut stream = provider.source.open(descriptor, *offset).await?;
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let n = stream
            .read_buf(&mut chunk)
            .await
            .map_err(|e| Failure::new(Kind::Unavailable, format!("read: {e}")))?;
        if n == 0 {
            return match descriptor.size.checked_sub(*offset) {
                Some(0) | None => Ok(Outcome::Done),
                Some(missing) => Err(Failure::new(
                    Kind::Unavailable,
                    format!("unexpected end, {missing} of {} bytes are missing", descriptor.size),
                )),
            };
        }
        *offset += n as u64;
        if *offset > descriptor.size {
            let text = format!("more than the {} bytes that were promised", descriptor.size);
            return Err(Failure::new(Kind::DataLoss, text));
        }
        counter.add(n as u64);
        if feed.0.send(Piece::Data(chunk.freeze())).await.is_err() {
            return Ok(Outcome::Gone);
        }
    }
}
