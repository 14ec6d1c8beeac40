//! Runs one process in a sandbox.
