//! How registries are to be reached. Plain data; the daemon fills it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything about registries that can be configured.
#[derive(Debug, Clone)]
pub struct Config {
    /// By host as it stands in references, port included.
    pub hosts: BTreeMap<String, HostConfig>,
    /// Blobs transferred at once per host; documents get one connection more.
    pub max_concurrency: usize,
    /// What we call ourselves.
    pub user_agent: String,
    /// When to try again, and when to give up.
    pub retry: Retry,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            max_concurrency: 4,
            user_agent: "buildkit/v0.32".to_owned(),
            retry: Retry::default(),
        }
    }
}

/// One host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Hosts to be asked first, possibly with a path: `mirror.lan:5000/cache`.
    pub mirrors: Vec<String>,
    /// HTTP instead of HTTPS; when unset, only for this machine itself.
    pub http: Option<bool>,
    /// Certificates are not verified. Together with HTTP: HTTPS is tried first.
    pub insecure: bool,
    /// PEM files of certificate authorities, on top of the system's.
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    pub key_pairs: Vec<KeyPair>,
    /// Directories with `*.crt` (authorities) and `*.cert` + `*.key` (client
    /// certificates). One that does not exist is empty.
    pub tls_config_dirs: Vec<PathBuf>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// PEM file with the certificate and those that signed it.
    pub certificate: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// When to try again, and when to give up.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Requests sent at most for one answer.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles from then on, and up to half
    /// of it is random.
    pub pause: Duration,
    /// The longest pause, also when the registry asks for a longer one.
    pub max_pause: Duration,
    /// How long a registry may be silent when it is its turn.
    pub silence: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            pause: Duration::from_millis(300),
            max_pause: Duration::from_secs(15),
            silence: Duration::from_secs(60),
        }
    }
}
