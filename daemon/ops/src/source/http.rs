//! `http://` and `https://`: one file by URL.
//!
//! What the server says of a file (its ETag) is noted with the file, so that the
//! next build only asks whether it is still the same. The key is the digest of
//! the body, with name, permissions and date: where it came from does not count.
//!
//! `http://buildkit-session/…` is not a host: it is a file that the client hands
//! over, such as a build context on its standard input.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use async_trait::async_trait;
use base::gotext::quote;
use base::{Digest, Failure, Kind, Timestamp, gojson};
use futures_util::{StreamExt as _, stream};
use proto::pb;
use refs::Ref;
use registry::{Downloads, Registries};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_ENCODING, ETAG, HeaderMap,
    HeaderName, HeaderValue, IF_NONE_MATCH, LAST_MODIFIED, LOCATION, USER_AGENT,
};
use reqwest::{Method, Response, StatusCode, Url};
use ring::digest::{Context, SHA256, SHA384, SHA512};
use serde::Serialize;
use solver::{CacheMap, Operation};
use tokio::sync::OnceCell;

use super::disposition;
use super::file::{self, NewFile, Pieces, Shape, safe_name};
use super::sign::pgp;
use super::{Attrs, redacted};
use crate::used::{Material, Used};
use crate::{Behalf, Cx, Error, Output, Worker};

/// The host that stands for the client.
const SESSION: &str = "buildkit-session";
/// Where a result's ETag, digest and date are noted.
const NOTED_ETAG: &str = "etag";
const NOTED_DIGEST: &str = "http.checksum";
const NOTED_DATE: &str = "http.modtime";
/// The longest suffix of a [`Checksum`], in bytes.
const MAX_SUFFIX: usize = 4 * 1024;
/// The largest file whose signature is checked, in bytes: it is held in memory.
const MAX_SIGNED: u64 = 512 << 20;
/// Secrets that are looked for by the name of the host.
const HEADER_SECRET: &str = "HTTP_AUTH_HEADER_";
const TOKEN_SECRET: &str = "HTTP_AUTH_TOKEN_";

/// The ways out to files by URL.
pub struct Http {
    registries: Registries,
    downloads: OnceCell<Downloads>,
}

impl Http {
    /// With the certificates and the name that `registries` use.
    pub fn new(registries: Registries) -> Self {
        Self { registries, downloads: OnceCell::new() }
    }

    async fn downloads(&self) -> Result<&Downloads, Failure> {
        self.downloads.get_or_try_init(|| self.registries.downloads()).await
    }
}

/// A request header of the build's own.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Header {
    name: &'static str,
    value: String,
}

/// Which file is wanted, and how it is to look.
#[derive(Debug, Clone)]
pub struct Wanted {
    identifier: String,
    url: Url,
    checksum: Option<Digest>,
    shape: Shape,
    secret: String,
    /// By name.
    headers: Vec<Header>,
    /// A detached signature, and the keys one of which has to have made it.
    signature: Option<(String, String)>,
}

/// What a URL turned out to be.
#[derive(Debug, Clone)]
pub struct Found {
    /// Of the body.
    pub digest: Digest,
    /// What it is called.
    pub filename: String,
    /// When it last changed, as the server says.
    pub modified: Option<Timestamp>,
    /// The file. None when the digest was known beforehand.
    pub(crate) tree: Option<Ref>,
}

/// A digest over a body and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Checksum {
    Sha256,
    Sha384,
    Sha512,
}

/// What the key is made of; the names are those of the reference.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key<'a> {
    filename: &'a str,
    perm: i64,
    #[serde(rename = "UID")]
    uid: u32,
    #[serde(rename = "GID")]
    gid: u32,
    checksum: &'a Digest,
    #[serde(skip_serializing_if = "String::is_empty")]
    last_mod_time: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    auth_header_secret: &'a str,
    #[serde(skip_serializing_if = "<[Header]>::is_empty")]
    header: &'a [Header],
}

/// A body that arrives, and what is said of it.
struct Body {
    pieces: Pieces,
    filename: String,
    etag: Option<String>,
    /// As it was written.
    date: Option<String>,
    gzip: bool,
}

impl Wanted {
    /// Reads a source operation.
    ///
    /// # Errors
    /// When the URL or an attribute makes no sense.
    pub fn parse(op: &pb::SourceOp) -> Result<Self, Failure> {
        let attrs = Attrs::new(op);
        let url = Url::parse(&op.identifier)
            .map_err(|e| Error::Url { url: redacted(&op.identifier), reason: e.to_string() })?;
        let keys = attrs.get(llb::attr::HTTP_SIG_PUBKEY).unwrap_or_default();
        let signature = attrs.get(llb::attr::HTTP_SIG_SIGNATURE).unwrap_or_default();
        if keys.is_empty() != signature.is_empty() {
            let text = "http signature verification requires both pubkey and signature";
            return Err(Failure::invalid(text));
        }
        let mut headers = Vec::new();
        for (name, canonical) in [("accept", "Accept"), ("user-agent", "User-Agent")] {
            let key = format!("{}{name}", llb::attr::HTTP_HEADER_PREFIX);
            let value = attrs.parse(&key, |text| match HeaderValue::from_str(text) {
                Ok(_) => Ok(text.to_owned()),
                Err(e) => Err(e.to_string()),
            })?;
            headers.extend(value.map(|value| Header { name: canonical, value }));
        }
        Ok(Self {
            identifier: op.identifier.clone(),
            url,
            checksum: attrs
                .parse(llb::attr::HTTP_CHECKSUM, |text| text.parse::<Digest>().map_err(|e| e.to_string()))?,
            shape: Shape::parse(&attrs)?,
            secret: attrs.get(llb::attr::HTTP_AUTH_HEADER_SECRET).unwrap_or_default().to_owned(),
            headers,
            signature: (!keys.is_empty()).then(|| (signature.to_owned(), keys.to_owned())),
        })
    }

    /// Under what its files are noted: everything that makes them what they are,
    /// except what is in them.
    fn index(&self) -> String {
        let parts = (&self.identifier, &self.shape.filename, self.shape.perm);
        let owner = (self.shape.owner.uid, self.shape.owner.gid);
        let text = serde_json::json!([parts, owner, &self.secret, &self.headers]);
        format!("http:{}", Digest::of(text.to_string()))
    }

    fn key(&self, found: &Found) -> Result<String, Failure> {
        let date = found.modified.map(Timestamp::format_http);
        let key = Key {
            filename: &found.filename,
            perm: self.shape.perm,
            uid: self.shape.owner.uid,
            gid: self.shape.owner.gid,
            checksum: &found.digest,
            last_mod_time: date.unwrap_or_default(),
            auth_header_secret: &self.secret,
            header: &self.headers,
        };
        let json = gojson::to_vec(&key).map_err(|e| Failure::internal(e.to_string()))?;
        Ok(Digest::of(json).to_string())
    }

    /// What the file is called: as the build says, as the server says, or as the URL ends.
    fn filename(&self, headers: &HeaderMap) -> String {
        if !self.shape.filename.is_empty() {
            return safe_name(&self.shape.filename);
        }
        let said = headers.get(CONTENT_DISPOSITION).and_then(|value| value.to_str().ok());
        if let Some(name) = said.and_then(disposition::filename).filter(|name| !name.ends_with('/')) {
            return safe_name(&name);
        }
        let path = base::gourl::Url::parse(&self.identifier).map(|url| url.path).unwrap_or_default();
        match base::gopath::base(&path) {
            "." | "/" => safe_name(""),
            name => safe_name(name),
        }
    }

    fn check(&self, digest: &Digest) -> Result<(), Error> {
        match &self.checksum {
            Some(expected) if expected != digest => Err(Error::DigestMismatch {
                url: redacted(&self.identifier),
                actual: digest.clone(),
                expected: expected.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn is_upload(&self) -> bool {
        self.url.host_str() == Some(SESSION)
    }

    /// What the URL means in the builds of `behalf`. Of a digest that is known
    /// beforehand nobody is asked.
    ///
    /// # Errors
    /// When the server does not answer, or not with a file.
    pub async fn find(&self, worker: &Worker, behalf: &Behalf) -> Result<Found, Failure> {
        match (&self.checksum, &self.signature) {
            (Some(digest), None) => Ok(Found {
                digest: digest.clone(),
                filename: self.filename(&HeaderMap::new()),
                modified: None,
                tree: None,
            }),
            _ => self.resolve(worker, behalf).await,
        }
    }

    /// As [`Self::find`], with the digest of body and `suffix`.
    ///
    /// # Errors
    /// Those of [`Self::find`]; a suffix that is too long.
    pub async fn find_checksum(
        &self,
        worker: &Worker,
        behalf: &Behalf,
        algorithm: Checksum,
        suffix: &[u8],
    ) -> Result<(Found, String), Failure> {
        if suffix.len() > MAX_SUFFIX {
            return Err(Error::Suffix { limit: MAX_SUFFIX }.into());
        }
        let found = self.resolve(worker, behalf).await?;
        let (name, algorithm) = match algorithm {
            Checksum::Sha256 => ("sha256", &SHA256),
            Checksum::Sha384 => ("sha384", &SHA384),
            Checksum::Sha512 => ("sha512", &SHA512),
        };
        let suffix = suffix.to_owned();
        let digest = self.read(&found, behalf, move |mut file| {
            let mut context = Context::new(algorithm);
            super::digest_all(&mut file, &mut context).map_err(|e| sys::Error::new("read", "download", e))?;
            context.update(&suffix);
            Ok(format!("{name}:{}", base::digest::hex(context.finish().as_ref())))
        });
        let digest = digest.await?;
        Ok((found, digest))
    }

    async fn read<T: Send + 'static>(
        &self,
        found: &Found,
        behalf: &Behalf,
        read: impl FnOnce(File) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let tree = found.tree.as_ref().ok_or_else(|| Failure::internal("a resolved URL has no file"))?;
        behalf.scope.run(file::read(tree, &found.filename, read)).await
    }

    async fn check_signature(&self, found: &Found, behalf: &Behalf) -> Result<(), Failure> {
        let Some((signature, keys)) = self.signature.clone() else { return Ok(()) };
        let url = redacted(&self.identifier);
        let verified = self.read(found, behalf, move |file| {
            let mut data = Vec::new();
            let read = file.take(MAX_SIGNED + 1).read_to_end(&mut data);
            let size = read.map_err(|e| sys::Error::new("read", "download", e))?;
            if size as u64 > MAX_SIGNED {
                return Err(Error::Signed { url, limit: MAX_SIGNED }.into());
            }
            Ok(pgp::verify(data, &signature, &keys, false)?)
        });
        verified.await.map_err(|e| e.context("failed to verify pgp signature"))
    }

    async fn resolve(&self, worker: &Worker, behalf: &Behalf) -> Result<Found, Failure> {
        let index = self.index();
        let ask = behalf.scope.run(Box::pin(self.ask(worker, &index, behalf)));
        let found = behalf.once(|resolved| &resolved.http, &index, ask).await?;
        self.check(&found.digest)?;
        self.check_signature(&found, behalf).await?;
        Ok(found)
    }

    /// Asks the server, if need be only whether what is known still holds.
    async fn ask(&self, worker: &Worker, index: &str, behalf: &Behalf) -> Result<Found, Failure> {
        if self.is_upload() {
            return self.download(worker, index, behalf).await;
        }
        let known = Known::of(worker, index);
        if known.0.is_empty() {
            return self.download(worker, index, behalf).await;
        }
        // Some servers send ETags and take no notice of those they are sent, so
        // that a look comes first.
        if let Ok(response) = self.send(worker, Method::HEAD, Some(&known), behalf).await
            && matches!(response.status(), StatusCode::OK | StatusCode::NOT_MODIFIED)
            && let Some(found) = known.recognise(&response, self.filename(response.headers()))
        {
            return Ok(found);
        }
        let response = self.send(worker, Method::GET, Some(&known), behalf).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            let filename = self.filename(response.headers());
            return known.recognise(&response, filename).ok_or_else(|| self.unknown_etag());
        }
        let body = self.body(response, behalf)?;
        self.save(worker, index, body, behalf).await
    }

    /// The server says that something has not changed which we do not have.
    fn unknown_etag(&self) -> Failure {
        Error::Url { url: redacted(&self.identifier), reason: "invalid not-modified ETag".to_owned() }.into()
    }

    async fn download(&self, worker: &Worker, index: &str, behalf: &Behalf) -> Result<Found, Failure> {
        let body = if self.is_upload() {
            self.upload(worker, behalf).await?
        } else {
            let response = self.send(worker, Method::GET, None, behalf).await?;
            if response.status() == StatusCode::NOT_MODIFIED {
                return Err(self.unknown_etag());
            }
            self.body(response, behalf)?
        };
        self.save(worker, index, body, behalf).await
    }

    async fn send(
        &self,
        worker: &Worker,
        method: Method,
        known: Option<&Known>,
        behalf: &Behalf,
    ) -> Result<Response, Failure> {
        let client = worker.http.downloads().await?.client(&self.url);
        // Servers may have another ETag for what they compress, so that both requests say the same.
        let mut request = client.request(method, self.url.clone()).header(ACCEPT_ENCODING, "gzip");
        for header in &self.headers {
            let name: HeaderName = if header.name == "Accept" { ACCEPT } else { USER_AGENT };
            request = request.header(name, &header.value);
        }
        if let Some(authorization) = self.authorization(worker, behalf).await? {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(known) = known {
            let etags: Vec<&str> = known.0.keys().map(String::as_str).collect();
            request = request.header(IF_NONE_MATCH, etags.join(", "));
        }
        let response = request.send().await.map_err(|e| self.failed(e))?;
        let status = response.status();
        // Redirects are followed below; what comes back leads where no request can.
        if matches!(status.as_u16(), 301..=303 | 307 | 308)
            && let Some(location) = response.headers().get(LOCATION)
        {
            let location = redacted(&String::from_utf8_lossy(location.as_bytes()));
            let (url, reason) =
                (redacted(&self.identifier), format!("redirect to {} cannot be followed", quote(&location)));
            return Err(Error::Url { url, reason }.into());
        }
        if status.is_success() || status.is_redirection() {
            Ok(response)
        } else {
            Err(Error::Status { url: redacted(&self.identifier), status: status.as_u16() }.into())
        }
    }

    /// A secret that the build names has to be there; those of the host may.
    async fn authorization(&self, worker: &Worker, behalf: &Behalf) -> Result<Option<HeaderValue>, Failure> {
        let sensitive = |text: Vec<u8>| {
            let mut value = HeaderValue::from_bytes(&text).map_err(|e| Failure::invalid(e.to_string()))?;
            value.set_sensitive(true);
            Ok::<_, Failure>(value)
        };
        let sessions = behalf.sessions();
        let secret = |name: String| {
            let sessions = &sessions;
            async move {
                let name = name.as_str();
                worker.ask(sessions, |caller| async move { Ok(caller.secret(name).await?) }).await
            }
        };
        if !self.secret.is_empty() {
            let context = format!("failed to retrieve HTTP auth secret {}", self.secret);
            let value = secret(self.secret.clone()).await.and_then(sensitive);
            return value.map(Some).map_err(|e| e.context(context));
        }
        let host = base::gourl::bare_host(self.url.host_str().unwrap_or_default());
        if sessions.is_empty() || host.is_empty() {
            return Ok(None);
        }
        if let Ok(token) = secret(format!("{TOKEN_SECRET}{host}")).await {
            return sensitive([b"Bearer ", token.as_slice()].concat()).map(Some);
        }
        match secret(format!("{HEADER_SECRET}{host}")).await {
            Ok(header) => sensitive(header).map(Some),
            Err(_) => Ok(None),
        }
    }

    fn failed(&self, error: reqwest::Error) -> Failure {
        let failure = Failure::other(&error.without_url()).of_kind(Kind::Unavailable);
        failure.context(format!("Get {}", base::gotext::quote(&redacted(&self.identifier))))
    }

    fn body(&self, response: Response, behalf: &Behalf) -> Result<Body, Failure> {
        let text = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let gzip = text(CONTENT_ENCODING).is_some_and(|e| e.eq_ignore_ascii_case("gzip"));
        let (etag, date) = (text(ETAG).as_deref().map(strong), text(LAST_MODIFIED));
        let filename = self.filename(response.headers());
        let counter =
            behalf.progress.counter(redacted(&self.identifier), response.content_length().unwrap_or(0));
        let this = self.clone();
        let pieces = response.bytes_stream().boxed();
        let pieces =
            stream::try_unfold((pieces, counter, this), |(mut pieces, mut counter, this)| async move {
                match pieces.next().await {
                    Some(Ok(piece)) => {
                        counter.add(piece.len() as u64);
                        Ok(Some((piece, (pieces, counter, this))))
                    }
                    Some(Err(e)) => Err(this.failed(e)),
                    None => {
                        counter.finish();
                        Ok(None)
                    }
                }
            });
        Ok(Body { pieces: pieces.boxed(), filename, etag, date, gzip })
    }

    /// What the client hands over, which it can do once.
    async fn upload(&self, worker: &Worker, behalf: &Behalf) -> Result<Body, Failure> {
        let path = self.url.path();
        let upload = worker
            .ask(&behalf.sessions(), |caller| async move { Ok(caller.pull(SESSION, path).await?) })
            .await?;
        let counter = behalf.progress.counter(self.identifier.clone(), 0);
        let pieces = stream::try_unfold((upload, counter), |(mut upload, mut counter)| async move {
            match upload.next().await? {
                Some(piece) => {
                    counter.add(piece.len() as u64);
                    Ok(Some((piece, (upload, counter))))
                }
                None => {
                    counter.finish();
                    Ok(None)
                }
            }
        });
        let filename = self.filename(&HeaderMap::new());
        Ok(Body { pieces: pieces.boxed(), filename, etag: None, date: None, gzip: false })
    }

    async fn save(
        &self,
        worker: &Worker,
        index: &str,
        body: Body,
        behalf: &Behalf,
    ) -> Result<Found, Failure> {
        let modified = body.date.as_deref().and_then(Timestamp::parse_http);
        let new = NewFile {
            description: format!("http url {}", redacted(&self.identifier)),
            name: &body.filename,
            shape: &self.shape,
            modified: modified.unwrap_or(Timestamp::EPOCH),
            gzip: body.gzip,
        };
        let (mutable, digest) = new.write(worker, body.pieces, behalf).await?;
        self.check(&digest)?;
        let tree = mutable.commit().await?;
        if let Some(etag) = &body.etag {
            tree.set_meta(NOTED_ETAG, etag.as_bytes())?;
            tree.set_meta(NOTED_DIGEST, digest.as_str().as_bytes())?;
            if let Some(date) = &body.date {
                tree.set_meta(NOTED_DATE, date.as_bytes())?;
            }
            tree.set_index(index)?;
        }
        Ok(Found { digest, filename: body.filename, modified, tree: Some(tree) })
    }

    /// The file: the one that was found, or as it is now.
    async fn tree(&self, worker: &Worker, found: &Found, behalf: &Behalf) -> Result<Ref, Failure> {
        let index = self.index();
        let known = || behalf.known(|resolved| &resolved.http, &index).filter(|k| k.digest == found.digest);
        if let Some(tree) = found.tree.clone().or_else(|| known()?.tree) {
            return Ok(tree);
        }
        let found = behalf.scope.run(Box::pin(self.download(worker, &index, behalf))).await?;
        found.tree.ok_or_else(|| Failure::internal("a download without a file"))
    }
}

/// Files of earlier builds that may still be what the server has, by ETag.
struct Known(BTreeMap<String, Found>);

impl Known {
    fn of(worker: &Worker, index: &str) -> Self {
        let text = |tree: &Ref, key| tree.get_meta(key).ok()?.and_then(|bytes| String::from_utf8(bytes).ok());
        let known = worker.refs.search(index).into_iter().filter_map(|id| {
            let tree = worker.refs.get(&id).ok()?;
            let etag = text(&tree, NOTED_ETAG).filter(|etag| HeaderValue::from_str(etag).is_ok())?;
            let digest = text(&tree, NOTED_DIGEST)?.parse().ok()?;
            let modified = text(&tree, NOTED_DATE).as_deref().and_then(Timestamp::parse_http);
            Some((etag, Found { digest, filename: String::new(), modified, tree: Some(tree) }))
        });
        Self(known.collect())
    }

    /// The file the server means, called `filename`.
    fn recognise(&self, response: &Response, filename: String) -> Option<Found> {
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(strong);
        let found = match (etag, response.status()) {
            (Some(etag), _) => self.0.get(&etag),
            // Said of the only one that was asked about.
            (None, StatusCode::NOT_MODIFIED) if self.0.len() == 1 => self.0.values().next(),
            (None, _) => None,
        };
        found.map(|found| Found { filename, ..found.clone() })
    }
}

/// An ETag without the mark that says it is weak.
fn strong(etag: &str) -> String {
    etag.strip_prefix("W/").unwrap_or(etag).to_owned()
}

/// A file by URL as a source.
pub(crate) struct HttpSource {
    worker: Arc<Worker>,
    wanted: Wanted,
    found: OnceCell<Found>,
}

impl HttpSource {
    pub(crate) fn new(worker: Arc<Worker>, op: &pb::SourceOp) -> Result<Self, Failure> {
        Ok(Self { worker, wanted: Wanted::parse(op)?, found: OnceCell::new() })
    }

    /// What it used. What the client handed over has no place it came from.
    pub(crate) fn used(&self) -> Used {
        if self.wanted.is_upload() {
            return Used { incomplete: true, ..Used::default() };
        }
        let url = &self.wanted.identifier;
        let material =
            self.found.get().map(|found| Material::Http { url: url.clone(), digest: found.digest.clone() });
        Used { materials: material.into_iter().collect(), ..Used::default() }
    }

    async fn found(&self, behalf: &Behalf) -> Result<&Found, Failure> {
        self.found.get_or_try_init(|| self.wanted.find(&self.worker, behalf)).await
    }
}

#[async_trait]
impl Operation<Output> for HttpSource {
    async fn cache_map(&self, _: usize, cx: &Cx) -> Result<CacheMap, Failure> {
        let key = self.wanted.key(self.found(&Behalf::of(cx)).await?)?;
        Ok(CacheMap { digest: super::key_digest(&key), deps: Vec::new(), last: true })
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, _: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let behalf = Behalf::of(cx);
        let found = self.found(&behalf).await?;
        let tree = self.wanted.tree(&self.worker, found, &behalf).await?;
        Ok(vec![Some(tree)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(url: &str, attrs: &[(&str, &str)]) -> Result<Wanted, Failure> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Wanted::parse(&pb::SourceOp { identifier: url.to_owned(), attrs })
    }

    #[test]
    fn keys_are_those_of_the_reference() {
        let found = Found {
            digest: Digest::of("content1"),
            filename: "foo".to_owned(),
            modified: Timestamp::parse_http("Sun, 06 Nov 1994 08:49:37 GMT"),
            tree: None,
        };
        let attrs = [("http.perm", "0741"), ("http.uid", "1000"), ("http.header.accept", "a/b")];
        let json = format!(
            "{{\"Filename\":\"foo\",\"Perm\":481,\"UID\":1000,\"GID\":0,\"Checksum\":\"{}\",\
             \"LastModTime\":\"Sun, 06 Nov 1994 08:49:37 GMT\",\
             \"Header\":[{{\"Name\":\"Accept\",\"Value\":\"a/b\"}}]}}",
            Digest::of("content1")
        );
        let key = wanted("http://h/foo", &attrs).unwrap().key(&found).unwrap();
        assert_eq!(key, Digest::of(json).to_string());
    }

    #[test]
    fn names_come_from_build_server_or_url() {
        let name = |url: &str, attrs: &[(&str, &str)], said: &'static str| {
            let mut headers = HeaderMap::new();
            if !said.is_empty() {
                headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static(said));
            }
            wanted(url, attrs).unwrap().filename(&headers)
        };
        assert_eq!(name("http://h/a/b%20c?x#y", &[], ""), "b c");
        assert_eq!(name("http://h/", &[], ""), "download");
        assert_eq!(name("http://h/a", &[("http.filename", "x")], "attachment; filename=y"), "x");
        assert_eq!(name("http://h/a", &[], "attachment; filename=\"my img.jpg\""), "my img.jpg");
        assert_eq!(name("http://h/a", &[], "attachment; filename=\"../../etc/passwd\""), "passwd");
        assert_eq!(name("http://h/a", &[], "attachment; filename=\"x/\""), "a");
        assert_eq!(name("http://h/%2e%2e", &[], ""), "download");
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for (url, attrs) in [
            ("http://h:x/", &[][..]),
            ("http://h/", &[("http.checksum", "sha256:1")]),
            ("http://h/", &[("http.perm", "08")]),
            ("http://h/", &[("http.uid", "-1")]),
            ("http://h/", &[("http.header.accept", "a\nb: c")]),
        ] {
            assert!(wanted(url, attrs).is_err(), "{url} {attrs:?}");
        }
    }
}
