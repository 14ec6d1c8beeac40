//! Registry credentials, and tokens the client fetches itself.

use std::future::Future;
use std::time::Duration;

use base::{Kind, Secret};
use proto::moby::filesync::v1 as wire;

use super::client;
use crate::{Caller, Error};

/// A client may have to ask its key chain, or a person.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A token wanted from a registry's token server.
#[derive(Debug, Clone, Default)]
pub struct TokenRequest {
    /// Under which name the daemon asks.
    pub client_id: String,
    /// The registry.
    pub host: String,
    /// The token server's address.
    pub realm: String,
    /// The registry's name for itself.
    pub service: String,
    /// Such as `repository:a/b:pull`.
    pub scopes: Vec<String>,
}

/// A bearer token.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token.
    pub token: Secret,
    /// Its life in seconds.
    pub expires_in: i64,
    /// Seconds since 1970; zero when not known.
    pub issued_at: i64,
}

impl Caller {
    async fn ask<T>(
        &self,
        what: &'static str,
        question: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Error> {
        self.run(async {
            match tokio::time::timeout(TIMEOUT, question).await {
                Ok(answer) => Ok(answer?.into_inner()),
                Err(_) => Err(Error::Timeout { what, seconds: TIMEOUT.as_secs() }),
            }
        })
        .await
    }

    /// User name and secret for a registry; both are empty when the client has
    /// none or does not serve credentials. With an empty user name the secret
    /// is an identity token.
    ///
    /// # Errors
    /// When the client fails to answer within a minute.
    pub async fn credentials(&self, host: &str) -> Result<(String, Secret), Error> {
        let mut client = client!(wire::auth_client::AuthClient, self);
        let request = wire::CredentialsRequest { host: host.to_owned() };
        let answer = self.ask("resolving credentials from session", client.credentials(request)).await;
        match none_if(answer, &[Kind::Unimplemented])? {
            Some(answer) => Ok((answer.username, Secret::new(answer.secret))),
            None => Ok((String::new(), Secret::default())),
        }
    }

    /// Has the client fetch a token, so that its secret stays with it.
    ///
    /// # Errors
    /// When it cannot. [`Kind::Unimplemented`] and [`Kind::Unavailable`] mean
    /// that the daemon should do it itself, with [`Self::credentials`].
    pub async fn fetch_token(&self, request: TokenRequest) -> Result<Token, Error> {
        let mut client = client!(wire::auth_client::AuthClient, self);
        let request = wire::FetchTokenRequest {
            client_id: request.client_id,
            host: request.host,
            realm: request.realm,
            service: request.service,
            scopes: request.scopes,
        };
        let answer = self.ask("fetching auth token from session", client.fetch_token(request)).await?;
        Ok(Token {
            token: Secret::new(answer.token),
            expires_in: answer.expires_in,
            issued_at: answer.issued_at,
        })
    }

    /// The public key (ed25519) by which the client's tokens for `host` may be
    /// shared with others who hold the same secret; `None` when it keeps its
    /// tokens to itself. `salt` is the daemon's, fresh at each start.
    ///
    /// # Errors
    /// When the client fails, or its key is none.
    pub async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<[u8; 32]>, Error> {
        let mut client = client!(wire::auth_client::AuthClient, self);
        let request = wire::GetTokenAuthorityRequest { host: host.to_owned(), salt: salt.to_vec() };
        let answer =
            self.ask("getting token authority from session", client.get_token_authority(request)).await;
        let Some(answer) = none_if(answer, &[Kind::Unimplemented, Kind::Unavailable])? else {
            return Ok(None);
        };
        match <[u8; 32]>::try_from(answer.public_key.as_slice()) {
            Ok(key) => Ok(Some(key)),
            Err(_) => Err(Error::Protocol(format!("invalid pubkey length {}", answer.public_key.len()))),
        }
    }

    /// Has the client sign `payload` with the key of [`Self::token_authority`]:
    /// 64 bytes of signature, then the payload. `None` when it does not sign.
    ///
    /// # Errors
    /// When the client fails. The signature is the caller's to check.
    pub async fn sign_token_authority(
        &self,
        host: &str,
        salt: &[u8],
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut client = client!(wire::auth_client::AuthClient, self);
        let request = wire::VerifyTokenAuthorityRequest {
            host: host.to_owned(),
            payload: payload.to_vec(),
            salt: salt.to_vec(),
        };
        let question = client.verify_token_authority(request);
        let answer = self.ask("verifying token authority from session", question).await;
        Ok(none_if(answer, &[Kind::Unimplemented])?.map(|a| a.signed))
    }
}

/// Turns an answer of one of `kinds` into none.
pub(super) fn none_if<T>(answer: Result<T, Error>, kinds: &[Kind]) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::Peer { failure }) if kinds.contains(&failure.kind()) => Ok(None),
        Err(e) => Err(e),
    }
}
