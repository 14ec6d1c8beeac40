//! Namespaces ahead of their use, and those that wait to be destroyed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::task::blocking;

use crate::networks::{Inner, Made};

/// After a failure the pool rests, so as not to fail in circles.
const REST: Duration = Duration::from_secs(5);

/// Steps follow each other within this time, or do not.
const LINGER: Duration = Duration::from_secs(2);

/// More than these do not wait to be destroyed: whoever wants a namespace helps first.
const MAX_DROPPED: usize = 64;

/// Links of namespaces that have ended are remembered up to this number: the kernel has
/// removed older ones by then.
const LEAVING: usize = 1024;

#[derive(Default)]
pub(crate) struct Pool {
    ready: Vec<Made>,
    /// Given up without being waited for.
    dropped: Vec<Made>,
    /// Host ends of links into namespaces that were destroyed, the last ones. The kernel
    /// takes them away when it gets round to it.
    leaving: VecDeque<String>,
    /// When one was wanted last.
    wanted: Option<Instant>,
}

/// What is to be done for there to be as many as there should be.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Make,
    /// Nothing, for so long.
    Wait(Option<Duration>),
}

impl Pool {
    /// One that is ready, if any. Another may be wanted soon.
    pub(crate) fn take(&mut self) -> Option<Made> {
        self.wanted = Some(Instant::now());
        self.ready.pop()
    }

    /// One to be destroyed, where too many wait for that.
    pub(crate) fn too_many(&mut self) -> Option<Made> {
        (self.dropped.len() > MAX_DROPPED).then(|| self.dropped.pop()).flatten()
    }

    /// Takes the first one.
    pub(crate) fn begin(&mut self, made: Made) {
        self.wanted = Some(Instant::now());
        self.ready.push(made);
    }

    /// Takes one that nobody needs any more.
    pub(crate) fn give_up(&mut self, made: Made) {
        self.dropped.push(made);
    }

    /// Remembers links whose namespace has ended.
    pub(crate) fn leave(&mut self, links: impl Iterator<Item = String>) {
        self.leaving.extend(links);
        let surplus = self.leaving.len().saturating_sub(LEAVING);
        self.leaving.drain(..surplus);
    }

    /// Takes the links that are remembered.
    pub(crate) fn take_leaving(&mut self) -> Vec<String> {
        self.leaving.drain(..).collect()
    }

    /// Takes all that are there.
    pub(crate) fn take_all(&mut self) -> Vec<Made> {
        self.ready.drain(..).chain(self.dropped.drain(..)).collect()
    }

    /// Gives up those that are too many. There are to be `size`, and with `ahead` one for
    /// the next step while steps follow each other.
    fn next(&mut self, size: usize, ahead: bool, now: Instant) -> Next {
        let since = self.wanted.map(|wanted| now.saturating_duration_since(wanted));
        let lingers = since.filter(|_| ahead && size == 0).and_then(|since| LINGER.checked_sub(since));
        let target = if lingers.is_some() { 1 } else { size };
        self.dropped.extend(self.ready.drain(target.min(self.ready.len())..));
        if self.ready.len() < target { Next::Make } else { Next::Wait(lingers) }
    }
}

/// Keeps namespaces ready.
pub(crate) async fn fill(inner: Arc<Inner>) {
    loop {
        let wanted = inner.wake.notified();
        let next = inner.pool.lock().next(inner.pool_size, inner.ahead(), Instant::now());
        // Some may have been given up.
        inner.sweep.notify_waiters();
        if let Next::Wait(lingers) = next {
            let enough = async {
                match lingers {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wanted => {}
                () = enough => {}
                _ = inner.scope.cancelled() => return,
            }
            continue;
        }
        if inner.scope.is_cancelled() {
            return;
        }
        let turn = inner.turn.lock().await;
        let maker = inner.clone();
        let made = blocking(move || Ok(maker.make("")?)).await;
        match made {
            Ok(made) => inner.pool.lock().ready.push(made),
            Err(e) => {
                drop(turn);
                tracing::warn!(error = %e, "prepare network namespace");
                tokio::select! {
                    () = tokio::time::sleep(REST) => {}
                    _ = inner.scope.cancelled() => return,
                }
            }
        }
    }
}

/// Destroys namespaces whose owners did not.
pub(crate) async fn sweep(inner: Arc<Inner>) {
    loop {
        let wanted = inner.sweep.notified();
        let turn = inner.turn.lock().await;
        let Some(dropped) = inner.pool.lock().dropped.pop() else {
            drop(turn);
            tokio::select! {
                () = wanted => continue,
                _ = inner.scope.cancelled() => return,
            }
        };
        destroy(&inner, dropped).await;
    }
}

/// Destroys one; what goes wrong is in the log.
pub(crate) async fn destroy(inner: &Arc<Inner>, made: Made) {
    let destroyer = inner.clone();
    let done = blocking(move || {
        destroyer.destroy_logged(made);
        Ok(())
    });
    if let Err(e) = done.await {
        tracing::warn!(error = %e, "destroy network namespace");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(ready: usize) -> Pool {
        Pool { ready: (0..ready).map(|_| Made::default()).collect(), ..Pool::default() }
    }

    #[test]
    fn one_is_ahead_while_steps_follow_each_other() {
        let now = Instant::now();
        let mut pool = pool(0);
        assert_eq!(pool.next(0, true, now), Next::Wait(None));
        assert!(pool.take().is_none());
        let wanted = pool.wanted.unwrap();
        assert_eq!(pool.next(0, false, wanted), Next::Wait(None), "not where nobody wants it");
        assert_eq!(pool.next(0, true, wanted), Next::Make);
        pool.ready.push(Made::default());
        assert_eq!(pool.next(0, true, wanted), Next::Wait(Some(LINGER)));
        let later = wanted + LINGER * 2;
        assert_eq!(pool.next(0, true, later), Next::Wait(None));
        assert_eq!((pool.ready.len(), pool.dropped.len()), (0, 1));
    }

    #[test]
    fn as_many_as_were_asked_for() {
        let now = Instant::now();
        assert_eq!(pool(2).next(3, true, now), Next::Make);
        let mut pool = pool(4);
        assert_eq!(pool.next(3, true, now), Next::Wait(None));
        assert_eq!((pool.ready.len(), pool.dropped.len()), (3, 1));
    }

    #[test]
    fn nobody_waits_in_a_crowd() {
        let mut pool = Pool::default();
        for _ in 0..=MAX_DROPPED {
            assert!(pool.too_many().is_none());
            pool.give_up(Made::default());
        }
        assert!(pool.too_many().is_some());
        assert!(pool.too_many().is_none());
    }
}
