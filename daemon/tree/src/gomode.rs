//! File modes as Go's `os.FileMode` has them: what file-sync peers send and
//! what content digests are made from.

/// A directory.
pub const DIR: u32 = 1 << 31;
/// A symlink.
pub const SYMLINK: u32 = 1 << 27;
/// A device.
pub const DEVICE: u32 = 1 << 26;
/// A FIFO.
pub const NAMED_PIPE: u32 = 1 << 25;
/// A socket.
pub const SOCKET: u32 = 1 << 24;
/// Runs as its owner.
pub const SETUID: u32 = 1 << 23;
/// Runs as its group.
pub const SETGID: u32 = 1 << 22;
/// A character device, together with [`DEVICE`].
pub const CHAR_DEVICE: u32 = 1 << 21;
/// Only the owner removes.
pub const STICKY: u32 = 1 << 20;
/// Something Go has no word for.
pub const IRREGULAR: u32 = 1 << 19;
/// All bits that say what it is; none of them for a regular file.
pub const TYPE: u32 = DIR | SYMLINK | NAMED_PIPE | SOCKET | DEVICE | CHAR_DEVICE | IRREGULAR;

const S_IFMT: u32 = 0o170_000;

/// From `st_mode`.
pub fn from_unix(mode: u32) -> u32 {
    let kind = match mode & S_IFMT {
        0o040_000 => DIR,
        0o120_000 => SYMLINK,
        0o060_000 => DEVICE,
        0o020_000 => DEVICE | CHAR_DEVICE,
        0o010_000 => NAMED_PIPE,
        0o140_000 => SOCKET,
        0o100_000 => 0,
        _ => IRREGULAR,
    };
    let mut out = kind | mode & 0o777;
    for (unix, go) in [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)] {
        if mode & unix != 0 {
            out |= go;
        }
    }
    out
}

/// The twelve permission bits of Unix: `rwx` thrice, set-id and sticky.
pub fn permissions(mode: u32) -> u32 {
    let mut out = mode & 0o777;
    for (unix, go) in [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)] {
        if mode & go != 0 {
            out |= unix;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translates_both_ways() {
        assert_eq!(from_unix(0o104_755), SETUID | 0o755);
        assert_eq!(from_unix(0o041_777), DIR | STICKY | 0o777);
        assert_eq!(from_unix(0o020_600), DEVICE | CHAR_DEVICE | 0o600);
        assert_eq!(permissions(from_unix(0o042_755)), 0o2755);
    }
}
