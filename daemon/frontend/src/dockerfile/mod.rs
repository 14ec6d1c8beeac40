//! The Dockerfile language: from bytes to stages of typed instructions, and
//! what can be said about them without building anything.
//!
//! Everything here is pure and total: any bytes give a value or an error with
//! a place, never a panic. Nothing is expanded while parsing: variables are
//! replaced when an instruction is converted, through
//! [`Command::expand`](instructions::Command::expand), because only then their
//! values are known.
//!
//! | module | owns |
//! | --- | --- |
//! | [`directives`] | `# syntax=`, `# escape=`, `# check=` at the top of a file |
//! | [`parser`] | lines, continuations, comments, heredocs, words |
//! | [`shell`] | quotes and `${…}` |
//! | [`instructions`] | every instruction and its flags, stages |
//! | [`lint`] | the rules, their texts and the ones that need only the parse |
//! | [`giturl`] | references to git repositories |
//! | [`subrequests`] | the documents of outline, targets, describe and lint |
//!
//! Texts of errors and warnings are part of the interface: people and programs
//! search for them.

pub mod directives;
pub mod error;
pub mod giturl;
pub mod instructions;
pub mod lint;
pub mod parser;
pub mod shell;
pub mod subrequests;
pub mod suggest;
mod text;

pub use error::{Error, Lines, Problem};

#[cfg(test)]
mod hostile;
