//! The register of sessions, and the handle through which one is asked.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base::task::Scope;
use base::{Failure, Kind};
use parking_lot::Mutex;
use proto::control::BytesMessage;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::tunnel::{self, Duplex, Outgoing};
use crate::{Error, metadata};

/// The longest id or shared key that is taken.
const MAX_NAME: usize = 4 << 10;
/// The most methods a client may say it serves.
const MAX_METHODS: usize = 1 << 10;
/// How long [`Sessions::any`] waits for each session.
const ANY_WAIT: Duration = Duration::from_secs(5);

/// All sessions of the daemon. Clones are the same register.
#[derive(Clone)]
pub struct Sessions(Arc<Register>);

struct Register {
    scope: Scope,
    sessions: Mutex<HashMap<String, Caller>>,
    arrived: Notify,
}

/// One client, to be asked. Clones are the same client. Dropping it does not
/// end the session.
#[derive(Clone)]
pub struct Caller(Arc<Client>);

struct Client {
    id: String,
    shared_key: String,
    methods: HashSet<String>,
    channel: Channel,
    scope: Scope,
    ended: CancellationToken,
}

/// What goes back to the client: the answer of `Control.Session`. The session
/// ends when it is dropped.
pub struct Attached {
    outgoing: Outgoing,
    scope: Scope,
}

impl Stream for Attached {
    type Item = Result<BytesMessage, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.outgoing.poll_recv(cx).map(|message| message.map(Ok))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.scope.cancel(Failure::canceled("client closed the session"));
    }
}

/// When a session counts as dead.
#[derive(Debug, Clone, Copy)]
struct HealthRules {
    interval: Duration,
    timeout: Duration,
    failures: u32,
}

impl HealthRules {
    const DEFAULT: Self =
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(15), failures: 2 };

    fn of(map: &MetadataMap) -> Self {
        let millis =
            metadata::first(map, metadata::SESSION_HEALTH_TIMEOUT).and_then(|v| v.parse::<u32>().ok());
        match millis {
            Some(ms) if ms > 0 => {
                let timeout = Duration::from_millis(ms.into()).max(Duration::from_secs(1));
                Self { interval: timeout, timeout, failures: 1 }
            }
            _ => Self::DEFAULT,
        }
    }
}

impl Sessions {
    /// An empty register. Cancelling `scope` ends all sessions; closing it
    /// waits for their tasks.
    pub fn new(scope: Scope) -> Self {
        Self(Arc::new(Register { scope, sessions: Mutex::default(), arrived: Notify::new() }))
    }

    /// Takes a client's `Control.Session` call: its request metadata and the
    /// stream of what it sends. The answer is streamed back to it.
    ///
    /// A session with the id of a present one takes its place.
    ///
    /// # Errors
    /// When the metadata has no usable id, or the tunnel cannot be begun.
    pub async fn attach<S>(&self, metadata: &MetadataMap, incoming: S) -> Result<Attached, Error>
    where
        S: Stream<Item = Result<BytesMessage, tonic::Status>> + Send + 'static,
    {
        let text = |key| metadata::first(metadata, key).unwrap_or_default();
        let (id, shared_key) = (text(metadata::SESSION_ID), text(metadata::SESSION_SHARED_KEY));
        if id.is_empty() {
            return Err(Error::BadRequest("no session id"));
        }
        if id.len() > MAX_NAME || shared_key.len() > MAX_NAME {
            return Err(Error::BadRequest("session id or key is too long"));
        }
        let methods = metadata.get_all(metadata::SESSION_METHOD).iter().filter_map(|m| m.to_str().ok());
        let methods = methods.take(MAX_METHODS).map(str::to_ascii_lowercase).collect();
        let rules = HealthRules::of(metadata);

        let (duplex, outgoing, ended) = Duplex::new(incoming);
        let channel = tunnel::channel(duplex)
            .await
            .map_err(|e| Failure::new(Kind::Unavailable, format!("open session tunnel: {e}")))?;
        let scope = self.0.scope.child();
        let caller = Caller(Arc::new(Client {
            id: id.to_owned(),
            shared_key: shared_key.to_owned(),
            methods,
            channel,
            scope: scope.clone(),
            ended,
        }));
        tracing::debug!(session = id, "session attached");
        if let Some(old) = self.0.sessions.lock().insert(id.to_owned(), caller.clone()) {
            old.0.scope.cancel(Failure::canceled("another session took its id"));
        }
        self.0.arrived.notify_waiters();
        let register = self.0.clone();
        self.0.scope.spawn(async move {
            caller.watch(rules).await;
            tracing::debug!(session = caller.id(), cause = %caller.0.scope.cause(), "session ended");
            register.forget(&caller);
        });
        Ok(Attached { outgoing, scope })
    }

    /// The session `id`, if it is there.
    pub fn find(&self, id: &str) -> Option<Caller> {
        let sessions = self.0.sessions.lock();
        sessions.get(strip_prefix(id)).filter(|c| !c.is_gone()).cloned()
    }

    /// The session `id`, as soon as it is there, for at most `wait`.
    ///
    /// # Errors
    /// When it did not come.
    pub async fn get(&self, id: &str, wait: Duration) -> Result<Caller, Error> {
        let until = Instant::now().checked_add(wait);
        loop {
            let arrived = self.0.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(caller) = self.find(id) {
                return Ok(caller);
            }
            let missing = |cause: String| Error::NotFound { id: strip_prefix(id).to_owned(), cause };
            let timeout = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut arrived => {}
                cause = self.0.scope.cancelled() => return Err(missing(cause.to_string())),
                () = timeout => return Err(missing("context deadline exceeded".into())),
            }
        }
    }

    /// Asks the sessions `ids` in turn until one answers; waits five seconds
    /// for each to appear.
    ///
    /// # Errors
    /// That of the last session; [`Error::NoSessions`] when there are no ids.
    pub async fn any<T, F>(&self, ids: &[String], mut ask: impl FnMut(Caller) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut last = Failure::from(Error::NoSessions);
        for id in ids {
            match self.get(id, ANY_WAIT).await {
                Ok(caller) => match ask(caller).await {
                    Ok(value) => return Ok(value),
                    Err(e) => last = e,
                },
                Err(e) => last = e.into(),
            }
        }
        Err(last)
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.0.sessions.lock().len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Register {
    fn forget(&self, caller: &Caller) {
        let mut sessions = self.sessions.lock();
        if sessions.get(caller.id()).is_some_and(|c| Arc::ptr_eq(&c.0, &caller.0)) {
            sessions.remove(caller.id());
        }
    }
}

/// Ids may have the form `prefix:id`; the prefix keeps vertices apart and has
/// no meaning here.
fn strip_prefix(id: &str) -> &str {
    match id.split_once(':') {
        Some((_, rest)) if !rest.is_empty() => rest,
        _ => id,
    }
}

impl Caller {
    /// The session's id.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Two sessions with one key see the same local directories.
    pub fn shared_key(&self) -> &str {
        &self.0.shared_key
    }

    /// Whether the client serves `method`, given as `/service/method` in any case.
    pub fn supports(&self, method: &str) -> bool {
        self.0.methods.contains(&method.to_ascii_lowercase())
    }

    /// Waits for the end of the session and tells its cause.
    pub async fn gone(&self) -> Failure {
        self.0.scope.cancelled().await
    }

    /// Ends the session.
    pub fn close(&self, cause: Failure) {
        self.0.scope.cancel(cause);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.0.scope.is_cancelled() || self.0.ended.is_cancelled()
    }

    pub(crate) fn channel(&self) -> Channel {
        self.0.channel.clone()
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.0.scope
    }

    pub(crate) fn require(&self, method: &'static str) -> Result<(), Error> {
        if self.supports(method) { Ok(()) } else { Err(Error::Unsupported(method)) }
    }

    /// Runs a question; it fails with the cause when the session ends.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            biased;
            _ = self.0.scope.cancelled() => Err(self.lost()),
            result = work => match result {
                // The transport's own words say less than that the client is gone.
                Err(Error::Peer { .. } | Error::Broken(_)) if self.is_gone() => Err(self.lost()),
                result => result,
            },
        }
    }

    fn lost(&self) -> Error {
        let cause = if self.0.scope.is_cancelled() {
            self.0.scope.cause()
        } else {
            Failure::canceled("client closed the connection")
        };
        Error::Gone { id: self.id().to_owned(), cause }
    }

    async fn watch(&self, rules: HealthRules) {
        tokio::select! {
            biased;
            _ = self.0.scope.cancelled() => {}
            () = self.0.ended.cancelled() => {
                self.0.scope.cancel(Failure::canceled("client closed the connection"));
            }
            cause = self.unhealthy(rules) => {
                tracing::warn!(session = self.id(), %cause, "session ends");
                self.0.scope.cancel(cause);
            }
        }
    }

    /// Asks for the client's health until it has failed too often.
    async fn unhealthy(&self, rules: HealthRules) -> Failure {
        let mut client = HealthClient::new(self.channel());
        let (mut failures, mut took) = (0, Duration::ZERO);
        loop {
            tokio::time::sleep(rules.interval).await;
            // A busy line is slow: what took long last time may take longer now.
            let timeout = rules.timeout.max(took.mul_f64(1.5));
            let begun = Instant::now();
            let check = client.check(HealthCheckRequest::default());
            let cause = match tokio::time::timeout(timeout, check).await {
                Ok(Ok(_)) => None,
                Ok(Err(status)) => Some(status.message().to_owned()),
                Err(_) => Some("context deadline exceeded".to_owned()),
            };
            took = begun.elapsed();
            match cause {
                None => failures = 0,
                Some(cause) => {
                    failures += 1;
                    if failures >= rules.failures {
                        let text = format!("session healthcheck failed fatally: {cause}");
                        return Failure::new(Kind::Unavailable, text);
                    }
                    tracing::debug!(session = self.id(), cause, "session health check failed");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_stripped() {
        assert_eq!(strip_prefix("a:b:c"), "b:c");
        assert_eq!(strip_prefix("a:"), "a:");
        assert_eq!(strip_prefix("a"), "a");
    }

    #[test]
    fn health_rules_follow_the_client() {
        let mut map = MetadataMap::new();
        assert_eq!(HealthRules::of(&map).failures, 2);
        metadata::append(&mut map, metadata::SESSION_HEALTH_TIMEOUT, "50").unwrap();
        let rules = HealthRules::of(&map);
        assert_eq!((rules.failures, rules.interval), (1, Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends() {
        let sessions = Sessions::new(Scope::root());
        let e = sessions.get("p:x", Duration::from_secs(5)).await.err().unwrap();
        assert_eq!(e.to_string(), "no active session for x: context deadline exceeded");
        let none = sessions.any(&[], |_| async { Ok(()) }).await.unwrap_err();
        assert_eq!(none.to_string(), "no active sessions");
    }

    #[tokio::test]
    async fn a_session_needs_an_id() {
        let sessions = Sessions::new(Scope::root());
        let result = sessions.attach(&MetadataMap::new(), tokio_stream::empty()).await;
        assert!(matches!(result, Err(Error::BadRequest(_))));
    }
}
