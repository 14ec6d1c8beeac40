//! What to remove when the disk gets full.
//!
//! Candidates are chosen and marked under the short lock on the records; from
//! then on nobody can get hold of them. Sizes are counted and files deleted
//! without any lock.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use base::filter::Filters;
use base::task::blocking;
use base::{Failure, Timestamp};

use crate::ledger::Entry;
use crate::model::RecordType;
use crate::open::Inner;
use crate::usage::Usage;
use crate::{Error, Refs};

/// One rule of a prune or of garbage collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunePolicy {
    /// Also what is internal, of frontends or shared.
    pub all: bool,
    /// In containerd's syntax; a record must match one of them, or there are none.
    pub filters: Vec<String>,
    /// Spare what was used more recently.
    pub keep_duration: Option<Duration>,
    /// Bytes that are always allowed. With all three at zero there is no
    /// limit to reach: everything that matches goes.
    pub reserved: u64,
    /// Bytes the whole may take.
    pub max_used: u64,
    /// Bytes to leave free on the disk.
    pub min_free: u64,
}

/// Records removed in one transaction.
const BATCH: usize = 50;

const GB: u64 = 1_000_000_000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// `percent` of a disk, rounded up to whole GB as other daemons do.
fn share(total: u64, percent: u64) -> u64 {
    match total {
        // Not known.
        0 => 2 * GB,
        _ => (u128::from(total) * u128::from(percent) / 100 / (1 << 30)) as u64 * GB + GB,
    }
}

/// The rules a daemon has when nothing is configured, for a disk of `total` bytes.
pub fn default_policies(total: u64) -> Vec<PrunePolicy> {
    let reserved = share(total, 10).min(10 * GB);
    let max_used = share(total, 80).min(100 * GB);
    policies_for(reserved, max_used, share(total, 20))
}

/// The rules for the three limits of a daemon, in bytes.
pub fn policies_for(reserved: u64, max_used: u64, min_free: u64) -> Vec<PrunePolicy> {
    let capped = PrunePolicy { reserved, max_used, min_free, ..PrunePolicy::default() };
    vec![
        // What is easily had again, when it takes much and was not used lately.
        PrunePolicy {
            filters: ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"]
                .map(str::to_owned)
                .to_vec(),
            keep_duration: Some(2 * DAY),
            max_used: 512_000_000,
            ..PrunePolicy::default()
        },
        // What nobody used for long.
        PrunePolicy { keep_duration: Some(60 * DAY), ..capped.clone() },
        capped.clone(),
        // If that was not enough, the daemon's own.
        PrunePolicy { all: true, ..capped },
    ]
}

/// How many bytes may stay; none when there is no limit.
fn allowed(policy: &PrunePolicy, total: u64, free: u64) -> Option<i64> {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    if policy.max_used == 0 && policy.reserved == 0 && policy.min_free == 0 {
        return None;
    }
    let total = signed(total);
    let mut keep = signed(policy.max_used);
    let excess = signed(policy.min_free).saturating_sub(signed(free));
    if excess > 0 {
        let fits = total.saturating_sub(excess);
        keep = if keep == 0 { fits } else { keep.min(fits) };
    } else if policy.min_free != 0 && keep == 0 {
        keep = total;
    }
    // A limit of exactly nothing is no limit, as elsewhere.
    Some(keep.max(signed(policy.reserved))).filter(|keep| *keep != 0)
}

/// The least used come first: by the sum of how late in order of last use and
/// in order of use count each comes.
fn sort(list: &mut [Usage]) {
    list.sort_by_key(|usage| usage.last_used_at);
    let mut times = vec![0.0; list.len()];
    let (mut index, mut last) = (1.0, None);
    for (usage, slot) in list.iter().zip(&mut times) {
        if usage.last_used_at > last {
            (last, index) = (usage.last_used_at, index + 1.0);
        }
        *slot = index;
    }
    let latest: f64 = index;
    let mut order: Vec<usize> = (0..list.len()).collect();
    let count = |at: &usize| list.get(*at).map_or(0, |usage| usage.usage_count);
    order.sort_by_key(count);
    let mut counts = vec![0.0; list.len()];
    let (mut index, mut last) = (1.0, 0);
    for at in &order {
        if count(at) != last {
            (last, index) = (count(at), index + 1.0);
        }
        if let Some(slot) = counts.get_mut(*at) {
            *slot = index;
        }
    }
    let rank: std::collections::HashMap<String, f64> = list
        .iter()
        .zip(times.iter().zip(&counts))
        .map(|(usage, (time, count))| (usage.id.clone(), time / latest + count / index))
        .collect();
    let of = |usage: &Usage| rank.get(&usage.id).copied().unwrap_or(0.0);
    list.sort_by(|a, b| of(a).total_cmp(&of(b)));
}

impl Refs {
    /// Removes what `policies` say, each in turn, and tells `removed` of it,
    /// which is waited for; then the blobs nobody needs any more.
    ///
    /// # Errors
    /// A filter that does not parse, or the disk.
    pub async fn prune<Told: Future<Output = ()> + Send>(
        &self,
        policies: &[PrunePolicy],
        mut removed: impl FnMut(Usage) -> Told + Send,
    ) -> Result<(), Failure> {
        let _one = self.inner.pruning.lock().await;
        for policy in policies {
            self.prune_by(policy, &mut removed).await?;
        }
        let inner = self.inner.clone();
        blocking(move || {
            inner.ledger.store.blobs().collect()?;
            Ok(inner.ledger.store.empty_trash()?)
        })
        .await
    }

    async fn prune_by<Told: Future<Output = ()> + Send>(
        &self,
        policy: &PrunePolicy,
        removed: &mut (impl FnMut(Usage) -> Told + Send),
    ) -> Result<(), Failure> {
        let filters = Arc::new(Filters::parse(&policy.filters).map_err(Error::from)?);
        let capped = policy.max_used != 0 || policy.reserved != 0 || policy.min_free != 0;
        let all = self.listed(capped).await?;
        let shared: Arc<HashSet<String>> =
            Arc::new(all.iter().filter(|usage| usage.shared).map(|usage| usage.id.clone()).collect());
        let mut total: u64 = all.iter().filter(|usage| !usage.shared).map(|usage| usage.size).sum();
        let keep = if capped { allowed(policy, total, self.store().disk()?.free) } else { None };
        loop {
            let excess = match keep {
                Some(keep) => match u64::try_from(i64::try_from(total).unwrap_or(i64::MAX) - keep) {
                    Ok(excess) if excess > 0 => Some(excess),
                    _ => return Ok(()),
                },
                None => None,
            };
            let (inner, policy) = (self.inner.clone(), policy.clone());
            let (filters, shared) = (filters.clone(), shared.clone());
            let gone = blocking(move || inner.prune_some(&policy, &filters, &shared, excess)).await?;
            if gone.is_empty() {
                return Ok(());
            }
            for usage in gone {
                total = total.saturating_sub(usage.size);
                removed(usage).await;
            }
        }
    }

    /// All that counts, `sized` with sizes.
    async fn listed(&self, sized: bool) -> Result<Vec<Usage>, Failure> {
        let inner = self.inner.clone();
        blocking(move || {
            let mut list = inner.list();
            inner.mark_shared(&mut list)?;
            for usage in list.iter_mut().filter(|_| sized) {
                usage.size = inner.size_of(usage)?;
            }
            Ok(list)
        })
        .await
    }
}

impl Inner {
    /// Removes some of what matches: as much as is too much, or a batch.
    fn prune_some(
        &self,
        policy: &PrunePolicy,
        filters: &Filters,
        shared: &HashSet<String>,
        excess: Option<u64>,
    ) -> Result<Vec<Usage>, Failure> {
        let now = Timestamp::now();
        let spared = |usage: &Usage| {
            let own = matches!(usage.record_type, RecordType::Internal | RecordType::Frontend);
            let recent = policy.keep_duration.is_some_and(|keep| {
                !keep.is_zero() && usage.last_used_at.is_some_and(|at| now.since(at) < keep)
            });
            (!policy.all && (own || usage.shared)) || recent
        };
        let mut list = self.list();
        list.retain_mut(|usage| {
            usage.shared = shared.contains(&usage.id);
            // What it stands on is not for filters to see here.
            let field = |path: &[&str]| if path == ["parents"] { None } else { usage.field(path) };
            !usage.in_use && !spared(usage) && filters.matches(field)
        });
        {
            let state = self.ledger.lock();
            list.retain(|usage| state.entries.get(&usage.id).is_some_and(Entry::is_free));
        }
        if excess.is_some() {
            sort(&mut list);
        }
        let mut freed = 0;
        let mut chosen = Vec::new();
        for mut usage in list {
            if chosen.len() == BATCH || excess.is_some_and(|excess| freed >= excess) {
                break;
            }
            // Somebody may get hold of it while it is counted, but not later.
            usage.size = self.size_of(&usage)?;
            freed += usage.size;
            chosen.push(usage);
        }
        let ids = self.mark_dying(&mut chosen);
        if ids.is_empty() {
            return Ok(chosen);
        }
        let removed = self.ledger.store.fail().pass("prune.chosen").map_err(Into::into);
        if let Err(e) = removed.and_then(|()| self.ledger.remove(&ids, true)) {
            let mut state = self.ledger.lock();
            for id in &ids {
                if let Some(entry) = state.entries.get_mut(id) {
                    entry.dying = false;
                }
            }
            return Err(e.into());
        }
        Ok(chosen)
    }

    /// Marks those that are still free, and what they were committed as; the
    /// ids of all of these.
    fn mark_dying(&self, chosen: &mut Vec<Usage>) -> Vec<String> {
        let mut ids = Vec::new();
        let mut state = self.ledger.lock();
        chosen.retain(|usage| {
            let Some(entry) = state.entries.get(&usage.id).filter(|entry| entry.is_free()) else {
                return false;
            };
            let twin = entry.record.committed_as.clone().filter(|id| state.entries.contains_key(id));
            if twin.as_ref().is_some_and(|id| !state.entries.get(id).is_some_and(Entry::is_free)) {
                return false;
            }
            for id in twin.into_iter().chain([usage.id.clone()]) {
                if let Some(entry) = state.entries.get_mut(&id) {
                    entry.dying = true;
                }
                ids.push(id);
            }
            true
        });
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_follow_the_disk() {
        let policies = default_policies(100 << 30);
        assert_eq!(policies.len(), 4);
        assert_eq!(policies[1].reserved, 10 * GB);
        assert_eq!(policies[1].min_free, 21 * GB);
        assert_eq!(policies[1].max_used, 81 * GB);
        assert_eq!(default_policies(0)[2].max_used, 2 * GB);
        assert!(policies[3].all);
    }

    #[test]
    fn limits_add_up() {
        let policy = |reserved, max_used, min_free| PrunePolicy {
            reserved,
            max_used,
            min_free,
            ..PrunePolicy::default()
        };
        assert_eq!(allowed(&policy(0, 0, 0), 100, 0), None);
        assert_eq!(allowed(&policy(0, 50, 0), 100, 0), Some(50));
        assert_eq!(allowed(&policy(0, 50, 30), 100, 10), Some(50));
        assert_eq!(allowed(&policy(0, 90, 30), 100, 10), Some(80));
        assert_eq!(allowed(&policy(85, 90, 30), 100, 10), Some(85));
        assert_eq!(allowed(&policy(0, 0, 30), 100, 40), Some(100));
    }

    fn usage(id: &str, at: Option<i64>, count: u64) -> Usage {
        Usage {
            id: id.into(),
            parents: Vec::new(),
            created_at: Timestamp::EPOCH,
            last_used_at: at.map(Timestamp::from_secs),
            usage_count: count,
            size: 0,
            in_use: false,
            mutable: false,
            shared: false,
            description: String::new(),
            record_type: RecordType::Regular,
        }
    }

    #[test]
    fn the_least_used_goes_first() {
        let mut list = [
            usage("new", Some(9), 1),
            usage("often", Some(1), 50),
            usage("never", None, 0),
            usage("old", Some(2), 1),
        ];
        sort(&mut list);
        let order: Vec<_> = list.iter().map(|u| u.id.as_str()).collect();
        assert_eq!(order[0], "never");
        assert!(order.iter().position(|id| *id == "old") < order.iter().position(|id| *id == "new"));
    }
}
