//! What was done for which namespace, so that it can be undone by a later process.
//!
//! An entry is written before anything is done and removed when all of it is undone.
//! It survives the death of the daemon; that of the machine takes the namespaces and
//! rules away by itself.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chain::Chain;
use crate::config::NetworkConfig;
use crate::plugin::{Attachment, Bundled};
use crate::result::NetworkResult;
use crate::{DefaultNetwork, Error};

/// The directories in which namespaces and their entries are.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    namespaces: PathBuf,
    entries: PathBuf,
    default_network: PathBuf,
}

/// What is known of one namespace.
#[derive(Serialize, Deserialize)]
struct Entry {
    network: Value,
    path: Vec<PathBuf>,
    ifname: String,
    args: Vec<(String, String)>,
    result: Option<NetworkResult>,
}

impl Ledger {
    /// Below the directory `net`.
    pub(crate) fn open(net: &Path) -> Result<Self, Error> {
        let ledger = Self {
            namespaces: net.join("cni"),
            entries: net.join("ledger"),
            default_network: net.join("default.json"),
        };
        for dir in [&ledger.namespaces, &ledger.entries] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::file("create", dir))?;
        }
        Ok(ledger)
    }

    /// The file a namespace is bound to.
    pub(crate) fn namespace(&self, id: &str) -> PathBuf {
        self.namespaces.join(id)
    }

    fn entry(&self, id: &str) -> PathBuf {
        self.entries.join(format!("{id}.json"))
    }

    /// Notes what is about to be done, or what came of it.
    pub(crate) fn note(
        &self,
        chain: &Chain,
        attachment: &Attachment,
        result: Option<&NetworkResult>,
    ) -> Result<(), Error> {
        let entry = Entry {
            network: chain.config().to_json(),
            path: chain.path().to_vec(),
            ifname: attachment.ifname.clone(),
            args: attachment.args.clone(),
            result: result.cloned(),
        };
        write(&self.entry(&attachment.container_id), &entry)
    }

    /// All of it is undone.
    pub(crate) fn forget(&self, id: &str) -> Result<(), Error> {
        remove(&self.entry(id))
    }

    /// Notes which default network there is.
    pub(crate) fn note_default(&self, network: &DefaultNetwork) -> Result<(), Error> {
        write(&self.default_network, network)
    }

    /// The default network is gone.
    pub(crate) fn forget_default(&self) -> Result<(), Error> {
        remove(&self.default_network)
    }

    /// Undoes what an earlier process has left. What cannot be undone stays in the
    /// ledger, for the next time.
    pub(crate) fn reap(&self, bundled: &Arc<dyn Bundled>) {
        let ids = |dir: &Path, suffix: &str| -> Vec<String> {
            let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
            let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
            names.filter_map(|n| n.strip_suffix(suffix).map(str::to_owned)).collect()
        };
        // Processes of its steps may be in the namespaces still, so those do not end by
        // themselves and take their links with them.
        let mut links = Vec::new();
        for id in ids(&self.entries, ".json") {
            match self.undo(&id, bundled) {
                Ok(mut of) => links.append(&mut of),
                Err(e) => tracing::warn!(id, error = %e, "undo a network of an earlier daemon"),
            }
        }
        if !links.is_empty()
            && let Err(e) = bundled.remove_links(&links)
        {
            tracing::warn!(error = %e, "remove links of an earlier daemon");
        }
        for id in ids(&self.namespaces, "") {
            if let Err(e) = sys::netns::unbind(&self.namespace(&id)) {
                tracing::warn!(id, error = %e, "remove a network namespace of an earlier daemon");
            }
        }
        let default = std::fs::read(&self.default_network)
            .ok()
            .and_then(|text| serde_json::from_slice::<DefaultNetwork>(&text).ok());
        if let Some(network) = default {
            let removed = bundled.remove_default_network(&network).and_then(|()| self.forget_default());
            if let Err(e) = removed {
                tracing::warn!(error = %e, "remove the default network of an earlier daemon");
            }
        }
    }

    /// Undoes what was done for one namespace. Gives the links on the host that are left: to
    /// remove them one by one takes the kernel its time for each.
    fn undo(&self, id: &str, bundled: &Arc<dyn Bundled>) -> Result<Vec<String>, Error> {
        let mut left = Vec::new();
        let path = self.entry(id);
        let text = std::fs::read(&path).map_err(Error::file("read", &path))?;
        // One that was cut off while it was written: nothing had been done yet.
        if let Ok(entry) = serde_json::from_slice::<Entry>(&text) {
            let namespace = self.namespace(id);
            let attachment = Attachment {
                container_id: id.to_owned(),
                netns: namespace.exists().then_some(namespace),
                ifname: entry.ifname,
                args: entry.args,
                ..Attachment::default()
            };
            let config = NetworkConfig::parse(entry.network.to_string().as_bytes(), "ledger")?;
            let chain = Chain::new(config, entry.path, bundled.clone());
            // Without a result nobody knows their names.
            let known = entry.result.is_some();
            let done = chain.del(&attachment, entry.result.as_ref(), known);
            let interfaces = entry.result.map(|result| result.interfaces).unwrap_or_default();
            left.extend(interfaces.into_iter().filter(|i| i.sandbox.is_empty()).map(|i| i.name));
            sys::netns::unbind(&self.namespace(id))?;
            done?;
        }
        self.forget(id)?;
        Ok(left)
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec(value).map_err(|e| Error::config("ledger", e.to_string()))?;
    let new = path.with_extension("new");
    std::fs::write(&new, text).map_err(Error::file("write", &new))?;
    std::fs::rename(&new, path).map_err(Error::file("write", path))
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(e)),
        _ => Ok(()),
    }
}
