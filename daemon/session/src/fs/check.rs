//! What a sender may say.

use std::collections::HashSet;

use super::Stat;
use crate::Error;

/// The longest path and link target: that of Linux.
const MAX_PATH: usize = 4095;
/// The longest name within a directory: that of Linux.
const MAX_NAME: usize = 255;
/// The most entries of one transfer.
const MAX_ENTRIES: u32 = 16 << 20;

/// Checks entries one after the other.
#[derive(Default)]
pub(super) struct Check {
    /// The directories above the last entry, with the last name seen in each.
    parents: Vec<(String, String)>,
    files: HashSet<String>,
    count: u32,
}

fn refuse(stat: &Stat, why: &str) -> Error {
    let path: String = stat.path.chars().take(200).collect();
    Error::Protocol(format!("{why}: {path:?}"))
}

impl Check {
    /// The id of `stat`, when it may come now.
    pub(super) fn entry(&mut self, stat: &Stat) -> Result<u32, Error> {
        let id = self.count;
        if id >= MAX_ENTRIES {
            return Err(Error::Protocol(format!("more than {MAX_ENTRIES} entries")));
        }
        self.count += 1;
        path(stat)?;
        self.order(stat)?;
        self.links(stat)?;
        Ok(id)
    }

    fn order(&mut self, stat: &Stat) -> Result<(), Error> {
        let (dir, name) = split(&stat.path);
        if self.parents.is_empty() {
            self.parents.push(Default::default());
        }
        // Leave the directories that the walk has left.
        while self.parents.len() > 1 {
            match self.parents.last() {
                Some((last, _)) if last != dir && !is_below(dir, last) => self.parents.pop(),
                _ => break,
            };
        }
        let Some((parent, last)) = self.parents.last_mut() else { return Err(refuse(stat, "no parent")) };
        if parent != dir {
            return Err(refuse(stat, "changes out of order, parent is missing"));
        }
        if last.as_str() >= name {
            let text = format!("changes out of order: {:?} after {last:?} in {dir:?}", stat.path);
            return Err(Error::Protocol(text));
        }
        *last = name.to_owned();
        if stat.is_dir() {
            self.parents.push((stat.path.clone(), String::new()));
        }
        Ok(())
    }

    fn links(&mut self, stat: &Stat) -> Result<(), Error> {
        if stat.linkname.len() > MAX_PATH || stat.linkname.contains('\0') {
            return Err(refuse(stat, "invalid link target of"));
        }
        if stat.is_dir() || stat.is_symlink() {
            return Ok(());
        }
        if stat.linkname.is_empty() {
            self.files.insert(stat.path.clone());
        } else if !self.files.contains(&stat.linkname) {
            let target: String = stat.linkname.chars().take(200).collect();
            return Err(refuse(stat, &format!("link to unknown path {target:?}")));
        }
        Ok(())
    }
}

fn path(stat: &Stat) -> Result<(), Error> {
    let path = stat.path.as_str();
    if path.is_empty() {
        return Err(refuse(stat, "empty path"));
    }
    if path.starts_with('/') {
        return Err(refuse(stat, "absolute path"));
    }
    if path.len() > MAX_PATH || path.contains('\0') {
        return Err(refuse(stat, "path is too long or has a zero byte"));
    }
    for name in path.split('/') {
        match name {
            ".." => return Err(refuse(stat, "path leads out of the tree")),
            "" | "." => return Err(refuse(stat, "unclean path")),
            _ if name.len() > MAX_NAME => return Err(refuse(stat, "name is too long")),
            _ => {}
        }
    }
    Ok(())
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// The directory and the name of a clean path.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::mode;

    fn dir(path: &str) -> Stat {
        Stat { path: path.into(), mode: mode::DIR | 0o755, ..Stat::default() }
    }

    fn file(path: &str) -> Stat {
        Stat { path: path.into(), mode: 0o644, ..Stat::default() }
    }

    fn link(path: &str, to: &str) -> Stat {
        Stat { linkname: to.into(), ..file(path) }
    }

    fn check(stats: &[Stat]) -> Result<(), Error> {
        let mut check = Check::default();
        stats.iter().try_for_each(|s| check.entry(s).map(drop))
    }

    #[test]
    fn takes_a_walk() {
        check(&[
            dir("a"),
            file("a/b"),
            dir("a/c"),
            dir("a/c/d"),
            file("a/c/d/e"),
            file("a/c-d"),
            file("a-b"),
            dir("b"),
            link("b/l", "a/b"),
        ])
        .unwrap();
    }

    #[test]
    fn refuses_what_is_no_walk() {
        let long = "x".repeat(256);
        let bad: &[(&[Stat], &str)] = &[
            (&[file("../x")], "out of the tree"),
            (&[file("..")], "out of the tree"),
            (&[dir("a"), file("a/../../x")], "out of the tree"),
            (&[file("/etc/passwd")], "absolute"),
            (&[file("a//b")], "unclean"),
            (&[file("a/")], "unclean"),
            (&[file("./a")], "unclean"),
            (&[file("")], "empty"),
            (&[file("a/b")], "parent is missing"),
            (&[file("a"), file("a/b")], "parent is missing"),
            (&[file("b"), file("a")], "out of order"),
            (&[file("a"), file("a")], "out of order"),
            (&[dir("a"), file("a-b"), file("a/b")], "out of order"),
            (&[dir("a"), dir("b"), file("a/c")], "out of order"),
            (&[link("a", "b")], "unknown path"),
            (&[link("a", "/etc/shadow")], "unknown path"),
            (&[dir("a"), link("b", "a")], "unknown path"),
            (&[file(&long)], "too long"),
            (&[file("a\0b")], "zero byte"),
        ];
        for (stats, why) in bad {
            let e = check(stats).unwrap_err().to_string();
            assert!(e.contains(why), "{stats:?}: {e}");
        }
    }

    #[test]
    fn a_symlink_is_no_parent() {
        let away = Stat { mode: mode::SYMLINK | 0o777, ..link("a", "/etc") };
        assert!(check(&[away, file("a/passwd")]).is_err());
    }
}
