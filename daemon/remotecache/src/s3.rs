//! `s3`: caches in buckets of Amazon S3 and of what speaks like it.
//!
//! `sign` signs requests, `login` finds what to sign them with.

mod login;
mod sign;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::gotext::{parse_bool, parse_duration};
use base::{Descriptor, Digest, Failure, Timestamp};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use refs::BlobSource;
use registry::Downloads;
use reqwest::{Method, Response, StatusCode, Url};
use store::Pin;

use crate::Error;
use crate::objects::{Cloud, MAX_CONFIG, Objects};
use crate::options::{Attrs, Env, names, text};
use crate::web::{self, Headers, MAX_ANSWER, PARTS_AT_ONCE, Part, Patience, Payload, Refusal, Request, Web};
use login::{Login, Logins};
use sign::Signing;

/// As often a request is tried, and the longest pause between two tries, as in
/// Amazon's own SDK.
const TRIES: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Parts of one object, at most.
const MAX_PARTS: u64 = 10_000;
/// The largest object that is copied at once, in bytes.
const MAX_COPY: u64 = 5 << 30;

/// Which cache.
#[derive(Clone)]
pub(crate) struct Options {
    /// The bucket's own address.
    address: Url,
    bucket: String,
    region: String,
    prefix: String,
    manifests: String,
    blobs: String,
    names: Vec<String>,
    refresh: Duration,
    at_once: usize,
    tries: u32,
    given: Option<Login>,
    env: Env,
}

fn number(text: &str, key: &str) -> Result<u32, Error> {
    let number = text.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| Error::attribute(format!("{key} must be a positive integer")))
}

impl Options {
    /// # Errors
    /// When an attribute is missing or makes no sense.
    pub(crate) fn new(attrs: &Attrs, env: Env) -> Result<Self, Error> {
        let required = |key: &str, variable: &str| {
            let found = attrs.get(key).map(String::as_str).or_else(|| env.get(variable));
            let found = found.filter(|text| !text.is_empty()).map(str::to_owned);
            found.ok_or_else(|| Error::attribute(format!("{key} (${variable}) not set for s3 cache")))
        };
        let or = |key: &str, default: &str| attrs.get(key).map_or(default, String::as_str).to_owned();
        let bucket = required("bucket", "AWS_BUCKET")?;
        let region = required("region", "AWS_REGION")?;
        let at_once = attrs.get("upload_parallelism").map_or(Ok(4), |n| number(n, "upload_parallelism"))?;
        if !matches!(attrs.get("retry_mode").map(String::as_str), None | Some("standard" | "adaptive")) {
            return Err(Error::attribute("retry_mode must be \"standard\" or \"adaptive\""));
        }
        let tries = match attrs.get("retry_max_attempts") {
            Some(text) => number(text, "retry_max_attempts")?,
            None => {
                env.get("AWS_MAX_ATTEMPTS").and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(TRIES)
            }
        };
        let given = text(attrs, "access_key_id").zip(text(attrs, "secret_access_key"));
        let given = given.map(|(id, key)| Login::new(id, key, &or("session_token", "")));
        let refresh = attrs.get("touch_refresh").and_then(|text| parse_duration(text).ok());
        let refresh = refresh.map(|(negative, length)| if negative { Duration::ZERO } else { length });
        Ok(Self {
            address: address(attrs, &env, &bucket, &region)?,
            prefix: or("prefix", ""),
            manifests: or("manifests_prefix", "manifests/"),
            blobs: or("blobs_prefix", "blobs/"),
            names: names(attrs),
            refresh: refresh.unwrap_or(Duration::from_secs(24 * 3600)),
            at_once: usize::try_from(at_once).unwrap_or(usize::MAX),
            tries,
            bucket,
            region,
            given,
            env,
        })
    }
}

/// Where the bucket is: part of the host's name, unless it cannot be or shall not.
fn address(attrs: &Attrs, env: &Env, bucket: &str, region: &str) -> Result<Url, Error> {
    let given = text(attrs, "endpoint_url");
    let ignored = env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").and_then(parse_bool).unwrap_or(false);
    let variable = env.get("AWS_ENDPOINT_URL_S3").or_else(|| env.get("AWS_ENDPOINT_URL"));
    let endpoint = match given.or_else(|| variable.filter(|_| !ignored)) {
        Some(endpoint) => endpoint.to_owned(),
        None if region == "aws-global" => "https://s3.amazonaws.com".to_owned(),
        None => format!("https://s3.{region}.{}", login::domain(region)),
    };
    let invalid =
        |e: &dyn std::fmt::Display| Error::attribute(format!("invalid endpoint_url {endpoint:?}: {e}"));
    let mut url: Url = endpoint.parse().map_err(|e| invalid(&e))?;
    let host = url.host_str().unwrap_or_default().to_owned();
    if !matches!(url.scheme(), "http" | "https") || host.is_empty() {
        return Err(invalid(&"not an address of HTTP"));
    }
    let path_style = attrs.get("use_path_style").and_then(|text| parse_bool(text)).unwrap_or(false);
    let by_name = url.domain().is_some() && fits_in_a_name(bucket, url.scheme() == "http");
    if by_name && !(path_style && given.is_some()) {
        url.set_host(Some(&format!("{bucket}.{host}"))).map_err(|e| invalid(&e))?;
    } else {
        url.set_path(&format!("{}/{}", url.path().trim_end_matches('/'), web::encode(bucket, "")));
    }
    Ok(url)
}

/// Certificates stand for one label in front of the store's name; without them
/// there may be several.
fn fits_in_a_name(bucket: &str, dots: bool) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = bucket.bytes().next().is_some_and(plain) && bucket.bytes().last().is_some_and(plain);
    let fits = bucket.bytes().all(|b| plain(b) || b == b'-' || (dots && b == b'.'));
    (3..=63).contains(&bucket.len()) && ends && fits && !bucket.contains("..")
}

#[async_trait]
impl Cloud for Options {
    fn title(&self) -> &'static str {
        "exporting cache to Amazon S3"
    }

    async fn open(&self, downloads: Downloads) -> Result<Arc<dyn Objects>, Failure> {
        let logins = match &self.given {
            Some(login) => Logins::given(login.clone()),
            None => Logins::found(self.env.clone(), self.region.clone(), downloads.clone()),
        };
        // Nobody waits for a build to hear that there are no keys.
        logins.get().await?;
        let patience = Patience { tries: self.tries, longest: LONGEST_PAUSE, limited: None };
        Ok(Arc::new(Bucket { options: self.clone(), logins, web: Web::new(downloads, patience) }))
    }
}

/// A bucket, opened.
struct Bucket {
    options: Options,
    logins: Logins,
    web: Web,
}

impl Bucket {
    fn layer(&self, digest: &Digest) -> String {
        format!("{}{}{digest}", self.options.prefix, self.options.blobs)
    }

    fn manifest(&self, name: &str) -> String {
        format!("{}{}{name}", self.options.prefix, self.options.manifests)
    }

    /// Sends a request for the object `key`; `query` is sorted and encoded.
    async fn send(
        &self,
        method: Method,
        key: &str,
        query: Option<&str>,
        payload: Payload,
        headers: Headers,
    ) -> Result<Response, Failure> {
        let mut url = self.options.address.clone();
        url.set_path(&format!("{}/{}", url.path().trim_end_matches('/'), web::encode(key, "/")));
        url.set_query(query);
        let (login, payload_hash) = (self.logins.get().await?, payload.digest().await?);
        let request = Request { method, url: &url, payload: &payload, once: false };
        let sign = || {
            let signing = Signing {
                method: &request.method,
                url: &url,
                headers: headers.clone(),
                payload: payload_hash.hex(),
                time: Timestamp::now(),
            };
            signing.headers(&login, &self.options.region)
        };
        self.web.send(&request, sign).await
    }

    async fn get(&self, key: &str, offset: u64) -> Result<Response, Failure> {
        self.send(Method::GET, key, None, Payload::Nothing, web::range(offset)).await
    }

    async fn save(&self, key: &str, payload: Payload) -> Result<(), Failure> {
        web::success(self.send(Method::PUT, key, None, payload, Headers::new()).await?).await?;
        Ok(())
    }

    /// Makes a layer of `size` bytes that is there look new.
    async fn touch(&self, key: &str, size: u64) -> Result<(), Failure> {
        let source = format!("{}/{}", web::encode(&self.options.bucket, ""), web::encode(key, "/"));
        let source = ("x-amz-copy-source", source);
        if size < MAX_COPY {
            let headers = vec![
                source,
                ("x-amz-metadata-directive", "REPLACE".to_owned()),
                ("x-amz-meta-updated-at", Timestamp::now().to_string()),
            ];
            finished(self.send(Method::PUT, key, None, Payload::Nothing, headers).await?).await?;
            return Ok(());
        }
        let parts = (0..size.div_ceil(MAX_COPY)).map(|n| {
            let (from, to) = (n * MAX_COPY, (n + 1) * MAX_COPY - 1);
            let range = ("x-amz-copy-source-range", format!("bytes={from}-{}", to.min(size - 1)));
            (Payload::Nothing, vec![source.clone(), range])
        });
        self.assemble(key, parts.collect()).await
    }

    /// Makes an object of parts: their bytes, or where these are.
    async fn assemble(&self, key: &str, parts: Vec<(Payload, Headers)>) -> Result<(), Failure> {
        let begun = self.send(Method::POST, key, Some("uploads="), Payload::Nothing, Headers::new()).await?;
        let begun = finished(begun).await?;
        let id = web::element(&begun, "UploadId").ok_or_else(|| Error::Document {
            what: "answer of the bucket",
            reason: "an upload without an id".to_owned(),
        })?;
        let id = format!("uploadId={}", web::encode(&id, ""));
        let work = parts.into_iter().enumerate().map(|(at, (payload, headers))| {
            let query = format!("partNumber={}&{id}", at + 1);
            async move {
                let answer = self.send(Method::PUT, key, Some(&query), payload, headers).await?;
                let tag =
                    answer.headers().get("etag").and_then(|value| value.to_str().ok()).map(str::to_owned);
                let tag = web::element(&finished(answer).await?, "ETag").or(tag).unwrap_or_default();
                let number = at + 1;
                let tag = web::escape(&tag);
                Ok::<_, Failure>(format!("<Part><ETag>{tag}</ETag><PartNumber>{number}</PartNumber></Part>"))
            }
        });
        let work: Vec<_> = work.collect();
        let sent = stream::iter(work).buffered(PARTS_AT_ONCE).try_collect::<Vec<String>>().await;
        let done = match sent {
            Ok(parts) => {
                let parts = parts.concat();
                let list = format!(
                    "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                     {parts}</CompleteMultipartUpload>"
                );
                let payload = Payload::Bytes(list.into());
                match self.send(Method::POST, key, Some(&id), payload, Headers::new()).await {
                    Ok(answer) => finished(answer).await.map(drop),
                    Err(failure) => Err(failure),
                }
            }
            Err(failure) => Err(failure),
        };
        if done.is_err() {
            // What was sent would be kept, and paid for.
            let aborted = self.send(Method::DELETE, key, Some(&id), Payload::Nothing, Headers::new()).await;
            if let Err(failure) = aborted {
                tracing::debug!(%failure, key, "abort an upload");
            }
        }
        done
    }
}

/// The document an answer comes with. Some say only there that it did not work.
async fn finished(answer: Response) -> Result<String, Failure> {
    let answer = web::success(answer).await?;
    let (url, status) = (answer.url().clone(), answer.status());
    let body = web::read(answer, MAX_ANSWER).await?;
    let text = String::from_utf8_lossy(&body).into_owned();
    if text.contains("<Error>") {
        return Err(Refusal::new(&url, status, "", &body).into());
    }
    Ok(text)
}

#[async_trait]
impl Objects for Bucket {
    async fn has(&self, layer: &Digest) -> Result<bool, Failure> {
        let key = self.layer(layer);
        let answer = self.send(Method::HEAD, &key, None, Payload::Nothing, Headers::new()).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        let answer = web::success(answer).await;
        let answer =
            answer.map_err(|e| Failure::from(e).context("failed to check file presence in cache"))?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let modified = header("last-modified").and_then(Timestamp::parse_http);
        if modified.is_some_and(|time| Timestamp::now().since(time) > self.options.refresh) {
            let size = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            self.touch(&key, size).await.map_err(|e| e.context("failed to touch file"))?;
        }
        Ok(true)
    }

    async fn put(&self, layer: &Digest, bytes: &Pin) -> Result<(), Failure> {
        let key = self.layer(layer);
        let parts = Part::of(bytes, MAX_PARTS);
        if parts.len() == 1 {
            return self.save(&key, Payload::Part(Part::whole(bytes))).await;
        }
        let parts = parts.into_iter().map(|part| (Payload::Part(part), Headers::new()));
        self.assemble(&key, parts.collect()).await
    }

    async fn describe(&self, config: Bytes) -> Result<(), Failure> {
        for name in &self.options.names {
            let saved = self.save(&self.manifest(name), Payload::Bytes(config.clone())).await;
            saved.map_err(|e| e.context(name))?;
        }
        Ok(())
    }

    async fn descriptions(&self) -> Result<Vec<Vec<u8>>, Failure> {
        // Of several names the first is read.
        let Some(name) = self.options.names.first() else { return Ok(Vec::new()) };
        match web::success(self.get(&self.manifest(name), 0).await?).await {
            Ok(answer) => Ok(vec![web::read(answer, MAX_CONFIG).await?]),
            // A bucket that is not there is another matter.
            Err(e) if e.status == StatusCode::NOT_FOUND && e.code != "NoSuchBucket" => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }

    fn at_once(&self) -> usize {
        self.options.at_once
    }
}

#[async_trait]
impl BlobSource for Bucket {
    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<refs::Bytes, Failure> {
        let answer = web::success(self.get(&self.layer(&descriptor.digest), offset).await?).await?;
        web::stream(answer, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)], env: Env) -> Result<Options, Error> {
        let fixed = [("bucket", "bucket"), ("region", "us-east-1")];
        let attrs = fixed.iter().chain(pairs).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Options::new(&attrs, env)
    }

    fn address(pairs: &[(&str, &str)]) -> String {
        options(pairs, Env::default()).unwrap().address.to_string()
    }

    #[test]
    fn addresses_follow_the_style() {
        assert_eq!(address(&[]), "https://bucket.s3.us-east-1.amazonaws.com/");
        assert_eq!(address(&[("region", "cn-north-1")]), "https://bucket.s3.cn-north-1.amazonaws.com.cn/");
        assert_eq!(address(&[("bucket", "a.b")]), "https://s3.us-east-1.amazonaws.com/a.b");
        assert_eq!(address(&[("use_path_style", "true")]), "https://bucket.s3.us-east-1.amazonaws.com/");
        let endpoint = ("endpoint_url", "http://localhost:9000/");
        assert_eq!(address(&[endpoint]), "http://bucket.localhost:9000/");
        assert_eq!(address(&[endpoint, ("bucket", "a.b")]), "http://a.b.localhost:9000/");
        assert_eq!(address(&[endpoint, ("use_path_style", "true")]), "http://localhost:9000/bucket");
        assert_eq!(address(&[("endpoint_url", "http://127.0.0.1:9000")]), "http://127.0.0.1:9000/bucket");
        let env = || Env::from([("AWS_ENDPOINT_URL", "http://h"), ("AWS_MAX_ATTEMPTS", "7")]);
        let found = options(&[], env()).unwrap();
        assert_eq!((found.address.as_str(), found.tries), ("http://bucket.h/", 7));
        let found = options(&[endpoint, ("retry_max_attempts", "2")], env()).unwrap();
        assert_eq!((found.address.as_str(), found.tries), ("http://bucket.localhost:9000/", 2));
    }

    #[test]
    fn attributes_must_make_sense() {
        for bad in [
            ("endpoint_url", "x"),
            ("endpoint_url", "ftp://h"),
            ("upload_parallelism", "0"),
            ("upload_parallelism", "many"),
            ("retry_mode", "never"),
            ("retry_max_attempts", "-1"),
            ("bucket", ""),
        ] {
            assert!(options(&[bad], Env::default()).is_err(), "{bad:?}");
        }
        let said = |attrs: &Attrs| Options::new(attrs, Env::default()).err().unwrap().to_string();
        assert_eq!(said(&Attrs::new()), "bucket ($AWS_BUCKET) not set for s3 cache");
        let attrs: Attrs = [("bucket".to_owned(), "b".to_owned())].into();
        assert_eq!(said(&attrs), "region ($AWS_REGION) not set for s3 cache");
        let env = Env::from([("AWS_BUCKET", "one"), ("AWS_REGION", "r")]);
        let found = Options::new(&Attrs::new(), env).unwrap();
        assert_eq!((found.bucket.as_str(), found.names.as_slice()), ("one", &["buildkit".to_owned()][..]));
        let found = options(&[("name", "a;b"), ("touch_refresh", "-1h")], Env::default()).unwrap();
        assert_eq!((found.names.len(), found.refresh), (2, Duration::ZERO));
    }
}
