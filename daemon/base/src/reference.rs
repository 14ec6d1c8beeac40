//! Names of images: `[host/]path[:tag][@digest]`.
//!
//! People write *familiar* names (`alpine`), the daemon works with *normalised*
//! ones (`docker.io/library/alpine`). Both follow the grammar of
//! `distribution/reference`, including its messages, which clients show.

use std::fmt;
use std::str::FromStr;

use crate::{Classify, Digest, Kind};

/// The host that a name without one belongs to.
pub const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_PATH: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised image name: it always has a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ParseError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Identifier(String),
    #[error("repository name must not be more than {MAX_PATH} characters")]
    TooLong,
    #[error("invalid tag format")]
    Tag,
    #[error("unsupported digest algorithm")]
    DigestAlgorithm,
    #[error("invalid checksum digest length")]
    DigestLength,
    #[error("invalid checksum digest format")]
    DigestFormat,
}

impl Classify for ParseError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Reference {
    /// The registry's host, with its port if it has one.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Host and repository: `docker.io/library/alpine`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Neither tag nor digest.
    pub fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// The same with the tag `latest` when it has neither tag nor digest.
    #[must_use]
    pub fn tag_name_only(mut self) -> Self {
        if self.is_name_only() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository without tag and digest.
    #[must_use]
    pub fn trimmed(&self) -> Self {
        Self { domain: self.domain.clone(), path: self.path.clone(), tag: None, digest: None }
    }

    /// The same with another tag.
    ///
    /// # Errors
    /// [`ParseError::Tag`] when `tag` is not one.
    pub fn with_tag(mut self, tag: &str) -> Result<Self, ParseError> {
        if !is_tag(tag) {
            return Err(ParseError::Tag);
        }
        self.tag = Some(tag.to_owned());
        Ok(self)
    }

    /// The same with another digest.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// What people write: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        self.push_suffix(&mut text);
        text
    }

    /// What people write, without tag and digest.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.path.clone(),
        }
    }

    fn push_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut suffix = String::new();
        self.push_suffix(&mut suffix);
        write!(f, "{}/{}{suffix}", self.domain, self.path)
    }
}

impl FromStr for Reference {
    type Err = ParseError;

    /// Reads a familiar or a normalised name.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'a'..=b'f' | b'0'..=b'9')) {
            return Err(ParseError::Identifier(text.to_owned()));
        }
        let (domain, rest) = split_domain(text);
        let named = rest.split(':').next().unwrap_or_default();
        if named.chars().any(char::is_uppercase) {
            return Err(ParseError::Uppercase(named.to_owned()));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest)),
            Some(_) => return Err(ParseError::Format),
            None => (rest.as_str(), None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) if is_tag(tag) => (path, Some(tag)),
            Some(_) => return Err(ParseError::Format),
            None => (rest, None),
        };
        // A first part that is no host is still a path, and containerd takes
        // the first part of a path for the host all the same.
        if !(is_domain(domain) || is_path(domain)) || !is_path(path) {
            return Err(ParseError::Format);
        }
        if path.len() > MAX_PATH {
            return Err(ParseError::TooLong);
        }
        Ok(Self {
            domain: domain.to_owned(),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(read_digest).transpose()?,
        })
    }
}

fn split_domain(name: &str) -> (&str, String) {
    let Some((first, rest)) = name.split_once('/') else {
        return (DEFAULT_DOMAIN, format!("{OFFICIAL}{name}"));
    };
    let (domain, rest) = if first == LEGACY_DOMAIN {
        (DEFAULT_DOMAIN, rest)
    } else if first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase) {
        (first, rest)
    } else {
        (DEFAULT_DOMAIN, name)
    };
    if domain == DEFAULT_DOMAIN && !rest.contains('/') {
        return (domain, format!("{OFFICIAL}{rest}"));
    }
    (domain, rest.to_owned())
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => return is_v6(address),
            Some((address, port)) => return is_v6(address) && port.strip_prefix(':').is_some_and(is_port),
            None => return false,
        },
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let component = |c: &str| {
        !c.is_empty()
            && c.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !c.starts_with('-')
            && !c.ends_with('-')
    };
    host.split('.').all(component) && port.is_none_or(is_port)
}

fn is_v6(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_path_component)
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    if !ends.is_some_and(|(a, b)| alphanumeric(*a) && alphanumeric(*b)) {
        return false;
    }
    text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let component = |c: &str| {
        c.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && c.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(component)
        && hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn read_digest(text: &str) -> Result<Digest, ParseError> {
    text.parse().map_err(|_| {
        let (algorithm, hex) = text.split_once(':').unwrap_or_default();
        match (algorithm, hex.len()) {
            ("sha256", 64) | ("sha384", 96) | ("sha512", 128) => ParseError::DigestFormat,
            ("sha256" | "sha384" | "sha512", _) => ParseError::DigestLength,
            _ => ParseError::DigestAlgorithm,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn normalises_and_familiarises() {
        for (given, normal, familiar) in [
            ("alpine", "docker.io/library/alpine", "alpine"),
            ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
            ("moby/buildkit", "docker.io/moby/buildkit", "moby/buildkit"),
            ("docker.io/alpine", "docker.io/library/alpine", "alpine"),
            ("index.docker.io/x/y", "docker.io/x/y", "x/y"),
            ("library/alpine", "docker.io/library/alpine", "alpine"),
            ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/x", "localhost/x", "localhost/x"),
            ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            ("[::1]:5000/a__b/c--d_e.f", "[::1]:5000/a__b/c--d_e.f", "[::1]:5000/a__b/c--d_e.f"),
            ("HOST/x", "HOST/x", "HOST/x"),
            ("my_host.lan/x", "my_host.lan/x", "my_host.lan/x"),
        ] {
            let reference: Reference = given.parse().unwrap_or_else(|e| panic!("{given}: {e}"));
            assert_eq!(reference.to_string(), normal);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(normal.parse::<Reference>().unwrap(), reference);
        }
        let both: Reference = format!("a:b@{SUM}").parse().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/a:b@{SUM}"));
        assert_eq!((both.tag(), both.digest().unwrap().as_str()), (Some("b"), SUM));
        let plain: Reference = "a".parse().unwrap();
        assert_eq!(plain.clone().tag_name_only().tag(), Some("latest"));
        assert_eq!(plain.with_digest(SUM.parse().unwrap()).tag_name_only().tag(), None);
    }

    #[test]
    fn refuses_with_the_messages_clients_know() {
        let message = |text: &str| text.parse::<Reference>().unwrap_err().to_string();
        for bad in [
            "",
            ":",
            "a:",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a b",
            "a:b:c",
            "a@b",
            "a@sha256:00",
            "host.:x/y",
            "[g]/x",
            "[::1/x",
            "h:p/x",
            "a\n",
            "é",
            &format!("a:{}", "t".repeat(129)),
        ] {
            assert_eq!(message(bad), "invalid reference format", "{bad:?}");
        }
        assert_eq!(message("Aa"), "invalid reference format: repository name (library/Aa) must be lowercase");
        let id = "a".repeat(64);
        assert_eq!(
            message(&id),
            format!("invalid repository name ({id}), cannot specify 64-byte hexadecimal strings")
        );
        assert_eq!(message(&"a".repeat(256)), "repository name must not be more than 255 characters");
        assert_eq!(message(&format!("a@md5:{}", "0".repeat(32))), "unsupported digest algorithm");
        assert_eq!(message(&format!("a@sha256:{}", "0".repeat(63))), "invalid checksum digest length");
        assert_eq!(message(&format!("a@sha256:{}", "A".repeat(64))), "invalid checksum digest format");
    }
}
