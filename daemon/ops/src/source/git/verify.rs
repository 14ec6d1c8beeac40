//! Signed commits and tags.

use base::Failure;
use llb::attr;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use super::found::Found;
use crate::source::Attrs;
use crate::source::sign::{Rejected, pgp, ssh};

/// Who has to have signed, and what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    keys: String,
    reject_expired: bool,
    require_tag: bool,
    ignore_tag: bool,
}

impl Rules {
    /// `None` when nothing is said of signatures.
    pub(super) fn parse(attrs: &Attrs<'_>) -> Option<Self> {
        let said = [
            attr::GIT_SIG_PUBKEY,
            attr::GIT_SIG_REJECT_EXPIRED,
            attr::GIT_SIG_REQUIRE_SIGNED_TAG,
            attr::GIT_SIG_IGNORE_SIGNED_TAG,
        ];
        said.iter().any(|key| attrs.get(key).is_some()).then(|| Self {
            keys: attrs.get(attr::GIT_SIG_PUBKEY).unwrap_or_default().to_owned(),
            reject_expired: attrs.flag(attr::GIT_SIG_REJECT_EXPIRED),
            require_tag: attrs.flag(attr::GIT_SIG_REQUIRE_SIGNED_TAG),
            ignore_tag: attrs.flag(attr::GIT_SIG_IGNORE_SIGNED_TAG),
        })
    }
}

/// The objects behind a reference, byte for byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// The commit.
    pub commit: Vec<u8>,
    /// The tag; empty when there is none.
    pub tag: Vec<u8>,
}

impl Objects {
    /// Whether they are those that were `found`, and signed as `rules` want: the
    /// tag if there is one, or else the commit.
    pub(super) fn check(&self, found: &Found, rules: &Rules) -> Result<(), Failure> {
        let commit = if found.commit.is_empty() { &found.checksum } else { &found.commit };
        let tag = match &*self.tag {
            _ if rules.ignore_tag => None,
            [] => None,
            tag => {
                let tag = Object::parse(tag)?;
                tag.is(&found.checksum)?;
                Some(tag.verify(rules))
            }
        };
        match tag {
            Some(Ok(())) => Ok(()),
            Some(Err(rejected)) if rules.require_tag => Err(rejected.into()),
            None if rules.require_tag => {
                Err(Rejected("signed tag required but no signed tag found".to_owned()).into())
            }
            _ => {
                let object = Object::parse(&self.commit)?;
                object.is(commit)?;
                Ok(object.verify(rules)?)
            }
        }
    }
}

/// A commit or a tag, and what of it is signed.
#[derive(Debug, PartialEq, Eq)]
struct Object<'a> {
    raw: &'a [u8],
    is_tag: bool,
    signed: Vec<u8>,
    signature: String,
}

impl<'a> Object<'a> {
    fn parse(raw: &'a [u8]) -> Result<Self, Rejected> {
        let is_tag = raw.starts_with(b"object ");
        let kind = if is_tag { "tag" } else { "commit" };
        let end = raw.windows(2).position(|pair| pair == b"\n\n").map_or(raw.len(), |at| at + 1);
        let (headers, body) = raw.split_at(end);
        let (mut signed, mut signature) = (Vec::with_capacity(raw.len()), Vec::new());
        let mut names: Vec<&[u8]> = Vec::new();
        let mut within = false;
        for line in headers.split_inclusive(|b| *b == b'\n') {
            let name = line.split(|b| *b == b' ').next().unwrap_or_default();
            if !is_tag && matches!(name, b"gpgsig" | b"gpgsig-sha256") {
                within = true;
                signature.extend_from_slice(line.get(name.len() + 1..).unwrap_or_default());
            } else if within && name.is_empty() {
                // A line that goes on begins with a space.
                signature.extend_from_slice(line.get(1..).unwrap_or_default());
            } else {
                within = false;
                names.push(name);
                signed.extend_from_slice(line);
            }
        }
        let needed: &[&str] =
            if is_tag { &["object", "type", "tag", "tagger"] } else { &["tree", "author", "committer"] };
        if let Some(missing) = needed.iter().find(|n| !names.contains(&n.as_bytes())) {
            return Err(Rejected(format!("invalid {kind} object: missing {missing} header")));
        }
        // A tag's signature follows its message.
        let begins = |mark: &[u8]| body.windows(mark.len()).position(|part| part == mark).map(|at| at + 1);
        let marks: [&[u8]; 2] = [b"\n-----BEGIN PGP SIGNATURE-----\n", b"\n-----BEGIN SSH SIGNATURE-----\n"];
        let at = if is_tag { marks.into_iter().filter_map(begins).min() } else { None };
        let (message, after) = body.split_at(at.unwrap_or(body.len()));
        signed.extend_from_slice(message);
        signature.extend_from_slice(after);
        let signature = String::from_utf8_lossy(&signature).into_owned();
        Ok(Self { raw, is_tag, signed, signature })
    }

    /// Whether its name is `sha`.
    fn is(&self, sha: &str) -> Result<(), Rejected> {
        let kind = if self.is_tag { "tag" } else { "commit" };
        let named = [format!("{kind} {}\0", self.raw.len()).as_bytes(), self.raw].concat();
        let algorithm = if sha.len() == 64 { &SHA256 } else { &SHA1_FOR_LEGACY_USE_ONLY };
        let actual = base::digest::hex(digest(algorithm, &named).as_ref());
        if actual == sha {
            return Ok(());
        }
        Err(Rejected(format!("{kind} object checksum verification failed: expected {sha}, got {actual}")))
    }

    fn verify(&self, rules: &Rules) -> Result<(), Rejected> {
        if self.signature.is_empty() {
            return Err(Rejected("git object is not signed".to_owned()));
        }
        if self.signature.starts_with("-----BEGIN PGP SIGNATURE-----") {
            return pgp::verify(self.signed.clone(), &self.signature, &rules.keys, rules.reject_expired);
        }
        if self.signature.starts_with("-----BEGIN SSH SIGNATURE-----") {
            return ssh::verify(&self.signed, &self.signature, &rules.keys);
        }
        Err(Rejected("invalid signature format".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str =
        "tree 1\nauthor a\ngpgsig -----BEGIN X-----\n \n abc\n -----END X-----\ncommitter b\n\nmessage\n";

    #[test]
    fn takes_the_signature_out_of_a_commit() {
        let object = Object::parse(COMMIT.as_bytes()).unwrap();
        assert_eq!(object.signature, "-----BEGIN X-----\n\nabc\n-----END X-----\n");
        assert_eq!(object.signed, b"tree 1\nauthor a\ncommitter b\n\nmessage\n");
    }

    #[test]
    fn takes_the_signature_off_a_tag() {
        let tag = "object 1\ntype commit\ntag v\ntagger t\n\nmessage\n-----BEGIN SSH SIGNATURE-----\nx\n";
        let object = Object::parse(tag.as_bytes()).unwrap();
        assert_eq!(object.signature, "-----BEGIN SSH SIGNATURE-----\nx\n");
        assert_eq!(object.signed, b"object 1\ntype commit\ntag v\ntagger t\n\nmessage\n");
        let unsigned = Object::parse(b"object 1\ntype commit\ntag v\ntagger t\n\nmessage\n").unwrap();
        assert_eq!(unsigned.signature, "");
        assert_eq!(unsigned.verify(&Rules::default()).unwrap_err().to_string(), "git object is not signed");
    }

    #[test]
    fn refuses_what_is_no_object() {
        for raw in ["", "\n\n", "tree 1\n\n", "object 1\n\nx", "gpgsig", "gpgsig \n x"] {
            assert!(Object::parse(raw.as_bytes()).is_err(), "{raw:?}");
        }
        assert!(Object::parse(COMMIT.as_bytes()).unwrap().is("abc").is_err());
    }

    #[test]
    fn knows_objects_by_their_names() {
        // What `git hash-object -t commit` says of it.
        let raw = b"tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor A <a@b> 0 +0000\ncommitter A <a@b> 0 +0000\n\nx\n";
        let object = Object::parse(raw).unwrap();
        object.is("7b8051db3dcc0fcfd006919cfa7376ddbd7bdc1a").unwrap();
        object.is("83a75b15d90a1fd8494d71101a69ae616788774e8cf12a7dd125680c562acb18").unwrap();
    }
}
