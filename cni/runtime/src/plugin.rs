//! The calling convention of CNI, for plugins in this program as for others.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::error::PluginError;
use crate::result::NetworkResult;
use crate::settings::{BridgeConfig, DefaultNetwork};

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add,
    /// Undo that; must work when half of it is gone already.
    Del,
    /// See whether it still is as ADD left it.
    Check,
    /// Undo what was done for containers that are not listed.
    Gc,
    /// See whether ADD could work.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Command {
    /// As it stands in `CNI_COMMAND`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// From `CNI_COMMAND`.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|c| c.name() == name)
    }
}

/// Which container, and where in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`: a file that is a network namespace. May be gone at DEL.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`: name of the interface in the container.
    pub ifname: String,
    /// `CNI_ARGS`: `KEY=value` pairs.
    pub args: Vec<(String, String)>,
    /// What the runtime can say to plugins that have announced the capability: `portMappings`,
    /// `bandwidth`, `ips`, `mac` ….
    pub capabilities: serde_json::Map<String, Value>,
}

impl Attachment {
    /// `CNI_ARGS` as one text.
    pub fn args_text(&self) -> String {
        let pairs: Vec<String> = self.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.join(";")
    }
}

/// One call of a plugin.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// What to do.
    pub command: Command,
    /// For whom.
    pub attachment: &'a Attachment,
    /// `CNI_PATH`: directories with plugins.
    pub path: &'a [PathBuf],
    /// The configuration, with `name`, `cniVersion` and `prevResult`.
    pub config: &'a Value,
    /// The caller destroys the namespace right after DEL: what is in it, and links that
    /// end in it, need not be removed one by one.
    pub namespace_ends: bool,
}

/// A plugin in this program.
pub trait Plugin: Send + Sync {
    /// Does what is asked; blocks meanwhile. ADD gives a result, nothing else does.
    ///
    /// # Errors
    /// As a program would print them.
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError>;
}

/// The plugins that come with this program.
pub trait Bundled: Send + Sync {
    /// The plugin of a type.
    fn plugin(&self, kind: &str) -> Option<Arc<dyn Plugin>>;

    /// The program is this one, under another name.
    fn is_own_program(&self, program: &std::path::Path) -> bool;

    /// Prepares the default network: looks for a free range of addresses, names the plugins.
    ///
    /// # Errors
    /// When there can be none.
    fn default_network(&self, wanted: &BridgeConfig) -> Result<DefaultNetwork, crate::Error>;

    /// Removes host ends of pairs of interfaces, all in one go. Missing ones are fine.
    ///
    /// # Errors
    /// When something stays.
    fn remove_links(&self, names: &[String]) -> Result<(), crate::Error>;

    /// Removes what is left of the default network when nobody uses it any more.
    ///
    /// # Errors
    /// When something stays.
    fn remove_default_network(&self, network: &DefaultNetwork) -> Result<(), crate::Error>;
}
