//! Manifests for Kubernetes are what its API takes.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use integration::{places, process};

fn check(manifest: &Path) -> Result<process::Run> {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(places::workspace().join("integration/manifests.py"));
    command.arg(places::provided(places::cache().join("kubernetes"))?).arg(manifest);
    process::run(command)
}

#[test]
fn the_api_takes_the_manifests() -> Result<()> {
    for entry in std::fs::read_dir(places::workspace().join("images/kubernetes"))? {
        assert_eq!(check(&entry?.path())?.ok()?.trim(), "3 objects");
    }
    Ok(())
}

#[test]
fn a_key_that_the_api_does_not_know_is_found() -> Result<()> {
    let text = std::fs::read_to_string(places::workspace().join("images/kubernetes/deployment.yaml"))?;
    let dir = tempfile::tempdir()?;
    let wrong = dir.path().join("wrong.yaml");
    std::fs::write(&wrong, text.replace("readinessProbe", "readynessProbe"))?;
    check(&wrong)?.fails_with(&["readynessProbe", "Deployment"])
}
