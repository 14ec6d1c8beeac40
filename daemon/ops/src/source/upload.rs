//! `http://buildkit-session/…`: a file that the client hands over, such as a
//! build context on its standard input.
//!
//! Its key is random: the client can hand it over once. What is in it can be
//! found in the cache all the same.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Digest, Failure};
use proto::pb;
use refs::NewRef;
use solver::{CacheMap, Operation};
use sys::path::Root;

use super::Attrs;
use crate::{Cx, Error, Output, Worker};

/// The host that stands for the client.
const HOST: &str = "buildkit-session";
/// What the file is called when nobody says.
const NAME: &str = "download";

pub(crate) struct UploadSource {
    worker: Arc<Worker>,
    path: String,
    name: String,
    mode: u32,
}

impl UploadSource {
    pub(crate) fn new(worker: Arc<Worker>, op: &pb::SourceOp) -> Result<Self, Failure> {
        let unsupported = || Error::Unsupported { what: "the source http://".to_owned() };
        let rest = op.identifier.split_once("://").map(|(_, rest)| rest).ok_or_else(unsupported)?;
        let (host, path) = rest.split_once('/').ok_or_else(unsupported)?;
        if host != HOST {
            return Err(unsupported().into());
        }
        let attrs = Attrs::new(op);
        let name = attrs.parse(llb::attr::HTTP_FILENAME, |name| match name {
            "" | "." | ".." => Err("not a file name".to_owned()),
            name if name.contains('/') => Err("a file name has no slash".to_owned()),
            name => Ok(name.to_owned()),
        })?;
        let mode = attrs.parse(llb::attr::HTTP_PERM, |mode| {
            u32::from_str_radix(mode.trim_start_matches("0o"), 8).map_err(|e| e.to_string())
        })?;
        Ok(Self {
            worker,
            path: format!("/{path}"),
            name: name.unwrap_or_else(|| NAME.to_owned()),
            mode: mode.unwrap_or(0o600) & 0o777,
        })
    }

    /// Takes the bytes as they come; the disk is written off the async threads.
    async fn take(&self, caller: session::Caller, cx: &Cx, mut file: File) -> Result<(), Failure> {
        let mut upload = caller.pull(HOST, &self.path).await?;
        let mut counter = cx.progress.counter(format!("http://{HOST}{}", self.path), 0);
        while let Some(bytes) = cx.scope.run(async { Ok(upload.next().await?) }).await? {
            let count = bytes.len() as u64;
            file = base::task::blocking(move || {
                file.write_all(&bytes).map_err(|e| sys::Error::new("write", "upload", e))?;
                Ok(file)
            })
            .await?;
            counter.add(count);
        }
        counter.finish();
        Ok(())
    }
}

#[async_trait]
impl Operation<Output> for UploadSource {
    async fn cache_map(&self, _: usize, _: &Cx) -> Result<CacheMap, Failure> {
        let digest = super::key_digest(&format!("session:upload:{}", self.path));
        Ok(CacheMap { digest, deps: Vec::new(), last: true })
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, _: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let new = NewRef { description: format!("upload of {}", self.name), ..NewRef::default() };
        let mutable = self.worker.refs.new_mutable(None, new).await?;
        let mounted = mutable.mount().await?;
        let (root, name, mode) = (mounted.path().to_owned(), self.name.clone(), self.mode);
        let file = base::task::blocking(move || {
            let file = Root::open(root)?.dir().create(&name, mode)?;
            // Whatever the umask says.
            file.set_permissions(Permissions::from_mode(mode))
                .map_err(|e| sys::Error::new("chmod", &name, e))?;
            Ok(file)
        })
        .await?;
        let caller = self.worker.any_session(cx, |caller| async move { Ok(caller) }).await?;
        let taken = self.take(caller, cx, file).await;
        mounted.unmount().await?;
        taken?;
        Ok(vec![Some(mutable.commit().await?)])
    }
}
