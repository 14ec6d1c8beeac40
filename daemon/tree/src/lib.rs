//! Directory trees: content digests and file actions.
//!
//! Both work on a [`sys::path::Root`], so that whatever a tree holds, neither
//! reads nor writes outside it. Everything here blocks; callers run it off the
//! async threads.

pub mod contenthash;
pub mod fileop;
pub mod gomode;

pub use contenthash::ContentHash;
