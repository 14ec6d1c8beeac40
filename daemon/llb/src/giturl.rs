//! Where a repository is: the addresses that git is given, taken apart.

use std::collections::BTreeMap;

use base::gourl::{Url, parse_query};

/// A remote, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// `http`, `https`, `ssh` or `git`.
    pub scheme: String,
    /// Host and perhaps port.
    pub host: String,
    /// The path on it, percent-decoded.
    pub path: String,
    /// What to give to git: without query and fragment.
    pub url: String,
    /// What stands after `?`, decoded.
    pub query: BTreeMap<String, Vec<String>>,
    /// What stands after `#`, decoded.
    pub fragment: String,
}

/// Why an address is no remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Neither `scheme://` nor `user@host:path`.
    NoScheme,
    /// A scheme git does not know, or no URL.
    Invalid,
}

impl Remote {
    /// Reads `scheme://host/path` or `user@host:path`.
    ///
    /// # Errors
    /// Which of the two it could have been.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        match text.split_once("://") {
            Some((scheme, _)) if !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                if !["http", "https", "ssh", "git"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
                    return Err(Problem::Invalid);
                }
                Url::parse(text).map(Self::from).map_err(|_| Problem::Invalid)
            }
            _ => Self::parse_scp(text).ok_or(Problem::NoScheme),
        }
    }

    /// Whether it is reached over ssh.
    pub fn is_ssh(&self) -> bool {
        self.scheme == "ssh"
    }

    /// `user@host:path?query#fragment`.
    fn parse_scp(text: &str) -> Option<Self> {
        let (user, rest) = text.split_once('@')?;
        let (host, rest) = rest.split_once(':')?;
        let word = |text: &str, more: &[u8]| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || more.contains(&b))
        };
        if !word(user, b"_") || !word(host, b".") || rest.contains('\n') {
            return None;
        }
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (query, complete) = parse_query(query);
        complete.then(|| Self {
            scheme: "ssh".to_owned(),
            host: host.to_owned(),
            url: format!("{user}@{host}:{path}"),
            path: path.to_owned(),
            query,
            fragment: fragment.to_owned(),
        })
    }
}

impl From<Url> for Remote {
    fn from(url: Url) -> Self {
        let (bare, query) = (url.bare().to_string(), url.query_values());
        Self { scheme: url.scheme, host: url.host, path: url.path, url: bare, query, fragment: url.fragment }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_remotes_apart() {
        let parse = |t| Remote::parse(t).map(|r| (r.host, r.path, r.url));
        let of = |h: &str, p: &str, u: &str| Ok((h.to_owned(), p.to_owned(), u.to_owned()));
        assert_eq!(
            parse("https://u:p@h:1/a%20b.git?ref=x#y"),
            of("h:1", "/a b.git", "https://u:p@h:1/a%20b.git")
        );
        assert_eq!(parse("git@h:a/b.git#c"), of("h", "a/b.git", "git@h:a/b.git"));
        assert_eq!(parse("GIT://h/a"), of("h", "/a", "git://h/a"));
        assert_eq!(parse("h/a"), Err(Problem::NoScheme));
        assert_eq!(parse("git@h:a?%zz"), Err(Problem::NoScheme));
        assert_eq!(parse("ftp://h/a"), Err(Problem::Invalid));
        assert_eq!(parse("https://h:x/a"), Err(Problem::Invalid));
    }
}
