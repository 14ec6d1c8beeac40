//! Processes of others, held so that their number cannot be mistaken; and what
//! else a container needs of the kernel.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal};

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

    /// Takes hold of the process `pid` if its command line has a word that is `wanted`.
    pub fn told(pid: i32, wanted: impl Fn(&OsStr) -> bool) -> Option<Self> {
        let pid = Pid::from_raw(pid)?;
        let told = || {
            let words = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| wanted(OsStr::from_bytes(word)))
        };
        if !told() {
            return None;
        }
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Once more: whoever holds the number now is held by the descriptor.
        told().then_some(Self { fd, pid })
    }

    /// Waits until it has ended, as long as `patience` lasts.
    pub fn wait(&self, patience: Duration) {
        let mut ended = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::IN)];
        // A limit that the kernel does not take is none; a signal ends the patience early.
        let patience = patience.try_into().ok();
        _ = rustix::event::poll(&mut ended, patience.as_ref());
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

    /// The terminal among its standard streams that is another than those on
    /// the file system `own`, which is a device number. The descriptors are its
    /// own, nothing is opened: what they lead to is up to the process.
    pub fn terminal(&self, own: u64) -> Option<OwnedFd> {
        (0..3).find_map(|number| {
            let fd = rustix::process::pidfd_getfd(&self.fd, number, PidfdGetfdFlags::empty()).ok()?;
            let other = rustix::fs::fstat(&fd).is_ok_and(|stat| stat.st_dev != own);
            (other && rustix::termios::isatty(&fd)).then_some(fd)
        })
    }
}

/// The kernel has then long removed what it was told to.
const CLOSING_DELAY_US: libc::useconds_t = 100_000;

/// Ends this process with `status`. What it has open, other than the standard streams, is
/// closed a moment later by a copy of it that nobody waits for: for sockets of nftables, whose
/// closing right after a removal takes time and holds up whoever changes rules next.
pub fn exit_without_closing(status: i32) -> ! {
    // SAFETY: between `fork` and `_exit` the copy, which may lack the threads that hold locks,
    // only calls `close` and `usleep`, which need none.
    unsafe {
        if libc::fork() == 0 {
            for stream in 0..3 {
                libc::close(stream);
            }
            libc::usleep(CLOSING_DELAY_US);
        }
        libc::_exit(status)
    }
}

fn parent_of(pid: Pid) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // `pid (name) state ppid …`; a name may hold blanks and parentheses.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Makes `command` start with the file mode creation mask `mask` instead of ours.
pub fn set_umask(command: &mut Command, mask: u32) {
    let mask = rustix::fs::Mode::from_raw_mode(mask);
    let set = move || {
        rustix::process::umask(mask);
        Ok(())
    };
    // SAFETY: between fork and exec only the one system call is made, which neither
    // allocates nor takes locks.
    unsafe { command.pre_exec(set) };
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

/// From now on no memory of this process can become executable that was ever
/// writable. Programs it starts are free again: build steps may well compile at
/// run time. Kernels before 6.6 cannot tell the two apart; there nothing is done.
///
/// # Errors
/// What the kernel said, other than that it does not know this.
pub fn refuse_writable_code() -> Result<()> {
    // From <linux/prctl.h>.
    const PR_SET_MDWE: libc::c_int = 65;
    const REFUSE_EXEC_GAIN: libc::c_ulong = 1;
    const NO_INHERIT: libc::c_ulong = 2;
    let none: libc::c_ulong = 0;
    // SAFETY: the call takes numbers only and touches no memory of ours.
    let outcome = unsafe { libc::prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN | NO_INHERIT, none, none, none) };
    match (outcome, std::io::Error::last_os_error()) {
        (0, _) => Ok(()),
        (_, e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        (_, e) => Err(Error::new("refuse writable code in", "this process", e)),
    }
}

/// Moves the calling thread, which has to be the only one, into a control group
/// namespace and a mount namespace of its own, and mounts the unified hierarchy
/// anew at `root`, so that it shows the group of this process as its root.
///
/// # Errors
/// When there is more than one thread, or what the kernel said. The caller may be
/// in the new namespaces even then, with the old mount.
pub fn own_cgroup_namespace(root: &Path) -> Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    use rustix::thread::UnshareFlags;
    let threads = std::fs::read_dir("/proc/self/task").map_err(|e| Error::new("list", "threads", e))?;
    if threads.count() != 1 {
        return Err(Error::new("enter a cgroup namespace", root, std::io::ErrorKind::ResourceBusy));
    }
    // SAFETY: neither flag concerns file descriptors, memory or signal handlers, and
    // there is no other thread that could be surprised by another mount table.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP | UnshareFlags::NEWNS) }
        .map_err(|e| Error::new("enter a cgroup namespace", root, e))?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(|e| Error::new("make a slave of", "/", e))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::unmount(root, UnmountFlags::DETACH).map_err(|e| Error::new("unmount", root, e))?;
    rustix::mount::mount("cgroup2", root, "cgroup2", flags, None).map_err(|e| Error::new("mount", root, e))
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
