//! A userfaultfd context and the calls on it.
#![expect(unsafe_code, reason = "opening a userfaultfd and the ioctls on it")]
#![expect(clippy::disallowed_types, reason = "fills pages with words that no thread changes")]

use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use rustix::ffi::c_void;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::abi;
use super::{Memory, PageSize};

/// A userfaultfd. How an access to a missing page of memory that is registered with it is told is
/// settled when it is opened.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
    serves_system_calls: bool,
    can_poison: bool,
    can_move: bool,
    can_zero: bool,
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
        "userfaultfd was refused ({0}): it needs Linux 5.11 or later, and a container or seccomp \
         filter that lets the system call through or access to /dev/userfaultfd; on older kernels, \
         root or vm.unprivileged_userfaultfd=1"
    )]
    Refused(Errno),
    /// The kernel, or a filter, has userfaultfd but not what this crate needs of it.
    #[error(
        "userfaultfd has not the features that are needed ({0}): write protection needs Linux \
         5.19, serving by a thread Linux 6.6, and a filter must let its ioctls and reads through"
    )]
    NoFeatures(Errno),
}

/// Why pages were not filled, or not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The first page is present already (`EEXIST`); nothing was copied, and no thread was woken.
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

/// Why pages were not moved, or not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// The kernel stopped (`EAGAIN`), perhaps since a later page cannot be moved. Go on behind what
    /// was moved.
    #[error("stopped after {moved} bytes, to be tried again")]
    Again {
        /// What was moved, in bytes from the start.
        moved: usize,
    },
    /// The first page is held for a device (`EBUSY`), or shared with another process.
    #[error("the page is pinned")]
    Held,
    /// The first page is missing (`ENOENT`).
    #[error("the page is missing")]
    Missing,
    /// A page is present already where the first one should go (`EEXIST`). Linux 6.18 also says so
    /// when it has just moved the page there, after a try that had to be repeated: what is missing
    /// at its old place then has moved, and so may pages behind it.
    #[error("the page is already present")]
    AlreadyPresent,
    /// The range lies in several mappings of the kernel's, or in one that is not like the other
    /// memory's (`EINVAL`): not let be written, locked or not, of another protection key.
    #[error("the memory is in several mappings, or not like that where it should go")]
    Unlike,
    /// Anything else.
    #[error("moving pages failed: {0}")]
    Other(Errno),
}

/// What filling a page does beside filling it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Threads that sleep for the pages are woken. In SIGBUS mode no thread sleeps.
    pub wake: bool,
    /// The pages are write-protected; the memory is registered with
    /// [`register_tracked`](Userfaultfd::register_tracked).
    pub write_protected: bool,
}

/// A fault that a thread sleeps for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultMessage {
    /// The address of the page.
    pub addr: usize,
    /// Whether the access is a write.
    pub is_write: bool,
    /// Whether the page is present, and write-protected.
    pub is_write_protected: bool,
    /// Whether the page is in the file, and only not mapped (`UFFDIO_REGISTER_MODE_MINOR`).
    pub is_minor: bool,
    /// The thread that sleeps, as `gettid` names it; 0 if it was not asked for when the userfaultfd
    /// was opened.
    pub thread: u32,
}

impl FaultMessage {
    /// What a message of a page fault says.
    pub(super) fn of(message: &abi::Message) -> Self {
        let [flags, address, thread] = message.words;
        Self {
            addr: address as usize,
            is_write: flags & abi::FAULT_WRITE != 0,
            is_write_protected: flags & abi::FAULT_WRITE_PROTECTED != 0,
            is_minor: flags & abi::FAULT_MINOR != 0,
            // The kernel keeps it in the first half of the word.
            thread: abi::first_half(thread),
        }
    }
}

/// Messages at a time, so that events of a busy userfaultfd do not cost a system call each.
const BATCH: usize = 32;

impl Userfaultfd {
    /// Opens one in SIGBUS mode, close-on-exec and user-mode-only: an access to a missing page
    /// raises SIGBUS in the thread that made it, and a system call that makes one fails with
    /// `EFAULT`. It needs no privilege: where the system call is refused, access to
    /// `/dev/userfaultfd` will do. With `track`, memory can be registered with write protection
    /// too.
    ///
    /// # Errors
    ///
    /// When the system call is refused or the kernel is too old.
    pub fn open_sigbus(page_size: PageSize, track: bool) -> Result<Self, OpenError> {
        let fd = match open_plain(abi::USER_MODE_ONLY) {
            Ok(fd) => fd,
            Err(errno) => open_device(abi::USER_MODE_ONLY).map_err(|_| refused(errno))?,
        };
        Self::agree(fd, false, abi::FEATURE_SIGBUS | features(page_size, track))
    }

    /// Opens one, close-on-exec, whose faults are [read](Self::read_faults): the thread that made
    /// the access sleeps until a thread fills the page.
    ///
    /// Faults of system calls are served if that is granted: access to `/dev/userfaultfd`,
    /// `CAP_SYS_PTRACE`, or `vm.unprivileged_userfaultfd=1`. If not, a system call that touches a
    /// missing page fails with `EFAULT`; [`serves_system_calls`](Self::serves_system_calls) tells.
    ///
    /// # Errors
    ///
    /// When the system call is refused or the kernel is too old.
    pub fn open(page_size: PageSize, track: bool) -> Result<Self, OpenError> {
        let granted = open_device(0).or_else(|_| open_plain(0));
        let (fd, serves_system_calls) = match granted {
            Ok(fd) => (fd, true),
            Err(_) => (open_plain(abi::USER_MODE_ONLY).map_err(refused)?, false),
        };
        let features = abi::FEATURE_POISON | abi::FEATURE_THREAD_ID | features(page_size, track);
        Self::agree(fd, serves_system_calls, features)
    }

    fn agree(fd: OwnedFd, serves_system_calls: bool, features: u64) -> Result<Self, OpenError> {
        let mut api = abi::Api { api: abi::API_VERSION, features, ioctls: 0 };
        // SAFETY: `Api` is what UFFDIO_API reads and writes.
        unsafe { update::<{ abi::API }, _>(fd.as_fd(), &mut api) }
            .map_err(OpenError::NoFeatures)?;
        // The kernel answers with all the features that it has.
        let can_poison = api.features & abi::FEATURE_POISON != 0;
        let can_move = api.features & abi::FEATURE_MOVE != 0;
        // As old as userfaultfd; a filter can refuse it.
        Ok(Self { fd, serves_system_calls, can_poison, can_move, can_zero: true })
    }

    /// Whether what serving faults takes is let through: a filter may refuse what opening did not
    /// need. Nothing is filled, and no fault is taken.
    pub(crate) fn check(&mut self, track: bool, reads: bool) -> Result<(), OpenError> {
        // The kernel refuses an empty range as such; a filter looks no further than the call.
        let refused = |called: Result<(), Errno>| match called {
            Err(Errno::INVAL | Errno::AGAIN) | Ok(()) => Ok(()),
            Err(errno) => Err(OpenError::NoFeatures(errno)),
        };
        let mut copy = abi::Copy { dst: 0, src: 0, len: 0, mode: 0, copy: 0 };
        // SAFETY: `Copy` is what UFFDIO_COPY reads and writes; its range is empty.
        refused(unsafe { update::<{ abi::COPY }, _>(self.fd.as_fd(), &mut copy) })?;
        let mut zero = abi::ZeroPage { start: 0, len: 0, mode: 0, filled: 0 };
        // SAFETY: `ZeroPage` is what UFFDIO_ZEROPAGE reads and writes; its range is empty.
        let called = unsafe { update::<{ abi::ZERO_PAGE }, _>(self.fd.as_fd(), &mut zero) };
        // It can be done without.
        self.can_zero &= refused(called).is_ok();
        if track {
            let mut protect = abi::WriteProtect { start: 0, len: 0, mode: 0 };
            // SAFETY: `WriteProtect` is what UFFDIO_WRITEPROTECT reads; its range is empty.
            refused(unsafe { update::<{ abi::WRITE_PROTECT }, _>(self.fd.as_fd(), &mut protect) })?;
        }
        let mut moved = abi::Move { dst: 0, src: 0, len: 0, mode: 0, moved: 0 };
        // SAFETY: `Move` is what UFFDIO_MOVE reads and writes; its range is empty.
        let called = unsafe { update::<{ abi::MOVE }, _>(self.fd.as_fd(), &mut moved) };
        // It can be done without.
        self.can_move &= refused(called).is_ok();
        if reads {
            // Too short for a message.
            refused(rustix::io::read(&self.fd, &mut [0; 1]).map(drop))?;
        }
        Ok(())
    }

    /// Whether system calls that touch missing pages are served too, by the thread that reads the
    /// faults.
    #[must_use]
    pub fn serves_system_calls(&self) -> bool {
        self.serves_system_calls
    }

    /// Registers `memory`: the first access to each of its pages that
    /// [`protect`](Memory::protect) lets through is a fault, until the page is filled.
    ///
    /// # Errors
    ///
    /// The kernel's: `EBUSY` when a userfaultfd has it already. `ESRCH` in a forked child of the
    /// process that mapped it.
    #[doc(alias = "UFFDIO_REGISTER")]
    pub fn register_missing(&self, memory: &Memory) -> Result<(), Errno> {
        self.register(memory, abi::REGISTER_MISSING)
    }

    /// Registers `memory` as [`register_missing`](Self::register_missing) does, and so that its
    /// pages can be write-protected: the first write to such a page is a fault too.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn register_tracked(&self, memory: &Memory) -> Result<(), Errno> {
        self.register(memory, abi::REGISTER_MISSING | abi::REGISTER_WRITE_PROTECT)
    }

    fn register(&self, memory: &Memory, mode: u64) -> Result<(), Errno> {
        if !memory.is_of_this_process() {
            return Err(Errno::SRCH);
        }
        let range = memory.range();
        let mut register =
            abi::Register { start: range.start as u64, len: range.len() as u64, mode, ioctls: 0 };
        // SAFETY: `Register` is what UFFDIO_REGISTER reads and writes. What it does to the memory
        // is part of the contract of `Memory::bytes`, the only way to the content.
        unsafe { update::<{ abi::REGISTER }, _>(self.fd.as_fd(), &mut register) }
    }

    /// Fills the missing pages of `memory` from `offset` on with `bytes`: whole pages both.
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
    pub fn copy(
        &self,
        memory: &Memory,
        offset: usize,
        bytes: &[u8],
        fill: Fill,
    ) -> Result<(), CopyError> {
        let from = bytes.as_ptr().expose_provenance();
        self.copy_from(memory, offset, from, bytes.len(), fill)
    }

    /// Fills pages as [`copy`](Self::copy) does, with words that no thread changes meanwhile.
    #[inline]
    pub(crate) fn copy_words(
        &self,
        memory: &Memory,
        offset: usize,
        words: &[AtomicU64],
        fill: Fill,
    ) -> Result<(), CopyError> {
        let from = words.as_ptr().expose_provenance();
        self.copy_from(memory, offset, from, size_of_val(words), fill)
    }

    #[inline]
    fn copy_from(
        &self,
        memory: &Memory,
        offset: usize,
        from: usize,
        len: usize,
        fill: Fill,
    ) -> Result<(), CopyError> {
        let range = memory.range();
        let fits = offset <= range.len() && len <= range.len() - offset;
        assert!(fits, "{len} bytes at {offset} do not fit in {}", range.len());
        let wake = if fill.wake { 0 } else { abi::COPY_DONT_WAKE };
        let protected = if fill.write_protected { abi::COPY_WRITE_PROTECTED } else { 0 };
        let mut copy = abi::Copy {
            dst: (range.start + offset) as u64,
            src: from as u64,
            len: len as u64,
            mode: wake | protected,
            copy: 0,
        };
        // SAFETY: `Copy` is what UFFDIO_COPY reads and writes. The kernel reads so many bytes at
        // `from`, which the callers' borrows keep, or says that they are not there; it writes only
        // missing pages of `memory`, whose content no thread has seen (contract of
        // `Memory::bytes`).
        let copied = unsafe { update::<{ abi::COPY }, _>(self.fd.as_fd(), &mut copy) };
        filled(copied, copy.copy)
    }

    /// Whether pages can be [filled with zeros](Self::zero): unless a filter refuses it.
    pub(crate) fn can_zero(&self) -> bool {
        self.can_zero
    }

    /// Fills the missing pages at `range` of `memory`, whole pages of 4096 bytes, with zeros: they
    /// take no memory of their own. They are not write-protected.
    ///
    /// # Errors
    ///
    /// See [`CopyError`].
    ///
    /// # Panics
    ///
    /// When the range is not within the memory.
    #[doc(alias = "UFFDIO_ZEROPAGE")]
    pub fn zero(&self, memory: &Memory, range: Range<usize>, wake: bool) -> Result<(), CopyError> {
        let (start, len) = part(memory, &range);
        let mode = if wake { 0 } else { abi::ZERO_PAGE_DONT_WAKE };
        let mut zero = abi::ZeroPage { start, len, mode, filled: 0 };
        // SAFETY: `ZeroPage` is what UFFDIO_ZEROPAGE reads and writes. It writes only missing pages
        // of `memory`, whose content no thread has seen (contract of `Memory::bytes`).
        let zeroed = unsafe { update::<{ abi::ZERO_PAGE }, _>(self.fd.as_fd(), &mut zero) };
        filled(zeroed, zero.filled)
    }

    /// Whether pages can be [moved](Self::move_pages): from Linux 6.8 on, if a filter lets it
    /// through.
    #[must_use]
    pub fn can_move(&self) -> bool {
        self.can_move
    }

    /// Moves the pages at `range` of `from`, all of which are present, to the missing ones of `to`
    /// from `offset` on: whole pages of 4096 bytes. They are missing where they were then. Both are
    /// let be written at those places ([`Memory::protect`]), and locked or not both; `to` is
    /// registered with this userfaultfd.
    ///
    /// A transparent huge page moves as one where both places are aligned to it and the kernel has
    /// no page table at the new one, not even an empty one; otherwise it is split, which takes
    /// longer than a copy (seen in Linux 6.18).
    ///
    /// A page that the kernel holds for a device (it is pinned: direct I/O, registered buffers)
    /// does not move, and a page that has moved is not held. Write protection does not move with a
    /// page (seen up to Linux 6.18): it can be written at its new place.
    ///
    /// # Errors
    ///
    /// See [`MoveError`].
    ///
    /// # Panics
    ///
    /// When either range is not within its memory.
    #[doc(alias = "UFFDIO_MOVE")]
    pub fn move_pages(
        &self,
        from: &Memory,
        range: Range<usize>,
        to: &Memory,
        offset: usize,
    ) -> Result<(), MoveError> {
        let (src, len) = part(from, &range);
        let (dst, _) = part(to, &(offset..offset.saturating_add(range.len())));
        let mut argument = abi::Move { dst, src, len, mode: 0, moved: 0 };
        // SAFETY: `Move` is what UFFDIO_MOVE reads and writes. It fills missing pages of `to`,
        // whose content no thread has seen, and takes pages of `from` away, from which the owner of
        // a slice of them keeps (contract of `Memory::bytes`).
        match unsafe { update::<{ abi::MOVE }, _>(self.fd.as_fd(), &mut argument) } {
            Ok(()) => Ok(()),
            // A negative number is the error once more: nothing was moved.
            Err(Errno::AGAIN) => {
                Err(MoveError::Again { moved: usize::try_from(argument.moved).unwrap_or(0) })
            }
            Err(Errno::BUSY) => Err(MoveError::Held),
            Err(Errno::NOENT) => Err(MoveError::Missing),
            Err(Errno::EXIST) => Err(MoveError::AlreadyPresent),
            Err(Errno::INVAL) => Err(MoveError::Unlike),
            Err(other) => Err(MoveError::Other(other)),
        }
    }

    /// Write-protects the pages at `range` of `memory` that are present, or lets them be written
    /// and wakes the threads that sleep for that. The memory is registered with
    /// [`register_tracked`](Self::register_tracked).
    ///
    /// # Errors
    ///
    /// The kernel's: `ENOENT` when it is not, `EAGAIN` when it is to be tried again.
    ///
    /// # Panics
    ///
    /// When the range is not within the memory.
    #[doc(alias = "UFFDIO_WRITEPROTECT")]
    pub fn write_protect(
        &self,
        memory: &Memory,
        range: Range<usize>,
        protected: bool,
    ) -> Result<(), Errno> {
        let (start, len) = part(memory, &range);
        let mode = if protected { abi::WRITE_PROTECT_ON } else { 0 };
        let mut argument = abi::WriteProtect { start, len, mode };
        // SAFETY: `WriteProtect` is what UFFDIO_WRITEPROTECT reads; it changes no content.
        unsafe { update::<{ abi::WRITE_PROTECT }, _>(self.fd.as_fd(), &mut argument) }
    }

    /// Makes every access to the missing pages at `range` of `memory` raise SIGBUS from now on,
    /// until they are discarded, and wakes the threads that sleep for them. System calls get
    /// `EFAULT` or `EHWPOISON`.
    ///
    /// # Errors
    ///
    /// The kernel's: `EEXIST` when a page is present, `EINVAL` before Linux 6.6.
    ///
    /// # Panics
    ///
    /// When the range is not within the memory.
    #[doc(alias = "UFFDIO_POISON")]
    pub fn poison(&self, memory: &Memory, range: Range<usize>) -> Result<(), Errno> {
        if !self.can_poison {
            return Err(Errno::INVAL);
        }
        let (start, len) = part(memory, &range);
        let mut argument = abi::Poison { start, len, mode: 0, updated: 0 };
        // SAFETY: `Poison` is what UFFDIO_POISON reads and writes; it touches missing pages only.
        unsafe { update::<{ abi::POISON }, _>(self.fd.as_fd(), &mut argument) }
    }

    /// Wakes the threads that sleep for the page at `addr`, of whatever memory: the access is
    /// repeated.
    ///
    /// # Errors
    ///
    /// The kernel's: `EINVAL` for an address that is not that of a page.
    #[doc(alias = "UFFDIO_WAKE")]
    pub fn wake(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let mut argument = abi::Range { start: addr as u64, len: len as u64 };
        // SAFETY: `Range` is what UFFDIO_WAKE reads; it changes no content.
        unsafe { update::<{ abi::WAKE }, _>(self.fd.as_fd(), &mut argument) }
    }

    /// Takes the faults that wait to be read, some at a time; none if there are none now.
    ///
    /// # Errors
    ///
    /// The kernel's. A userfaultfd in SIGBUS mode has nothing to read.
    pub fn read_faults(&self, each: impl FnMut(FaultMessage)) -> Result<(), Errno> {
        self.read_up_to::<BATCH>(each)
    }

    /// Takes a fault that waits to be read, if there is one.
    pub(crate) fn read_fault(&self) -> Result<Option<FaultMessage>, Errno> {
        let mut first = None;
        self.read_up_to::<1>(|fault| first = Some(fault))?;
        Ok(first)
    }

    fn read_up_to<const MOST: usize>(
        &self,
        mut each: impl FnMut(FaultMessage),
    ) -> Result<(), Errno> {
        let mut messages = [const { MaybeUninit::<abi::Message>::uninit() }; MOST];
        let bytes = {
            let (start, len) =
                (messages.as_mut_ptr().cast::<MaybeUninit<u8>>(), size_of_val(&messages));
            // SAFETY: the memory of `messages`, uninitialised as they may be.
            unsafe { std::slice::from_raw_parts_mut(start, len) }
        };
        let read = match rustix::io::read(&self.fd, bytes) {
            Ok((read, _)) => read.len(),
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(error),
        };
        for message in &messages[..read / size_of::<abi::Message>()] {
            // SAFETY: the kernel has written so many whole messages, and all bytes are valid ones.
            let message = unsafe { message.assume_init_ref() };
            if message.event == abi::EVENT_PAGEFAULT {
                each(FaultMessage::of(message));
            }
        }
        Ok(())
    }
}

/// What came of a call that fills pages, and says how many bytes that were.
#[inline]
pub(super) fn filled(called: Result<(), Errno>, bytes: i64) -> Result<(), CopyError> {
    match called {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(CopyError::AlreadyPresent),
        // A negative number is the error once more: nothing was filled.
        Err(Errno::AGAIN) => Err(CopyError::Again { copied: usize::try_from(bytes).unwrap_or(0) }),
        Err(Errno::NOENT) => Err(CopyError::NotRegistered),
        Err(Errno::SRCH) => Err(CopyError::ProcessGone),
        Err(other) => Err(CopyError::Other(other)),
    }
}

/// What memory of such pages needs.
fn features(page_size: PageSize, track: bool) -> u64 {
    match (page_size, track) {
        (PageSize::Small, false) => 0,
        (PageSize::Small, true) => abi::FEATURE_WRITE_PROTECT,
        (PageSize::Huge, false) => abi::FEATURE_MISSING_HUGETLBFS,
        (PageSize::Huge, true) => {
            abi::FEATURE_MISSING_HUGETLBFS
                | abi::FEATURE_WRITE_PROTECT
                | abi::FEATURE_WRITE_PROTECT_HUGETLBFS
        }
    }
}

fn refused(errno: Errno) -> OpenError {
    match errno {
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => OpenError::Exhausted(errno),
        _ => OpenError::Refused(errno),
    }
}

fn flags(more: u32) -> UserfaultfdFlags {
    UserfaultfdFlags::CLOEXEC
        | UserfaultfdFlags::NONBLOCK
        | UserfaultfdFlags::from_bits_retain(more)
}

fn open_plain(more: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: the descriptor changes no memory until some is registered with it.
    unsafe { userfaultfd(flags(more)) }
}

fn open_device(more: u32) -> Result<OwnedFd, Errno> {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd");
    let device = device.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NODEV))?;
    // SAFETY: `New` is the call that this device has.
    unsafe { ioctl(&device, New(flags(more))) }
}

/// USERFAULTFD_IOC_NEW: its argument is the flags, its result a descriptor.
struct New(UserfaultfdFlags);

// SAFETY: the number is that of the call, whose argument is no pointer.
unsafe impl Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        abi::NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0.bits() as usize)
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> Result<OwnedFd, Errno> {
        // SAFETY: the call succeeded (contract), so this is a new descriptor that no thread owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// The addresses of a part of the memory.
fn part(memory: &Memory, range: &Range<usize>) -> (u64, u64) {
    let whole = memory.range();
    let inside = range.start <= range.end && range.end <= whole.len();
    assert!(inside, "{range:?} is not within {} bytes", whole.len());
    ((whole.start + range.start) as u64, range.len() as u64)
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
pub(super) unsafe fn update<const OPCODE: Opcode, T>(
    fd: BorrowedFd<'_>,
    value: &mut T,
) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the pair of number and structure.
    let call = unsafe { Updater::<OPCODE, T>::new(value) };
    // SAFETY: the caller vouches for what the call reads and writes.
    unsafe { ioctl(fd, call) }
}

#[cfg(test)]
mod tests {
    use super::super::Access;
    use super::*;

    const PAGE: usize = 4096;

    fn registered(pages: usize) -> (Userfaultfd, Memory) {
        let memory = Memory::map(pages * PAGE, PageSize::Small).unwrap();
        let uffd = Userfaultfd::open_sigbus(PageSize::Small, true).unwrap();
        uffd.register_tracked(&memory).unwrap();
        memory.protect(0..pages * PAGE, Access::ReadWrite).unwrap();
        (uffd, memory)
    }

    #[test]
    fn a_page_is_filled_once() {
        let (uffd, memory) = registered(2);
        uffd.copy(&memory, PAGE, &[1; PAGE], Fill::default()).unwrap();
        assert_eq!(
            uffd.copy(&memory, PAGE, &[2; PAGE], Fill::default()),
            Err(CopyError::AlreadyPresent)
        );
        // SAFETY: only the filled page is read, and nothing changes it.
        let bytes = unsafe { memory.bytes() };
        assert!(bytes[PAGE..].iter().all(|&byte| byte == 1));
    }

    #[test]
    fn a_partial_copy_reports_what_it_did() {
        let (uffd, memory) = registered(3);
        uffd.copy(&memory, 2 * PAGE, &[1; PAGE], Fill::default()).unwrap();
        let outcome = uffd.copy(&memory, 0, &[2; 3 * PAGE], Fill::default());
        assert_eq!(outcome, Err(CopyError::Again { copied: 2 * PAGE }));
    }

    #[test]
    fn memory_that_is_not_registered_is_told_apart() {
        let uffd = Userfaultfd::open_sigbus(PageSize::Small, false).unwrap();
        let memory = Memory::map(PAGE, PageSize::Small).unwrap();
        assert_eq!(
            uffd.copy(&memory, 0, &[0; PAGE], Fill::default()),
            Err(CopyError::NotRegistered)
        );
    }

    #[test]
    fn pages_of_zeros_are_filled_once() {
        let (uffd, memory) = registered(4);
        assert_eq!(uffd.zero(&memory, PAGE..3 * PAGE, false), Ok(()));
        let there = uffd.zero(&memory, 2 * PAGE..4 * PAGE, false);
        assert_eq!(there, Err(CopyError::AlreadyPresent));
        let some = uffd.zero(&memory, 0..4 * PAGE, false);
        assert_eq!(some, Err(CopyError::Again { copied: PAGE }));
        let half = uffd.zero(&memory, 3 * PAGE..3 * PAGE + 10, false);
        assert_eq!(half, Err(CopyError::Other(Errno::INVAL)));
        // SAFETY: only filled pages are read, and nothing changes them.
        let bytes = unsafe { memory.bytes() };
        assert!(bytes[..3 * PAGE].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn half_pages_are_refused() {
        let (uffd, memory) = registered(1);
        assert_eq!(
            uffd.copy(&memory, 0, &[0; 10], Fill::default()),
            Err(CopyError::Other(Errno::INVAL))
        );
    }

    #[test]
    fn memory_has_one_userfaultfd_at_a_time() {
        let (_uffd, memory) = registered(1);
        let second = Userfaultfd::open_sigbus(PageSize::Small, false).unwrap();
        assert_eq!(second.register_missing(&memory), Err(Errno::BUSY));
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn filling_beyond_the_memory_panics() {
        let (uffd, memory) = registered(1);
        let _ = uffd.copy(&memory, PAGE, &[0; PAGE], Fill::default());
    }

    #[test]
    fn a_page_is_write_protected_until_it_is_not() {
        let (uffd, memory) = registered(2);
        let fill = Fill { write_protected: true, ..Fill::default() };
        uffd.copy(&memory, 0, &[1; 2 * PAGE], fill).unwrap();
        uffd.write_protect(&memory, 0..PAGE, false).unwrap();
        // SAFETY: the page may be written, and no other thread looks.
        unsafe { memory.as_ptr().write_volatile(2) };
        memory.discard(0..PAGE).unwrap();
        uffd.copy(&memory, 0, &[3; PAGE], Fill::default()).unwrap();
        // SAFETY: the page is filled, and nothing changes it.
        assert_eq!(unsafe { memory.bytes() }[0], 3);
    }

    #[test]
    fn what_is_poisoned_can_be_discarded_and_what_is_there_not_poisoned() {
        let (uffd, memory) = registered(2);
        match uffd.poison(&memory, 0..PAGE) {
            Err(Errno::INVAL) => return println!("NOT RUN: this kernel cannot poison"),
            poisoned => poisoned.unwrap(),
        }
        memory.discard(0..PAGE).unwrap();
        uffd.copy(&memory, 0, &[1; PAGE], Fill::default()).unwrap();
        assert_eq!(uffd.poison(&memory, 0..PAGE), Err(Errno::EXIST));
    }

    #[test]
    fn a_page_that_has_moved_is_there_and_no_more_here() {
        let (uffd, memory) = registered(4);
        let (_, other) = registered(1);
        if !uffd.can_move() {
            return println!("NOT RUN: this kernel cannot move pages");
        }
        uffd.copy(&memory, 0, &[1; 2 * PAGE], Fill::default()).unwrap();
        assert_eq!(uffd.move_pages(&memory, 0..PAGE, &memory, 2 * PAGE), Ok(()));
        assert_eq!(uffd.move_pages(&memory, 0..PAGE, &memory, 3 * PAGE), Err(MoveError::Missing));
        let present = uffd.move_pages(&memory, PAGE..2 * PAGE, &memory, 2 * PAGE);
        assert_eq!(present, Err(MoveError::AlreadyPresent));
        let stopped = uffd.move_pages(&memory, 2 * PAGE..4 * PAGE, &memory, 0);
        assert_eq!(stopped, Err(MoveError::Again { moved: PAGE }));
        let unlike = uffd.move_pages(&memory, 0..PAGE, &other, 0);
        assert_eq!(unlike, Err(MoveError::Unlike), "it is of another userfaultfd");
        // SAFETY: the page is filled, and nothing changes it afterwards.
        assert!(unsafe { memory.bytes() }[..PAGE].iter().all(|&byte| byte == 1));
    }

    #[test]
    fn a_sleeping_thread_is_told_of_and_woken() {
        let memory = Memory::map(PAGE, PageSize::Small).unwrap();
        let uffd = Userfaultfd::open(PageSize::Small, false).unwrap();
        uffd.register_missing(&memory).unwrap();
        memory.protect(0..PAGE, Access::Read).unwrap();
        std::thread::scope(|threads| {
            // SAFETY: the page is filled once.
            let reader = threads.spawn(|| unsafe { memory.bytes() }[5]);
            let mut faults = Vec::new();
            while faults.is_empty() {
                uffd.read_faults(|fault| faults.push(fault)).unwrap();
            }
            let addr = memory.range().start;
            let FaultMessage { thread, .. } = faults[0];
            let expected = FaultMessage {
                addr,
                is_write: false,
                is_write_protected: false,
                is_minor: false,
                thread,
            };
            assert_eq!(faults, [expected]);
            // SAFETY: no condition.
            assert_ne!(thread, unsafe { libc::gettid() }.cast_unsigned());
            uffd.copy(&memory, 0, &[7; PAGE], Fill::default()).unwrap();
            uffd.wake(addr, PAGE).unwrap();
            assert_eq!(reader.join().unwrap(), 7);
        });
    }
}
