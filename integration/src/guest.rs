//! Another kernel than this machine's: that of Debian 12 as a program, user-mode Linux. It
//! sees this machine's files, can write only in memory, and has nothing of its network. Its
//! cgroups are mounted as asked, with controllers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::places;
use crate::process::Service;

const PROGRAM: &str = "/usr/bin/linux.uml";
/// It is some twenty times as slow as this machine.
const PATIENCE: Duration = Duration::from_secs(600);
/// In the environment of a program that runs in it: how cgroups are mounted there.
const INSIDE: &str = "BUILDKIT_TEST_GUEST";

/// How cgroups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    /// All controllers in one.
    Unified,
    /// Each controller in one of its own.
    Legacy,
}

impl Hierarchy {
    const ALL: [Self; 2] = [Self::Unified, Self::Legacy];

    fn name(self) -> &'static str {
        match self {
            Self::Unified => "unified",
            Self::Legacy => "legacy",
        }
    }
}

/// How cgroups are mounted in the kernel started here that this program runs in, if it does.
pub fn inside() -> Option<Hierarchy> {
    let name = std::env::var(INSIDE).ok()?;
    Hierarchy::ALL.into_iter().find(|h| h.name() == name)
}

/// Runs the cases of this program in that kernel, one at a time: it has one processor. All
/// have to succeed.
///
/// # Errors
/// When it does not, with all that has been said.
pub fn run(hierarchy: Hierarchy) -> Result<()> {
    let out = TempDir::with_prefix("bk-guest-")?;
    let own = std::env::current_exe().context("path of this program")?;
    let programs = places::programs()?;
    let beside = own.parent().context("directory of this program")?;
    let visible = [&programs, &beside.to_owned(), &places::workspace(), &places::cache()];
    let visible: Vec<_> = visible.iter().map(|path| path.to_string_lossy()).collect();
    let command = [
        "exec env".to_owned(),
        format!("{INSIDE}={}", hierarchy.name()),
        format!("BUILDKIT_TEST_BIN='{}'", programs.display()),
        format!("BUILDKIT_TEST_CACHE='{}'", places::cache().display()),
        format!("'{}'", own.display()),
        "--test-threads=1".into(),
    ];
    std::fs::write(out.path().join("command"), command.join(" "))?;
    let words = [
        "mem=3G".to_owned(),
        "rootfstype=hostfs".into(),
        "ro".into(),
        "quiet".into(),
        "con=null".into(),
        "con0=null,fd:1".into(),
        format!("uml_dir={}/", out.path().display()),
        format!("init={}", places::workspace().join("integration/guest.sh").display()),
        "--".into(),
        hierarchy.name().into(),
        out.path().display().to_string(),
        visible.join(":"),
    ];
    ensure!(words.iter().all(|word| !word.contains([' ', '"'])), "a kernel cannot be told of spaces");

    let program = places::provided(PathBuf::from(PROGRAM))?;
    let mut kernel = Service::start("kernel", &program, words, &[], out.path().join("log"))?;
    let status = out.path().join("status");
    let ended = || std::fs::read_to_string(&status).ok().filter(|text| text.ends_with('\n'));
    let status = kernel.wait_until(PATIENCE, ended)?;
    match status.trim() {
        "0" => Ok(()),
        status => bail!("ended with {status}:\n{}", kernel.log()),
    }
}
