//! The command line: the reference's flags, by the same names.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::BoolishValueParser;

/// Build daemon, compatible with BuildKit's API
///
/// Flags override the configuration file. Boolean flags may be written
/// `--debug`, `--debug=true` or `--debug=false`.
#[derive(Debug, Clone, Parser)]
#[command(name = "buildkitd", version = version(), disable_version_flag = true)]
pub(crate) struct Flags {
    /// Print the version: name, package, version and revision
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,

    /// Configuration file; none is needed
    #[arg(long, value_name = "PATH", default_value_os_t = crate::rootless::config_directory().join("buildkitd.toml"))]
    pub(crate) config: PathBuf,

    /// Log what is done in detail
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub(crate) debug: Option<bool>,

    /// Log format
    #[arg(long, value_name = "text|json")]
    pub(crate) log_format: Option<String>,

    /// Log level
    #[arg(long, value_name = "trace|debug|info|warn|error", env = "BUILDKITD_LOG_LEVEL")]
    pub(crate) log_level: Option<String>,

    /// Where everything is kept [default: /var/lib/buildkit]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,

    /// Do without root, in a user namespace [default: where there is one]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub(crate) rootless: Option<bool>,

    /// Listening address: unix://PATH, tcp://HOST:PORT or fd:// for a socket from systemd (repeatable) [default: unix:///run/buildkit/buildkitd.sock]
    #[arg(long, value_name = "URL")]
    pub(crate) addr: Vec<String>,

    /// Group that may use the unix sockets: a name or a number
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,

    /// Certificate for TCP listeners
    #[arg(long, value_name = "PEM")]
    pub(crate) tlscert: Option<PathBuf>,

    /// Key of the certificate
    #[arg(long, value_name = "PEM")]
    pub(crate) tlskey: Option<PathBuf>,

    /// CA that client certificates must be signed by
    #[arg(long, value_name = "PEM")]
    pub(crate) tlscacert: Option<PathBuf>,

    /// Serve clients on TCP that do not show who they are: everybody who reaches the port is root here
    #[arg(long)]
    pub(crate) allow_unauthenticated_tcp: bool,

    /// How long builds may go on when the daemon is told to stop [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) shutdown_grace: Option<String>,

    /// What builds may ask for: network.host, security.insecure or device (repeatable)
    #[arg(long, value_name = "ENTITLEMENT")]
    pub(crate) allow_insecure_entitlement: Vec<String>,

    /// Let build steps reach the network only through a proxy that sees and tells what they fetch
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub(crate) proxy_network: Option<bool>,

    /// Run builds with runc or crun: true, false or auto
    #[arg(long, value_name = "true|false|auto", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "auto")]
    pub(crate) oci_worker: String,

    /// Labels of the worker (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) oci_worker_labels: Vec<String>,

    /// How file systems are kept: auto, overlayfs or native
    #[arg(long, value_name = "NAME")]
    pub(crate) oci_worker_snapshotter: Option<String>,

    /// Platforms that builds run on (repeatable)
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) oci_worker_platform: Vec<String>,

    /// Network of build steps: auto, cni, bridge, host or netavark
    #[arg(long, value_name = "MODE")]
    pub(crate) oci_worker_net: Option<String>,

    /// CNI configuration
    #[arg(long, value_name = "PATH")]
    pub(crate) oci_cni_config_path: Option<PathBuf>,

    /// Directory of CNI plugins
    #[arg(long, value_name = "DIR")]
    pub(crate) oci_cni_binary_dir: Option<PathBuf>,

    /// Network namespaces to prepare ahead
    #[arg(long, value_name = "N")]
    pub(crate) oci_cni_pool_size: Option<usize>,

    /// OCI runtime [default: crun or runc, whichever works]
    #[arg(long, value_name = "NAME|PATH")]
    pub(crate) oci_worker_binary: Option<String>,

    /// AppArmor profile of build steps
    #[arg(long, value_name = "NAME")]
    pub(crate) oci_worker_apparmor_profile: Option<String>,

    /// As --rootless
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub(crate) oci_worker_rootless: Option<bool>,

    /// Let build steps see the processes beside them; only rootless, for containers that may not mount /proc
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub(crate) oci_worker_no_process_sandbox: Option<bool>,

    /// Steps that may run at the same time; 0 is no limit
    #[arg(long, value_name = "N")]
    pub(crate) oci_max_parallelism: Option<usize>,

    /// Collect garbage by itself
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub(crate) oci_worker_gc: Option<bool>,

    /// Space for the cache in MB: RESERVED[,FREE[,MAX]]; a share such as 10% works too
    #[arg(long, value_name = "MB")]
    pub(crate) oci_worker_gc_keepstorage: Option<String>,

    /// Do without devices of the Container Device Interface
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub(crate) cdi_disabled: Option<bool>,

    /// Directory in which such devices are described (repeatable)
    #[arg(long, value_name = "DIR")]
    pub(crate) cdi_spec_dir: Vec<PathBuf>,

    /// Not served by this daemon: only false and auto are accepted
    #[arg(long, value_name = "false|auto", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "auto")]
    pub(crate) containerd_worker: String,
}

/// The four fields of `--version`, less the first, which clap prints.
fn version() -> String {
    use base::version::{PACKAGE, REVISION, VERSION};
    format!("{PACKAGE} {VERSION} {REVISION}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_of_the_reference_test_suite_parses() {
        let flags = Flags::try_parse_from([
            "buildkitd",
            "--oci-worker=true",
            "--containerd-worker=false",
            "--oci-worker-gc=false",
            "--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true",
            "--config=/tmp/x.toml",
            "--root",
            "/tmp/r",
            "--addr",
            "unix:///tmp/b.sock",
            "--debug",
        ])
        .unwrap();
        assert_eq!(flags.debug, Some(true));
        assert_eq!(flags.oci_worker_gc, Some(false));
    }

    #[test]
    fn an_unknown_flag_names_the_nearest() {
        let error = Flags::try_parse_from(["buildkitd", "--oci-worker-nett=cni"]).unwrap_err().to_string();
        assert!(error.contains("--oci-worker-nett") && error.contains("--oci-worker-net"), "{error}");
    }

    #[test]
    fn version_has_four_fields() {
        let text = Flags::command().render_version();
        assert_eq!(text.split_whitespace().count(), 4, "{text}");
    }
}
