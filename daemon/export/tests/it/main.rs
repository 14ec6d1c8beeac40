//! Results on their way out: real refs, a real session, a small registry.
//! Needs root.

#![allow(clippy::unwrap_used)] // helpers are tests too

mod archives;
mod directories;
mod images;
mod support;
