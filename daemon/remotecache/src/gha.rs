//! `gha`: caches in the cache service of GitHub's actions.
//!
//! Entries of the service never change. What has to, the description, is written
//! under ever new numbers; the highest is the one that counts. `service` speaks
//! both versions of the service, `token` reads what it is spoken to with.

mod service;
mod token;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::gotext::parse_duration;
use base::secret::Secret;
use base::{Descriptor, Digest, Failure, Kind, Timestamp};
use bytes::Bytes;
use futures_util::future::try_join_all;
use refs::BlobSource;
use registry::Downloads;
use reqwest::Url;
use store::Pin;

use crate::Error;
use crate::objects::{Cloud, MAX_CONFIG, Objects};
use crate::options::{Attrs, text};
use crate::web;
use service::{Content, Service};
use token::{Scope, Token};

/// Layers under way at once.
const AT_ONCE: usize = 4;
/// Somebody else who writes the description is waited for: so often, so long.
const WAITS: u32 = 8;
const PAUSE: Duration = Duration::from_secs(2);
/// Numbers of descriptions that were begun and never ended, in a row.
const MAX_BLOCKED: u64 = 100;

/// Which cache.
#[derive(Clone)]
pub(crate) struct Options {
    url: Url,
    /// Spoken to in its second version.
    second: bool,
    scope: String,
    secret: Secret,
    token: Token,
    timeout: Duration,
}

impl Options {
    /// # Errors
    /// When an attribute is missing or makes no sense.
    pub(crate) fn new(attrs: &Attrs) -> Result<Self, Error> {
        let secret =
            text(attrs, "token").ok_or_else(|| Error::attribute("token not set for github actions cache"))?;
        let version = match attrs.get("version") {
            Some(text) => base::gotext::parse_int(text, 64).map_err(|e| {
                Error::attribute(format!(
                    "failed to parse api version {text:?}, expected positive integer: {e}"
                ))
            })?,
            None => 0,
        };
        let newer = text(attrs, "url_v2").filter(|_| version != 1);
        let address = newer.or_else(|| text(attrs, "url"));
        let address = address.ok_or_else(|| Error::attribute("url not set for github actions cache"))?;
        let known = address.contains("results-receiver.actions.githubusercontent.com");
        let second = newer.is_some() || if version == 0 { known } else { version > 1 };
        let invalid = |why: &dyn std::fmt::Display| {
            Error::attribute(format!("invalid url {address:?} for github actions cache: {why}"))
        };
        let url: Url = address.parse().map_err(|e| invalid(&e))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(invalid(&"not an address of HTTP"));
        }
        let timeout = match attrs.get("timeout") {
            Some(text) => {
                let (negative, length) = parse_duration(text).map_err(|e| {
                    Error::attribute(format!("failed to parse timeout for github actions cache: {e}"))
                })?;
                if negative { Duration::ZERO } else { length }
            }
            None => Duration::from_secs(600),
        };
        Ok(Self {
            url,
            second,
            scope: attrs.get("scope").map_or("buildkit", String::as_str).to_owned(),
            token: Token::read(secret, Timestamp::now())?,
            secret: Secret::new(secret),
            timeout,
        })
    }
}

#[async_trait]
impl Cloud for Options {
    fn title(&self) -> &'static str {
        "exporting to GitHub Actions Cache"
    }

    async fn open(&self, downloads: Downloads) -> Result<Arc<dyn Objects>, Failure> {
        let service = Service::new(&self.url, self.second, self.secret.clone(), self.timeout, downloads);
        Ok(Arc::new(Cache { service, scope: self.scope.clone(), scopes: self.token.scopes.clone() }))
    }
}

/// A cache, opened.
struct Cache {
    service: Service,
    scope: String,
    scopes: Vec<Scope>,
}

fn layer(digest: &Digest) -> String {
    format!("buildkit-blob-1-{digest}")
}

impl Cache {
    /// The name of the description in a scope of the token, without its number.
    fn index(&self, scope: &str) -> String {
        let hash = Digest::of(scope);
        format!("index-{}-1-{}", self.scope, hash.hex().get(..8).unwrap_or_default())
    }

    /// The number of the newest description; zero if there is none.
    async fn newest(&self, key: &str) -> Result<u64, Failure> {
        let key = format!("{key}#");
        let Some(entry) = self.service.find(&key).await? else { return Ok(0) };
        let number = entry.key.strip_prefix(&key).and_then(|text| text.parse().ok());
        number
            .ok_or_else(|| Failure::new(Kind::DataLoss, format!("failed to parse {:?}, an index", entry.key)))
    }

    async fn description(&self, scope: &str) -> Result<Option<Vec<u8>>, Failure> {
        // What is found is the newest whose name begins like that.
        let Some(entry) = self.service.find(&self.index(scope)).await? else { return Ok(None) };
        web::read(self.service.get(&entry, 0).await?, MAX_CONFIG).await.map(Some)
    }
}

#[async_trait]
impl Objects for Cache {
    async fn has(&self, digest: &Digest) -> Result<bool, Failure> {
        Ok(self.service.find(&layer(digest)).await?.is_some())
    }

    async fn put(&self, digest: &Digest, bytes: &Pin) -> Result<(), Failure> {
        match self.service.reserve(&layer(digest)).await {
            Ok(place) => self.service.fill(place, Content::Layer(bytes)).await,
            // The same name is the same bytes.
            Err(e) if e.kind() == Kind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn describe(&self, config: Bytes) -> Result<(), Failure> {
        let key = self.index(token::writable(&self.scopes));
        for waited in 0..=WAITS {
            let next = self.newest(&key).await?.saturating_add(1);
            // Whoever began one and did not end it in all the time has probably gone.
            let numbers = if waited < WAITS { next..=next } else { next..=next.saturating_add(MAX_BLOCKED) };
            for number in numbers {
                match self.service.reserve(&format!("{key}#{number}")).await {
                    Ok(place) => return self.service.fill(place, Content::Bytes(config)).await,
                    Err(e) if e.kind() == Kind::AlreadyExists => {}
                    Err(e) => return Err(e),
                }
            }
            if waited < WAITS {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Err(Failure::new(Kind::Aborted, format!("{key} is being written by others")))
    }

    async fn descriptions(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let all = try_join_all(self.scopes.iter().map(|scope| self.description(&scope.scope))).await?;
        Ok(all.into_iter().flatten().collect())
    }

    fn at_once(&self) -> usize {
        AT_ONCE
    }
}

#[async_trait]
impl BlobSource for Cache {
    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<refs::Bytes, Failure> {
        // Addresses are good for a while only, so that it is asked for anew.
        let found = self.service.find(&layer(&descriptor.digest)).await?;
        let missing = || Failure::new(Kind::NotFound, format!("blob {}: not found", descriptor.digest));
        web::stream(self.service.get(&found.ok_or_else(missing)?, offset).await?, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Result<Options, Error> {
        let token = token::tests::token(r#"[{"Scope":"refs/heads/main","Permission":3}]"#);
        let fixed = [("token", token.as_str())];
        let attrs = fixed.iter().chain(pairs).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Options::new(&attrs.collect())
    }

    #[test]
    fn the_version_follows_from_what_is_said() {
        let (old, new) = (("url", "http://old/"), ("url_v2", "http://new/"));
        let receiver = ("url", "https://results-receiver.actions.githubusercontent.com/");
        for (attrs, expected) in [
            (vec![old], ("http://old/", false)),
            (vec![old, new], ("http://new/", true)),
            (vec![old, new, ("version", "1")], ("http://old/", false)),
            (vec![old, ("version", "2")], ("http://old/", true)),
            (vec![receiver], (receiver.1, true)),
            (vec![receiver, ("version", "1")], (receiver.1, false)),
        ] {
            let found = options(&attrs).unwrap();
            assert_eq!((found.url.as_str(), found.second), expected, "{attrs:?}");
        }
    }

    #[test]
    fn attributes_must_make_sense() {
        let url = ("url", "http://h/");
        for (attrs, expected) in [
            (vec![("token", "")], "token not set"),
            (vec![], "url not set"),
            (vec![("url", "h")], "invalid url \"h\""),
            (vec![url, ("version", "one")], "failed to parse api version \"one\""),
            (vec![url, ("timeout", "long")], "failed to parse timeout"),
            (vec![url, ("token", "x")], "token"),
        ] {
            let said = options(&attrs).err().unwrap().to_string();
            assert!(said.contains(expected), "{said}");
        }
        let found = options(&[url, ("timeout", "90s"), ("scope", "s")]).unwrap();
        assert_eq!((found.timeout, found.scope.as_str()), (Duration::from_secs(90), "s"));
    }
}
