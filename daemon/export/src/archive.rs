//! Tar streams to the client, and the OCI and Docker archives in them.

use std::io::{self, Read, Write};

use base::Failure;
use bytes::{Bytes, BytesMut};
use session::FileWriter;
use store::Pin;
use store::tar::{Header, Kind, Writer};
use tokio::sync::mpsc;

/// Bytes of one piece on its way to the client.
const CHUNK: usize = 256 << 10;
/// Pieces that may wait for the client.
const QUEUE: usize = 8;

/// Sends what `produce` writes to the client. A client that declines has the
/// file already, which is fine.
///
/// # Errors
/// Those of `produce`, or of the client.
pub(crate) async fn send(
    mut file: FileWriter,
    produce: impl FnOnce(&mut Chunks) -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    let (chunks, mut queue) = mpsc::channel(QUEUE);
    let produced = base::task::blocking(move || {
        let mut chunks = Chunks { queue: chunks, buffer: BytesMut::with_capacity(CHUNK) };
        produce(&mut chunks)?;
        chunks.flush().map_err(|e| lost(&e))
    });
    let sent = async move {
        while let Some(chunk) = queue.recv().await {
            file.write(chunk).await?;
        }
        Ok::<_, session::Error>(file)
    };
    // When the client fails the queue goes, and with it the producer ends.
    let (produced, sent) = tokio::join!(produced, sent);
    let finished = match sent {
        Ok(file) => {
            produced?;
            file.finish().await
        }
        Err(e) => Err(e),
    };
    match finished {
        Err(session::Error::Declined) => Ok(()),
        other => Ok(other?),
    }
}

/// Nobody takes what is produced any more.
pub(crate) fn lost(error: &io::Error) -> Failure {
    Failure::canceled(format!("write archive: {error}"))
}

/// What is produced, in pieces.
pub(crate) struct Chunks {
    queue: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl Write for Chunks {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(buf);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.queue.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// An entry of an image archive.
pub(crate) enum Body {
    Dir,
    Bytes(Vec<u8>),
    Blob(Pin),
}

/// Writes entries in order of their names, each once.
///
/// # Errors
/// When a blob cannot be read, or nobody takes the archive.
pub(crate) fn write(out: &mut impl Write, mut entries: Vec<(String, u32, Body)>) -> Result<(), Failure> {
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.dedup_by(|a, b| a.0 == b.0);
    let mut tar = Writer::new(out);
    for (name, mode, body) in entries {
        let kind = if matches!(body, Body::Dir) { Kind::Directory } else { Kind::Regular };
        let mut header = Header::new(kind, name);
        header.mode = mode;
        match body {
            Body::Dir => tar.header(&header).map_err(|e| lost(&e))?,
            Body::Bytes(bytes) => {
                header.size = bytes.len() as u64;
                tar.header(&header).and_then(|()| tar.write_all(&bytes)).map_err(|e| lost(&e))?;
            }
            Body::Blob(pin) => {
                header.size = pin.size();
                tar.header(&header).map_err(|e| lost(&e))?;
                let mut blob = pin.open()?.take(pin.size());
                io::copy(&mut blob, &mut tar).map_err(|e| lost(&e))?;
            }
        }
    }
    tar.finish().map_err(|e| lost(&e))?;
    Ok(())
}
