//! Where things are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The root of the source tree.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The directory of what `setup.sh` fetches and makes.
pub fn cache() -> PathBuf {
    let by = |name: &str| std::env::var_os(name).map(PathBuf::from);
    by("BUILDKIT_TEST_CACHE").unwrap_or_else(|| {
        let base = by("XDG_CACHE_HOME").or_else(|| Some(by("HOME")?.join(".cache")));
        base.unwrap_or_else(|| "/root/.cache".into()).join("buildkit-cni")
    })
}

/// Where the programs under test are.
///
/// # Errors
/// When this program is not in a target directory.
pub fn programs() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("BUILDKIT_TEST_BIN") {
        return Ok(PathBuf::from(directory));
    }
    let own = std::env::current_exe().context("path of this program")?;
    // Tests are a directory below the programs.
    let beside = own.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
    Ok(beside.context("this program is not in a target directory")?.to_owned())
}

/// One of the programs under test.
///
/// # Errors
/// When it has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    existing(programs()?.join(name), "build it with `cargo build`")
}

/// An unmodified `docker-buildx`.
///
/// # Errors
/// When it has not been fetched.
pub fn buildx() -> Result<PathBuf> {
    provided(match std::env::var_os("BUILDKIT_TEST_BUILDX") {
        Some(path) => path.into(),
        None => cache().join("tools/docker-buildx"),
    })
}

/// A program or file that `setup.sh` provides.
///
/// # Errors
/// When it is not there.
pub fn provided(path: impl Into<PathBuf>) -> Result<PathBuf> {
    existing(path.into(), "run integration/setup.sh")
}

/// The commands in `README.md` of the block that begins with `first`.
///
/// # Errors
/// When there is none.
pub fn readme(first: &str) -> Result<String> {
    manual("README.md", first)
}

/// The commands in a manual of the block that begins with `first`.
///
/// # Errors
/// When there is none.
pub fn manual(file: &str, first: &str) -> Result<String> {
    let text = std::fs::read_to_string(workspace().join(file))?;
    let start = text.find(&format!("    {first}")).with_context(|| format!("{file} has no {first:?}"))?;
    let lines = text.get(start..).unwrap_or_default().lines().take_while(|l| l.starts_with("    "));
    Ok(lines.map(|l| format!("{}\n", l.trim_start())).collect())
}

fn existing(path: PathBuf, advice: &str) -> Result<PathBuf> {
    if !path.exists() {
        bail!("{} is missing: {advice}", path.display());
    }
    Ok(path)
}
