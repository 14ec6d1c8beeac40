//! Calls that no client makes.

use std::path::PathBuf;

use anyhow::Result;
use hyper_util::rt::TokioIo;
use proto::content::ListContentRequest;
use proto::content::content_client::ContentClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::{Buildctl, Daemon};

/// A connection to the daemon that listens on `socket`.
///
/// # Errors
/// When nobody does.
pub async fn connect(socket: PathBuf) -> Result<Channel> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::try_from("http://localhost")?;
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// The digests of all blobs that a daemon has.
///
/// # Errors
/// When it does not say.
pub fn blobs(daemon: &Daemon) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = ContentClient::new(connect(daemon.socket()).await?);
        let mut stream = client.list(ListContentRequest::default()).await?.into_inner();
        let mut found = Vec::new();
        while let Some(message) = stream.message().await? {
            found.extend(message.info.into_iter().map(|info| info.digest));
        }
        Ok(found)
    })
}

/// What a daemon keeps when it is told to keep nothing: blobs and trees.
///
/// # Errors
/// When it does not prune.
pub fn kept(daemon: &Daemon, client: &Buildctl) -> Result<Vec<String>> {
    client.run(&["prune-histories"])?.ok()?;
    client.run(&["prune", "--all"])?.ok()?;
    let mut kept = blobs(daemon)?;
    for dir in ["snapshots", "content/blobs/sha256", "content/ingest"] {
        for entry in std::fs::read_dir(daemon.root().join(dir))? {
            kept.push(entry?.path().display().to_string());
        }
    }
    Ok(kept)
}
