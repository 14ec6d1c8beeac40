//! What a reference means at a remote, from what `git ls-remote` prints.

use base::Failure;

use super::cli::Git;
use super::is_commit;
use super::wanted::{Wanted, check_reference, mismatch};
use crate::Error;
use crate::source::redacted;

/// What a reference turned out to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// In full, such as `refs/heads/main`; a commit when that was asked for.
    pub reference: String,
    /// What it points to: a commit, or a tag object.
    pub checksum: String,
    /// The commit, where `checksum` is a tag object and that is known.
    pub commit: String,
}

impl Found {
    /// A commit that is known beforehand.
    pub(super) fn pinned(reference: &str, checksum: &str) -> Self {
        Self { reference: reference.to_owned(), checksum: checksum.to_owned(), commit: String::new() }
    }

    /// Whether the repository it is in names its objects by sha256.
    pub(super) fn is_sha256(&self) -> bool {
        self.checksum.len() == 64
    }
}

impl Wanted {
    /// Asks `url`, which is the remote or stands for it.
    pub(super) async fn ask(&self, git: &Git<'_>, url: &str) -> Result<Found, Failure> {
        let failed = |e: Failure| e.context(format!("failed to fetch remote {}", redacted(url)));
        let reference = match self.reference.as_str() {
            "" => default_branch(git, url).await?,
            given => given.to_owned(),
        };
        let peeled = format!("{reference}^{{}}");
        let listed = git.run(&["ls-remote", "--", url, &reference, &peeled]).await.map_err(failed)?;
        Ok(self.pick(&reference, &String::from_utf8_lossy(&listed))?)
    }

    /// What `reference` is in a list of objects and references. Branches come
    /// before tags, as when git checks something out.
    fn pick(&self, reference: &str, listed: &str) -> Result<Found, Error> {
        let bad = |reason: String| Error::Git { remote: redacted(&self.remote), reason };
        let full = |prefix: &str| format!("{prefix}{}", reference.strip_prefix(prefix).unwrap_or(reference));
        let (exact, branch, tag) = (full("refs/"), full("refs/heads/"), full("refs/tags/"));
        let peeled = format!("{tag}^{{}}");
        let lines: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
        let of = |name: &str| lines.iter().rev().find(|(_, n)| *n == name).map(|(sha, _)| *sha);
        let untagged = [exact, branch].into_iter().find_map(|name| of(&name).map(|sha| (name, sha)));
        let (name, sha, commit) = match untagged {
            Some((name, sha)) => (name, sha, ""),
            None => match of(&tag) {
                Some(sha) => (tag.clone(), sha, of(&peeled).unwrap_or_default()),
                None => {
                    let output: String = listed.chars().take(1000).collect();
                    let output = base::gotext::quote(&output);
                    let reason = format!("repository does not contain ref {reference}, output: {output}");
                    return Err(bad(reason));
                }
            },
        };
        // A full name of a tag is found as it is, and still has a commit behind it.
        let commit = if name == tag { of(&peeled).unwrap_or(commit) } else { commit };
        let behind = Some(commit).filter(|commit| !commit.is_empty());
        if let Some(odd) = std::iter::once(sha).chain(behind).find(|sha| !is_commit(sha)) {
            return Err(bad(format!("invalid commit sha {}", base::gotext::quote(odd))));
        }
        if !sha.starts_with(&self.checksum) && !commit.starts_with(&self.checksum) {
            let found = if commit.is_empty() { sha.to_owned() } else { format!("{sha} or {commit}") };
            return Err(bad(mismatch(&self.checksum, &found)));
        }
        // With its repository a tag is more than its commit.
        let commit = if self.keep_git_dir { "" } else { commit };
        Ok(Found { reference: name, checksum: sha.to_owned(), commit: commit.to_owned() })
    }
}

/// The branch that the remote checks out by itself.
pub(super) async fn default_branch(git: &Git<'_>, url: &str) -> Result<String, Failure> {
    let listed = git.run(&["ls-remote", "--symref", "--", url, "HEAD"]).await;
    let listed = listed
        .map_err(|e| e.context(format!("error fetching default branch for repository {}", redacted(url))))?;
    let text = String::from_utf8_lossy(&listed);
    let name = text.split_once("refs/heads/").and_then(|(_, rest)| rest.split_whitespace().next());
    let name = name.ok_or_else(|| Error::Git {
        remote: redacted(url),
        reason: "could not find default branch for repository".to_owned(),
    })?;
    check_reference(name)?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::pb;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "cccccccccccccccccccccccccccccccccccccccc";

    fn pick(
        attrs: &[(&str, &str)],
        reference: &str,
        listed: &str,
    ) -> Result<(String, String, String), String> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let op = pb::SourceOp { identifier: "git://h/a".to_owned(), attrs };
        let found = Wanted::parse(&op).unwrap().pick(reference, listed).map_err(|e| e.to_string())?;
        Ok((found.reference, found.checksum, found.commit))
    }

    fn is(reference: &str, checksum: &str, commit: &str) -> Result<(String, String, String), String> {
        Ok((reference.to_owned(), checksum.to_owned(), commit.to_owned()))
    }

    #[test]
    fn prefers_branches_and_looks_behind_tags() {
        let both = format!("{A}\trefs/heads/v1\n{B}\trefs/tags/v1\n{C}\trefs/tags/v1^{{}}\n");
        assert_eq!(pick(&[], "v1", &both), is("refs/heads/v1", A, ""));
        let tag = format!("{B}\trefs/tags/v1\n{C}\trefs/tags/v1^{{}}\n");
        assert_eq!(pick(&[], "v1", &tag), is("refs/tags/v1", B, C));
        assert_eq!(pick(&[("git.keepgitdir", "true")], "v1", &tag), is("refs/tags/v1", B, ""));
        assert_eq!(
            pick(&[], "pull/1/head", &format!("{A}\trefs/pull/1/head\n")),
            is("refs/pull/1/head", A, "")
        );
        assert_eq!(pick(&[("git.checksum", "ccc")], "v1", &tag), is("refs/tags/v1", B, C));
        // Names that only end alike are other references.
        assert!(pick(&[], "v1", &format!("{A}\trefs/heads/x/v1\n")).is_err());
    }

    #[test]
    fn does_not_believe_everything() {
        let error = pick(&[("git.checksum", "ddd")], "v1", &format!("{A}\trefs/heads/v1\n")).unwrap_err();
        assert!(error.contains("expected checksum to match ddd, got aaaa"), "{error}");
        assert!(pick(&[], "v1", "").unwrap_err().contains("does not contain ref v1"));
        for lie in
            ["--option\trefs/heads/v1\n", "abc\trefs/heads/v1\n", "\trefs/heads/v1\n", "refs/heads/v1\n"]
        {
            assert!(pick(&[], "v1", lie).is_err(), "{lie}");
        }
    }
}
