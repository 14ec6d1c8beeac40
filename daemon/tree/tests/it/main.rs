//! Trees on disk: digests and file actions against golden values.

mod checksum;
mod fixture;
mod unpack;
