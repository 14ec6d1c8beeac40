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
use crate::{Cx, Error, Output, Worker};

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
    outputs: Vec<(usize, Held)>,
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
    Scratch(Mutable),
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
            outputs: Vec::new(),
            caches: HashMap::new(),
            guards: Vec::new(),
        };
        for mount in &op.mounts {
            cx.scope.check()?;
            this.add(worker, cx, mount, cwd, inputs, description).await?;
        }
        this.mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        Ok(this)
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
        let has_output = mount.output >= 0;
        let source = match kind {
            pb::MountType::Bind => {
                let new = || NewRef {
                    description: format!("mount {} from exec {description}", mount.dest),
                    ..NewRef::default()
                };
                let path = match input {
                    Some(input) if mount.readonly && !root => {
                        if has_output {
                            self.outputs.push((output(mount), Held::Unchanged(input.clone())));
                        }
                        self.keep_mounted(input.mount().await?)
                    }
                    // A root that is read-only is written to all the same: mount
                    // points have to be made in it.
                    _ => {
                        let mutable = worker.refs.new_mutable(input, new()).await?;
                        let path = self.keep_mounted(mutable.mount().await?);
                        if has_output {
                            self.outputs.push((output(mount), Held::Written(mutable)));
                        } else {
                            self.guards.push(Guard::Scratch(mutable));
                        }
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
                if let (true, Some(input)) = (has_output, input) {
                    self.outputs.push((output(mount), Held::Unchanged(input.clone())));
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
        let Self { outputs, guards, caches, .. } = self;
        // What is committed is no longer written to, and what is kept can be
        // had again at once.
        for guard in guards {
            if let Guard::Mount(mounted) = guard {
                mounted.unmount().await?;
            }
        }
        drop(caches);
        let mut results: Vec<Output> = vec![None; count];
        for (at, held) in outputs {
            let result = match held {
                Held::Unchanged(input) => input,
                Held::Written(mutable) => mutable.commit().await?,
            };
            if let Some(slot) = results.get_mut(at) {
                *slot = Some(result);
            }
        }
        Ok(results)
    }
}

/// Only called when there is an output.
fn output(mount: &pb::Mount) -> usize {
    usize::try_from(mount.output).unwrap_or(0)
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
