//! Holes of a sparse file.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::Errno;

/// A file that has holes, as far as can be told, opened once more: the kernel tells of holes by
/// moving a position, and that of the source's descriptor may be shared.
#[derive(Debug)]
pub(super) struct Sparse(File);

impl Sparse {
    /// `None` if it has no holes, or cannot be opened again.
    pub(super) fn of(file: &File, about: &Stat) -> Option<Self> {
        /// Bytes in a unit of `st_blocks`.
        const BLOCK: i64 = 512;
        if about.st_blocks.saturating_mul(BLOCK) >= about.st_size {
            return None;
        }
        File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok().map(Self)
    }

    /// The first part of a range, which lies within the file, that is a hole. Async-signal-safe.
    pub(super) fn hole(&self, range: Range<u64>) -> Option<Range<u64>> {
        let start = seek(&self.0, SeekFrom::Hole(range.start)).ok()?;
        if start >= range.end {
            return None;
        }
        match seek(&self.0, SeekFrom::Data(start)) {
            Ok(end) => Some(start..end),
            // No data any more.
            Err(Errno::NXIO) => Some(start..range.end),
            Err(_) => None,
        }
    }
}
