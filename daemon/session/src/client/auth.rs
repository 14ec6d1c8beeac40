//! Answers for registries.

use std::sync::Arc;

use base::{Failure, Kind, Secret};
use proto::moby::filesync::v1 as wire;
use tonic::{Request, Response, Status};

use super::refuse;
use crate::{Token, TokenRequest};

/// What a client has for a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credential {
    /// The user; empty for identity tokens.
    pub username: String,
    /// The password or the identity token; empty for nothing.
    pub secret: Secret,
    /// A bearer token to be used as it is; empty for nothing.
    pub registry_token: Secret,
}

/// A key pair (ed25519) that proves which tokens may be shared.
pub trait Authority: Send + Sync {
    /// The public key.
    fn public_key(&self) -> [u8; 32];
    /// The signature of `payload`.
    fn sign(&self, payload: &[u8]) -> [u8; 64];
}

/// Where credentials come from.
#[tonic::async_trait]
pub trait Credentials: Send + Sync + 'static {
    /// What there is for `host`; the default when there is nothing.
    ///
    /// # Errors
    /// When it cannot be told.
    async fn lookup(&self, host: &str) -> Result<Credential, Failure>;

    /// Fetches a token, so that the secret stays here.
    ///
    /// # Errors
    /// When it cannot be had.
    async fn fetch_token(&self, request: TokenRequest) -> Result<Token, Failure>;

    /// The key for `host` and the daemon's `salt`; `None` when tokens are not
    /// fetched here.
    ///
    /// # Errors
    /// When it cannot be made.
    async fn authority(&self, host: &str, salt: &[u8]) -> Result<Option<Box<dyn Authority>>, Failure>;
}

pub(super) struct Service {
    pub(super) credentials: Arc<dyn Credentials>,
}

impl Service {
    async fn key(&self, host: &str, salt: &[u8]) -> Result<Box<dyn Authority>, Status> {
        let key = self.credentials.authority(host, salt).await.map_err(refuse)?;
        key.ok_or_else(|| refuse(Failure::new(Kind::Unavailable, "client side tokens disabled")))
    }
}

#[tonic::async_trait]
impl wire::auth_server::Auth for Service {
    async fn credentials(
        &self,
        request: Request<wire::CredentialsRequest>,
    ) -> Result<Response<wire::CredentialsResponse>, Status> {
        let found = self.credentials.lookup(&request.into_inner().host).await.map_err(refuse)?;
        let (username, secret) = (found.username, found.secret.expose().to_owned());
        Ok(Response::new(wire::CredentialsResponse { username, secret }))
    }

    async fn fetch_token(
        &self,
        request: Request<wire::FetchTokenRequest>,
    ) -> Result<Response<wire::FetchTokenResponse>, Status> {
        let request = request.into_inner();
        let request = TokenRequest {
            client_id: request.client_id,
            host: request.host,
            realm: request.realm,
            service: request.service,
            scopes: request.scopes,
        };
        let token = self.credentials.fetch_token(request).await.map_err(refuse)?;
        Ok(Response::new(wire::FetchTokenResponse {
            token: token.token.expose().to_owned(),
            expires_in: token.expires_in,
            issued_at: token.issued_at,
        }))
    }

    async fn get_token_authority(
        &self,
        request: Request<wire::GetTokenAuthorityRequest>,
    ) -> Result<Response<wire::GetTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let key = self.key(&request.host, &request.salt).await?;
        Ok(Response::new(wire::GetTokenAuthorityResponse { public_key: key.public_key().to_vec() }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<wire::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<wire::VerifyTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let key = self.key(&request.host, &request.salt).await?;
        let mut signed = key.sign(&request.payload).to_vec();
        signed.extend_from_slice(&request.payload);
        Ok(Response::new(wire::VerifyTokenAuthorityResponse { signed }))
    }
}
