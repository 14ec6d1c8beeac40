//! SIGHUP: the configuration is read again, all of it or nothing.
//!
//! What can change while builds run does: the log level, how registries are
//! reached and with which certificates, the certificates of TCP listeners, the
//! rules of garbage collection. Everything else waits for the next start, and is
//! named in the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use refs::PrunePolicy;
use registry::Registries;
use tokio::sync::watch;

use crate::config;
use crate::flags::Flags;
use crate::log::Log;
use crate::settings::Settings;
use crate::tls::Guard;

/// Keys that take effect at once: these, and those below them where they end in a dot.
const LIVE: [&str; 11] = [
    "debug",
    "trace",
    "log.level",
    "registry.",
    "grpc.tls.cert",
    "grpc.tls.key",
    "worker.oci.gcpolicy",
    "worker.oci.gckeepstorage",
    "worker.oci.reservedspace",
    "worker.oci.maxusedspace",
    "worker.oci.minfreespace",
];

/// What a reload needs.
pub(crate) struct Reload {
    /// As the daemon was started.
    pub(crate) flags: Flags,
    /// The file as it was read last, by dotted keys in lower case.
    pub(crate) values: BTreeMap<String, toml::Value>,
    pub(crate) log: Log,
    pub(crate) guard: Arc<Guard>,
    pub(crate) registries: Registries,
    pub(crate) policies: watch::Sender<Vec<PrunePolicy>>,
    /// Size of the disk with the cache, in bytes.
    pub(crate) disk: u64,
}

impl Reload {
    /// Reads everything again and uses it.
    ///
    /// # Errors
    /// When some of it cannot be used; then nothing has changed.
    pub(crate) fn run(&mut self) -> Result<()> {
        let config::Loaded { config, warnings, values } = config::load(&self.flags.config)?;
        let level = self.log.level(&self.flags, &config)?;
        let settings = Settings::new(self.flags.clone(), config)?;
        let tls = settings.tls.load()?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        for key in waiting(&self.values, &values) {
            tracing::warn!(key, "changed; takes effect when the daemon is started again");
        }
        self.log.set(level)?;
        self.guard.replace(tls);
        self.registries.reconfigure(settings.registries);
        self.policies.send_replace(settings.policies.on(self.disk));
        self.values = values;
        Ok(())
    }
}

/// The keys that differ and do not take effect at once.
fn waiting<'a, V: PartialEq>(
    before: &'a BTreeMap<String, V>,
    after: &'a BTreeMap<String, V>,
) -> Vec<&'a str> {
    let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
    let changed = keys.filter(|key| before.get(*key) != after.get(*key)).map(String::as_str);
    let live = |key: &str| LIVE.iter().any(|l| key == *l || (l.ends_with('.') && key.starts_with(l)));
    changed.filter(|key| !live(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_has_to_wait() {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let before = map(&[("root", "/a"), ("debug", "true"), ("registry.x.http", "true")]);
        let after = map(&[("root", "/b"), ("debug", "false"), ("dns.nameservers", "[]")]);
        assert_eq!(waiting(&before, &after), ["root", "dns.nameservers"]);
        assert!(waiting(&before, &before).is_empty());
    }
}
