//! The OCI runtime: a program that starts and removes containers.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use crate::ledger::Ledger;
use crate::places::Places;
use crate::tried::Circumstances;
use crate::{Config, Error};

/// Looked for in this order when none is configured.
const CANDIDATES: [&str; 3] = ["buildkit-runc", "crun", "runc"];

/// A program no image has: a runtime that complains of it got as far as to look for it.
const PROBE: &str = "/buildkit-runtime-probe";

/// A runtime that works here.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    program: PathBuf,
    /// What the runtime remembers of its containers.
    root: PathBuf,
}

/// A line of the log that runtimes write.
#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

impl Runtime {
    /// The configured runtime, taken as it is; else the first of the usual ones that
    /// can start a container here.
    pub(crate) fn find(
        config: &Config,
        state: &Path,
        places: &Places,
        ledger: &Arc<Ledger>,
    ) -> Result<Self, Error> {
        let root = places.notes();
        let usual = CANDIDATES.map(PathBuf::from);
        let names = if config.runtimes.is_empty() { usual.as_slice() } else { &config.runtimes };
        let none =
            || Error::NoRuntime { candidates: names.iter().map(|n| n.display().to_string()).collect() };
        let mut found = names.iter().filter_map(|name| which(name, &config.search_path));
        if !config.runtimes.is_empty() {
            return found.next().map(|program| Self { program, root }).ok_or_else(none);
        }
        let found: Vec<PathBuf> = found.collect();
        let circumstances = Circumstances::now(config.rootless, config.process_sandbox, &found);
        if let Some(program) = circumstances.remembered(state) {
            return Ok(Self { program, root });
        }
        let mut refused = None;
        for program in found {
            let runtime = Self { program, root: root.clone() };
            match runtime.probe(places, ledger, config) {
                Ok(()) => {
                    circumstances.remember(state, &runtime.program);
                    return Ok(runtime);
                }
                Err(e) => {
                    tracing::info!(runtime = %runtime.program.display(), error = %e, "OCI runtime refused");
                    refused = Some(e);
                }
            }
        }
        Err(refused.unwrap_or_else(none))
    }

    /// Its program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Starts a container whose program does not exist. Where cgroups, namespaces
    /// and privileges suffice, that program is what the runtime complains of.
    fn probe(&self, places: &Places, ledger: &Arc<Ledger>, config: &Config) -> Result<(), Error> {
        let id = format!("probe{}", base::id::fresh());
        let cgroup = if config.rootless { String::new() } else { format!("/buildkit/{id}") };
        let _note = ledger.note(&id, &cgroup)?;
        let dir = places.bundle(&id);
        let rootfs = dir.join("rootfs");
        // Not every runtime makes these two by itself.
        for inside in ["dev", "proc"].map(|name| rootfs.join(name)) {
            std::fs::create_dir_all(&inside).map_err(Error::file("create", &inside))?;
        }
        let (proc, own_pids) = if config.process_sandbox {
            (json!({"destination": "/proc", "type": "proc", "source": "proc"}), Some(json!({"type": "pid"})))
        } else {
            (json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]}), None)
        };
        let namespaces: Vec<_> = own_pids.into_iter().chain([json!({"type": "mount"})]).collect();
        let mut linux = json!({"namespaces": namespaces});
        if !config.rootless {
            linux["cgroupsPath"] = cgroup.into();
        }
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": [PROBE], "cwd": "/"},
            "root": {"path": rootfs},
            "mounts": [proc],
            "linux": linux,
        });
        let config = dir.join("config.json");
        let result = std::fs::write(&config, spec.to_string()).map_err(Error::file("write", &config));
        let output = result.and_then(|()| {
            self.run(&dir, &id, false)
                .stdin(Stdio::null())
                .output()
                .map_err(Error::file("start", &self.program))
        });
        self.delete(&id);
        crate::bundle::remove_dir(&dir);
        let output = output?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        if said.contains(PROBE) {
            return Ok(());
        }
        Err(Error::Runtime { program: self.program.clone(), message: said.trim().to_owned() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root);
        // runc hands the service manager's socket on to the container, and waits for
        // the container to say that it is ready.
        command.env_remove("NOTIFY_SOCKET");
        command
    }

    /// `run` for a bundle; its input and output are the container's.
    /// With `systemd` its cgroup is made by systemd.
    pub(crate) fn run(&self, bundle: &Path, id: &str, systemd: bool) -> Command {
        let mut command = self.logged(bundle, "log.json");
        if systemd {
            command.arg("--systemd-cgroup");
        }
        command.arg("run").arg("--bundle").arg(bundle);
        command.arg("--pid-file").arg(bundle.join("pid")).arg(id);
        command
    }

    /// `exec` in a container: its process is described by a file in the bundle,
    /// its pid and log go to files beside that.
    pub(crate) fn exec(&self, bundle: &Path, id: &str, name: &str) -> Command {
        let mut command = self.logged(bundle, &format!("{name}.log"));
        command.arg("exec").arg("--process").arg(bundle.join(format!("{name}.json")));
        command.arg("--pid-file").arg(bundle.join(format!("{name}.pid"))).arg(id);
        command
    }

    fn logged(&self, bundle: &Path, log: &str) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = self.command();
        command.arg("--log").arg(bundle.join(log)).args(["--log-format", "json"]);
        // Not to be hit by a signal from the daemon's terminal.
        command.process_group(0);
        command
    }

    /// Where it keeps what it remembers of a container.
    pub(crate) fn notes(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Whether it still remembers a container.
    pub(crate) fn knows(&self, id: &str) -> bool {
        self.notes(id).exists()
    }

    /// Kills and removes a container, if there is such a one.
    pub(crate) fn delete(&self, id: &str) {
        if !self.knows(id) {
            return;
        }
        let output = self.command().args(["delete", "--force", id]).stdin(Stdio::null()).output();
        if let Ok(output) = &output
            && !output.status.success()
        {
            tracing::debug!(id, said = %String::from_utf8_lossy(&output.stderr).trim(), "delete container");
        }
        // Half-made containers are not known to `delete`.
        crate::bundle::remove_dir(&self.notes(id));
    }
}

/// What a runtime complained of last, in the log of a run.
pub(crate) fn complaint(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
    lines.filter(|l| l.level == "error" || l.level == "fatal").map(|l| l.msg).next_back()
}

/// The code a shell would show.
pub(crate) fn exit_code(status: ExitStatus) -> u32 {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255);
    code.cast_unsigned()
}

fn which(name: &Path, search: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let executable =
        |p: &Path| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name.components().count() > 1 {
        return executable(name).then(|| name.to_owned());
    }
    std::env::split_paths(search).map(|dir| dir.join(name)).find(|p| executable(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complaint_counts() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(
            &log,
            "{\"level\":\"warning\",\"msg\":\"a\"}\nnot json\n{\"level\":\"error\",\"msg\":\"b\",\"time\":\"x\"}\n",
        )
        .unwrap();
        assert_eq!(complaint(&log).as_deref(), Some("b"));
        assert_eq!(complaint(&dir.path().join("none")), None);
    }

    #[test]
    fn codes_are_those_of_shells() {
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
    }
}
