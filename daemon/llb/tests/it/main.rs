//! Graphs and keys against those of the reference.

// In helpers of tests, which the configuration of the lint does not see as tests.
#![allow(clippy::unwrap_used)]

mod golden;
mod hostile;
