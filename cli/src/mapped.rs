//! The file mapped by the kernel, to compare the region with.
#![expect(unsafe_code, reason = "maps a file, and reads memory that others may change")]

use std::ffi::c_void;
use std::fs::File;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::Error;
use crate::touch::Pages;

/// A file mapped for reading. If it gets shorter, a touch behind its end ends the process (SIGBUS).
#[derive(Debug)]
pub(crate) struct Mapped {
    start: *mut c_void,
    len: usize,
}

// SAFETY: memory that every thread may read, by single bytes or words that are copied.
unsafe impl Sync for Mapped {}

impl Mapped {
    pub(crate) fn new(file: &File, len: usize) -> Result<Self, Error> {
        let (prot, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping, in a gap that the kernel finds.
        let mapped = unsafe { mmap(ptr::null_mut(), len, prot, flags, file, 0) };
        let start = mapped.map_err(|errno| Error::Compare(errno.into()))?;
        Ok(Self { start, len })
    }
}

impl Pages for Mapped {
    fn touch(&self, at: usize, page: &mut [u8]) -> Result<(), Error> {
        self.copy(at, &mut page[..1]);
        Ok(())
    }

    fn copy(&self, at: usize, page: &mut [u8]) {
        assert!(
            at.checked_add(page.len()).is_some_and(|end| end <= self.len),
            "inside of the file"
        );
        // SAFETY: within the mapping, as was just checked.
        let from = unsafe { self.start.byte_add(at) }.cast::<u8>();
        for (number, byte) in page.iter_mut().enumerate() {
            // SAFETY: as above.
            let from = unsafe { from.add(number) };
            // SAFETY: mapped for reading; volatile, since others may write the file.
            *byte = unsafe { from.read_volatile() };
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped, and nothing borrows from it.
        let unmapped = unsafe { munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
    }
}
