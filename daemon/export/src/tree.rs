//! Trees that are put together before they are sent.

use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::sync::Arc;

use refs::MountGuard;
use session::Error;
use session::fs::{Read, Stat, Tree, compare_paths};

/// A tree whose mount stays while it is used.
pub(crate) struct Mounted<T> {
    pub(crate) tree: T,
    pub(crate) _mount: MountGuard,
}

impl<T: Tree> Tree for Mounted<T> {
    fn walk(&self, visit: &mut dyn FnMut(Stat) -> Result<(), Error>) -> Result<(), Error> {
        self.tree.walk(visit)
    }

    fn open(&self, path: &str) -> io::Result<Read> {
        self.tree.open(path)
    }
}

/// Files that are only in memory, all in one directory. Without any it is an
/// empty tree.
#[derive(Default)]
pub(crate) struct Files(pub(crate) BTreeMap<String, (Stat, Arc<[u8]>)>);

impl Tree for Files {
    fn walk(&self, visit: &mut dyn FnMut(Stat) -> Result<(), Error>) -> Result<(), Error> {
        let mut stats: Vec<_> = self.0.values().map(|(stat, _)| stat.clone()).collect();
        stats.sort_by(|a, b| compare_paths(&a.path, &b.path));
        stats.into_iter().try_for_each(visit)
    }

    fn open(&self, path: &str) -> io::Result<Read> {
        let (_, bytes) = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(bytes.clone())))
    }
}

/// Several trees laid over each other; of what is in more than one the last
/// counts.
pub(crate) struct Merged(pub(crate) Vec<Arc<dyn Tree>>);

impl Merged {
    /// One tree of several, or that one tree.
    pub(crate) fn of(mut trees: Vec<Arc<dyn Tree>>) -> Arc<dyn Tree> {
        match trees.len() {
            1 => trees.remove(0),
            _ => Arc::new(Self(trees)),
        }
    }
}

impl Tree for Merged {
    fn walk(&self, visit: &mut dyn FnMut(Stat) -> Result<(), Error>) -> Result<(), Error> {
        let mut all = Vec::new();
        for tree in self.0.iter().rev() {
            tree.walk(&mut |stat| {
                all.push(stat);
                Ok(())
            })?;
        }
        // The sort is stable: of equals the one of the last tree comes first.
        all.sort_by(|a: &Stat, b| compare_paths(&a.path, &b.path));
        all.dedup_by(|later, first| later.path == first.path);
        all.into_iter().try_for_each(visit)
    }

    fn open(&self, path: &str) -> io::Result<Read> {
        let mut missing = io::Error::from(io::ErrorKind::NotFound);
        for tree in self.0.iter().rev() {
            match tree.open(path) {
                Ok(file) => return Ok(file),
                Err(e) => missing = e,
            }
        }
        Err(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn files(names: &[(&str, &str)]) -> Arc<dyn Tree> {
        let one = |(name, data): &(&str, &str)| {
            let stat = Stat { path: (*name).into(), size: data.len() as i64, ..Stat::default() };
            ((*name).to_owned(), (stat, Arc::from(data.as_bytes())))
        };
        Arc::new(Files(names.iter().map(one).collect()))
    }

    #[test]
    fn the_last_of_merged_trees_counts() {
        let merged = Merged::of(vec![files(&[("a", "1"), ("b", "1")]), files(&[("b", "22"), ("c", "2")])]);
        let mut seen = Vec::new();
        merged
            .walk(&mut |stat| {
                seen.push((stat.path, stat.size));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [("a".into(), 1), ("b".into(), 2), ("c".into(), 1)]);
        let mut text = String::new();
        merged.open("b").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "22");
        assert!(merged.open("x").is_err());
    }
}
