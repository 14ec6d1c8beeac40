//! Out of a mirror: working trees and bundles.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use base::{Compatibility, Failure, Timestamp};
use refs::{Mutable, NewRef, RecordType, Ref};
use rustix::fs::FileType;
use sys::path::{Dir, Root};

use super::cli::Git;
use super::found::Found;
use super::is_commit;
use super::remote::{Mirror, file_url, init, scratch};
use super::wanted::Wanted;
use crate::source::redacted;
use crate::{Error, Worker};

/// What a bundle is called in its result.
const BUNDLE: &str = "bundle";
/// What a bundle's commit is called when it has no name.
const NAMELESS: &str = "refs/heads/main";

impl Wanted {
    /// The files of what was found, or a bundle with it.
    pub(super) async fn checkout(
        &self,
        worker: &Worker,
        mirror: &Mirror<'_>,
        found: &Found,
        compatibility: Compatibility,
    ) -> Result<Ref, Failure> {
        let remote = redacted(&self.remote);
        let reference = self.local_reference(found);
        let (kind, record_type) = match self.checkout_bundle {
            true => ("bundle checkout", RecordType::Regular),
            false => ("snapshot", RecordType::GitCheckout),
        };
        let description = format!("git {kind} for {remote}#{reference}");
        let mutable =
            worker.refs.new_mutable(None, NewRef { description, record_type, retain: false }).await?;
        let mounted = mutable.mount().await?;
        let done = match self.checkout_bundle {
            true => Box::pin(self.write_bundle(worker, mirror, found, &reference, mounted.path())).await,
            false => {
                Box::pin(self.write_files(mirror, found, &reference, mounted.path(), compatibility)).await
            }
        };
        mounted.unmount().await?;
        done?;
        commit(mutable).await
    }

    async fn write_files(
        &self,
        mirror: &Mirror<'_>,
        found: &Found,
        reference: &str,
        root: &Path,
        compatibility: Compatibility,
    ) -> Result<(), Failure> {
        let remote = redacted(&self.remote);
        let failed = |e: Failure| e.context(format!("failed to checkout remote {remote}"));
        let tip = self.tip(reference);
        let part = (!self.subdir.is_empty()).then(|| format!("checkout{}", base::id::fresh()));
        let directory = part.as_ref().map_or_else(|| root.to_owned(), |part| root.join(part));
        let git = if self.keep_git_dir && part.is_none() {
            self.clone_into(mirror, found, reference, root).await.map_err(failed)?
        } else {
            if let Some(part) = part.clone() {
                let root = root.to_owned();
                base::task::blocking(move || Ok(Root::open(root)?.dir().mkdir(part, 0o700).map(drop)?))
                    .await?;
            }
            let git = mirror.git.on(&directory);
            git.run(&["checkout", "--no-overlay", tip, "--", "."]).await.map_err(failed)?;
            git
        };
        if !self.skip_submodules {
            let update = ["submodule", "update", "--init", "--recursive", "--depth=1"];
            git.run(&update)
                .await
                .map_err(|e| e.context(format!("failed to update submodules for {remote}")))?;
        }
        let time = match self.mtime.as_str() {
            "commit" => Some(commit_time(&git, tip).await?),
            _ => None,
        };
        let (root, subdir) = (root.to_owned(), self.subdir.clone());
        base::task::blocking(move || {
            let root = Root::open(root)?;
            if let Some(part) = part {
                move_up(&root, &part, &subdir)?;
            }
            if compatibility == Compatibility::V10 {
                open_to_all(&root)?;
            }
            if let Some(time) = time {
                set_times(&root, time)?;
            }
            Ok(())
        })
        .await
    }

    /// A repository with one commit in it, and its files.
    async fn clone_into<'a>(
        &self,
        mirror: &Mirror<'a>,
        found: &Found,
        reference: &str,
        root: &Path,
    ) -> Result<Git<'a>, Failure> {
        let own = root.join(".git");
        let git = mirror.git.at(&own).on(root);
        init(&git, &[], found.is_sha256()).await?;
        git.run(&["remote", "add", "origin", &file_url(&mirror.path)]).await?;
        let tip = self.tip(reference);
        let is_tag = mirror.git.line(&["cat-file", "-t", tip]).await? == "tag";
        let refspec = if is_tag {
            let full = if reference.starts_with("refs/tags/") { "" } else { "refs/tags/" };
            format!("{reference}:{full}{reference}")
        } else if self.fetch_by_commit && tip != reference {
            format!("{tip}:{reference}")
        } else if is_commit(reference) {
            let name = format!("refs/buildkit/{}", base::id::fresh());
            mirror.git.run(&["update-ref", &name, reference]).await?;
            name
        } else {
            format!("{reference}:{reference}")
        };
        git.run(&["fetch", "-u", "--depth=1", "--", "origin", &refspec]).await?;
        git.run(&["checkout", "FETCH_HEAD"]).await?;
        // Nothing of where it really came from, nor of what there was in between.
        git.run(&["remote", "set-url", "origin", &redacted(&self.remote)]).await?;
        git.run(&["reflog", "expire", "--all", "--expire=now"]).await?;
        base::task::blocking(move || {
            let own = Root::open(own)?;
            match own.dir().lstat_opt("FETCH_HEAD")? {
                Some(_) => Ok(own.dir().unlink("FETCH_HEAD")?),
                None => Ok(()),
            }
        })
        .await?;
        Ok(git)
    }

    /// A bundle of one commit under one name. It is made in a repository of its own,
    /// outside of the result, so that nothing else gets into it.
    async fn write_bundle(
        &self,
        worker: &Worker,
        mirror: &Mirror<'_>,
        found: &Found,
        reference: &str,
        root: &Path,
    ) -> Result<(), Failure> {
        let commit = match self.checksum.as_str() {
            "" if is_commit(reference) => reference,
            "" => &found.checksum,
            checksum => checksum,
        };
        let scratch = scratch(worker).await?;
        let repository = scratch.path().join("repo.git");
        let git = mirror.git.at(&repository);
        init(&git, &["--bare"], found.is_sha256()).await?;
        git.run(&["fetch", &file_url(&mirror.path), "--", commit]).await.map_err(|e| {
            e.context(format!("failed to fetch commit {commit} from shared repo for bundle creation"))
        })?;
        let name = bundle_name(reference);
        git.run(&["update-ref", &name, commit]).await?;
        let file = scratch.path().join("out.bundle");
        git.run(&["bundle", "create", &file.display().to_string(), &name]).await?;
        let root = root.to_owned();
        base::task::blocking(move || {
            let broken = |e: io::Error| sys::Error::new("copy", &file, e);
            let mut from = std::fs::File::open(&file).map_err(broken)?;
            let mut to = Root::open(root)?.dir().create(BUNDLE, 0o644)?;
            io::copy(&mut from, &mut to).map_err(broken)?;
            drop(scratch);
            Ok(())
        })
        .await
    }
}

async fn commit(mutable: Mutable) -> Result<Ref, Failure> {
    mutable.commit().await
}

/// What the commit of `reference` is called in a bundle.
fn bundle_name(reference: &str) -> String {
    if reference.is_empty() || is_commit(reference) {
        return NAMELESS.to_owned();
    }
    if reference.starts_with("refs/tags/") {
        return reference.to_owned();
    }
    let name = reference.strip_prefix("refs/").unwrap_or(reference);
    format!("refs/heads/{}", name.strip_prefix("heads/").unwrap_or(name))
}

async fn commit_time(git: &Git<'_>, tip: &str) -> Result<Timestamp, Failure> {
    let text = git.line(&["log", "-1", "--format=%ct", &format!("{tip}^{{commit}}")]).await?;
    let seconds = text.parse().map_err(|_| {
        Failure::invalid(format!("failed to parse commit timestamp {}", base::gotext::quote(&text)))
    })?;
    Ok(Timestamp::from_secs(seconds))
}

/// Makes what is in `part/subdir` the whole tree. On the way there must be
/// directories only: a link in a repository leads wherever its author likes.
fn move_up(root: &Root, part: &str, subdir: &str) -> Result<(), Failure> {
    let mut from = root.dir().open_dir(part)?;
    for name in subdir.split('/').filter(|name| !name.is_empty()) {
        match from.lstat_opt(name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            found => {
                let what = if found.is_some() { "contains non-directory" } else { "does not exist:" };
                let at = from.path_of(name);
                let at = at.strip_prefix(part).unwrap_or(&at).display().to_string();
                return Err(
                    Error::Subdir { subdir: subdir.to_owned(), reason: format!("{what} {at:?}") }.into()
                );
            }
        }
        from = from.open_dir(name)?;
    }
    for entry in from.list()? {
        from.rename(&entry.name, root.dir(), &entry.name)?;
    }
    Ok(root.dir().remove_all(part)?)
}

/// Calls `each` with everything that is no directory, and tells the directories,
/// those before what is in them.
fn walk(
    root: &Root,
    mut each: impl FnMut(&Dir, &OsStr) -> Result<(), Failure>,
) -> Result<Vec<PathBuf>, Failure> {
    let mut directories = vec![PathBuf::from("/")];
    let mut at = 0;
    while let Some(path) = directories.get(at).cloned() {
        at += 1;
        let directory = root.open_dir(&path)?;
        for entry in directory.list()? {
            let is_dir = match entry.kind {
                FileType::Unknown => directory.is_dir(&entry.name)?,
                kind => kind == FileType::Directory,
            };
            if is_dir {
                directories.push(path.join(&entry.name));
            } else {
                each(&directory, &entry.name)?;
            }
        }
    }
    Ok(directories)
}

/// Gives everything the time `time`, directories after what is in them.
fn set_times(root: &Root, time: Timestamp) -> Result<(), Failure> {
    let directories = walk(root, |directory, name| Ok(directory.utimens(name, time, time)?))?;
    for path in directories.iter().rev() {
        root.open_dir(path)?.utimens(".", time, time)?;
    }
    Ok(())
}

/// Lets everybody write files that are no programs.
fn open_to_all(root: &Root) -> Result<(), Failure> {
    walk(root, |directory, name| {
        let mode = directory.lstat(name)?.st_mode;
        if FileType::from_raw_mode(mode) == FileType::RegularFile && mode & 0o111 == 0 {
            directory.chmod(name, mode | 0o222)?;
        }
        Ok(())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn bundles_keep_names() {
        for (given, name) in [
            ("", NAMELESS),
            ("main", "refs/heads/main"),
            ("heads/x", "refs/heads/x"),
            ("refs/heads/a/b", "refs/heads/a/b"),
            ("refs/tags/v1", "refs/tags/v1"),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", NAMELESS),
        ] {
            assert_eq!(bundle_name(given), name, "{given}");
        }
    }

    #[test]
    fn a_subdirectory_becomes_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("part/a/b/c")).unwrap();
        std::fs::write(at("part/a/b/f"), "x").unwrap();
        std::fs::write(at("part/outside"), "x").unwrap();
        let root = Root::open(dir.path()).unwrap();
        move_up(&root, "part", "a/b").unwrap();
        assert!(at("c").is_dir() && at("f").is_file() && !at("part").exists());
        let time = Timestamp::from_secs(86_400);
        symlink("/nowhere", at("link")).unwrap();
        set_times(&root, time).unwrap();
        for name in ["c", "f", "link", "."] {
            assert_eq!(std::fs::symlink_metadata(at(name)).unwrap().mtime(), 86_400, "{name}");
        }
        let mode = |path: &str| std::fs::symlink_metadata(at(path)).unwrap().mode() & 0o777;
        for (name, before) in [("f", 0o640), ("c/program", 0o755)] {
            std::fs::write(at(name), "x").unwrap();
            std::fs::set_permissions(at(name), Permissions::from_mode(before)).unwrap();
        }
        open_to_all(&root).unwrap();
        assert_eq!((mode("f"), mode("c/program")), (0o662, 0o755));
    }

    #[test]
    fn a_subdirectory_is_no_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("part/real")).unwrap();
        symlink("/etc", at("part/link")).unwrap();
        symlink("real", at("part/inside")).unwrap();
        std::fs::write(at("part/file"), "x").unwrap();
        let root = Root::open(dir.path()).unwrap();
        for subdir in ["link", "inside", "file", "missing", "real/missing"] {
            let error = move_up(&root, "part", subdir).unwrap_err().to_string();
            assert!(error.contains(subdir.rsplit('/').next().unwrap()), "{error}");
        }
        assert!(at("part/real").is_dir());
    }
}
