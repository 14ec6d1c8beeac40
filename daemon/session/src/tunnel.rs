//! A byte stream inside a stream of messages, and HTTP/2 on top of it.
//!
//! Each `BytesMessage` carries some bytes; their borders mean nothing. The
//! daemon is the HTTP/2 client ([`channel`]), the client of the daemon is the
//! HTTP/2 server ([`Duplex`] goes to `Server::serve_with_incoming`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use proto::control::BytesMessage;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, PollSender};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use crate::{CONNECTION_WINDOW, MAX_MESSAGE, STREAM_WINDOW};

/// The most bytes of one message.
const MESSAGE: usize = 64 << 10;
/// How many messages may wait to be sent.
const QUEUE: usize = 32;

/// One end of the tunnel as a byte stream.
pub struct Duplex {
    incoming: BoxStream<'static, Result<BytesMessage, tonic::Status>>,
    rest: Bytes,
    outgoing: PollSender<BytesMessage>,
    ended: CancellationToken,
}

/// What is to be sent through the tunnel.
pub type Outgoing = mpsc::Receiver<BytesMessage>;

impl Duplex {
    /// A byte stream that reads from `incoming`. What is written comes out of
    /// the second value; the third is cancelled when reading or writing ends.
    pub fn new<S>(incoming: S) -> (Self, Outgoing, CancellationToken)
    where
        S: futures_util::Stream<Item = Result<BytesMessage, tonic::Status>> + Send + 'static,
    {
        let (tx, rx) = mpsc::channel(QUEUE);
        let ended = CancellationToken::new();
        let duplex = Self {
            incoming: incoming.boxed(),
            rest: Bytes::new(),
            outgoing: PollSender::new(tx),
            ended: ended.clone(),
        };
        (duplex, rx, ended)
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match std::task::ready!(self.incoming.poll_next_unpin(cx)) {
                Some(Ok(message)) => self.rest = message.data,
                Some(Err(status)) => {
                    self.ended.cancel();
                    return Poll::Ready(Err(io::Error::other(status)));
                }
                None => {
                    self.ended.cancel();
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        self.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

fn gone<E>(_: E) -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl Duplex {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: impl FnOnce() -> Bytes) -> Poll<io::Result<usize>> {
        let ready = std::task::ready!(self.outgoing.poll_reserve(cx));
        let sent = ready.map_err(gone).and_then(|()| {
            let data = data();
            let n = data.len();
            self.outgoing.send_item(BytesMessage { data }).map_err(gone)?;
            Ok(n)
        });
        if sent.is_err() {
            self.ended.cancel();
        }
        Poll::Ready(sent)
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.get_mut().poll_send(cx, || Bytes::copy_from_slice(&buf[..buf.len().min(MESSAGE)]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if bufs.iter().all(|b| b.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        self.get_mut().poll_send(cx, || {
            let total: usize = bufs.iter().map(|b| b.len()).sum();
            let mut data = Vec::with_capacity(total.min(MESSAGE));
            for buf in bufs {
                let n = buf.len().min(MESSAGE - data.len());
                data.extend_from_slice(&buf[..n]);
            }
            data.into()
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The peer sees the end of its stream.
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

impl Connected for Duplex {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

/// A gRPC client over `io`, which is used for one connection and no second.
///
/// # Errors
/// When the connection cannot be begun.
pub async fn channel<T>(io: T) -> Result<Channel, tonic::transport::Error>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let once = Arc::new(Mutex::new(Some(io)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let io = once.lock().take();
        async move {
            io.map(hyper_util::rt::TokioIo::new)
                .ok_or_else(|| io::Error::other("only one connection allowed"))
        }
    });
    endpoint(Endpoint::from_static("http://localhost")).connect_with_connector(connector).await
}

/// `endpoint` with the flow control windows that every connection of this
/// program needs (see [`STREAM_WINDOW`]).
pub fn endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_MESSAGE as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::wrappers::ReceiverStream;

    fn pair() -> (Duplex, Duplex) {
        let (tx, rx) = mpsc::channel(1);
        let (a, mut out, _) = Duplex::new(ReceiverStream::new(rx));
        let (relay_tx, relay_rx) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(m) = out.recv().await {
                if relay_tx.send(Ok(m)).await.is_err() {
                    break;
                }
            }
        });
        let (b, mut out, _) = Duplex::new(ReceiverStream::new(relay_rx));
        tokio::spawn(async move {
            while let Some(m) = out.recv().await {
                if tx.send(Ok(m)).await.is_err() {
                    break;
                }
            }
        });
        (a, b)
    }

    #[tokio::test]
    async fn bytes_arrive_whole_and_in_order() {
        let (mut a, mut b) = pair();
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let copy = sent.clone();
        tokio::spawn(async move {
            a.write_all(&copy).await.unwrap();
            a.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn the_end_is_noticed() {
        let (tx, rx) = mpsc::channel::<Result<BytesMessage, tonic::Status>>(1);
        let (mut duplex, out, ended) = Duplex::new(ReceiverStream::new(rx));
        drop(out);
        assert!(duplex.write_all(b"x").await.is_err());
        assert!(ended.is_cancelled());
        drop(tx);
        assert_eq!(duplex.read(&mut [0; 4]).await.unwrap(), 0);
    }
}
