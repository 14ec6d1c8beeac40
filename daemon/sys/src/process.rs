//! Processes of others, held so that their number cannot be mistaken; and what
//! else a container needs of the kernel.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::{Error, Result};

/// A process that stays the one it was when it was opened.
#[derive(Debug)]
pub struct Process {
    fd: OwnedFd,
    pid: Pid,
}

impl Process {
    /// Takes hold of the process `pid` if it is a child of `parent`. `None` when it
    /// is not, or not any more: then the number may be somebody else's.
    pub fn child_of(pid: i32, parent: i32) -> Option<Self> {
        let pid = Pid::from_raw(pid)?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // In this order: whoever holds the number now is held by the descriptor.
        (parent_of(pid)? == parent).then_some(Self { fd, pid })
    }

    /// Sends a signal. A process that has ended already is no error.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(Error::new("signal", format!("process {}", self.pid.as_raw_nonzero()), e)),
        }
    }
}

fn parent_of(pid: Pid) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // `pid (name) state ppid …`; a name may hold blanks and parentheses.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The number of a loop device that is not in use, which the kernel creates if need be.
///
/// # Errors
/// When there are no loop devices here.
pub fn free_loop_device() -> Result<u32> {
    const CONTROL: &str = "/dev/loop-control";
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
    let control =
        File::options().read(true).write(true).open(CONTROL).map_err(|e| Error::new("open", CONTROL, e))?;
    // SAFETY: the request takes no argument and writes no memory of ours.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number)
        .map_err(|_| Error::new("get a free loop device", CONTROL, std::io::Error::last_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_children_only() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(Process::child_of(pid, 1).is_none());
        Process::child_of(pid, own).unwrap().signal(Signal::KILL).unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success());
        assert!(Process::child_of(pid, own).is_none());
    }
}
