//! Anonymous memory, owned.
#![expect(unsafe_code, reason = "mapping and unmapping memory")]

use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::ffi::c_void;
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap,
};
use rustix::process::{Pid, getpid};

/// Private anonymous memory; unmapped when dropped.
///
/// It cannot be accessed before it is registered
/// ([`register_missing`](super::Userfaultfd::register_missing)), and only be read afterwards:
/// under `mlockall(MCL_FUTURE)` the kernel fills memory that can be accessed with zeros at once.
/// Nothing is reserved for it, and a forked child does not get it: there its registration would be
/// lost, and missing pages would read as zeros.
///
/// ```
/// use pervma_pager::sys::Memory;
///
/// let memory = Memory::map(8192)?;
/// assert_eq!(memory.range().len(), 8192);
/// # Ok::<(), pervma_pager::sys::Errno>(())
/// ```
#[derive(Debug)]
pub struct Memory {
    /// Invariant: `start` and `len` are a mapping of the process `owner` that is ours alone.
    start: NonNull<c_void>,
    len: usize,
    owner: Pid,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `Memory` owns it.
unsafe impl Send for Memory {}
// SAFETY: nothing is written through a `Memory`; its fields are constant.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` bytes, rounded up to whole pages by the kernel.
    ///
    /// # Errors
    ///
    /// The kernel's: no room in the address space or too many mappings (`ENOMEM`), or `len` is 0
    /// (`EINVAL`).
    #[doc(alias = "mmap")]
    pub fn map(len: usize) -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses addresses that nothing is mapped at.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        let start = NonNull::new(start).ok_or(Errno::NOMEM)?;
        let memory = Self { start, len, owner: getpid() };
        // SAFETY: the range is ours, and the advice does not change its content.
        unsafe { madvise(start.as_ptr(), len, Advice::LinuxDontFork) }?;
        Ok(memory)
    }

    /// The addresses, without access to what is there.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        let start = self.start.as_ptr().addr();
        start..start + self.len
    }

    /// Lets the memory be read, now that it is registered.
    pub(super) fn make_readable(&self) -> Result<(), Errno> {
        // SAFETY: the range is ours (invariant of `start`), and nothing was accessible before.
        unsafe { mprotect(self.start.as_ptr(), self.len, MprotectFlags::READ) }
    }

    /// Whether this is the process that mapped it; a forked child has other things there.
    pub(super) fn is_of_this_process(&self) -> bool {
        getpid() == self.owner
    }

    /// The content. The first access to a page that is missing is a fault.
    ///
    /// # Safety
    ///
    /// The memory is registered, in this process. While the slice lives, no page's content changes after it could be read: a registered
    /// page is filled at most once, its userfaultfd stays open, and a SIGBUS handler sees to it
    /// that an access completes only when its page is filled.
    #[must_use]
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: readable memory of this length is mapped there for as long as `self` lives
        // (invariant of `start`), and the caller vouches that it does not change.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.is_of_this_process() {
            return;
        }
        // SAFETY: the mapping is ours (invariant of `start`), and borrows of it have ended.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_the_size_asked_for() {
        assert_eq!(Memory::map(3 * 4096).unwrap().range().len(), 3 * 4096);
    }

    #[test]
    fn nothing_and_too_much_are_errors() {
        assert_eq!(Memory::map(0).unwrap_err(), Errno::INVAL);
        assert_eq!(Memory::map(usize::MAX & !4095).unwrap_err(), Errno::NOMEM);
    }
}
