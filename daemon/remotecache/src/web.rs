//! Requests to stores of objects: what they carry, when they are made again, and
//! what a refusal says.
//!
//! Every store signs its requests in its own way, anew for every try; everything
//! else is the same for all. Addresses may be signed themselves, so that they are
//! never shown with their query.

use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use base::{Classify, Digest, Failure, Kind, Timestamp, digest};
use bytes::Bytes;
use futures_util::TryStreamExt;
use parking_lot::Mutex;
use registry::Downloads;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Method, Response, StatusCode, Url};
use ring::hmac;
use store::Pin;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tokio_util::io::{ReaderStream, StreamReader};

/// The first pause between two tries; it doubles.
const PAUSE: Duration = Duration::from_millis(200);
/// Layers are sent in pieces of this size, in bytes; those of up to twice that in one.
pub(crate) const PART: u64 = 8 << 20;
/// Pieces of one layer that are under way at once.
pub(crate) const PARTS_AT_ONCE: usize = 4;
/// Of an answer that is no document, as many characters are shown.
const MAX_TEXT: usize = 512;
/// The largest answer that is not an object, in bytes.
pub(crate) const MAX_ANSWER: u64 = 256 << 10;
/// What expires this soon is asked for anew.
const MARGIN: Duration = Duration::from_secs(300);

/// Headers of a request.
pub(crate) type Headers = Vec<(&'static str, String)>;

/// What a request carries.
#[derive(Clone)]
pub(crate) enum Payload {
    Nothing,
    Bytes(Bytes),
    Part(Part),
}

/// A piece of a layer.
#[derive(Clone)]
pub(crate) struct Part {
    pin: Pin,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Part {
    /// A layer in one piece.
    pub(crate) fn whole(pin: &Pin) -> Self {
        Self { pin: pin.clone(), offset: 0, length: pin.size() }
    }

    /// A layer in pieces, `most` at most; the last one may be smaller. One if it is
    /// not larger than two would be.
    pub(crate) fn of(pin: &Pin, most: u64) -> Vec<Self> {
        let size = pin.size();
        if size <= 2 * PART {
            return vec![Self::whole(pin)];
        }
        let each = PART.max(size.div_ceil(most.max(1)));
        let offsets = (0..size.div_ceil(each)).map(|n| n * each);
        offsets.map(|offset| Self { pin: pin.clone(), offset, length: each.min(size - offset) }).collect()
    }

    /// SHA-256 of its bytes.
    async fn digest(&self) -> Result<Digest, Failure> {
        let part = self.clone();
        if part.length == part.pin.size() && part.pin.digest().algorithm() == "sha256" {
            return Ok(part.pin.digest().clone());
        }
        base::task::blocking(move || {
            let read = |e: std::io::Error| Failure::internal(format!("read {}: {e}", part.pin.digest()));
            let mut file = part.pin.open()?;
            file.seek(SeekFrom::Start(part.offset)).map_err(read)?;
            let mut hasher = digest::Hasher::new();
            std::io::copy(&mut file.take(part.length), &mut hasher).map_err(read)?;
            Ok(hasher.finish())
        })
        .await
    }
}

impl Payload {
    /// In bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Part(part) => part.length,
        }
    }

    /// SHA-256 of its bytes.
    ///
    /// # Errors
    /// When the layer cannot be read.
    pub(crate) async fn digest(&self) -> Result<Digest, Failure> {
        match self {
            Self::Nothing => Ok(Digest::of("")),
            Self::Bytes(bytes) => Ok(Digest::of(bytes)),
            Self::Part(part) => part.digest().await,
        }
    }

    async fn body(&self) -> Result<Body, Failure> {
        Ok(match self {
            Self::Nothing => Body::from(Vec::new()),
            Self::Bytes(bytes) => Body::from(bytes.clone()),
            Self::Part(part) => {
                let Part { pin, offset, length } = part.clone();
                let file = base::task::blocking(move || {
                    let mut file = pin.open()?;
                    let sought = file.seek(SeekFrom::Start(offset));
                    sought.map_err(|e| Failure::internal(format!("read {}: {e}", pin.digest())))?;
                    Ok(file)
                });
                let file = tokio::fs::File::from_std(file.await?).take(length);
                Body::wrap_stream(ReaderStream::with_capacity(file, 128 << 10))
            }
        })
    }
}

/// How long a store is asked again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Tries, the first one included.
    pub(crate) tries: u32,
    /// The longest pause between two.
    pub(crate) longest: Duration,
    /// One that says that it is asked too often is asked again for this long,
    /// however many tries that takes.
    pub(crate) limited: Option<Duration>,
}

/// A request, before it is signed.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a Url,
    pub(crate) payload: &'a Payload,
    /// Not made again when it may have had its effect.
    pub(crate) once: bool,
}

/// Sends requests that a store signs in its own way.
pub(crate) struct Web {
    downloads: Downloads,
    patience: Patience,
}

impl Web {
    pub(crate) fn new(downloads: Downloads, patience: Patience) -> Self {
        Self { downloads, patience }
    }

    /// Sends a request, with headers that are made anew for every try. The answer,
    /// whatever its status, unless it says to try again.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn send(
        &self,
        request: &Request<'_>,
        headers: impl Fn() -> Headers,
    ) -> Result<Response, Failure> {
        let Patience { tries, longest, limited } = self.patience;
        let (begun, mut pause, mut tried) = (Instant::now(), PAUSE, 0);
        loop {
            tried += 1;
            let outcome = self.attempt(request, headers()).await?;
            let (again, busy, asked) = match &outcome {
                Ok(answer) => {
                    let busy = answer.status() == StatusCode::TOO_MANY_REQUESTS;
                    (busy || passes(answer.status()) && !request.once, busy, retry_after(answer.headers()))
                }
                Err(e) => (e.is_connect() || !request.once && !e.is_builder(), false, None),
            };
            let wait = match limited.filter(|_| busy) {
                Some(total) => asked.unwrap_or(pause).min(total),
                None => asked.unwrap_or(pause).min(longest),
            };
            let patient = match limited.filter(|_| busy) {
                Some(total) => begun.elapsed() + asked.unwrap_or(wait) <= total,
                None => tried < tries,
            };
            if !again || !patient {
                return outcome.map_err(|e| {
                    let why = Failure::other(&e.without_url());
                    let text = format!("{} {}: {why}", request.method, shown(request.url));
                    Failure::new(Kind::Unavailable, text)
                });
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn attempt(
        &self,
        request: &Request<'_>,
        headers: Headers,
    ) -> Result<Result<Response, reqwest::Error>, Failure> {
        let Request { method, url, payload, .. } = request;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let value = HeaderValue::from_str(&value);
            let value = value.map_err(|e| Failure::invalid(format!("header {name}: {e}")))?;
            map.insert(HeaderName::from_static(name), value);
        }
        let mut sent = self.downloads.client(url).request(method.clone(), (*url).clone()).headers(map);
        if *method == Method::PUT || *method == Method::POST || *method == Method::PATCH {
            sent = sent.header("content-length", payload.len()).body(payload.body().await?);
        }
        Ok(sent.send().await)
    }
}

/// The store may do better in a moment.
fn passes(status: StatusCode) -> bool {
    status == StatusCode::REQUEST_TIMEOUT || status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
}

/// How long to wait, in seconds or until a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Timestamp::parse_http(text).map(|time| time.since(Timestamp::now())),
    }
}

/// An address without what may give access.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    // Neither can fail where there is a host.
    _ = url.set_username("");
    _ = url.set_password(None);
    url.to_string()
}

/// A store said no.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {status}{}{}", after(.code), after(.message))]
pub(crate) struct Refusal {
    /// The address, without its query.
    place: String,
    pub(crate) status: StatusCode,
    /// The store's own name of the problem, if it gives one.
    pub(crate) code: String,
    pub(crate) message: String,
}

fn after(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl Classify for Refusal {
    fn kind(&self) -> Kind {
        match self.status {
            StatusCode::NOT_FOUND => Kind::NotFound,
            StatusCode::CONFLICT => Kind::AlreadyExists,
            StatusCode::UNAUTHORIZED => Kind::Unauthenticated,
            StatusCode::FORBIDDEN => Kind::PermissionDenied,
            StatusCode::TOO_MANY_REQUESTS => Kind::ResourceExhausted,
            status if passes(status) => Kind::Unavailable,
            _ => Kind::Unknown,
        }
    }
}

impl Refusal {
    /// What the body says, in XML or JSON, or as it is.
    pub(crate) fn new(url: &Url, status: StatusCode, header: &str, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let text = text.trim_start_matches('\u{feff}').trim();
        let (code, message) = match serde_json::from_str::<serde_json::Value>(text) {
            Ok(json) => {
                let of = |keys: [&str; 2]| keys.iter().find_map(|key| json.get(key)?.as_str());
                (of(["typeKey", "code"]).map(str::to_owned), of(["message", "msg"]).map(str::to_owned))
            }
            Err(_) => (element(text, "Code"), element(text, "Message")),
        };
        let known = code.is_some() || message.is_some() || !header.is_empty();
        let message = message.unwrap_or_else(|| if known { String::new() } else { text.to_owned() });
        let line = message.lines().next().unwrap_or_default();
        Self {
            place: shown(url),
            status,
            code: code.unwrap_or_else(|| header.to_owned()),
            message: line.chars().take(MAX_TEXT).collect(),
        }
    }
}

/// An answer that says that it worked, or what it says instead.
///
/// # Errors
/// When it does not.
pub(crate) async fn success(answer: Response) -> Result<Response, Refusal> {
    let (status, url) = (answer.status(), answer.url().clone());
    if status.is_success() {
        return Ok(answer);
    }
    let header = answer.headers().get("x-ms-error-code").and_then(|value| value.to_str().ok());
    let header = header.unwrap_or_default().to_owned();
    let body = read(answer, MAX_ANSWER).await.unwrap_or_default();
    Err(Refusal::new(&url, status, &header, &body))
}

/// An answer as a whole.
///
/// # Errors
/// When it breaks off, or is larger than `limit`.
pub(crate) async fn read(mut answer: Response, limit: u64) -> Result<Vec<u8>, Failure> {
    let place = shown(answer.url());
    let mut bytes = Vec::new();
    let broken = |e: reqwest::Error| {
        let why = Failure::other(&e.without_url());
        Failure::new(Kind::Unavailable, format!("{place}: the answer broke off: {why}"))
    };
    while let Some(chunk) = answer.chunk().await.map_err(broken)? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(Failure::new(Kind::DataLoss, format!("{place}: more than {limit} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The header that asks for everything from `offset` on.
pub(crate) fn range(offset: u64) -> Headers {
    if offset > 0 { vec![("range", format!("bytes={offset}-"))] } else { Vec::new() }
}

/// An answer as a stream that begins at `offset` of the whole.
///
/// # Errors
/// When it begins elsewhere.
pub(crate) fn stream(answer: Response, offset: u64) -> Result<refs::Bytes, Failure> {
    let begin = answer.headers().get("content-range").and_then(|value| value.to_str().ok());
    let begin = begin.unwrap_or_default();
    let right =
        answer.status() == StatusCode::PARTIAL_CONTENT && begin.starts_with(&format!("bytes {offset}-"));
    if offset > 0 && !right {
        let text = format!("{}: bytes from {offset} on were asked for, not {begin:?}", shown(answer.url()));
        return Err(Failure::new(Kind::Unknown, text));
    }
    let chunks = answer.bytes_stream().map_err(|e| std::io::Error::other(e.without_url()));
    Ok(Box::pin(StreamReader::new(Box::pin(chunks))))
}

/// HMAC-SHA256.
pub(crate) fn mac(key: impl AsRef<[u8]>, text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()), text.as_bytes())
}

/// Percent-encodes everything but letters, digits, `-_.~` and what is in `keep`.
pub(crate) fn encode(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || keep.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The text of the first element of that name in XML, if nothing is inside it but text.
pub(crate) fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, rest) = rest.split_once('<')?;
    rest.starts_with(&format!("/{name}>")).then_some(())?;
    let quoted =
        [("&quot;", "\""), ("&#34;", "\""), ("&apos;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")];
    Some(quoted.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to)))
}

/// Text as it is written in XML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A secret in a file, without the end of its line.
///
/// # Errors
/// When it cannot be read.
pub(crate) async fn secret(file: &str) -> Result<String, Failure> {
    let path = file.to_owned();
    base::task::blocking(move || {
        let read = std::fs::read_to_string(&path);
        let read = read.map_err(|e| Failure::invalid(format!("read {path}: {e}")))?;
        Ok(read.trim().to_owned())
    })
    .await
}

/// Something that is good for a while.
pub(crate) struct Lease<T>(Mutex<Option<(T, Timestamp)>>);

impl<T> Default for Lease<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Lease<T> {
    /// What there is, if it stays good.
    pub(crate) fn get(&self) -> Option<T> {
        let held = self.0.lock();
        let good = held.as_ref().filter(|(_, until)| until.since(Timestamp::now()) > MARGIN);
        good.map(|(value, _)| value.clone())
    }

    /// Keeps something until then.
    pub(crate) fn set(&self, value: &T, until: Timestamp) {
        *self.0.lock() = Some((value.clone(), until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_the_store_says() {
        let url: Url = "http://u:p@h/b/k?sig=secret".parse().unwrap();
        let said = |header: &str, body: &str| {
            Refusal::new(&url, StatusCode::FORBIDDEN, header, body.as_bytes()).to_string()
        };
        for (header, body, expected) in [
            (
                "",
                "<?xml?><Error><Code>AccessDenied</Code><Message>a &amp; b</Message></Error>",
                ": AccessDenied: a & b",
            ),
            ("AuthenticationFailed", "", ": AuthenticationFailed"),
            ("X", "\u{feff}<Error><Code>X</Code><Message>one\nRequestId:2</Message></Error>", ": X: one"),
            ("", r#"{"typeKey":"Exists","message":"m"}"#, ": Exists: m"),
            ("", r#"{"code":"already_exists","msg":"m"}"#, ": already_exists: m"),
            ("", "plain\nmore", ": plain"),
            ("", "", ""),
        ] {
            assert_eq!(said(header, body), format!("http://h/b/k: 403 Forbidden{expected}"), "{body}");
        }
    }

    #[test]
    fn reads_and_writes_a_little_xml() {
        assert_eq!(element("<a><ETag>&quot;x&quot;</ETag></a>", "ETag").as_deref(), Some("\"x\""));
        for none in ["", "<ETag>", "<ETag>x", "<ETag><b></b></ETag>", "<ETag/>"] {
            assert_eq!(element(none, "ETag"), None, "{none}");
        }
        assert_eq!(escape("a<b>&"), "a&lt;b&gt;&amp;");
        assert_eq!(encode("sha256:a/b c", "/"), "sha256%3Aa/b%20c");
    }

    #[test]
    fn waits_as_it_is_told() {
        let told = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(told("7"), Some(Duration::from_secs(7)));
        assert_eq!(told("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(told("soon"), None);
    }

    #[test]
    fn a_lease_ends_before_it_is_over() {
        let lease = Lease::default();
        assert_eq!(lease.get(), None::<u8>);
        let now = Timestamp::now().secs();
        lease.set(&1, Timestamp::from_secs(now + 10));
        assert_eq!(lease.get(), None);
        lease.set(&2, Timestamp::from_secs(now + 3600));
        assert_eq!(lease.get(), Some(2));
    }
}
