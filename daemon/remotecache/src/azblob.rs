//! `azblob`: caches in Azure's blob storage.
//!
//! `blocks` sends layers, also where an address is signed and nothing else is
//! needed; `identity` finds out who the daemon is where no key is given.

pub(crate) mod blocks;
mod identity;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::secret::Secret;
use base::{Descriptor, Digest, Failure, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::try_join_all;
use refs::BlobSource;
use registry::Downloads;
use reqwest::{Method, Response, StatusCode, Url};
use store::Pin;

use crate::Error;
use crate::objects::{Cloud, MAX_CONFIG, Objects};
use crate::options::{Attrs, Env, names, text};
use crate::web::{self, Headers, Patience, Payload, Request, Web, encode, mac};
use blocks::BLOCK_BLOB;
use identity::Identity;

/// The version of the service that is spoken.
const VERSION: &str = "2021-12-02";
/// As often a request is tried, and the longest pause between two tries, as in
/// Azure's own SDK.
pub(crate) const PATIENCE: Patience = Patience { tries: 4, longest: Duration::from_secs(60), limited: None };
/// Layers under way at once.
const AT_ONCE: usize = 4;

/// Which cache.
#[derive(Clone)]
pub(crate) struct Options {
    url: Url,
    account: String,
    container: String,
    prefix: String,
    manifests: String,
    blobs: String,
    names: Vec<String>,
    key: Option<Secret>,
    env: Env,
}

impl Options {
    /// # Errors
    /// When an attribute is missing or makes no sense.
    pub(crate) fn new(attrs: &Attrs, env: Env) -> Result<Self, Failure> {
        Self::read(attrs, env).map_err(|e| Failure::from(e).context("failed to create azblob config"))
    }

    fn read(attrs: &Attrs, env: Env) -> Result<Self, Error> {
        let given = |key: &str, variable: &str| {
            let variable = format!("BUILDKIT_AZURE_STORAGE_{variable}");
            attrs.get(key).map(String::as_str).or_else(|| env.get(&variable)).map(str::to_owned)
        };
        let address = given("account_url", "ACCOUNT_URL").ok_or_else(|| {
            Error::attribute(
                "either ${BUILDKIT_AZURE_STORAGE_ACCOUNT_URL} or account_url attribute is required for azblob cache",
            )
        })?;
        let invalid =
            || Error::attribute(format!("azure storage account url {address:?} is not a valid url"));
        let url: Url = address.parse().map_err(|_| invalid())?;
        let host = url.host_str().unwrap_or_default();
        if !matches!(url.scheme(), "http" | "https") || host.is_empty() {
            return Err(invalid());
        }
        let first = || host.split('.').next().unwrap_or_default().to_owned();
        let account = given("account_name", "ACCOUNT_NAME").unwrap_or_else(first);
        if account.is_empty() {
            return Err(Error::attribute("account_name is empty for azblob cache"));
        }
        let or = |key: &str, default: &str| attrs.get(key).map_or(default, String::as_str).to_owned();
        Ok(Self {
            account,
            container: given("container", "CONTAINER").unwrap_or_else(|| "buildkit-cache".to_owned()),
            prefix: given("prefix", "PREFIX").unwrap_or_default(),
            manifests: or("manifests_prefix", "manifests"),
            blobs: or("blobs_prefix", "blobs"),
            names: names(attrs),
            key: text(attrs, "secret_access_key").map(Secret::new),
            url,
            env,
        })
    }
}

#[async_trait]
impl Cloud for Options {
    fn title(&self) -> &'static str {
        "exporting cache to Azure Blob Storage"
    }

    async fn open(&self, downloads: Downloads) -> Result<Arc<dyn Objects>, Failure> {
        let access = match &self.key {
            Some(key) => {
                let key = STANDARD.decode(key.expose());
                let key = key.map_err(|e| {
                    Error::attribute(format!("failed to create shared key: decode account key: {e}"))
                })?;
                Access::Key(key)
            }
            None => Access::Identity(Identity::new(self.env.clone(), downloads.clone())),
        };
        let container = Container { options: self.clone(), access, web: Web::new(downloads, PATIENCE) };
        container.make().await.map_err(|e| e.context("failed to create container client"))?;
        Ok(Arc::new(container))
    }
}

enum Access {
    /// The account's.
    Key(Vec<u8>),
    Identity(Identity),
}

/// A container, opened.
struct Container {
    options: Options,
    access: Access,
    web: Web,
}

/// Joins parts of a name with single slashes; empty parts do not count.
fn join(parts: [&str; 3]) -> String {
    let rooted = parts.iter().find(|part| !part.is_empty()).is_some_and(|part| part.starts_with('/'));
    let mut clean: Vec<&str> = Vec::new();
    for part in parts.iter().flat_map(|part| part.split('/')) {
        match part {
            "" | "." => {}
            ".." if clean.last().is_some_and(|last| *last != "..") => _ = clean.pop(),
            ".." if rooted => {}
            part => clean.push(part),
        }
    }
    format!("{}{}", if rooted { "/" } else { "" }, clean.join("/"))
}

/// The text that is signed with the account's key.
fn signed_text(method: &Method, url: &Url, account: &str, length: u64, headers: &Headers) -> String {
    let of = |name: &str| headers.iter().find(|(n, _)| *n == name).map_or("", |(_, value)| value.as_str());
    let length = if length == 0 { String::new() } else { length.to_string() };
    let mut own: Vec<_> = headers.iter().filter(|(name, _)| name.starts_with("x-ms-")).collect();
    own.sort();
    let own: String = own.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let mut resource = format!("/{account}{}", url.path());
    let mut query: Vec<_> = url.query_pairs().collect();
    query.sort();
    for (name, value) in query {
        resource.push_str(&format!("\n{}:{value}", name.to_lowercase()));
    }
    // Method, encoding, language, length, MD5, type, date, the four conditions, range.
    format!(
        "{method}\n\n\n{length}\n\n{}\n\n\n\n{}\n\n{}\n{own}{resource}",
        of("content-type"),
        of("if-none-match"),
        of("range"),
    )
}

impl Container {
    fn layer(&self, digest: &Digest) -> String {
        join([&self.options.prefix, &self.options.blobs, digest.as_str()])
    }

    fn manifest(&self, name: &str) -> String {
        join([&self.options.prefix, &self.options.manifests, name])
    }

    /// Makes the container if it is not there.
    async fn make(&self) -> Result<(), Failure> {
        let name = &self.options.container;
        let query = Some("restype=container");
        let found = self.send(Method::GET, "", query, &Payload::Nothing, Headers::new()).await?;
        if found.status() == StatusCode::NOT_FOUND {
            let made = self.send(Method::PUT, "", query, &Payload::Nothing, Headers::new()).await?;
            // Somebody else may have been faster.
            if made.status() != StatusCode::CONFLICT {
                let what = format!("failed to create cache container {name}");
                web::success(made).await.map_err(|e| Failure::from(e).context(what))?;
            }
            return Ok(());
        }
        let what = format!("failed to get properties of cache container {name}");
        web::success(found).await.map_err(|e| Failure::from(e).context(what))?;
        Ok(())
    }

    /// Sends a request for the blob `key`, or for the container if that is empty.
    async fn send(
        &self,
        method: Method,
        key: &str,
        query: Option<&str>,
        payload: &Payload,
        headers: Headers,
    ) -> Result<Response, Failure> {
        let options = &self.options;
        let mut url = options.url.clone();
        let mut path = format!("{}/{}", url.path().trim_end_matches('/'), encode(&options.container, ""));
        if !key.is_empty() {
            // A name may begin with a slash, which must not be taken for one of the path.
            path.push_str(&format!("/{}", encode(key, "")));
        }
        url.set_path(&path);
        url.set_query(query);
        let token = match &self.access {
            Access::Key(_) => String::new(),
            Access::Identity(identity) => identity.token().await?,
        };
        let request = Request { method, url: &url, payload, once: false };
        let sign = || {
            let mut headers = headers.clone();
            headers.push(("x-ms-date", Timestamp::now().format_http()));
            headers.push(("x-ms-version", VERSION.to_owned()));
            let authorization = match &self.access {
                Access::Key(key) => {
                    let text = signed_text(&request.method, &url, &options.account, payload.len(), &headers);
                    format!("SharedKey {}:{}", options.account, STANDARD.encode(mac(key, &text)))
                }
                Access::Identity(_) => format!("Bearer {token}"),
            };
            headers.push(("authorization", authorization));
            headers
        };
        self.web.send(&request, sign).await
    }

    async fn get(&self, key: &str, offset: u64) -> Result<Response, Failure> {
        self.send(Method::GET, key, None, &Payload::Nothing, web::range(offset)).await
    }

    async fn description(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        match web::success(self.get(&self.manifest(name), 0).await?).await {
            Ok(answer) => web::read(answer, MAX_CONFIG).await.map(Some),
            Err(e) if e.status == StatusCode::NOT_FOUND => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

#[async_trait]
impl Objects for Container {
    async fn has(&self, layer: &Digest) -> Result<bool, Failure> {
        let key = self.layer(layer);
        let answer = self.send(Method::HEAD, &key, None, &Payload::Nothing, Headers::new()).await?;
        match web::success(answer).await {
            Ok(_) => Ok(true),
            Err(e) if e.status == StatusCode::NOT_FOUND => Ok(false),
            Err(e) => Err(Failure::from(e).context(format!("failed to check blob {key} existence"))),
        }
    }

    async fn put(&self, layer: &Digest, bytes: &Pin) -> Result<(), Failure> {
        let key = self.layer(layer);
        let key = &key;
        // The same name is the same bytes: what is there stays.
        let unless_there = vec![("if-none-match", "*".to_owned())];
        let sent = blocks::send(bytes, unless_there, |query, payload, headers| async move {
            self.send(Method::PUT, key, query.as_deref(), &payload, headers).await
        });
        match sent.await? {
            Err(e) if e.code == "BlobAlreadyExists" => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    async fn describe(&self, config: Bytes) -> Result<(), Failure> {
        for name in &self.options.names {
            let headers = vec![(BLOCK_BLOB.0, BLOCK_BLOB.1.to_owned())];
            let payload = Payload::Bytes(config.clone());
            let answer = self.send(Method::PUT, &self.manifest(name), None, &payload, headers).await?;
            web::success(answer).await.map_err(|e| Failure::from(e).context(name))?;
        }
        Ok(())
    }

    async fn descriptions(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let all = try_join_all(self.options.names.iter().map(|name| async move {
            let found = self.description(name).await;
            found.map_err(|e| e.context(format!("failed to load cache manifest {name}")))
        }));
        Ok(all.await?.into_iter().flatten().collect())
    }

    fn at_once(&self) -> usize {
        AT_ONCE
    }
}

#[async_trait]
impl BlobSource for Container {
    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<refs::Bytes, Failure> {
        let answer = web::success(self.get(&self.layer(&descriptor.digest), offset).await?).await?;
        web::stream(answer, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)], env: Env) -> Result<Options, Failure> {
        Options::new(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), env)
    }

    #[test]
    fn the_signed_text_has_everything_in_its_place() {
        let url: Url = "http://h/acc/c?restype=container&comp=list&blockid=YQ%3D%3D".parse().unwrap();
        let headers = vec![
            ("x-ms-version", "v".to_owned()),
            ("if-none-match", "*".to_owned()),
            ("range", "bytes=1-".to_owned()),
            ("x-ms-date", "d".to_owned()),
        ];
        assert_eq!(
            signed_text(&Method::PUT, &url, "acc", 5, &headers),
            "PUT\n\n\n5\n\n\n\n\n\n*\n\nbytes=1-\nx-ms-date:d\nx-ms-version:v\n/acc/acc/c\n\
             blockid:YQ==\ncomp:list\nrestype:container"
        );
    }

    #[test]
    fn what_is_not_said_follows_from_the_address() {
        let url = ("account_url", "https://acc.blob.core.windows.net");
        let found = options(&[url, ("secret_access_key", "aGk=")], Env::default()).unwrap();
        assert_eq!((found.account.as_str(), found.container.as_str()), ("acc", "buildkit-cache"));
        let env = Env::from([
            ("BUILDKIT_AZURE_STORAGE_ACCOUNT_URL", "http://localhost:1/x"),
            ("BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME", "x"),
            ("BUILDKIT_AZURE_STORAGE_CONTAINER", "c"),
            ("BUILDKIT_AZURE_STORAGE_PREFIX", "p"),
        ]);
        let found = options(&[("container", "d")], env).unwrap();
        assert_eq!((found.account.as_str(), found.container.as_str()), ("x", "d"));
        assert_eq!(found.prefix, "p");
        for (attrs, expected) in [
            (vec![], "either ${BUILDKIT_AZURE_STORAGE_ACCOUNT_URL} or account_url"),
            (vec![("account_url", "nothing")], "not a valid url"),
            (vec![url, ("account_name", "")], "account_name is empty"),
        ] {
            let said = options(&attrs, Env::default()).err().unwrap().to_string();
            assert!(
                said.starts_with("failed to create azblob config: ") && said.contains(expected),
                "{said}"
            );
        }
    }

    #[test]
    fn names_are_joined_as_paths() {
        assert_eq!(join(["", "blobs", "sha256:x"]), "blobs/sha256:x");
        assert_eq!(join(["a/", "/b//c/", "n"]), "a/b/c/n");
        assert_eq!(join(["/a", "./b", "../n"]), "/a/n");
        assert_eq!(join(["", "/a", "../../n"]), "/n");
    }
}
