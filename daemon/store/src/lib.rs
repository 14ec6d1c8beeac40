//! Bytes on disk: blobs, snapshots, the database, layers.
