//! `file`: copies, files, directories, links and removals.
//!
//! Actions that follow each other on one tree work on one mutable ref; a tree
//! is committed only where somebody else needs it as it is then.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base::failure::Subject;
use base::{Digest, Failure, Timestamp};
use proto::pb;
use proto::pb::file_action::Action;
use refs::{MountGuard, Mutable, NewRef};
use solver::{CacheMap, Operation};
use sys::path::{Owner, Root};
use tree::fileop::{self, Who};

use crate::keyed::Keyed;
use crate::{Cx, Error, Kept, Output, Worker};

/// A file operation.
pub(crate) struct FileOp {
    worker: Arc<Worker>,
    op: pb::FileOp,
    keyed: Keyed,
}

impl FileOp {
    pub(crate) fn new(worker: Arc<Worker>, vertex: &llb::Vertex, op: &pb::FileOp) -> Result<Self, Failure> {
        Ok(Self { worker, op: op.clone(), keyed: Keyed::new(vertex, true)? })
    }
}

/// A tree between two actions.
enum Tree {
    /// As it came in, or as it was committed.
    Done(Output),
    /// Being worked on.
    Open(Mutable),
    /// Handed on to a later action.
    Taken,
}

/// The trees of one run: inputs, then what each action made.
struct Run<'a> {
    op: &'a FileOp,
    cx: &'a Cx,
    trees: Vec<Tree>,
    /// How often each tree is still needed, as something to read or to build on.
    uses: Vec<usize>,
    /// What the action that failed worked on.
    broken: Option<Mutable>,
}

impl Run<'_> {
    /// A tree that is read from; committed if it is still open.
    async fn read(&mut self, at: i64) -> Result<Output, Failure> {
        let Ok(at) = usize::try_from(at) else { return Ok(None) };
        let missing = || Failure::from(Error::Input(at as i64));
        let slot = self.trees.get_mut(at).ok_or_else(missing)?;
        match std::mem::replace(slot, Tree::Taken) {
            Tree::Done(tree) => {
                *slot = Tree::Done(tree.clone());
                Ok(tree)
            }
            Tree::Open(mutable) => {
                let tree = Some(mutable.commit().await?);
                *slot = Tree::Done(tree.clone());
                Ok(tree)
            }
            Tree::Taken => Err(missing()),
        }
    }

    /// A tree to work on: an open one that nobody else needs, or a new one.
    async fn write(&mut self, at: i64, description: &str) -> Result<Mutable, Failure> {
        if let Ok(at) = usize::try_from(at)
            && self.uses.get(at) == Some(&1)
            && let Some(slot @ Tree::Open(_)) = self.trees.get_mut(at)
            && let Tree::Open(mutable) = std::mem::replace(slot, Tree::Taken)
        {
            return Ok(mutable);
        }
        let base = self.read(at).await?;
        let new = NewRef { description: description.to_owned(), ..NewRef::default() };
        self.op.worker.refs.new_mutable(base.as_ref(), new).await
    }

    /// Says that one of those who need a tree has had it.
    fn used(&mut self, at: i64) {
        if let Some(uses) = usize::try_from(at).ok().and_then(|at| self.uses.get_mut(at)) {
            *uses = uses.saturating_sub(1);
        }
    }

    async fn act(&mut self, action: &pb::FileAction, kind: &Action) -> Result<Mutable, Failure> {
        let accounts = self.accounts(kind).await?;
        let source = match kind {
            Action::Copy(_) => Some(self.read(action.secondary_input).await?),
            _ => None,
        };
        let target = self.write(action.input, &describe(kind)).await?;
        let mounted = target.mount().await?;
        let from = match &source {
            Some(Some(source)) => Some(source.mount().await?),
            _ => None,
        };
        // Copying out of nothing is copying out of an empty directory.
        let nothing = source.as_ref().map(|_| self.op.worker.refs.store().empty());
        let accounts = accounts.mount().await?;
        let work = {
            let (kind, scope, path) = (kind.clone(), self.cx.scope.clone(), mounted.path().to_owned());
            let from = from.as_ref().map(|m| m.path().to_owned()).or(nothing);
            let accounts = accounts.paths();
            move || {
                let root = Root::open(path)?;
                let from = from.map(Root::open).transpose()?;
                let owner = accounts.owner()?;
                perform(&kind, &scope, &root, from.as_ref(), owner)
            }
        };
        let done = base::task::blocking(work).await;
        // Now, not some time later: whoever comes next may want the same trees.
        for mounted in [Some(mounted), from].into_iter().flatten().chain(accounts.guards()) {
            mounted.unmount().await?;
        }
        if let Err(e) = done {
            self.broken = Some(target);
            return Err(e);
        }
        Ok(target)
    }

    /// `failure` of an action, with the trees around it as they are then.
    async fn keep(
        mut self,
        index: usize,
        action: &pb::FileAction,
        inputs: Vec<Output>,
        failure: Failure,
    ) -> Failure {
        if failure.is_canceled() {
            return failure;
        }
        let count = inputs.len();
        let mut mounts: Vec<Output> = vec![None; self.op.op.actions.len()];
        if let (Some(broken), Some(slot)) = (self.broken.take(), mounts.get_mut(index)) {
            *slot = broken.commit().await.ok();
        }
        let second = usize::try_from(action.secondary_input).ok().and_then(|at| at.checked_sub(count));
        if let Some(slot) = second.and_then(|at| mounts.get_mut(at)) {
            *slot = self.read(action.secondary_input).await.ok().flatten();
        }
        Kept { inputs, mounts }.on(failure, Some(Subject::File(index as i64)))
    }

    /// Whose the files are to be, and the trees in which names are looked up.
    async fn accounts(&mut self, kind: &Action) -> Result<Accounts, Failure> {
        let Some(owner) = owner_of(kind) else { return Ok(Accounts::default()) };
        let user = self.account(owner.user.as_ref()).await?;
        let group = self.account(owner.group.as_ref()).await?;
        Ok(Accounts { given: true, user, group })
    }

    async fn account(&mut self, option: Option<&pb::UserOpt>) -> Result<Option<(Who, Output)>, Failure> {
        match option.and_then(|o| o.user.as_ref()) {
            None => Ok(None),
            Some(pb::user_opt::User::ById(id)) => Ok(Some((Who::Id(*id), None))),
            Some(pb::user_opt::User::ByName(named)) => {
                Ok(Some((Who::Name(named.name.clone()), self.read(named.input).await?)))
            }
        }
    }
}

#[derive(Default)]
struct Accounts {
    given: bool,
    user: Option<(Who, Output)>,
    group: Option<(Who, Output)>,
}

/// Accounts whose trees are mounted.
struct Mounted {
    given: bool,
    user: Option<(Who, Option<MountGuard>)>,
    group: Option<(Who, Option<MountGuard>)>,
}

/// Accounts, and where their trees are mounted.
struct Places {
    given: bool,
    user: Option<(Who, Option<PathBuf>)>,
    group: Option<(Who, Option<PathBuf>)>,
}

impl Accounts {
    async fn mount(self) -> Result<Mounted, Failure> {
        async fn one(who: Option<(Who, Output)>) -> Result<Option<(Who, Option<MountGuard>)>, Failure> {
            Ok(match who {
                Some((who, Some(tree))) => Some((who, Some(tree.mount().await?))),
                Some((who, None)) => Some((who, None)),
                None => None,
            })
        }
        Ok(Mounted { given: self.given, user: one(self.user).await?, group: one(self.group).await? })
    }
}

impl Mounted {
    fn paths(&self) -> Places {
        let one = |who: &Option<(Who, Option<MountGuard>)>| {
            who.as_ref().map(|(who, mounted)| (who.clone(), mounted.as_ref().map(|m| m.path().to_owned())))
        };
        Places { given: self.given, user: one(&self.user), group: one(&self.group) }
    }

    fn guards(self) -> impl Iterator<Item = MountGuard> {
        [self.user, self.group].into_iter().flatten().filter_map(|(_, mounted)| mounted)
    }
}

impl Places {
    fn owner(&self) -> Result<Option<Owner>, Failure> {
        if !self.given {
            return Ok(None);
        }
        let root = |who: &Option<(Who, Option<PathBuf>)>| match who {
            Some((_, Some(path))) => Root::open(path).map(Some),
            _ => Ok(None),
        };
        let (user_root, group_root) = (root(&self.user)?, root(&self.group)?);
        let user = self.user.as_ref().map(|(who, _)| (who, user_root.as_ref()));
        let group = self.group.as_ref().map(|(who, _)| (who, group_root.as_ref()));
        Ok(Some(fileop::owner(user, group)?))
    }
}

fn owner_of(kind: &Action) -> Option<&pb::ChownOpt> {
    match kind {
        Action::Copy(a) => a.owner.as_ref(),
        Action::Mkfile(a) => a.owner.as_ref(),
        Action::Mkdir(a) => a.owner.as_ref(),
        Action::Symlink(a) => a.owner.as_ref(),
        Action::Rm(_) => None,
    }
}

/// The trees whose accounts an action looks names up in.
fn named(kind: &Action) -> impl Iterator<Item = i64> {
    let owner = owner_of(kind).cloned().unwrap_or_default();
    [owner.user, owner.group].into_iter().flatten().filter_map(|o| match o.user {
        Some(pb::user_opt::User::ByName(named)) => Some(named.input),
        _ => None,
    })
}

fn describe(kind: &Action) -> String {
    match kind {
        Action::Copy(a) => format!("copy {} {}", a.src, a.dest),
        Action::Mkfile(a) => format!("mkfile {}", a.path),
        Action::Mkdir(a) => format!("mkdir {}", a.path),
        Action::Symlink(a) => format!("symlink {} -> {}", a.newpath, a.oldpath),
        Action::Rm(a) => format!("rm {}", a.path),
    }
}

/// Nanoseconds; -1 leaves times alone.
fn time(nanos: i64) -> Option<Timestamp> {
    (nanos != -1).then(|| Timestamp::from_nanos(nanos))
}

fn perform(
    kind: &Action,
    scope: &base::task::Scope,
    root: &Root,
    from: Option<&Root>,
    owner: Option<Owner>,
) -> Result<(), Failure> {
    match kind {
        Action::Copy(a) => {
            let from = from.ok_or_else(|| Failure::internal("a copy without a source"))?;
            let copy = fileop::Copy {
                src: a.src.clone(),
                dest: a.dest.clone(),
                mode: u32::try_from(a.mode).ok(),
                mode_str: a.mode_str.clone(),
                follow_symlink: a.follow_symlink,
                dir_copy_contents: a.dir_copy_contents,
                attempt_unpack: a.attempt_unpack_docker_compatibility,
                create_dest_path: a.create_dest_path,
                allow_wildcard: a.allow_wildcard,
                allow_empty_wildcard: a.allow_empty_wildcard,
                timestamp: time(a.timestamp),
                include_patterns: a.include_patterns.clone(),
                exclude_patterns: a.exclude_patterns.clone(),
                always_replace_existing_dest_paths: a.always_replace_existing_dest_paths,
            };
            fileop::copy(scope, from, root, &copy, owner)?;
        }
        Action::Mkfile(a) => {
            let make = fileop::MkFile {
                path: a.path.clone(),
                mode: a.mode.cast_unsigned(),
                data: a.data.clone(),
                timestamp: time(a.timestamp),
            };
            fileop::mkfile(root, &make, owner)?;
        }
        Action::Mkdir(a) => {
            let make = fileop::MkDir {
                path: a.path.clone(),
                mode: a.mode.cast_unsigned(),
                make_parents: a.make_parents,
                timestamp: time(a.timestamp),
            };
            fileop::mkdir(root, &make, owner)?;
        }
        Action::Symlink(a) => {
            let make = fileop::Symlink {
                oldpath: a.oldpath.clone(),
                newpath: a.newpath.clone(),
                timestamp: time(a.timestamp),
            };
            fileop::symlink(root, &make, owner)?;
        }
        Action::Rm(a) => {
            let rm = fileop::Rm {
                path: a.path.clone(),
                allow_not_found: a.allow_not_found,
                allow_wildcard: a.allow_wildcard,
            };
            fileop::rm(root, &rm)?;
        }
    }
    Ok(())
}

#[async_trait]
impl Operation<Output> for FileOp {
    async fn cache_map(&self, _: usize, _: &Cx) -> Result<CacheMap, Failure> {
        Ok(self.keyed.cache_map())
    }

    async fn content_key(&self, input: usize, result: &Output, cx: &Cx) -> Result<Option<Digest>, Failure> {
        self.keyed.content_key(&self.worker, input, result, cx).await
    }

    async fn run(&self, inputs: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let count = inputs.len();
        let mut uses = vec![0; count + self.op.actions.len()];
        let mut need = |at: i64| {
            if let Some(uses) = usize::try_from(at).ok().and_then(|at| uses.get_mut(at)) {
                *uses += 1;
            }
        };
        let mut outputs: Vec<Option<usize>> = Vec::new();
        for (index, action) in self.op.actions.iter().enumerate() {
            need(action.input);
            need(action.secondary_input);
            action.action.iter().flat_map(named).for_each(&mut need);
            if let Ok(output) = usize::try_from(action.output) {
                need((count + index) as i64);
                if outputs.len() <= output {
                    outputs.resize(output + 1, None);
                }
                outputs[output] = Some(count + index);
            }
        }
        let trees = inputs.iter().cloned().map(Tree::Done).collect();
        let mut run = Run { op: self, cx, trees, uses, broken: None };
        for (index, action) in self.op.actions.iter().enumerate() {
            cx.scope.check()?;
            let unknown = || Error::Action { index, reason: "unknown kind".to_owned() };
            let kind = action.action.as_ref().ok_or_else(unknown)?;
            match run.act(action, kind).await {
                Ok(made) => run.trees.push(Tree::Open(made)),
                Err(e) => return Err(run.keep(index, action, inputs, e).await),
            }
            run.used(action.input);
            run.used(action.secondary_input);
            named(kind).for_each(|at| run.used(at));
        }
        let mut results = Vec::with_capacity(outputs.len());
        for (output, at) in outputs.into_iter().enumerate() {
            let at = at.ok_or_else(|| Failure::invalid(format!("missing output index {output}")))?;
            results.push(run.read(at as i64).await?);
        }
        Ok(results)
    }
}
