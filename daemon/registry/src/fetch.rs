//! Out of a registry: what a name stands for, documents, and blobs as streams.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use base::descriptor::media;
use base::{Descriptor, Digest};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, try_unfold};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;
use url::Url;

use crate::Repository;
use crate::auth::{Access, Scopes, protocol};
use crate::error::{Error, Problem, Result};
use crate::host::{Host, authority};
use crate::limit::Slot;
use crate::wire::{self, Answer, Call, shown};

/// The largest manifest that is accepted, in bytes; as in containerd.
pub const MAX_MANIFEST: u64 = 4 * 1048 * 1048;
/// The largest image config that is accepted, in bytes.
pub const MAX_CONFIG: u64 = 32 << 20;
/// So much has to arrive for an interruption to be forgiven, in bytes.
const FORGIVEN: u64 = 1 << 20;
/// What we accept when asking what a name stands for.
const ACCEPT_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";
const CONTENT_DIGEST: &str = "docker-content-digest";

impl Repository {
    /// What the reference stands for now.
    ///
    /// # Errors
    /// The most telling of the hosts' errors when none of them knows.
    pub async fn resolve(&self) -> Result<Descriptor> {
        let reference = self.reference().clone();
        self.find().await.map_err(|problem| problem.of(reference))
    }

    async fn find(&self) -> Result<Descriptor, Problem> {
        let reference = self.reference();
        let tails = match (reference.digest(), reference.tag()) {
            // Some registries keep odd things by digest among the blobs only.
            (Some(digest), _) => vec![format!("manifests/{digest}"), format!("blobs/{digest}")],
            (None, tag) => vec![format!("manifests/{}", tag.unwrap_or("latest"))],
        };
        // A status tells more than "not found", and that more than no answer.
        let mut worst: Option<(u8, Problem)> = None;
        for tail in &tails {
            if worst.as_ref().is_some_and(|(rank, _)| *rank > 2) {
                break;
            }
            for (host, last) in self.hosts_and_last() {
                let problem = match self.ask(host, tail, last).await {
                    Ok(found) => return Ok(found),
                    Err(problem) => problem,
                };
                tracing::debug!(host = host.authority, %problem, "resolve");
                let rank = match problem {
                    Problem::NotFound { .. } => 2,
                    Problem::Transport { .. } | Problem::Stalled { .. } | Problem::Token { .. } => 1,
                    _ => 3,
                };
                if worst.as_ref().is_none_or(|(known, _)| *known < rank) {
                    worst = Some((rank, problem));
                }
            }
        }
        Err(worst.map_or(Problem::NotFound { message: String::new() }, |(_, problem)| problem))
    }

    /// Asks one host what is at `tail`: by HEAD, or by GET when that does not say enough.
    async fn ask(&self, host: &Host, tail: &str, last: bool) -> Result<Descriptor, Problem> {
        let url = host.url(self.reference().path(), tail)?;
        let head = self.get(host, Method::HEAD, &url, ACCEPT_MANIFEST, last).await?;
        if head.status() == StatusCode::FORBIDDEN && head.method == Method::HEAD {
            // The answer to a HEAD cannot say why.
            let get = self.get(host, Method::GET, &url, ACCEPT_MANIFEST, last).await?;
            let refused = get.status() == StatusCode::FORBIDDEN;
            return Err(if refused { get.problem(false).await } else { head.problem(false).await });
        }
        if !head.status().is_success() {
            return Err(head.problem(false).await);
        }
        let media_type = media_type(&head)?;
        let announced = match head.header(CONTENT_DIGEST) {
            Some(text) => {
                Some(text.parse::<Digest>().map_err(|e| protocol(&shown(&head.url), e.to_string()))?)
            }
            None => None,
        };
        let wanted = self.reference().digest().cloned();
        let digest = wanted.clone().or(announced);
        if head.method == Method::HEAD
            && let (Some(digest), Some(size)) = (digest, length(&head))
        {
            if size > MAX_MANIFEST && tail.starts_with("manifests/") {
                return Err(Problem::TooLarge { size, limit: MAX_MANIFEST });
            }
            return Ok(Descriptor::new(media_type, digest, size));
        }
        let get = match head.method {
            Method::GET => head,
            _ => self.get(host, Method::GET, &url, ACCEPT_MANIFEST, last).await?,
        };
        if !get.status().is_success() {
            return Err(get.problem(false).await);
        }
        let media_type = self::media_type(&get)?;
        let announced = get.header(CONTENT_DIGEST).and_then(|d| d.parse::<Digest>().ok());
        let body = wire::body(get.response, &get.method, &get.url, MAX_MANIFEST);
        let silence = self.shared().config.retry.silence;
        let body = tokio::time::timeout(silence, body)
            .await
            .map_err(|_| Problem::Stalled { url: shown(&get.url), seconds: silence.as_secs() })??;
        let digest = Digest::of(&body);
        for named in wanted.into_iter().chain(announced).filter(|d| d.algorithm() == "sha256") {
            if named != digest {
                return Err(Problem::Digest { expected: named, actual: digest });
            }
        }
        Ok(Descriptor::new(media_type, digest, body.len() as u64))
    }

    async fn get(
        &self,
        host: &Host,
        method: Method,
        url: &Url,
        accept: &str,
        last: bool,
    ) -> Result<Answer, Problem> {
        let mut call = Call::new(method, url.clone(), self.pull_scopes()).header(ACCEPT, accept)?;
        call.last = last;
        self.wire().send(host, call).await
    }

    pub(crate) fn pull_scopes(&self) -> Scopes {
        Scopes::repository(self.reference().path(), false)
    }

    /// The blob of that digest, with the size the registry says it has.
    ///
    /// # Errors
    /// The first host's error when none of them has it.
    pub async fn stat_blob(&self, digest: &Digest) -> Result<Descriptor> {
        let mut first = None;
        for (host, last) in self.hosts_and_last() {
            match self.stat_at(host, digest, last).await {
                Ok(found) => return Ok(found),
                Err(problem) => _ = first.get_or_insert(problem),
            }
        }
        Err(self.about(digest, first))
    }

    async fn stat_at(&self, host: &Host, digest: &Digest, last: bool) -> Result<Descriptor, Problem> {
        let url = host.url(self.reference().path(), &format!("blobs/{digest}"))?;
        let answer = self.get(host, Method::HEAD, &url, "*/*", last).await?;
        if !answer.status().is_success() {
            return Err(answer.problem(false).await);
        }
        let size = length(&answer).ok_or_else(|| protocol(&shown(&answer.url), "no Content-Length"))?;
        Ok(Descriptor::new("application/octet-stream", digest.clone(), size))
    }

    /// A manifest or config as a whole, its size and digest verified.
    ///
    /// # Errors
    /// Also when it is larger than [`MAX_MANIFEST`] or [`MAX_CONFIG`].
    pub async fn fetch(&self, desc: &Descriptor) -> Result<Bytes> {
        let about = |problem: Problem| self.about(&desc.digest, Some(problem));
        let limit = if is_manifest(desc) { MAX_MANIFEST } else { MAX_CONFIG };
        if desc.size > limit {
            return Err(about(Problem::TooLarge { size: desc.size, limit }));
        }
        if desc.digest.algorithm() != "sha256" {
            return Err(about(Problem::Algorithm(desc.digest.algorithm().to_owned())));
        }
        let mut reader = self.open(desc, 0).await?;
        let mut body = BytesMut::new();
        while let Some(chunk) = reader.stream_mut().next().await {
            body.extend_from_slice(&chunk?);
        }
        let actual = Digest::of(&body);
        if actual != desc.digest {
            return Err(about(Problem::Digest { expected: desc.digest.clone(), actual }));
        }
        Ok(body.freeze())
    }

    /// The bytes of `desc` from `offset` on, as a stream of exactly
    /// `desc.size - offset` bytes. Dropped connections are taken up again where
    /// they broke. The digest is for the reader to verify.
    ///
    /// # Errors
    /// The first host's error when none of them has it. Errors on the way come
    /// out of the reader; [`Error::from_io`] gets them back.
    pub async fn open(&self, desc: &Descriptor, offset: u64) -> Result<BlobReader> {
        let slot = self.shared().limits.slot(self.reference().domain(), &desc.media_type).await;
        // Registries have no answer to "nothing from the end on".
        let rest = desc.size.saturating_sub(offset);
        let opened =
            if rest == 0 && offset > 0 { Ok(None) } else { self.open_at(desc, offset).await.map(Some) };
        let at = opened.map_err(|p| self.about(&desc.digest, Some(p)))?;
        let transfer = Transfer {
            repository: self.clone(),
            desc: desc.clone(),
            position: offset,
            current: at,
            failures: 0,
            failed_at: offset,
            _slot: slot,
        };
        let stream = try_unfold(transfer, |mut transfer| async move {
            match transfer.next().await {
                Ok(chunk) => Ok(chunk.map(|c| (c, transfer))),
                Err(problem) => Err(transfer.repository.about(&transfer.desc.digest, Some(problem))),
            }
        });
        Ok(BlobReader(StreamReader::new(Chunks(stream.boxed()))))
    }

    async fn open_at(&self, desc: &Descriptor, offset: u64) -> Result<Current, Problem> {
        for address in &desc.urls {
            match self.open_elsewhere(address, desc, offset).await {
                Ok(Some(current)) => return Ok(current),
                Ok(None) => {}
                Err(problem) => tracing::debug!(%problem, "other address of a blob"),
            }
        }
        let kind = if is_manifest(desc) { "manifests" } else { "blobs" };
        let mut first = None;
        for (host, last) in self.hosts_and_last() {
            let url = host.url(self.reference().path(), &format!("{kind}/{}", desc.digest))?;
            let call = range(Call::new(Method::GET, url, self.pull_scopes()), desc, offset, last)?;
            let opened = match self.wire().send(host, call).await {
                Ok(answer) => checked(answer, desc, offset).await,
                Err(problem) => Err(problem),
            };
            match opened {
                Ok(current) => return Ok(current),
                Err(problem) => {
                    tracing::debug!(host = host.authority, %problem, "open");
                    first.get_or_insert(problem);
                }
            }
        }
        Err(first.unwrap_or(Problem::NotFound { message: String::new() }))
    }

    /// A descriptor may name other addresses. They are asked as nobody.
    async fn open_elsewhere(
        &self,
        address: &str,
        desc: &Descriptor,
        offset: u64,
    ) -> Result<Option<Current>, Problem> {
        let Some(url) = Url::parse(address).ok().filter(|u| matches!(u.scheme(), "http" | "https")) else {
            return Ok(None);
        };
        let hosts = self.shared().hosts(&authority(&url), false).await?;
        let Some(host) = hosts.last() else { return Ok(None) };
        let nobody = Access::anonymous();
        let call = range(Call::new(Method::GET, url, Scopes::default()), desc, offset, false)?;
        let answer = self.shared().wire(&nobody).send(host, call).await?;
        checked(answer, desc, offset).await.map(Some)
    }

    pub(crate) fn about(&self, digest: &Digest, problem: Option<Problem>) -> Error {
        let problem = problem.unwrap_or(Problem::NotFound { message: String::new() });
        problem.of(format!("{}@{digest}", self.reference().name()))
    }
}

fn is_manifest(desc: &Descriptor) -> bool {
    media::is_manifest(&desc.media_type) || media::is_index(&desc.media_type)
}

fn range(call: Call, desc: &Descriptor, offset: u64, last: bool) -> Result<Call, Problem> {
    let accept =
        if desc.media_type.is_empty() { "*/*".to_owned() } else { format!("{}, */*", desc.media_type) };
    let mut call = call.header(ACCEPT, &accept)?;
    call.last = last;
    if offset > 0 {
        call = call.header(RANGE, &format!("bytes={offset}-"))?;
    }
    Ok(call)
}

/// The answer as a transfer from `offset` on, when its headers fit.
async fn checked(answer: Answer, desc: &Descriptor, offset: u64) -> Result<Current, Problem> {
    let url = shown(&answer.url);
    if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        return Err(protocol(&url, format!("no bytes from {offset} on")));
    }
    if !answer.status().is_success() {
        return Err(answer.problem(false).await);
    }
    let partial = answer.status() == StatusCode::PARTIAL_CONTENT;
    if partial {
        let given = answer.header(CONTENT_RANGE).unwrap_or_default();
        if !given.starts_with(&format!("bytes {offset}-")) {
            return Err(protocol(&url, format!("asked for bytes from {offset} on, got {given:?}")));
        }
    }
    let skip = if partial { 0 } else { offset };
    if let Some(actual) = length(&answer).map(|l| l.saturating_add(offset - skip)).filter(|l| *l != desc.size)
    {
        return Err(Problem::Size { expected: desc.size, actual });
    }
    Ok(Current { answer, skip })
}

fn length(answer: &Answer) -> Option<u64> {
    answer.header(CONTENT_LENGTH)?.parse().ok()
}

fn media_type(answer: &Answer) -> Result<String, Problem> {
    let text = answer.header(CONTENT_TYPE).unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "text/plain" | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Err(Problem::SchemaOne),
        "text/html" => Err(protocol(&shown(&answer.url), "a page for browsers instead of a manifest")),
        other => Ok(other.to_owned()),
    }
}

/// An answer whose body is being read.
struct Current {
    answer: Answer,
    /// Bytes to be passed over: the host knows no ranges.
    skip: u64,
}

/// A blob on its way, over as many connections as it takes.
struct Transfer {
    repository: Repository,
    desc: Descriptor,
    position: u64,
    current: Option<Current>,
    /// Interruptions since something worth mentioning arrived.
    failures: u32,
    /// Where the last one was.
    failed_at: u64,
    _slot: Slot,
}

impl Transfer {
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let silence = self.repository.shared().config.retry.silence;
        loop {
            let current = match &mut self.current {
                Some(current) => current,
                None if self.position > 0 && self.position >= self.desc.size => return Ok(None),
                None => {
                    let at = self.repository.open_at(&self.desc, self.position).await?;
                    self.current.insert(at)
                }
            };
            let complete = self.position >= self.desc.size;
            let interrupted = match tokio::time::timeout(silence, current.answer.response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let skipped = current.skip.min(chunk.len() as u64);
                    current.skip -= skipped;
                    let chunk = chunk.slice(skipped as usize..);
                    if chunk.is_empty() {
                        continue;
                    }
                    self.position += chunk.len() as u64;
                    if self.position > self.desc.size {
                        return Err(Problem::Size { expected: self.desc.size, actual: self.position });
                    }
                    return Ok(Some(chunk));
                }
                _ if complete => return Ok(None),
                Ok(Ok(None)) => Problem::Truncated { expected: self.desc.size, actual: self.position },
                Ok(Err(e)) => wire::transport(&Method::GET, &current.answer.url, e),
                Err(_) => Problem::Stalled { url: shown(&current.answer.url), seconds: silence.as_secs() },
            };
            self.interrupted(interrupted).await?;
        }
    }

    /// Waits before the next connection, or gives up.
    async fn interrupted(&mut self, problem: Problem) -> Result<(), Problem> {
        self.current = None;
        if self.position - self.failed_at >= FORGIVEN {
            self.failures = 0;
        }
        self.failed_at = self.position;
        self.failures += 1;
        if self.failures >= self.repository.shared().config.retry.attempts {
            return Err(problem);
        }
        tracing::debug!(%problem, position = self.position, "going on with another connection");
        self.repository.wire().pause(self.failures, None).await;
        Ok(())
    }
}

/// A blob on its way. Holds one of the registry's slots until dropped.
pub struct BlobReader(StreamReader<Chunks, Bytes>);

struct Chunks(BoxStream<'static, Result<Bytes>>);

impl futures_util::Stream for Chunks {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx).map_err(io::Error::from)
    }
}

impl BlobReader {
    fn stream_mut(&mut self) -> &mut BoxStream<'static, Result<Bytes>> {
        &mut self.0.get_mut().0
    }

    /// The bytes in the pieces in which they arrive.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes>> {
        self.0.into_inner().0
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncBufRead for BlobReader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().0).poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.0).consume(amount);
    }
}
