//! What the daemon may do: checked at the start, then cut to what builds need.
//!
//! A process that builds containers has to be root, but not all of root: it
//! loads no kernel modules, sets no clocks and does not reboot. What is given
//! up is gone for every program it starts, too.

use anyhow::{Context as _, Result};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::status::{Status, refusal};

/// What is kept, and what for.
const KEPT: CapabilitySet = CapabilitySet::CHOWN // layers have owners
    .union(CapabilitySet::DAC_OVERRIDE) // and files that only they may open
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::MKNOD) // overlay whiteouts, devices in layers
    .union(CapabilitySet::KILL) // build steps of other users
    .union(CapabilitySet::SETUID) // the users of build steps
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SYS_ADMIN) // mounts, namespaces
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_PTRACE) // the OCI runtime enters namespaces of others
    .union(CapabilitySet::SYS_RESOURCE) // ulimits of build steps
    .union(CapabilitySet::NET_ADMIN) // networks of build steps
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::AUDIT_WRITE); // what build steps have by default

/// The daemon can work at all.
///
/// # Errors
/// When it is not root, or root without the right to mount.
pub(crate) fn check() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(refusal(
            Status::NoPermission,
            "the daemon must be started as root, or as the mapped root in a user namespace",
        ));
    }
    let held = rustix::thread::capabilities(None).context("read capabilities")?.effective;
    if !held.contains(CapabilitySet::SYS_ADMIN) {
        return Err(refusal(
            Status::NoPermission,
            "the daemon may not mount file systems here (no CAP_SYS_ADMIN); start its container with --privileged",
        ));
    }
    Ok(())
}

/// Gives up what builds do not need. With `everything`, which builds that may be
/// insecure are promised, only the daemon's own memory is protected. To be called
/// before there are threads.
///
/// # Errors
/// What the kernel said.
pub(crate) fn cut(everything: bool) -> Result<()> {
    sys::process::refuse_writable_code()?;
    if everything {
        return Ok(());
    }
    for one in CapabilitySet::all().difference(KEPT).iter() {
        // The kernel does not know all of them.
        if rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
            rustix::thread::remove_capability_from_bounding_set(one)
                .with_context(|| format!("give up {one:?}"))?;
        }
    }
    let held = rustix::thread::capabilities(None).context("read capabilities")?;
    let kept = CapabilitySets {
        effective: held.effective & KEPT,
        permitted: held.permitted & KEPT,
        inheritable: held.inheritable & KEPT,
    };
    rustix::thread::set_capabilities(None, kept).context("give up capabilities")
}
