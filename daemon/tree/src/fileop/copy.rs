//! Copying a path of one tree into another, with `cp -a` semantics.
//!
//! The walk goes from directory to directory by descriptor and keeps its own
//! stack, so neither a race nor a deep tree hurts. A directory that matches no
//! include pattern itself is made once something in it is copied.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use base::Timestamp;
use base::patterns::{MatchInfo, Matcher};
use base::task::Scope;
use sys::path::{Dir, Entry, FileType, Make, Owner, Root, Stat};

use super::{Copy, Error, ModeSet, clean, data, kind_of, lexical, unpack, wildcard};

/// How deep directories may nest. More than a path has room for.
const MAX_DEPTH: usize = 2048;

const DIRECTORY_MODE: u32 = 0o755;

/// Copies a path of `src` to a path of `dest`. Everything copied goes to
/// `owner`; without one it keeps its own and directories made on the way are
/// root's.
///
/// Hard links within what one path or match brings along stay links, extended
/// attributes and holes are kept. Attributes the file system of `dest` refuses
/// are dropped.
///
/// # Errors
/// When there is nothing to copy, something is in the way, a pattern is
/// malformed, the kernel refuses, or `scope` is cancelled.
pub fn copy(
    scope: &Scope,
    src: &Root,
    dest: &Root,
    action: &Copy,
    owner: Option<Owner>,
) -> Result<(), Error> {
    if !action.create_dest_path {
        let path = dest.resolve(lexical(Path::new(&action.dest)), true)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        dest.lstat(parent).map_err(Error::during(format!("failed to stat {}", action.dest)))?;
    }
    let from = clean(&action.src);
    let sources = if action.allow_wildcard {
        let found = wildcard::expand(src, &from, action.follow_symlink)?;
        if found.is_empty() && !action.allow_empty_wildcard {
            return Err(Error::NoMatch { path: from });
        }
        found
    } else {
        vec![PathBuf::from(from)]
    };
    let copier = Copier::new(scope, src, dest, action, owner)?;
    for source in sources {
        scope.check().map_err(Error::Canceled)?;
        if action.attempt_unpack && unpack::unpack(scope, src, &source, dest, action, owner)? {
            continue;
        }
        copier.copy(&source)?;
    }
    Ok(())
}

struct Copier<'a> {
    scope: &'a Scope,
    src: &'a Root,
    dest: &'a Root,
    action: &'a Copy,
    owner: Option<Owner>,
    mode_set: Option<ModeSet>,
    include: Option<Matcher>,
    exclude: Option<Matcher>,
}

/// A directory that is being copied.
struct Level {
    src: Dir,
    /// Its copy, once there is one.
    dest: Option<Dir>,
    /// The name of its copy.
    name: OsString,
    stat: Stat,
    entries: std::vec::IntoIter<Entry>,
    /// Its path below the path that is copied; none above that.
    below: Option<PathBuf>,
    include: MatchInfo,
    exclude: MatchInfo,
    /// What is left to do when all in it is copied.
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Nothing,
    Times,
    Everything,
}

/// Copies of files with several names, by device and inode.
type Links = HashMap<(u64, u64), PathBuf>;

impl<'a> Copier<'a> {
    fn new(
        scope: &'a Scope,
        src: &'a Root,
        dest: &'a Root,
        action: &'a Copy,
        owner: Option<Owner>,
    ) -> Result<Self, Error> {
        let compile = |what, patterns: &[String]| match patterns {
            [] => Ok(None),
            _ => Matcher::new(patterns).map(Some).map_err(|source| Error::Pattern {
                what,
                patterns: patterns.to_vec(),
                source,
            }),
        };
        Ok(Self {
            scope,
            src,
            dest,
            action,
            owner,
            mode_set: match action.mode_str.as_str() {
                "" => None,
                text => Some(ModeSet::parse(text)?),
            },
            include: compile("includepatterns", &action.include_patterns)?,
            exclude: compile("excludepatterns", &action.exclude_patterns)?,
        })
    }

    fn copy(&self, source: &Path) -> Result<(), Error> {
        let asked = clean(&self.action.dest);
        let holder = match asked.rsplit_once('/') {
            Some((holder, name)) if !name.is_empty() && name != "." => format!("{holder}/"),
            _ => asked.clone(),
        };
        let mut made = self.dest.mkdir_all(&holder, &self.make())?;
        let target = self.target(source, &asked, &mut made);
        let result = target.and_then(|(from, to)| self.walk(&from, &to));
        if let Some(time) = self.action.timestamp {
            for path in made.iter().rev() {
                let (dir, name) = self.dest.open_parent(path)?;
                dir.utimens(name, time, time)?;
            }
        }
        result
    }

    fn make(&self) -> Make {
        // A symbolic mode says nothing about directories on the way.
        let mode = match &self.mode_set {
            None => self.action.mode.unwrap_or(DIRECTORY_MODE) & 0o777,
            Some(_) => DIRECTORY_MODE,
        };
        Make { mode, owner: self.owner, time: self.action.timestamp }
    }

    /// What exactly is copied, and to where.
    fn target(
        &self,
        source: &Path,
        asked: &str,
        made: &mut Vec<PathBuf>,
    ) -> Result<(PathBuf, PathBuf), Error> {
        let from = self.src.resolve(lexical(source), self.action.follow_symlink)?;
        let mut to = self.dest.resolve(lexical(Path::new(asked)), true)?;
        let is_dir = kind_of(&self.src.lstat(&from)?) == FileType::Directory;
        let there = match self.dest.stat(&to) {
            Ok(stat) => Some(kind_of(&stat) == FileType::Directory),
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::during("failed to lstat destination path")(e)),
        };
        let contents = self.action.dir_copy_contents && is_dir;
        let into = match there {
            Some(dest_is_dir) => !contents && (is_dir || dest_is_dir),
            None => false,
        };
        if into && let Some(name) = base_name(source) {
            to.push(name);
        }
        let holder = match (contents, there) {
            (true, None) => &to,
            _ => to.parent().unwrap_or(&to),
        };
        made.extend(self.dest.mkdir_all(holder, &self.make())?);
        Ok((from, to))
    }

    fn walk(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let (src, src_name) = self.src.open_parent(from)?;
        let (dest, name) = self.dest.open_parent(to)?;
        let stat = src.lstat(".")?;
        let top = Entry { name: src_name, kind: FileType::Unknown };
        let mut links = Links::new();
        let mut stack = vec![Level {
            src,
            dest: Some(dest),
            name,
            stat,
            entries: vec![top].into_iter(),
            below: None,
            include: MatchInfo::default(),
            exclude: MatchInfo::default(),
            end: End::Nothing,
        }];
        while let Some(level) = stack.last_mut() {
            match level.entries.next() {
                Some(entry) => self.visit(&mut stack, &mut links, &entry.name)?,
                None => {
                    if let Some(level) = stack.pop() {
                        self.leave(&level, stack.last())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Copies one name of the directory on top of the stack.
    fn visit(&self, stack: &mut Vec<Level>, links: &mut Links, entry: &OsString) -> Result<(), Error> {
        self.scope.check().map_err(Error::Canceled)?;
        // What is asked for is always copied and may have another name there;
        // the metadata of what is at its place already stays.
        let depth = stack.len();
        let first = depth == 1;
        let Some(level) = stack.last() else { return Ok(()) };
        let name = if first { level.name.clone() } else { entry.clone() };
        let source = Path::new(entry);
        let below = level.below.as_ref().map_or_else(PathBuf::new, |path| path.join(entry));

        let (mut include, mut excluded) = (true, false);
        let (mut include_info, mut exclude_info) = (MatchInfo::default(), MatchInfo::default());
        if !first {
            let text = below.to_string_lossy();
            if let Some(patterns) = &self.include {
                (include, include_info) = patterns
                    .matches_with_parent(&text, &level.include)
                    .map_err(|source| Error::Match { what: "includepatterns", source })?;
            }
            if let Some(patterns) = &self.exclude {
                (excluded, exclude_info) = patterns
                    .matches_with_parent(&text, &level.exclude)
                    .map_err(|source| Error::Match { what: "excludepatterns", source })?;
            }
            include &= !excluded;
        }
        let never = excluded && !self.exclude.as_ref().is_some_and(Matcher::has_exclusions);
        if never {
            return Ok(());
        }
        let stat = level
            .src
            .lstat(source)
            .map_err(Error::during(format!("failed to stat {}", level.src.path_of(source).display())))?;
        let kind = kind_of(&stat);
        if kind != FileType::Directory {
            if include {
                self.parents(stack, !first)?;
                self.file(stack, links, source, &name, &stat)?;
            }
            return Ok(());
        }
        if depth > MAX_DEPTH {
            let error = io::Error::from_raw_os_error(rustix::io::Errno::NAMETOOLONG.raw_os_error());
            return Err(sys::Error::new("open", level.src.path_of(source), error).into());
        }
        let mut end = End::Nothing;
        let mut dest = None;
        if include {
            self.parents(stack, !first)?;
            let Some(parent) = stack.last().and_then(|level| level.dest.as_ref()) else { return Ok(()) };
            self.make_way(parent, &name, kind)?;
            let created = directory(parent, &name, &stat, !first)?;
            end = if created || !first { End::Everything } else { End::Times };
            dest = Some(parent.open_dir(&name)?);
        }
        let Some(level) = stack.last() else { return Ok(()) };
        let src = level.src.open_dir(source)?;
        let entries = src.list()?.into_iter();
        let (include, exclude) = (include_info, exclude_info);
        stack.push(Level { src, dest, name, stat, entries, below: Some(below), include, exclude, end });
        Ok(())
    }

    /// Makes the directories of the stack that have not been made yet.
    fn parents(&self, stack: &mut [Level], overwrite: bool) -> Result<(), Error> {
        for at in 1..stack.len() {
            let (above, rest) = stack.split_at_mut(at);
            let (Some(above), Some(level)) = (above.last(), rest.first_mut()) else { break };
            let (None, Some(parent)) = (&level.dest, &above.dest) else { continue };
            if directory(parent, &level.name, &level.stat, overwrite)? {
                self.attributes(&level.src, Path::new("."), &level.stat, parent, Path::new(&level.name))?;
                // They will change with what is put in.
                level.end = End::Times;
            }
            level.dest = Some(parent.open_dir(&level.name)?);
        }
        Ok(())
    }

    fn leave(&self, level: &Level, above: Option<&Level>) -> Result<(), Error> {
        let Some(parent) = above.and_then(|level| level.dest.as_ref()) else { return Ok(()) };
        match level.end {
            End::Nothing => Ok(()),
            End::Times => self.times(&level.stat, parent, Path::new(&level.name)),
            End::Everything => {
                self.attributes(&level.src, Path::new("."), &level.stat, parent, Path::new(&level.name))
            }
        }
    }

    /// Removes what is of another kind, where that is asked for.
    fn make_way(&self, dest: &Dir, name: &OsString, kind: FileType) -> Result<(), Error> {
        if self.action.always_replace_existing_dest_paths
            && let Some(there) = dest.lstat_opt(name)?
            && !(kind == FileType::Directory && kind_of(&there) == FileType::Directory)
        {
            dest.remove_all(name)?;
        }
        Ok(())
    }

    fn file(
        &self,
        stack: &[Level],
        links: &mut Links,
        source: &Path,
        name: &OsString,
        stat: &Stat,
    ) -> Result<(), Error> {
        let Some((src, dest)) = stack.last().and_then(|level| Some((&level.src, level.dest.as_ref()?)))
        else {
            return Ok(());
        };
        let kind = kind_of(stat);
        self.make_way(dest, name, kind)?;
        match dest.lstat_opt(name)? {
            Some(there) if kind_of(&there) == FileType::Directory => {
                return Err(Error::IsADirectory { path: dest.path_of(name) });
            }
            Some(_) => dest.unlink(name)?,
            None => {}
        }
        match kind {
            FileType::RegularFile => {
                let inode = (stat.st_dev, stat.st_ino);
                match links.get(&inode).filter(|_| stat.st_nlink > 1) {
                    Some(path) => {
                        let (from, from_name) = self.dest.open_parent(path)?;
                        dest.link(&from, from_name, name)
                            .map_err(Error::during("failed to create hard link"))?;
                    }
                    None => {
                        contents(src, source, dest, name).map_err(Error::during("failed to copy files"))?;
                        if stat.st_nlink > 1 {
                            links.insert(inode, dest.path_of(name));
                        }
                    }
                }
            }
            FileType::Symlink => {
                let what = |verb: &str, path: PathBuf| format!("failed to {verb}: {}", path.display());
                let target =
                    src.readlink(source).map_err(Error::during(what("read link", src.path_of(source))))?;
                dest.symlink(target, name)
                    .map_err(Error::during(what("create symlink", dest.path_of(name))))?;
            }
            // Of a socket only the name is left, as an empty file.
            _ => {
                dest.mknod(name, kind, stat.st_mode, stat.st_rdev)
                    .map_err(Error::during("failed to create device"))?;
            }
        }
        self.attributes(src, source, stat, dest, Path::new(name))
    }

    /// Owner, mode, times and extended attributes of a copy.
    fn attributes(
        &self,
        src: &Dir,
        source: &Path,
        stat: &Stat,
        dest: &Dir,
        name: &Path,
    ) -> Result<(), Error> {
        let info = || "failed to copy file info";
        let owner = self.owner.unwrap_or(Owner { uid: stat.st_uid, gid: stat.st_gid });
        dest.chown(name, owner).map_err(Error::during(info()))?;
        if kind_of(stat) != FileType::Symlink {
            let mode = match (&self.mode_set, self.action.mode) {
                (Some(set), _) => set.apply(stat.st_mode),
                (None, Some(mode)) => mode,
                (None, None) => stat.st_mode,
            };
            dest.chmod(name, mode & 0o7777).map_err(Error::during(info()))?;
        }
        // Not every file system takes every attribute; the first refusal ends it.
        if let Ok(xattrs) = src.xattrs(source) {
            for (key, value) in xattrs {
                if dest.set_xattr(name, &key, &value).is_err() {
                    break;
                }
            }
        }
        self.times(stat, dest, name)
    }

    fn times(&self, stat: &Stat, dest: &Dir, name: &Path) -> Result<(), Error> {
        let own = |secs: i64, nanos: i64| {
            Timestamp::from_nanos(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
        };
        let (access, change) = match self.action.timestamp {
            Some(time) => (time, time),
            None => (
                own(stat.st_atime, i64::try_from(stat.st_atime_nsec).unwrap_or(0)),
                own(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            ),
        };
        Ok(dest.utimens(name, access, change)?)
    }
}

/// Makes a directory, or takes over one that is there. `true` when it was made.
fn directory(parent: &Dir, name: &OsString, stat: &Stat, overwrite: bool) -> Result<bool, Error> {
    match parent.lstat_opt(name)? {
        None => {
            let what = format!("failed to mkdir {}", parent.path_of(name).display());
            parent.mkdir(name, stat.st_mode).map_err(Error::during(what))
        }
        Some(there) if kind_of(&there) != FileType::Directory => {
            Err(Error::NotADirectory { path: parent.path_of(name) })
        }
        Some(_) => {
            if overwrite {
                let what = format!("failed to chmod on {}", parent.path_of(name).display());
                parent.chmod(name, stat.st_mode).map_err(Error::during(what))?;
            }
            Ok(false)
        }
    }
}

fn contents(src: &Dir, source: &Path, dest: &Dir, name: &OsString) -> sys::Result<()> {
    let from = src.open_read(source)?;
    let to = dest.create(name, 0o600)?;
    data::copy(&from, &to).map_err(|e| sys::Error::new("write", dest.path_of(name), e))
}

/// The name a copy gets in a directory: the last one of the path as it was
/// given. None for `/` and a path that ends in `/.`.
fn base_name(path: &Path) -> Option<&std::ffi::OsStr> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    if bytes.ends_with(b"/.") {
        return None;
    }
    path.file_name()
}
