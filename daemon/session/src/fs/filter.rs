//! Which part of a directory is sent.
//!
//! Patterns are those of `.dockerignore` ([`base::patterns`]). Which files a
//! filter lets pass decides cache keys, so it follows the reference in its
//! oddities, the one of [`follow`] included: of several paths through one link
//! only the first is followed.

use std::collections::BTreeSet;
use std::path::Path;

use base::gopath;
use base::patterns::{self, MatchInfo, Pattern, glob};
use rustix::fs::{AtFlags, FileType};

use super::root::Root;
use crate::Error;

/// Which part of a directory is sent. The default is all of it.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only what matches one of these, with the directories above.
    pub include: Vec<String>,
    /// But not what matches these.
    pub exclude: Vec<String>,
    /// Paths that are included with all that the links in them lead to.
    pub follow: Vec<String>,
}

/// What is to be done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is sent.
    Pass,
    /// It is sent only if something below it is.
    Hold,
    /// Nothing below it can be sent.
    SkipDir,
}

/// A filter at work, for one walk.
pub(super) struct Matcher {
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    parents: Vec<Parent>,
}

struct Parent {
    path: String,
    include: MatchInfo,
    exclude: MatchInfo,
}

struct Patterns {
    matcher: patterns::Matcher,
    /// Those that can make something below a refused directory pass have no
    /// wildcards, so a look at their beginnings tells whether they can.
    plain: bool,
}

fn read(
    what: &'static str,
    list: &[String],
    matters: fn(&Pattern) -> bool,
) -> Result<Option<Patterns>, Error> {
    if list.is_empty() {
        return Ok(None);
    }
    let matcher = patterns::Matcher::new(list).map_err(|e| bad(what, list, &e))?;
    let wild = |p: &&Pattern| without_glob(p).contains(['*', '[', ']', '?', '^', '\\']);
    let plain = !matcher.patterns().iter().filter(|p| matters(p)).any(|p| wild(&p));
    Ok(Some(Patterns { matcher, plain }))
}

fn bad(what: &'static str, list: &[String], error: &patterns::Error) -> Error {
    Error::Pattern { what, patterns: list.iter().take(20).cloned().collect(), reason: error.to_string() }
}

fn without_glob(pattern: &Pattern) -> &str {
    let text = pattern.text();
    let text = text.strip_suffix("/**").unwrap_or(text);
    text.strip_suffix("/*").unwrap_or(text)
}

impl Matcher {
    pub(super) fn new(filter: &Filter, root: &Path) -> Result<Self, Error> {
        let mut include = filter.include.clone();
        if !filter.follow.is_empty()
            && let Some(targets) = follow(root, &filter.follow)?
        {
            include.extend(targets);
            include = dedupe(include).unwrap_or_default();
        }
        Ok(Self {
            include: read("include", &include, |p| !p.is_exclusion())?,
            exclude: read("exclude", &filter.exclude, Pattern::is_exclusion)?,
            parents: Vec::new(),
        })
    }

    /// Judges the next entry of the walk.
    pub(super) fn judge(&mut self, path: &str, is_dir: bool) -> Result<Verdict, Error> {
        if self.include.is_none() && self.exclude.is_none() {
            return Ok(Verdict::Pass);
        }
        let below = |dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        while self.parents.last().is_some_and(|p| !below(&p.path)) {
            self.parents.pop();
        }
        let nothing = (MatchInfo::default(), MatchInfo::default());
        let (above_include, above_exclude) = match self.parents.last() {
            Some(parent) => (&parent.include, &parent.exclude),
            None => (&nothing.0, &nothing.1),
        };
        let mut verdict = Verdict::Pass;
        let (mut include, mut exclude) = nothing.clone();
        if let Some(Patterns { matcher, plain }) = &self.include {
            let (matched, info) = judge("include", matcher, path, above_include)?;
            include = info;
            if !matched {
                if is_dir && *plain && !leads(matcher, path, false) {
                    return Ok(Verdict::SkipDir);
                }
                verdict = Verdict::Hold;
            }
        }
        if let Some(Patterns { matcher, plain }) = &self.exclude {
            let (matched, info) = judge("exclude", matcher, path, above_exclude)?;
            exclude = info;
            if matched {
                if is_dir && *plain && !leads(matcher, path, true) {
                    return Ok(Verdict::SkipDir);
                }
                verdict = Verdict::Hold;
            }
        }
        if is_dir {
            self.parents.push(Parent { path: path.to_owned(), include, exclude });
        }
        Ok(verdict)
    }
}

fn judge(
    what: &'static str,
    matcher: &patterns::Matcher,
    path: &str,
    above: &MatchInfo,
) -> Result<(bool, MatchInfo), Error> {
    matcher.matches_with_parent(path, above).map_err(|e| bad(what, &[], &e))
}

/// Whether some pattern names something below `dir`.
fn leads(matcher: &patterns::Matcher, dir: &str, exclusion: bool) -> bool {
    let inside = format!("{dir}/");
    let mut patterns = matcher.patterns().iter().filter(|p| p.is_exclusion() == exclusion);
    patterns.any(|p| format!("{}/", without_glob(p)).starts_with(&inside))
}

/// All that `paths` and the links in them lead to; `None` when that is the
/// whole directory.
fn follow(root: &Path, paths: &[String]) -> Result<Option<Vec<String>>, Error> {
    let root = Root::open(root).map_err(|e| Error::io("open directory", root.display().to_string(), e))?;
    let mut resolver = Resolver { root, resolved: BTreeSet::new() };
    for path in paths {
        resolver.append(path)?;
    }
    Ok(dedupe(resolver.resolved.into_iter().collect()))
}

struct Resolver {
    root: Root,
    resolved: BTreeSet<String>,
}

impl Resolver {
    fn append(&mut self, path: &str) -> Result<(), Error> {
        // Links can lead to links: those to come, the nearest last.
        let mut todo = vec![path.to_owned()];
        while let Some(path) = todo.pop() {
            let path = gopath::join([".", path.as_str()]);
            let mut current = ".".to_owned();
            let mut rest = path.as_str();
            loop {
                let (part, after) = rest.split_once('/').unwrap_or((rest, ""));
                current = gopath::join([current.as_str(), part]);
                rest = after;
                let targets = self.links(&current, true)?;
                if (rest.is_empty() || !targets.is_empty()) && self.resolved.contains(&current) {
                    break;
                }
                if !targets.is_empty() {
                    self.resolved.insert(current);
                    let next = targets.iter().rev().map(|t| gopath::join([t.as_str(), rest]));
                    todo.extend(next);
                    break;
                }
                if rest.is_empty() {
                    self.resolved.insert(current);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Where the link `path`, or each link that matches it, leads.
    fn links(&self, path: &str, wildcard: bool) -> Result<Vec<String>, Error> {
        let (dir, name) = super::check::split(path);
        if wildcard && has_wildcards(name) {
            let mut out = Vec::new();
            for entry in self.names(dir) {
                if glob(name, &entry).unwrap_or(false) {
                    out.extend(self.links(&super::walk::join(dir, &entry), false)?);
                }
            }
            return Ok(out);
        }
        let Some(link) = self.link(path) else { return Ok(Vec::new()) };
        let link = gopath::clean(&link);
        Ok(vec![if link.starts_with('/') { link } else { gopath::join(["/", dir, link.as_str()]) }])
    }

    fn link(&self, path: &str) -> Option<String> {
        if path == "." || path.starts_with("..") {
            return None;
        }
        let (dir, name) = self.root.parent(path).ok()?;
        let stat = rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return None;
        }
        rustix::fs::readlinkat(&*dir, name, Vec::new()).ok()?.into_string().ok()
    }

    /// The names in `dir`, in order.
    fn names(&self, dir: &str) -> BTreeSet<String> {
        let Ok(fd) = self.root.dir(dir) else { return BTreeSet::new() };
        let Ok(entries) = rustix::fs::Dir::read_from(&*fd) else { return BTreeSet::new() };
        let names = entries.flatten().filter_map(|e| e.file_name().to_str().ok().map(str::to_owned));
        names.filter(|n| n != "." && n != "..").collect()
    }
}

fn has_wildcards(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Without what is below the one before; `None` when the root is among them.
fn dedupe(paths: Vec<String>) -> Option<Vec<String>> {
    let mut out: Vec<String> = Vec::with_capacity(paths.len());
    for path in paths {
        if path == "." {
            return None;
        }
        let last = out.last().map_or("", String::as_str);
        if path.strip_prefix(last).is_some_and(|rest| rest.starts_with('/')) {
            continue;
        }
        out.push(path);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Dir, Tree};

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    fn walk(include: &[&str], exclude: &[&str], follow: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["a/b", "a/c", "d/e/f", "g"] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        for file in ["a/b/1", "a/c/2", "a/3", "d/e/f/4", "d/5", "g/6", "7"] {
            std::fs::write(dir.path().join(file), file).unwrap();
        }
        std::os::unix::fs::symlink("../d/e", dir.path().join("g/link")).unwrap();
        std::os::unix::fs::symlink("/a", dir.path().join("g/root")).unwrap();
        let filter = Filter { include: list(include), exclude: list(exclude), follow: list(follow) };
        let tree = Dir::open(dir.path()).unwrap().filtered(filter);
        let mut paths = Vec::new();
        tree.walk(&mut |stat| {
            paths.push(stat.path);
            Ok(())
        })
        .unwrap();
        paths
    }

    #[test]
    fn all_of_it() {
        let all = [
            "7", "a", "a/3", "a/b", "a/b/1", "a/c", "a/c/2", "d", "d/5", "d/e", "d/e/f", "d/e/f/4", "g",
            "g/6", "g/link", "g/root",
        ];
        assert_eq!(walk(&[], &[], &[]), all);
    }

    #[test]
    fn parts_of_it() {
        assert_eq!(walk(&["a/b"], &[], &[]), ["a", "a/b", "a/b/1"]);
        assert_eq!(walk(&["**/4"], &[], &[]), ["d", "d/e", "d/e/f", "d/e/f/4"]);
        assert_eq!(walk(&["a", "d"], &["**/e", "a/c"], &[]), ["a", "a/3", "a/b", "a/b/1", "d", "d/5"]);
        assert_eq!(walk(&[], &["*", "!a/c"], &[]), ["a", "a/c", "a/c/2"]);
        assert_eq!(walk(&["nothing"], &[], &[]), Vec::<String>::new());
        assert_eq!(walk(&["a/3", "g/6"], &["a"], &[]), ["g", "g/6"]);
    }

    #[test]
    fn links_are_followed() {
        let link = ["d", "d/e", "d/e/f", "d/e/f/4", "g", "g/link"];
        assert_eq!(walk(&[], &[], &["g/link/f"]), link);
        assert_eq!(walk(&[], &[], &["g/root/3"]), ["a", "a/3", "g", "g/root"]);
        assert_eq!(walk(&[], &[], &["g/*"]), walk(&["a", "d/e", "g/*"], &[], &[]));
        assert_eq!(walk(&[], &[], &["/"]).len(), 16);
        assert_eq!(walk(&[], &[], &["../../etc/passwd"]), Vec::<String>::new());
    }

    #[test]
    fn bad_patterns_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let filter = Filter { include: list(&["[a"]), ..Filter::default() };
        let tree = Dir::open(dir.path()).unwrap().filtered(filter);
        let e = tree.walk(&mut |_| Ok(())).unwrap_err();
        assert!(e.to_string().contains("[a"), "{e}");
    }
}
