//! What the kernel tells of a file by moving a position: its size, and its holes.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::Errno;

/// A file, opened once more: the position of the source's descriptor may be shared. Its methods are
/// async-signal-safe.
#[derive(Debug)]
pub(super) struct Seeker {
    file: File,
    /// The file had holes when it was opened, as far as can be told.
    has_holes: bool,
}

impl Seeker {
    /// `None` if it cannot be opened again, or not be asked.
    pub(super) fn of(file: &File, about: &Stat) -> Option<Self> {
        /// Bytes in a unit of `st_blocks`.
        const BLOCK: i64 = 512;
        let mut again = File::options();
        // Who has a lease on the file is not waited for.
        again.read(true).custom_flags(libc::O_NONBLOCK);
        let file = again.open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let has_holes = about.st_blocks.saturating_mul(BLOCK) < about.st_size;
        let seeker = Self { file, has_holes };
        (seeker.size() == Ok(about.st_size.cast_unsigned())).then_some(seeker)
    }

    /// As `fstat` tells it, which takes more than twice the time.
    #[inline]
    pub(super) fn size(&self) -> Result<u64, Errno> {
        seek(&self.file, SeekFrom::End(0))
    }

    /// The first part of a range, which lies within the file, that is a hole.
    pub(super) fn hole(&self, range: Range<u64>) -> Option<Range<u64>> {
        if !self.has_holes {
            return None;
        }
        let start = seek(&self.file, SeekFrom::Hole(range.start)).ok()?;
        if start >= range.end {
            return None;
        }
        match seek(&self.file, SeekFrom::Data(start)) {
            Ok(end) => Some(start..end),
            // No data any more.
            Err(Errno::NXIO) => Some(start..range.end),
            Err(_) => None,
        }
    }
}
