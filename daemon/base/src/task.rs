//! Cancellation with a cause, and tasks that are waited for.
//!
//! A [`Scope`] owns the work of one thing: a build, a session, the daemon.
//! Cancelling it cancels its children; closing it waits until every task that
//! was spawned in it has ended. Nothing in this program is spawned outside one.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Failure;

/// A node in the tree of cancellation. Clones are the same node.
#[derive(Clone)]
pub struct Scope {
    node: Arc<Node>,
}

struct Node {
    token: CancellationToken,
    cause: OnceLock<Failure>,
    parent: Option<Arc<Node>>,
    tasks: TaskTracker,
}

impl Default for Scope {
    fn default() -> Self {
        Self::root()
    }
}

impl Scope {
    /// A scope without a parent.
    pub fn root() -> Self {
        Self::node(CancellationToken::new(), None)
    }

    /// A scope that is cancelled with this one, or alone.
    pub fn child(&self) -> Self {
        Self::node(self.node.token.child_token(), Some(self.node.clone()))
    }

    fn node(token: CancellationToken, parent: Option<Arc<Node>>) -> Self {
        Self { node: Arc::new(Node { token, cause: OnceLock::new(), parent, tasks: TaskTracker::new() }) }
    }

    /// Cancels this scope and its children. The first cause stays.
    pub fn cancel(&self, cause: Failure) {
        _ = self.node.cause.set(cause);
        self.node.token.cancel();
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.node.token.is_cancelled()
    }

    /// Why it was cancelled: its own cause or that of the nearest ancestor.
    pub fn cause(&self) -> Failure {
        let mut node = Some(&self.node);
        while let Some(n) = node {
            if let Some(cause) = n.cause.get() {
                return cause.clone();
            }
            node = n.parent.as_ref();
        }
        Failure::canceled("context canceled")
    }

    /// An error when it was cancelled.
    ///
    /// # Errors
    /// The cause of the cancellation.
    pub fn check(&self) -> Result<(), Failure> {
        if self.is_cancelled() { Err(self.cause()) } else { Ok(()) }
    }

    /// Waits for the cancellation and gives its cause.
    pub async fn cancelled(&self) -> Failure {
        self.node.token.cancelled().await;
        self.cause()
    }

    /// Runs `work` until it ends or the scope is cancelled; then `work` is dropped.
    ///
    /// # Errors
    /// The error of `work`, or the cause of the cancellation.
    pub async fn run<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            cause = self.cancelled() => Err(cause),
            result = work => result,
        }
    }

    /// Spawns a task that [`Self::close`] waits for. It is not dropped on
    /// cancellation: it looks at the scope itself.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.node.tasks.spawn(work)
    }

    /// Runs blocking work on a thread of its own; [`Self::close`] waits for it.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.node.tasks.spawn_blocking(work)
    }

    /// Waits until every task of this scope has ended. Tasks of children are
    /// the children's to wait for.
    pub async fn close(&self) {
        self.node.tasks.close();
        self.node.tasks.wait().await;
    }
}

/// Runs blocking work off the async threads and hands its result back.
///
/// # Errors
/// The work's own, or an internal error when it panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => Err(Failure::internal("blocking work panicked")),
        Err(_) => Err(Failure::canceled("the runtime is shutting down")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_knows_its_parents_cause() {
        let parent = Scope::root();
        let child = parent.child();
        parent.cancel(Failure::canceled("client gone"));
        let failure = child.run(std::future::pending::<Result<(), Failure>>()).await.unwrap_err();
        assert_eq!(failure.to_string(), "client gone");
    }

    #[tokio::test]
    async fn close_waits_for_tasks() {
        let scope = Scope::root();
        let (tx, rx) = tokio::sync::oneshot::channel();
        scope.spawn(async move {
            tokio::task::yield_now().await;
            tx.send(()).unwrap();
        });
        scope.close().await;
        rx.await.unwrap();
    }
}
