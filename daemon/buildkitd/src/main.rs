//! The build daemon.

mod config;
mod flags;

fn main() {}
