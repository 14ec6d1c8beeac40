//! The harness for black-box tests: it starts the finished programs next to
//! real clients and services, and sees to it that nothing of them remains.
//!
//! Every thing that runs is a guard: it is stopped and reaped when the guard is
//! dropped, also when a test panics, and it goes away when the test process is
//! killed. The programs under test are those next to the test binary in the
//! target directory, or those in `BUILDKIT_TEST_BIN`.
//!
//! [`suite::main`] runs the cases of one file against one [`Bench`], so that a
//! daemon is started once per file.

pub mod bench;
pub mod certificates;
pub mod cgroup;
pub mod clients;
pub mod containerd;
pub mod daemon;
pub mod dockerd;
pub mod gateway;
pub mod git;
pub mod grpc;
pub mod guest;
pub mod http;
pub mod image;
pub mod layout;
pub mod leak;
pub mod llb;
pub mod machine;
pub mod mock;
pub mod places;
pub mod process;
pub mod project;
pub mod rawjson;
pub mod registry;
pub mod sources;
pub mod stores;
pub mod suite;

pub use bench::Bench;
pub use clients::{Buildctl, Buildx};
pub use containerd::Containerd;
pub use daemon::{Daemon, Net, Options};
pub use dockerd::Dockerd;
pub use machine::Machine;
pub use process::{Run, Service, wait_for};
pub use project::Project;
pub use registry::Registry;
pub use stores::Store;
