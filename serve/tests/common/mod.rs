//! Clients of a pager that are threads of this process, or children of it.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses some of it")]

use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pervma_pager::sys::{Message, RemoteUserfaultfd};
use pervma_serve::MemoryFile;
use pervma_serve::state::Extent;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub(crate) const PAGE: usize = 4096;

pub(crate) const FORK: u64 = 1 << 1;
pub(crate) const REMAP: u64 = 1 << 2;
pub(crate) const REMOVE: u64 = 1 << 3;
pub(crate) const UNMAP: u64 = 1 << 6;
pub(crate) const ALL_EVENTS: u64 = FORK | REMAP | REMOVE | UNMAP;

/// Lets one test run at a time, and ends the process if it takes too long: a child that is forked
/// is one of every client that this process has.
#[must_use]
pub(crate) struct Alone {
    _lock: MutexGuard<'static, ()>,
    /// Dropped at the end.
    _is_over: Sender<()>,
}

pub(crate) fn alone() -> Alone {
    alone_for(Duration::from_secs(120))
}

pub(crate) fn alone_for(most: Duration) -> Alone {
    static LOCK: Mutex<()> = Mutex::new(());
    let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let (is_over, over) = channel::<()>();
    std::thread::spawn(move || {
        if over.recv_timeout(most) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the test hangs");
            std::process::abort();
        }
    });
    Alone { _lock: lock, _is_over: is_over }
}

/// A userfaultfd with these features, which does not block; `None` if this user may not have it.
/// Without privileges it serves no system calls, which these tests do not need.
pub(crate) fn userfaultfd(features: u64) -> Option<OwnedFd> {
    const USER_MODE_ONLY: i32 = 1;
    let open = |more: i32| {
        // SAFETY: opens a descriptor.
        let fd = unsafe {
            libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | more)
        };
        // SAFETY: it is new.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    let fd = open(0).or_else(|| open(USER_MODE_ONLY)).unwrap();
    let mut api = [0xAA_u64, features, 0];
    // SAFETY: UFFDIO_API reads and writes three words.
    let agreed = unsafe { libc::ioctl(fd.as_raw_fd(), 0xC018_AA3F, api.as_mut_ptr()) };
    if agreed != 0 {
        println!("NOT RUN: no events of forks without CAP_SYS_PTRACE");
        assert_ne!(features & FORK, 0, "{}", std::io::Error::last_os_error());
        return None;
    }
    Some(fd)
}

/// Memory of this process that a userfaultfd is registered for. It stays mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

// SAFETY: addresses.
unsafe impl Send for Memory {}

pub(crate) enum Kind {
    Anonymous,
    /// A file in memory, shared.
    Shared,
    /// Pages of 2 MiB.
    Huge,
    /// Pages of 2 MiB, for which none are kept: there may be fewer.
    HugeUnreserved,
}

impl Memory {
    /// Maps so many bytes, aligned to 2 MiB; `None` if there are no huge pages.
    pub(crate) fn map(len: usize, kind: Kind) -> Option<Self> {
        const ALIGN: usize = 2 << 20;
        let (protection, reserved) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let anonymous = reserved | libc::MAP_NORESERVE;
        // SAFETY: new addresses.
        let place = unsafe { libc::mmap(std::ptr::null_mut(), len + ALIGN, 0, anonymous, -1, 0) };
        assert_ne!(place, libc::MAP_FAILED);
        let start = place.addr().next_multiple_of(ALIGN);
        let (flags, fd) = match kind {
            Kind::Anonymous => (anonymous, -1),
            Kind::Huge => (reserved | libc::MAP_HUGETLB, -1),
            Kind::HugeUnreserved => (anonymous | libc::MAP_HUGETLB, -1),
            Kind::Shared => {
                // SAFETY: makes a file.
                let fd = unsafe { libc::memfd_create(c"memory".as_ptr(), 0) };
                // SAFETY: of its own.
                assert_eq!(unsafe { libc::ftruncate(fd, len as i64) }, 0);
                (libc::MAP_SHARED, fd)
            }
        };
        let at = place.with_addr(start);
        // SAFETY: over what was just mapped.
        let mapped = unsafe { libc::mmap(at, len, protection, flags | libc::MAP_FIXED, fd, 0) };
        (mapped != libc::MAP_FAILED).then_some(Self { start, len })
    }

    /// Maps so many bytes at an address at which nothing is.
    pub(crate) fn map_at(start: usize, len: usize) -> Self {
        let at = std::ptr::without_provenance_mut(start);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: nothing is there.
        let mapped = unsafe { libc::mmap(at, len, protection, flags, -1, 0) };
        assert_eq!(mapped, at, "{}", std::io::Error::last_os_error());
        Self { start: mapped.expose_provenance(), len }
    }

    pub(crate) fn register(self, fd: &OwnedFd) -> Self {
        self.register_for(fd, 1)
    }

    /// For missing pages, 1, and what else is to be told of.
    pub(crate) fn register_for(self, fd: &OwnedFd, modes: u64) -> Self {
        let mut register = [self.start as u64, self.len as u64, modes, 0];
        // SAFETY: UFFDIO_REGISTER reads and writes four words.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), 0xC020_AA00, register.as_mut_ptr()) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        self
    }

    pub(crate) fn write_protect(self, fd: &OwnedFd) {
        let mut protect = [self.start as u64, self.len as u64, 1];
        // SAFETY: UFFDIO_WRITEPROTECT reads three words.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), 0xC018_AA06, protect.as_mut_ptr()) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }

    pub(crate) fn page(self, page: usize) -> Self {
        self.pages(page..page + 1)
    }

    pub(crate) fn pages(self, pages: Range<usize>) -> Self {
        Self { start: self.start + pages.start * PAGE, len: pages.len() * PAGE }
    }

    pub(crate) fn byte(self, offset: usize) -> u8 {
        let at: *const u8 = std::ptr::with_exposed_provenance(self.start + offset);
        // SAFETY: mapped memory of the test's.
        unsafe { at.read_volatile() }
    }

    /// Whether the kernel can read a byte for the process: it gives it an error, and no signal.
    pub(crate) fn can_be_read(self, offset: usize) -> bool {
        let file = rustix::fs::memfd_create("byte", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let at: *const u8 = std::ptr::with_exposed_provenance(self.start + offset);
        // SAFETY: the kernel checks the address.
        unsafe { libc::write(file.as_raw_fd(), at.cast(), 1) == 1 }
    }

    pub(crate) fn set(self, offset: usize, byte: u8) {
        let at: *mut u8 = std::ptr::with_exposed_provenance_mut(self.start + offset);
        // SAFETY: mapped memory of the test's.
        unsafe { at.write_volatile(byte) }
    }

    pub(crate) fn copy(self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        let from: *const u8 = std::ptr::with_exposed_provenance(self.start);
        // SAFETY: mapped memory of the test's.
        unsafe { std::ptr::copy(from, bytes.as_mut_ptr(), self.len) };
        bytes
    }

    pub(crate) fn advise(self, advice: i32) {
        let at = std::ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: mapped memory of the test's.
        let done = unsafe { libc::madvise(at, self.len, advice) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    pub(crate) fn protect(self, protection: i32) {
        let at = std::ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: mapped memory of the test's.
        let done = unsafe { libc::mprotect(at, self.len, protection) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    pub(crate) fn discard(self) {
        self.advise(libc::MADV_DONTNEED);
    }

    pub(crate) fn unmap(self) {
        let at = std::ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: mapped memory of the test's, which is not used any more.
        assert_eq!(unsafe { libc::munmap(at, self.len) }, 0);
    }

    /// Unmaps it, and reads what is told of that.
    pub(crate) fn unmap_beside(self, uffd: &RemoteUserfaultfd) {
        std::thread::scope(|scope| {
            let unmapper = scope.spawn(move || self.unmap());
            while !unmapper.is_finished() {
                let mut messages = [Message::default()];
                let _ = uffd.read(&mut messages);
                messages[0].take();
                std::thread::yield_now();
            }
        });
    }

    /// Moves it to other addresses.
    pub(crate) fn relocate(self, to: usize, more: i32) -> Self {
        let at = std::ptr::with_exposed_provenance_mut(self.start);
        let there: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(to);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | more;
        // SAFETY: memory of the test's, to where nothing else is.
        let moved = unsafe { libc::mremap(at, self.len, self.len, flags, there) };
        assert_ne!(moved, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { start: to, len: self.len }
    }

    /// Whether it is mapped, all of it.
    pub(crate) fn is_mapped(self) -> bool {
        let at = std::ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: it asks about addresses.
        unsafe { libc::msync(at, self.len, libc::MS_ASYNC) == 0 }
    }

    /// Makes it longer, where it is or elsewhere.
    pub(crate) fn lengthen(self, more: usize) -> Self {
        let at = std::ptr::with_exposed_provenance_mut(self.start);
        let len = self.len + more;
        // SAFETY: memory of the test's.
        let longer = unsafe { libc::mremap(at, self.len, len, libc::MREMAP_MAYMOVE) };
        assert_ne!(longer, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { start: longer.expose_provenance(), len }
    }

    /// As a client tells of it.
    pub(crate) fn extent(self, offset: u64) -> Extent {
        self.extent_of(offset, PAGE as u32)
    }

    pub(crate) fn extent_of(self, offset: u64, page_size: u32) -> Extent {
        let (start, len) = (self.start as u64, self.len as u64);
        Extent { start, len, offset, page_size, content: Extent::SOURCE }
    }
}

/// Bytes that differ everywhere, and no page of which is zeros.
pub(crate) fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    for page in bytes.chunks_mut(PAGE) {
        page[0] |= 1;
    }
    bytes
}

/// How many huge pages the system could give out.
pub(crate) fn free_huge_pages() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap();
    free.trim().parse().unwrap()
}

pub(crate) fn memory_file(bytes: &[u8]) -> Arc<MemoryFile> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(MemoryFile::new(file).unwrap())
}

/// Runs a forked child, and returns how it ended: its exit code, or its signal with a minus.
pub(crate) fn in_child(work: impl FnOnce() -> i32) -> i32 {
    // Not `fork`: that locks the allocator until the kernel returns, which waits for the pager,
    // which allocates.
    // SAFETY: as `fork`; what the child does takes no lock and allocates nothing.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
    if child == 0 {
        let code = work();
        // SAFETY: ends the child, without what others have to do at the end.
        unsafe { libc::_exit(code) };
    }
    assert!(child > 0);
    wait_for(child)
}

pub(crate) fn wait_for(child: i32) -> i32 {
    let mut status = 0;
    // SAFETY: a child of this process.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
}
