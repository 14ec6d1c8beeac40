//! Writing graphs: what frontends and programs call to say what to build.
//!
//! A [`State`] is a tree of files to be, together with what the next process in
//! it starts with. States are values: every call gives a new one, and the same
//! calls give the same bytes, which are those of moby/buildkit's Go client.

mod definition;
mod exec;
mod file;
mod marshal;
mod node;
mod source;
mod state;

pub use exec::{CacheSharing, Device, Exec, Mount, ProxyEnv, Run, Secret, Ssh};
pub use file::{Chmod, Copy, FileAction, FileOwner, Owner};
pub use marshal::{Defaults, head};
pub use node::{Later, Options, Output, SourceLocation, SourceMap};
pub use source::{Differ, Git, Http, Image, Local, OciLayout, ResolveMode};
pub use state::{EnvList, State};
