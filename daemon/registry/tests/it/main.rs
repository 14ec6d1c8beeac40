//! The registry client against registries that answer as told, and a real one.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod auth;
mod fetch;
mod hostile;
mod mock;
mod push;
mod real;
mod tls;
