//! `git://`: a repository at a reference.
//!
//! What a reference means is asked of the remote once per build. Its commits are
//! fetched into a mirror that is kept; a working tree is made of the mirror, and
//! known by the commit it shows, wherever that came from.

mod bundle;
mod checkout;
mod cli;
mod found;
mod remote;
mod verify;
mod wanted;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use base::{Compatibility, Digest, Failure};
use parking_lot::Mutex;
use proto::pb;
use refs::Ref;
use solver::{CacheMap, Operation};
use tokio::sync::{Mutex as AsyncMutex, OnceCell, OwnedMutexGuard};

pub use found::Found;
pub use verify::Objects;
pub use wanted::Wanted;

use bundle::Staged;
use cli::{Access, Git};
use wanted::mismatch;

use super::blob::Locator;
use super::redacted;
use crate::used::{Material, Need, Used};
use crate::{Behalf, Cx, Error, Output, Worker};

/// Whether `text` is the name of an object, in full.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Who works on which remote or result at the moment.
#[derive(Default)]
pub struct Repositories {
    locks: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

impl Repositories {
    /// Waits until nobody else works on `name`.
    async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            match locks.get(name).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    locks.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::new(AsyncMutex::new(()));
                    locks.insert(name.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

impl Wanted {
    /// What the reference means in the builds of `behalf`. Of a commit nobody is asked.
    ///
    /// # Errors
    /// When the remote does not answer, does not have it, or it is not what the
    /// build wants it to be.
    pub async fn find(&self, worker: &Worker, behalf: &Behalf) -> Result<Found, Failure> {
        self.check_checksum()?;
        let bad = |reason: String| Error::Git { remote: redacted(&self.remote), reason };
        if is_commit(&self.reference) {
            if !self.reference.starts_with(&self.checksum) {
                return Err(bad(mismatch(&self.checksum, &self.reference)).into());
            }
            return Ok(Found::pinned(&self.reference, &self.reference));
        }
        if self.bundle.is_some() && self.reference.is_empty() {
            return Ok(Found::pinned(&self.checksum, &self.checksum));
        }
        if self.fetch_by_commit && self.bundle.is_none() {
            if self.checksum.is_empty() {
                return Err(bad("fetch-by-commit requires a checksum or a commit SHA ref".to_owned()).into());
            }
            if !is_commit(&self.checksum) {
                let got = base::gotext::quote(&self.checksum);
                let reason = format!("fetch-by-commit requires a full commit SHA checksum, got {got}");
                return Err(bad(reason).into());
            }
            // Without asking, a bare name is taken for a branch.
            let reference = match self.reference.as_str() {
                "" => self.checksum.clone(),
                full if full.starts_with("refs/") => full.to_owned(),
                name => format!("refs/heads/{name}"),
            };
            return Ok(Found::pinned(&reference, &self.checksum));
        }
        let ask = behalf.scope.run(Box::pin(self.ask_remote(worker, behalf)));
        let bundle = self.bundle.as_ref().map(|bundle| bundle.text()).unwrap_or_default();
        let key = format!("{}#{} {} {bundle}", self.remote, self.reference, self.keep_git_dir);
        let found = behalf.once(|resolved| &resolved.git, &key, ask).await?;
        if !found.checksum.starts_with(&self.checksum) && !found.commit.starts_with(&self.checksum) {
            // Asked again: the one that is remembered may have been looked up for another checksum.
            return behalf.scope.run(Box::pin(self.ask_remote(worker, behalf))).await;
        }
        Ok(found)
    }

    async fn ask_remote(&self, worker: &Worker, behalf: &Behalf) -> Result<Found, Failure> {
        let access = Access::of(self, worker, behalf).await?;
        let git = Git::new(behalf, &access, &self.remote, &worker.scratch);
        match &self.bundle {
            None => self.ask(&git, &self.remote).await,
            Some(_) => {
                let staged = Box::pin(Staged::new(self, worker, &git, behalf)).await?;
                self.ask(&git, &staged.url()).await
            }
        }
    }

    /// As [`Self::find`], with the objects themselves, signatures checked.
    ///
    /// # Errors
    /// Those of [`Self::find`] and of fetching; a signature that is missing or wrong.
    pub async fn find_objects(&self, worker: &Worker, behalf: &Behalf) -> Result<(Found, Objects), Failure> {
        let mut found = self.find(worker, behalf).await?;
        let access = Access::of(self, worker, behalf).await?;
        let git = Git::new(behalf, &access, &self.remote, &worker.scratch);
        let staged = Box::pin(Staged::if_any(self, worker, &git, behalf)).await?;
        let from = staged.as_ref().map(Staged::url);
        let mirror = Box::pin(self.fetch(worker, &git, &found, from.as_deref())).await?;
        let objects = self.objects(&mirror.git, &mut found).await;
        mirror.close().await?;
        let objects = objects?;
        if let Some(rules) = &self.signature {
            objects.check(&found, rules)?;
        }
        Ok((found, objects))
    }

    async fn objects(&self, git: &Git<'_>, found: &mut Found) -> Result<Objects, Failure> {
        let mut objects = Objects::default();
        match git.line(&["cat-file", "-t", &found.checksum]).await?.as_str() {
            "commit" => found.commit.clear(),
            "tag" => {
                let peeled = format!("{}^{{commit}}", found.checksum);
                found.commit = git.line(&["rev-parse", "--verify", &peeled]).await?;
                objects.tag = git.run(&["cat-file", "tag", &found.checksum]).await?;
            }
            other => {
                let reason = format!("expected commit or tag object, got {other}");
                return Err(Error::Git { remote: redacted(&self.remote), reason }.into());
            }
        }
        let commit = if found.commit.is_empty() { &found.checksum } else { &found.commit };
        objects.commit = git.run(&["cat-file", "commit", commit]).await?;
        Ok(objects)
    }

    /// The result for `key`: one that is here, or made now.
    async fn tree(&self, worker: &Worker, key: &str, found: &Found, behalf: &Behalf) -> Result<Ref, Failure> {
        let compatibility = behalf.compatibility()?;
        let index = format!("git-snapshot::{key}:{}", self.subdir);
        let _alone = worker.git.lock(&index).await;
        if let Some(known) = worker.refs.search(&index).iter().find_map(|id| worker.refs.get(id).ok()) {
            return Ok(known);
        }
        let access = Access::of(self, worker, behalf).await?;
        let git = Git::new(behalf, &access, &self.remote, &worker.scratch);
        let staged = Box::pin(Staged::if_any(self, worker, &git, behalf)).await?;
        let from = staged.as_ref().map(Staged::url);
        let mirror = Box::pin(self.fetch(worker, &git, found, from.as_deref())).await?;
        let made = Box::pin(self.checkout(worker, &mirror, found, compatibility)).await;
        mirror.close().await?;
        let made = made?;
        made.set_index(&index)?;
        Ok(made)
    }
}

/// A repository as a source.
pub(crate) struct GitSource {
    worker: Arc<Worker>,
    wanted: Wanted,
    found: OnceCell<Found>,
}

impl GitSource {
    pub(crate) fn new(worker: Arc<Worker>, op: &pb::SourceOp) -> Result<Self, Failure> {
        Ok(Self { worker, wanted: Wanted::parse(op)?, found: OnceCell::new() })
    }

    async fn found(&self, behalf: &Behalf) -> Result<&Found, Failure> {
        let find = || async {
            match self.wanted.signature {
                None => self.wanted.find(&self.worker, behalf).await,
                Some(_) => Ok(Box::pin(self.wanted.find_objects(&self.worker, behalf)).await?.0),
            }
        };
        self.found.get_or_try_init(find).await
    }

    /// What it used, once it is known what the reference stands for.
    pub(crate) fn used(&self) -> Used {
        let wanted = &self.wanted;
        let need = |id: &String| (!id.is_empty()).then(|| Need { id: id.clone(), optional: true });
        let material = self.found.get().map(|found| {
            let separator = if wanted.reference.is_empty() { "" } else { "#" };
            let commit = if is_commit(&found.reference) { &found.reference } else { &found.checksum };
            Material::Git {
                url: format!("{}{separator}{}", wanted.remote, wanted.reference),
                commit: commit.clone(),
                bundle: wanted.bundle.as_ref().map(Locator::address),
            }
        });
        Used {
            materials: material.into_iter().collect(),
            secrets: [&wanted.token_secret, &wanted.header_secret].into_iter().filter_map(need).collect(),
            ssh: need(&wanted.agent).into_iter().collect(),
            ..Used::default()
        }
    }

    /// Also tells apart what differs for another release; of this one it is the
    /// reference's.
    fn key(&self, found: &Found, compatibility: Compatibility) -> String {
        let key = self.commit_key(found);
        match compatibility {
            Compatibility::V10 => format!("{key}(v10)"),
            _ => key,
        }
    }

    fn commit_key(&self, found: &Found) -> String {
        let wanted = &self.wanted;
        if is_commit(&found.reference) {
            return wanted.key(&found.reference, &found.reference);
        }
        // Many tags mean one commit; with its repository each is something else.
        let sha = match found.commit.as_str() {
            commit if !commit.is_empty() && !wanted.keep_git_dir => commit,
            _ => &found.checksum,
        };
        wanted.key(sha, &found.reference)
    }
}

#[async_trait]
impl Operation<Output> for GitSource {
    async fn cache_map(&self, _: usize, cx: &Cx) -> Result<CacheMap, Failure> {
        let behalf = Behalf::of(cx);
        let key = self.key(self.found(&behalf).await?, behalf.compatibility()?);
        Ok(CacheMap { digest: super::key_digest(&key), deps: Vec::new(), last: true })
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, _: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let behalf = Behalf::of(cx);
        let found = self.found(&behalf).await?;
        let key = self.key(found, behalf.compatibility()?);
        let made = Box::pin(self.wanted.tree(&self.worker, &key, found, &behalf)).await?;
        Ok(vec![Some(made)])
    }
}
