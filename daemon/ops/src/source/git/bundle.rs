//! A bundle in place of a remote: a blob that is unpacked into a repository of its
//! own, which is then asked and fetched from as the remote would be.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use base::Failure;
use base::digest::Hasher;
use futures_util::StreamExt as _;
use tempfile::TempDir;

use super::cli::Git;
use super::is_commit;
use super::remote::{file_url, init, scratch};
use super::wanted::Wanted;
use crate::source::blob::Locator;
use crate::{Behalf, Error, Worker};

/// A bundle, unpacked. It goes away with this.
pub(super) struct Staged {
    directory: TempDir,
}

impl Staged {
    /// The bundle of `wanted`, if it has one.
    pub(super) async fn if_any(
        wanted: &Wanted,
        worker: &Worker,
        git: &Git<'_>,
        behalf: &Behalf,
    ) -> Result<Option<Self>, Failure> {
        match wanted.bundle {
            Some(_) => Self::new(wanted, worker, git, behalf).await.map(Some),
            None => Ok(None),
        }
    }

    /// Brings the bundle here and unpacks it.
    pub(super) async fn new(
        wanted: &Wanted,
        worker: &Worker,
        git: &Git<'_>,
        behalf: &Behalf,
    ) -> Result<Self, Failure> {
        let locator = wanted.bundle.as_ref().ok_or_else(|| Failure::internal("no bundle to unpack"))?;
        let staged = Self { directory: scratch(worker).await? };
        let file = staged.directory.path().join("bundle.pack");
        behalf
            .scope
            .run(download(locator, worker, behalf, &file))
            .await
            .map_err(|e| e.context(format!("failed to fetch git bundle {}", locator.text())))?;
        let path = file.display().to_string();
        let listed = git.run(&["ls-remote", "--", &path]).await?;
        let listed = String::from_utf8_lossy(&listed);
        let bad = |reason: String| Error::Bundle { locator: locator.text().to_owned(), reason };
        let first = listed.lines().find_map(|line| line.split_once('\t')).map(|(sha, _)| sha);
        let sha = first.ok_or_else(|| bad("no refs found".to_owned()))?;
        if !is_commit(sha) {
            return Err(bad(format!("invalid object ID {}", base::gotext::quote(sha))).into());
        }
        let git = git.at(&staged.repository());
        init(&git, &["--bare"], sha.len() == 64).await?;
        git.run(&["fetch", &path, "+refs/*:refs/*"]).await?;
        let commit = format!("{}^{{commit}}", wanted.checksum);
        if git.run(&["cat-file", "-e", &commit]).await.is_err() {
            return Err(bad(format!("commit {} not found", wanted.checksum)).into());
        }
        Ok(staged)
    }

    fn repository(&self) -> PathBuf {
        self.directory.path().join("repo.git")
    }

    /// Its address.
    pub(super) fn url(&self) -> String {
        file_url(&self.repository())
    }
}

async fn download(locator: &Locator, worker: &Worker, behalf: &Behalf, path: &Path) -> Result<(), Failure> {
    let mut pieces = locator.open(worker, behalf).await?;
    let broken = |e: std::io::Error| Failure::from(sys::Error::new("write", "bundle", e));
    let mut file = File::create_new(path).map_err(broken)?;
    let mut hasher = Hasher::new();
    while let Some(piece) = pieces.next().await.transpose()? {
        hasher.update(&piece);
        file = base::task::blocking(move || {
            file.write_all(&piece).map_err(broken)?;
            Ok(file)
        })
        .await?;
    }
    let actual = hasher.finish();
    if actual == *locator.digest() {
        return Ok(());
    }
    let reason = format!("expected checksum to match {}, got {actual}", locator.digest());
    Err(Error::Bundle { locator: locator.text().to_owned(), reason }.into())
}
