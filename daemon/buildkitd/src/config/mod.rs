//! `buildkitd.toml`: the reference's keys, as plain structs.

mod schema;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::DeTable;

pub(crate) use values::{DiskSpace, Span};

/// The whole file. What is absent is left to the flags and the defaults.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) debug: bool,
    pub(crate) trace: bool,
    pub(crate) root: Option<PathBuf>,
    #[serde(rename = "insecure-entitlements")]
    pub(crate) insecure_entitlements: Vec<String>,
    #[serde(rename = "proxyNetwork")]
    pub(crate) proxy_network: bool,
    #[serde(rename = "provenanceEnvDir")]
    pub(crate) provenance_env_dir: Option<PathBuf>,
    pub(crate) log: Log,
    pub(crate) grpc: Grpc,
    pub(crate) dns: Dns,
    pub(crate) history: History,
    pub(crate) system: System,
    pub(crate) frontend: BTreeMap<String, Frontend>,
    pub(crate) registry: BTreeMap<String, Registry>,
    pub(crate) cdi: Cdi,
    pub(crate) cache: Cache,
    pub(crate) worker: Workers,
}

/// Remote caches.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cache {
    pub(crate) gha: Gha,
}

/// What caches in GitHub's actions are signed with, and whether they must be.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Gha {
    pub(crate) sign: Option<toml::Table>,
    pub(crate) verify: Verify,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Verify {
    pub(crate) required: bool,
}

/// Devices by name.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Cdi {
    pub(crate) disabled: Option<bool>,
    pub(crate) spec_dirs: Vec<PathBuf>,
    pub(crate) auto_allowed: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Log {
    pub(crate) format: Option<String>,
    pub(crate) level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Grpc {
    pub(crate) address: Vec<String>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) tls: Tls,
    #[serde(rename = "allowUnauthenticatedTcp")]
    pub(crate) allow_unauthenticated_tcp: bool,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Tls {
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Dns {
    pub(crate) nameservers: Vec<String>,
    pub(crate) options: Vec<String>,
    pub(crate) search_domains: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct History {
    pub(crate) max_age: Option<Span>,
    pub(crate) max_entries: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct System {
    pub(crate) platforms_cache_max_age: Option<Span>,
    pub(crate) max_registry_concurrency: Option<usize>,
    pub(crate) shutdown_grace: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Frontend {
    pub(crate) enabled: Option<bool>,
    pub(crate) allowed_repositories: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Registry {
    pub(crate) mirrors: Vec<String>,
    pub(crate) http: Option<bool>,
    pub(crate) insecure: Option<bool>,
    pub(crate) ca: Vec<PathBuf>,
    pub(crate) tlsconfigdir: Vec<PathBuf>,
    pub(crate) keypair: Vec<KeyPair>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct KeyPair {
    pub(crate) key: PathBuf,
    pub(crate) cert: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Workers {
    pub(crate) oci: Oci,
    pub(crate) containerd: Option<toml::Table>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Oci {
    pub(crate) enabled: Option<bool>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) platforms: Vec<String>,
    pub(crate) snapshotter: Option<String>,
    pub(crate) rootless: Option<bool>,
    pub(crate) no_process_sandbox: Option<bool>,
    pub(crate) binary: Option<String>,
    pub(crate) default_cgroup_parent: Option<String>,
    #[serde(rename = "apparmor-profile")]
    pub(crate) apparmor_profile: Option<String>,
    pub(crate) selinux: Option<bool>,
    #[serde(rename = "max-parallelism")]
    pub(crate) max_parallelism: Option<usize>,
    pub(crate) gc: Option<bool>,
    #[serde(rename = "gckeepstorage")]
    pub(crate) gc_keep_storage: Option<DiskSpace>,
    pub(crate) reserved_space: Option<DiskSpace>,
    pub(crate) max_used_space: Option<DiskSpace>,
    pub(crate) min_free_space: Option<DiskSpace>,
    pub(crate) gcpolicy: Vec<GcPolicy>,
    pub(crate) network_mode: Option<String>,
    pub(crate) cni_config_path: Option<PathBuf>,
    pub(crate) cni_binary_path: Option<PathBuf>,
    pub(crate) cni_pool_size: Option<usize>,
    pub(crate) bridge_name: Option<String>,
    pub(crate) bridge_subnet: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GcPolicy {
    pub(crate) all: bool,
    pub(crate) filters: Vec<String>,
    pub(crate) keep_duration: Option<Span>,
    pub(crate) keep_bytes: Option<DiskSpace>,
    pub(crate) reserved_space: Option<DiskSpace>,
    pub(crate) max_used_space: Option<DiskSpace>,
    pub(crate) min_free_space: Option<DiskSpace>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {}{message}", .path.display(), .key.as_ref().map(|k| format!("{k}: ")).unwrap_or_default())]
    Invalid { path: PathBuf, line: usize, key: Option<String>, message: String },
}

/// A configuration that was read.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// About keys nobody knows.
    pub(crate) warnings: Vec<String>,
    /// Every value as it is written, by its dotted key in lower case: to see later
    /// what has changed.
    pub(crate) values: BTreeMap<String, toml::Value>,
}

/// Reads the file at `path`; without one the configuration is empty.
///
/// # Errors
/// When it cannot be read, is not TOML, or a value is of the wrong type: with
/// file, line and key.
pub(crate) fn load(path: &Path) -> Result<Loaded, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Loaded::default()),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn parse(path: &Path, text: &str) -> Result<Loaded, Error> {
    let invalid = |e: toml::de::Error| {
        let start = e.span().map_or(0, |s| s.start).min(text.len());
        let line = text[..start].matches('\n').count() + 1;
        Error::Invalid {
            path: path.to_owned(),
            line,
            key: key_on_line(text, line),
            message: e.message().to_owned(),
        }
    };
    let mut table = DeTable::parse(text).map_err(invalid)?;
    let mut unknown = Vec::new();
    schema::settle(text, table.get_mut(), &schema::FILE, "", &mut unknown);
    let config = Config::deserialize(toml::de::Deserializer::from(table)).map_err(invalid)?;
    let warnings = unknown.into_iter().map(|u| {
        let hint = u.nearest.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default();
        format!("{}:{}: unknown key {:?} is ignored{hint}", path.display(), u.line, u.key)
    });
    let mut values = BTreeMap::new();
    if let Ok(table) = text.parse::<toml::Table>() {
        flatten("", &table, &mut values);
    }
    Ok(Loaded { config, warnings: warnings.collect(), values })
}

fn flatten(prefix: &str, table: &toml::Table, into: &mut BTreeMap<String, toml::Value>) {
    for (key, value) in table {
        let key = format!("{prefix}{}", key.to_lowercase());
        match value {
            toml::Value::Table(table) => flatten(&format!("{key}."), table, into),
            value => _ = into.insert(key, value.clone()),
        }
    }
}

/// The key that is set on a line.
fn key_on_line(text: &str, line: usize) -> Option<String> {
    let (key, _) = text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
    Some(key.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Config, Vec<String>), Error> {
        let Loaded { config, warnings, .. } = parse(Path::new("/etc/buildkit/buildkitd.toml"), text)?;
        Ok((config, warnings))
    }

    #[test]
    fn reads_a_configuration_in_the_style_of_the_docs() {
        let (config, warnings) = read(
            r#"
            root = "/var/lib/buildkit"
            insecure-entitlements = ["network.host"]
            [grpc]
              address = ["unix:///run/buildkit/buildkitd.sock"]
            [registry."docker.io"]
              mirrors = ["localhost:5000"]
            [[registry."docker.io".keypair]]
              key = "k.pem"
              cert = "c.pem"
            [worker.oci]
              max-parallelism = 4
              networkMode = "cni"
              reservedSpace = "10%"
              [[worker.oci.gcpolicy]]
                filters = ["type==source.local"]
                keepDuration = "48h"
                maxUsedSpace = "512MB"
            "#,
        )
        .unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(config.worker.oci.max_parallelism, Some(4));
        assert_eq!(config.worker.oci.reserved_space, Some(DiskSpace::Percent(10)));
        assert_eq!(config.worker.oci.gcpolicy[0].keep_duration.unwrap().0.as_secs(), 172_800);
        assert_eq!(config.registry["docker.io"].keypair[0].key, Path::new("k.pem"));
    }

    #[test]
    fn case_does_not_matter() {
        let (config, warnings) = read("[Worker.OCI]\nCNIPoolSize = 3\n").unwrap();
        assert_eq!((config.worker.oci.cni_pool_size, warnings.len()), (Some(3), 0));
    }

    #[test]
    fn a_misspelt_key_gets_a_warning_that_names_the_nearest() {
        let (_, warnings) = read("[worker.oci]\nmax-paralelism = 4\n").unwrap();
        assert_eq!(
            warnings,
            ["/etc/buildkit/buildkitd.toml:2: unknown key \"worker.oci.max-paralelism\" is ignored; \
              did you mean \"max-parallelism\"?"]
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_is_an_error_with_file_line_and_key() {
        let error = read("debug = true\n[worker.oci]\nmax-parallelism = \"four\"\n").unwrap_err().to_string();
        assert!(error.starts_with("/etc/buildkit/buildkitd.toml:3: max-parallelism: "), "{error}");
        assert!(read("debug = \n").unwrap_err().to_string().contains("buildkitd.toml:1: "));
    }
}
