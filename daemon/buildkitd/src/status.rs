//! Why the daemon did not start, as a status for whoever started it.
//!
//! The numbers are those of `sysexits.h`, which service managers know by name.
//! The unit file tells from them whether another attempt makes sense.

use std::fmt;
use std::process::ExitCode;

/// The kind of a refusal to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Something the machine lacks: an OCI runtime, overlay mounts.
    Unavailable = 69,
    /// A disk cannot be used, or is full.
    Disk = 74,
    /// Somebody else has what is needed: the root directory, the socket.
    Busy = 75,
    /// The daemon may not do what it has to.
    NoPermission = 77,
    /// The configuration cannot be used.
    Config = 78,
}

/// A refusal with its kind. Shown as one line.
#[derive(Debug)]
struct Refusal {
    status: Status,
    message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// An error with a status.
pub(crate) fn refusal(status: Status, message: impl fmt::Display) -> anyhow::Error {
    Refusal { status, message: message.to_string() }.into()
}

/// Gives a status to errors that have none.
pub(crate) trait Because<T> {
    /// The error means `status`, unless it knows better itself.
    fn because(self, status: Status) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Because<T> for Result<T, E> {
    fn because(self, status: Status) -> anyhow::Result<T> {
        self.map_err(|error| {
            let error = error.into();
            if error.chain().any(|e| e.is::<Refusal>()) {
                return error;
            }
            refusal(status, one_line(&error))
        })
    }
}

/// The error in one line: what went wrong, why, and what to do.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut text = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    if is_full(&text) {
        text.push_str("; free some space there, or choose another place with --root");
    }
    text
}

/// The status for `error`.
pub(crate) fn of(error: &anyhow::Error) -> ExitCode {
    let refusal = error.chain().find_map(|e| e.downcast_ref::<Refusal>());
    match refusal.map(|r| r.status) {
        // A full disk is one, whatever was being done with it.
        _ if is_full(&format!("{error:#}")) => ExitCode::from(Status::Disk as u8),
        Some(status) => ExitCode::from(status as u8),
        None => ExitCode::FAILURE,
    }
}

/// Errors of the store carry text only.
fn is_full(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("no space left on device") || text.contains("disk quota exceeded")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn the_first_status_stays_and_the_line_is_one() {
        let error = Err::<(), _>(anyhow!("a\nb")).because(Status::Config);
        let error = error.context("c").because(Status::Busy).unwrap_err();
        assert_eq!(one_line(&error), "c: a b");
        assert_eq!(of(&error), ExitCode::from(78));
        assert_eq!(of(&anyhow!("x")), ExitCode::FAILURE);
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let error = Err::<(), _>(anyhow!("write /x: No space left on device (os error 28)"));
        let error = error.because(Status::Config).unwrap_err();
        assert!(one_line(&error).contains("--root"));
        assert_eq!(of(&error), ExitCode::from(74));
    }
}
