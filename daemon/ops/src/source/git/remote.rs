//! Remotes: how they are spoken to, and the repository of ours that mirrors each.
//!
//! A mirror is bare, kept between builds, and used by one build at a time. It holds
//! what was ever asked for: another commit of a remote is fetched on top of it.

use std::path::{Path, PathBuf};

use base::{Failure, Kind, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use refs::{MountGuard, Mutable, NewRef};
use session::SocketOptions;
use tokio::sync::OwnedMutexGuard;

use super::cli::{Access, Git};
use super::found::Found;
use super::is_commit;
use super::wanted::{Wanted, mismatch};
use crate::source::redacted;
use crate::{Behalf, Error, Worker};

/// Complaints of a mirror that is best begun anew: what it knows contradicts the
/// remote, or it was left in the middle of something.
const HOPELESS: [&str; 9] = [
    "(would clobber existing tag)",
    "(unable to update local ref)",
    "refname conflict",
    ".lock': File exists",
    "mismatched algorithms",
    "is corrupt",
    "loose object",
    "bad object",
    "not a git repository",
];

/// What begins the index of mirrors. Remotes may hold credentials, so that only
/// their digest is written down.
fn index(remote: &str) -> String {
    format!("git-remote::{}", base::Digest::of(remote))
}

impl Access {
    /// What the clients of a build have for the remote of `wanted`.
    pub(super) async fn of(wanted: &Wanted, worker: &Worker, behalf: &Behalf) -> Result<Self, Failure> {
        let mut access = Self { header: header(wanted, worker, behalf).await, ..Self::default() };
        if !wanted.agent.is_empty() {
            let id = wanted.agent.as_str();
            let sessions = behalf.sessions();
            let found = worker.ask(&sessions, |caller| async move {
                caller.check_agent(id).await?;
                Ok(caller)
            });
            let caller = found.await.map_err(|e| match e.kind() {
                Kind::Unimplemented => Failure::new(
                    Kind::FailedPrecondition,
                    format!("no SSH key {} forwarded from the client", base::gotext::quote(id)),
                ),
                _ => e,
            })?;
            let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            let options = SocketOptions { id: id.to_owned(), uid, gid, mode: 0o700 };
            access.agent = Some(caller.forward_agent(&worker.scratch, options).await?);
        }
        if !wanted.known_hosts.is_empty() {
            let (scratch, lines) = (worker.scratch.clone(), wanted.known_hosts.clone());
            let file = base::task::blocking(move || {
                use std::io::Write as _;
                let made = tempfile::Builder::new().prefix("known-hosts-").tempfile_in(&scratch);
                let mut file = made.map_err(|e| sys::Error::new("create", &scratch, e))?;
                file.write_all(lines.as_bytes()).map_err(|e| sys::Error::new("write", file.path(), e))?;
                Ok(file)
            });
            access.known_hosts = Some(file.await?);
        }
        Ok(access)
    }
}

/// The header that a secret of the build asks to send. A secret nobody has is
/// none; the remote says what it thinks of that.
async fn header(wanted: &Wanted, worker: &Worker, behalf: &Behalf) -> Option<(String, Secret)> {
    let host = wanted.host();
    let of_host = |name: &str| format!("{name}.{host}");
    let both = [(&wanted.header_secret, false), (&wanted.token_secret, true)];
    let both = both.into_iter().filter(|(name, _)| !name.is_empty());
    let names =
        both.clone().map(|(n, token)| (of_host(n), token)).chain(both.map(|(n, token)| (n.clone(), token)));
    let sessions = behalf.sessions();
    for (name, is_token) in names {
        let name = name.as_str();
        let Ok(secret) = worker.ask(&sessions, |c| async move { Ok(c.secret(name).await?) }).await else {
            continue;
        };
        let value = if is_token {
            let pair = [b"x-access-token:", secret.as_slice()].concat();
            format!("basic {}", STANDARD.encode(pair))
        } else {
            String::from_utf8_lossy(&secret).into_owned()
        };
        let setting = format!("http.{}.extraheader", wanted.header_scope());
        return Some((setting, Secret::new(format!("Authorization: {value}"))));
    }
    None
}

/// The mirror of a remote, held.
pub(super) struct Mirror<'a> {
    pub(super) git: Git<'a>,
    pub(super) path: PathBuf,
    mounted: MountGuard,
    mutable: Mutable,
    lock: OwnedMutexGuard<()>,
}

impl<'a> Mirror<'a> {
    /// The mirror of the remote of `wanted`; an empty one at first.
    async fn open(
        worker: &Worker,
        wanted: &Wanted,
        git: &Git<'a>,
        found: &Found,
        reset: bool,
        lock: OwnedMutexGuard<()>,
    ) -> Result<Self, Failure> {
        let index = index(&wanted.remote);
        let mut known = None;
        for id in worker.refs.search(&index) {
            match worker.refs.get_mutable(&id).await {
                Ok(mutable) => {
                    known = Some(mutable);
                    break;
                }
                Err(error) => tracing::debug!(%error, id, "not using a mirror"),
            }
        }
        let fresh = known.is_none();
        let mutable = match known {
            Some(mutable) => mutable,
            None => {
                let description = format!("shared git repo for {}", redacted(&wanted.remote));
                let new = NewRef { description, retain: true, ..NewRef::default() };
                worker.refs.new_mutable(None, new).await?
            }
        };
        let mounted = mutable.mount().await?;
        let path = mounted.path().to_owned();
        let mirror = Self { git: git.at(&path), path, mounted, mutable, lock };
        if fresh || reset || !mirror.has("HEAD") {
            if let Err(e) = mirror.begin(wanted, found).await {
                mirror.close().await?;
                return Err(e);
            }
            mirror.mutable.set_index(&index)?;
        }
        Ok(mirror)
    }

    /// An empty repository in place of whatever is there.
    async fn begin(&self, wanted: &Wanted, found: &Found) -> Result<(), Failure> {
        let path = self.path.clone();
        base::task::blocking(move || {
            let root = sys::path::Root::open(&path)?;
            for entry in root.dir().list()? {
                root.dir().remove_all(&entry.name)?;
            }
            Ok(())
        })
        .await?;
        init(&self.git, &["--bare"], found.is_sha256()).await?;
        self.git.run(&["remote", "add", "origin", &wanted.remote]).await?;
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.path.join(name)).is_ok()
    }

    /// Lets it go, for the next build that wants it.
    pub(super) async fn close(self) -> Result<(), Failure> {
        let Self { mounted, mutable, lock, .. } = self;
        let unmounted = mounted.unmount().await;
        drop(mutable);
        drop(lock);
        unmounted
    }

    /// Brings what was found here, unless it is.
    async fn fetch(&self, wanted: &Wanted, found: &Found, from: Option<&str>) -> Result<(), Failure> {
        let git = &self.git;
        let failed = |e: Failure| e.context(format!("failed to fetch remote {}", redacted(&wanted.remote)));
        let reference = wanted.local_reference(found);
        let fetched = wanted.tip(&reference).to_owned();
        let commit = format!("{fetched}^{{commit}}");
        if is_commit(&fetched) && git.run(&["cat-file", "-e", &commit]).await.is_ok() {
            return Ok(());
        }
        // Left by a fetch that was killed.
        _ = std::fs::remove_file(self.path.join("shallow.lock"));
        // Everything is kept as a tag, so that the next fetch can say what is here.
        let target = match reference.starts_with("refs/tags/") {
            true => reference.clone(),
            false => format!("tags/{reference}"),
        };
        let origin = from.unwrap_or("origin");
        let refspec = format!("{fetched}:{target}");
        let mut args = vec!["fetch"];
        if wanted.fetch_by_commit || !is_commit(&fetched) {
            args.extend(["--depth=1", "--no-tags"]);
        } else {
            args.push("--tags");
            args.extend(self.has("shallow").then_some("--unshallow"));
        }
        args.push(origin);
        if is_commit(&reference) {
            args.push(&reference);
        } else {
            args.extend(["--force", "--", &refspec]);
        }
        git.run(&args).await.map_err(failed)?;

        // The remote may have moved on since it was asked.
        let expected = found.checksum.as_str();
        if git.line(&["rev-parse", "--verify", &fetched]).await? == expected {
            return Ok(());
        }
        let full = if target.starts_with("refs/") { target } else { format!("refs/{target}") };
        if git.run(&["cat-file", "-e", expected]).await.is_err() {
            let mut args = vec!["fetch", "--tags"];
            args.extend(self.has("shallow").then_some("--unshallow"));
            args.extend([origin, expected]);
            git.run(&args).await.map_err(failed)?;
            git.run(&["reflog", "expire", "--all", "--expire=now"]).await?;
            if git.run(&["cat-file", "-e", expected]).await.is_err() {
                let reason = format!(
                    "fetched ref {reference} does not match expected commit {expected} and commit can not be \
                     found in the repository"
                );
                return Err(Error::Git { remote: redacted(&wanted.remote), reason }.into());
            }
        }
        git.run(&["update-ref", "--no-deref", &full, expected]).await?;
        Ok(())
    }

    /// Whether what is here is the commit, or the tag of it, that the build wants.
    async fn check(&self, wanted: &Wanted, found: &Found) -> Result<(), Failure> {
        if wanted.checksum.is_empty() {
            return Ok(());
        }
        let reference = wanted.local_reference(found);
        let tip = wanted.tip(&reference);
        let object = self.git.line(&["rev-parse", "--verify", tip]).await?;
        if object.starts_with(&wanted.checksum) {
            return Ok(());
        }
        let peeled =
            self.git.line(&["rev-parse", "--verify", &format!("{tip}^{{}}")]).await.unwrap_or_default();
        if !peeled.is_empty() && peeled.starts_with(&wanted.checksum) {
            return Ok(());
        }
        let both =
            if peeled.is_empty() || peeled == object { object } else { format!("{object} or {peeled}") };
        let reason = mismatch(&wanted.checksum, &both);
        Err(Error::Git { remote: redacted(&wanted.remote), reason }.into())
    }
}

/// Makes a repository.
pub(super) async fn init(git: &Git<'_>, options: &[&str], sha256: bool) -> Result<(), Failure> {
    let mut args = vec!["-c", "init.defaultBranch=master", "init"];
    args.extend(options);
    args.extend(sha256.then_some("--object-format=sha256"));
    git.run(&args).await.map(drop)
}

impl Wanted {
    /// What a reference is called in the mirror.
    pub(super) fn local_reference(&self, found: &Found) -> String {
        if self.bundle.is_some() && (self.reference.is_empty() || is_commit(&self.reference)) {
            return self.checksum.clone();
        }
        match self.reference.as_str() {
            "" => found.reference.strip_prefix("refs/heads/").unwrap_or(&found.reference).to_owned(),
            _ if self.fetch_by_commit => found.reference.clone(),
            given => given.to_owned(),
        }
    }

    /// What stands for `reference` in the mirror: itself, or its commit when that
    /// alone was fetched.
    pub(super) fn tip<'a>(&'a self, reference: &'a str) -> &'a str {
        if self.fetch_by_commit && !self.checksum.is_empty() { &self.checksum } else { reference }
    }

    /// The mirror, with what was found in it. `from` stands for the remote.
    pub(super) async fn fetch<'a>(
        &self,
        worker: &Worker,
        git: &Git<'a>,
        found: &Found,
        from: Option<&str>,
    ) -> Result<Mirror<'a>, Failure> {
        let mut reset = false;
        loop {
            let lock = worker.git.lock(&self.remote).await;
            let mirror = Mirror::open(worker, self, git, found, reset, lock).await?;
            let done = match mirror.fetch(self, found, from).await {
                Ok(()) => mirror.check(self, found).await,
                Err(e) if !reset && HOPELESS.iter().any(|text| e.to_string().contains(text)) => {
                    tracing::debug!(error = %e, "beginning a mirror anew");
                    mirror.close().await?;
                    reset = true;
                    continue;
                }
                Err(e) => Err(e),
            };
            return match done {
                Ok(()) => Ok(mirror),
                Err(e) => {
                    mirror.close().await?;
                    Err(e)
                }
            };
        }
    }
}

/// A directory for what a command needs for a moment.
pub(super) async fn scratch(worker: &Worker) -> Result<tempfile::TempDir, Failure> {
    let parent = worker.scratch.clone();
    base::task::blocking(move || {
        let made = tempfile::Builder::new().prefix("git-").tempdir_in(&parent);
        Ok(made.map_err(|e| sys::Error::new("mkdir", &parent, e))?)
    })
    .await
}

/// The address of a repository on this machine. Not a bare path: git would take
/// shortcuts that trust what is in it.
pub(super) fn file_url(path: &Path) -> String {
    format!("file://{}", path.display())
}
