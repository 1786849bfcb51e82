//! Memory that is filled when it is touched: from files, from memory, or from anything that can be
//! read.
//!
//! A region's bytes come from a [`Source`]. Touching a page of it that is not there is a real page
//! fault, and it is served through [`pervma::AddressSpace`]s: the VMA is found and read-locked
//! without a lock of the space, so faults are served in parallel, also while other ranges change.
//!
//! ```
//! use pervma_pager::{MemorySource, FrozenRegion};
//!
//! let region = FrozenRegion::map(MemorySource::new(vec![42; 1 << 20]))?;
//! assert_eq!(region.len(), 1 << 20);
//! assert_eq!(region[123_456], 42); // a fault, served by this thread
//! # Ok::<(), pervma_pager::Error>(())
//! ```
//!
//! # What to use
//!
//! | you want | use |
//! |---|---|
//! | a slice of bytes that comes page by page | [`FrozenRegion::map`] |
//! | more pages a fault, huge pages, a bound of what is there, a hook for failures | [`Options`] |
//! | to discard, protect, unmap, resize, move or write while others read | [`Region`] |
//! | system calls on such memory, or a source that locks or allocates | [`Options::handler_threads`] |
//! | the kernel's interface, for a pager of your own | [`sys`] |
//!
//! And when not to: for a local file that is in the page cache, the kernel's own `mmap` is the
//! better tool. It maps what is there (a quarter of a microsecond a page) where this copies it (a
//! microsecond a page in large granules, five for single ones), shares it between processes, and
//! gives it back under memory pressure by itself. The case for this crate is what the kernel cannot
//! map: what is remote, compressed, made up or put together; and control: what is there, what is
//! written back and when, what a failure does.
//!
//! # Signal mode and thread mode
//!
//! | | signal mode | thread mode |
//! |---|---|---|
//! | who serves a fault | the thread that made it, in the SIGBUS handler | a thread of the region |
//! | cost of a fault of one page | 4 to 5 µs | 8 µs and more, two changes of thread |
//! | privilege | none | none for user code; for system calls see [`Options::handler_threads`] |
//! | a system call that touches what is missing | fails with `EFAULT` | is served, if privileged |
//! | sources | [`SignalSafe`] ones | all |
//! | kernel | Linux 5.11 | Linux 6.6 |
//!
//! # Devices that write to a region
//!
//! Direct I/O (`O_DIRECT`), registered buffers of io_uring and RDMA write to memory without a
//! fault, for as long as they hold its pages (the kernel has them *pinned*). The kernel tells which
//! pages it holds when it is asked to move them (`UFFDIO_MOVE`).
//!
//! | | signal mode | thread mode |
//! |---|---|---|
//! | I/O to pages that are missing or unwritten | `EFAULT` | served, if privileged |
//! | held pages that should go to keep a bound | stay, and count | the same |
//! | a bound that is full of them | an access fails after a second | the same; I/O by `EFAULT` |
//! | held pages in `write_back` | written, and stay to be written | the same |
//! | held pages in `discard`, `unmap`, `resize`, `relocate`, drop | later writes are lost | the same |
//! | held pages in `freeze` | the slice changes | the same |
//! | pages that cannot be told apart, in any of these | later writes are lost | the same |
//!
//! Later writes are what the device writes after the call: let the I/O end first. Pages cannot be
//! told apart before Linux 6.8 and if they are huge, in parts with a protection key
//! (`pkey_mprotect`), in locked parts beyond `ulimit -l`, and where a filter refuses `UFFDIO_MOVE`.
//! Nor does the kernel tell of pages that are not pinned but only referenced, as some network file
//! systems do it.
//!
//! # Guarantee
//!
//! - Every byte of a region is the source's byte, or what was written to it. Nothing is invented: a
//!   page whose bytes cannot be had is an error of the access ([`OnFailure`]), and stays one until
//!   it is discarded. It is never asked for again and again.
//! - What is in a [`FrozenRegion`] never changes. What is in a [`Region`] changes when it is
//!   written, or read from the source again after it was given back.
//! - No lock is held while a source is read. What was read is used only if the page was not given
//!   back, unmapped or moved meanwhile.
//! - An operation on a range waits for the faults in the VMAs that it touches, and holds up those
//!   only; writing back, which is slow, sets its pages off from the others first.
//! - On the fault path of signal mode nothing locks, allocates or runs a destructor, and `errno` is
//!   preserved.
//! - What a region owns is dropped by the thread that drops the region.
//! - A SIGBUS that is not a region's fault goes to whoever handled the signal before.
//!
//! # Actors
//!
//! - *Threads that touch regions*: in signal mode the handler runs on them, looks up, reads, fills.
//! - *Handler threads*, of regions in thread mode: they read faults and do the same.
//! - *Evictors*, one for each region with a bound: they give back what is clean, and never wait for
//!   the source.
//! - *Writers*, one for each of these that is writable: they write to the source what has to go.
//! - *Threads that map, change and drop regions*: they edit the one address space of the process
//!   that holds all regions, and exclude faults from the VMAs they change.
//! - *The kernel*: a userfaultfd for each region, so that regions share no queue.
//!
//! # A fault, step by step
//!
//! 1. A thread touches a missing page, or writes one that is write-protected. In signal mode the
//!    kernel raises SIGBUS in it and runs the handler with all signals blocked, on the thread's
//!    alternate stack if it has one; in thread mode it puts it to sleep and a handler thread reads
//!    of it.
//! 2. [`try_read`](pervma::AddressSpace::try_read) with the address. Nothing mapped: step 7.
//!    Changes in the way: the access is repeated a little later.
//! 3. A write to a protected page: the page's record says now that it was written; the page may be
//!    written; done.
//! 4. If the region has a bound, pages are taken from its budget; if none are left, the access is
//!    repeated when the evictor has made room. It fails if no room can be made: nothing is clean,
//!    and nothing can be written.
//! 5. What is missing of the granule is read, 64 KiB at a time: the VMA is unlocked for it, and
//!    what keeps the source is a VMA of its own, in a second address space. Then the VMA is locked
//!    again, and the record of the pages must say that nothing of them was given back meanwhile.
//!    Memory sources are not read: the kernel copies from there.
//! 6. `UFFDIO_COPY`. The pages are there, or another thread was faster: unlock, and the access goes
//!    on.
//! 7. Failed: the page is poisoned, and the region's [`OnFailure`] is asked. Not ours, or passed
//!    on: to the handler that was there before. If there was none, the default action is restored
//!    and the access, repeated, ends the process.
//!
//! # Trade-offs
//!
//! - In signal mode a *system call* that touches a page that is missing, or protected for tracking,
//!   fails with `EFAULT`; so does reading it through `/proc/pid/mem`. Touch each page first, or use
//!   thread mode.
//! - *Writes are tracked by write protection*: the first write to a page that was filled for a read
//!   is a fault of its own.
//! - A SIGBUS handler that is installed *later* must pass on what is not its own, and must block
//!   all signals (`sa_mask`, no `SA_NODEFER`), as ours does: under a smaller mask another handler
//!   can interrupt a fault, and if it touches a region the process ends. One that is installed at
//!   the very moment at which the first region is mapped can be missed.
//! - *SIGBUS must not be blocked* in a thread that touches a region in signal mode, or one that
//!   fails: the kernel ends the process then. Mapping a region from such a thread is an error.
//! - A SIGBUS that is *sent* (by `kill`) goes to the handler before ours, which in a Rust program
//!   is the standard library's; that one restores the default action, and the next fault of a
//!   region ends the process.
//! - *Operations on a region block signals* in their thread while faults wait for them, but those
//!   of faults: a handler that touched the region would wait for its own thread. A source is
//!   written with signals blocked.
//! - A *forked child* does not have the regions: touching one there is SIGSEGV, never zeros. What
//!   it drops of them is a leak, and leaves its parent alone; any other operation fails or waits
//!   for ever.
//! - A *slow source* holds up the threads that want the same granule (in thread mode, all faults
//!   that a handler thread has read with it), and the drop of its region; in signal mode with all
//!   signals blocked.
//! - *`munmap`, `mprotect`, `MADV_DONTNEED` and whatever else* changes what is at a region's
//!   addresses or who may access it is this crate's to call there: called by others it leaves the
//!   records wrong. Other advice, locks and memory policies may be given for any part. Each divides
//!   the kernel's mapping, and a granule that lies in several is filled in as many calls.
//! - *Writing back* copies each page that stays in the region, to know that no device writes it: it
//!   takes one and a half to two and a half times as long as writing alone, to a file in the page
//!   cache. While it is written, up to 1 MiB is there twice; in a region whose bound has no room
//!   for that, it is given back.
//! - *Moving* a region copies what was written and leaves the rest to the source; *discarding* is
//!   not shared with other mappings of the same source.
//! - *Evicting* looks at 8 bytes for each page of the region, as many times as an eighth of the
//!   bound is filled: choose a bound that is not tiny beside the region.
//! - *Pages that cannot be written back* stay, count, and leave that much less of a bound. An
//!   access that needs more pages at once than they leave fails after 10,000 pages have gone in
//!   vain.
//! - Each region takes a descriptor, and two more in thread mode: `ulimit -n` bounds their number.
//!   Its pages take 8 bytes each of memory once they are touched.
//! - *A system call that a filter refuses* (seccomp) is replaced by another one, or is an error: of
//!   mapping a region if it is refused then, of the operation or the access if it is refused later.
//!   Nothing works without `futex`, by which all of Rust waits.
//! - The handler needs stack beside the signal frame: an alternate stack as the standard library
//!   gives its threads (8 KiB or more) is enough for one fault, in a debug build too, but hardly
//!   more than that: a handler of your own that runs on the same stack and touches a region needs
//!   the room twice. Optimised, 4,120 bytes were in use where it was measured, unoptimised 7,744.
//! - Each thread of the process has 64 KiB in its thread-local memory, of which a fault touches
//!   what it reads at a time; glibc takes it from the thread's stack.
//! - In a library that is loaded at run time the first fault of a thread may allocate its
//!   thread-locals: touch a region once on each thread, outside of allocators and handlers.
//! - The kernel's pages are 4096 bytes, or 2 MiB of hugetlbfs; other page sizes are an error.
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("pervma-pager needs Linux: it is made of userfaultfd");

mod accesses;
mod budget;
mod copy;
mod error;
mod evict;
mod failure;
mod fault;
mod frozen;
mod mapping;
mod options;
mod parts;
mod poller;
mod records;
mod region;
mod signal;
mod source;
mod staging;
mod stats;
pub mod sys;
mod taken;
mod wakeup;
mod write_back;
mod writer;

pub use error::Error;
pub use failure::{Failure, OnFailure, Response, WriteBackFailure};
pub use frozen::FrozenRegion;
pub use options::{InSignal, InThread, Options, Serves};
pub use region::Region;
pub use source::{FileSource, MemorySource, ReadFailed, SignalSafe, Source};
pub use stats::{Stats, stats};
