//! Builds through the real solver, with operations made for the occasion.

#![allow(clippy::unwrap_used)] // a test may

mod builds;
mod progress;
mod world;
