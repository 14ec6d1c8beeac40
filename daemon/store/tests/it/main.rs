//! The store on a real disk with real overlays. Needs root.

#![allow(clippy::unwrap_used)] // helpers are tests too

mod blobs;
mod database;
mod golden;
mod hostile;
mod layers;
mod support;
mod trees;
