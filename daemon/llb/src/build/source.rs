//! Where files come from.

use std::collections::BTreeMap;

use base::{Digest, gojson, gopath};

use super::node::{Node, NodeKind, Options, Output};
use super::state::State;
use crate::giturl::{Problem, Remote};
use crate::{Error, attr, caps};
use base::reference::Reference;

type Attrs = BTreeMap<String, String>;

fn set(attrs: &mut Attrs, key: &str, value: impl Into<String>) {
    attrs.insert(key.to_owned(), value.into());
}

/// A JSON list, as attributes hold it. Texts always have one.
fn list(values: &[String]) -> String {
    gojson::to_vec(&values).ok().and_then(|b| String::from_utf8(b).ok()).unwrap_or_default()
}

impl State {
    /// Any source, by its identifier.
    pub fn source(id: impl Into<String>, attrs: BTreeMap<String, String>, options: Options) -> Self {
        let platform = options.platform.clone();
        let node = Node::new(NodeKind::Source { id: id.into(), attrs }, options);
        Self::from_output(Some(Output::Of { node, index: 0, platform }))
    }
}

/// An image in a registry.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Whether to look for it here first.
    pub resolve_mode: ResolveMode,
    /// `internal` and so on; empty for ordinary ones.
    pub record_type: String,
    /// Only so many of the lowest layers.
    pub layer_limit: Option<u64>,
    /// The digest its manifest must have.
    pub checksum: Option<Digest>,
    /// Name and metadata.
    pub options: Options,
}

/// Whether to look for an image here first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResolveMode {
    /// As the daemon likes.
    #[default]
    Default,
    /// Ask the registry.
    ForcePull,
    /// Only ask the registry when it is not here.
    PreferLocal,
}

impl ResolveMode {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::ForcePull => "pull",
            Self::PreferLocal => "local",
        }
    }
}

impl Image {
    /// The image called `reference`.
    ///
    /// # Errors
    /// When it is not a reference.
    pub fn state(self, reference: &str) -> Result<State, Error> {
        let reference =
            reference.parse::<Reference>().map_err(|e| Error::Invalid(e.to_string()))?.tag_name_only();
        let mut options = self.options;
        let mut attrs = Attrs::new();
        options.cap(caps::SOURCE_IMAGE);
        if self.resolve_mode != ResolveMode::Default {
            set(&mut attrs, attr::IMAGE_RESOLVE_MODE, self.resolve_mode.as_str());
            if self.resolve_mode == ResolveMode::ForcePull {
                options.cap(caps::SOURCE_IMAGE_RESOLVEMODE);
            }
        }
        if !self.record_type.is_empty() {
            set(&mut attrs, attr::IMAGE_RECORD_TYPE, self.record_type);
        }
        if let Some(limit) = self.layer_limit {
            set(&mut attrs, attr::IMAGE_LAYER_LIMIT, limit.to_string());
            options.cap(caps::SOURCE_IMAGE_LAYERLIMIT);
        }
        if let Some(checksum) = self.checksum {
            set(&mut attrs, attr::IMAGE_CHECKSUM, checksum.as_str());
            options.cap(caps::SOURCE_IMAGE_CHECKSUM);
        }
        Ok(State::source(format!("docker-image://{reference}"), attrs, options))
    }
}

/// An image in an OCI layout that a client serves.
#[derive(Debug, Clone, Default)]
pub struct OciLayout {
    /// The session.
    pub session_id: String,
    /// The store within it.
    pub store_id: String,
    /// Only so many of the lowest layers.
    pub layer_limit: Option<u64>,
    /// Name and metadata.
    pub options: Options,
}

impl OciLayout {
    /// The image called `reference`.
    pub fn state(self, reference: &str) -> State {
        let mut options = self.options;
        let mut attrs = Attrs::new();
        if !self.session_id.is_empty() {
            set(&mut attrs, attr::OCI_SESSION, self.session_id);
        }
        if !self.store_id.is_empty() {
            set(&mut attrs, attr::OCI_STORE, self.store_id);
        }
        if let Some(limit) = self.layer_limit {
            set(&mut attrs, attr::OCI_LAYER_LIMIT, limit.to_string());
        }
        options.cap(caps::SOURCE_OCILAYOUT);
        State::source(format!("oci-layout://{reference}"), attrs, options)
    }
}

/// Files of a client.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// The session; empty: any, and the source is unique.
    pub session_id: String,
    /// Only what matches.
    pub include_patterns: Vec<String>,
    /// Not what matches.
    pub exclude_patterns: Vec<String>,
    /// Only these, and what links among them lead to.
    pub follow_paths: Vec<String>,
    /// Which earlier transfer to build upon.
    pub shared_key_hint: String,
    /// How files are compared with it, and whether the daemon must know that.
    pub differ: Option<(Differ, bool)>,
    /// Names and attributes only, except of what matches.
    pub metadata_only: Option<Vec<String>>,
    /// Name and metadata.
    pub options: Options,
}

/// How files are compared with an earlier transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Differ {
    /// Not at all: all are sent.
    None,
    /// By their attributes.
    Metadata,
}

impl Local {
    /// The files the client calls `name`.
    pub fn state(self, name: &str) -> State {
        let mut options = self.options;
        let mut attrs = Attrs::new();
        let mut put = |key: &str, value: String, cap: &str| {
            if !value.is_empty() {
                attrs.insert(key.to_owned(), value);
                options.cap(cap);
            }
        };
        let lists = |v: &[String]| if v.is_empty() { String::new() } else { list(v) };
        put(attr::LOCAL_SESSION, self.session_id, caps::SOURCE_LOCAL_SESSIONID);
        put(attr::LOCAL_INCLUDE_PATTERN, lists(&self.include_patterns), caps::SOURCE_LOCAL_INCLUDEPATTERNS);
        put(attr::LOCAL_FOLLOW_PATHS, lists(&self.follow_paths), caps::SOURCE_LOCAL_FOLLOWPATHS);
        put(attr::LOCAL_EXCLUDE_PATTERNS, lists(&self.exclude_patterns), caps::SOURCE_LOCAL_EXCLUDEPATTERNS);
        put(attr::LOCAL_SHARED_KEY_HINT, self.shared_key_hint, caps::SOURCE_LOCAL_SHAREDKEYHINT);
        if let Some((differ, required)) = self.differ {
            let text = match differ {
                Differ::None => "none",
                Differ::Metadata => "metadata",
            };
            set(&mut attrs, attr::LOCAL_DIFFER, text);
            if required {
                options.cap(caps::SOURCE_LOCAL_DIFFER);
            }
        }
        if let Some(except) = self.metadata_only {
            set(&mut attrs, attr::LOCAL_METADATA_TRANSFER, "true");
            if !except.is_empty() {
                set(&mut attrs, attr::LOCAL_METADATA_TRANSFER_EXCLUDE, list(&except));
            }
            options.cap(caps::SOURCE_LOCAL_METADATATRANSFER);
        }
        options.cap(caps::SOURCE_LOCAL);
        State::source(format!("local://{name}"), attrs, options)
    }
}

/// A file by URL.
#[derive(Debug, Clone, Default)]
pub struct Http {
    /// The digest it must have.
    pub checksum: Option<Digest>,
    /// What it is called.
    pub filename: String,
    /// Permissions; zero: as the source likes.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Secret with an `Authorization` header.
    pub auth_header_secret: String,
    /// Request headers `Accept` and `User-Agent`.
    pub headers: Option<(String, String)>,
    /// Public keys and a detached signature.
    pub signature: Option<(String, String)>,
    /// Name and metadata.
    pub options: Options,
}

impl Http {
    /// The file at `url`.
    pub fn state(self, url: &str) -> State {
        let mut options = self.options;
        let mut attrs = Attrs::new();
        if let Some(checksum) = self.checksum {
            set(&mut attrs, attr::HTTP_CHECKSUM, checksum.as_str());
            options.cap(caps::SOURCE_HTTP_CHECKSUM);
        }
        if !self.filename.is_empty() {
            set(&mut attrs, attr::HTTP_FILENAME, self.filename);
        }
        if self.mode & 0o777 != 0 {
            set(&mut attrs, attr::HTTP_PERM, format!("0{:o}", self.mode & 0o777));
            options.cap(caps::SOURCE_HTTP_PERM);
        }
        for (key, id) in [(attr::HTTP_UID, self.owner.0), (attr::HTTP_GID, self.owner.1)] {
            if id != 0 {
                set(&mut attrs, key, id.to_string());
                options.cap(caps::SOURCE_HTTP_UIDGID);
            }
        }
        if !self.auth_header_secret.is_empty() {
            set(&mut attrs, attr::HTTP_AUTH_HEADER_SECRET, self.auth_header_secret);
            options.cap(caps::SOURCE_HTTP_AUTH);
        }
        if let Some((accept, user_agent)) = self.headers {
            for (name, value) in [("accept", accept), ("user-agent", user_agent)] {
                if !value.is_empty() {
                    set(&mut attrs, &format!("{}{name}", attr::HTTP_HEADER_PREFIX), value);
                }
            }
            options.cap(caps::SOURCE_HTTP_HEADER);
        }
        if let Some((keys, signature)) = self.signature {
            for (name, value) in [(attr::HTTP_SIG_PUBKEY, keys), (attr::HTTP_SIG_SIGNATURE, signature)] {
                if !value.is_empty() {
                    set(&mut attrs, name, value);
                }
            }
            options.cap(caps::SOURCE_HTTP_SIGNATUREVERIFY);
        }
        options.cap(caps::SOURCE_HTTP);
        State::source(url, attrs, options)
    }
}

/// A repository.
#[derive(Debug, Clone, Default)]
pub struct Git {
    /// Branch, tag or commit; empty: the default branch.
    pub reference: String,
    /// A directory of it.
    pub subdir: String,
    /// `.git` is kept.
    pub keep_git_dir: bool,
    /// The commit it must be.
    pub checksum: String,
    /// Submodules are left out.
    pub skip_submodules: bool,
    /// `checkout` or `commit`; empty: as the source likes.
    pub mtime: String,
    /// The commit is fetched, not the reference.
    pub fetch_by_commit: bool,
    /// Lines for `known_hosts`.
    pub known_ssh_hosts: String,
    /// Id of the forwarded agent; empty: `default`.
    pub mount_ssh_sock: String,
    /// Secret with a token; empty: the usual name.
    pub auth_token_secret: String,
    /// Secret with an `Authorization` header; empty: the usual name.
    pub auth_header_secret: String,
    /// Name and metadata.
    pub options: Options,
}

impl Git {
    /// The repository at `url`. What is no URL is tried with `https://`; an
    /// address that makes no sense fails when it is fetched.
    pub fn state(self, url: &str) -> State {
        let mut url = url.to_owned();
        let mut remote = Remote::parse(&url);
        if remote == Err(Problem::NoScheme) {
            url = format!("https://{url}");
            remote = Remote::parse(&url);
        }
        let mut options = self.options;
        let mut attrs = Attrs::new();
        let id = match &remote {
            Err(_) => url.clone(),
            Ok(remote) => {
                url.clone_from(&remote.url);
                let mut id = format!("{}{}", remote.host, gopath::join(["/", remote.path.as_str()]));
                if !self.reference.is_empty() || !self.subdir.is_empty() {
                    id.push('#');
                    id.push_str(&self.reference);
                    if !self.subdir.is_empty() {
                        id.push(':');
                        id.push_str(&self.subdir);
                    }
                }
                id
            }
        };
        let mut put = |needed: bool, key: &str, value: &str, cap: Option<&str>| {
            if needed {
                attrs.insert(key.to_owned(), value.to_owned());
                if let Some(cap) = cap {
                    options.cap(cap);
                }
            }
        };
        put(self.keep_git_dir, attr::GIT_KEEP_DIR, "true", Some(caps::SOURCE_GIT_KEEPGITDIR));
        put(!url.is_empty(), attr::GIT_FULL_URL, &url, Some(caps::SOURCE_GIT_FULLURL));
        for (key, value, usual) in [
            (attr::GIT_AUTH_TOKEN_SECRET, &self.auth_token_secret, "GIT_AUTH_TOKEN"),
            (attr::GIT_AUTH_HEADER_SECRET, &self.auth_header_secret, "GIT_AUTH_HEADER"),
        ] {
            match value.as_str() {
                "" => put(true, key, usual, None),
                value => put(true, key, value, Some(caps::SOURCE_GIT_HTTPAUTH)),
            }
        }
        if remote.is_ok_and(|r| r.is_ssh()) {
            let hosts = &self.known_ssh_hosts;
            put(!hosts.is_empty(), attr::GIT_KNOWN_SSH_HOSTS, hosts, None);
            let sock = if self.mount_ssh_sock.is_empty() { "default" } else { &self.mount_ssh_sock };
            put(true, attr::GIT_MOUNT_SSH_SOCK, sock, Some(caps::SOURCE_GIT_MOUNTSSHSOCK));
        }
        put(!self.checksum.is_empty(), attr::GIT_CHECKSUM, &self.checksum, Some(caps::SOURCE_GIT_CHECKSUM));
        put(self.skip_submodules, attr::GIT_SKIP_SUBMODULES, "true", Some(caps::SOURCE_GIT_SKIPSUBMODULES));
        put(!self.mtime.is_empty(), attr::GIT_MTIME, &self.mtime, Some(caps::SOURCE_GIT_MTIME));
        put(self.fetch_by_commit, attr::GIT_FETCH_BY_COMMIT, "true", Some(caps::SOURCE_GIT_FETCHBYCOMMIT));
        if attrs.contains_key(attr::GIT_MOUNT_SSH_SOCK) {
            options.cap(caps::SOURCE_GIT_KNOWNSSHHOSTS);
        }
        options.cap(caps::SOURCE_GIT);
        State::source(format!("git://{id}"), attrs, options)
    }
}
