//! Runs one process in a sandbox, and nothing stays behind.
//!
//! An [`Executor`] is given a root file system that is already mounted and a
//! [`Process`]; it writes an OCI bundle, asks an OCI runtime (`runc`, `crun` or
//! a configured one) to run it, moves its input and output, and removes the
//! container, its cgroup, its bundle and the mount points it had to create,
//! however the run ends. What to run, where its mounts come from and what
//! becomes of the result is not known here.
//!
//! Files of its own, below the state directory: `run/bundles/<id>/` a bundle while its
//! container runs and `run/runtime/` what the OCI runtime remembers, both in memory where that
//! can be; `running` the ledger of containers from which [`prepare`] removes what an earlier
//! daemon left. `tried` says which runtime was found to work.

mod bundle;
mod cdi;
mod cgroup;
mod error;
mod executor;
mod filter;
mod io;
mod ledger;
mod network;
mod places;
mod process;
mod proxied;
mod reap;
mod rootfs;
mod run;
mod runtime;
mod seccomp;
mod spec;
mod tried;
mod trust;
mod user;

pub use cdi::{DeviceError, DeviceInfo, Devices};
pub use cgroup::hide_hybrid_cgroup;
pub use error::Error;
pub use executor::{Config, Executor, Prepared, in_user_namespace, prepare};
pub use io::{Input, Io, LogFn, Output, WindowSize};
pub use network::{Attachment, HostNetwork, Namespace, Network};
pub use process::{
    Device, Exit, Hook, HostAddress, Mount, NetworkMode, Process, Reason, Resources, Security, Source,
    Ulimit, unsuccessful,
};
pub use spec::DEFAULT_PATH;
pub use user::{User, lookup as lookup_user};
