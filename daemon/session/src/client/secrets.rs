//! Secrets, from files and the environment.

use std::collections::HashMap;
use std::path::PathBuf;

use base::Secret;
use proto::moby::buildkit::secrets::v1::secrets_server::Secrets;
use proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use tonic::{Request, Response, Status};

use super::refuse;
use crate::Error;
use crate::calls::secrets::MAX_SECRET;

/// Where a secret is.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// In a file, read when it is asked for.
    File(PathBuf),
    /// Here, for instance because it was in the environment.
    Value(Secret),
}

pub(super) struct Service {
    pub(super) sources: HashMap<String, SecretSource>,
}

#[tonic::async_trait]
impl Secrets for Service {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let data = match self.sources.get(&id) {
            None => return Err(Status::not_found("not found")),
            Some(SecretSource::Value(value)) => value.expose().as_bytes().to_vec(),
            Some(SecretSource::File(path)) => tokio::fs::read(path)
                .await
                .map_err(|e| refuse(Error::io("read", path.display().to_string(), e)))?,
        };
        if data.len() > MAX_SECRET {
            return Err(Status::unknown(format!("invalid secret size {}", data.len())));
        }
        Ok(Response::new(GetSecretResponse { data }))
    }
}
