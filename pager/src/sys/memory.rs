//! Anonymous memory, owned.
#![expect(unsafe_code, reason = "mapping, protecting and unmapping memory")]
#![expect(clippy::disallowed_types, reason = "lends words whose users order their accesses")]

use std::mem::ManuallyDrop;
use std::ops::{Deref, Range};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::ffi::c_void;
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MlockFlags, MprotectFlags, ProtFlags, madvise, mlock_with, mmap_anonymous,
    mprotect, munlock, munmap,
};

/// What accesses memory lets through. Everything else is SIGSEGV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// None.
    None,
    /// Reads.
    Read,
    /// Reads and writes.
    ReadWrite,
    /// Reads, and running what is there as code. There is none that lets code be written and run.
    ReadExecute,
}

impl Access {
    fn flags(self) -> MprotectFlags {
        match self {
            Self::None => MprotectFlags::empty(),
            Self::Read => MprotectFlags::READ,
            Self::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
            Self::ReadExecute => MprotectFlags::READ | MprotectFlags::EXEC,
        }
    }
}

/// Of what size the kernel's pages of a memory are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4096 bytes.
    Small,
    /// 2 MiB, from the pool of hugetlbfs (`vm.nr_hugepages`).
    Huge,
}

impl PageSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => 4096,
            Self::Huge => 2 << 20,
        }
    }

    /// Its logarithm.
    pub(crate) const fn shift(self) -> u32 {
        match self {
            Self::Small => 12,
            Self::Huge => 21,
        }
    }
}

/// An address at which memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub(crate) address: usize,
    /// Invariant: if so, nobody uses what is there.
    replaces: bool,
}

impl At {
    /// Where nothing is mapped; else that is an error.
    #[must_use]
    #[doc(alias = "MAP_FIXED_NOREPLACE")]
    pub const fn free(address: usize) -> Self {
        Self { address, replaces: false }
    }

    /// In the place of what is mapped there.
    ///
    /// # Safety
    ///
    /// When it is used to map something, nobody uses what is mapped in the range that is mapped.
    #[must_use]
    #[doc(alias = "MAP_FIXED")]
    pub const unsafe fn replacing(address: usize) -> Self {
        Self { address, replaces: true }
    }
}

/// Private anonymous memory; unmapped when dropped.
///
/// It cannot be accessed before it is registered with a [`Userfaultfd`](super::Userfaultfd) and
/// [protected](Self::protect) otherwise: under `mlockall(MCL_FUTURE)` the kernel fills memory that
/// can be accessed with zeros at once. Nothing is reserved for it, and a forked child does not get
/// it: there its registration would be lost, and missing pages would read as zeros.
///
/// ```
/// use pervma_pager::sys::{Memory, PageSize};
///
/// let memory = Memory::map(8192, PageSize::Small)?;
/// assert_eq!(memory.range().len(), 8192);
/// # Ok::<(), pervma_pager::sys::Errno>(())
/// ```
#[derive(Debug)]
pub struct Memory {
    /// Invariant: `start` and `len` are a mapping of the process `owner`, owned by this.
    start: NonNull<c_void>,
    len: usize,
    owner: u32,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `Memory` owns it.
unsafe impl Send for Memory {}
// SAFETY: the calls on it may be made by several threads; its fields are constant while shared.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` bytes, a multiple of the page size.
    ///
    /// # Errors
    ///
    /// The kernel's: no addresses left or too many mappings (`ENOMEM`), or `len` is 0 or
    /// not whole pages (`EINVAL`).
    #[doc(alias = "mmap")]
    pub fn map(len: usize, page_size: PageSize) -> Result<Self, Errno> {
        Self::map_at(None, len, page_size)
    }

    /// As [`map`](Self::map), at an address.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map); something is there, and is not to be replaced (`EEXIST`); there
    /// can be nothing.
    pub(crate) fn map_at(at: Option<At>, len: usize, page_size: PageSize) -> Result<Self, Errno> {
        if !len.is_multiple_of(page_size.bytes()) {
            return Err(Errno::INVAL);
        }
        let pages = match page_size {
            PageSize::Small => MapFlags::empty(),
            PageSize::Huge => MapFlags::HUGETLB | MapFlags::HUGE_2MB,
        };
        let place = match at {
            None => MapFlags::empty(),
            Some(At { replaces: false, .. }) => MapFlags::FIXED_NOREPLACE,
            Some(At { replaces: true, .. }) => MapFlags::FIXED,
        };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | pages | place;
        let wanted = ptr::without_provenance_mut(at.map_or(0, |at| at.address));
        // SAFETY: with MAP_FIXED nobody uses what is there (`At::replacing`); without it the kernel
        // replaces nothing.
        let start = unsafe { mmap_anonymous(wanted, len, ProtFlags::empty(), flags) }?;
        let start = NonNull::new(start).ok_or(Errno::NOMEM)?;
        let memory = Self { start, len, owner: std::process::id() };
        // SAFETY: the range is ours, and the advice does not change its content.
        unsafe { madvise(start.as_ptr(), len, Advice::LinuxDontFork) }?;
        // Pages that the kernel shares with others of the same content cannot be moved. It is an
        // error where it shares none.
        // SAFETY: the range is ours, and the advice does not change its content.
        let _ = unsafe { madvise(start.as_ptr(), len, Advice::LinuxUnmergeable) };
        Ok(memory)
    }

    /// As [`map`](Self::map), from a multiple of `align` on, a power of two.
    pub(crate) fn map_aligned(
        len: usize,
        align: usize,
        page_size: PageSize,
    ) -> Result<Self, Errno> {
        if align <= page_size.bytes() {
            return Self::map(len, page_size);
        }
        let whole =
            ManuallyDrop::new(Self::map(len.checked_add(align).ok_or(Errno::NOMEM)?, page_size)?);
        let before = whole.start.addr().get().wrapping_neg() % align;
        // SAFETY: within what was mapped, by `align`.
        let start = unsafe { whole.start.byte_add(before) };
        let unmap = |at: *mut c_void, len| {
            if len != 0 {
                // An end of a mapping can be unmapped, unless a filter refuses it: then it is a
                // leak.
                // SAFETY: it is this function's, and no part of the result.
                let _ = unsafe { munmap(at, len) };
            }
        };
        unmap(whole.start.as_ptr(), before);
        unmap(start.as_ptr().wrapping_byte_add(len), align - before);
        Ok(Self { start, len, owner: whole.owner })
    }

    /// The addresses, without access to what is there.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        let start = self.start.as_ptr().addr();
        start..start + self.len
    }

    /// Its first byte. What may be accessed, and what is present, is up to its user, who
    /// registered it.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }

    /// Lets accesses to the bytes at `range`, whole pages, through or not.
    ///
    /// # Errors
    ///
    /// The kernel's: too many mappings (`ENOMEM`), or not whole pages (`EINVAL`). Some of the pages
    /// may have changed then.
    ///
    /// # Panics
    ///
    /// When the range is not within the memory.
    #[doc(alias = "mprotect")]
    pub fn protect(&self, range: Range<usize>, access: Access) -> Result<(), Errno> {
        let (start, len) = self.part(range.clone());
        if access == Access::ReadWrite {
            // Memory that is locked the kernel would fill now, with faults that no thread can
            // serve. SAFETY: the range is ours (invariant of `start`), and its content stays.
            unsafe { munlock(start, len) }?;
        }
        self.protect_as_locked(range, access)
    }

    /// As [`protect`](Self::protect), without a word about locks: of what becomes writable and is
    /// locked the kernel tries to fill what is missing, which ends at the first fault.
    pub(crate) fn protect_as_locked(
        &self,
        range: Range<usize>,
        access: Access,
    ) -> Result<(), Errno> {
        let (start, len) = self.part(range);
        // SAFETY: the range is ours (invariant of `start`). An access that is not let through ends
        // in a signal, not in another value.
        unsafe { mprotect(start, len, access.flags()) }
    }

    /// Asks for huge pages (transparent ones) at `range`, wherever the kernel is to fill it.
    ///
    /// # Errors
    ///
    /// The kernel's: it has none (`EINVAL`).
    pub(crate) fn ask_for_huge(&self, range: Range<usize>) -> Result<(), Errno> {
        let (start, len) = self.part(range);
        // SAFETY: the range is ours, and the advice does not change its content.
        unsafe { madvise(start, len, Advice::LinuxHugepage) }
    }

    /// Locks all of it, without filling what is missing, or unlocks it.
    ///
    /// # Errors
    ///
    /// The kernel's: the process may not lock so much (`ENOMEM`, `EPERM`).
    #[doc(alias = "mlock2")]
    pub fn lock_on_fault(&self, lock: bool) -> Result<(), Errno> {
        let start = self.start.as_ptr();
        if lock {
            // SAFETY: the range is ours (invariant of `start`), and its content stays.
            unsafe { mlock_with(start, self.len, MlockFlags::ONFAULT) }
        } else {
            // SAFETY: the range is ours (invariant of `start`), and its content stays.
            unsafe { munlock(start, self.len) }
        }
    }

    /// Gives back the pages at `range`, locked ones too: the next access to each is a fault, as for
    /// memory that was never touched.
    ///
    /// # Errors
    ///
    /// The kernel's: not whole pages (`EINVAL`), or hugetlbfs before Linux 5.18.
    ///
    /// # Panics
    ///
    /// When the range is not within the memory.
    #[doc(alias = "MADV_DONTNEED")]
    pub fn discard(&self, range: Range<usize>) -> Result<(), Errno> {
        if !self.is_of_this_process() {
            return Err(Errno::SRCH);
        }
        let (start, len) = self.part(range);
        let discard = |advice| {
            // SAFETY: the range is ours (invariant of `start`), and the owner of a slice of it
            // keeps from this (contract of `bytes`).
            unsafe { madvise(start, len, advice) }
        };
        match discard(Advice::LinuxDontNeed) {
            // Locked memory wants to be asked by another name.
            Err(Errno::INVAL) => discard(Advice::LinuxDontneedLocked),
            done => done,
        }
    }

    /// Whether the page at an offset is present, as far as the kernel tells. One system call, which
    /// may change `errno`.
    ///
    /// # Panics
    ///
    /// When the offset is not within the memory.
    #[doc(alias = "mincore")]
    #[must_use]
    pub fn is_resident(&self, offset: usize) -> bool {
        let (page, _) = self.part(offset / 4096 * 4096..offset / 4096 * 4096 + 4096);
        let mut resident = 0;
        // SAFETY: asks of one page, and writes the byte that it has for it.
        unsafe { libc::mincore(page, 1, &raw mut resident) != 0 || resident & 1 != 0 }
    }

    /// Which pages of `range` are present, as far as the kernel tells: a byte for each, which is
    /// odd then. One system call; whether it was let through.
    ///
    /// # Panics
    ///
    /// When the range is not within the memory, or there are fewer bytes than pages.
    pub(crate) fn which_are_resident(&self, range: Range<usize>, pages: &mut [u8]) -> bool {
        assert!(range.len().div_ceil(4096) <= pages.len(), "a byte for each page");
        let (start, len) = self.part(range);
        // SAFETY: asks of so many pages, and writes the bytes that there are for them.
        unsafe { libc::mincore(start, len, pages.as_mut_ptr()) == 0 }
    }

    /// A part of it that is not empty.
    fn part(&self, range: Range<usize>) -> (*mut c_void, usize) {
        let inside = range.start < range.end && range.end <= self.len;
        assert!(inside, "{range:?} is not within {} bytes", self.len);
        (self.start.as_ptr().wrapping_byte_add(range.start), range.len())
    }

    /// Whether this is the process that mapped it; a forked child has other things there.
    pub(crate) fn is_of_this_process(&self) -> bool {
        super::is_process(self.owner)
    }

    /// The content. The first access to a page that is missing is a fault.
    ///
    /// # Safety
    ///
    /// The memory is registered, in this process, and may be read. While the slice lives, no page's
    /// content changes after it could be read: a page is filled at most once and neither discarded
    /// nor moved, no thread writes, the userfaultfd stays open, and an access completes only when
    /// its page is filled.
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
        // A whole mapping can be unmapped, unless a filter refuses it: then it is a leak.
        // SAFETY: the mapping is ours (invariant of `start`), and borrows of it have ended.
        let _ = unsafe { munmap(self.start.as_ptr(), self.len) };
    }
}

/// Words in memory of the kernel's, which are 0 and take none before they are touched.
#[derive(Debug)]
pub(crate) struct Words(Memory);

impl Words {
    /// So many words, of whole pages, which a forked child has as well: it drops what it has of
    /// them.
    pub(crate) fn zeroed(words: usize) -> Result<Self, Errno> {
        let words = Self::not_forked(words)?;
        let (start, bytes) = (words.0.start.as_ptr(), words.0.len);
        // SAFETY: the range is ours, and the advice does not change its content.
        unsafe { madvise(start, bytes, Advice::LinuxDoFork) }?;
        Ok(words)
    }

    /// So many words, of whole pages, which no forked child may look at.
    pub(crate) fn not_forked(words: usize) -> Result<Self, Errno> {
        let bytes = words.checked_mul(size_of::<AtomicU64>()).ok_or(Errno::NOMEM)?;
        let memory = Memory::map(bytes, PageSize::Small)?;
        let start = memory.start.as_ptr();
        // A word that is touched takes a page. It is an error where there are no huge pages.
        // SAFETY: as above.
        let _ = unsafe { madvise(start, bytes, Advice::LinuxNoHugepage) };
        memory.protect(0..bytes, Access::ReadWrite)?;
        Ok(Self(memory))
    }

    /// Makes words 0 and gives back their memory, which is whole pages.
    pub(crate) fn discard(&self, words: Range<usize>) -> Result<(), Errno> {
        let word = size_of::<AtomicU64>();
        self.0.discard(words.start * word..words.end * word)
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        let (start, bytes) = (self.0.start.as_ptr(), self.0.len);
        // SAFETY: memory of this length that may be read and written is mapped there for as long as
        // `self` lives (invariant of `start`; protected so in `zeroed`), aligned to pages, and any
        // bytes are atomic words. What the kernel makes 0 in `discard` are atomic stores to them.
        unsafe { &*ptr::slice_from_raw_parts(start.cast(), bytes / size_of::<AtomicU64>()) }
    }
}

/// The size of the kernel's pages in bytes.
pub(crate) fn system_page_size() -> usize {
    // SAFETY: asks the C library, which knows it.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn memory_has_the_size_asked_for() {
        assert_eq!(Memory::map(3 * 4096, PageSize::Small).unwrap().range().len(), 3 * 4096);
    }

    #[test]
    fn words_are_zero_until_they_are_stored_and_after_they_were_given_back() {
        let words = Words::zeroed(1024).unwrap();
        assert!(words.len() == 1024 && words.iter().all(|word| word.load(Relaxed) == 0));
        words[511].store(1, Relaxed);
        words[512].store(2, Relaxed);
        words.discard(0..512).unwrap();
        assert_eq!([511, 512].map(|at: usize| words[at].load(Relaxed)), [0, 2]);
    }

    #[test]
    fn nothing_half_pages_and_too_much_are_errors() {
        assert_eq!(Memory::map(0, PageSize::Small).unwrap_err(), Errno::INVAL);
        let aligned = Memory::map_aligned(3 * 4096, 1 << 20, PageSize::Small).unwrap().range();
        assert_eq!((aligned.start % (1 << 20), aligned.len()), (0, 3 * 4096));
        assert!(Memory::map_aligned(4096, 1 << 63, PageSize::Small).is_err());
        let taken = Memory::map(2 * 4096, PageSize::Small).unwrap();
        let start = taken.range().start;
        let at = |addr| Memory::map_at(Some(At::free(addr)), 4096, PageSize::Small);
        assert_eq!(at(start + 4096).unwrap_err(), Errno::EXIST);
        assert_eq!(at(start + 5).unwrap_err(), Errno::INVAL);
        assert_eq!(at(usize::MAX & !4095).unwrap_err(), Errno::NOMEM);
        let taken = ManuallyDrop::new(taken);
        // SAFETY: this test alone has it.
        let there = unsafe { At::replacing(start) };
        let new = Memory::map_at(Some(there), 2 * 4096, PageSize::Small);
        assert_eq!(new.unwrap().range(), taken.range());
        assert_eq!(Memory::map(5, PageSize::Small).unwrap_err(), Errno::INVAL);
        assert_eq!(Memory::map(4096, PageSize::Huge).unwrap_err(), Errno::INVAL);
        assert_eq!(Memory::map(usize::MAX & !4095, PageSize::Small).unwrap_err(), Errno::NOMEM);
    }

    #[test]
    #[should_panic(expected = "is not within")]
    fn other_memory_is_out_of_reach() {
        let _ = Memory::map(4096, PageSize::Small).unwrap().discard(0..8192);
    }
}
