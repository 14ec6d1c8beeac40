//! Registry credentials, asked from the clients of a build.

use async_trait::async_trait;
use base::{Failure, Timestamp};
use registry::{Credentials, Login, Token, TokenRequest};
use ring::signature::{ED25519, UnparsedPublicKey};
use session::Sessions;

/// Asks the sessions of one build.
pub(crate) struct SessionCredentials {
    pub(crate) sessions: Sessions,
    /// Which sessions, in the order in which they are asked.
    pub(crate) ids: Vec<String>,
    /// The daemon's, fresh at each start: it makes the keys of clients differ
    /// between daemons.
    pub(crate) salt: [u8; 32],
}

#[async_trait]
impl Credentials for SessionCredentials {
    async fn authority(&self, host: &str) -> Result<Option<[u8; 32]>, Failure> {
        if self.ids.is_empty() {
            return Ok(None);
        }
        let mut salt = self.salt.to_vec();
        salt.extend_from_slice(host.as_bytes());
        let salt = &salt;
        self.sessions
            .any(&self.ids, |caller| async move {
                let Some(key) = caller.token_authority(host, salt).await? else { return Ok(None) };
                // A public key is no secret: who shows it has to prove that it is theirs.
                let payload: [u8; 32] = rand::random();
                let signed = caller.sign_token_authority(host, salt, &payload).await?.unwrap_or_default();
                let proven = signed.split_at_checked(64).is_some_and(|(signature, message)| {
                    message == payload
                        && UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
                });
                Ok(proven.then_some(key))
            })
            .await
    }

    async fn login(&self, host: &str) -> Result<Option<Login>, Failure> {
        if self.ids.is_empty() {
            return Ok(None);
        }
        let answer =
            self.sessions.any(&self.ids, |caller| async move { Ok(caller.credentials(host).await?) });
        let (user, secret) = answer.await?;
        Ok((!secret.is_empty()).then_some(Login { user, secret }))
    }

    async fn fetch_token(&self, request: &TokenRequest) -> Result<Token, Failure> {
        let answer = self.sessions.any(&self.ids, |caller| {
            let request = session::TokenRequest {
                client_id: request.client_id.clone(),
                host: request.host.clone(),
                realm: request.realm.clone(),
                service: request.service.clone(),
                scopes: request.scopes.clone(),
            };
            async move { Ok(caller.fetch_token(request).await?) }
        });
        let token = answer.await?;
        Ok(Token {
            token: token.token,
            expires_in: u64::try_from(token.expires_in).unwrap_or(0),
            issued_at: (token.issued_at > 0).then(|| Timestamp::from_secs(token.issued_at)),
        })
    }
}
