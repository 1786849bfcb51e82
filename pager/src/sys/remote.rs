//! A userfaultfd of another process.
#![expect(unsafe_code, reason = "ioctls, and descriptors that come as numbers")]

use std::fs;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::{Errno, ReadWriteFlags};

use super::userfaultfd::{filled, update};
use super::{CopyError, FaultMessage, abi};

/// A userfaultfd that another process has opened, has registered its memory with, and has passed to
/// this one, by `SCM_RIGHTS` for example. Addresses are those of that process.
///
/// Memory of this process can be meant as well, as in a virtual machine monitor that serves its own
/// guest: whoever registers memory has agreed that its missing pages be filled by any holder of the
/// descriptor.
///
/// When the last descriptor is closed, the kernel fills what is missing with zeros.
#[derive(Debug)]
pub struct RemoteUserfaultfd {
    fd: OwnedFd,
}

/// The descriptor is no userfaultfd, or `/proc` is not there to tell.
#[derive(Debug, thiserror::Error)]
#[error("the descriptor is no userfaultfd: {found}")]
pub struct NotUserfaultfd {
    found: String,
}

/// Space for a message of the kernel's: plain bytes, in a buffer of the caller's. It is to be
/// [taken](Self::take) when it was read.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Message(abi::Message);

/// What a userfaultfd tells of.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A thread sleeps until a page is filled, poisoned or woken.
    Fault(FaultMessage),
    /// The process has forked. The child's memory is registered with a userfaultfd of its own.
    Fork(OwnedFd),
    /// Memory has moved, by `mremap`. What was at `from` is missing or present at `to`.
    Remap {
        /// Where it began.
        from: usize,
        /// Where it begins.
        to: usize,
        /// How many bytes have moved. The mapping can have become longer.
        len: usize,
    },
    /// Pages are about to go, by `madvise`. This is told before they do.
    Remove(Range<usize>),
    /// Memory was unmapped, by `munmap`, `mremap` or a mapping over it.
    Unmap(Range<usize>),
    /// The message was taken already, or is of a kind that the kernel did not have.
    Other(u8),
}

impl Message {
    /// What it says. A second time it says nothing: it owned a descriptor perhaps.
    pub fn take(&mut self) -> Event {
        let message = std::mem::take(&mut self.0);
        let [first, second, third] = message.words.map(|word| word as usize);
        match message.event {
            abi::EVENT_PAGEFAULT => Event::Fault(FaultMessage::of(&message)),
            abi::EVENT_FORK => {
                let number = abi::first_half(message.words[0]).cast_signed();
                // SAFETY: the kernel has opened it for the reader of this message, who has not
                // taken it before. Nothing but the kernel makes messages that are not empty.
                Event::Fork(unsafe { OwnedFd::from_raw_fd(number) })
            }
            abi::EVENT_REMAP => Event::Remap { from: first, to: second, len: third },
            abi::EVENT_REMOVE => Event::Remove(first..second),
            abi::EVENT_UNMAP => Event::Unmap(first..second),
            other => Event::Other(other),
        }
    }
}

/// What `/proc/self/fd` says of a userfaultfd.
const LINK: &str = "anon_inode:[userfaultfd]";

fn link(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

impl RemoteUserfaultfd {
    /// Takes a descriptor, and makes it nonblocking: also what its other holders have.
    ///
    /// # Errors
    ///
    /// When it is no userfaultfd, as `/proc/self/fd` tells.
    pub fn new(fd: OwnedFd) -> Result<Self, NotUserfaultfd> {
        let link = link(fd.as_fd());
        if link.as_ref().is_ok_and(|link| link.as_os_str() == LINK) {
            // For kernels whose `read` can only so be told not to wait.
            let _ = rustix::io::ioctl_fionbio(&fd, true);
            return Ok(Self { fd });
        }
        let found = link.map_or_else(|error| error.to_string(), |link| link.display().to_string());
        Err(NotUserfaultfd { found })
    }

    /// Whether a descriptor is a userfaultfd, as `/proc/self/fd` tells.
    #[must_use]
    pub fn is_one(fd: BorrowedFd<'_>) -> bool {
        link(fd).is_ok_and(|link| link.as_os_str() == LINK)
    }

    /// Reads messages to the start of `buffer`, page faults first whatever was told before them,
    /// and returns how many; 0 if there are none now.
    ///
    /// The threads that have raised the other events go on when this returns.
    ///
    /// # Errors
    ///
    /// The kernel's. Before Linux 6.10 this waits if another holder has made the descriptor
    /// blocking again.
    pub fn read(&self, buffer: &mut [Message]) -> Result<usize, Errno> {
        let bytes = {
            let (start, len) = (buffer.as_mut_ptr().cast::<u8>(), size_of_val(buffer));
            // SAFETY: the memory of `buffer`, all of whose bytes are valid, and for which all bytes
            // are valid messages.
            unsafe { std::slice::from_raw_parts_mut(start, len) }
        };
        let read = match self.read_at_once(bytes) {
            // Before Linux 6.10.
            Err(Errno::OPNOTSUPP) => rustix::io::read(&self.fd, bytes),
            other => other,
        };
        match read {
            Ok(read) => Ok(read / size_of::<Message>()),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Reads without waiting, whatever another holder of the descriptor has made of its flags.
    fn read_at_once(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        /// A position that is none.
        const HERE: u64 = u64::MAX;
        let mut bytes = [IoSliceMut::new(bytes)];
        rustix::io::preadv2(&self.fd, &mut bytes, HERE, ReadWriteFlags::NOWAIT)
    }

    /// Fills the missing pages from `addr` on with `bytes`, whole pages, and wakes the threads that
    /// sleep for them if `wake` says so.
    ///
    /// The kernel reads the bytes: from memory that cannot be read it says `EFAULT`.
    ///
    /// # Errors
    ///
    /// See [`CopyError`]. While an event that is no fault waits to be read, and a little longer,
    /// it is [`CopyError::Again`].
    #[doc(alias = "UFFDIO_COPY")]
    pub fn copy(&self, addr: usize, bytes: *const [u8], wake: bool) -> Result<(), CopyError> {
        let mut copy = abi::Copy {
            dst: addr as u64,
            src: bytes.expose_provenance() as u64,
            len: bytes.len() as u64,
            mode: if wake { 0 } else { abi::COPY_DONT_WAKE },
            copy: 0,
        };
        // SAFETY: `Copy` is what UFFDIO_COPY reads and writes. It writes only missing pages of
        // memory whose owner has registered it for that.
        let copied = unsafe { update::<{ abi::COPY }, _>(self.fd.as_fd(), &mut copy) };
        filled(copied, copy.copy)
    }

    /// Fills the missing pages from `addr` on with zeros: they take no memory of their own. Not for
    /// huge pages.
    ///
    /// # Errors
    ///
    /// As for [`copy`](Self::copy).
    #[doc(alias = "UFFDIO_ZEROPAGE")]
    pub fn zero(&self, addr: usize, len: usize, wake: bool) -> Result<(), CopyError> {
        let mode = if wake { 0 } else { abi::ZERO_PAGE_DONT_WAKE };
        let (start, len) = (addr as u64, len as u64);
        let mut zero = abi::ZeroPage { start, len, mode, filled: 0 };
        // SAFETY: `ZeroPage` is what UFFDIO_ZEROPAGE reads and writes; the rest as for `copy`.
        let zeroed = unsafe { update::<{ abi::ZERO_PAGE }, _>(self.fd.as_fd(), &mut zero) };
        filled(zeroed, zero.filled)
    }

    /// Makes every access to the missing pages from `addr` on raise SIGBUS from now on, until they
    /// are discarded, and wakes the threads that sleep for them.
    ///
    /// # Errors
    ///
    /// See [`CopyError`]. Before Linux 6.6 it is `EINVAL`.
    #[doc(alias = "UFFDIO_POISON")]
    pub fn poison(&self, addr: usize, len: usize) -> Result<(), CopyError> {
        let (start, len) = (addr as u64, len as u64);
        let mut poison = abi::Poison { start, len, mode: 0, updated: 0 };
        // SAFETY: `Poison` is what UFFDIO_POISON reads and writes; the rest as for `copy`.
        let poisoned = unsafe { update::<{ abi::POISON }, _>(self.fd.as_fd(), &mut poison) };
        filled(poisoned, poison.updated)
    }

    /// Wakes the threads that sleep for pages from `addr` on: their accesses are repeated.
    ///
    /// # Errors
    ///
    /// The kernel's: `EINVAL` for what are no whole pages.
    #[doc(alias = "UFFDIO_WAKE")]
    pub fn wake(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let mut argument = abi::Range { start: addr as u64, len: len as u64 };
        // SAFETY: `Range` is what UFFDIO_WAKE reads; it changes no content.
        unsafe { update::<{ abi::WAKE }, _>(self.fd.as_fd(), &mut argument) }
    }

    /// Takes memory back from the userfaultfd, also from copies of it that others keep: the kernel
    /// fills what is missing with zeros from now on, tells nothing of it, and wakes the threads
    /// that sleep for it. What was poisoned stays so.
    ///
    /// # Errors
    ///
    /// The kernel's: `EINVAL` where nothing is mapped at `addr`.
    #[doc(alias = "UFFDIO_UNREGISTER")]
    pub fn unregister(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let mut argument = abi::Range { start: addr as u64, len: len as u64 };
        // SAFETY: `Range` is what UFFDIO_UNREGISTER reads; it changes no content that is there.
        unsafe { update::<{ abi::UNREGISTER }, _>(self.fd.as_fd(), &mut argument) }
    }
}

impl AsFd for RemoteUserfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_another_kind_is_refused_by_name() {
        let error = RemoteUserfaultfd::new(fs::File::open("/dev/null").unwrap().into());
        assert!(error.unwrap_err().to_string().ends_with("/dev/null"));
    }

    #[test]
    fn a_message_says_what_it_says_once() {
        let words = [0x1000, 0x5000, 0x2000];
        let message = |event| Message(abi::Message { event, reserved: [0; 7], words });
        let mut remap = message(abi::EVENT_REMAP);
        let said = remap.take();
        assert!(matches!(said, Event::Remap { from: 0x1000, to: 0x5000, len: 0x2000 }), "{said:?}");
        assert!(matches!(remap.take(), Event::Other(0)));
        let removed = message(abi::EVENT_REMOVE).take();
        assert!(matches!(removed, Event::Remove(range) if range == (0x1000..0x5000)));
        let unmapped = message(abi::EVENT_UNMAP).take();
        assert!(matches!(unmapped, Event::Unmap(range) if range == (0x1000..0x5000)));
        assert!(matches!(message(99).take(), Event::Other(99)));
    }
}
