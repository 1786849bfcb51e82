//! What can go wrong outside of faults.

use std::io;
use std::ops::Range;

use pervma::ChangeError;

use crate::sys::{Errno, OpenError};

/// Why a region could not be mapped or changed, or a file could not be its source. Nothing has
/// changed then, and nothing is left behind but the SIGBUS handler.
///
/// ```
/// use pervma_pager::{Error, FrozenRegion, MemorySource};
///
/// assert!(matches!(FrozenRegion::map(MemorySource::new(vec![])), Err(Error::Empty)));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source has no bytes, or says so: files in `/proc` do.
    #[error(
        "the source has no bytes: there is nothing to map (a file in /proc only says so: copy its \
         content to a plain file)"
    )]
    Empty,
    /// So many bytes are not left anywhere in this process's address space, which has 128 TiB on
    /// most processors, with the program somewhere between.
    #[error("{bytes} bytes do not fit in this process's address space")]
    TooLarge {
        /// The size of the source in bytes.
        bytes: u64,
    },
    /// A part of a file was asked for that the file does not have.
    #[error("the part {start}..{end} is not within the file's {bytes} bytes")]
    BeyondFile {
        /// Where the part was to start, in bytes.
        start: u64,
        /// Where it was to end.
        end: u64,
        /// How many bytes there are.
        bytes: u64,
    },
    /// A region was to become longer than its source.
    #[error("the source has {bytes} bytes, the region cannot become longer")]
    BeyondSource {
        /// The size of the source in bytes.
        bytes: u64,
    },
    /// The system's pages are not of the size this crate fills.
    #[error("the system's pages have {found} bytes, only pages of 4096 bytes are supported")]
    PageSize {
        /// The system's page size in bytes.
        found: usize,
    },
    /// Granules are powers of two and whole pages.
    #[error(
        "a granule of {granule} bytes: it must be a power of two, and at least a page of {page}"
    )]
    Granule {
        /// What was asked for, in bytes.
        granule: usize,
        /// The size of the region's pages in bytes.
        page: usize,
    },
    /// The bound of resident pages is too small to work in.
    #[error("a bound of {bytes} resident bytes is too small, it must be at least {least}")]
    Resident {
        /// What was asked for, in bytes.
        bytes: usize,
        /// Four granules.
        least: usize,
    },
    /// Watermarks that no bound can be kept between.
    #[error(
        "watermarks of {low} and {high} bytes: the low one must be two granules at least and below \
         the high one by a page, and that not above the bound of {bound} bytes"
    )]
    Watermarks {
        /// Where pages stop to go, in bytes.
        low: usize,
        /// Where they begin to.
        high: usize,
        /// The bound.
        bound: usize,
    },
    /// Pages that are written must be given back at times, and the source cannot take them.
    #[error("the source cannot be written: a writable region of bounded size needs one that can")]
    SourceNotWritable,
    /// Writes were to be allowed in a region that was not mapped for them.
    #[error("the region is read-only")]
    ReadOnly,
    /// Huge pages are filled whole, for which a signal handler has no buffer.
    #[error("huge pages in signal mode need a source whose bytes are in memory: use thread mode")]
    HugeNeedsMemory,
    /// A range that is not whole pages of the region.
    #[error("{start:#x}..{end:#x} is not a range of whole pages in {len:#x} bytes")]
    Range {
        /// Where it starts, as an offset in the region.
        start: usize,
        /// Where it ends.
        end: usize,
        /// The length of the region.
        len: usize,
    },
    /// Nothing is mapped in the range, or not everywhere.
    #[error("not mapped: {0:#x?} in the region")]
    NotMapped(Range<usize>),
    /// Something is mapped in the range already.
    #[error("already mapped: {0:#x?} in the region")]
    Overlap(Range<usize>),
    /// Pages in the range are protected against reads, and would have to be read: to keep what was
    /// written, or as a part of a slice.
    #[error("pages at {0:#x?} in the region cannot be read: protect them otherwise first")]
    NoAccess(Range<usize>),
    /// The source is a directory, a pipe or a device.
    #[error("not a regular file")]
    NotARegularFile,
    /// The source is a file that was opened for writing only, or for its path (`O_PATH`).
    #[error("the file is not open for reading: open it for reading, and without O_PATH")]
    NotReadable,
    /// The source is a file that was opened for direct I/O (`O_DIRECT`), and cannot be opened again
    /// without, for what is not aligned.
    #[error("the file is open for direct I/O, and cannot be opened again: {0}")]
    DirectIo(#[source] io::Error),
    /// The source is a file that ends before the size it reports.
    #[error("the file ends before the {bytes} bytes it reports: copy its content to a plain file")]
    NotItsSize {
        /// The size that the file reports, in bytes.
        bytes: u64,
    },
    /// The source is a file that cannot be examined or read.
    #[error("the file cannot be read: {0}")]
    File(#[source] io::Error),
    /// The source could not deliver what a longer region needs of it.
    #[error("the source could not deliver what the region gains")]
    ReadFailed,
    /// Pages could not be written to the source; those that were not are still to be written.
    #[error("writing pages to the source failed: {0}")]
    WriteBack(#[source] io::Error),
    /// The source could not make durable what was written to it.
    #[error("the source could not make durable what was written to it: {0}")]
    Sync(#[source] io::Error),
    /// Code may not be run in memory that was written, says the system.
    #[error(
        "the system refuses to let memory be executed ({0}): a security module (execmem of \
         SELinux), or prctl(PR_SET_MDWE)"
    )]
    NotExecutable(Errno),
    /// Pages are pinned that the operation would give back. Drop the [`Pin`](crate::Pin) first.
    #[error("pages at {0:#x?} in the region are pinned: drop the pin first")]
    Pinned(Range<usize>),
    /// More pages were to be pinned than the region's bound lets stay.
    #[error(
        "{bytes} bytes cannot be pinned beside {held} that are held: three quarters of the bound of \
         {bound} resident bytes (Options::resident, Bound) may be"
    )]
    PinBeyondBound {
        /// What was asked for, in bytes of whole pages.
        bytes: usize,
        /// What was pinned already, or is being prefetched, of all regions that share the bound.
        held: usize,
        /// The bound in bytes: [its own](crate::Options::resident), or a [`Bound`](crate::Bound).
        bound: usize,
    },
    /// A page could not be had in advance.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// No userfaultfd.
    #[error(transparent)]
    Userfaultfd(#[from] OpenError),
    /// No memory at these addresses could be had from the kernel.
    #[error("mapping {bytes} bytes failed ({errno}): check {}", limits(*errno))]
    Memory {
        /// What was asked for, in bytes.
        bytes: usize,
        /// The kernel's reason.
        errno: Errno,
    },
    /// Something is mapped where the region was to be ([`Options::at`](crate::Options::at)).
    #[error("something is mapped in {start:#x}..{end:#x}, where the region was to be")]
    AddressesTaken {
        /// The address where it was to begin.
        start: usize,
        /// The address where it was to end.
        end: usize,
    },
    /// The kernel refused to change the memory.
    #[error("changing the memory failed ({0}): check vm.max_map_count")]
    Change(Errno),
    /// The memory could not be registered with the userfaultfd.
    #[error("userfaultfd refused to watch the memory ({0})")]
    Register(Errno),
    /// SIGBUS is blocked in this thread: a fault of a region would end the process.
    #[error("SIGBUS is blocked in this thread: unblock it before mapping regions")]
    SignalBlocked,
    /// The signals of this thread could not be blocked for an operation.
    #[error(
        "the thread's signals could not be blocked ({0}): a filter must let rt_sigprocmask through"
    )]
    Mask(Errno),
    /// The SIGBUS handler could not be installed.
    #[error("the SIGBUS handler could not be installed ({0})")]
    Handler(Errno),
    /// A thread of the region could not be started.
    #[error(
        "a thread to serve the region could not be started: {0}; check ulimit -u and ulimit -n"
    )]
    Thread(#[source] io::Error),
    /// The operation would wait for its own thread: it is called in a method of a source, or a
    /// guard or exclusion of the thread is in its way. Call it on another thread, or afterwards.
    #[error("a source's methods may not map, change or drop regions: do it on another thread")]
    InsideSource,
    /// No memory was left to note the change. Free some, and try again.
    #[error("no memory was left to note the change: free some, and try again")]
    OutOfMemory,
    /// Another thread is mapping, unmapping or changing a part of the range. Try again.
    #[error("another thread is changing {0:#x?} in the region: try again")]
    Busy(Range<usize>),
    /// A reason that this crate does not expect. Nothing can be done but to report it.
    #[error("a change was refused that should have been possible, please report it: {0}")]
    Unexpected(#[source] ChangeError),
}

/// A byte of a region that could not be accessed, in place of the signal that an ordinary access to
/// it would have ended in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}, at {offset:#x} of the region, after {done} bytes")]
pub struct AccessError {
    offset: usize,
    done: usize,
    refusal: Refusal,
}

/// Why a byte could not be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Nothing is mapped there: it was unmapped, or is behind the region's end, or the process is a
    /// forked child, which does not have the region.
    #[error("nothing is mapped")]
    NotMapped,
    /// Its protection does not let the access through, or it is a write to a region that is not
    /// [writable](crate::Options::writable).
    #[error("its protection does not let the access through")]
    Protected,
    /// The source could not deliver the page, or the kernel has no memory for it.
    #[error("its page cannot be had")]
    Unavailable,
    /// The bound, its [own](crate::Options::resident) or one that it
    /// [shares](crate::Options::bound), is reached, and no page can be given back.
    #[error(
        "the bound of resident pages (Options::resident, Bound) is reached, and none can be given \
         back"
    )]
    BoundReached,
    /// The thread is in a method of this region's source, and would wait for itself.
    #[error("it is accessed in a method of the region's source")]
    InsideSource,
    /// The signals of this thread could not be blocked.
    #[error(
        "the thread's signals could not be blocked ({0}): a filter must let rt_sigprocmask through"
    )]
    Mask(Errno),
}

impl AccessError {
    pub(crate) fn new(offset: usize, done: usize, refusal: Refusal) -> Self {
        Self { offset, done, refusal }
    }

    /// The first byte that could not be accessed, as an offset in the region.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// So many bytes were copied before it, or came by the call.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done
    }

    /// Why.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        self.refusal
    }
}

/// What may be in the way of a mapping that is refused for this reason.
fn limits(errno: Errno) -> &'static str {
    match errno {
        // What the kernel says of locked memory only.
        Errno::AGAIN => "ulimit -l: the process has its memory locked (mlockall with MCL_FUTURE)",
        _ => "ulimit -v, vm.max_map_count, vm.overcommit_memory and filters",
    }
}

impl Error {
    /// What the address space said of addresses, in offsets of a region that starts at `base`.
    pub(crate) fn of_change(error: ChangeError, base: usize) -> Self {
        let offsets =
            |range: Range<usize>| range.start.saturating_sub(base)..range.end.saturating_sub(base);
        match error {
            ChangeError::NotMapped { range } => Self::NotMapped(offsets(range)),
            ChangeError::Overlap { existing } => Self::Overlap(offsets(existing)),
            ChangeError::Reserved { range } | ChangeError::Excluded { vma: range } => {
                Self::Busy(offsets(range))
            }
            ChangeError::OwnEdit | ChangeError::GuardHeld | ChangeError::OwnExclusion => {
                Self::InsideSource
            }
            ChangeError::OutOfMemory { .. } => Self::OutOfMemory,
            other => Self::Unexpected(other),
        }
    }
}
