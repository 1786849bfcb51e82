//! A userfaultfd context and the calls on it.
#![expect(unsafe_code, reason = "opening a userfaultfd and the ioctls on it")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::Memory;
use super::abi;

/// A userfaultfd in SIGBUS mode, for faults of user code only.
///
/// An access to a missing page of memory that is registered with it raises SIGBUS in the thread
/// that made it. A system call that makes such an access fails with `EFAULT`.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
}

/// Why no userfaultfd could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No descriptor or memory was left for one (`EMFILE`, `ENFILE`, `ENOMEM`).
    #[error(
        "nothing was left for a userfaultfd ({0}): each region takes a descriptor, raise ulimit -n"
    )]
    Exhausted(Errno),
    /// The system call was refused.
    #[error(
        "userfaultfd was refused ({0}): it needs Linux 5.11 or later and a container or seccomp \
         filter that lets the system call through; on older kernels, root or \
         vm.unprivileged_userfaultfd=1"
    )]
    Refused(Errno),
    /// The kernel, or a filter, has userfaultfd but not its SIGBUS mode.
    #[error(
        "userfaultfd has no SIGBUS mode here ({0}): it needs Linux 4.14 or later and a filter that \
         lets its ioctls through"
    )]
    NoSigbusMode(Errno),
}

/// Why pages were not filled, or not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The first page is there already (`EEXIST`); nothing was copied.
    #[error("the page is already present")]
    AlreadyPresent,
    /// The kernel stopped (`EAGAIN`): mappings are changing, or a later page is already present.
    /// Find out again what belongs there, then go on behind what was copied.
    #[error("stopped after {copied} bytes, to be tried again")]
    Again {
        /// What was filled, in bytes from the start.
        copied: usize,
    },
    /// The memory is not registered with a userfaultfd (`ENOENT`).
    #[error("the memory is not registered")]
    NotRegistered,
    /// The process that opened the userfaultfd is gone (`ESRCH`).
    #[error("the process that owns the memory is gone")]
    ProcessGone,
    /// Anything else: no memory, or a range that is not whole pages.
    #[error("filling pages failed: {0}")]
    Other(Errno),
}

impl Userfaultfd {
    /// Opens one, close-on-exec and user-mode-only, and agrees with the kernel on SIGBUS mode.
    ///
    /// # Errors
    ///
    /// When the system call is refused or the kernel is too old.
    pub fn open_sigbus() -> Result<Self, OpenError> {
        let flags = UserfaultfdFlags::CLOEXEC
            | UserfaultfdFlags::NONBLOCK
            | UserfaultfdFlags::from_bits_retain(abi::USER_MODE_ONLY);
        // SAFETY: the descriptor changes no memory until some is registered with it.
        let fd = unsafe { userfaultfd(flags) }.map_err(|errno| match errno {
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => OpenError::Exhausted(errno),
            _ => OpenError::Refused(errno),
        })?;
        let mut api = abi::Api { api: abi::API_VERSION, features: abi::FEATURE_SIGBUS, ioctls: 0 };
        // SAFETY: `Api` is what UFFDIO_API reads and writes.
        unsafe { update::<{ abi::API }, _>(fd.as_fd(), &mut api) }
            .map_err(OpenError::NoSigbusMode)?;
        Ok(Self { fd })
    }

    /// Registers `memory` and lets it be read: the first access to each of its pages raises SIGBUS
    /// until the page is filled.
    ///
    /// # Errors
    ///
    /// The kernel's: `EBUSY` when a userfaultfd has it already. `ESRCH` in a forked child of the
    /// process that mapped it.
    #[doc(alias = "UFFDIO_REGISTER")]
    pub fn register_missing(&self, memory: &Memory) -> Result<(), Errno> {
        if !memory.is_of_this_process() {
            return Err(Errno::SRCH);
        }
        let range = memory.range();
        let mut register = abi::Register {
            start: range.start as u64,
            len: range.len() as u64,
            mode: abi::REGISTER_MISSING,
            ioctls: 0,
        };
        // SAFETY: `Register` is what UFFDIO_REGISTER reads and writes. What it does to the memory
        // is part of the contract of `Memory::bytes`, the only way to the content.
        unsafe { update::<{ abi::REGISTER }, _>(self.fd.as_fd(), &mut register) }?;
        memory.make_readable()
    }

    /// Fills the missing pages of `memory` from `offset` on with `bytes`: whole pages both.
    ///
    /// Nobody is woken: in SIGBUS mode nobody sleeps.
    ///
    /// # Errors
    ///
    /// See [`CopyError`].
    ///
    /// # Panics
    ///
    /// When the bytes would reach beyond the memory.
    #[doc(alias = "UFFDIO_COPY")]
    #[inline]
    pub fn copy(&self, memory: &Memory, offset: usize, bytes: &[u8]) -> Result<(), CopyError> {
        let range = memory.range();
        let fits = offset <= range.len() && bytes.len() <= range.len() - offset;
        assert!(fits, "{} bytes at {offset} do not fit in {}", bytes.len(), range.len());
        let mut copy = abi::Copy {
            dst: (range.start + offset) as u64,
            src: bytes.as_ptr().expose_provenance() as u64,
            len: bytes.len() as u64,
            mode: abi::COPY_DONT_WAKE,
            copy: 0,
        };
        // SAFETY: `Copy` is what UFFDIO_COPY reads and writes. It reads `bytes`, which are
        // borrowed, and writes only missing pages of `memory`, whose content nobody has seen
        // (contract of `Memory::bytes`).
        match unsafe { update::<{ abi::COPY }, _>(self.fd.as_fd(), &mut copy) } {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(CopyError::AlreadyPresent),
            // A negative number is the error once more: nothing was copied.
            Err(Errno::AGAIN) => {
                Err(CopyError::Again { copied: usize::try_from(copy.copy).unwrap_or(0) })
            }
            Err(Errno::NOENT) => Err(CopyError::NotRegistered),
            Err(Errno::SRCH) => Err(CopyError::ProcessGone),
            Err(other) => Err(CopyError::Other(other)),
        }
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An ioctl that reads and writes `value`.
///
/// # Safety
///
/// `T` is the structure that the kernel expects for `OPCODE`, and its fields name memory that the
/// call may read and write.
#[inline]
unsafe fn update<const OPCODE: Opcode, T>(fd: BorrowedFd<'_>, value: &mut T) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the pair of number and structure.
    let call = unsafe { Updater::<OPCODE, T>::new(value) };
    // SAFETY: the caller vouches for what the call reads and writes.
    unsafe { ioctl(fd, call) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn registered(pages: usize) -> (Userfaultfd, Memory) {
        let memory = Memory::map(pages * PAGE).unwrap();
        let uffd = Userfaultfd::open_sigbus().unwrap();
        uffd.register_missing(&memory).unwrap();
        (uffd, memory)
    }

    #[test]
    fn a_page_is_filled_once() {
        let (uffd, memory) = registered(2);
        uffd.copy(&memory, PAGE, &[1; PAGE]).unwrap();
        assert_eq!(uffd.copy(&memory, PAGE, &[2; PAGE]), Err(CopyError::AlreadyPresent));
        // SAFETY: only the filled page is read, and nothing changes it.
        let bytes = unsafe { memory.bytes() };
        assert!(bytes[PAGE..].iter().all(|&byte| byte == 1));
    }

    #[test]
    fn a_partial_copy_reports_what_it_did() {
        let (uffd, memory) = registered(3);
        uffd.copy(&memory, 2 * PAGE, &[1; PAGE]).unwrap();
        let outcome = uffd.copy(&memory, 0, &[2; 3 * PAGE]);
        assert_eq!(outcome, Err(CopyError::Again { copied: 2 * PAGE }));
    }

    #[test]
    fn memory_that_is_not_registered_is_told_apart() {
        let uffd = Userfaultfd::open_sigbus().unwrap();
        let memory = Memory::map(PAGE).unwrap();
        assert_eq!(uffd.copy(&memory, 0, &[0; PAGE]), Err(CopyError::NotRegistered));
    }

    #[test]
    fn half_pages_are_refused() {
        let (uffd, memory) = registered(1);
        assert_eq!(uffd.copy(&memory, 0, &[0; 10]), Err(CopyError::Other(Errno::INVAL)));
    }

    #[test]
    fn memory_has_one_userfaultfd_at_a_time() {
        let (_uffd, memory) = registered(1);
        let second = Userfaultfd::open_sigbus().unwrap();
        assert_eq!(second.register_missing(&memory), Err(Errno::BUSY));
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn filling_beyond_the_memory_panics() {
        let (uffd, memory) = registered(1);
        let _ = uffd.copy(&memory, PAGE, &[0; PAGE]);
    }
}
