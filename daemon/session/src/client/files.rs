//! Local directories, as the daemon asks for them.

use std::collections::HashMap;
use std::pin::Pin;

use base::gotext;
use base::task::Scope;
use futures_util::{Stream, StreamExt};
use proto::fsutil::types::Packet;
use proto::moby::filesync::v1::file_sync_server::FileSync;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{narrowed, refuse};
use crate::fs::{self, Dir, Filter};
use crate::metadata;

pub(super) struct Files {
    pub(super) dirs: HashMap<String, Dir>,
    pub(super) scope: Scope,
}

type Packets = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for Files {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let map = request.metadata();
        let name = metadata::list(map, metadata::DIR_NAME).into_iter().next().unwrap_or_default();
        let filter = Filter {
            include: metadata::list(map, metadata::INCLUDE),
            exclude: metadata::list(map, metadata::EXCLUDE),
            follow: metadata::list(map, metadata::FOLLOW),
        };
        let Some(dir) = self.dirs.get(&name) else {
            return Err(Status::not_found(format!("no access allowed to dir {}", gotext::quote(&name))));
        };
        let tree = narrowed(dir, filter);
        let (tx, rx) = mpsc::channel(64);
        let incoming = request.into_inner();
        let transfer = self.scope.spawn(async move { fs::send(tree, tx, incoming, |_| {}).await });
        Ok(Response::new(answer(rx, transfer)))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("tarstream is not supported"))
    }
}

/// Packets, and then the error of the transfer if there is one.
pub(super) fn answer(
    packets: mpsc::Receiver<Packet>,
    transfer: tokio::task::JoinHandle<Result<(), crate::Error>>,
) -> Packets {
    let end = async move {
        match transfer.await {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(Err(refuse(e))),
            Err(_) => Some(Err(Status::internal("file transfer panicked"))),
        }
    };
    let end = futures_util::stream::once(end).filter_map(std::future::ready);
    ReceiverStream::new(packets).map(Ok).chain(end).boxed()
}
