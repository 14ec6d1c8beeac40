//! The Dockerfile frontend against answers of the reference's.

// In helpers of tests, which the configuration of the lint does not see as tests.
#![allow(clippy::unwrap_used)]

mod gateway;
mod golden;
