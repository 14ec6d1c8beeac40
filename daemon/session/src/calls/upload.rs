//! A file the client uploads, such as a build context on its standard input.

use bytes::Bytes;
use proto::moby::upload::v1 as wire;

use super::client;
use crate::{Caller, Error, metadata};

/// A file on its way.
pub struct Upload {
    caller: Caller,
    stream: tonic::Streaming<wire::BytesMessage>,
}

impl Caller {
    /// Begins to pull what the client offers under `host` and `path`.
    ///
    /// # Errors
    /// When the client offers nothing there.
    pub async fn pull(&self, host: &str, path: &str) -> Result<Upload, Error> {
        let mut client = client!(wire::upload_client::UploadClient, self);
        let mut request = tonic::Request::new(tokio_stream::empty());
        metadata::append(request.metadata_mut(), metadata::URL_PATH, path)?;
        metadata::append(request.metadata_mut(), metadata::URL_HOST, host)?;
        let stream = self.run(async { Ok(client.pull(request).await?.into_inner()) }).await?;
        Ok(Upload { caller: self.clone(), stream })
    }
}

impl Upload {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the client fails or goes away.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let Self { caller, stream } = self;
        let message = caller.run(async { Ok(stream.message().await?) }).await?;
        Ok(message.map(|m| m.data))
    }
}
