//! The wire: messages and services, generated from `proto/*.proto`.
//!
//! No logic and no conversions: what a message means is the business of the
//! crate that sends or takes it. The code under `gen` is checked in, so that
//! building needs neither a compiler for protobuf nor a build script; the test
//! `fresh` keeps it in step.
//!
//! Maps are `BTreeMap`s: a message encodes to the same bytes every time, and
//! these are the bytes of Go's deterministic marshalling.

#![allow(clippy::all, missing_docs, unreachable_pub)]

/// LLB.
pub mod pb {
    include!("gen/pb.rs");
}
/// Error details.
pub mod errdefs {
    include!("gen/errdefs.rs");
}
/// Stack traces in errors.
pub mod stack {
    include!("gen/stack.rs");
}
/// Persisted content digests.
pub mod contenthash {
    include!("gen/contenthash.rs");
}

// The nesting below follows the protobuf packages: generated code refers to
// its neighbours by such paths.
pub mod google {
    pub mod rpc {
        include!("gen/google.rpc.rs");
    }
}
pub mod fsutil {
    pub mod types {
        include!("gen/fsutil.types.rs");
    }
}
pub mod containerd {
    pub mod services {
        pub mod content {
            pub mod v1 {
                include!("gen/containerd.services.content.v1.rs");
            }
        }
    }
}
pub mod opentelemetry {
    pub mod proto {
        pub mod collector {
            pub mod trace {
                pub mod v1 {
                    include!("gen/opentelemetry.proto.collector.trace.v1.rs");
                }
            }
        }
    }
}
pub mod moby {
    pub mod buildkit {
        pub mod secrets {
            pub mod v1 {
                include!("gen/moby.buildkit.secrets.v1.rs");
            }
        }
        pub mod v1 {
            include!("gen/moby.buildkit.v1.rs");
            pub mod types {
                include!("gen/moby.buildkit.v1.types.rs");
            }
            pub mod frontend {
                include!("gen/moby.buildkit.v1.frontend.rs");
            }
            pub mod apicaps {
                include!("gen/moby.buildkit.v1.apicaps.rs");
            }
            pub mod sourcepolicy {
                include!("gen/moby.buildkit.v1.sourcepolicy.rs");
                pub mod policysession {
                    include!("gen/moby.buildkit.v1.sourcepolicy.policysession.rs");
                }
            }
        }
    }
    pub mod filesync {
        pub mod v1 {
            include!("gen/moby.filesync.v1.rs");
        }
    }
    pub mod sshforward {
        pub mod v1 {
            include!("gen/moby.sshforward.v1.rs");
        }
    }
    pub mod upload {
        pub mod v1 {
            include!("gen/moby.upload.v1.rs");
        }
    }
    pub mod exporter {
        pub mod v1 {
            include!("gen/moby.exporter.v1.rs");
        }
    }
}

/// `containerd.services.content.v1`.
pub use containerd::services::content::v1 as content;
/// `moby.buildkit.v1`: the control API.
pub use moby::buildkit::v1 as control;
/// `moby.buildkit.v1.frontend`: the gateway API.
pub use moby::buildkit::v1::frontend as gateway;

/// All of the above, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
