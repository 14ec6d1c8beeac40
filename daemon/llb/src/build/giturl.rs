//! Where a repository is, as far as a source's identifier needs it.

use base::gourl::Url;

/// A remote, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    /// Over ssh.
    pub(super) ssh: bool,
    /// Host and perhaps port.
    pub(super) host: String,
    /// The path on it, percent-decoded.
    pub(super) path: String,
    /// What to give to git: without query and fragment.
    pub(super) url: String,
}

/// Why an address is no remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    /// Neither `scheme://` nor `user@host:path`.
    NoScheme,
    /// A scheme git does not know, or no URL.
    Invalid,
}

impl Remote {
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        match text.split_once("://") {
            Some((scheme, _)) if !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                Self::parse_url(&scheme.to_ascii_lowercase(), text)
            }
            _ => Self::parse_scp(text).ok_or(Problem::NoScheme),
        }
    }

    fn parse_url(scheme: &str, text: &str) -> Result<Self, Problem> {
        if !matches!(scheme, "http" | "https" | "ssh" | "git") {
            return Err(Problem::Invalid);
        }
        let url = Url::parse(text).map_err(|_| Problem::Invalid)?;
        let bare = url.bare().to_string();
        Ok(Self { ssh: scheme == "ssh", host: url.host, path: url.path, url: bare })
    }

    /// `user@host:path`.
    fn parse_scp(text: &str) -> Option<Self> {
        let (user, rest) = text.split_once('@')?;
        let (host, rest) = rest.split_once(':')?;
        let word =
            |extra: &'static [u8]| move |b: u8| b.is_ascii_alphanumeric() || b == b'-' || extra.contains(&b);
        let ok = !user.is_empty()
            && !host.is_empty()
            && user.bytes().all(word(b"_"))
            && host.bytes().all(word(b"."))
            && !rest.contains('\n');
        let path = rest.split(['?', '#']).next().unwrap_or_default().to_owned();
        ok.then(|| Self { ssh: true, host: host.to_owned(), url: format!("{user}@{host}:{path}"), path })
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
        assert_eq!(parse("ftp://h/a"), Err(Problem::Invalid));
        assert_eq!(parse("https://h:x/a"), Err(Problem::Invalid));
    }
}
