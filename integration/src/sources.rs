//! The files of this source tree, for the tests that look at them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// All Rust files.
///
/// # Errors
/// When a directory cannot be read.
pub fn rust(root: &Path) -> Result<Vec<PathBuf>> {
    Ok(text(root)?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs")).collect())
}

/// All files that people write, except what version control and builds keep.
///
/// # Errors
/// When a directory cannot be read.
pub fn text(root: &Path) -> Result<Vec<PathBuf>> {
    const KINDS: [&str; 11] =
        ["rs", "toml", "md", "sh", "yml", "yaml", "json", "proto", "service", "socket", "Dockerfile"];
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        let entries = std::fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() && !matches!(name.as_str(), "target" | ".git") {
                open.push(entry.path());
            }
            let known = name.rsplit('.').next().is_some_and(|e| KINDS.contains(&e)) || name == "Makefile";
            if kind.is_file() && known {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
