//! What can go wrong between the daemon and a registry.

use std::io;

use base::{Classify, Digest, Failure, Kind};

/// The result of talking to a registry.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A problem, and the image or blob it is about.
#[derive(Debug, thiserror::Error)]
#[error("{subject}: {problem}")]
pub struct Error {
    /// A normalised reference, or the name of a host.
    pub subject: String,
    /// What went wrong. Its own sources are part of its text's chain.
    #[source]
    pub problem: Box<Problem>,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The registry does not have it.
    #[error("not found{}", detail(.message))]
    NotFound {
        /// What the registry said, empty when it said nothing.
        message: String,
    },
    /// The registry does not let us.
    #[error(
        "{} access denied, repository does not exist or may require authorization: {status} from {method} {url}{}{}",
        if *.push { "push" } else { "pull" }, detail(.message), anonymously(.anonymous)
    )]
    Denied {
        /// Pushing, or pulling.
        push: bool,
        /// The request's method.
        method: String,
        /// The request's address without its query.
        url: String,
        /// 401 or 403.
        status: u16,
        /// What the registry said.
        message: String,
        /// No credentials were known for the host.
        anonymous: bool,
    },
    /// The registry answered with a status nobody expects.
    #[error("unexpected status from {method} request to {url}: {status}{}{}", detail(.message), anonymously(.anonymous))]
    Status {
        /// The request's method.
        method: String,
        /// The request's address without its query.
        url: String,
        /// Such as `500 Internal Server Error`.
        status: String,
        /// The same as a number.
        code: u16,
        /// What the registry said.
        message: String,
        /// No credentials were known for the host.
        anonymous: bool,
    },
    /// No answer came, or not all of it.
    #[error("{method} {url}{}", wants_certificate(source.as_ref()))]
    Transport {
        /// The request's method.
        method: String,
        /// The request's address without its query.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer stopped coming.
    #[error("{url}: no data for {seconds} seconds")]
    Stalled {
        /// The request's address without its query.
        url: String,
        /// How long.
        seconds: u64,
    },
    /// The answer is not what a registry answers.
    #[error("{url}: invalid answer: {reason}")]
    Protocol {
        /// The request's address without its query.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The answer's size is not the size in the descriptor.
    #[error("size {actual}, expected {expected}")]
    Size {
        /// From the descriptor.
        expected: u64,
        /// As announced or received; at least this much.
        actual: u64,
    },
    /// The body ended too early, again and again.
    #[error("body ended at {actual} of {expected} bytes")]
    Truncated {
        /// From the descriptor.
        expected: u64,
        /// Received.
        actual: u64,
    },
    /// The bytes are not those that were named.
    #[error("got digest {actual}, expected {expected}")]
    Digest {
        /// The name.
        expected: Digest,
        /// The bytes'.
        actual: Digest,
    },
    /// Larger than anybody should send.
    #[error("rejecting {size} byte document, the limit is {limit}")]
    TooLarge {
        /// As announced or received; at least this much.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The digest's algorithm cannot be verified here.
    #[error("digest algorithm {0} is not supported")]
    Algorithm(String),
    /// A manifest that is none.
    #[error("invalid manifest {digest}: {reason}")]
    Manifest {
        /// Which one.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// The index has nothing for the platform.
    #[error("no match for platform in manifest {digest}: not found")]
    Platform {
        /// The index.
        digest: Digest,
        /// The platform.
        platform: String,
    },
    /// The first manifest format, which nobody should use.
    #[error(
        "image manifest version 2, schema 1 is not supported any more; push the image again with a current client"
    )]
    SchemaOne,
    /// No token for the registry.
    #[error("{}", if *.anonymous { "failed to fetch anonymous token" } else { "failed to fetch oauth token" })]
    Token {
        /// No credentials were known for the host.
        anonymous: bool,
        /// Why.
        #[source]
        source: Box<Problem>,
    },
    /// The session that has the credentials failed.
    #[error("credentials: {0}")]
    Credentials(Failure),
    /// A certificate, key or address in the configuration.
    #[error("{what}")]
    Config {
        /// What is wrong with what.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// What is to be pushed could not be read.
    #[error("read what is to be pushed")]
    Source(#[source] io::Error),
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn anonymously(anonymous: &bool) -> &'static str {
    if *anonymous { " (no credentials were used)" } else { "" }
}

/// What TLS complained about, if that is what `error` is about.
pub(crate) fn tls_error<'a>(
    error: &'a (dyn std::error::Error + Send + Sync + 'static),
) -> Option<&'a rustls::Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error hides what it was made of from `source`.
        next = match e.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => e.source(),
        };
    }
    None
}

/// The other side does not know who we are. OpenSSL and Go say it in different ways.
fn is_stranger(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(
            Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::CertificateUnknown
                | Alert::CertificateExpired
                | Alert::UnknownCA
        ))
    )
}

fn wants_certificate(error: &(dyn std::error::Error + Send + Sync + 'static)) -> &'static str {
    if is_stranger(error) {
        ": the registry wants a client certificate that it trusts (keypair in buildkitd.toml)"
    } else {
        ""
    }
}

impl Problem {
    /// The problem of `subject`.
    pub(crate) fn of(self, subject: impl ToString) -> Error {
        Error { subject: subject.to_string(), problem: Box::new(self) }
    }

    pub(crate) fn config(what: impl Into<String>) -> Self {
        Self::Config { what: what.into(), source: None }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } | Self::Platform { .. } => Kind::NotFound,
            Self::Denied { status: 401, .. } => Kind::Unauthenticated,
            Self::Denied { .. } => Kind::PermissionDenied,
            Self::Status { code: 429, .. } => Kind::ResourceExhausted,
            Self::Transport { source, .. } if is_stranger(source.as_ref()) => Kind::Unauthenticated,
            Self::Transport { .. } | Self::Stalled { .. } | Self::Truncated { .. } => Kind::Unavailable,
            Self::Size { .. } | Self::Digest { .. } => Kind::DataLoss,
            Self::SchemaOne | Self::Algorithm(_) => Kind::Unimplemented,
            Self::Token { source, .. } => source.kind(),
            Self::Credentials(failure) => failure.kind(),
            Self::TooLarge { .. } | Self::Manifest { .. } => Kind::FailedPrecondition,
            Self::Status { .. } | Self::Protocol { .. } | Self::Config { .. } | Self::Source(_) => {
                Kind::Unknown
            }
        }
    }
}

impl Error {
    /// The registry does not have it.
    pub fn is_not_found(&self) -> bool {
        matches!(*self.problem, Problem::NotFound { .. } | Problem::Platform { .. })
    }

    /// The error that a reader of this crate returned as an I/O error.
    ///
    /// # Errors
    /// The I/O error itself when it is not ours.
    pub fn from_io(error: io::Error) -> std::result::Result<Self, io::Error> {
        error.downcast::<Self>()
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        self.problem.kind()
    }

    fn hint(&self) -> Option<String> {
        match &*self.problem {
            Problem::Denied { anonymous: true, .. } => {
                Some("no credentials were used; log in to the registry on the client's side".to_owned())
            }
            _ => None,
        }
    }
}
