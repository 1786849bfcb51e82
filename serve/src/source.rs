//! The memory file of a snapshot.
#![expect(unsafe_code, reason = "maps a file, and asks what of it is in memory")]
#![expect(clippy::disallowed_types, reason = "notes of what was in memory, which guard none")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use memmap2::{Mmap, MmapOptions};
use pervma_pager::{FileSource, ReadFailed, Source};
use rustix::mm::Advice;

/// A file that holds the memory of virtual machines: what of it is in the page cache is copied from
/// there by the kernel, the rest is read.
///
/// What was in the page cache a hundredth of a second ago is taken to be still there: if it is not,
/// whoever has it copied waits for it.
///
/// It has the size that it had when it was opened. If it becomes shorter, what is gone cannot be
/// read; for a millisecond, the rest of the page that it ends in then may be copied as zeros.
#[derive(Debug)]
pub struct MemoryFile {
    file: FileSource,
    /// The same, to ask for its size.
    handle: File,
    /// All of it. No byte is read by way of this but by the kernel.
    map: Mmap,
    size: u64,
    /// When it had its size the last time.
    was_whole: AtomicU64,
    seen: Seen,
}

/// Windows of the file that were in memory, each for a short time: to ask costs as much as to copy
/// a page, however much is asked for.
#[derive(Debug)]
struct Seen {
    since: Instant,
    /// A window and when it was seen, by the lowest bits of the window's number.
    windows: [AtomicU64; Seen::COUNT],
}

impl Seen {
    /// Bytes of a window.
    const WINDOW: usize = 2 << 20;
    const COUNT: usize = 64;
    /// Of the time in milliseconds, in a word; the window is above.
    const TIME_BITS: u32 = 36;
    /// In milliseconds.
    const LASTS: u64 = 10;

    fn new() -> Self {
        Self { since: Instant::now(), windows: [const { AtomicU64::new(0) }; Self::COUNT] }
    }

    /// Counted from 1, so that 0 is no window's note.
    fn note(window: usize, now: u64) -> u64 {
        (window as u64 + 1) << Self::TIME_BITS | now & ((1 << Self::TIME_BITS) - 1)
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }

    /// Whether a window was seen a short time ago.
    fn is(&self, window: usize, now: u64) -> bool {
        // RELAXED: here and below, a note of what may be wrong already.
        let note = self.windows[window % Self::COUNT].load(Relaxed);
        Self::note(window, now).checked_sub(note).is_some_and(|ago| ago < Self::LASTS)
    }

    fn set(&self, window: usize, now: u64) {
        self.windows[window % Self::COUNT].store(Self::note(window, now), Relaxed);
    }
}

impl MemoryFile {
    /// Takes a file.
    ///
    /// ```
    /// use std::io::Write;
    /// use pervma_serve::MemoryFile;
    ///
    /// let mut file = tempfile::tempfile()?;
    /// file.write_all(&[7; 8192])?;
    /// let memory = MemoryFile::new(file)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When it is empty, no regular file, or cannot be read by position or mapped.
    pub fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        if size == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is empty"));
        }
        // SAFETY: nothing is made of the mapping but its address, so the file may change.
        let map = unsafe { MmapOptions::new().map(&file) }?;
        let handle = file.try_clone()?;
        let file = FileSource::new(file).map_err(io::Error::other)?;
        let was_whole = AtomicU64::new(u64::MAX);
        Ok(Self { file, handle, map, size, was_whole, seen: Seen::new() })
    }

    /// Whether the file has bytes up to an end, or had all of them in this millisecond: to ask for
    /// its size takes a tenth of what a fault does.
    fn reaches(&self, end: u64, now: u64) -> bool {
        // RELAXED: it may be wrong already.
        if self.was_whole.load(Relaxed) == now {
            return true;
        }
        let Ok(about) = rustix::fs::fstat(&self.handle) else { return false };
        let size = about.st_size.cast_unsigned();
        if size >= self.size {
            self.was_whole.store(now, Relaxed);
        }
        size >= end
    }

    /// Whether a part of a window is in memory, now or a short time ago.
    fn is_in_memory(&self, window: usize, part: Range<usize>, now: u64) -> bool {
        const PAGE: usize = 4096;
        if self.seen.is(window, now) {
            return true;
        }
        let start = window * Seen::WINDOW;
        let len = Seen::WINDOW.min(self.map.len() - start);
        let mut resident = [0_u8; Seen::WINDOW / PAGE];
        let addr = self.map.as_ptr().wrapping_add(start).cast_mut().cast();
        // SAFETY: the window is mapped, and there is a byte for each of its pages.
        if unsafe { libc::mincore(addr, len, resident.as_mut_ptr()) } != 0 {
            return false;
        }
        let are_there = |pages: &[u8]| pages.iter().all(|page| page & 1 == 1);
        if are_there(&resident[..len.div_ceil(PAGE)]) {
            self.seen.set(window, now);
            return true;
        }
        are_there(&resident[(part.start - start) / PAGE..(part.end - start).div_ceil(PAGE)])
    }
}

impl Source for MemoryFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        self.file.read_at(offset, buf)
    }

    fn zeros(&self, range: Range<u64>) -> Option<Range<u64>> {
        self.file.zeros(range)
    }

    fn resident(&self, range: Range<u64>) -> Option<*const [u8]> {
        let (start, end) = (range.start as usize, range.end as usize);
        let now = self.seen.now();
        // Of a page that the file has a part of, by now, the kernel would copy zeros.
        if start > end || end > self.map.len() || !self.reaches(range.end, now) {
            return None;
        }
        let mut windows = start / Seen::WINDOW..end.div_ceil(Seen::WINDOW);
        let is_in_memory = windows.all(|window| {
            let first = window * Seen::WINDOW;
            self.is_in_memory(window, start.max(first)..end.min(first + Seen::WINDOW), now)
        });
        if !is_in_memory {
            return None;
        }
        Some(std::ptr::slice_from_raw_parts(self.map.as_ptr().wrapping_add(start), end - start))
    }
}

/// Has the kernel map what it has of a file, as [`Source::resident`] tells of it: copying from
/// there stops at pages that are not mapped, and begins again.
pub(crate) fn populate(bytes: *const [u8]) {
    let start = bytes.cast_mut().cast();
    // SAFETY: it changes no bytes; the kernel refuses what is not mapped, or no whole pages.
    let _ = unsafe { rustix::mm::madvise(start, bytes.len(), Advice::LinuxPopulateRead) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_just_written_is_resident() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3 * 4096]).unwrap();
        let memory = MemoryFile::new(file.try_clone().unwrap()).unwrap();
        assert_eq!(memory.resident(4096..3 * 4096).map(|bytes| bytes.len()), Some(2 * 4096));
        assert!(memory.resident(0..4 * 4096).is_none(), "beyond the end");
        file.set_len(4096).unwrap();
        thread::sleep(Duration::from_millis(2));
        assert!(memory.resident(0..4096).is_some());
        file.set_len(4095).unwrap();
        assert!(memory.resident(0..4096).is_none(), "the last byte is gone");
        assert_eq!(memory.size(), 3 * 4096);
        assert_eq!(memory.read_at(4096, &mut [0; 4096]), Err(ReadFailed));
    }

    #[test]
    fn a_window_that_was_seen_is_no_other_and_not_for_long() {
        let seen = Seen::new();
        let now = seen.now();
        assert!(!seen.is(0, now));
        seen.set(3, now);
        assert!(seen.is(3, now) && !seen.is(4, now) && !seen.is(3 + Seen::COUNT, now));
        let long_ago = Seen { since: Instant::now() - Duration::from_secs(60), ..Seen::new() };
        let now = long_ago.now();
        long_ago.set(3, now);
        assert!(long_ago.is(3, now + Seen::LASTS - 1) && !long_ago.is(3, now + Seen::LASTS));
    }

    #[test]
    fn nothing_is_no_memory() {
        assert!(MemoryFile::new(tempfile::tempfile().unwrap()).is_err());
        assert!(MemoryFile::new(File::open("/dev/null").unwrap()).is_err());
    }
}
