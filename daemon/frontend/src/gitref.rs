//! Repositories where a path or URL may stand.

use base::{Failure, Kind};

use crate::dockerfile::giturl::GitRef;

/// The repository that `text` names, if it names one.
///
/// # Errors
/// When it names one in a way nobody understands.
pub(crate) fn parse(text: &str) -> Result<Option<GitRef>, Failure> {
    GitRef::parse(text).map_err(|e| Failure::new(Kind::Unknown, e.to_string()))
}
