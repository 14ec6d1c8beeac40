//! Secrets.

use base::Kind;
use proto::moby::buildkit::secrets::v1 as wire;

use super::auth::none_if;
use super::client;
use crate::{Caller, Error};

/// The largest secret, in bytes.
pub(crate) const MAX_SECRET: usize = 500 * 1024;

impl Caller {
    /// The secret `id`.
    ///
    /// # Errors
    /// [`Error::NoSecret`] when the client does not have it or serves no secrets.
    pub async fn secret(&self, id: &str) -> Result<Vec<u8>, Error> {
        let mut client = client!(wire::secrets_client::SecretsClient, self);
        let request = wire::GetSecretRequest { id: id.to_owned(), ..Default::default() };
        let answer = self.run(async { Ok(client.get_secret(request).await?.into_inner()) }).await;
        let Some(answer) = none_if(answer, &[Kind::Unimplemented, Kind::NotFound])? else {
            return Err(Error::NoSecret { id: id.to_owned() });
        };
        if answer.data.len() > MAX_SECRET {
            return Err(Error::SecretTooLarge {
                id: id.to_owned(),
                size: answer.data.len(),
                limit: MAX_SECRET,
            });
        }
        Ok(answer.data)
    }
}
