//! Linux, safely wrapped: the only crate of the daemon with `unsafe` in it.
//!
//! Each wrapper is small, says what the kernel requires and returns errors that
//! name the call and the path.

#![allow(unsafe_code)] // this is the place for it; every block says why it is sound

pub mod directory;
pub mod error;
pub mod mount;
pub mod netns;
pub mod path;
pub mod process;
pub mod xattr;

pub use error::{Error, Result};
