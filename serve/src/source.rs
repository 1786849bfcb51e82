//! The memory file of a snapshot.
#![expect(unsafe_code, reason = "maps a file, and asks what of it is in memory")]

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{Mmap, MmapOptions};
use pervma_pager::{FileSource, ReadFailed, Source};

/// A file that holds the memory of virtual machines: what of it is in the page cache is copied from
/// there by the kernel, the rest is read.
///
/// It has the size that it had when it was opened. If it becomes shorter, what is gone cannot be
/// read.
#[derive(Debug)]
pub struct MemoryFile {
    file: FileSource,
    /// The same, to ask for its size.
    handle: File,
    /// All of it. No byte is read by way of this but by the kernel.
    map: Mmap,
    size: u64,
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
        Ok(Self { file, handle, map, size })
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
        /// Pages asked for at a time.
        const SOME: usize = 512;
        const PAGE: usize = 4096;
        let (start, end) = (range.start as usize, range.end as usize);
        // Of a page that the file has a part of, by now, the kernel would copy zeros.
        let is_there = rustix::fs::fstat(&self.handle)
            .is_ok_and(|about| about.st_size.cast_unsigned() >= range.end);
        if start > end || end > self.map.len() || !is_there {
            return None;
        }
        let first = start / PAGE * PAGE;
        for at in (first..end).step_by(SOME * PAGE) {
            let mut resident = [0_u8; SOME];
            let len = (end - at).min(SOME * PAGE);
            let addr = self.map.as_ptr().wrapping_add(at).cast_mut().cast();
            // SAFETY: the part is mapped, and there is a byte for each of its pages.
            if unsafe { libc::mincore(addr, len, resident.as_mut_ptr()) } != 0 {
                return None;
            }
            if resident[..len.div_ceil(PAGE)].iter().any(|page| page & 1 == 0) {
                return None;
            }
        }
        Some(std::ptr::slice_from_raw_parts(self.map.as_ptr().wrapping_add(start), end - start))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_just_written_is_resident() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3 * 4096]).unwrap();
        let memory = MemoryFile::new(file.try_clone().unwrap()).unwrap();
        assert_eq!(memory.resident(4096..3 * 4096).map(|bytes| bytes.len()), Some(2 * 4096));
        assert!(memory.resident(0..4 * 4096).is_none(), "beyond the end");
        file.set_len(4096).unwrap();
        assert!(memory.resident(0..4096).is_some());
        file.set_len(4095).unwrap();
        assert!(memory.resident(0..4096).is_none(), "the last byte is gone");
        assert_eq!(memory.size(), 3 * 4096);
        assert_eq!(memory.read_at(4096, &mut [0; 4096]), Err(ReadFailed));
    }

    #[test]
    fn nothing_is_no_memory() {
        assert!(MemoryFile::new(tempfile::tempfile().unwrap()).is_err());
        assert!(MemoryFile::new(File::open("/dev/null").unwrap()).is_err());
    }
}
