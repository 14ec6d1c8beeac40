//! The bundled CNI plugins: `bridge`, `ptp`, `macvlan`, `ipvlan`, `dummy` and `loopback`,
//! `host-local` and `static`, `firewall`, `portmap`, `tuning` and `bandwidth`.
//!
//! Each is an ordinary CNI plugin, reached through the program `buildkit-cni` under the
//! plugin's name, and the same code for a daemon that calls it without another process.
//! The kernel is spoken to by netlink directly, rules are nftables; where the kernel has
//! none, the `iptables` program is called.

mod bandwidth;
mod bridge;
mod bundled;
mod conf;
mod container;
mod default_network;
mod devices;
mod dummy;
mod firewall;
mod host_local;
mod ipam;
mod iptables;
mod lan;
pub mod link;
mod loopback;
#[cfg(feature = "netavark")]
pub mod netavark;
pub mod netlink;
mod nft;
mod portmap;
pub mod program;
mod ptp;
mod rules;
mod static_ipam;
mod tuning;

pub use bundled::{Plugins, names};
