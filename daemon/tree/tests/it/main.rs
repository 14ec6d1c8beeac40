//! Trees on disk: digests and file actions against golden values.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod actions;
mod checksum;
mod fixture;
mod unpack;
