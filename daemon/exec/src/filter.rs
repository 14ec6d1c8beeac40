//! The sandbox's system call filter in the form the kernel takes.
//!
//! Compiling it costs a runtime more time than all the rest of a start: the filter has
//! hundreds of rules for each of three architectures. `crun` leaves what it has compiled beside
//! its notes of a container, and takes a compiled filter from an annotation. All sandboxes have
//! the same one, so what the first run had compiled serves those after it. Other runtimes leave
//! nothing to be found, and compile each time.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The annotation that `crun` takes it from.
pub(crate) const ANNOTATION: &str = "run.oci.seccomp_bpf_data";
/// Bytes of one instruction, and how many the kernel takes.
const INSTRUCTION: usize = 8;
const MAX_INSTRUCTIONS: usize = 4096;
/// How often is looked, and how many times.
const POLL: Duration = Duration::from_millis(3);
const LOOKS: usize = 300;

/// The filter, once it is known.
#[derive(Debug, Default)]
pub(crate) struct Filter(OnceLock<String>);

impl Filter {
    /// What the annotation has to say.
    pub(crate) fn annotation(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// Takes over what the runtime compiled for a container that has it: `notes` is where the
    /// runtime keeps what it knows of the container, `pid_file` what it writes when the
    /// container is made, and thus the filter complete. Gives up after a second.
    pub(crate) async fn learn(&self, notes: &Path, pid_file: &Path) {
        for _ in 0..LOOKS {
            if tokio::fs::try_exists(pid_file).await.unwrap_or(false) {
                if let Some(text) = tokio::fs::read(notes.join("seccomp.bpf")).await.ok().and_then(encode) {
                    // Another run may have been faster, with the same.
                    _ = self.0.set(text);
                }
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The text of the annotation, if this can be a filter.
fn encode(program: Vec<u8>) -> Option<String> {
    let whole = program.len().is_multiple_of(INSTRUCTION);
    (whole && (1..=MAX_INSTRUCTIONS).contains(&(program.len() / INSTRUCTION)))
        .then(|| STANDARD.encode(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn takes_what_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let filter = Filter::default();
        std::fs::write(&pid, "1").unwrap();
        for wrong in [b"".as_slice(), b"1234567"] {
            std::fs::write(dir.path().join("seccomp.bpf"), wrong).unwrap();
            filter.learn(dir.path(), &pid).await;
            assert_eq!(filter.annotation(), None);
        }
        std::fs::write(dir.path().join("seccomp.bpf"), [0; 8]).unwrap();
        filter.learn(dir.path(), &pid).await;
        assert_eq!(filter.annotation(), Some("AAAAAAAAAAA="));
    }
}
