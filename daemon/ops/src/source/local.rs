//! `local://`: a directory of the client.
//!
//! The client's directory is mirrored into a ref that is kept between builds,
//! so that only what changed is transferred. Its key is random: only its
//! content can be found in the cache.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::digest::Hasher;
use base::patterns::Matcher;
use base::{Digest, Failure, gojson};
use proto::pb;
use refs::{Mutable, NewRef, RecordType, Ref};
use serde::Serialize;
use session::fs::{Changes, Differ, Receive, SelectEntry, Stat};
use session::{Caller, SyncDir};
use solver::{CacheMap, Operation};
use tree::contenthash::{Change, ContentHash, FileHasher, Header};

use super::Attrs;
use crate::content::NOTE;
use crate::used::Material;
use crate::{BuildValues, Cx, Error, Output, Worker};

/// How long a named session may take to appear.
const PATIENCE: Duration = Duration::from_secs(5);

/// A directory of the client.
pub(crate) struct LocalSource {
    worker: Arc<Worker>,
    name: String,
    session: String,
    include: Vec<String>,
    exclude: Vec<String>,
    follow: Vec<String>,
    hint: String,
    differ: Differ,
    metadata_only: bool,
    metadata_exceptions: Vec<String>,
}

/// What the key is made of; the names are those of the reference.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key<'a> {
    #[serde(rename = "SessionID")]
    session_id: &'a str,
    include_patterns: Option<&'a [String]>,
    exclude_patterns: Option<&'a [String]>,
    follow_paths: Option<&'a [String]>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    metadata_transfer: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    metadata_exceptions: &'a [String],
}

impl LocalSource {
    pub(crate) fn new(worker: Arc<Worker>, op: &pb::SourceOp) -> Result<Self, Failure> {
        let attrs = Attrs::new(op);
        let differ = attrs.parse(llb::attr::LOCAL_DIFFER, |value| match value {
            "" | "metadata" => Ok(Differ::Metadata),
            "none" => Ok(Differ::None),
            _ => Err("neither \"metadata\" nor \"none\"".to_owned()),
        })?;
        Ok(Self {
            worker,
            name: op.identifier.trim_start_matches("local://").to_owned(),
            session: attrs.get(llb::attr::LOCAL_SESSION).unwrap_or_default().to_owned(),
            include: attrs.list(llb::attr::LOCAL_INCLUDE_PATTERN)?,
            exclude: attrs.list(llb::attr::LOCAL_EXCLUDE_PATTERNS)?,
            follow: attrs.list(llb::attr::LOCAL_FOLLOW_PATHS)?,
            hint: attrs.get(llb::attr::LOCAL_SHARED_KEY_HINT).unwrap_or_default().to_owned(),
            differ: differ.unwrap_or(Differ::Metadata),
            metadata_only: attrs.flag(llb::attr::LOCAL_METADATA_TRANSFER),
            metadata_exceptions: attrs.list(llb::attr::LOCAL_METADATA_TRANSFER_EXCLUDE)?,
        })
    }

    pub(crate) fn material(&self) -> Material {
        Material::Local { name: self.name.clone() }
    }

    /// The session that is asked: the one that is named, or that of a build.
    fn session(&self, cx: &Cx) -> Result<String, Failure> {
        if !self.session.is_empty() {
            return Ok(self.session.clone());
        }
        let builds = cx.values::<BuildValues>();
        let session = builds.iter().map(|b| &b.session).find(|s| !s.is_empty());
        session.cloned().ok_or_else(|| Error::NoSession.into())
    }

    /// With metadata only: the files that are wanted all the same.
    fn selection(&self) -> Result<Option<SelectEntry>, Failure> {
        if !self.metadata_only {
            return Ok(None);
        }
        let patterns =
            Matcher::new(&self.metadata_exceptions).map_err(|e| Failure::invalid(e.to_string()))?;
        Ok(Some(Arc::new(move |path: &str, _: &Stat| patterns.matches_or_parent(path).unwrap_or(false))))
    }

    async fn transfer(&self, caller: Caller, cx: &Cx) -> Result<Ref, Failure> {
        let refs = &self.worker.refs;
        let suffix = if self.metadata_only { ":metadata" } else { "" };
        let shared = format!("{}:{}:{}{suffix}", self.name, self.hint, caller.shared_key());
        let index = format!("local.sharedKey:{shared}");

        let mut mirror: Option<Mutable> = None;
        for id in refs.search(&index) {
            match refs.get_mutable(&id).await {
                Ok(found) => {
                    mirror = Some(found);
                    break;
                }
                Err(error) => tracing::debug!(%error, id, "not reusing the mirror of a local directory"),
            }
        }
        let mirror = match mirror {
            Some(mirror) => mirror,
            None => {
                let new = NewRef {
                    description: format!("local source for {}", self.name),
                    record_type: RecordType::LocalSource,
                    retain: true,
                };
                refs.new_mutable(None, new).await?
            }
        };
        let noted = mirror.get_meta(NOTE)?.filter(|bytes| !bytes.is_empty());
        let digests = Arc::new(noted.and_then(|bytes| ContentHash::decode(&bytes).ok()).unwrap_or_default());
        // Until the transfer is over, what is noted is not what is there.
        mirror.set_meta(NOTE, &[])?;

        let mounted = mirror.mount().await?;
        let receive = Receive {
            dest: mounted.path().to_owned(),
            differ: self.differ,
            metadata_only: self.selection()?,
            changes: Some(Arc::new(Feed(digests.clone()))),
            ..Receive::default()
        };
        let sync = SyncDir {
            name: self.name.clone(),
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            follow_paths: self.follow.clone(),
            receive,
            progress: Some(cx.progress.clone()),
        };
        let transferred = cx.scope.run(async { Ok(caller.sync_dir(sync).await?) }).await;
        mounted.unmount().await?;
        transferred?;
        digests.end_changes();
        if let Some(bytes) = digests.encode() {
            mirror.set_meta(NOTE, &bytes)?;
        }
        mirror.set_index(&index)?;
        let result = mirror.commit().await?;
        self.worker.contents.put(&result, digests);
        Ok(result)
    }
}

/// Takes what a transfer changes into the content digests.
struct Feed(Arc<ContentHash>);

impl Feed {
    fn header(stat: &Stat) -> Header {
        Header {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size: stat.size,
            link: stat.linkname.clone().into_bytes(),
            major: stat.devmajor,
            minor: stat.devminor,
            xattrs: stat.xattrs.iter().map(|(k, v)| (k.clone().into_bytes(), v.clone())).collect(),
        }
    }
}

impl Changes for Feed {
    fn hasher(&self, stat: &Stat) -> Result<Hasher, Failure> {
        Ok(FileHasher::new(&Self::header(stat))?.into_inner())
    }

    fn changed(&self, path: &str, change: session::fs::Change<'_>) -> Result<(), Failure> {
        let change = match change {
            session::fs::Change::Set { stat, digest } => {
                Change::Present { header: Self::header(stat), digest: digest.clone() }
            }
            session::fs::Change::Removed => Change::Removed,
        };
        self.0.change(path, change);
        Ok(())
    }
}

#[async_trait]
impl Operation<Output> for LocalSource {
    async fn cache_map(&self, _: usize, cx: &Cx) -> Result<CacheMap, Failure> {
        let session = self.session(cx)?;
        // A list that is not there is `null`, as an empty one is for Go.
        fn list(l: &[String]) -> Option<&[String]> {
            (!l.is_empty()).then_some(l)
        }
        let key = Key {
            session_id: &session,
            include_patterns: list(&self.include),
            exclude_patterns: list(&self.exclude),
            follow_paths: list(&self.follow),
            metadata_transfer: self.metadata_only,
            metadata_exceptions: &self.metadata_exceptions,
        };
        let json = gojson::to_vec(&key).map_err(|e| Failure::internal(e.to_string()))?;
        let key = format!("session:{}:{}", self.name, Digest::of(json));
        Ok(CacheMap { digest: super::key_digest(&key), deps: Vec::new(), last: true })
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, _: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let result = if self.session.is_empty() {
            self.worker.any_session(cx, |caller| self.transfer(caller, cx)).await?
        } else {
            match self.worker.sessions.get(&self.session, PATIENCE).await {
                Ok(caller) => self.transfer(caller, cx).await?,
                // The same directory may be had from another build that waits for it.
                Err(_) => self.worker.any_session(cx, |caller| self.transfer(caller, cx)).await?,
            }
        };
        Ok(vec![Some(result)])
    }
}
