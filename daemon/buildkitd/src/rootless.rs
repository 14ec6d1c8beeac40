//! Without root: the daemon is only the root of a user namespace.
//!
//! Then it may not arrange control groups or networks, and where it was started by an
//! ordinary user, everything of it is in that user's directories. The rules are those of
//! the reference, so that its manuals hold.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::flags::Flags;
use crate::status::{Status, refusal};

const CONFIG: &str = "/etc/buildkit";
const ROOT: &str = "/var/lib/buildkit";
const RUN: &str = "/run";

/// Whether and how the daemon does without root.
pub(crate) struct Mode {
    /// No control groups, and the host's network unless another is asked for.
    pub(crate) rootless: bool,
    /// Build steps have a pid namespace of their own.
    pub(crate) process_sandbox: bool,
}

impl Mode {
    /// Flags over configuration over what this is.
    ///
    /// # Errors
    /// When it cannot be as it was asked for.
    pub(crate) fn new(
        flags: &Flags,
        rootless: Option<bool>,
        no_process_sandbox: Option<bool>,
    ) -> Result<Self> {
        let mapped = exec::in_user_namespace();
        let asked = flags.oci_worker_rootless.or(flags.rootless).or(rootless);
        let rootless = asked.unwrap_or(mapped);
        if rootless && !mapped {
            return Err(refusal(
                Status::NoPermission,
                "rootless mode requires to be executed as the mapped root in a user namespace; \
                 you may use RootlessKit for setting up the namespace",
            ));
        }
        let shared = flags.oci_worker_no_process_sandbox.or(no_process_sandbox).unwrap_or(false);
        if shared && !rootless {
            return Err(refusal(Status::Config, "can't enable NoProcessSandbox without Rootless"));
        }
        Ok(Self { rootless, process_sandbox: !shared })
    }
}

/// Started by an ordinary user, as opposed to the root of a container.
fn by_user() -> bool {
    exec::in_user_namespace() && env::var("USER").is_ok_and(|user| !user.is_empty() && user != "root")
}

/// The first directory that `variable` names.
fn directory(variable: &str) -> Option<PathBuf> {
    let value = env::var(variable).ok()?;
    value.split(':').next().filter(|first| !first.is_empty()).map(PathBuf::from)
}

/// Of an ordinary user `choose`'s directory, if there is one, or else `system`.
fn place(choose: impl FnOnce() -> Option<PathBuf>, system: &Path) -> PathBuf {
    by_user().then(choose).flatten().unwrap_or_else(|| system.to_owned())
}

/// Where the configuration is by default.
pub(crate) fn config_directory() -> PathBuf {
    let user = || {
        let base = directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")));
        Some(base?.join("buildkit"))
    };
    place(user, Path::new(CONFIG))
}

/// Where everything is kept by default.
pub(crate) fn root() -> PathBuf {
    let user = || {
        let base = directory("XDG_DATA_HOME").or_else(|| Some(directory("HOME")?.join(".local/share")));
        Some(base?.join("buildkit"))
    };
    place(user, Path::new(ROOT))
}

/// Where clients come in by default.
pub(crate) fn address() -> String {
    let run = place(|| directory("XDG_RUNTIME_DIR"), Path::new(RUN));
    format!("unix://{}", run.join("buildkit/buildkitd.sock").display())
}
