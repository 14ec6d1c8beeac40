//! The store on a real disk with real overlays. Needs root.

mod blobs;
mod database;
mod golden;
mod hostile;
mod layers;
mod support;
mod trees;
