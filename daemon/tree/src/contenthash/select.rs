//! Which records a wildcard and patterns choose.

use std::collections::BTreeSet;
use std::ops::Bound;

use base::patterns::{MatchInfo, Matcher, glob};
use sys::path::Root;

use super::records::{Kind, join, to_key, to_path};
use super::{Error, Opts, State};

/// A record that was chosen.
pub(super) struct Chosen {
    /// Its key in the tree.
    pub(super) key: Vec<u8>,
    /// Its path as the question put it: symlinks before the first wildcard are
    /// not resolved in it.
    pub(super) path: Vec<u8>,
    /// A symlink here is to be followed.
    pub(super) follow: bool,
}

/// A directory header above the record at hand.
struct Above {
    chosen: Chosen,
    taken: bool,
    include: MatchInfo,
    exclude: MatchInfo,
}

impl State {
    /// The part of the path before its first wildcard, and what was chosen, each
    /// with its digest known.
    pub(super) fn select(
        &mut self,
        root: Option<&Root>,
        asked: &str,
        opts: &Opts,
    ) -> Result<(Vec<u8>, Vec<Chosen>), Error> {
        if self.records.needs_scan(b"", false)? {
            self.scan(root, b"", false)?;
        }
        let include = compile("includepatterns", &opts.include)?;
        let exclude = compile("excludepatterns", &opts.exclude)?;
        let without_own_header = asked.ends_with('/');
        let path = join(&[], asked.as_bytes());
        let pattern = String::from_utf8_lossy(&path).into_owned();

        let (prefix, start) = self.start(&path, opts.wildcard)?;
        let mut out: Vec<Chosen> = Vec::new();
        let mut above: Vec<Above> = Vec::new();
        let mut wanted = BTreeSet::new();
        let mut matched_dir: Option<Vec<u8>> = None;
        let resolved = start.as_deref().map(to_path).unwrap_or_default();
        let mut from = match &start {
            Some(key) => Bound::Included(key.clone()),
            None => return Ok((prefix, out)).and_then(|found| required(found, opts)),
        };
        let mut first = true;
        let unknown = MatchInfo::default();
        while let Some((key, record)) = self.records.next(from.as_ref().map(|k| &k[..])) {
            let key = key.clone();
            from = if first && !prefix.is_empty() {
                // What stands between a path and what is below it, such as
                // `dir-2` after `dir`, is no part of it.
                Bound::Included([&key[..], &[0]].concat())
            } else {
                Bound::Excluded(key.clone())
            };
            first = false;
            let mut name = to_path(&key);
            if let Some(rest) = name.strip_prefix(&resolved[..]) {
                name = [&prefix[..], rest].concat();
            }
            while above.last().is_some_and(|dir| !is_below(&name, &dir.chosen.path)) {
                above.pop();
            }
            let header = key.ends_with(&[0]);
            if header {
                name.pop();
                if name == path && without_own_header {
                    continue;
                }
            }
            let base: &[u8] = if opts.wildcard {
                let inside = matched_dir.as_ref().is_some_and(|dir| is_below(&name, dir));
                if !path.is_empty() && !inside {
                    if !glob(&pattern, &String::from_utf8_lossy(&name))? {
                        continue;
                    }
                    matched_dir = Some(name.clone());
                }
                matched_dir.as_deref().unwrap_or_default()
            } else {
                if name != path && !is_below(&name, &path) {
                    break;
                }
                &path
            };
            let relative = name.strip_prefix(base).unwrap_or(&name);
            let relative = relative.strip_prefix(b"/").unwrap_or(relative);
            let relative = String::from_utf8_lossy(relative).into_owned();
            let parent = above.last();
            let mut item = Above {
                chosen: Chosen {
                    key: key.clone(),
                    path: name,
                    follow: parent.is_none() && opts.follow_links,
                },
                taken: false,
                include: MatchInfo::default(),
                exclude: MatchInfo::default(),
            };
            let mut take = true;
            if let Some(patterns) = &include {
                let inherited = parent.map_or(&unknown, |dir| &dir.include);
                (take, item.include) = patterns
                    .matches_with_parent(&relative, inherited)
                    .map_err(|source| Error::Match { what: "includepatterns", source })?;
            }
            if let Some(patterns) = exclude.as_ref().filter(|_| take) {
                let inherited = parent.map_or(&unknown, |dir| &dir.exclude);
                let excluded;
                (excluded, item.exclude) = patterns
                    .matches_with_parent(&relative, inherited)
                    .map_err(|source| Error::Match { what: "excludepatterns", source })?;
                take = !excluded;
            }
            // Whole directories never count: some of what is in them may be excluded.
            if take && record.kind != Kind::Dir {
                for dir in above.iter_mut().filter(|dir| !dir.taken) {
                    dir.taken = true;
                    wanted.insert(dir.chosen.key.clone());
                    out.push(dir.chosen.copy());
                }
                item.taken = true;
                wanted.insert(key);
                out.push(item.chosen.copy());
            }
            if header {
                above.push(item);
            }
        }
        wanted.retain(|key| self.records.tree.get(key).is_some_and(|r| r.digest.is_none()));
        let found = required((prefix, out), opts)?;
        self.fill(root, &wanted)?;
        Ok(found)
    }

    /// The part of a path before its wildcards and the key it leads to; none when
    /// there is nothing.
    fn start(&self, path: &[u8], wildcard: bool) -> Result<(Vec<u8>, Option<Vec<u8>>), Error> {
        let (prefix, follow) = if wildcard {
            let fixed = fixed_part(path);
            let rest = fixed.len() < path.len();
            (fixed, rest)
        } else {
            (path, false)
        };
        if prefix.is_empty() {
            return Ok((Vec::new(), self.records.tree.contains_key(&[][..]).then(Vec::new)));
        }
        let (key, record) = self.records.find(&to_key(prefix), follow)?;
        Ok((prefix.to_vec(), record.is_some().then_some(key)))
    }
}

impl Chosen {
    fn copy(&self) -> Self {
        Self { key: self.key.clone(), path: self.path.clone(), follow: self.follow }
    }
}

type Found = (Vec<u8>, Vec<Chosen>);

fn required(found: Found, opts: &Opts) -> Result<Found, Error> {
    for required in &opts.required {
        if !found.1.iter().any(|item| item.path.starts_with(required.as_bytes())) {
            return Err(Error::NotFound { path: base::gotext::quote(required) });
        }
    }
    Ok(found)
}

fn compile(what: &'static str, patterns: &[String]) -> Result<Option<Matcher>, Error> {
    if patterns.is_empty() {
        return Ok(None);
    }
    Matcher::new(patterns).map(Some).map_err(|source| Error::Pattern {
        what,
        patterns: patterns.to_vec(),
        source,
    })
}

/// The leading names without wildcards.
fn fixed_part(path: &[u8]) -> &[u8] {
    let mut end = 0;
    for name in path.split_inclusive(|b| *b == b'/') {
        if has_wildcard(name) {
            return path[..end].strip_suffix(b"/").unwrap_or(&path[..end]);
        }
        end += name.len();
    }
    path
}

/// Whether a name holds a wildcard that is not escaped.
pub(crate) fn has_wildcard(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(b) = bytes.next() {
        match b {
            b'*' | b'?' | b'[' => return true,
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
    false
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}
