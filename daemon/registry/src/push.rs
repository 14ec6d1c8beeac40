//! Into a registry: blobs first, then the manifests that name them.
//!
//! A blob that is there is not sent, one that is in a neighbouring repository
//! is mounted from there, any other goes up in one request. Where that does not
//! get through it goes up in pieces.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use base::{Descriptor, Digest};
use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use url::Url;

use crate::Repository;
use crate::auth::{Scopes, protocol};
use crate::error::{Problem, Result};
use crate::host::Host;
use crate::wire::{Answer, Call, MakeBody, shown};

const READ_SIZE: usize = 128 << 10;
/// The pieces tried one after the other when the whole is too much; bytes.
const PIECES: [u64; 2] = [32 << 20, 512 << 10];
/// Repositories that are asked for a blob; each costs a request.
const MAX_NEIGHBOURS: usize = 4;
const CONTENT_DIGEST: &str = "docker-content-digest";

/// Bytes that can be read several times: an upload may have to start again.
#[async_trait]
pub trait Source: Send + Sync {
    /// The bytes from `offset` on.
    ///
    /// # Errors
    /// When they cannot be read.
    async fn open(&self, offset: u64) -> io::Result<Pin<Box<dyn AsyncRead + Send>>>;
}

#[async_trait]
impl Source for Bytes {
    async fn open(&self, offset: u64) -> io::Result<Pin<Box<dyn AsyncRead + Send>>> {
        let start = usize::try_from(offset).map_or(self.len(), |o| o.min(self.len()));
        Ok(Box::pin(io::Cursor::new(self.slice(start..))))
    }
}

/// A file as a [`Source`].
#[derive(Debug, Clone)]
pub struct File(pub PathBuf);

#[async_trait]
impl Source for File {
    async fn open(&self, offset: u64) -> io::Result<Pin<Box<dyn AsyncRead + Send>>> {
        let mut file = tokio::fs::File::open(&self.0).await?;
        file.seek(io::SeekFrom::Start(offset)).await?;
        Ok(Box::pin(file))
    }
}

/// Told how many bytes of a blob have gone up. May go back when an upload starts again.
pub type Watch = Arc<dyn Fn(u64) + Send + Sync>;

/// How a blob got there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was in the repository of this name.
    Mounted(String),
    /// It was sent.
    Uploaded,
}

impl Repository {
    /// Makes the repository have the blob `desc`. `mount_from` are paths of
    /// repositories of the same registry that probably have it.
    ///
    /// # Errors
    /// When the registry does not take it, or `source` cannot be read.
    pub async fn push_blob(
        &self,
        desc: &Descriptor,
        source: Arc<dyn Source>,
        mount_from: &[String],
        watch: Option<Watch>,
    ) -> Result<Pushed> {
        let _slot = self.shared().limits.slot(self.reference().domain(), &desc.media_type).await;
        let upload = Upload { repository: self, desc, source, watch };
        upload.run(mount_from).await.map_err(|p| self.about(&desc.digest, Some(p)))
    }

    /// Makes the repository have the manifest `bytes`, and `tag` name it.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn push_manifest(&self, bytes: Bytes, media_type: &str, tag: Option<&str>) -> Result<Digest> {
        let digest = Digest::of(&bytes);
        let _slot = self.shared().limits.slot(self.reference().domain(), media_type).await;
        match self.put_manifest(&digest, bytes, media_type, tag).await {
            Ok(()) => Ok(digest),
            Err(problem) => Err(match tag {
                Some(tag) => problem.of(format!("{}:{tag}", self.reference().name())),
                None => self.about(&digest, Some(problem)),
            }),
        }
    }

    async fn put_manifest(
        &self,
        digest: &Digest,
        bytes: Bytes,
        media_type: &str,
        tag: Option<&str>,
    ) -> Result<(), Problem> {
        let host = self.push_host()?;
        let url =
            host.url(self.reference().path(), &format!("manifests/{}", tag.unwrap_or(digest.as_str())))?;
        let call = |method| Call::new(method, url.clone(), self.push_scopes());
        let head = call(Method::HEAD).header(ACCEPT, &format!("{media_type}, */*"))?;
        let there = self.wire().send(host, head).await?;
        match there.status().as_u16() {
            200 => {
                let named = there.header(CONTENT_DIGEST);
                if named == Some(digest.as_str()) || (tag.is_none() && named.is_none()) {
                    return Ok(());
                }
            }
            // Some registries let us write where we may not look.
            401 | 404 => {}
            _ => return Err(there.problem(true).await),
        }
        let mut attempt = 1;
        let answer = loop {
            let mut put = call(Method::PUT)
                .header(CONTENT_TYPE, media_type)?
                .header(CONTENT_LENGTH, &bytes.len().to_string())?;
            let body = bytes.clone();
            put.body = Some(Arc::new(move || Body::from(body.clone())));
            let answer = self.wire().send(host, put).await;
            // A manifest is small and its upload idempotent: the same again.
            let again = match &answer {
                Ok(answer) => passes(answer.status().as_u16()),
                Err(Problem::Transport { source, .. }) => {
                    source.downcast_ref().is_some_and(crate::wire::is_transient)
                }
                Err(_) => false,
            };
            if !again || attempt >= self.shared().config.retry.attempts {
                break answer?;
            }
            self.wire().pause(attempt, None).await;
            attempt += 1;
        };
        if !answer.status().is_success() {
            return Err(answer.problem(true).await);
        }
        verify(&answer, digest)
    }

    fn push_scopes(&self) -> Scopes {
        Scopes::repository(self.reference().path(), true)
    }

    fn push_host(&self) -> Result<&Host, Problem> {
        self.hosts_and_last()
            .find_map(|(host, _)| host.push.then_some(host))
            .ok_or_else(|| Problem::config("no host to push to"))
    }
}

/// Statuses after which the same may work a little later.
fn passes(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

fn verify(answer: &Answer, expected: &Digest) -> Result<(), Problem> {
    let Some(text) = answer.header(CONTENT_DIGEST) else { return Ok(()) };
    let actual: Digest = text.parse().map_err(|e| protocol(&shown(&answer.url), format!("{e}")))?;
    if actual != *expected {
        return Err(Problem::Digest { expected: expected.clone(), actual });
    }
    Ok(())
}

struct Upload<'a> {
    repository: &'a Repository,
    desc: &'a Descriptor,
    source: Arc<dyn Source>,
    watch: Option<Watch>,
}

enum Begun {
    Done(Pushed),
    At(Url, u64),
}

impl Upload<'_> {
    async fn run(&self, mount_from: &[String]) -> Result<Pushed, Problem> {
        let host = self.repository.push_host()?;
        if self.exists(host).await? {
            return Ok(Pushed::Existed);
        }
        let mut begun = self.mount(host, mount_from).await;
        let mut pieces = PIECES.into_iter();
        let mut piece = None;
        let mut attempt = 1;
        loop {
            let at = match begun.take() {
                Some(begun) => begun,
                None => self.begin(host).await?,
            };
            let (location, least) = match at {
                Begun::Done(pushed) => return Ok(pushed),
                Begun::At(location, least) => (location, least),
            };
            let sent = match piece {
                None => self.whole(host, location).await,
                Some(size) => self.in_pieces(host, location, least.max(size)).await,
            };
            let problem = match sent {
                Ok(()) => return Ok(Pushed::Uploaded),
                Err(problem) => problem,
            };
            let too_much = matches!(problem, Problem::Status { code: 413, .. });
            let broke = match &problem {
                Problem::Transport { source, .. } => {
                    source.downcast_ref().is_some_and(crate::wire::is_transient)
                }
                Problem::Status { code, .. } => passes(*code),
                _ => false,
            };
            if too_much || (broke && piece.is_none() && self.desc.size > PIECES[0]) {
                match pieces.next() {
                    Some(size) => piece = Some(size),
                    None if too_much => return Err(problem),
                    None => {}
                }
            }
            if !(too_much || broke) || attempt >= self.repository.shared().config.retry.attempts {
                return Err(problem);
            }
            tracing::debug!(%problem, ?piece, "upload starts again");
            self.repository.wire().pause(attempt, None).await;
            attempt += 1;
        }
    }

    async fn exists(&self, host: &Host) -> Result<bool, Problem> {
        let url = host.url(self.repository.reference().path(), &format!("blobs/{}", self.desc.digest))?;
        let call = Call::new(Method::HEAD, url, self.repository.push_scopes()).header(ACCEPT, "*/*")?;
        let answer = self.repository.wire().send(host, call).await?;
        match answer.status().as_u16() {
            200 => Ok(true),
            401 | 404 => Ok(false),
            _ => Err(answer.problem(true).await),
        }
    }

    /// Asks for the blob to be taken from a neighbour. Nothing that goes wrong
    /// here matters: the blob can still be sent.
    async fn mount(&self, host: &Host, from: &[String]) -> Option<Begun> {
        let mut begun = None;
        let own = self.repository.reference().path();
        for path in from.iter().filter(|p| *p != own).take(MAX_NEIGHBOURS) {
            let Ok(mut url) = host.url(own, "blobs/uploads/") else { continue };
            url.query_pairs_mut().append_pair("mount", self.desc.digest.as_str()).append_pair("from", path);
            let mut scopes = self.repository.push_scopes();
            scopes.add(&format!("repository:{path}:pull"));
            let answer = match self.repository.wire().send(host, Call::new(Method::POST, url, scopes)).await {
                Ok(answer) => answer,
                Err(problem) => {
                    tracing::debug!(path, %problem, "mount");
                    continue;
                }
            };
            if answer.status() == StatusCode::CREATED {
                self.abandon(host, begun).await;
                return Some(Begun::Done(Pushed::Mounted(path.clone())));
            }
            tracing::debug!(path, status = %answer.status(), "mount");
            // The registry has begun an ordinary upload instead.
            if answer.status() == StatusCode::ACCEPTED {
                self.abandon(host, begun).await;
                begun = location(&answer).ok();
            }
        }
        begun
    }

    /// Tells the registry that an upload will not go on. Registries also find
    /// that out themselves, so it does not matter whether it listens.
    async fn abandon(&self, host: &Host, begun: Option<Begun>) {
        if let Some(Begun::At(url, _)) = begun {
            let call = Call::new(Method::DELETE, url, self.repository.push_scopes());
            if let Err(problem) = self.repository.wire().send(host, call).await {
                tracing::debug!(%problem, "abandon an upload");
            }
        }
    }

    async fn begin(&self, host: &Host) -> Result<Begun, Problem> {
        let url = host.url(self.repository.reference().path(), "blobs/uploads/")?;
        let call = Call::new(Method::POST, url, self.repository.push_scopes());
        let answer = self.repository.wire().send(host, call).await?;
        match answer.status().as_u16() {
            200 | 202 | 204 => location(&answer),
            201 => Ok(Begun::Done(Pushed::Existed)),
            _ => Err(answer.problem(true).await),
        }
    }

    async fn whole(&self, host: &Host, location: Url) -> Result<(), Problem> {
        let body = self.body(0, self.desc.size);
        self.finish(host, location, body, self.desc.size).await
    }

    async fn in_pieces(&self, host: &Host, mut location: Url, piece: u64) -> Result<(), Problem> {
        let mut position = 0;
        while position < self.desc.size {
            let size = piece.min(self.desc.size - position);
            let end = position + size - 1;
            let mut call = Call::new(Method::PATCH, location, self.repository.push_scopes())
                .header(CONTENT_TYPE, "application/octet-stream")?
                .header(CONTENT_RANGE, &format!("{position}-{end}"))?
                .header(CONTENT_LENGTH, &size.to_string())?;
            call.body = Some(self.body(position, size));
            let answer = self.repository.wire().send(host, call).await?;
            if !answer.status().is_success() {
                return Err(answer.problem(true).await);
            }
            let taken =
                answer.header(reqwest::header::RANGE).and_then(|r| r.rsplit('-').next()?.parse().ok());
            if taken.is_some_and(|t: u64| t != end) {
                return Err(protocol(&shown(&answer.url), format!("took bytes up to {taken:?} of {end}")));
            }
            location = match self::location(&answer)? {
                Begun::At(next, _) => next,
                Begun::Done(_) => answer.url,
            };
            position += size;
        }
        self.finish(host, location, Arc::new(|| Body::from(Bytes::new())), 0).await
    }

    async fn finish(&self, host: &Host, mut location: Url, body: MakeBody, size: u64) -> Result<(), Problem> {
        location.query_pairs_mut().append_pair("digest", self.desc.digest.as_str());
        let mut call = Call::new(Method::PUT, location, self.repository.push_scopes())
            .header(CONTENT_TYPE, "application/octet-stream")?
            .header(CONTENT_LENGTH, &size.to_string())?;
        call.body = Some(body);
        let answer = self.repository.wire().send(host, call).await?;
        if !answer.status().is_success() {
            return Err(answer.problem(true).await);
        }
        verify(&answer, &self.desc.digest)
    }

    fn body(&self, offset: u64, size: u64) -> MakeBody {
        let (source, watch) = (self.source.clone(), self.watch.clone());
        Arc::new(move || {
            let (source, watch) = (source.clone(), watch.clone());
            let sent = AtomicU64::new(offset);
            let open = async move {
                let reader = source.open(offset).await?;
                Ok::<_, io::Error>(ReaderStream::with_capacity(reader.take(size), READ_SIZE))
            };
            Body::wrap_stream(stream::once(open).try_flatten().inspect_ok(move |chunk: &Bytes| {
                let position = sent.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
                if let Some(watch) = &watch {
                    watch(position);
                }
            }))
        })
    }
}

/// Where an upload goes on, and the least size of its pieces.
fn location(answer: &Answer) -> Result<Begun, Problem> {
    let text = answer.header(LOCATION).ok_or_else(|| protocol(&shown(&answer.url), "no Location"))?;
    let url = answer
        .url
        .join(text)
        .ok()
        .filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host())
        .ok_or_else(|| protocol(&shown(&answer.url), format!("Location {text:?}")))?;
    let least = answer.header("oci-chunk-min-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    Ok(Begun::At(url, least))
}
