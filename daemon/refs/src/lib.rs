//! Build results on disk, as values somebody holds.
//!
//! A [`Ref`] is an immutable result and a [`Mutable`] one that is being made.
//! Holding either keeps it, and everything below it, from being collected.
//! What a ref is (a layer on a parent, a merge, a diff), where its snapshot
//! and blobs are and what other crates noted about it is one record in the
//! store's database, written in one transaction with what it names.
//!
//! Layers of images are lazy: known by their descriptors, fetched and unpacked
//! when somebody needs the files. This crate must not know registries,
//! sessions or the solver; bytes come through [`BlobSource`].
//!
//! Where to find what: `model` is what is written down, `ledger` the records
//! and the rules for changing them, `held` the guards, `mutable` and `image`
//! how refs come to be, `lazy` how layers arrive, `export` how they leave,
//! `compose` merges and diffs, `usage` and `prune` the disk.

mod compose;
mod error;
mod export;
mod fetch;
mod held;
mod image;
mod lazy;
mod ledger;
mod model;
mod mutable;
mod open;
mod prune;
mod usage;

pub use error::Error;
pub use export::LayerBlob;
pub use fetch::{BlobSource, Bytes};
pub use held::{MountGuard, Ref};
pub use image::Layer;
pub use model::{NewRef, RecordType};
pub use mutable::Mutable;
pub use open::{Options, Refs};
pub use prune::{PrunePolicy, default_policies, policies_for};
pub use store::{Compression, CompressionKind};
pub use usage::Usage;
