//! The persistent directories of `RUN --mount=type=cache`.
//!
//! A directory is a retained mutable ref, found by its key. How many steps may
//! have it at once is what its sharing mode says.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use base::task::Scope;
use base::{Failure, Kind};
use parking_lot::Mutex;
use proto::pb;
use proto::pb::op::Op;
use refs::{Mutable, NewRef, RecordType, Ref, Refs};

/// Who may use a directory at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// All, together.
    Shared,
    /// One; others get another directory.
    Private,
    /// One; others wait.
    Locked,
}

/// The directories that are in use now.
#[derive(Default)]
pub struct CacheMounts {
    shared: Mutex<HashMap<String, Weak<Mutable>>>,
    /// Held while a directory is looked up or made: two steps that come at
    /// once do not make two.
    turn: tokio::sync::Mutex<()>,
}

/// How long to wait before looking again whether a locked directory is free.
const RETRY: Duration = Duration::from_millis(50);

/// What the directory `id`, based on `base`, is found by.
pub(crate) fn key(id: &str, base: Option<&Ref>) -> String {
    match base {
        Some(base) => format!("cache-dir:{id}:{}", base.id()),
        None => format!("cache-dir:{id}"),
    }
}

impl CacheMounts {
    /// The directory of `key`, based on `base` and described so when it is new.
    /// The scope ends the waiting for a locked one, which the caller must not
    /// have already.
    pub(crate) async fn get(
        &self,
        refs: &Refs,
        key: &str,
        base: Option<&Ref>,
        sharing: Sharing,
        description: &str,
        scope: &Scope,
    ) -> Result<Arc<Mutable>, Failure> {
        loop {
            {
                let _turn = self.turn.lock().await;
                if sharing == Sharing::Shared {
                    let known = self.shared.lock().get(key).and_then(Weak::upgrade);
                    if let Some(known) = known {
                        return Ok(known);
                    }
                }
                let (found, locked) = free(refs, key).await?;
                let mutable = match found {
                    Some(mutable) => Some(mutable),
                    None if locked && sharing == Sharing::Locked => None,
                    None => Some(create(refs, key, base, description).await?),
                };
                if let Some(mutable) = mutable {
                    let mutable = Arc::new(mutable);
                    if sharing == Sharing::Shared {
                        let mut shared = self.shared.lock();
                        shared.retain(|_, m| m.strong_count() > 0);
                        shared.insert(key.to_owned(), Arc::downgrade(&mutable));
                    }
                    return Ok(mutable);
                }
            }
            scope
                .run(async {
                    tokio::time::sleep(RETRY).await;
                    Ok(())
                })
                .await?;
        }
    }
}

impl CacheMounts {
    /// Begins the directories of the steps of `graph` anew that are not to use
    /// what was kept. Those who have one now keep it until they are done.
    pub(crate) async fn forget(&self, refs: &Refs, graph: &llb::Graph) -> Result<(), Failure> {
        let ignoring = graph.vertices().iter().filter(|vertex| vertex.meta.ignore_cache);
        let execs = ignoring.filter_map(|vertex| match &vertex.op {
            Op::Exec(exec) => Some(exec),
            _ => None,
        });
        let mounts: Vec<_> = execs.flat_map(|exec| &exec.mounts).collect();
        let ids: BTreeSet<_> = mounts
            .into_iter()
            .filter(|mount| mount.mount_type() == pb::MountType::Cache)
            .filter_map(|mount| Some((mount.cache_opt.as_ref()?.id.as_str(), mount.input >= 0)))
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        for (id, based) in ids {
            let key = key(id, None);
            let found = if based { refs.search_below(&format!("{key}:")) } else { refs.search(&key) };
            for id in found {
                refs.disown(&id).await?;
            }
        }
        self.shared.lock().clear();
        Ok(())
    }
}

/// A directory nobody uses, and whether there is one that somebody uses.
async fn free(refs: &Refs, key: &str) -> Result<(Option<Mutable>, bool), Failure> {
    let mut locked = false;
    for id in refs.search(key) {
        match refs.get_mutable(&id).await {
            Ok(mutable) => return Ok((Some(mutable), locked)),
            Err(refs::Error::Locked { .. }) => locked = true,
            Err(e) => {
                let failure = Failure::from(e);
                if failure.kind() != Kind::NotFound {
                    return Err(failure);
                }
            }
        }
    }
    Ok((None, locked))
}

async fn create(refs: &Refs, key: &str, base: Option<&Ref>, description: &str) -> Result<Mutable, Failure> {
    let new =
        NewRef { description: description.to_owned(), record_type: RecordType::CacheMount, retain: true };
    let mutable = refs.new_mutable(base, new).await?;
    mutable.set_index(key)?;
    Ok(mutable)
}
