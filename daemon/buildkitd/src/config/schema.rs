//! The keys of `buildkitd.toml` by name, to tell a misspelt key from a known one.
//!
//! Keys match whatever their case, as in the reference. An unknown key is not
//! an error: existing configurations must keep working. It gets a warning with
//! its line and the nearest key there is.

use toml::de::{DeTable, DeValue};

/// A level of the file: its keys and what is below them.
pub(crate) enum Level {
    /// A value, or a free table.
    Leaf,
    /// A table with these keys.
    Table(&'static [(&'static str, Level)]),
    /// A table whose keys are names, such as hosts.
    Each(&'static Level),
    /// A list of tables.
    List(&'static Level),
}

use Level::{Each, Leaf, List, Table};

const GC_POLICY: Level = Table(&[
    ("all", Leaf),
    ("filters", Leaf),
    ("keepDuration", Leaf),
    ("keepBytes", Leaf),
    ("reservedSpace", Leaf),
    ("maxUsedSpace", Leaf),
    ("minFreeSpace", Leaf),
]);

const REGISTRY: Level = Table(&[
    ("mirrors", Leaf),
    ("http", Leaf),
    ("insecure", Leaf),
    ("ca", Leaf),
    ("tlsconfigdir", Leaf),
    ("keypair", List(&Table(&[("key", Leaf), ("cert", Leaf)]))),
]);

/// The whole file.
pub(crate) const FILE: Level = Table(&[
    ("debug", Leaf),
    ("trace", Leaf),
    ("root", Leaf),
    ("insecure-entitlements", Leaf),
    ("proxyNetwork", Leaf),
    ("provenanceEnvDir", Leaf),
    ("log", Table(&[("format", Leaf), ("level", Leaf)])),
    (
        "grpc",
        Table(&[
            ("address", Leaf),
            ("uid", Leaf),
            ("gid", Leaf),
            ("allowUnauthenticatedTcp", Leaf),
            ("tls", Table(&[("cert", Leaf), ("key", Leaf), ("ca", Leaf)])),
        ]),
    ),
    ("dns", Table(&[("nameservers", Leaf), ("options", Leaf), ("searchDomains", Leaf)])),
    ("history", Table(&[("maxAge", Leaf), ("maxEntries", Leaf)])),
    (
        "system",
        Table(&[("platformsCacheMaxAge", Leaf), ("maxRegistryConcurrency", Leaf), ("shutdownGrace", Leaf)]),
    ),
    ("frontend", Each(&Table(&[("enabled", Leaf), ("allowedRepositories", Leaf)]))),
    ("registry", Each(&REGISTRY)),
    ("otel", Table(&[("socketPath", Leaf)])),
    (
        "cache",
        Table(&[(
            "gha",
            Table(&[("sign", Leaf), ("verify", Table(&[("required", Leaf), ("policy", Leaf)]))]),
        )]),
    ),
    ("cdi", Table(&[("disabled", Leaf), ("specDirs", Leaf), ("autoAllowed", Leaf)])),
    (
        "worker",
        Table(&[
            ("containerd", Leaf),
            (
                "oci",
                Table(&[
                    ("enabled", Leaf),
                    ("labels", Leaf),
                    ("platforms", Leaf),
                    ("snapshotter", Leaf),
                    ("rootless", Leaf),
                    ("noProcessSandbox", Leaf),
                    ("binary", Leaf),
                    ("defaultCgroupParent", Leaf),
                    ("apparmor-profile", Leaf),
                    ("selinux", Leaf),
                    ("max-parallelism", Leaf),
                    ("gc", Leaf),
                    ("gckeepstorage", Leaf),
                    ("reservedSpace", Leaf),
                    ("maxUsedSpace", Leaf),
                    ("minFreeSpace", Leaf),
                    ("gcpolicy", List(&GC_POLICY)),
                    ("networkMode", Leaf),
                    ("cniConfigPath", Leaf),
                    ("cniBinaryPath", Leaf),
                    ("cniPoolSize", Leaf),
                    ("bridgeName", Leaf),
                    ("bridgeSubnet", Leaf),
                ]),
            ),
        ]),
    ),
]);

/// A key nobody knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// With the tables it is in.
    pub(crate) key: String,
    /// Counted from one.
    pub(crate) line: usize,
    /// The nearest key of the same table.
    pub(crate) nearest: Option<&'static str>,
}

/// Gives known keys of `table` their one spelling, and takes unknown ones out.
pub(crate) fn settle(
    text: &str,
    table: &mut DeTable<'_>,
    level: &Level,
    path: &str,
    unknown: &mut Vec<Unknown>,
) {
    let mut settled = DeTable::new();
    for (mut key, mut value) in std::mem::take(table) {
        let name = key.get_ref().to_string();
        let full = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let below = match level {
            Leaf => Some(&Leaf),
            Each(level) | List(level) => Some(*level),
            Table(keys) => match keys.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
                Some((known, level)) => {
                    *key.get_mut() = (*known).into();
                    Some(level)
                }
                None => {
                    let line = text[..key.span().start.min(text.len())].matches('\n').count() + 1;
                    unknown.push(Unknown { key: full.clone(), line, nearest: nearest(&name, keys) });
                    None
                }
            },
        };
        let Some(below) = below else { continue };
        match (value.get_mut(), below) {
            (_, Leaf) => {}
            (DeValue::Table(inner), _) => settle(text, inner, below, &full, unknown),
            (DeValue::Array(items), List(item)) => {
                for entry in items.iter_mut() {
                    if let DeValue::Table(inner) = entry.get_mut() {
                        settle(text, inner, item, &full, unknown);
                    }
                }
            }
            _ => {}
        }
        settled.insert(key, value);
    }
    *table = settled;
}

fn nearest(name: &str, keys: &'static [(&'static str, Level)]) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    keys.iter()
        .map(|(known, _)| (distance(&name, &known.to_ascii_lowercase()), *known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// How many letters must be added, taken away or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
