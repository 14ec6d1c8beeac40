//! Paths inside a root, resolved against a directory descriptor.
