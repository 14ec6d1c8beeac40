//! From a Dockerfile to LLB, and what a frontend may ask.
//!
//! [`gateway`] is the one question upwards: what a frontend may ask of the
//! daemon. The client's own frontend, a frontend in a container and the
//! Dockerfile frontend in this crate are its three users.

pub mod gateway;

pub mod dockerfile;
