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

mod error;
mod held;
mod image;
mod model;
mod usage;

pub use error::Error;
pub use held::{MountGuard, Mutable, Options, Ref, Refs};
pub use image::{BlobSource, Bytes, Layer, LayerBlob};
pub use model::{NewRef, RecordType};
pub use store::{Compression, CompressionKind};
pub use usage::{PrunePolicy, Usage, default_policies};
