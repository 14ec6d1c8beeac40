//! From a Dockerfile to LLB, and what a frontend may ask.
//!
//! [`gateway`] is the one question upwards: what a frontend may ask of the
//! daemon. The client's own frontend, a frontend in a container and the
//! Dockerfile frontend in this crate are its three users.
//!
//! | module | owns |
//! | --- | --- |
//! | [`gateway`] | the trait, results, sources |
//! | [`dockerfile`] | the language: parser, instructions, lint |
//! | [`dockerui`] | Docker's options, contexts, results of several platforms |
//! | [`sbom`] | the scanner that lists what is in a result |
//! | [`convert`] | instructions to LLB and image configuration; the frontend itself |

pub mod convert;
pub mod dockerfile;
pub mod dockerui;
pub mod gateway;
mod gitref;
pub mod sbom;

pub use convert::build;
