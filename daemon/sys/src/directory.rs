//! Directories for state, whose permissions do not depend on the umask.

use std::fs::{DirBuilder, Permissions, set_permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::{Error, Result};

/// Permissions of what is nobody else's.
pub const PRIVATE: u32 = 0o700;

/// Makes a directory, and those above it, with these permissions; one that is there keeps its
/// own.
///
/// # Errors
/// What the system says.
pub fn make(dir: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(|e| Error::new("create", dir, e))
}

/// Makes a directory, and those above it, that has these permissions also where it was there.
///
/// # Errors
/// What the system says.
pub fn own(dir: &Path, mode: u32) -> Result<()> {
    make(dir, mode)?;
    set_permissions(dir, Permissions::from_mode(mode)).map_err(|e| Error::new("chmod", dir, e))
}
