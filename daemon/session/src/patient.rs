//! A client's connection to a daemon that may be replaced meanwhile.
//!
//! A daemon that stops says goodbye to its connections, and a request that was about to be
//! made on one of them fails without having been sent. [`Patient`] makes it again on a new
//! connection, where the next daemon answers; it never repeats what may have been sent.

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
        let body = Arc::new(Mutex::new(Some(body)));
        async move {
            let mut tries = TRIES;
            loop {
                let attempt = Body::new(Unread { kept: body.clone(), taken: None });
                match channel.call(Request::from_parts(head.clone(), attempt)).await {
                    Err(e) if tries > 0 && not_sent(&e) && body.lock().is_some() => tries -= 1,
                    outcome => return outcome,
                }
                channel.ready().await?;
            }
        }
        .boxed()
    }
}

/// The connection was closed before the request was made on it.
fn not_sent(error: &Error) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        next = error.source();
    }
    false
}

/// A body that stays where it is until somebody begins to read it.
struct Unread {
    kept: Arc<Mutex<Option<Body>>>,
    taken: Option<Body>,
}

impl http_body::Body for Unread {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = self.get_mut();
        if this.taken.is_none() {
            this.taken = this.kept.lock().take();
        }
        match &mut this.taken {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.taken.as_ref().is_some_and(Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::control::control_client::ControlClient;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tonic::transport::Endpoint;

    /// Connections of which every one says goodbye before it was asked anything.
    async fn through_farewells() -> (tonic::Status, u32) {
        let dialled = Arc::new(AtomicU32::new(0));
        let count = dialled.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                let (client, mut server) = tokio::io::duplex(1 << 16);
                // Settings, then GOAWAY: no stream, no error.
                let mut farewell = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
                farewell.extend([0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                server.write_all(&farewell).await?;
                tokio::spawn(async move {
                    let mut rest = Vec::new();
                    _ = server.read_to_end(&mut rest).await;
                });
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(client))
            }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
        // Until the goodbye has been read.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let mut control = ControlClient::new(Patient::from(channel));
        let status = control.list_workers(proto::control::ListWorkersRequest::default()).await.unwrap_err();
        (status, dialled.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn what_was_not_sent_is_tried_again_and_not_forever() {
        let (status, dialled) = through_farewells().await;
        assert!((2..=TRIES + 2).contains(&dialled), "{dialled}: {status:?}");
    }
}
