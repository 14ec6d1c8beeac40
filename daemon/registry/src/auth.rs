//! Who we are to a registry, and the tokens that prove it.
//!
//! A registry that wants to know is answered from [`Credentials`], which ask
//! the build's client. Tokens are kept until shortly before they expire, by
//! address, scope and *proved* identity: a build gets the token of another only
//! when both showed that they are the same somebody.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use base::once::Flight;
use base::{Digest, Failure, Secret, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use reqwest::header::HeaderValue;

use crate::challenge::Challenge;
use crate::error::Problem;
use crate::host::Host;
use crate::token;

/// What we call ourselves where tokens are made.
const CLIENT_ID: &str = "buildkit-client";
/// Seconds a token lives when nobody says.
const DEFAULT_LIFE: u64 = 60;
/// Tokens and challenges remembered; a bound on what hostile registries make us keep.
const REMEMBERED: usize = 1024;

/// A user and a password.
///
/// An empty user with a secret is an identity token of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password or identity token.
    pub secret: Secret,
}

/// The token somebody else shall fetch for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// What we call ourselves.
    pub client_id: String,
    /// The registry.
    pub host: String,
    /// Where tokens are made.
    pub realm: String,
    /// What the token is for.
    pub service: String,
    /// What it shall allow.
    pub scopes: Vec<String>,
}

/// A token.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token itself.
    pub token: Secret,
    /// Seconds it lives; zero when nobody said.
    pub expires_in: u64,
    /// Since when; `None` is now.
    pub issued_at: Option<Timestamp>,
}

/// Who knows the user's credentials. Hosts are `host[:port]` as in the address
/// that asked, `registry-1.docker.io` for `docker.io`.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// The key of an authority that makes tokens for `host` without telling us
    /// the password. Whoever implements this has *verified* that the client
    /// holds the key: tokens are shared between those who return the same one.
    ///
    /// # Errors
    /// When the client cannot be asked.
    async fn authority(&self, host: &str) -> Result<Option<[u8; 32]>, Failure>;

    /// The user and password for `host`; asked when there is no authority.
    ///
    /// # Errors
    /// When the client cannot be asked. Having no credentials is not an error.
    async fn login(&self, host: &str) -> Result<Option<Login>, Failure>;

    /// A token from the authority.
    ///
    /// # Errors
    /// When the authority does not give one.
    async fn fetch_token(&self, request: &TokenRequest) -> Result<Token, Failure>;
}

/// Knows no credentials.
#[derive(Debug, Clone, Copy)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn authority(&self, _: &str) -> Result<Option<[u8; 32]>, Failure> {
        Ok(None)
    }

    async fn login(&self, _: &str) -> Result<Option<Login>, Failure> {
        Ok(None)
    }

    async fn fetch_token(&self, request: &TokenRequest) -> Result<Token, Failure> {
        Err(Failure::internal(format!("nobody makes tokens for {}", request.host)))
    }
}

/// What a request may do: actions by resource, such as
/// `repository:library/alpine` and `pull`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    pub(crate) fn repository(path: &str, push: bool) -> Self {
        let mut scopes = Self::default();
        scopes.add(&format!("repository:{path}:{}", if push { "pull,push" } else { "pull" }));
        scopes
    }

    /// Adds a scope of the form `type:name:action,action`.
    pub(crate) fn add(&mut self, scope: &str) {
        let mut parts = scope.splitn(3, ':');
        let resource: Vec<&str> = parts.by_ref().take(2).collect();
        let actions = self.0.entry(resource.join(":")).or_default();
        actions.extend(parts.next().into_iter().flat_map(|a| a.split(',')).map(str::to_owned));
    }

    fn with(&self, more: &[String]) -> Self {
        let mut scopes = self.clone();
        more.iter().for_each(|scope| scopes.add(scope));
        scopes
    }

    /// In the one order in which equal scopes are equal text.
    pub(crate) fn list(&self) -> Vec<String> {
        let join = |a: &BTreeSet<String>| a.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        self.0.iter().map(|(resource, actions)| format!("{resource}:{}", join(actions))).collect()
    }
}

/// The somebody on whose behalf a build talks to registries. Clones are the same.
#[derive(Clone)]
pub struct Access {
    credentials: Arc<dyn Credentials>,
    known: Arc<Mutex<HashMap<String, Who>>>,
    asking: Arc<Flight<String, Who>>,
    pub(crate) insecure: bool,
}

#[derive(Clone)]
struct Who {
    identity: Identity,
    login: Option<Login>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    Anonymous,
    Authority([u8; 32]),
    /// The digest of user and password.
    Login(Digest),
}

impl Access {
    /// On behalf of those whose credentials these are.
    pub fn new(credentials: Arc<dyn Credentials>) -> Self {
        Self { credentials, known: Arc::default(), asking: Arc::default(), insecure: false }
    }

    /// On behalf of nobody.
    pub fn anonymous() -> Self {
        Self::new(Arc::new(Anonymous))
    }

    /// The same, but certificates are not verified, HTTP will do, and mirrors
    /// are not asked.
    #[must_use]
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    async fn who(&self, host: &str) -> Result<Who, Problem> {
        if let Some(who) = self.known.lock().get(host) {
            return Ok(who.clone());
        }
        let who = self.asking.run(host.to_owned(), || self.ask(host)).await.map_err(Problem::Credentials)?;
        self.known.lock().insert(host.to_owned(), who.clone());
        Ok(who)
    }

    async fn ask(&self, host: &str) -> Result<Who, Failure> {
        if let Some(key) = self.credentials.authority(host).await? {
            return Ok(Who { identity: Identity::Authority(key), login: None });
        }
        let login = self.credentials.login(host).await?.filter(|l| !l.secret.is_empty());
        let identity = match &login {
            Some(l) => Identity::Login(Digest::of(format!("{}\0{}", l.user, l.secret.expose()))),
            None => Identity::Anonymous,
        };
        Ok(Who { identity, login })
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    origin: String,
    realm: String,
    service: String,
    scopes: String,
    identity: Identity,
}

#[derive(Clone)]
struct Cached {
    header: HeaderValue,
    until: Timestamp,
}

/// Tokens and challenges of all registries.
#[derive(Default)]
pub(crate) struct Tokens {
    /// What an origin wanted last time for the same scopes.
    challenges: Mutex<HashMap<(String, String), Challenge>>,
    tokens: Mutex<HashMap<Key, Cached>>,
    fetching: Flight<Key, Cached>,
}

/// What a request carries.
#[derive(Default)]
pub(crate) struct Authorization {
    pub(crate) header: Option<HeaderValue>,
    /// Nobody's credentials went into it.
    pub(crate) anonymous: bool,
    /// It was made for this request: another one would not do better.
    pub(crate) fresh: bool,
}

/// Who asks whom for what.
pub(crate) struct Question<'a> {
    pub(crate) host: &'a Host,
    /// Scheme, host and port of the address.
    pub(crate) origin: &'a str,
    /// Host and port of the address.
    pub(crate) authority: &'a str,
    pub(crate) scopes: &'a Scopes,
    pub(crate) access: &'a Access,
}

impl Tokens {
    /// What a request should carry, from what is known of the origin so far.
    pub(crate) async fn authorize(&self, q: &Question<'_>) -> Result<Authorization, Problem> {
        let known = self.challenges.lock().get(&q.place()).cloned();
        let Some(challenge) = known else {
            return Ok(Authorization { anonymous: true, ..Authorization::default() });
        };
        let who = q.access.who(q.authority).await?;
        let anonymous = who.identity == Identity::Anonymous;
        let Challenge::Bearer { realm, service, scopes, .. } = challenge else {
            return Ok(match &who.login {
                Some(login) => Authorization { header: Some(basic(login)?), anonymous: false, fresh: true },
                None => Authorization { header: None, anonymous: true, fresh: true },
            });
        };
        let scopes = q.scopes.with(&scopes).list();
        let key = Key {
            origin: q.origin.to_owned(),
            realm,
            service,
            scopes: scopes.join(" "),
            identity: who.identity.clone(),
        };
        let cached = self.tokens.lock().get(&key).filter(|c| c.until > Timestamp::now()).cloned();
        if let Some(cached) = cached {
            return Ok(Authorization { header: Some(cached.header), anonymous, fresh: false });
        }
        let cached = self
            .fetching
            .run(key.clone(), || fetch(q, &who, &key, scopes))
            .await
            .map_err(|source| Problem::Token { anonymous, source: Box::new(source) })?;
        let mut tokens = self.tokens.lock();
        if tokens.len() >= REMEMBERED {
            tokens.retain(|_, c| c.until > Timestamp::now());
        }
        if tokens.len() < REMEMBERED {
            tokens.insert(key, cached.clone());
        }
        Ok(Authorization { header: Some(cached.header), anonymous, fresh: true })
    }

    /// Takes note of the challenges in a 401 to a request that carried `sent`.
    /// Whether it makes sense to ask again.
    pub(crate) async fn challenged(
        &self,
        q: &Question<'_>,
        challenges: Vec<Challenge>,
        sent: &Authorization,
    ) -> Result<bool, Problem> {
        for challenge in challenges {
            if challenge == Challenge::Basic && q.access.who(q.authority).await?.login.is_none() {
                continue;
            }
            let mut known = self.challenges.lock();
            if known.len() >= REMEMBERED {
                known.clear();
            }
            let before = known.insert(q.place(), challenge.clone());
            drop(known);
            self.forget(q, sent);
            return Ok(!sent.fresh || !before.is_some_and(|b| same_demand(&b, &challenge, q.scopes)));
        }
        Ok(false)
    }

    /// Drops a token that was refused.
    fn forget(&self, q: &Question<'_>, sent: &Authorization) {
        if let Some(header) = &sent.header {
            self.tokens.lock().retain(|key, c| key.origin != q.origin || c.header != *header);
        }
    }
}

impl Question<'_> {
    fn place(&self) -> (String, String) {
        (self.origin.to_owned(), self.scopes.list().join(" "))
    }
}

/// Whether the answer to both challenges would be the same token.
fn same_demand(a: &Challenge, b: &Challenge, scopes: &Scopes) -> bool {
    match (a, b) {
        (
            Challenge::Bearer { realm: ra, service: sa, scopes: ca, .. },
            Challenge::Bearer { realm: rb, service: sb, scopes: cb, .. },
        ) => ra == rb && sa == sb && scopes.with(ca) == scopes.with(cb),
        (a, b) => a == b,
    }
}

async fn fetch(q: &Question<'_>, who: &Who, key: &Key, scopes: Vec<String>) -> Result<Cached, Problem> {
    let request = TokenRequest {
        client_id: CLIENT_ID.to_owned(),
        host: q.authority.to_owned(),
        realm: key.realm.clone(),
        service: key.service.clone(),
        scopes,
    };
    let token = match (&who.identity, &who.login) {
        (Identity::Authority(_), _) => {
            q.access.credentials.fetch_token(&request).await.map_err(Problem::Credentials)?
        }
        (_, login) => token::fetch(&q.host.client, &request, login.as_ref()).await?,
    };
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.token.expose()))
        .map_err(|_| protocol(&key.realm, "the token has characters that a header cannot have"))?;
    header.set_sensitive(true);
    let life = if token.expires_in == 0 { DEFAULT_LIFE } else { token.expires_in.min(86_400) };
    let issued = token.issued_at.unwrap_or_else(Timestamp::now);
    // A tenth is left for clocks that differ and requests that take time.
    let until = Timestamp::from_nanos(issued.nanos().saturating_add((life * 900_000_000).cast_signed()));
    Ok(Cached { header, until })
}

pub(crate) fn protocol(url: &str, reason: impl Into<String>) -> Problem {
    Problem::Protocol { url: url.to_owned(), reason: reason.into() }
}

/// The header for a user and a password.
pub(crate) fn basic(login: &Login) -> Result<HeaderValue, Problem> {
    let encoded = STANDARD.encode(format!("{}:{}", login.user, login.secret.expose()));
    let mut header = HeaderValue::from_str(&format!("Basic {encoded}"))
        .map_err(|_| Problem::config("credentials that a header cannot have"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_have_one_spelling() {
        let mut scopes = Scopes::repository("b", true);
        scopes.add("repository:a:pull");
        scopes.add("repository:b:pull,*");
        scopes.add("registry:catalog");
        assert_eq!(scopes.list(), ["registry:catalog:", "repository:a:pull", "repository:b:*,pull,push"]);
    }
}
