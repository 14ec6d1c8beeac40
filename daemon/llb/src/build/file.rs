//! Changes to files.

use proto::pb;
use proto::pb::file_action::Action;

use super::marshal::Written;
use super::node::Output;
use super::state::State;
use base::gopath;

use crate::{Error, attr};

/// A change to files. Relative paths are relative to the state's directory.
#[derive(Debug, Clone)]
pub enum FileAction {
    /// Makes a directory.
    Mkdir {
        /// Where.
        path: String,
        /// Permissions.
        mode: u32,
        /// And those above it.
        parents: bool,
        /// Whose.
        owner: Option<FileOwner>,
        /// Nanoseconds since 1970.
        created: Option<i64>,
    },
    /// Makes a file.
    Mkfile {
        /// Where.
        path: String,
        /// Permissions.
        mode: u32,
        /// What is in it.
        data: Vec<u8>,
        /// Whose.
        owner: Option<FileOwner>,
        /// Nanoseconds since 1970.
        created: Option<i64>,
    },
    /// Makes a link.
    Symlink {
        /// What it says.
        target: String,
        /// Where.
        path: String,
        /// Whose.
        owner: Option<FileOwner>,
        /// Nanoseconds since 1970.
        created: Option<i64>,
    },
    /// Removes files.
    Rm {
        /// Where.
        path: String,
        /// There may be none.
        allow_not_found: bool,
        /// The path is a pattern.
        allow_wildcard: bool,
    },
    /// Copies files of another state.
    Copy(Box<Copy>),
}

/// Files of another state.
#[derive(Debug, Clone)]
pub struct Copy {
    /// The state.
    pub from: State,
    /// Where in it.
    pub src: String,
    /// Where to.
    pub dest: String,
    /// Permissions; without, those of the source.
    pub chmod: Option<Chmod>,
    /// Whose; without, root's.
    pub owner: Option<FileOwner>,
    /// A link in the last place is followed.
    pub follow_symlinks: bool,
    /// Of a directory, what is in it.
    pub contents_only: bool,
    /// Only what matches.
    pub include_patterns: Vec<String>,
    /// Not what matches.
    pub exclude_patterns: Vec<String>,
    /// What must be there.
    pub required_paths: Vec<String>,
    /// An archive is unpacked.
    pub attempt_unpack: bool,
    /// Directories above the destination are made.
    pub create_dest_path: bool,
    /// The source is a pattern.
    pub allow_wildcard: bool,
    /// Nothing need match it.
    pub allow_empty_wildcard: bool,
    /// What is in the way is replaced.
    pub always_replace: bool,
    /// Nanoseconds since 1970.
    pub created: Option<i64>,
}

impl Copy {
    /// A plain copy.
    pub fn new(from: &State, src: impl Into<String>, dest: impl Into<String>) -> Self {
        Self {
            from: from.clone(),
            src: src.into(),
            dest: dest.into(),
            chmod: None,
            owner: None,
            follow_symlinks: false,
            contents_only: false,
            include_patterns: Vec::new(),
            exclude_patterns: Vec::new(),
            required_paths: Vec::new(),
            attempt_unpack: false,
            create_dest_path: false,
            allow_wildcard: false,
            allow_empty_wildcard: false,
            always_replace: false,
            created: None,
        }
    }
}

/// Permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    /// These.
    Mode(u32),
    /// A change, such as `u+x`.
    Symbolic(String),
}

/// Whose a file is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileOwner {
    /// The user.
    pub user: Option<Owner>,
    /// The group.
    pub group: Option<Owner>,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// By number.
    Id(u32),
    /// By name, looked up in the state the file is put into.
    Name(String),
}

impl FileOwner {
    /// Reads `user[:group]`. `root` is 0; what is no number is a name.
    pub fn parse(text: &str) -> Self {
        let owner = |text: &str| match text {
            "root" => Owner::Id(0),
            "" => Owner::Id(0),
            text => match text.parse::<i32>() {
                // A negative number wraps, as in the reference.
                Ok(id) => Owner::Id(id as u32),
                Err(_) => Owner::Name(text.to_owned()),
            },
        };
        match text.split_once(':') {
            Some((user, group)) => Self { user: Some(owner(user)), group: Some(owner(group)) },
            None => Self { user: Some(owner(text)), group: None },
        }
    }

    /// By numbers.
    pub fn ids(user: u32, group: u32) -> Self {
        Self { user: Some(Owner::Id(user)), group: Some(Owner::Id(group)) }
    }

    fn write(&self, base: i64) -> pb::ChownOpt {
        let owner = |o: &Owner| pb::UserOpt {
            user: Some(match o {
                Owner::Id(id) => pb::user_opt::User::ById(*id),
                Owner::Name(name) => {
                    pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.clone(), input: base })
                }
            }),
        };
        pb::ChownOpt { user: self.user.as_ref().map(owner), group: self.group.as_ref().map(owner) }
    }
}

/// Changes as a vertex: each to what the one before made.
pub(super) struct FileNode {
    pub(super) base: Option<Output>,
    pub(super) dir: String,
    pub(super) actions: Vec<FileAction>,
}

impl FileNode {
    pub(super) fn inputs(&self) -> Vec<&Output> {
        let copied = self.actions.iter().rev().filter_map(|a| match a {
            FileAction::Copy(copy) => copy.from.output.as_ref(),
            _ => None,
        });
        self.base.iter().chain(copied).collect()
    }

    pub(super) fn take_inputs(&mut self) -> Vec<Output> {
        let copied = std::mem::take(&mut self.actions).into_iter().filter_map(|a| match a {
            FileAction::Copy(mut copy) => copy.from.output.take(),
            _ => None,
        });
        self.base.take().into_iter().chain(copied).collect()
    }

    pub(super) fn write(&self, inputs: &mut Vec<pb::Input>, written: &Written) -> Result<pb::FileOp, Error> {
        if self.actions.is_empty() {
            return Err(Error::invalid("action is required"));
        }
        let base = match &self.base {
            Some(base) => written.add_input(base, inputs)?,
            None => attr::NONE,
        };
        let mut seconds = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            seconds.push(match action {
                FileAction::Copy(copy) => match &copy.from.output {
                    Some(from) => written.add_input(from, inputs)?,
                    None => attr::NONE,
                },
                _ => attr::NONE,
            });
        }
        let last = self.actions.len() - 1;
        let actions = self
            .actions
            .iter()
            .zip(seconds)
            .enumerate()
            .map(|(at, (action, secondary_input))| pb::FileAction {
                input: if at == 0 { base } else { (inputs.len() + at - 1) as i64 },
                secondary_input,
                output: if at == last { 0 } else { attr::NONE },
                action: Some(self.action(action, base)),
            })
            .collect();
        Ok(pb::FileOp { actions })
    }

    fn action(&self, action: &FileAction, base: i64) -> Action {
        let owner = |o: &Option<FileOwner>| o.as_ref().map(|o| o.write(base));
        let time = |t: &Option<i64>| t.unwrap_or(-1);
        let permissions = |mode: u32| (mode & 0o777) as i32;
        match action {
            FileAction::Mkdir { path, mode, parents, owner: o, created } => {
                Action::Mkdir(pb::FileActionMkDir {
                    path: normalize(&self.dir, path, false),
                    mode: permissions(*mode),
                    make_parents: *parents,
                    owner: owner(o),
                    timestamp: time(created),
                })
            }
            FileAction::Mkfile { path, mode, data, owner: o, created } => {
                Action::Mkfile(pb::FileActionMkFile {
                    path: normalize(&self.dir, path, false),
                    mode: permissions(*mode),
                    data: data.clone(),
                    owner: owner(o),
                    timestamp: time(created),
                })
            }
            FileAction::Symlink { target, path, owner: o, created } => {
                Action::Symlink(pb::FileActionSymlink {
                    oldpath: target.clone(),
                    newpath: path.clone(),
                    owner: owner(o),
                    timestamp: time(created),
                })
            }
            FileAction::Rm { path, allow_not_found, allow_wildcard } => Action::Rm(pb::FileActionRm {
                path: normalize(&self.dir, path, false),
                allow_not_found: *allow_not_found,
                allow_wildcard: *allow_wildcard,
            }),
            FileAction::Copy(copy) => {
                let (mode, mode_str) = match &copy.chmod {
                    None => (-1, String::new()),
                    Some(Chmod::Mode(mode)) => (*mode as i32, String::new()),
                    Some(Chmod::Symbolic(text)) => (0, text.clone()),
                };
                Action::Copy(pb::FileActionCopy {
                    src: source_path(copy),
                    dest: normalize(&self.dir, &copy.dest, true),
                    owner: owner(&copy.owner),
                    mode,
                    follow_symlink: copy.follow_symlinks,
                    dir_copy_contents: copy.contents_only,
                    attempt_unpack_docker_compatibility: copy.attempt_unpack,
                    create_dest_path: copy.create_dest_path,
                    allow_wildcard: copy.allow_wildcard,
                    allow_empty_wildcard: copy.allow_empty_wildcard,
                    timestamp: time(&copy.created),
                    include_patterns: copy.include_patterns.clone(),
                    exclude_patterns: copy.exclude_patterns.clone(),
                    always_replace_existing_dest_paths: copy.always_replace,
                    mode_str,
                    required_paths: copy.required_paths.clone(),
                })
            }
        }
    }
}

fn source_path(copy: &Copy) -> String {
    let path = gopath::clean(&copy.src);
    let dir = if gopath::is_abs(&path) { "/" } else { copy.from.get_dir() };
    gopath::join([dir, path.as_str()])
}

/// An absolute path; what tells a directory from a file at its end is kept.
fn normalize(parent: &str, path: &str, keep_slash: bool) -> String {
    let mut clean = gopath::clean(path);
    if !gopath::is_abs(&clean) {
        clean = gopath::join(["/", parent, clean.as_str()]);
    }
    if keep_slash {
        if path.ends_with('/') && !clean.ends_with('/') {
            clean.push('/');
        } else if path.ends_with("/.") {
            if clean != "/" {
                clean.push('/');
            }
            clean.push('.');
        }
    }
    clean
}
