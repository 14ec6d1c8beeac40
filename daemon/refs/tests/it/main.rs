//! Refs on a real disk with real overlays. Needs root.

#![allow(clippy::unwrap_used)] // helpers are tests too

mod compose;
mod crash;
mod export;
mod lazy;
mod mutable;
mod space;
mod support;
