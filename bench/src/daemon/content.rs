//! The bytes that missing pages are filled with: a file in the page cache.
#![expect(unsafe_code, reason = "maps a file")]

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use memmap2::{Mmap, MmapOptions};
use pervma_pager::{ReadFailed, Source};
use pervma_serve::MemoryFile;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A file of random bytes.
pub(super) fn file(len: usize) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    write(&mut file, len)?;
    Ok(file)
}

/// Writes random bytes.
pub(super) fn write(file: &mut File, len: usize) -> io::Result<()> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(1).fill_bytes(&mut bytes);
    file.write_all(&bytes)
}

/// A file that is mapped. Its bytes are for the kernel to copy.
pub(super) struct Mapped(Mmap);

impl Mapped {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: no reference to a byte is made.
        Ok(Self(unsafe { MmapOptions::new().map(file) }?))
    }

    pub(super) fn part(&self, offset: usize, len: usize) -> *const [u8] {
        assert!(offset <= self.0.len() && len <= self.0.len() - offset, "a part of the file");
        ptr::slice_from_raw_parts(self.0.as_ptr().wrapping_add(offset), len)
    }
}

/// A memory file that is slow from an offset on.
pub(super) struct Slow {
    pub(super) file: Arc<MemoryFile>,
    pub(super) from: u64,
    pub(super) delay: Duration,
}

impl Slow {
    fn is_slow(&self, offset: u64) -> bool {
        !self.delay.is_zero() && offset >= self.from
    }
}

impl Source for Slow {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        if self.is_slow(offset) {
            thread::sleep(self.delay);
        }
        self.file.read_at(offset, buf)
    }

    fn zeros(&self, range: Range<u64>) -> Option<Range<u64>> {
        self.file.zeros(range)
    }

    fn resident(&self, range: Range<u64>) -> Option<*const [u8]> {
        if self.is_slow(range.start) { None } else { self.file.resident(range) }
    }
}
