//! References to git repositories: `https://host/repo.git#ref:subdir` and its
//! relatives, in `ADD` and as build contexts.

use std::collections::BTreeMap;

use base::gopath;
use base::gotext::{parse_bool, quote};
use base::gourl::Url;
use llb::giturl::Remote;

/// A repository, and what of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitRef {
    /// What to give to git.
    pub remote: String,
    /// The last element of the remote's path, without `.git`.
    pub short_name: String,
    /// A branch, tag or commit; empty for the default branch.
    pub reference: String,
    /// The commit that it has to be; empty for any.
    pub checksum: String,
    /// A directory of the repository; empty for all.
    pub subdir: String,
    /// Of the form `github.com/…`, which could also be a path. Only a build
    /// context may have it.
    pub like_a_path: bool,
    /// Over `http` or `git`.
    pub unencrypted: bool,
    /// Whether to keep `.git`, when given.
    pub keep_git_dir: Option<bool>,
    /// Whether to fetch submodules, when given.
    pub submodules: Option<bool>,
    /// `checkout` or `commit`; empty when not given.
    pub mtime: String,
    /// Take the checksum for the commit without asking the remote about the
    /// reference.
    pub fetch_by_commit: bool,
}

/// The query of a reference is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Problem {
    #[error("query {} has no value", quote(.0))]
    NoValue(String),
    #[error("query {} has multiple values", quote(.0))]
    MultipleValues(String),
    #[error("unexpected query {}", quote(.0))]
    Unexpected(String),
    #[error("{what} conflicts: {} vs {}", quote(.one), quote(.other))]
    Conflict { what: &'static str, one: String, other: String },
    #[error("branch conflicts with tag")]
    BranchAndTag,
    #[error("invalid {key} value: {}", quote(.value))]
    Bool { key: String, value: String },
    #[error("invalid mtime value: {} (must be \"checkout\" or \"commit\")", quote(.0))]
    Mtime(String),
}

impl GitRef {
    /// Reads a reference. `None` when the text is none: an `http` address has
    /// to end in `.git`.
    ///
    /// # Errors
    /// When it is a reference, but its query is not understood.
    pub fn parse(text: &str) -> Result<Option<Self>, Problem> {
        if text.starts_with("./") || text.starts_with("../") {
            return Ok(None);
        }
        let like_a_path = text.starts_with("github.com/");
        let remote =
            if like_a_path { Url::parse(text).ok().map(Remote::from) } else { Remote::parse(text).ok() };
        let Some(remote) = remote else { return Ok(None) };
        let web = matches!(remote.scheme.as_str(), "http" | "https");
        if web && !like_a_path && !remote.path.ends_with(".git") {
            return Ok(None);
        }
        let (reference, subdir) = remote.fragment.split_once(':').unwrap_or((&remote.fragment, ""));
        let last = remote.url.rsplit('/').next().unwrap_or_default();
        let mut parsed = Self {
            short_name: last.strip_suffix(".git").unwrap_or(last).to_owned(),
            reference: reference.to_owned(),
            subdir: inside(subdir),
            like_a_path,
            unencrypted: !like_a_path && matches!(remote.scheme.as_str(), "http" | "git"),
            remote: remote.url,
            ..Self::default()
        };
        parsed.query(remote.query)?;
        Ok(Some(parsed))
    }

    fn query(&mut self, query: BTreeMap<String, Vec<String>>) -> Result<(), Problem> {
        let (mut tag, mut branch) = (String::new(), String::new());
        for (key, mut values) in query {
            let value = values.pop().unwrap_or_default();
            if !values.is_empty() {
                return Err(Problem::MultipleValues(key));
            }
            let switch = matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !switch {
                return Err(Problem::NoValue(key));
            }
            let on = |key: &str, value: &str| match value {
                "" => Ok(true),
                _ => parse_bool(value)
                    .ok_or_else(|| Problem::Bool { key: key.to_owned(), value: value.to_owned() }),
            };
            match key.as_str() {
                "ref" => same("ref", &mut self.reference, value)?,
                "tag" => tag = value,
                "branch" => branch = value,
                "subdir" => same("subdir", &mut self.subdir, value)?,
                "checksum" | "commit" => self.checksum = value,
                "keep-git-dir" => self.keep_git_dir = Some(on(&key, &value)?),
                "submodules" => self.submodules = Some(on(&key, &value)?),
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => self.mtime = value,
                "mtime" => return Err(Problem::Mtime(value)),
                "fetch-by-commit" => self.fetch_by_commit = on(&key, &value)?,
                _ => return Err(Problem::Unexpected(key)),
            }
        }
        let full = |prefix: &str, name: &str| match name.starts_with(prefix) {
            true => name.to_owned(),
            false => format!("{prefix}{name}"),
        };
        if !tag.is_empty() {
            same("ref", &mut self.reference, full("refs/tags/", &tag))?;
        }
        if !branch.is_empty() {
            if !tag.is_empty() {
                return Err(Problem::BranchAndTag);
            }
            same("ref", &mut self.reference, full("refs/heads/", &branch))?;
        }
        Ok(())
    }
}

/// Sets `field`, which may only have been set to the same.
fn same(what: &'static str, field: &mut String, value: String) -> Result<(), Problem> {
    if !field.is_empty() && *field != value {
        return Err(Problem::Conflict { what, one: field.clone(), other: value });
    }
    *field = value;
    Ok(())
}

/// A path that does not lead out, without a slash in front.
fn inside(path: &str) -> String {
    gopath::join(["/", path]).trim_start_matches('/').to_owned()
}

/// The remote of an address that git could use, whether or not a Dockerfile
/// takes it for a repository.
pub fn remote(text: &str) -> Option<String> {
    Remote::parse(text).ok().map(|remote| remote.url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> GitRef {
        GitRef::parse(text).unwrap().unwrap()
    }

    #[test]
    fn knows_references() {
        for none in [
            "https://example.com/",
            "https://example.com/foo",
            "https://example.com/foo.git/",
            "https://example.com/foo.git.bar",
            "./foo.git",
            "../foo.git",
            "foo.git",
            "/foo.git",
            "ftp://h/foo.git",
            "github.com:foo",
            "git@host",
            "https://h:x/foo.git",
        ] {
            assert_eq!(GitRef::parse(none), Ok(None), "{none}");
        }
        let r = read("https://example.com/foo.git#release/1.2:dir/../sub/");
        assert_eq!((r.remote.as_str(), r.short_name.as_str()), ("https://example.com/foo.git", "foo"));
        assert_eq!((r.reference.as_str(), r.subdir.as_str()), ("release/1.2", "sub"));
        assert!(!r.unencrypted && !r.like_a_path);
        assert!(read("git://h/foo").unencrypted);
        let r = read("github.com/moby/buildkit#v1");
        assert_eq!((r.remote.as_str(), r.reference.as_str()), ("github.com/moby/buildkit", "v1"));
        assert!(r.like_a_path);
        let r = read("git@h.x:a/b.git?tag=v1&subdir=s#:s");
        assert_eq!((r.remote.as_str(), r.reference.as_str()), ("git@h.x:a/b.git", "refs/tags/v1"));
        assert_eq!(read("https://h/a.git#:../../etc").subdir, "etc");
        assert_eq!(read("ssh://git@h:2/a").remote, "ssh://git@h:2/a");
    }

    #[test]
    fn reads_queries() {
        let r = read(
            "https://h/a.git?branch=refs/heads/x&keep-git-dir&submodules=0&mtime=commit&fetch-by-commit=1\
             &commit=abc",
        );
        assert_eq!((r.reference.as_str(), r.checksum.as_str()), ("refs/heads/x", "abc"));
        assert_eq!((r.keep_git_dir, r.submodules, r.fetch_by_commit), (Some(true), Some(false), true));
        assert_eq!(r.mtime, "commit");
        for (query, want) in [
            ("ref=", "query \"ref\" has no value"),
            ("ref=a&ref=a", "query \"ref\" has multiple values"),
            ("ref=a#b", "ref conflicts: \"b\" vs \"a\""),
            ("subdir=a#:b", "subdir conflicts: \"b\" vs \"a\""),
            ("tag=a&branch=b", "branch conflicts with tag"),
            ("tag=a#b", "ref conflicts: \"b\" vs \"refs/tags/a\""),
            ("submodules=x", "invalid submodules value: \"x\""),
            ("mtime=x", "invalid mtime value: \"x\" (must be \"checkout\" or \"commit\")"),
            ("foo=x", "unexpected query \"foo\""),
        ] {
            let error = GitRef::parse(&format!("https://h/a.git?{query}")).unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }
}
