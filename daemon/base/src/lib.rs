//! The vocabulary every other crate speaks. No I/O, no protocol, no policy.
//!
//! A word that two crates must agree on lives here once: what a digest is, how
//! a platform is written, how an error says what kind it is, how progress is
//! reported and how work is cancelled.

pub mod compatibility;
pub mod descriptor;
pub mod digest;
pub mod failure;
pub mod filter;
pub mod gojson;
pub mod gopath;
pub mod gotext;
pub mod gourl;
pub mod id;
pub mod once;
pub mod patterns;
pub mod platform;
pub mod progress;
pub mod rawjson;
pub mod reference;
pub mod secret;
pub mod size;
pub mod task;
pub mod time;
pub mod version;

pub use compatibility::Compatibility;
pub use descriptor::Descriptor;
pub use digest::Digest;
pub use failure::{Classify, Detail, Failure, Kind};
pub use platform::Platform;
pub use secret::Secret;
pub use time::Timestamp;
