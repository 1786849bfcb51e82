//! Memory of this process whose pages another process fills.
#![expect(unsafe_code, reason = "maps memory, registers it with a userfaultfd, and touches it")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

/// Memory, aligned to 2 MiB, that is registered with a userfaultfd of its own. It stays mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missing {
    pub(super) start: usize,
    pub(super) len: usize,
}

/// A userfaultfd, which does not block.
pub(super) struct Userfaultfd {
    pub(super) fd: OwnedFd,
    /// Faults of system calls, and of guests, are told too.
    pub(super) serves_system_calls: bool,
}

const ALIGN: usize = 2 << 20;

const API: libc::Ioctl = 0xC018_AA3F_u32 as libc::Ioctl;
const REGISTER: libc::Ioctl = 0xC020_AA00_u32 as libc::Ioctl;
const EVENT_REMOVE: u64 = 1 << 3;
const MODE_MISSING: u64 = 1;
const USER_MODE_ONLY: i32 = 1;

impl Userfaultfd {
    /// Opens one, which tells of what is discarded if `removes` says so.
    pub(super) fn open(removes: bool) -> io::Result<Self> {
        let open = |more: i32| {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | more;
            // SAFETY: opens a descriptor.
            let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as i32;
            // SAFETY: it is new.
            (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
        };
        let (fd, serves_system_calls) = match open(0) {
            Some(fd) => (fd, true),
            None => (open(USER_MODE_ONLY).ok_or_else(io::Error::last_os_error)?, false),
        };
        let mut api = [0xAA_u64, if removes { EVENT_REMOVE } else { 0 }, 0];
        // SAFETY: UFFDIO_API reads and writes three words.
        let agreed = unsafe { libc::ioctl(fd.as_raw_fd(), API, api.as_mut_ptr()) };
        if agreed == 0 {
            Ok(Self { fd, serves_system_calls })
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Missing {
    /// Maps so many bytes, and registers them.
    pub(super) fn map(len: usize, userfaultfd: &Userfaultfd) -> io::Result<Self> {
        let this = Self::map_plain(len)?;
        let mut register = [this.start as u64, this.len as u64, MODE_MISSING, 0];
        let fd = userfaultfd.fd.as_raw_fd();
        // SAFETY: UFFDIO_REGISTER reads and writes four words. Of the memory there is no reference.
        let done = unsafe { libc::ioctl(fd, REGISTER, register.as_mut_ptr()) };
        if done == 0 { Ok(this) } else { Err(io::Error::last_os_error()) }
    }

    /// Maps so many bytes, which the kernel fills with zeros.
    pub(super) fn map_plain(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new addresses.
        let place = unsafe { libc::mmap(ptr::null_mut(), len + ALIGN, protection, flags, -1, 0) };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: place.expose_provenance().next_multiple_of(ALIGN), len })
    }

    /// A part of it.
    pub(super) fn part(self, offset: usize, len: usize) -> Self {
        assert!(offset <= self.len && len <= self.len - offset, "a part of this");
        Self { start: self.start + offset, len }
    }

    /// Reads a byte.
    pub(super) fn touch(self, offset: usize) -> u8 {
        let at = ptr::with_exposed_provenance::<u8>(self.part(offset, 1).start);
        // SAFETY: it is mapped, and nothing but the kernel writes to it.
        unsafe { at.read_volatile() }
    }

    /// Writes bytes to its start.
    pub(super) fn write(self, bytes: &[u8]) {
        let at = ptr::with_exposed_provenance_mut::<u8>(self.part(0, bytes.len()).start);
        // SAFETY: it is mapped, as long as the bytes are, and no thread reads it.
        unsafe { at.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Gives its pages back: they are missing again.
    pub(super) fn discard(self) {
        let at = ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: memory of this module's, which is read byte by byte.
        let done = unsafe { libc::madvise(at, self.len, libc::MADV_DONTNEED) };
        assert_eq!(done, 0, "pages of anonymous memory can be given back");
    }
}

/// The calling thread runs from now on where nothing else does, as those of pervma that fill ahead.
pub(super) fn let_others_go_first() {
    let (call, this_thread, priority) = (libc::SYS_sched_setscheduler, 0, 0_i32);
    // SAFETY: the kernel reads the number that it gets the address of, and writes nothing.
    let done = unsafe { libc::syscall(call, this_thread, libc::SCHED_IDLE, &raw const priority) };
    assert_eq!(done, 0, "any thread may let others go first");
}
