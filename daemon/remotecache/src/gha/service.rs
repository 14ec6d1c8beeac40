//! The cache service: entries by name, found by how their names begin, and filled
//! once.
//!
//! The first version takes the bytes itself; the second only hands out signed
//! addresses at Azure's blob storage.

use std::time::Duration;

use base::secret::Secret;
use base::{Digest, Failure, Kind};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use registry::Downloads;
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use store::Pin;

use crate::Error;
use crate::azblob::{self, blocks};
use crate::web::{self, Headers, MAX_ANSWER, PARTS_AT_ONCE, Part, Patience, Payload, Refusal, Request, Web};

/// As often a request is tried that fails, and the longest pause between two tries.
const TRIES: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_secs(90);
/// What distinguishes entries of builds from those of others.
const VERSION: &str = "|go-actionscache-1.0";

/// The service, spoken to with a token.
pub(super) struct Service {
    /// Without a slash at its end.
    url: String,
    second: bool,
    token: Secret,
    web: Web,
    /// To addresses that were handed out.
    storage: Web,
}

/// Something that is there.
pub(super) struct Entry {
    pub(super) key: String,
    url: Url,
}

/// A place for something new.
pub(super) enum Reserved {
    First(i64),
    Second(String, Url),
}

/// What a place is filled with.
pub(super) enum Content<'a> {
    Layer(&'a Pin),
    Bytes(Bytes),
}

fn version() -> String {
    Digest::of(VERSION).hex().to_owned()
}

fn address(text: &str) -> Result<Url, Failure> {
    let invalid = |reason: String| Error::Document { what: "address from the cache service", reason };
    let url: Url = text.parse().map_err(|e: <Url as std::str::FromStr>::Err| invalid(e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid("not an address of HTTP".to_owned()).into());
    }
    Ok(url)
}

fn is_there(refusal: &Refusal) -> bool {
    let says = |text: &str| {
        let text = text.to_lowercase();
        ["alreadyexists", "already exists", "already_exists"].iter().any(|words| text.contains(words))
    };
    refusal.status == StatusCode::CONFLICT || says(&refusal.code) || says(&refusal.message)
}

impl Service {
    pub(super) fn new(
        url: &Url,
        second: bool,
        token: Secret,
        timeout: Duration,
        downloads: Downloads,
    ) -> Self {
        let patience = Patience { tries: TRIES, longest: LONGEST_PAUSE, limited: Some(timeout) };
        Self {
            url: url.as_str().trim_end_matches('/').to_owned(),
            second,
            token,
            web: Web::new(downloads.clone(), patience),
            storage: Web::new(downloads, azblob::PATIENCE),
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        payload: Payload,
        more: Headers,
        once: bool,
    ) -> Result<Response, Failure> {
        let below = match self.second {
            true => "twirp/github.actions.results.api.v1.CacheService",
            false => "_apis/artifactcache",
        };
        let url = address(&format!("{}/{below}/{path}", self.url))?;
        let request = Request { method, url: &url, payload: &payload, once };
        let headers = || {
            let mut headers = vec![("authorization", format!("Bearer {}", self.token.expose()))];
            if !self.second {
                headers.push(("accept", "application/json;api-version=6.0-preview.1".to_owned()));
            }
            headers.extend_from_slice(&more);
            headers
        };
        let answer = web::success(self.web.send(&request, headers).await?).await;
        answer.map_err(|e| match is_there(&e) {
            true => Failure::new(Kind::AlreadyExists, e.to_string()),
            false => e.into(),
        })
    }

    /// Sends a document. The answer may be none.
    async fn post(&self, path: &str, what: &serde_json::Value, once: bool) -> Result<Vec<u8>, Failure> {
        let payload = Payload::Bytes(what.to_string().into());
        let json = vec![("content-type", "application/json".to_owned())];
        web::read(self.call(Method::POST, path, payload, json, once).await?, MAX_ANSWER).await
    }

    /// The newest entry whose name begins with `key`.
    ///
    /// # Errors
    /// When the service does not say.
    pub(super) async fn find(&self, key: &str) -> Result<Option<Entry>, Failure> {
        if self.second {
            #[derive(Deserialize)]
            struct Found {
                #[serde(default)]
                ok: bool,
                #[serde(default)]
                signed_download_url: String,
                #[serde(default)]
                matched_key: String,
            }
            let what = json!({"key": key, "restore_keys": [key], "version": version()});
            let found: Found = parse(&self.post("GetCacheEntryDownloadURL", &what, false).await?)?;
            return match found.ok {
                true => Ok(Some(Entry { key: found.matched_key, url: address(&found.signed_download_url)? })),
                false => Ok(None),
            };
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Found {
            #[serde(default)]
            cache_key: String,
            #[serde(default)]
            archive_location: String,
        }
        let path = format!("cache?keys={}&version={}", web::encode(key, ""), version());
        let answer = self.call(Method::GET, &path, Payload::Nothing, Headers::new(), false).await?;
        let bytes = web::read(answer, MAX_ANSWER).await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let found: Found = parse(&bytes)?;
        if found.cache_key.is_empty() {
            return Ok(None);
        }
        Ok(Some(Entry { key: found.cache_key, url: address(&found.archive_location)? }))
    }

    /// The bytes of an entry from `offset` on.
    ///
    /// # Errors
    /// When they cannot be had.
    pub(super) async fn get(&self, entry: &Entry, offset: u64) -> Result<Response, Failure> {
        let request =
            Request { method: Method::GET, url: &entry.url, payload: &Payload::Nothing, once: false };
        Ok(web::success(self.storage.send(&request, || web::range(offset)).await?).await?)
    }

    /// Reserves a name.
    ///
    /// # Errors
    /// Of the kind `AlreadyExists` when somebody has it.
    pub(super) async fn reserve(&self, key: &str) -> Result<Reserved, Failure> {
        let failed = || Failure::new(Kind::Unknown, format!("failed to reserve cache {key}"));
        let what = json!({"key": key, "version": version()});
        if self.second {
            #[derive(Deserialize)]
            struct Made {
                #[serde(default)]
                ok: bool,
                #[serde(default)]
                signed_upload_url: String,
            }
            let made: Made = parse(&self.post("CreateCacheEntry", &what, true).await?)?;
            if !made.ok {
                return Err(failed());
            }
            return Ok(Reserved::Second(key.to_owned(), address(&made.signed_upload_url)?));
        }
        #[derive(Deserialize)]
        struct Made {
            // Go does not mind the case.
            #[serde(default, rename = "cacheId", alias = "cacheID")]
            id: i64,
        }
        let made: Made = parse(&self.post("caches", &what, true).await?)?;
        if made.id == 0 { Err(failed()) } else { Ok(Reserved::First(made.id)) }
    }

    /// Fills a place, after which the entry is there.
    ///
    /// # Errors
    /// When the service does not take it.
    pub(super) async fn fill(&self, place: Reserved, content: Content<'_>) -> Result<(), Failure> {
        let size = match &content {
            Content::Layer(pin) => pin.size(),
            Content::Bytes(bytes) => bytes.len() as u64,
        };
        match place {
            Reserved::First(id) => {
                let path = format!("caches/{id}");
                let pieces: Vec<(u64, Payload)> = match content {
                    Content::Bytes(bytes) => vec![(0, Payload::Bytes(bytes))],
                    Content::Layer(pin) => {
                        let parts = Part::of(pin, u64::MAX).into_iter();
                        parts.map(|part| (part.offset, Payload::Part(part))).collect()
                    }
                };
                let work: Vec<_> = pieces
                    .into_iter()
                    .map(|(offset, payload)| {
                        let end = (offset + payload.len()).saturating_sub(1);
                        let headers = vec![
                            ("content-type", "application/octet-stream".to_owned()),
                            ("content-range", format!("bytes {offset}-{end}/*")),
                        ];
                        self.call(Method::PATCH, &path, payload, headers, false)
                    })
                    .collect();
                stream::iter(work).buffer_unordered(PARTS_AT_ONCE).try_collect::<Vec<Response>>().await?;
                let done = self.post(&path, &json!({"size": size}), true).await;
                done.map(drop).map_err(|e| e.context(format!("error committing cache {id}")))
            }
            Reserved::Second(key, url) => {
                let put = |query: Option<String>, payload: Payload, headers: Headers| {
                    let mut url = url.clone();
                    if let Some(query) = query {
                        // The address is signed by the rest of its query.
                        let signed = url.query().map(|signed| format!("{signed}&{query}"));
                        url.set_query(Some(&signed.unwrap_or(query)));
                    }
                    async move {
                        let request =
                            Request { method: Method::PUT, url: &url, payload: &payload, once: false };
                        self.storage.send(&request, || headers.clone()).await
                    }
                };
                match content {
                    Content::Layer(pin) => blocks::send(pin, Headers::new(), put).await??,
                    Content::Bytes(bytes) => {
                        let (name, kind) = blocks::BLOCK_BLOB;
                        let answer = put(None, Payload::Bytes(bytes), vec![(name, kind.to_owned())]).await?;
                        web::success(answer).await?;
                    }
                }
                #[derive(Deserialize)]
                struct Done {
                    #[serde(default)]
                    ok: bool,
                }
                let what = json!({"key": key, "size_bytes": size, "version": version()});
                let done: Done = parse(&self.post("FinalizeCacheEntryUpload", &what, true).await?)?;
                if done.ok {
                    Ok(())
                } else {
                    Err(Failure::new(Kind::Unknown, format!("failed to commit cache {key}")))
                }
            }
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::Document { what: "answer of the cache service", reason: e.to_string() })
}
