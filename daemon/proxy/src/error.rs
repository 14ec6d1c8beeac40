//! What can go wrong before the proxy serves.

use base::{Classify, Kind};

/// The proxy cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A certificate cannot be made.
    #[error("make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Keys or protocols that TLS does not take.
    #[error("set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The listener has no address.
    #[error("listen for requests of the step: {0}")]
    Listen(#[from] std::io::Error),
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
