//! The bytes of one file into another, as cheaply as the file systems allow.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::{self, SeekFrom};
use rustix::io::Errno;

const CHUNK: u64 = 1 << 30;

/// Copies all of `src` to `dst`, which is new and empty: shares the blocks where
/// that can be, copies inside the kernel where that can be, keeps holes.
pub(super) fn copy(src: &File, dst: &File) -> io::Result<()> {
    let size = src.metadata()?.len();
    if size > 0 && fs::ioctl_ficlone(dst, src).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    while at < size {
        let (from, to) = extent(src, at, size);
        if from >= size {
            break;
        }
        copy_range(src, dst, from, to)?;
        at = to;
    }
    // A hole at the end.
    if dst.metadata()?.len() < size {
        dst.set_len(size)?;
    }
    Ok(())
}

/// The next data at or after `at`; up to `size` where holes are not told.
fn extent(src: &File, at: u64, size: u64) -> (u64, u64) {
    match fs::seek(src, SeekFrom::Data(at)) {
        Ok(from) => {
            let to = fs::seek(src, SeekFrom::Hole(from)).unwrap_or(size);
            (from, to.clamp(from, size.max(from)))
        }
        // There is only a hole left.
        Err(Errno::NXIO) => (size, size),
        Err(_) => (at, size),
    }
}

fn copy_range(src: &File, dst: &File, from: u64, to: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (from, from);
    while read_at < to {
        let want = usize::try_from((to - read_at).min(CHUNK)).unwrap_or(usize::MAX);
        match fs::copy_file_range(src, Some(&mut read_at), dst, Some(&mut write_at), want) {
            // Some file systems only say at reading that there is something.
            Ok(0) => return copy_buffered(src, dst, read_at, to),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::XDEV | Errno::PERM | Errno::IO | Errno::OPNOTSUPP | Errno::INVAL)
                if read_at == from =>
            {
                return copy_buffered(src, dst, from, to);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_buffered(mut src: &File, mut dst: &File, from: u64, to: u64) -> io::Result<()> {
    fs::seek(src, SeekFrom::Start(from))?;
    fs::seek(dst, SeekFrom::Start(from))?;
    let mut left = to.saturating_sub(from);
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match src.read(&mut buffer[..want]) {
            // Cut short while it was read.
            Ok(0) => break,
            Ok(n) => {
                dst.write_all(&buffer[..n])?;
                left = left.saturating_sub(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
