//! Which repository is wanted, and what of it.

use base::Failure;
use base::gotext::quote;
use llb::attr;
use llb::giturl::{Problem, Remote};
use proto::pb;

use super::is_commit;
use super::verify::Rules;
use crate::source::blob::Locator;
use crate::source::{Attrs, redacted};
use crate::{Error, source};

const SCHEME: &str = "git://";

/// Which repository is wanted, and what of it.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub(super) remote: String,
    /// Branch, tag, full reference or commit; empty for the default branch.
    pub(super) reference: String,
    /// Without slashes at either end; empty for all.
    pub(super) subdir: String,
    /// A commit or tag object, or how it begins; empty for any.
    pub(super) checksum: String,
    pub(super) keep_git_dir: bool,
    pub(super) skip_submodules: bool,
    pub(super) mtime: String,
    pub(super) fetch_by_commit: bool,
    pub(super) header_secret: String,
    pub(super) token_secret: String,
    pub(super) known_hosts: String,
    pub(super) agent: String,
    /// Fetched instead of the remote.
    pub(super) bundle: Option<Locator>,
    /// The result is a bundle, not files.
    pub(super) checkout_bundle: bool,
    pub(super) signature: Option<Rules>,
}

impl Wanted {
    /// Reads a source operation.
    ///
    /// # Errors
    /// When the address or an attribute makes no sense, or could be taken for
    /// something else by the program it is given to.
    pub fn parse(op: &pb::SourceOp) -> Result<Self, Failure> {
        let attrs = Attrs::new(op);
        let identifier = op.identifier.strip_prefix(SCHEME).unwrap_or(&op.identifier);
        let named = remote(identifier)?;
        let (reference, subdir) = named.fragment.split_once(':').unwrap_or((&named.fragment, ""));
        let url = match attrs.get(attr::GIT_FULL_URL) {
            Some(url) => self::remote(url)?.given,
            None => named.url.clone(),
        };
        let text = |key| attrs.get(key).unwrap_or_default().to_owned();
        let bundle = match attrs.get(attr::GIT_BUNDLE).filter(|b| !b.is_empty()) {
            Some(locator) => Some(Locator::parse(locator, &attrs).map_err(|e| e.context("git.bundle"))?),
            None => None,
        };
        let wanted = Self {
            remote: url,
            reference: reference.to_owned(),
            subdir: base::gopath::join(["/", subdir]).trim_matches('/').to_owned(),
            checksum: text(attr::GIT_CHECKSUM),
            keep_git_dir: attrs.flag(attr::GIT_KEEP_DIR),
            skip_submodules: attrs.flag(attr::GIT_SKIP_SUBMODULES),
            mtime: text(attr::GIT_MTIME),
            fetch_by_commit: attrs.flag(attr::GIT_FETCH_BY_COMMIT),
            header_secret: text(attr::GIT_AUTH_HEADER_SECRET),
            token_secret: text(attr::GIT_AUTH_TOKEN_SECRET),
            known_hosts: text(attr::GIT_KNOWN_SSH_HOSTS),
            agent: text(attr::GIT_MOUNT_SSH_SOCK),
            bundle,
            checkout_bundle: attrs.flag(attr::GIT_CHECKOUT_BUNDLE),
            signature: Rules::parse(&attrs),
        };
        wanted.check()?;
        Ok(wanted)
    }

    fn check(&self) -> Result<(), Error> {
        let bad = |reason: String| Err(Error::Git { remote: redacted(&self.remote), reason });
        check_reference(&self.reference)?;
        if self.remote.starts_with('-') || self.remote.chars().any(char::is_control) {
            return bad("not a remote".to_owned());
        }
        if self.bundle.is_some() {
            if self.checksum.is_empty() {
                return bad("git.bundle requires git.checksum to be set".to_owned());
            }
            if is_commit(&self.reference) && !self.reference.starts_with(&self.checksum) {
                return bad(mismatch(&self.checksum, &self.reference));
            }
        }
        if self.checkout_bundle && self.keep_git_dir {
            return bad("git.checkoutbundle is incompatible with git.keepgitdir".to_owned());
        }
        if self.checkout_bundle && !self.subdir.is_empty() {
            return bad("git.checkoutbundle is incompatible with git.subdir".to_owned());
        }
        Ok(())
    }

    /// The checksum, if there is one, has to look like a commit.
    pub(super) fn check_checksum(&self) -> Result<(), Error> {
        if self.checksum.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(());
        }
        let reason = format!("invalid checksum {} for Git URL, expected hex commit hash", self.checksum);
        Err(Error::Git { remote: redacted(&self.remote), reason })
    }

    /// What the result is known as, of a commit or tag object `sha` that
    /// `reference` means.
    pub(super) fn key(&self, sha: &str, reference: &str) -> String {
        let mut key = sha.to_owned();
        if self.keep_git_dir {
            key.push_str(".git");
            if !reference.is_empty() {
                key.push('#');
                key.push_str(reference);
            }
        }
        if !self.subdir.is_empty() {
            key.push(':');
            key.push_str(&self.subdir);
        }
        if self.skip_submodules {
            key.push_str("(skip-submodules)");
        }
        if !matches!(self.mtime.as_str(), "" | "checkout") {
            key.push_str(&format!("(mtime={})", self.mtime));
        }
        if self.checkout_bundle {
            key.push_str("(bundle)");
        }
        key
    }

    /// For people and provenance: host, path, reference and directory.
    pub(crate) fn identifier(&self) -> String {
        let mut text = match Remote::parse(&self.remote) {
            Ok(r) => format!("{SCHEME}{}{}", r.host, base::gopath::join(["/", r.path.as_str()])),
            Err(_) => format!("{SCHEME}{}", self.remote),
        };
        if !self.reference.is_empty() || !self.subdir.is_empty() {
            text.push('#');
            text.push_str(&self.reference);
            if !self.subdir.is_empty() {
                text.push(':');
                text.push_str(&self.subdir);
            }
        }
        text
    }

    /// Whether somebody has to have signed it.
    pub fn is_signed(&self) -> bool {
        self.signature.is_some()
    }

    /// The host and port of the remote.
    pub(super) fn host(&self) -> String {
        Remote::parse(&self.remote).map(|r| r.host).unwrap_or_default()
    }

    /// Up to where a header may be sent. One for a repository on GitHub is good
    /// for others there, as submodules often are.
    pub(super) fn header_scope(&self) -> &str {
        let known = ["https://github.com/", "https://www.github.com/"];
        known.into_iter().find(|scope| self.remote.starts_with(scope)).unwrap_or(&self.remote)
    }
}

/// A remote, as it is taken apart and as it was given.
struct Given {
    given: String,
    url: String,
    fragment: String,
}

fn remote(text: &str) -> Result<Given, Error> {
    let mut given = text.to_owned();
    let mut parsed = Remote::parse(&given);
    if parsed == Err(Problem::NoScheme) {
        given = format!("https://{text}");
        parsed = Remote::parse(&given);
    }
    match parsed {
        Ok(remote) => Ok(Given { given, url: remote.url, fragment: remote.fragment }),
        Err(_) => Err(Error::Git { remote: source::redacted(text), reason: "not a remote".to_owned() }),
    }
}

/// Refuses references that git would take for an option, a pattern or an expression.
pub(super) fn check_reference(reference: &str) -> Result<(), Error> {
    let odd = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    let bad = reference.starts_with(['-', '+'])
        || reference.contains(odd)
        || reference.contains("..")
        || reference.contains("@{");
    if bad { Err(Error::GitReference { reference: quote(reference) }) } else { Ok(()) }
}

/// The words of the reference for a commit that is not the one that was wanted.
pub(super) fn mismatch(wanted: &str, found: &str) -> String {
    format!("expected checksum to match {wanted}, got {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(identifier: &str, attrs: &[(&str, &str)]) -> Result<Wanted, Failure> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Wanted::parse(&pb::SourceOp { identifier: identifier.to_owned(), attrs })
    }

    #[test]
    fn reads_identifiers() {
        let w = wanted("git://github.com/a/b.git#v1:/x/../dir/", &[]).unwrap();
        assert_eq!((w.remote.as_str(), w.reference.as_str()), ("https://github.com/a/b.git", "v1"));
        assert_eq!((w.subdir.as_str(), w.header_scope()), ("dir", "https://github.com/"));
        assert_eq!(w.identifier(), "git://github.com/a/b.git#v1:dir");
        let full = [("git.fullurl", "git@h.x:2/a.git"), ("git.keepgitdir", "true")];
        let w = wanted("git://h.x/2/a.git", &full).unwrap();
        assert_eq!((w.remote.as_str(), w.host().as_str()), ("git@h.x:2/a.git", "h.x"));
        assert!(w.keep_git_dir);
        let w = wanted("git://u:p@h/a", &[]).unwrap();
        assert_eq!(w.remote, "https://u:p@h/a");
        assert_eq!(w.identifier(), "git://h/a");
    }

    #[test]
    fn keys_say_what_makes_results_differ() {
        let key = |attrs: &[(&str, &str)], at: &str| wanted(at, attrs).unwrap().key("abc", "refs/heads/m");
        assert_eq!(key(&[], "git://h/a#m"), "abc");
        assert_eq!(key(&[("git.mtime", "checkout")], "git://h/a#m:s"), "abc:s");
        let all = [("git.keepgitdir", "true"), ("git.skipsubmodules", "true"), ("git.mtime", "commit")];
        assert_eq!(key(&all, "git://h/a#m:s"), "abc.git#refs/heads/m:s(skip-submodules)(mtime=commit)");
        assert_eq!(key(&[("git.checkoutbundle", "true")], "git://h/a"), "abc(bundle)");
    }

    #[test]
    fn nothing_smuggles_options() {
        for at in [
            "git://h/a#--upload-pack=touch",
            "git://h/a#-x",
            "git://h/a#+a",
            "git://h/a#a:b:c^{}".trim_end_matches(":b:c^{}").replace("#a", "#a^{}").as_str(),
            "git://h/a#refs/heads/*",
            "git://h/a#a..b",
            "git://h/a#a@{1}",
            "git://h/a#a%20b",
            "git://h/a#a%00b",
        ] {
            assert!(wanted(at, &[]).is_err(), "{at}");
        }
        for url in
            ["file:///etc", "ext::sh -c id", "-oProxyCommand=id@h:x", "ftp://h/a", "/etc", "https://h:x/a"]
        {
            let refused = match wanted("git://h/a", &[("git.fullurl", url)]) {
                Err(_) => true,
                // Whatever is no remote is at most a host that does not exist.
                Ok(w) => w.remote.starts_with("https://"),
            };
            assert!(refused, "{url}");
        }
        let bundle = ("git.bundle", "docker-image+blob://h/a@sha256:1");
        assert!(wanted("git://h/a", &[bundle]).is_err());
        assert!(wanted("git://h/a#:d", &[("git.checkoutbundle", "true")]).is_err());
    }
}
