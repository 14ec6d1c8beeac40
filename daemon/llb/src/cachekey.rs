//! Under which digests results of operations are kept.
//!
//! A result's key is made of its operation's own digest, computed here, and of
//! what is known of each input: the input's key, narrowed by a selector, or the
//! digest of the part of its content that the operation reads. The digests are
//! those of moby/buildkit, so that either finds what the other kept in a remote
//! cache.
//!
//! What an exec's digest leaves out on purpose: addresses of extra hosts, proxy
//! settings, selectors of mounts (they are in the selector of the input), the id
//! of a cache mount unless it is the Dockerfile's default, and, for the plain
//! case of one writable root, the mount itself.

use std::collections::{BTreeMap, BTreeSet};

use base::{Digest, Platform, gojson, gopath};
use proto::pb;
use proto::pb::file_action::Action;
use serde::Serialize;

use crate::json::Json;
use crate::{Error, attr};

/// What identifies an operation's work, apart from its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMap {
    /// The operation's own digest.
    pub digest: Digest,
    /// One per input.
    pub inputs: Vec<Dependency>,
}

/// How an operation depends on an input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dependency {
    /// Which part of the input, as a digest; `None`: all of it.
    pub selector: Option<Digest>,
    /// The paths whose content may stand for the input; `None`: only the
    /// input's own key may. An empty list means all of it.
    pub content: Option<Vec<Selector>>,
}

/// A part of an input's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// The path, absolute or relative to the root.
    pub path: String,
    /// The path is a pattern.
    pub wildcard: bool,
    /// A link in the last place is followed.
    pub follow_links: bool,
    /// Only what matches.
    pub include_patterns: Vec<String>,
    /// Not what matches.
    pub exclude_patterns: Vec<String>,
    /// What must be there.
    pub required_paths: Vec<String>,
}

impl Selector {
    fn is_plain(&self) -> bool {
        !self.wildcard && self.include_patterns.is_empty() && self.exclude_patterns.is_empty()
    }
}

/// The cache map of any operation but a source, whose key its source makes.
///
/// # Errors
/// When the operation is one no valid graph contains.
pub fn of(op: &pb::op::Op, platform: &Platform, inputs: usize) -> Result<Option<CacheMap>, Error> {
    use pb::op::Op;
    Ok(Some(match op {
        Op::Source(_) => return Ok(None),
        Op::Exec(op) => CacheMap { digest: exec_digest(op, platform)?, inputs: exec_inputs(op, inputs)? },
        Op::File(op) => file(op, inputs)?,
        Op::Build(op) => plain(build_digest(op)?, inputs),
        Op::Merge(op) => plain(merge_digest(op)?, inputs),
        Op::Diff(op) => plain(diff_digest(op)?, inputs),
        Op::Passthrough(op) => plain(passthrough_digest(op)?, inputs),
    }))
}

fn plain(digest: Digest, inputs: usize) -> CacheMap {
    CacheMap { digest, inputs: vec![Dependency::default(); inputs] }
}

fn digest(value: &impl Serialize) -> Result<Digest, Error> {
    let bytes = gojson::to_vec(value).map_err(|e| Error::invalid(format!("write cache key: {e}")))?;
    Ok(Digest::of(bytes))
}

/// The digest of a source whose key is `key`.
///
/// A key of a session's files says nothing about their content: such a source
/// has [`Source::Random`].
pub fn source_digest(key: &str) -> Source {
    let digest = Digest::of(format!("buildkit.source.v0:{key}"));
    if key.starts_with("session:") { Source::Random(digest.hex().to_owned()) } else { Source::Key(digest) }
}

/// The digest of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Means the same content wherever it occurs.
    Key(Digest),
    /// Means nothing outside this build: written `random:<hex>`.
    Random(String),
}

/// The digest of an exec.
///
/// # Errors
/// When the operation has no JSON form, which none has.
pub fn exec_digest(op: &pb::ExecOp, platform: &Platform) -> Result<Digest, Error> {
    let mut op = op.clone();
    if let Some(meta) = &mut op.meta {
        meta.proxy_env = None;
        for host in &mut meta.extra_hosts {
            host.ip.clear();
        }
    }
    for mount in &mut op.mounts {
        mount.selector.clear();
        if !is_default_cache(mount)
            && let Some(cache) = &mut mount.cache_opt
        {
            cache.id.clear();
            cache.sharing = 0;
        }
    }
    if let [only] = op.mounts.as_slice()
        && is_plain_root(only)
    {
        op.mounts.clear();
    }

    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Key<'a> {
        r#type: &'static str,
        exec: Json<'a, pb::ExecOp>,
        #[serde(rename = "OS")]
        os: &'a str,
        arch: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        variant: &'a str,
        #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
        os_version: &'a str,
        #[serde(rename = "OSFeatures", skip_serializing_if = "<[String]>::is_empty")]
        os_features: &'a [String],
    }
    digest(&Key {
        r#type: "buildkit.exec.v0",
        exec: Json(&op),
        os: &platform.os,
        arch: &platform.architecture,
        variant: &platform.variant,
        os_version: &platform.os_version,
        os_features: &platform.os_features,
    })
}

/// A Dockerfile's cache mount without an id, perhaps within a namespace. Its
/// options always were part of the key and stay so.
fn is_default_cache(mount: &pb::Mount) -> bool {
    let Some(cache) = &mount.cache_opt else { return true };
    let in_namespace = cache.id.split_once('/').is_some_and(|(_, rest)| rest == mount.dest);
    cache.sharing == 0 && (cache.id == mount.dest || in_namespace)
}

fn is_plain_root(mount: &pb::Mount) -> bool {
    mount.dest == "/"
        && !mount.readonly
        && mount.mount_type == pb::MountType::Bind as i32
        && mount.cache_opt.is_none()
        && mount.ssh_opt.is_none()
        && mount.secret_opt.is_none()
        && mount.result_id.is_empty()
}

/// How an exec depends on its inputs.
///
/// # Errors
/// A mount of an input that is not there, or one that asks for a key of its
/// content where that would be unsafe.
pub fn exec_inputs(op: &pb::ExecOp, inputs: usize) -> Result<Vec<Dependency>, Error> {
    use pb::{MountContentCache as Mode, MountType};
    let mut found: Vec<(Vec<String>, bool)> = vec![(Vec::new(), false); inputs];
    for mount in &op.mounts {
        if matches!(mount.mount_type(), MountType::Secret | MountType::Ssh | MountType::Tmpfs)
            || mount.input == attr::NONE
        {
            continue;
        }
        let Some((selectors, content)) = usize::try_from(mount.input).ok().and_then(|i| found.get_mut(i))
        else {
            return Err(Error::invalid(format!(
                "invalid input index {} of mount {:?}, {inputs} provided",
                mount.input, mount.dest
            )));
        };
        let selector = gopath::join(["/", mount.selector.as_str()]);
        // What a writable, selected part of an input becomes may depend on the
        // rest of the input, which its content key would not cover.
        let safe = mount.output == attr::NONE || mount.readonly || selector == "/";
        selectors.push(selector);
        *content = match mount.content_cache() {
            Mode::Off => false,
            Mode::On if !safe => {
                return Err(Error::invalid(format!("invalid mount cache content of mount {:?}", mount.dest)));
            }
            Mode::On => true,
            Mode::Default => safe && mount.dest != "/",
        };
    }
    Ok(found
        .into_iter()
        .map(|(selectors, content)| Dependency {
            selector: (!selectors.is_empty()).then(|| Digest::of(selectors.join("\0"))),
            content: content.then(|| exec_content(selectors)),
        })
        .collect())
}

fn exec_content(selectors: Vec<String>) -> Vec<Selector> {
    let paths = without_children(selectors);
    if paths.iter().any(|p| p.is_empty() || p == "/") {
        return Vec::new();
    }
    paths.into_iter().map(|path| Selector { path, follow_links: true, ..Selector::default() }).collect()
}

/// The paths that are not inside another of them, sorted.
fn without_children(paths: Vec<String>) -> Vec<String> {
    if paths.len() <= 1 {
        return paths;
    }
    let all: BTreeSet<String> = paths.into_iter().collect();
    let has_parent = |path: &str| {
        if path != "/" && all.contains("/") && path.starts_with('/') {
            return true;
        }
        path.char_indices().filter(|(_, c)| *c == '/').any(|(at, _)| {
            let (bare, slash) = (&path[..at], &path[..=at]);
            (bare.len() < path.len() && all.contains(bare))
                || (slash.len() < path.len() && all.contains(slash))
        })
    };
    all.iter().filter(|p| !has_parent(p)).cloned().collect()
}

/// The digest of a file operation and how it depends on its inputs.
///
/// # Errors
/// An action that reads an input that is not there.
pub fn file(op: &pb::FileOp, inputs: usize) -> Result<CacheMap, Error> {
    let mut selectors: BTreeMap<i64, Vec<Selector>> = BTreeMap::new();
    // What is written to must be known by key: its content does not say what
    // the parts are that the action leaves alone.
    let mut written: BTreeSet<i64> = BTreeSet::new();
    let mut actions: Vec<Vec<u8>> = Vec::with_capacity(op.actions.len());
    let mut indexes: Vec<[i64; 3]> = Vec::with_capacity(op.actions.len());
    let json_error = |e: serde_json::Error| Error::invalid(format!("write cache key: {e}"));

    for action in &op.actions {
        written.insert(action.input);
        let json = match &action.action {
            Some(Action::Mkdir(a)) => {
                read_owner(a.owner.as_ref(), &mut selectors);
                gojson::to_vec(&Json(a))
            }
            Some(Action::Mkfile(a)) => {
                read_owner(a.owner.as_ref(), &mut selectors);
                gojson::to_vec(&Json(a))
            }
            Some(Action::Symlink(a)) => gojson::to_vec(&Json(a)),
            Some(Action::Rm(a)) => gojson::to_vec(&Json(a)),
            Some(Action::Copy(a)) => {
                read_owner(a.owner.as_ref(), &mut selectors);
                let reads_input = action.secondary_input != attr::NONE
                    && usize::try_from(action.secondary_input).is_ok_and(|i| i < inputs);
                if reads_input {
                    let mut a = a.clone();
                    selectors.entry(action.secondary_input).or_default().push(Selector {
                        path: a.src.clone(),
                        wildcard: a.allow_wildcard && has_wildcards(&a.src),
                        follow_links: a.follow_symlink,
                        include_patterns: a.include_patterns.clone(),
                        exclude_patterns: a.exclude_patterns.clone(),
                        required_paths: a.required_paths.clone(),
                    });
                    a.src = gopath::base(&a.src).to_owned();
                    gojson::to_vec(&Json(&a))
                } else {
                    gojson::to_vec(&Json(a))
                }
            }
            None => return Err(Error::invalid("invalid file op with unknown action")),
        };
        actions.push(json.map_err(json_error)?);
        indexes.push([action.input, action.secondary_input, action.output]);
    }
    if is_default_indexes(&indexes) {
        indexes.clear();
    }

    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Key {
        r#type: &'static str,
        actions: Vec<String>,
        #[serde(rename = "indexes", skip_serializing_if = "Vec::is_empty")]
        indexes: Vec<[i64; 3]>,
    }
    use base64::Engine as _;
    let encode = |a: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(a);
    let digest =
        digest(&Key { r#type: "buildkit.file.v0", actions: actions.iter().map(encode).collect(), indexes })?;

    let mut dependencies = vec![Dependency::default(); inputs];
    for (input, selectors) in selectors {
        let Some(dependency) = usize::try_from(input).ok().and_then(|i| dependencies.get_mut(i)) else {
            return Err(Error::invalid(format!(
                "invalid input index {input} in file op with {inputs} inputs"
            )));
        };
        if written.contains(&input) {
            continue;
        }
        let mut paths: Vec<&str> = selectors.iter().map(|s| s.path.as_str()).collect();
        paths.sort_unstable();
        paths.reverse();
        *dependency = Dependency {
            selector: Some(Digest::of(paths.join("\0"))),
            content: Some(file_content(selectors)),
        };
    }
    Ok(CacheMap { digest, inputs: dependencies })
}

/// Users by name are looked up in files of an input.
fn read_owner(owner: Option<&pb::ChownOpt>, selectors: &mut BTreeMap<i64, Vec<Selector>>) {
    let Some(owner) = owner else { return };
    for (user, path) in [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")] {
        if let Some(pb::UserOpt { user: Some(pb::user_opt::User::ByName(named)) }) = user {
            if named.input < 0 {
                return;
            }
            selectors.entry(named.input).or_default().push(Selector {
                path: path.to_owned(),
                follow_links: true,
                ..Selector::default()
            });
        }
    }
}

fn file_content(selectors: Vec<Selector>) -> Vec<Selector> {
    let (plain, mut special): (Vec<_>, Vec<_>) = selectors.into_iter().partition(Selector::is_plain);
    let mut result = Vec::new();
    for follow_links in [false, true] {
        let paths: Vec<String> =
            plain.iter().filter(|s| s.follow_links == follow_links).map(|s| s.path.clone()).collect();
        result.extend(without_children(paths).into_iter().map(|path| Selector {
            path,
            follow_links,
            ..Selector::default()
        }));
    }
    result.append(&mut special);
    result.sort_by(|a, b| a.path.cmp(&b.path));
    result
}

/// The common shape, a chain of actions from the first input to the one
/// output. Keys were once made without indices; leaving them out here keeps the
/// old keys good. (The chain is counted from the number of actions, where the
/// number of inputs is meant: a slip that is part of the contract.)
fn is_default_indexes(indexes: &[[i64; 3]]) -> bool {
    let last = indexes.len().checked_sub(1);
    last.is_some()
        && indexes.iter().enumerate().all(|(i, &[input, second, output])| {
            let chained = if i == 0 { 0 } else { indexes.len() + i - 1 };
            usize::try_from(input) == Ok(chained)
                && (second == attr::NONE || second == 1)
                && output == if Some(i) == last { 0 } else { attr::NONE }
        })
}

fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => _ = chars.next(),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

macro_rules! simple {
    ($($(#[$doc:meta])* $name:ident($type:ty) $kind:literal $field:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// When the operation has no JSON form, which none has.
        pub fn $name(op: &$type) -> Result<Digest, Error> {
            #[derive(Serialize)]
            struct Key<'a> {
                #[serde(rename = "Type")]
                kind: &'static str,
                #[serde(rename = $field)]
                op: Json<'a, $type>,
            }
            digest(&Key { kind: $kind, op: Json(op) })
        }
    )*};
}

simple! {
    /// The digest of a merge.
    merge_digest(pb::MergeOp) "buildkit.merge.v0" "Merge";
    /// The digest of a diff.
    diff_digest(pb::DiffOp) "buildkit.diff.v0" "Diff";
    /// The digest of a nested build.
    build_digest(pb::BuildOp) "buildkit.build.v0" "Exec";
    /// The digest of a passthrough.
    passthrough_digest(pb::PassthroughOp) "buildkit.passthrough.v0" "Passthrough";
}
