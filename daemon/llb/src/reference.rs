//! Names of images: `[registry/]path[:tag][@digest]`.
//!
//! The grammar and the short forms of Docker's: `alpine` is
//! `docker.io/library/alpine:latest`.

use std::fmt;

use base::Digest;

/// A normalised reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(&'static str);

const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL: &str = "library/";
const MAX_NAME: usize = 255;

impl Reference {
    /// Reads a reference, expanding what Docker lets people leave out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn normalized(text: &str) -> Result<Self, ParseError> {
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err(ParseError("invalid repository name: cannot specify 64-byte hexadecimal strings"));
        }
        let (domain, rest) = split_domain(text);
        let name_end = rest.find(':').unwrap_or(rest.len());
        if rest[..name_end].bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ParseError("invalid reference format: repository name must be lowercase"));
        }
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => {
                let digest = digest.parse().map_err(|_| ParseError("invalid reference format"))?;
                (name, Some(digest))
            }
            None => (rest.as_str(), None),
        };
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (name, None),
        };
        if !is_domain(&domain) || !is_path(path) || !tag.is_none_or(is_tag) {
            return Err(ParseError("invalid reference format"));
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(ParseError("repository name must not be more than 255 characters"));
        }
        Ok(Self { domain, path: path.to_owned(), tag: tag.map(str::to_owned), digest })
    }

    /// With `latest` when it has neither tag nor digest.
    #[must_use]
    pub fn tag_name_only(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// With another digest.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// Without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The registry.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// As people write it: without the default registry.
    pub fn familiar(&self) -> String {
        let name = match (self.domain.as_str(), self.path.strip_prefix(OFFICIAL)) {
            (DEFAULT_DOMAIN, Some(short)) if !short.contains('/') => short.to_owned(),
            (DEFAULT_DOMAIN, _) => self.path.clone(),
            _ => self.name(),
        };
        format!("{name}{}", Suffix(self))
    }
}

struct Suffix<'a>(&'a Reference);

impl fmt::Display for Suffix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tag) = &self.0.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.0.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, Suffix(self))
    }
}

fn split_domain(text: &str) -> (String, String) {
    let (domain, rest) = match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    if domain == DEFAULT_DOMAIN && !rest.contains('/') {
        return (domain.to_owned(), format!("{OFFICIAL}{rest}"));
    }
    (domain.to_owned(), rest.to_owned())
}

fn is_lower_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((host, port)) => {
            if !host.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Components of lower-case letters and digits with `.`, `_`, `__` or any
/// number of `-` between them.
fn is_path(text: &str) -> bool {
    let component = |c: &str| {
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = c.as_bytes();
        let ends = bytes.first().copied().is_some_and(alnum) && bytes.last().copied().is_some_and(alnum);
        let separators = c.split(|ch: char| ch.is_ascii_lowercase() || ch.is_ascii_digit());
        ends && separators
            .into_iter()
            .all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
    };
    text.split('/').all(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_short_names() {
        for (text, full, familiar) in [
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("a/b:1", "docker.io/a/b:1", "a/b:1"),
            ("index.docker.io/x", "docker.io/library/x:latest", "x:latest"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("host:5000/x/y_z", "host:5000/x/y_z:latest", "host:5000/x/y_z:latest"),
        ] {
            let r = Reference::normalized(text).unwrap().tag_name_only();
            assert_eq!((r.to_string().as_str(), r.familiar().as_str()), (full, familiar), "{text}");
        }
        let digest = Digest::of("");
        let r = Reference::normalized(&format!("x:1@{digest}")).unwrap().tag_name_only();
        assert_eq!(r.to_string(), format!("docker.io/library/x:1@{digest}"));
    }

    #[test]
    fn refuses_what_is_no_reference() {
        let hex = "a".repeat(64);
        for bad in ["", "A", "a:", "a//b", "-a", "a@sha256:1", "a b", "x/A", "a:.x", hex.as_str()] {
            assert!(Reference::normalized(bad).is_err(), "{bad}");
        }
    }
}
