//! A client's connection to a daemon that may be replaced meanwhile.
//!
//! A daemon that stops says goodbye to its connections, and a request that was about to be
//! made on one of them, or comes after the goodbye, fails without anybody having looked at it.
//! [`Patient`] makes it again on a new connection, where the next daemon answers; it never
//! repeats what may have been heard.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::Frame;
use parking_lot::Mutex;
use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::{Service, ServiceExt as _};

/// How often one request is made again. Daemons are not replaced faster than that.
const TRIES: u32 = 5;

/// How much of a request is kept to be sent again, bytes.
const KEPT: usize = 64 << 10;

/// A channel that survives the replacement of the daemon between requests.
#[derive(Debug, Clone)]
pub struct Patient(Channel);

impl From<Channel> for Patient {
    fn from(channel: Channel) -> Self {
        Self(channel)
    }
}

impl Service<Request<Body>> for Patient {
    type Response = Response<Body>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone is not ready, this one is.
        let next = self.0.clone();
        let mut channel = std::mem::replace(&mut self.0, next);
        let (head, body) = request.into_parts();
        let body = Arc::new(Mutex::new(Kept { body, read: Vec::new(), size: 0 }));
        async move {
            let mut tries = TRIES;
            loop {
                let attempt = Body::new(Replay { kept: body.clone(), at: 0 });
                match channel.call(Request::from_parts(head.clone(), attempt)).await {
                    Err(e) if tries > 0 && unheard(&e) && body.lock().size <= KEPT => tries -= 1,
                    outcome => return outcome,
                }
                channel.ready().await?;
            }
        }
        .boxed()
    }
}

/// The connection was closed before the request was made on it, or refused it unseen: a
/// goodbye names the last request that was heard (RFC 9113, 6.8), and fails those after it.
fn unheard(error: &Error) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        let unsent = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let refused = error.downcast_ref::<h2::Error>().is_some_and(|e| {
            e.is_remote() && (e.is_go_away() || e.reason() == Some(h2::Reason::REFUSED_STREAM))
        });
        if unsent || refused {
            return true;
        }
        next = error.source();
    }
    false
}

/// A request's body, and the beginning of it that was read.
struct Kept {
    body: Body,
    read: Vec<Bytes>,
    /// Of all that was read. Nothing is kept when it is more than [`KEPT`].
    size: usize,
}

/// A body from its beginning on, which others may have begun to read. They read no more.
struct Replay {
    kept: Arc<Mutex<Kept>>,
    /// How many pieces were read here.
    at: usize,
}

impl http_body::Body for Replay {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = self.get_mut();
        let mut kept = this.kept.lock();
        if let Some(again) = kept.read.get(this.at) {
            this.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(again.clone()))));
        }
        let polled = Pin::new(&mut kept.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            // Trailers are not repeated, and clients of gRPC send none.
            kept.size = kept.size.saturating_add(frame.data_ref().map_or(usize::MAX, Bytes::len));
            if kept.size > KEPT {
                kept.read.clear();
            } else if let Some(data) = frame.data_ref() {
                kept.read.push(data.clone());
                this.at += 1;
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.lock();
        self.at >= kept.read.len() && kept.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::control::control_client::ControlClient;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tonic::transport::Endpoint;

    /// Connections of which every one says goodbye without having listened: before it is
    /// asked, or `after`.
    async fn through_farewells(after: bool) -> (tonic::Status, u32) {
        let dialled = Arc::new(AtomicU32::new(0));
        let count = dialled.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                let (client, mut server) = tokio::io::duplex(1 << 16);
                // Settings, then GOAWAY: no stream, no error.
                let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
                let farewell = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                server.write_all(&settings).await?;
                tokio::spawn(async move {
                    let mut heard = Vec::new();
                    // The path of the request, however it is compressed.
                    while after && heard.len() < 200 {
                        server.read_buf(&mut heard).await?;
                    }
                    server.write_all(&farewell).await?;
                    server.read_to_end(&mut heard).await
                });
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(client))
            }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
        // Until the goodbye has been read.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let mut control = ControlClient::new(Patient::from(channel));
        let request = proto::control::ListWorkersRequest { filter: vec!["x".repeat(400)] };
        let status = control.list_workers(request).await.unwrap_err();
        (status, dialled.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn what_was_not_heard_is_tried_again_and_not_forever() {
        for after in [false, true] {
            let (status, dialled) = through_farewells(after).await;
            assert!((2..=TRIES + 2).contains(&dialled), "{after}: {dialled}: {status:?}");
        }
    }

    struct Pieces(std::vec::IntoIter<&'static str>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = tonic::Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
            Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(Bytes::from(piece)))))
        }
    }

    #[tokio::test]
    async fn a_body_is_read_again_from_its_beginning() {
        use http_body::Body as _;

        async fn read(body: &mut Replay) -> Option<Bytes> {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
            frame.unwrap().into_data().ok()
        }
        let body = Body::new(Pieces(vec!["one", "two", "three"].into_iter()));
        let kept = Arc::new(Mutex::new(Kept { body, read: Vec::new(), size: 0 }));
        let mut first = Replay { kept: kept.clone(), at: 0 };
        assert_eq!(read(&mut first).await.unwrap(), "one");
        assert_eq!(read(&mut first).await.unwrap(), "two");
        let mut again = Replay { kept: kept.clone(), at: 0 };
        for expected in ["one", "two", "three"] {
            assert_eq!(read(&mut again).await.unwrap(), expected);
        }
        assert!(read(&mut again).await.is_none());
        assert_eq!(kept.lock().size, 11);
    }
}
