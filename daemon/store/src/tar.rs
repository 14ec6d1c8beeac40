//! The tar format, as layers use it.
//!
//! The writer chooses between USTAR and PAX exactly as Go's `archive/tar`
//! does, because the digest of a layer is the digest of these bytes. The
//! reader takes what is found in the wild (V7, USTAR, PAX, GNU long names,
//! both GNU and PAX sparse maps, base-256 numbers) and trusts none of it:
//! sizes are bounded, checksums compared, a short stream is an error.

mod header;
mod reader;
mod writer;

pub use header::{Header, Kind, XATTR};
pub use reader::Reader;
pub use writer::Writer;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;
