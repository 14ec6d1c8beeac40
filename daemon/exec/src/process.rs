//! What to run, and how it ended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use base::{Detail, Failure, Kind, gotext};

/// Whether a container may be called so.
pub(crate) fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A process and the sandbox around it.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// Name of the container: ASCII letters and digits. Empty = a fresh one.
    pub id: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`; of two with one name the later wins, one without `=` is dropped.
    /// `PATH` is added when missing.
    pub env: Vec<String>,
    /// Working directory, created (0755, owned by the user) when missing.
    pub cwd: String,
    /// `user[:group]` by name or number, looked up in the root file system. Empty = root.
    pub user: String,
    /// A terminal instead of pipes.
    pub tty: bool,
    /// The mounted root file system.
    pub rootfs: PathBuf,
    /// The process may not write to the root file system.
    pub readonly_rootfs: bool,
    /// Mounts in the order in which they are made, besides those every sandbox has.
    pub mounts: Vec<Mount>,
    /// Which network it sees.
    pub network: NetworkMode,
    /// Only an HTTP proxy is let into that network, on these terms; the process reaches
    /// nothing but the proxy. Nothing of this for a process without a network.
    pub proxy: Option<proxy::Terms>,
    /// How closed the sandbox is.
    pub security: Security,
    /// Host name; empty = `buildkitsandbox`.
    pub hostname: String,
    /// More lines for `/etc/hosts`.
    pub extra_hosts: Vec<HostAddress>,
    /// Resource limits of the process; none = those of the daemon.
    pub ulimits: Vec<Ulimit>,
    /// Resource limits of the container.
    pub resources: Resources,
    /// Cgroup parent instead of the configured one; empty = that one.
    pub cgroup_parent: String,
    /// Devices besides those every sandbox has.
    pub devices: Vec<Device>,
    /// Network interfaces of the host that move into the sandbox, with their names there.
    pub net_devices: BTreeMap<String, String>,
    /// Groups of the process besides those of its user.
    pub groups: Vec<u32>,
    /// Programs of the host that the runtime calls on the way.
    pub hooks: Vec<Hook>,
    /// The runtime's `intelRdt`, as it is.
    pub intel_rdt: Option<serde_json::Value>,
    /// Exit codes that count as success; `None` = only zero.
    pub valid_exit_codes: Option<Vec<i32>>,
    /// Remove the directories above a mount point too when they were missing.
    pub remove_mount_stubs_recursive: bool,
}

/// Something mounted into the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where: absolute, inside the root file system.
    pub dest: String,
    /// What.
    pub source: Source,
    /// Not writable.
    pub readonly: bool,
    /// More options, such as `nodev`.
    pub options: Vec<String>,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file or directory of the host, with what is mounted below it.
    Bind {
        /// The file or directory.
        path: PathBuf,
        /// A path inside it, resolved as if it were the root; empty = all of it.
        selector: String,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Size limit in bytes; zero = the kernel's default.
        size: u64,
    },
    /// Anything else an OCI runtime can mount.
    Other {
        /// File system type, such as `overlay`.
        kind: String,
        /// Device or path.
        source: String,
    },
}

/// Which network a process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// What the daemon is configured for.
    #[default]
    Sandbox,
    /// The daemon's own.
    Host,
    /// A loopback interface alone.
    None,
}

/// How closed the sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// Default capabilities, system call filter, masked paths.
    #[default]
    Sandbox,
    /// All capabilities of the daemon and all devices; needs an entitlement, which the
    /// caller has checked.
    Insecure,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The name.
    pub host: String,
    /// Its address.
    pub ip: IpAddr,
}

/// A limit as `setrlimit(2)` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Its name without `RLIMIT_`, any case: `nofile`.
    pub name: String,
    /// Soft limit; -1 = none.
    pub soft: i64,
    /// Hard limit; -1 = none.
    pub hard: i64,
}

/// Limits of a container; zero or empty = not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes.
    pub memory: i64,
    /// Bytes of memory and swap together; -1 = unlimited swap.
    pub memory_swap: i64,
    /// Weight among others.
    pub cpu_shares: u64,
    /// Microseconds.
    pub cpu_period: u64,
    /// Microseconds within one period.
    pub cpu_quota: i64,
    /// `0-3,5`.
    pub cpuset_cpus: String,
    /// `0,1`.
    pub cpuset_mems: String,
}

/// A device node of the host that the process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Path inside the sandbox.
    pub path: String,
    /// `c`, `u`, `b` or `p`.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits; `None` = the runtime's default.
    pub mode: Option<u32>,
    /// Out of `r`, `w`, `m`.
    pub access: String,
    /// Whose it is; `None` = the user's who runs the process.
    pub uid: Option<u32>,
    /// The same for its group.
    pub gid: Option<u32>,
}

/// A program of the host that the runtime calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// When, in the words of the runtime specification: `createContainer`.
    pub stage: String,
    /// The program.
    pub path: String,
    /// Its arguments, its own name first.
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit status as a shell shows it: 128 + n after signal n.
    pub code: u32,
    /// The code is among those that count as success.
    pub success: bool,
    /// Why, if more is known than the code.
    pub reason: Option<Reason>,
}

/// More than an exit code can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The kernel killed it because memory ran out.
    OutOfMemory,
    /// It never started; the runtime's own words.
    NotStarted(String),
}

impl Exit {
    /// The error of an exit that was no success: `exit code: N`, with the code as a detail.
    ///
    /// # Errors
    /// When the exit was no success.
    pub fn check(&self) -> Result<(), Failure> {
        if self.success {
            return Ok(());
        }
        let text = match &self.reason {
            None => format!("exit code: {}", self.code),
            Some(Reason::OutOfMemory) => "cannot allocate memory".into(),
            Some(Reason::NotStarted(message)) => format!("exit code: {}: {message}", self.code),
        };
        Err(Failure::new(Kind::Unknown, text).with(Detail::Exit { code: self.code }))
    }

    /// [`Self::check`] in the words people know from a failed step:
    /// `process "/bin/sh -c x" did not complete successfully: exit code: N`.
    ///
    /// # Errors
    /// When the exit was no success.
    pub fn check_process(&self, args: &[String]) -> Result<(), Failure> {
        self.check().map_err(|e| e.context(unsuccessful(args)))
    }
}

/// What is said of a process that did not end well, or did not even start.
pub fn unsuccessful(args: &[String]) -> String {
    format!("process {} did not complete successfully", gotext::quote(&args.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_exit_says_which_process() {
        let exit = Exit { code: 3, success: false, reason: None };
        let failure = exit.check_process(&["/bin/sh".into(), "-c".into(), "x".into()]).unwrap_err();
        assert_eq!(
            failure.to_string(),
            r#"process "/bin/sh -c x" did not complete successfully: exit code: 3"#
        );
        assert_eq!(failure.details(), &[Detail::Exit { code: 3 }]);
    }
}
