//! Both ends of sessions, over a real socket.

#![allow(clippy::unwrap_used)] // this is all test code

mod exports;
mod harness;
mod hostile;
mod services;
mod sync;
