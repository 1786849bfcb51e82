//! A guest's memory: mapped, registered with a userfaultfd, and accessed as processors do.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::mm::{self, MapFlags, ProtFlags, UserfaultfdFlags};

pub(crate) const PAGE: usize = 4096;

/// Memory of a guest. It stays mapped as long as this lives.
pub(crate) struct GuestMemory {
    /// Invariant: `len` bytes from here on are mapped, readable and writable, and accessed by
    /// atomics only.
    start: NonNull<u64>,
    len: usize,
}

// SAFETY: all accesses are atomic, by the one method that makes any.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// So many bytes, whole pages, none of which is there yet.
    pub(crate) fn map(len: usize) -> io::Result<Self> {
        let (protection, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: the kernel chooses addresses that are free.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), len, protection, flags) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    pub(crate) fn addr(&self) -> u64 {
        self.start.addr().get() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first word of a page.
    ///
    /// # Panics
    ///
    /// When it has no such page.
    pub(crate) fn word(&self, page: usize) -> &AtomicU64 {
        assert!(page < self.len / PAGE, "no page {page}");
        let word = self.start.as_ptr().wrapping_byte_add(page * PAGE);
        // SAFETY: an aligned word of mapped memory (invariant, and the check above). It may be
        // missing: then the access waits until the pager has filled it.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Adds up the first words of some pages, and counts each of them up.
    pub(crate) fn sum_and_count(&self, pages: impl Iterator<Item = usize>) -> u64 {
        pages.map(|page| self.word(page).fetch_add(1, Relaxed)).sum()
    }

    /// Gives pages back, as a balloon does. It returns when the pager has read of it.
    pub(crate) fn discard(&self, first: usize, pages: usize) -> io::Result<()> {
        assert!(first + pages <= self.len / PAGE, "no page {}", first + pages);
        let start = self.start.as_ptr().wrapping_byte_add(first * PAGE).cast();
        // SAFETY: within this memory (the check above), whose words may change at any time.
        Ok(unsafe { mm::madvise(start, pages * PAGE, mm::Advice::LinuxDontNeed) }?)
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length (invariant), and no borrow of it is left.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A userfaultfd that tells of missing pages in these memories, and of pages that are removed.
pub(crate) fn userfaultfd(memories: &[GuestMemory]) -> io::Result<OwnedFd> {
    // From linux/userfaultfd.h.
    const USER_MODE_ONLY: u32 = 1;
    const API: (libc::Ioctl, u64) = (0xC018_AA3F_u32 as libc::Ioctl, 0xAA);
    const REGISTER: libc::Ioctl = 0xC020_AA00_u32 as libc::Ioctl;
    const MISSING: u64 = 1;
    const EVENT_REMOVE: u64 = 1 << 3;

    let open = |more: u32| {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: the descriptor changes no memory until some is registered with it.
        unsafe { mm::userfaultfd(flags | UserfaultfdFlags::from_bits_retain(more)) }
    };
    // Without privileges accesses of the kernel (of KVM, of system calls) are not served. This
    // program makes none; a monitor needs CAP_SYS_PTRACE or /dev/userfaultfd.
    let fd = open(0).or_else(|_| open(USER_MODE_ONLY))?;
    let call = |number, words: &mut [u64]| {
        // SAFETY: these calls read and write so many words. What they register is missing still, so
        // no thread has seen another content.
        match unsafe { libc::ioctl(fd.as_raw_fd(), number, words.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    call(API.0, &mut [API.1, EVENT_REMOVE, 0])?;
    for memory in memories {
        call(REGISTER, &mut [memory.addr(), memory.len() as u64, MISSING, 0])?;
    }
    Ok(fd)
}
