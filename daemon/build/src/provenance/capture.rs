//! What a result was made from.

use std::collections::BTreeMap;

use base::failure::IncompleteMaterial;
use base::gourl::redacted;
use base::reference::Reference;
use base::{Digest, Failure};
use frontend::dockerfile::giturl::GitRef;
use ops::Output;
use ops::used::{Material, Need, Used};
use serde::Serialize;
use solver::Solved;

/// What a result was made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Capture {
    /// How it was asked for.
    pub(crate) request: Parameters,
    /// What came from outside, sorted by kind and name.
    pub(crate) materials: Vec<Material>,
    /// A step could reach the network.
    pub(crate) network: bool,
    /// More was used than is told here.
    pub(crate) incomplete: bool,
    /// A step could reach the network only through a proxy.
    pub(crate) proxied: bool,
    /// What proxies could not tell of all that passed them, sorted.
    pub(crate) uncaptured: Vec<IncompleteMaterial>,
}

/// A request, as documents show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Parameters {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) frontend: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) args: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<Need>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ssh: Vec<Need>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) locals: Vec<Local>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) inputs: BTreeMap<String, RequestProvenance>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<Box<RequestProvenance>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) compatibility_version: Option<u32>,
}

/// A directory of the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Local {
    pub(crate) name: String,
}

/// A request, and where its configuration came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestProvenance {
    pub(crate) config_source: ConfigSource,
    pub(crate) request: Parameters,
}

/// Where the configuration of a build came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ConfigSource {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) digest: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) path: String,
}

impl Capture {
    /// What the operations below `solved` used.
    pub(crate) fn of(solved: &Solved<Output>) -> Self {
        let mut capture = Self::default();
        for (_, operation) in &solved.vertices {
            capture.add_used(ops::used::used(&**operation));
        }
        capture
    }

    fn add_used(&mut self, used: Used) {
        used.materials.into_iter().for_each(|m| self.add(m));
        used.secrets.into_iter().for_each(|s| add_need(&mut self.request.secrets, s));
        for mut need in used.ssh {
            if need.id.is_empty() {
                "default".clone_into(&mut need.id);
            }
            add_need(&mut self.request.ssh, need);
        }
        self.network |= used.network;
        self.incomplete |= used.incomplete;
        self.proxied |= used.proxied;
        self.uncaptured.extend(used.uncaptured);
    }

    /// Adds a material, unless it is there. Credentials in addresses are not
    /// for everybody to read.
    pub(crate) fn add(&mut self, mut material: Material) {
        if let Material::Git { url, .. } | Material::Http { url, .. } = &mut material {
            *url = redacted(url);
        }
        if !self.materials.iter().any(|known| is_same(known, &material)) {
            self.materials.push(material);
        }
    }

    /// Adds what another result was made from.
    pub(crate) fn merge(&mut self, other: Self) {
        self.add_used(Used {
            materials: other.materials,
            secrets: other.request.secrets,
            ssh: other.request.ssh,
            network: other.network,
            incomplete: other.incomplete,
            proxied: other.proxied,
            uncaptured: other.uncaptured,
        });
    }

    /// Leaves out images by digest that are there by their tag as well, and
    /// sorts.
    ///
    /// # Errors
    /// When an image's name is none.
    pub(crate) fn tidy(&mut self) -> Result<(), Failure> {
        let mut tagged = Vec::new();
        let mut images = Vec::new();
        for material in &self.materials {
            let Material::Image { reference, .. } = material else {
                images.push(None);
                continue;
            };
            let parsed: Reference = reference
                .parse()
                .map_err(|e| Failure::invalid(format!("failed to parse image {reference}: {e}")))?;
            let name = format!("{}:{}", parsed.name(), parsed.tag().unwrap_or("latest"));
            match parsed.digest() {
                None => {
                    tagged.push(name);
                    images.push(None);
                }
                Some(_) => images.push(Some(name)),
            }
        }
        let mut pinned = images.into_iter();
        self.materials.retain(|_| !pinned.next().flatten().is_some_and(|name| tagged.contains(&name)));
        self.materials.sort_by(|a, b| order(a).cmp(&order(b)));
        self.uncaptured.sort();
        self.request.secrets.sort_by(|a, b| a.id.cmp(&b.id));
        self.request.ssh.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(())
    }

    /// The names of the client's directories.
    pub(crate) fn locals(&self) -> impl Iterator<Item = &str> {
        self.materials.iter().filter_map(|m| match m {
            Material::Local { name } => Some(name.as_str()),
            _ => None,
        })
    }
}

fn add_need(list: &mut Vec<Need>, need: Need) {
    match list.iter_mut().find(|known| known.id == need.id) {
        Some(known) => known.optional &= need.optional,
        None => list.push(need),
    }
}

fn order(material: &Material) -> (u8, &str) {
    match material {
        Material::Image { reference, .. } => (0, reference),
        Material::Blob { reference, .. } => (1, reference),
        Material::Git { url, .. } => (2, url),
        Material::Http { url, .. } => (3, url),
        Material::Local { name } => (4, name),
    }
}

fn is_same(a: &Material, b: &Material) -> bool {
    match (a, b) {
        (
            Material::Image { reference, platform, local, .. },
            Material::Image { reference: other, platform: others, local: also, .. },
        ) => {
            // What differs only in features of the system is one image.
            let plain = |p: &Option<base::Platform>| {
                p.clone().map(|p| base::Platform { os_features: Vec::new(), ..p })
            };
            reference == other && local == also && plain(platform) == plain(others)
        }
        (Material::Blob { reference, local, .. }, Material::Blob { reference: other, local: also, .. }) => {
            reference == other && local == also
        }
        (Material::Git { url, bundle, .. }, Material::Git { url: other, bundle: others, .. }) => {
            url == other && bundle == others
        }
        (Material::Http { url, .. }, Material::Http { url: other, .. }) => url == other,
        (Material::Local { name }, Material::Local { name: other }) => name == other,
        _ => false,
    }
}

/// Options that say more about this machine than about the build.
const OF_THE_HOST: &[&str] = &["cgroup-parent", "image-resolve-mode", "platform", "cache-imports"];

/// What of a frontend's options is told.
pub(crate) fn told(opts: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let context = opts.get("contextkey").filter(|key| !key.is_empty()).map_or("context", String::as_str);
    let wanted =
        opts.iter().filter(|(key, _)| !OF_THE_HOST.contains(&key.as_str()) && !key.starts_with("attest:"));
    wanted
        .map(|(key, value)| {
            let address = key == context || key.starts_with("context:");
            (key.clone(), if address { redacted(value) } else { value.clone() })
        })
        .collect()
}

/// A request with the place of its configuration taken out of its options.
pub(crate) fn request(
    frontend: &str,
    mut args: BTreeMap<String, String>,
    materials: &[Material],
) -> RequestProvenance {
    let given = |key: &str| args.get(key).filter(|value| !value.is_empty());
    let context = match given("contextkey") {
        Some(key) => key.clone(),
        None if given("input:context").is_some() => "input:context".to_owned(),
        None => "context".to_owned(),
    };
    let mut config_source = ConfigSource::default();
    if let Some(place) = given(&context).cloned() {
        let (uri, digest) = find(materials, &place).unwrap_or((place, BTreeMap::new()));
        (config_source.uri, config_source.digest) = (redacted(&uri), digest);
        args.remove(&context);
    }
    if let Some(path) = args.get("filename").filter(|path| !path.is_empty()).cloned() {
        config_source.path = path;
        args.remove("filename");
    }
    let request = Parameters { frontend: frontend.to_owned(), args, ..Parameters::default() };
    RequestProvenance { config_source, request }
}

/// The material at `place`, by its address and digest.
fn find(materials: &[Material], place: &str) -> Option<(String, BTreeMap<String, String>)> {
    let git = GitRef::parse(place).ok().flatten();
    let format = |reference: &GitRef, subdir: &str| match (reference.reference.as_str(), subdir) {
        ("", "") => reference.remote.clone(),
        (name, "") => format!("{}#{name}", reference.remote),
        (name, subdir) => format!("{}#{name}:{subdir}", reference.remote),
    };
    let address = git.as_ref().map_or_else(|| place.to_owned(), |reference| format(reference, ""));
    materials.iter().find_map(|material| match material {
        Material::Git { url, commit, .. } if *url == address => {
            let shown = git.as_ref().map_or_else(
                || place.to_owned(),
                |reference| format(reference, reference.subdir.trim_start_matches('/')),
            );
            Some((shown, commit_digest(commit)))
        }
        Material::Http { url, digest } if *url == address => Some((url.clone(), digest_set(digest))),
        _ => None,
    })
}

/// A digest as documents have it.
pub(super) fn digest_set(digest: &Digest) -> BTreeMap<String, String> {
    BTreeMap::from([(digest.algorithm().to_owned(), digest.hex().to_owned())])
}

/// A commit as documents have it.
pub(super) fn commit_digest(commit: &str) -> BTreeMap<String, String> {
    let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
    BTreeMap::from([(algorithm.to_owned(), commit.to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Platform;

    fn image(reference: &str, arch: &str) -> Material {
        Material::Image {
            reference: reference.to_owned(),
            platform: Some(Platform::new("linux", arch, "")),
            digest: Digest::of(reference),
            local: false,
        }
    }

    #[test]
    fn images_are_told_once_by_their_tag() {
        let mut capture = Capture::default();
        let pinned = format!("docker.io/library/b:1@{}", Digest::of("b"));
        for material in [
            image(&pinned, "amd64"),
            image("docker.io/library/b:1", "amd64"),
            image("docker.io/library/b:1", "amd64"),
            image("docker.io/library/b:1", "arm64"),
            Material::Local { name: "context".into() },
            image("docker.io/library/a:1", "amd64"),
        ] {
            capture.add(material);
        }
        capture.tidy().unwrap();
        let names: Vec<_> = capture.materials.iter().map(|m| order(m).1).collect();
        assert_eq!(
            names,
            ["docker.io/library/a:1", "docker.io/library/b:1", "docker.io/library/b:1", "context"]
        );
    }

    #[test]
    fn a_need_is_optional_only_when_all_can_do_without() {
        let mut list = Vec::new();
        for optional in [true, false, true] {
            add_need(&mut list, Need { id: "a".into(), optional });
        }
        assert_eq!(list, [Need { id: "a".into(), optional: false }]);
    }

    #[test]
    fn requests_tell_where_their_configuration_is() {
        let opts = [
            ("context", "https://u:p@example.com/x.tar"),
            ("filename", "F"),
            ("platform", "linux/arm64"),
            ("attest:sbom", ""),
            ("target", "t"),
        ];
        let opts = opts.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let request = request("dockerfile.v0", told(&opts), &[]);
        assert_eq!(request.config_source.uri, "https://xxxxx:xxxxx@example.com/x.tar");
        assert_eq!(request.config_source.path, "F");
        assert_eq!(request.request.args.keys().collect::<Vec<_>>(), ["target"]);
    }

    #[test]
    fn a_repository_is_found_however_it_is_written() {
        let commit = "0123456789012345678901234567890123456789";
        let git =
            Material::Git { url: "https://example.com/r.git#v1".into(), commit: commit.into(), bundle: None };
        for place in ["https://example.com/r.git#v1:sub", "https://example.com/r.git?ref=v1&subdir=sub"] {
            let found = find(std::slice::from_ref(&git), place).unwrap();
            assert_eq!(found.0, "https://example.com/r.git#v1:sub");
            assert_eq!(found.1["sha1"], commit);
        }
        assert!(find(&[git], "https://example.com/other.git").is_none());
    }
}
