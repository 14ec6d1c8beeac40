//! The error of this crate: which call, on what, and what the kernel said.

use std::path::PathBuf;

use base::Kind;

/// A system call that failed.
///
/// Shown as Go programs show it, `lstat /x: no such file or directory`: people
/// and scripts look for that text. It holds all there is to say, hence no
/// `Error::source`.
#[derive(Debug)]
pub struct Error {
    /// The call, or what it was to do.
    pub call: &'static str,
    /// What it was done to.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// With this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `call` on `path` failed with `source`.
    pub fn new(call: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        Self { call, path: path.into(), source: source.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.call, self.path.display(), text(&self.source))
    }
}

impl std::error::Error for Error {}

/// What went wrong, in the words of Go: `no such file or directory`.
pub fn text(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if error.raw_os_error().is_some() => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

impl base::Classify for Error {
    fn kind(&self) -> Kind {
        use std::io::ErrorKind as E;
        match self.source.kind() {
            E::NotFound => Kind::NotFound,
            E::AlreadyExists => Kind::AlreadyExists,
            E::PermissionDenied => Kind::PermissionDenied,
            E::StorageFull | E::QuotaExceeded => Kind::ResourceExhausted,
            E::InvalidInput | E::NotADirectory | E::IsADirectory | E::InvalidFilename => {
                Kind::InvalidArgument
            }
            _ => Kind::Internal,
        }
    }
}
