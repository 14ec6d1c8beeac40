//! The tunnel to a client and what is asked through it.
//!
//! A client opens `Control.Session` and speaks a second HTTP/2 connection
//! inside it, in which the client is the *server*: the daemon asks it for
//! files, secrets, credentials, and hands results back. This crate owns both
//! ends of that connection:
//!
//! * [`Sessions`] is the daemon's register: [`Sessions::attach`] takes a
//!   client's stream, [`Sessions::get`] finds (or waits for) a session and gives
//!   a [`Caller`], whose methods are the questions one may ask: [`Caller::sync_dir`],
//!   [`Caller::send_dir`], [`Caller::credentials`], [`Caller::secret`] and so on.
//! * [`client`] is the other end, for `buildctl` and for tests.
//! * [`Patient`] is how a client talks to a daemon that may be replaced meanwhile.
//! * [`fs`] is the file transfer itself, in both directions.
//! * [`status`] turns errors into gRPC answers with typed details and back.
//!
//! A peer is hostile until shown otherwise: names, orders, sizes and ids are
//! checked where they come in. When a session is lost, everything that waits
//! for it fails with the reason.

mod calls;
pub mod client;
mod error;
pub mod fs;
pub mod json;
pub mod metadata;
mod patient;
mod sessions;
pub mod status;
pub mod tunnel;

pub use calls::auth::{Token, TokenRequest};
pub use calls::content::{BlobInfo, BlobReader, BlobWriter};
pub use calls::exporter::ExporterSpec;
pub use calls::files::{Deliver, FileWriter, SyncDir};

pub use calls::ssh::{Forwarded, SocketOptions};
pub use calls::upload::Upload;
pub use error::Error;
pub use patient::Patient;
pub use sessions::{Attached, Caller, Sessions};

/// The largest message in either direction.
pub const MAX_MESSAGE: usize = 16 << 20;
/// HTTP/2 flow control window of one stream. Every server and endpoint of this
/// program sets it, together with [`CONNECTION_WINDOW`]: HTTP/2 closes a
/// connection on which many small frames wait unread, and how many it suffers
/// grows with these windows. Transfers of many small files are exactly that.
pub const STREAM_WINDOW: u32 = 512 << 10;
/// HTTP/2 flow control window of one connection.
pub const CONNECTION_WINDOW: u32 = 128 << 20;
