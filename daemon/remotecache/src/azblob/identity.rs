//! Who the daemon is for Azure where no key is given: an application with a secret,
//! an identity in a cluster, or the machine's own. These are the first of what
//! Azure's own SDK tries, in its order.

use base::gotext::parse_int;
use base::secret::Secret;
use base::{Failure, Timestamp};
use registry::Downloads;
use reqwest::{Method, Url};
use serde::Deserialize;
use std::time::Duration;

use super::PATIENCE;
use crate::Error;
use crate::options::Env;
use crate::web::{self, Headers, Lease, MAX_ANSWER, Payload, Request, Web, encode};

/// What access is asked for.
const RESOURCE: &str = "https://storage.azure.com/";
/// The machine answers at once, or there is none that would.
const MACHINE: Duration = Duration::from_secs(5);

/// Tokens for the storage, as long as they are good.
pub(super) struct Identity {
    env: Env,
    web: Web,
    held: Lease<Secret>,
}

/// Seconds are a number, or a text from machines.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(i64),
    Text(String),
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: Seconds,
}

impl Identity {
    pub(super) fn new(env: Env, downloads: Downloads) -> Self {
        Self { env, web: Web::new(downloads, PATIENCE), held: Lease::default() }
    }

    /// A token that is good now.
    ///
    /// # Errors
    /// When there is none to be had.
    pub(super) async fn token(&self) -> Result<String, Failure> {
        if let Some(token) = self.held.get() {
            return Ok(token.expose().to_owned());
        }
        let answer = self.ask().await.map_err(|e| e.context("failed to create default azure credentials"))?;
        let seconds = match answer.expires_in {
            Seconds::Number(seconds) => seconds,
            Seconds::Text(text) => parse_int(&text, 64).unwrap_or(0),
        };
        let until = Timestamp::from_secs(Timestamp::now().secs().saturating_add(seconds));
        self.held.set(&Secret::new(answer.access_token.as_str()), until);
        Ok(answer.access_token)
    }

    async fn ask(&self) -> Result<Answer, Failure> {
        let env = &self.env;
        let known = env.get("AZURE_TENANT_ID").zip(env.get("AZURE_CLIENT_ID"));
        if let Some((tenant, client)) = known {
            let file = env.get("AZURE_FEDERATED_TOKEN_FILE");
            let proof = match (env.get("AZURE_CLIENT_SECRET"), file) {
                (Some(secret), _) => Some(format!("client_secret={}", encode(secret, ""))),
                (None, Some(file)) => {
                    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
                    let token = encode(&web::secret(file).await?, "");
                    Some(format!("client_assertion_type={}&client_assertion={token}", encode(kind, "")))
                }
                (None, None) => None,
            };
            if let Some(proof) = proof {
                let authority =
                    env.get("AZURE_AUTHORITY_HOST").unwrap_or("https://login.microsoftonline.com");
                let address =
                    format!("{}/{}/oauth2/v2.0/token", authority.trim_end_matches('/'), encode(tenant, ""));
                let scope = encode(&format!("{RESOURCE}.default"), "");
                let client = encode(client, "");
                let form = format!("grant_type=client_credentials&client_id={client}&scope={scope}&{proof}");
                let headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
                return self.fetch(Method::POST, &address, Payload::Bytes(form.into()), headers).await;
            }
        }
        let machine = env.get("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or("http://169.254.169.254");
        let mut address = format!(
            "{}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={}",
            machine.trim_end_matches('/'),
            encode(RESOURCE, "")
        );
        if let Some(client) = env.get("AZURE_CLIENT_ID") {
            address.push_str(&format!("&client_id={}", encode(client, "")));
        }
        let headers = vec![("metadata", "true".to_owned())];
        let asked = self.fetch(Method::GET, &address, Payload::Nothing, headers);
        let none = || {
            Error::attribute(
                "give secret_access_key, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or \
                 AZURE_FEDERATED_TOKEN_FILE for the daemon; this machine has no identity of its own",
            )
        };
        match tokio::time::timeout(MACHINE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => {
                tracing::debug!(%failure, "identity of this machine");
                Err(none().into())
            }
            Err(_) => Err(none().into()),
        }
    }

    async fn fetch(
        &self,
        method: Method,
        address: &str,
        payload: Payload,
        headers: Headers,
    ) -> Result<Answer, Failure> {
        let url: Url = address.parse().map_err(|e| Failure::invalid(format!("address for tokens: {e}")))?;
        let request = Request { method, url: &url, payload: &payload, once: false };
        let answer = web::success(self.web.send(&request, || headers.clone()).await?).await?;
        let json = web::read(answer, MAX_ANSWER).await?;
        let invalid =
            |e: serde_json::Error| Error::Document { what: "answer with a token", reason: e.to_string() };
        Ok(serde_json::from_slice(&json).map_err(invalid)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Server, downloads};

    #[tokio::test]
    async fn applications_show_a_secret_or_what_the_cluster_gave_them() {
        let server = Server::start(|request| {
            let head = "POST /ten%2Fant/oauth2/v2.0/token HTTP/1.1\r\n";
            let scope = "grant_type=client_credentials&client_id=me&scope=https%3A%2F%2Fstorage.azure.com%2F.default&";
            let told = request.starts_with(head) && request.contains(scope);
            match (told, request.rsplit('&').next()) {
                (true, Some("client_secret=a%26b")) => {
                    (200, r#"{"access_token":"one","expires_in":3600}"#.into())
                }
                (true, Some("client_assertion=proof")) => {
                    (200, r#"{"access_token":"two","expires_in":10}"#.into())
                }
                _ => (400, r#"{"error":"what?"}"#.into()),
            }
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "proof\n").unwrap();
        let env = |name: &str, value: &str| {
            let host = ("AZURE_AUTHORITY_HOST", server.url.as_str());
            Env::from([host, ("AZURE_TENANT_ID", "ten/ant"), ("AZURE_CLIENT_ID", "me"), (name, value)])
        };
        let secret = Identity::new(env("AZURE_CLIENT_SECRET", "a&b"), downloads().await);
        assert_eq!(secret.token().await.unwrap(), "one");
        assert_eq!((secret.token().await.unwrap().as_str(), server.asked()), ("one", 1));
        let path = file.path().display().to_string();
        let cluster = Identity::new(env("AZURE_FEDERATED_TOKEN_FILE", &path), downloads().await);
        // Asked for anew, since it is about to expire.
        for asked in [2, 3] {
            assert_eq!((cluster.token().await.unwrap().as_str(), server.asked()), ("two", asked));
        }
        let wrong = Identity::new(env("AZURE_CLIENT_SECRET", "x"), downloads().await);
        let said = wrong.token().await.unwrap_err().to_string();
        assert!(
            said.starts_with("failed to create default azure credentials: ") && said.contains("400"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn machines_have_an_identity_or_not() {
        let server = Server::start(|request| {
            let resource = "resource=https%3A%2F%2Fstorage.azure.com%2F&client_id=me HTTP";
            let told = request.contains(resource) && request.contains("metadata: true");
            let status = if told { 200 } else { 400 };
            (status, r#"{"access_token":"three","expires_in":"3600"}"#.into())
        });
        let host = ("AZURE_POD_IDENTITY_AUTHORITY_HOST", server.url.as_str());
        let machine = Identity::new(Env::from([host, ("AZURE_CLIENT_ID", "me")]), downloads().await);
        assert_eq!(machine.token().await.unwrap(), "three");
        let none = Identity::new(Env::from([host]), downloads().await);
        let said = none.token().await.unwrap_err().to_string();
        assert!(said.contains("give secret_access_key, or set AZURE_TENANT_ID"), "{said}");
    }
}
