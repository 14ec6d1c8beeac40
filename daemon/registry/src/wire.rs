//! One request and its answer: authorization, redirects, second attempts.

use std::error::Error as _;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Body, Method, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use crate::auth::{Access, Authorization, Question, Scopes, Tokens, protocol};
use crate::challenge;
use crate::config::Retry;
use crate::error::Problem;
use crate::host::{Host, authority};

/// How long the maker of tokens may take.
pub(crate) const TOKEN_SILENCE: Duration = Duration::from_secs(60);
/// No error text is larger; bytes.
const MAX_ERROR: u64 = 64_000;
/// What is shown of an error text; characters.
const SHOWN_ERROR: usize = 400;
const MAX_REDIRECTS: usize = 10;
/// Times one request may be answered with "who are you".
const MAX_CHALLENGES: usize = 3;

/// Makes a request's body, once per attempt.
pub(crate) type MakeBody = Arc<dyn Fn() -> Body + Send + Sync>;

/// A request.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<MakeBody>,
    pub(crate) scopes: Scopes,
    /// There is no other host to ask: worth trying again.
    pub(crate) last: bool,
}

impl Call {
    pub(crate) fn new(method: Method, url: Url, scopes: Scopes) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: None, scopes, last: true }
    }

    pub(crate) fn header(mut self, name: reqwest::header::HeaderName, value: &str) -> Result<Self, Problem> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Problem::config(format!("{value:?} cannot be sent as {name}")))?;
        self.headers.append(name, value);
        Ok(self)
    }
}

/// An answer, whatever its status.
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) method: Method,
    /// Where it came from in the end.
    pub(crate) url: Url,
    pub(crate) anonymous: bool,
    /// The reason given in a challenge.
    refused: String,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header as text.
    pub(crate) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// What a status that is no success means.
    pub(crate) async fn problem(self, push: bool) -> Problem {
        let status = self.response.status();
        let (method, url) = (self.method.to_string(), shown(&self.url));
        let read = body(self.response, &self.method, &self.url, MAX_ERROR);
        let said = match tokio::time::timeout(Duration::from_secs(10), read).await {
            Ok(Ok(bytes)) => message(&bytes),
            _ => String::new(),
        };
        let parts = [self.refused, said];
        let message =
            parts.iter().filter(|p| !p.is_empty()).map(String::as_str).collect::<Vec<_>>().join(": ");
        match status.as_u16() {
            404 => Problem::NotFound { message },
            status @ (401 | 403) => {
                Problem::Denied { push, method, url, status, message, anonymous: self.anonymous }
            }
            code => Problem::Status {
                method,
                url,
                status: status.to_string(),
                code,
                message,
                anonymous: self.anonymous,
            },
        }
    }
}

/// What every request needs.
pub(crate) struct Wire<'a> {
    pub(crate) tokens: &'a Tokens,
    pub(crate) retry: &'a Retry,
    pub(crate) access: &'a Access,
}

impl Wire<'_> {
    /// Sends `call` until there is an answer worth returning.
    pub(crate) async fn send(&self, host: &Host, mut call: Call) -> Result<Answer, Problem> {
        let mut challenges = 0;
        let mut attempt = 1;
        loop {
            let again = attempt < self.retry.attempts;
            let (answer, sent) = match self.follow(host, &call).await {
                Ok(answered) => answered,
                Err((problem, true)) if again && call.last && call.body.is_none() => {
                    tracing::debug!(%problem, attempt, "trying again");
                    self.pause(attempt, None).await;
                    attempt += 1;
                    continue;
                }
                Err((problem, _)) => return Err(problem),
            };
            match answer.status().as_u16() {
                401 if challenges < MAX_CHALLENGES => {
                    challenges += 1;
                    let asked = challenge::parse(answer.response.headers());
                    let (origin, authority) =
                        (answer.url.origin().ascii_serialization(), authority(&answer.url));
                    let question = self.question(host, &origin, &authority, &call.scopes);
                    if !self.tokens.challenged(&question, asked, &sent).await? {
                        return Ok(answer);
                    }
                }
                405 if call.method == Method::HEAD && call.url.path().contains("/manifests/") => {
                    call.method = Method::GET;
                }
                408 | 429 if again && call.body.is_none() => {
                    self.pause(attempt, answer.header(RETRY_AFTER)).await;
                    attempt += 1;
                }
                500 | 502 | 503 | 504 if again && call.last && call.body.is_none() => {
                    self.pause(attempt, answer.header(RETRY_AFTER)).await;
                    attempt += 1;
                }
                _ => return Ok(answer),
            }
        }
    }

    fn question<'q>(
        &'q self,
        host: &'q Host,
        origin: &'q str,
        authority: &'q str,
        scopes: &'q Scopes,
    ) -> Question<'q> {
        Question { host, origin, authority, scopes, access: self.access }
    }

    /// Sends `call` and follows redirects. Each address gets the authorization
    /// of its own origin, so nothing meant for one host reaches another. An
    /// error says whether it may pass.
    async fn follow(&self, host: &Host, call: &Call) -> Result<(Answer, Authorization), (Problem, bool)> {
        let mut url = call.url.clone();
        let mut redirects = 0;
        loop {
            host.correct(&mut url);
            let (origin, authority) = (url.origin().ascii_serialization(), authority(&url));
            let question = self.question(host, &origin, &authority, &call.scopes);
            let sent = self.tokens.authorize(&question).await.map_err(|p| (p, false))?;
            let response = match self.once(host, call, &url, &sent).await {
                Ok(response) => response,
                Err(Failed::Http(e)) if host.falls_back(&url, &e) => continue,
                Err(Failed::Http(e)) => {
                    let passes = is_transient(&e);
                    return Err((transport(&call.method, &url, e), passes));
                }
                Err(Failed::Silent) => {
                    let seconds = self.retry.silence.as_secs();
                    return Err((Problem::Stalled { url: shown(&url), seconds }, true));
                }
            };
            if let Some(next) = redirect(&response, &call.method, &url) {
                let next = next.map_err(|p| (p, false))?;
                redirects += 1;
                if redirects > MAX_REDIRECTS {
                    return Err((protocol(&shown(&call.url), "too many redirects"), false));
                }
                url = next;
                continue;
            }
            let refused = challenge::parse(response.headers())
                .into_iter()
                .find_map(|c| match c {
                    challenge::Challenge::Bearer { error, .. } if !error.is_empty() => {
                        Some(format!("server message: {error}"))
                    }
                    _ => None,
                })
                .unwrap_or_default();
            let (method, anonymous) = (call.method.clone(), sent.anonymous);
            return Ok((Answer { response, method, url, anonymous, refused }, sent));
        }
    }

    async fn once(
        &self,
        host: &Host,
        call: &Call,
        url: &Url,
        sent: &Authorization,
    ) -> Result<Response, Failed> {
        let mut headers = call.headers.clone();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(header) = &sent.header {
            headers.insert(AUTHORIZATION, header.clone());
        }
        let mut request = host.client.request(call.method.clone(), url.clone()).headers(headers);
        let Some(make) = &call.body else {
            return tokio::time::timeout(self.retry.silence, request.send())
                .await
                .map_err(|_| Failed::Silent)?
                .map_err(Failed::Http);
        };
        // How long a registry may digest an upload depends on its size, so
        // there is no limit but the connection's own.
        request = request.body(make());
        request.send().await.map_err(Failed::Http)
    }

    /// Waits before the attempt after `attempt`.
    pub(crate) async fn pause(&self, attempt: u32, asked: Option<&str>) {
        let doubled = self.retry.pause.saturating_mul(1 << attempt.saturating_sub(1).min(10));
        let random = doubled.mul_f64(0.5 * rand::random::<f64>());
        let asked = asked.and_then(|a| a.trim().parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
        tokio::time::sleep((doubled + random).max(asked).min(self.retry.max_pause)).await;
    }
}

enum Failed {
    Http(reqwest::Error),
    Silent,
}

/// Where an answer sends us, if anywhere.
fn redirect(response: &Response, method: &Method, url: &Url) -> Option<Result<Url, Problem>> {
    let reading = matches!(*method, Method::GET | Method::HEAD);
    match response.status().as_u16() {
        301..=303 if reading => {}
        307 | 308 => {}
        _ => return None,
    }
    let location = response.headers().get(LOCATION)?;
    let next = location.to_str().ok().and_then(|l| url.join(l).ok());
    Some(
        next.filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host())
            .ok_or_else(|| protocol(&shown(url), format!("redirect to {location:?}"))),
    )
}

/// Whether the connection broke, as opposed to never having been made.
pub(crate) fn is_transient(error: &reqwest::Error) -> bool {
    let mut next = error.source();
    while let Some(e) = next {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof
                    | ErrorKind::TimedOut
            );
        }
        next = e.source();
    }
    error.is_timeout() || !(error.is_connect() || error.is_builder() || error.is_decode())
}

/// The address without what may be secret in it.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let namespace = url.query_pairs().find(|(k, _)| k == "ns").map(|(_, v)| v.into_owned());
    url.set_query(None);
    if let Some(namespace) = namespace {
        url.query_pairs_mut().append_pair("ns", &namespace);
    }
    _ = url.set_password(None);
    _ = url.set_username("");
    url.into()
}

pub(crate) fn transport(method: &Method, url: &Url, error: reqwest::Error) -> Problem {
    Problem::Transport {
        method: method.to_string(),
        url: shown(url),
        // The address is in our own text, without its secrets.
        source: Box::new(error.without_url()),
    }
}

/// A whole body of at most `limit` bytes.
pub(crate) async fn body(
    mut response: Response,
    method: &Method,
    url: &Url,
    limit: u64,
) -> Result<Bytes, Problem> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| transport(method, url, e))? {
        let size = bytes.len() as u64 + chunk.len() as u64;
        if size > limit {
            return Err(Problem::TooLarge { size, limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    detail: serde_json::Value,
}

#[derive(Deserialize)]
struct OtherError {
    #[serde(alias = "details", alias = "error_description", alias = "error")]
    message: String,
}

/// What an error body says, in one line. Pages made for browsers say nothing.
pub(crate) fn message(bytes: &[u8]) -> String {
    let text = if let Ok(Errors { errors }) = serde_json::from_slice(bytes) {
        errors.iter().map(one_error).collect::<Vec<_>>().join(", ")
    } else if let Ok(OtherError { message }) = serde_json::from_slice(bytes) {
        message
    } else {
        let text = String::from_utf8_lossy(bytes);
        if text.trim_start().starts_with(['<', '{', '[']) { String::new() } else { text.into_owned() }
    };
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    words.join(" ").chars().take(SHOWN_ERROR).collect()
}

fn one_error(e: &OneError) -> String {
    let code = e.code.to_ascii_lowercase().replace('_', " ");
    let message = if e.message.is_empty() { code.as_str() } else { &e.message };
    let text = if e.code.is_empty() || e.message.eq_ignore_ascii_case(&code) {
        message.to_owned()
    } else {
        format!("{}: {message}", e.code)
    };
    match e.detail.as_str().filter(|d| !d.is_empty()) {
        Some(detail) => format!("{text}: {detail}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_what_registries_say() {
        for (body, want) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"no","detail":"ip"},{"code":"X"}]}"#,
                "DENIED: no: ip, X: x",
            ),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            ("<html>\n<h1>502</h1>", ""),
            ("{\"a\":1}", ""),
            (" slow\n down\u{1b}[0m", "slow down [0m"),
        ] {
            assert_eq!(message(body.as_bytes()), want);
        }
    }

    #[test]
    fn hides_what_is_secret() {
        let url = Url::parse("https://u:p@h/v2/a?ns=docker.io&X-Amz-Signature=s").unwrap();
        assert_eq!(shown(&url), "https://h/v2/a?ns=docker.io");
    }
}
