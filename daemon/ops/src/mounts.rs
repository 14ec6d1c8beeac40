//! From the mounts of an exec operation to directories, files and sockets of
//! this machine, and back to results.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use base::{Failure, Kind};
use exec::{Mount as SandboxMount, Source};
use proto::pb;
use refs::{MountGuard, Mutable, NewRef, Ref};
use sys::mount::{Mounted, Tmpfs};

use crate::cachemount::{self, Sharing};
use crate::{Cx, Error, Kept, Output, Worker};

const ROOT: &str = "/";

/// Everything a process needs mounted, kept while it runs.
pub(crate) struct Prepared {
    /// The root file system.
    pub(crate) rootfs: PathBuf,
    pub(crate) readonly_rootfs: bool,
    /// The other mounts, parents first.
    pub(crate) mounts: Vec<SandboxMount>,
    /// Kept mounted and alive, in the order in which they are let go; before
    /// the outputs, which nobody may have mounted then.
    guards: Vec<Guard>,
    /// Cache directories by key.
    caches: HashMap<String, Arc<Mutable>>,
    made: Vec<Made>,
    /// Where trees are mounted, by the index of the mount.
    places: Vec<Option<PathBuf>>,
}

/// A mount that becomes a result, or could.
struct Made {
    /// The index of the mount.
    mount: usize,
    /// Which output it becomes; `None`: it is thrown away.
    output: Option<usize>,
    held: Held,
}

/// What becomes of a mount.
enum Held {
    /// The input as it was.
    Unchanged(Ref),
    /// What the process made of it.
    Written(Mutable),
}

/// The fields are never read: they are kept until the process has ended.
#[allow(dead_code)]
enum Guard {
    Mount(MountGuard),
    Secret(SecretFile),
    Ssh(session::Forwarded),
}

/// A file in memory that only this mount shows.
struct SecretFile {
    mounted: Option<Mounted>,
    dir: PathBuf,
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        drop(self.mounted.take());
        if let Err(error) = std::fs::remove_dir(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "remove secret mount point");
        }
    }
}

impl Prepared {
    /// Prepares `op`'s mounts on `inputs`.
    ///
    /// # Errors
    /// What is wrong with a mount, with what was already there kept.
    pub(crate) async fn new(
        worker: &Worker,
        cx: &Cx,
        op: &pb::ExecOp,
        cwd: &str,
        inputs: &[Output],
        description: &str,
    ) -> Result<Self, Failure> {
        let mut this = Self {
            rootfs: PathBuf::new(),
            readonly_rootfs: false,
            mounts: Vec::new(),
            caches: HashMap::new(),
            made: Vec::new(),
            guards: Vec::new(),
            places: Vec::new(),
        };
        for mount in &op.mounts {
            cx.scope.check()?;
            this.places.push(None);
            if let Err(e) = this.add(worker, cx, mount, cwd, inputs, description).await {
                return Err(this.keep(op, inputs, e).await);
            }
        }
        this.mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        Ok(this)
    }

    /// Where the tree of the mount with this index is mounted.
    pub(crate) fn place(&self, mount: usize) -> Option<&std::path::Path> {
        self.places.get(mount)?.as_deref()
    }

    async fn add(
        &mut self,
        worker: &Worker,
        cx: &Cx,
        mount: &pb::Mount,
        cwd: &str,
        inputs: &[Output],
        description: &str,
    ) -> Result<(), Failure> {
        let fail = |reason: &str| Error::Mount { dest: mount.dest.clone(), reason: reason.to_owned() };
        let root = mount.dest == ROOT;
        let kind = mount.mount_type();
        if root && kind != pb::MountType::Bind {
            return Err(fail("the root file system must be a bind mount").into());
        }
        let input: Option<&Ref> = match usize::try_from(mount.input) {
            Ok(at) => inputs.get(at).ok_or(Error::Input(mount.input))?.as_ref(),
            Err(_) => None,
        };
        let output = usize::try_from(mount.output).ok();
        let at = self.places.len().saturating_sub(1);
        let source = match kind {
            pb::MountType::Bind => {
                let new = || NewRef {
                    description: format!("mount {} from exec {description}", mount.dest),
                    ..NewRef::default()
                };
                let path = match input {
                    Some(input) if mount.readonly && !root => {
                        if output.is_some() {
                            self.made.push(Made { mount: at, output, held: Held::Unchanged(input.clone()) });
                        }
                        self.keep_mounted(input.mount().await?)
                    }
                    // A root that is read-only is written to all the same: mount
                    // points have to be made in it.
                    _ => {
                        let mutable = worker.refs.new_mutable(input, new()).await?;
                        let path = self.keep_mounted(mutable.mount().await?);
                        self.made.push(Made { mount: at, output, held: Held::Written(mutable) });
                        path
                    }
                };
                if root {
                    self.rootfs = path;
                    self.readonly_rootfs = mount.readonly;
                    return Ok(());
                }
                Source::Bind { path, selector: mount.selector.clone() }
            }
            pb::MountType::Cache => {
                let options = mount.cache_opt.as_ref().ok_or_else(|| fail("missing cache mount options"))?;
                let sharing = match options.sharing() {
                    pb::CacheSharingOpt::Shared => Sharing::Shared,
                    pb::CacheSharingOpt::Private => Sharing::Private,
                    pb::CacheSharingOpt::Locked => Sharing::Locked,
                };
                let key = cachemount::key(&options.id, input);
                // A process that has it twice has one directory, however it shares
                // with others: it would wait for itself.
                let mutable = match self.caches.get(&key) {
                    Some(mutable) => mutable.clone(),
                    None => {
                        let mut description = format!("cached mount {} from exec {description}", mount.dest);
                        if options.id != mount.dest {
                            description.push_str(&format!(" with id {}", base::gotext::quote(&options.id)));
                        }
                        let cache = &worker.cache_mounts;
                        let mutable =
                            cache.get(&worker.refs, &key, input, sharing, &description, &cx.scope).await?;
                        self.caches.insert(key, mutable.clone());
                        mutable
                    }
                };
                let path = self.keep_mounted(mutable.mount().await?);
                if let (Some(_), Some(input)) = (output, input) {
                    self.made.push(Made { mount: at, output, held: Held::Unchanged(input.clone()) });
                }
                Source::Bind { path, selector: mount.selector.clone() }
            }
            pb::MountType::Tmpfs => {
                let size = mount.tmpfs_opt.as_ref().map_or(0, |o| o.size);
                Source::Tmpfs { size: u64::try_from(size).map_err(|_| fail("negative tmpfs size"))? }
            }
            pb::MountType::Secret => match self.secret(worker, cx, mount).await? {
                Some(path) => Source::Bind { path, selector: String::new() },
                None => return Ok(()),
            },
            pb::MountType::Ssh => match self.ssh(worker, cx, mount).await? {
                Some(path) => Source::Bind { path, selector: String::new() },
                None => return Ok(()),
            },
        };
        let dest = base::gopath::clean(&mount.dest);
        let dest = if dest.starts_with('/') { dest } else { base::gopath::join(["/", cwd, &dest]) };
        self.mounts.push(SandboxMount { dest, source, readonly: mount.readonly, options: Vec::new() });
        Ok(())
    }

    fn keep_mounted(&mut self, guard: MountGuard) -> PathBuf {
        let path = guard.path().to_owned();
        if let Some(place) = self.places.last_mut() {
            *place = Some(path.clone());
        }
        self.guards.push(Guard::Mount(guard));
        path
    }

    /// Asks the clients for a secret and puts it into a file in memory.
    async fn secret(
        &mut self,
        worker: &Worker,
        cx: &Cx,
        mount: &pb::Mount,
    ) -> Result<Option<PathBuf>, Failure> {
        let fail = |reason: &str| Error::Mount { dest: mount.dest.clone(), reason: reason.to_owned() };
        let options = mount.secret_opt.as_ref().ok_or_else(|| fail("missing secret options"))?;
        let Some(data) = fetch_secret(worker, cx, &options.id, options.optional).await? else {
            return Ok(None);
        };
        let dir = worker.scratch.join(format!("secret-{}", base::id::fresh()));
        let options = options.clone();
        let (guard, file) = base::task::blocking(move || {
            std::fs::create_dir(&dir).map_err(|e| sys::Error::new("mkdir", &dir, e))?;
            let mut guard = SecretFile { mounted: None, dir };
            guard.mounted = Some(Tmpfs { size: None, mode: Some(0o700) }.mount(&guard.dir)?);
            let file = guard.dir.join("secret");
            write_secret(&file, &data, &options).map_err(|e| sys::Error::new("write", &file, e))?;
            Ok((guard, file))
        })
        .await?;
        self.guards.push(Guard::Secret(guard));
        Ok(Some(file))
    }

    /// Opens a socket that leads to a client's agent.
    async fn ssh(&mut self, worker: &Worker, cx: &Cx, mount: &pb::Mount) -> Result<Option<PathBuf>, Failure> {
        let fail = |reason: String| Error::Mount { dest: mount.dest.clone(), reason };
        let options = mount.ssh_opt.as_ref().ok_or_else(|| fail("missing ssh options".into()))?;
        let id = options.id.as_str();
        let found = worker.any_session(cx, |caller| async move {
            caller.check_agent(id).await?;
            Ok(caller)
        });
        let caller = match found.await {
            Ok(caller) => caller,
            Err(e) if options.optional => {
                tracing::debug!(error = %e, id, "optional ssh agent is not there");
                return Ok(None);
            }
            Err(e) if e.kind() == Kind::Unimplemented => {
                return Err(fail(format!("no SSH key {id:?} forwarded from the client")).into());
            }
            Err(e) => return Err(e),
        };
        let socket = session::SocketOptions {
            id: id.to_owned(),
            uid: options.uid,
            gid: options.gid,
            mode: options.mode & 0o777,
        };
        let forwarded = caller.forward_agent(&worker.scratch, socket).await?;
        let path = forwarded.path().to_owned();
        self.guards.push(Guard::Ssh(forwarded));
        Ok(Some(path))
    }

    /// The results, in the order of the operation's outputs. `count` of them.
    pub(crate) async fn finish(self, count: usize) -> Result<Vec<Output>, Failure> {
        let Self { made, guards, caches, .. } = self;
        let_go(guards).await?;
        drop(caches);
        let mut results: Vec<Output> = vec![None; count];
        for Made { output, held, .. } in made {
            let Some(slot) = output.and_then(|at| results.get_mut(at)) else { continue };
            *slot = Some(match held {
                Held::Unchanged(input) => input,
                Held::Written(mutable) => mutable.commit().await?,
            });
        }
        Ok(results)
    }

    /// Lets everything go. Nothing becomes a result.
    ///
    /// # Errors
    /// What the kernel said to unmounting.
    pub(crate) async fn discard(self) -> Result<(), Failure> {
        let_go(self.guards).await
    }

    /// `failure` with what each mount of `op` began with and what it is like
    /// now.
    pub(crate) async fn keep(self, op: &pb::ExecOp, inputs: &[Output], failure: Failure) -> Failure {
        if failure.is_canceled() {
            return failure;
        }
        let input = |m: &pb::Mount| inputs.get(usize::try_from(m.input).ok()?).cloned().flatten();
        let inputs: Vec<Output> = op.mounts.iter().map(input).collect();
        let mut mounts = inputs.clone();
        let Self { made, guards, caches, .. } = self;
        if let Err(error) = let_go(guards).await {
            tracing::warn!(%error, "leaving a mount behind");
        }
        drop(caches);
        for Made { mount, held, .. } in made {
            let Some(slot) = mounts.get_mut(mount) else { continue };
            match held {
                Held::Unchanged(tree) => *slot = Some(tree),
                Held::Written(mutable) => match mutable.commit().await {
                    Ok(tree) => *slot = Some(tree),
                    Err(error) => tracing::warn!(%error, "cannot keep a mount of a failed step"),
                },
            }
        }
        Kept { inputs, mounts }.on(failure, None)
    }
}

/// What is committed is no longer written to, and what is kept can be had again
/// at once.
async fn let_go(guards: Vec<Guard>) -> Result<(), Failure> {
    for guard in guards {
        if let Guard::Mount(mounted) = guard {
            mounted.unmount().await?;
        }
    }
    Ok(())
}

/// How many outputs an exec operation has.
pub(crate) fn output_count(op: &pb::ExecOp) -> usize {
    op.mounts.iter().filter_map(|m| usize::try_from(m.output).ok()).max().map_or(0, |max| max + 1)
}

/// A secret from whichever client has it. `None`: nobody has it, and that is fine.
pub(crate) async fn fetch_secret(
    worker: &Worker,
    cx: &Cx,
    id: &str,
    optional: bool,
) -> Result<Option<Vec<u8>>, Failure> {
    let found = worker.any_session(cx, |caller| async move { Ok(caller.secret(id).await?) }).await;
    match found {
        Ok(data) => Ok(Some(data)),
        Err(e) if e.kind() == Kind::NotFound && optional => Ok(None),
        Err(e) if e.kind() == Kind::NotFound => Err(Error::Secret { id: id.to_owned() }.into()),
        Err(e) => Err(e.context(format!("secret {id}"))),
    }
}

fn write_secret(path: &std::path::Path, data: &[u8], options: &pb::SecretOpt) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(data)?;
    std::os::unix::fs::fchown(&file, Some(options.uid), Some(options.gid))?;
    file.set_permissions(std::fs::Permissions::from_mode(options.mode & 0o777))
}
