//! CNI: networks for build steps.
//!
//! [`Networks`] gives each run a network namespace that no other run has used: it
//! makes the namespace, calls a chain of CNI plugins to connect it, and destroys it
//! afterwards. Which plugins is said by a configuration file of the user, or by the
//! default network, a bridge. Plugins are programs, or code of this program behind
//! [`Bundled`]: a configuration sees no difference, except in time.
//!
//! Files of its own, below `net/` in the state directory: `cni/<id>` the namespaces,
//! `ledger/<id>.json` what was done for them, `ipam/` addresses of the default
//! network. The ledger is written before anything is done: after a crash the next
//! start undoes what it names.

pub mod chain;
pub mod config;
pub mod dns;
mod error;
mod exec;
mod forward;
mod ledger;
mod networks;
pub mod plugin;
mod pool;
pub mod result;
mod settings;

pub use config::NetworkConfig;
pub use error::{Code, Error, PluginError};
pub use networks::{Namespace, Networks};
pub use plugin::{Attachment, Bundled, Call, Command, Plugin};
pub use result::{Cidr, NetworkResult};
pub use settings::{BridgeConfig, Choice, Config, DefaultNetwork, Mode};
