//! Keys for Amazon: those that were given, or those the daemon finds around it, in
//! the order of Amazon's own SDK: the environment, a token of its identity in a
//! cluster, a profile in a file, the container's keys, the machine's.

use std::path::PathBuf;
use std::time::Duration;

use base::gotext::parse_bool;
use base::secret::Secret;
use base::{Failure, Timestamp};
use registry::Downloads;
use reqwest::{Method, Url};
use serde::Deserialize;

use crate::Error;
use crate::options::Env;
use crate::web::{self, Headers, Lease, MAX_ANSWER, Patience, Payload, Request, Web};

/// The machine answers at once, or there is none that would.
const MACHINE: Duration = Duration::from_secs(5);
const NONE: &str = "no credentials for s3 cache: give access_key_id and secret_access_key, or set \
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another of Amazon's sources of keys, for the daemon";

/// What requests are signed with.
#[derive(Debug, Clone)]
pub(super) struct Login {
    pub(super) id: String,
    pub(super) key: Secret,
    /// Empty for keys that are no temporary ones.
    pub(super) token: Secret,
}

impl Login {
    pub(super) fn new(id: &str, key: &str, token: &str) -> Self {
        Self { id: id.to_owned(), key: Secret::new(key), token: Secret::new(token) }
    }
}

/// The end of the names of a region's services.
pub(super) fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}

/// Keys, as long as they are good.
pub(super) struct Logins(Source);

enum Source {
    Given(Login),
    Found { env: Env, region: String, web: Web, held: Lease<Login> },
}

/// Temporary keys, as services hand them out in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    token: String,
    expiration: Option<Timestamp>,
}

type Found = (Login, Option<Timestamp>);

impl Logins {
    pub(super) fn given(login: Login) -> Self {
        Self(Source::Given(login))
    }

    pub(super) fn found(env: Env, region: String, downloads: Downloads) -> Self {
        let patience = Patience { tries: 2, longest: Duration::from_secs(1), limited: None };
        let web = Web::new(downloads, patience);
        Self(Source::Found { env, region, web, held: Lease::default() })
    }

    /// Keys that are good now.
    ///
    /// # Errors
    /// When there are none.
    pub(super) async fn get(&self) -> Result<Login, Failure> {
        let (env, region, web, held) = match &self.0 {
            Source::Given(login) => return Ok(login.clone()),
            Source::Found { env, region, web, held } => (env, region, web, held),
        };
        if let Some(login) = held.get() {
            return Ok(login);
        }
        let (login, until) = find(env, region, web).await?;
        let forever = Timestamp::from_nanos(i64::MAX);
        held.set(&login, until.unwrap_or(forever));
        Ok(login)
    }
}

async fn find(env: &Env, region: &str, web: &Web) -> Result<Found, Failure> {
    let id = env.get("AWS_ACCESS_KEY_ID").or_else(|| env.get("AWS_ACCESS_KEY"));
    let key = env.get("AWS_SECRET_ACCESS_KEY").or_else(|| env.get("AWS_SECRET_KEY"));
    let profile = env.get("AWS_PROFILE").or_else(|| env.get("AWS_DEFAULT_PROFILE"));
    let identity = env.get("AWS_WEB_IDENTITY_TOKEN_FILE").zip(env.get("AWS_ROLE_ARN"));
    if profile.is_none() {
        if let (Some(id), Some(key)) = (id, key) {
            return Ok((Login::new(id, key, env.get("AWS_SESSION_TOKEN").unwrap_or_default()), None));
        }
        if let Some((file, role)) = identity {
            let found = assume(env, region, web, file, role).await;
            return found.map_err(|e| e.context(format!("keys of role {role} for s3 cache")));
        }
    }
    let files = [
        file(env, "AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        file(env, "AWS_CONFIG_FILE", ".aws/config"),
    ];
    let wanted = profile.unwrap_or("default").to_owned();
    let name = wanted.clone();
    let read = move || {
        let texts = files.into_iter().flatten().filter_map(|file| std::fs::read_to_string(file).ok());
        Ok(texts.into_iter().find_map(|text| in_profile(&text, &wanted)))
    };
    if let Some(login) = base::task::blocking(read).await? {
        return Ok((login, None));
    }
    if profile.is_some() {
        let text = format!("no credentials for s3 cache in profile {name:?}");
        return Err(Error::attribute(text).into());
    }
    let relative = env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    let relative = relative.map(|path| format!("http://169.254.170.2{path}"));
    let container = relative.or_else(|| env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI").map(str::to_owned));
    if let Some(address) = container {
        let mut headers = Headers::new();
        let token = match env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            Some(file) => Some(web::secret(file).await?),
            None => env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(str::to_owned),
        };
        headers.extend(token.map(|token| ("authorization", token)));
        return keys(&ask(web, Method::GET, &address, headers).await?);
    }
    if env.get("AWS_EC2_METADATA_DISABLED").and_then(parse_bool) == Some(true) {
        return Err(Error::attribute(NONE).into());
    }
    match tokio::time::timeout(MACHINE, machine(env, web)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(failure)) => {
            tracing::debug!(%failure, "keys of this machine");
            Err(Error::attribute(NONE).into())
        }
        Err(_) => Err(Error::attribute(NONE).into()),
    }
}

fn file(env: &Env, variable: &str, below_home: &str) -> Option<PathBuf> {
    let home = || env.get("HOME").map(|home| PathBuf::from(home).join(below_home));
    env.get(variable).map(PathBuf::from).or_else(home)
}

/// Keys of a profile; sections of the second file are called `profile NAME`.
fn in_profile(text: &str, profile: &str) -> Option<Login> {
    let (mut inside, mut id, mut key, mut token) = (false, None, None, "");
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let name = name.trim();
            inside = name.strip_prefix("profile ").map_or(name, str::trim) == profile;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| inside && !line.starts_with('#'))
        {
            let value = value.trim();
            match name.trim() {
                "aws_access_key_id" => id = Some(value),
                "aws_secret_access_key" => key = Some(value),
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(Login::new(id?, key?, token))
}

/// Asks for keys of a role, as an identity in a cluster.
async fn assume(env: &Env, region: &str, web: &Web, file: &str, role: &str) -> Result<Found, Failure> {
    let service = env.get("AWS_ENDPOINT_URL_STS").map(str::to_owned);
    let service = service.unwrap_or_else(|| format!("https://sts.{region}.{}", domain(region)));
    let token = web::secret(file).await?;
    let session = env.get("AWS_ROLE_SESSION_NAME").unwrap_or("buildkitd");
    let query = [("RoleArn", role), ("RoleSessionName", session), ("WebIdentityToken", &token)];
    let query: String = query.iter().map(|(k, v)| format!("&{k}={}", web::encode(v, ""))).collect();
    let address = format!(
        "{}/?Action=AssumeRoleWithWebIdentity&Version=2011-06-15{query}",
        service.trim_end_matches('/')
    );
    let answer = ask(web, Method::POST, &address, Headers::new()).await?;
    let of = |name: &str| {
        web::element(&answer, name).ok_or_else(|| Error::Document {
            what: "answer of the service for keys",
            reason: format!("no {name}"),
        })
    };
    let login = Login::new(&of("AccessKeyId")?, &of("SecretAccessKey")?, &of("SessionToken")?);
    Ok((login, Timestamp::parse(&of("Expiration")?)))
}

/// Keys of the virtual machine's role.
async fn machine(env: &Env, web: &Web) -> Result<Found, Failure> {
    let service = env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or("http://169.254.169.254");
    let at = |path: &str| format!("{}/latest/{path}", service.trim_end_matches('/'));
    let lifetime = vec![("x-aws-ec2-metadata-token-ttl-seconds", "21600".to_owned())];
    let token = ask(web, Method::PUT, &at("api/token"), lifetime).await?;
    let header = || vec![("x-aws-ec2-metadata-token", token.clone())];
    let roles = ask(web, Method::GET, &at("meta-data/iam/security-credentials/"), header()).await?;
    let role = roles.lines().next().unwrap_or_default().trim();
    let path = at(&format!("meta-data/iam/security-credentials/{}", web::encode(role, "")));
    keys(&ask(web, Method::GET, &path, header()).await?)
}

async fn ask(web: &Web, method: Method, address: &str, headers: Headers) -> Result<String, Failure> {
    let url: Url = address.parse().map_err(|e| Failure::invalid(format!("address for keys: {e}")))?;
    let request = Request { method, url: &url, payload: &Payload::Nothing, once: false };
    let answer = web::success(web.send(&request, || headers.clone()).await?).await?;
    Ok(String::from_utf8_lossy(&web::read(answer, MAX_ANSWER).await?).into_owned())
}

fn keys(json: &str) -> Result<Found, Failure> {
    let answer: Answer = serde_json::from_str(json)
        .map_err(|e| Error::Document { what: "answer of the service for keys", reason: e.to_string() })?;
    let login = Login::new(&answer.access_key_id, &answer.secret_access_key, &answer.token);
    Ok((login, answer.expiration))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Server, downloads};

    async fn logins<const N: usize>(env: [(&str, &str); N]) -> Logins {
        Logins::found(Env::from(env), "nowhere-1".to_owned(), downloads().await)
    }

    const JSON: &str = r#"{"AccessKeyId":"id","SecretAccessKey":"key","Token":"token",
        "Expiration":"2100-01-01T00:00:00Z"}"#;

    #[tokio::test]
    async fn a_profile_that_is_named_goes_before_keys() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[mine]\naws_access_key_id=b\naws_secret_access_key=c\n").unwrap();
        let path = file.path().display().to_string();
        let keys = [
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_SHARED_CREDENTIALS_FILE", &path),
        ];
        assert_eq!(logins(keys).await.get().await.unwrap().id, "a");
        let [id, key, file] = keys;
        assert_eq!(logins([id, key, file, ("AWS_PROFILE", "mine")]).await.get().await.unwrap().id, "b");
        let said =
            logins([id, key, file, ("AWS_PROFILE", "yours")]).await.get().await.unwrap_err().to_string();
        assert!(said.contains("in profile \"yours\""), "{said}");
    }

    #[tokio::test]
    async fn roles_are_assumed_with_the_clusters_token() {
        let server = Server::start(|request| {
            let query = "POST /?Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Arole&\
                RoleSessionName=buildkitd&WebIdentityToken=proof HTTP/1.1";
            if !request.starts_with(query) {
                return (403, "<E><Error><Code>AccessDenied</Code><Message>no</Message></Error></E>".into());
            }
            let keys = "<AccessKeyId>id</AccessKeyId><SecretAccessKey>key</SecretAccessKey>";
            // Over in a moment.
            let until = Timestamp::from_secs(Timestamp::now().secs() + 10);
            (200, format!("<C>{keys}<SessionToken>t</SessionToken><Expiration>{until}</Expiration></C>"))
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "proof\n").unwrap();
        let path = file.path().display().to_string();
        let (file, sts) =
            (("AWS_WEB_IDENTITY_TOKEN_FILE", path.as_str()), ("AWS_ENDPOINT_URL_STS", server.url.as_str()));
        let cluster = logins([file, sts, ("AWS_ROLE_ARN", "arn:role")]).await;
        for asked in [1, 2] {
            assert_eq!((cluster.get().await.unwrap().token.expose(), server.asked()), ("t", asked));
        }
        let other = logins([file, sts, ("AWS_ROLE_ARN", "other")]).await;
        let said = other.get().await.unwrap_err().to_string();
        assert!(said.contains("keys of role other") && said.contains("AccessDenied: no"), "{said}");
    }

    #[tokio::test]
    async fn containers_and_machines_hand_out_keys() {
        let server = Server::start(|request| {
            let line = request.lines().next().unwrap_or_default();
            let has = |header: &str| request.contains(header);
            match line {
                "GET /container HTTP/1.1" if has("authorization: secret") => (200, JSON.into()),
                "PUT /latest/api/token HTTP/1.1" if has("ttl-seconds: 21600") => (200, "pass".into()),
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1" if has("token: pass") => {
                    (200, "role\n".into())
                }
                "GET /latest/meta-data/iam/security-credentials/role HTTP/1.1" if has("token: pass") => {
                    (200, JSON.into())
                }
                _ => (400, String::new()),
            }
        });
        let address = format!("{}/container", server.url);
        let uri = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", address.as_str());
        let container = logins([uri, ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "secret")]).await;
        for _ in 0..2 {
            assert_eq!((container.get().await.unwrap().id.as_str(), server.asked()), ("id", 1));
        }
        let machine = logins([("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url.as_str())]).await;
        assert_eq!((machine.get().await.unwrap().key.expose(), server.asked()), ("key", 4));
        let none = logins([("AWS_EC2_METADATA_DISABLED", "true")]).await;
        assert!(none.get().await.unwrap_err().to_string().contains("no credentials for s3 cache"));
    }

    #[test]
    fn reads_the_profile_that_is_meant() {
        let file = "[default]\naws_access_key_id = a\naws_secret_access_key = b\n[profile other]\n\
            # aws_access_key_id=x\naws_access_key_id=c\naws_secret_access_key=d=\naws_session_token=e\n[half]\n\
            aws_access_key_id=f\n";
        let login = in_profile(file, "other").unwrap();
        assert_eq!((login.id.as_str(), login.key.expose(), login.token.expose()), ("c", "d=", "e"));
        assert_eq!(in_profile(file, "default").unwrap().id, "a");
        assert!(in_profile(file, "none").is_none() && in_profile(file, "half").is_none());
    }

    #[test]
    fn reads_what_services_hand_out() {
        let json = r#"{"Code":"Success","AccessKeyId":"a","SecretAccessKey":"b","Token":"c",
            "Expiration":"2030-01-01T00:00:00Z"}"#;
        let (login, until) = keys(json).unwrap();
        assert_eq!((login.id.as_str(), login.token.expose()), ("a", "c"));
        assert_eq!(until, Timestamp::parse("2030-01-01T00:00:00Z"));
        assert!(keys("{}").is_err_and(|e| e.to_string().contains("service for keys")));
    }
}
