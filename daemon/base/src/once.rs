//! Single flight: of several who want the same thing at once, one works.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// Work in progress by key.
///
/// The first caller of [`Flight::run`] for a key does the work; those who come
/// while it runs wait and get a clone of its result. An error goes to the one
/// who met it, and the next in line tries again. When the worker is dropped in
/// the middle, the next in line takes over. Nothing is remembered afterwards.
pub struct Flight<K, T> {
    running: Mutex<HashMap<K, Weak<OnceCell<T>>>>,
}

impl<K, T> Default for Flight<K, T> {
    fn default() -> Self {
        Self { running: Mutex::new(HashMap::new()) }
    }
}

impl<K: Hash + Eq + Clone, T: Clone> Flight<K, T> {
    /// Runs `work`, or waits for the one who runs it.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn run<E, F>(&self, key: K, work: impl FnOnce() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let cell = {
            let mut running = self.running.lock();
            match running.get(&key).and_then(Weak::upgrade) {
                Some(cell) => cell,
                None => {
                    running.retain(|_, cell| cell.strong_count() > 0);
                    let cell = Arc::new(OnceCell::new());
                    running.insert(key, Arc::downgrade(&cell));
                    cell
                }
            }
        };
        cell.get_or_try_init(work).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn runs_once_for_all_who_wait() {
        let flight = Flight::default();
        let runs = AtomicUsize::new(0);
        let one = || {
            flight.run("k", || async {
                runs.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok::<_, ()>(7)
            })
        };
        let (a, b) = tokio::join!(one(), one());
        assert_eq!((a, b), (Ok(7), Ok(7)));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        one().await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 2, "nothing is remembered");
    }
}
