//! Bodies of answers: a line of the proxy's own, or what arrives from outside,
//! hashed on its way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use base::digest::Hasher;
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::capture::{Capture, Incomplete, Material};

/// The body of an answer.
pub(crate) enum Answer {
    Text(Option<Bytes>),
    Passed(Passed),
}

impl Answer {
    pub(crate) fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(Some(text.into()).filter(|text| !text.is_empty()))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Passed(passed) => passed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Passed(passed) => passed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Passed(passed) => passed.body.size_hint(),
        }
    }
}

/// A body that passes by. Noted when its end was seen, or when it is given up.
pub(crate) struct Passed {
    body: Incoming,
    hasher: Hasher,
    note: Option<Note>,
}

/// What is noted of an answer in the end.
pub(crate) struct Note {
    pub(crate) capture: Arc<Capture>,
    pub(crate) method: Method,
    pub(crate) url: String,
    /// Only a part was asked for.
    pub(crate) range: bool,
    pub(crate) status: StatusCode,
}

impl Note {
    fn write(self, digest: Option<base::Digest>) {
        let reason = if self.method != Method::GET {
            "method_not_materializable"
        } else if self.range || self.status == StatusCode::PARTIAL_CONTENT {
            "partial_response"
        } else if digest.is_none() {
            "body_read_failed"
        } else if self.status.is_client_error() || self.status.is_server_error() {
            "unsuccessful_response"
        } else {
            if let Some(digest) = digest.filter(|_| self.status.is_success()) {
                self.capture.material(Material { url: self.url, digest });
            }
            return;
        };
        let method = self.method.to_string();
        self.capture.incomplete_request(Incomplete { method, url: self.url, reason });
    }
}

impl Passed {
    pub(crate) fn new(body: Incoming, note: Option<Note>) -> Self {
        let mut passed = Self { body, hasher: Hasher::new(), note };
        // Nobody asks for what is empty.
        if passed.body.is_end_stream() {
            passed.end(true);
        }
        passed
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let next = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &next {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.hasher.update(data);
                }
                // Of a body of known size nobody asks for more than that.
                if self.body.is_end_stream() {
                    self.end(true);
                }
            }
            Some(Err(_)) => self.end(false),
            None => self.end(true),
        }
        Poll::Ready(next)
    }

    fn end(&mut self, whole: bool) {
        if let Some(note) = self.note.take() {
            let hasher = std::mem::take(&mut self.hasher);
            note.write(whole.then(|| hasher.finish()));
        }
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        self.end(false);
    }
}
