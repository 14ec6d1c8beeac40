//! The persistent directories of `RUN --mount=type=cache`.
//!
//! A directory is a retained mutable ref, found by its key. How many steps may
//! have it at once is what its sharing mode says.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use base::task::Scope;
use base::{Failure, Kind};
use parking_lot::Mutex;
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

impl CacheMounts {
    /// The directory `id`, based on `base` when it is new. The scope ends the
    /// waiting for a locked one.
    pub(crate) async fn get(
        &self,
        refs: &Refs,
        id: &str,
        base: Option<&Ref>,
        sharing: Sharing,
        description: &str,
        scope: &Scope,
    ) -> Result<Arc<Mutable>, Failure> {
        let key = match base {
            Some(base) => format!("cache-dir:{id}:{}", base.id()),
            None => format!("cache-dir:{id}"),
        };
        loop {
            {
                let _turn = self.turn.lock().await;
                if sharing == Sharing::Shared {
                    let known = self.shared.lock().get(&key).and_then(Weak::upgrade);
                    if let Some(known) = known {
                        return Ok(known);
                    }
                }
                let (found, locked) = free(refs, &key).await?;
                let mutable = match found {
                    Some(mutable) => Some(mutable),
                    None if locked && sharing == Sharing::Locked => None,
                    None => Some(create(refs, &key, base, id, description).await?),
                };
                if let Some(mutable) = mutable {
                    let mutable = Arc::new(mutable);
                    if sharing == Sharing::Shared {
                        let mut shared = self.shared.lock();
                        shared.retain(|_, m| m.strong_count() > 0);
                        shared.insert(key, Arc::downgrade(&mutable));
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

async fn create(
    refs: &Refs,
    key: &str,
    base: Option<&Ref>,
    id: &str,
    description: &str,
) -> Result<Mutable, Failure> {
    let new = NewRef {
        description: format!("cached mount {id} from {description}"),
        record_type: RecordType::CacheMount,
        retain: true,
    };
    let mutable = refs.new_mutable(base, new).await?;
    mutable.set_index(key)?;
    Ok(mutable)
}
