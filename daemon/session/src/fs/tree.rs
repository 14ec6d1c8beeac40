//! What can be sent.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::filter::{Filter, Matcher, Verdict};
use super::receive::MapEntry;
use super::root::Root;
use super::walk::Walk;
use super::{Stat, mode};
use crate::Error;

/// The bytes of a file.
pub type Read = Box<dyn io::Read + Send>;

/// Something that has entries and can be walked. Called on threads where
/// blocking is fine, from several at once.
pub trait Tree: Send + Sync {
    /// Shows every entry but the root, in the order of a walk.
    ///
    /// # Errors
    /// That of `visit`, at once, or what keeps the tree from being walked.
    fn walk(&self, visit: &mut dyn FnMut(Stat) -> Result<(), Error>) -> Result<(), Error>;

    /// Opens the file of an entry that was shown.
    ///
    /// # Errors
    /// When there is none.
    fn open(&self, path: &str) -> io::Result<Read>;
}

/// A directory on disk, as it is or a part of it.
pub struct Dir {
    path: PathBuf,
    root: Arc<Root>,
    filter: Filter,
    map: Option<MapEntry>,
}

impl Dir {
    /// The directory `path`. Links in `path` are followed.
    ///
    /// # Errors
    /// When it is none.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let root =
            Root::open(path).map_err(|e| Error::io("open directory", path.display().to_string(), e))?;
        Ok(Self { path: path.to_owned(), root: Arc::new(root), filter: Filter::default(), map: None })
    }

    /// Only what `filter` lets pass.
    #[must_use]
    pub fn filtered(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Each entry as `map` changes it; left out when `map` says so.
    #[must_use]
    pub fn mapped(mut self, map: MapEntry) -> Self {
        self.map = Some(map);
        self
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same directory with another filter.
    pub(crate) fn with_filter(&self, filter: Filter) -> Self {
        Self { path: self.path.clone(), root: self.root.clone(), filter, map: self.map.clone() }
    }

    fn show(&self, mut stat: Stat, visit: &mut dyn FnMut(Stat) -> Result<(), Error>) -> Result<(), Error> {
        if let Some(map) = &self.map {
            let path = stat.path.clone();
            if !map(&path, &mut stat) {
                return Ok(());
            }
        }
        visit(stat)
    }
}

impl Tree for Dir {
    fn walk(&self, visit: &mut dyn FnMut(Stat) -> Result<(), Error>) -> Result<(), Error> {
        let mut walk = Walk::new(self.root.clone(), true);
        let mut matcher = Matcher::new(&self.filter, &self.path)?;
        // Directories that pass only if something in them does.
        let mut held = Vec::new();
        while let Some(entry) = walk.next()? {
            let verdict = matcher.judge(&entry.path, entry.is_dir())?;
            if verdict == Verdict::SkipDir {
                walk.skip();
                continue;
            }
            while held.last().is_some_and(|dir: &super::walk::Entry| !is_below(&entry.path, &dir.path)) {
                held.pop();
            }
            if verdict == Verdict::Hold {
                if entry.is_dir() {
                    held.push(entry);
                }
                continue;
            }
            let Some(stat) = walk.stat(&entry)? else {
                walk.skip();
                continue;
            };
            for dir in held.drain(..) {
                if let Some(stat) = walk.stat(&dir)? {
                    self.show(stat, visit)?;
                }
            }
            self.show(stat, visit)?;
        }
        Ok(())
    }

    fn open(&self, path: &str) -> io::Result<Read> {
        // Should the file have become a pipe, opening it must not wait.
        Ok(Box::new(self.root.open_file(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?))
    }
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// Several trees, each in a directory of its own.
pub struct Roots(Vec<(Stat, Arc<dyn Tree>)>);

impl Roots {
    /// Trees by the directory they are in. Only the name, the permissions, the
    /// owner and the time of its [`Stat`] matter.
    ///
    /// # Errors
    /// When a name is used twice, or is no name.
    pub fn new(mut roots: Vec<(Stat, Arc<dyn Tree>)>) -> Result<Self, Error> {
        roots.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        let twice = roots.windows(2).any(|w| matches!(w, [a, b] if a.0.path == b.0.path));
        let bad = |name: &str| name.is_empty() || name == "." || name == ".." || name.contains('/');
        if twice || roots.iter().any(|(s, _)| bad(&s.path)) {
            return Err(Error::Protocol("roots need names that differ".into()));
        }
        for (stat, _) in &mut roots {
            stat.mode |= mode::DIR;
        }
        Ok(Self(roots))
    }
}

impl Tree for Roots {
    fn walk(&self, visit: &mut dyn FnMut(Stat) -> Result<(), Error>) -> Result<(), Error> {
        for (root, tree) in &self.0 {
            visit(root.clone())?;
            tree.walk(&mut |mut stat| {
                stat.path = format!("{}/{}", root.path, stat.path);
                if stat.is_symlink() {
                    if stat.linkname.starts_with('/') {
                        stat.linkname = format!("/{}{}", root.path, stat.linkname);
                    }
                } else if !stat.linkname.is_empty() {
                    stat.linkname = format!("{}/{}", root.path, stat.linkname);
                }
                visit(stat)
            })?;
        }
        Ok(())
    }

    fn open(&self, path: &str) -> io::Result<Read> {
        let (name, rest) = path.split_once('/').unwrap_or((path, ""));
        match self.0.iter().find(|(stat, _)| stat.path == name) {
            Some((_, tree)) => tree.open(rest),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
