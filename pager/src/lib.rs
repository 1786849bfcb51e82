//! Memory that is filled when it is first touched, on the thread that touches it.
//!
//! A [`Region`] is a slice of bytes that come from a [`Source`]: a file, memory, or anything that
//! can be read in a signal handler. Touching a page of it for the first time is a real page
//! fault, and the fault is served right there, by the faulting thread, without another thread and
//! without a lock: the mapping is found and read-locked in a [`pervma::AddressSpace`].
//!
//! ```
//! use pervma_pager::{MemorySource, Region};
//!
//! let region = Region::map(MemorySource::new(vec![42; 1 << 20]))?;
//! assert_eq!(region.len(), 1 << 20);
//! assert_eq!(region[123_456], 42); // a fault, served by this thread
//! # Ok::<(), pervma_pager::Error>(())
//! ```
//!
//! # Guarantee
//!
//! - Every byte of a region reads as the source's byte. A page is read from the source at most
//!   once per fault, and filled once; what has been read never changes.
//! - On the fault path nothing locks, allocates or runs a destructor, and `errno` is preserved.
//! - Mapping or dropping a region does not hold up faults in others. (It does hold up mapping and
//!   dropping others: dropping a region waits for the faults in it.)
//! - What a region owns is dropped by the thread that drops the region, never in a handler.
//! - A SIGBUS that is not a region's fault goes to whoever handled the signal before.
//! - No privilege is needed.
//!
//! # Actors
//!
//! - *Threads that touch regions*: the signal handler runs on them and looks up, reads, fills.
//! - *Threads that map and drop regions*: they edit the one address space of the process that
//!   holds all regions. They wait for each other, and for faults in the region they drop.
//! - *The kernel*: one userfaultfd for each region, in SIGBUS mode, for faults of user code.
//!
//! # A fault, step by step
//!
//! 1. A thread touches a missing page. The kernel raises SIGBUS in it and runs the handler with
//!    all signals blocked, on the thread's alternate stack if it has one.
//! 2. Not a page fault (`si_code`): step 7. The thread is marked as being inside a handler
//!    ([`pervma::HandlerScope`]): from here on, taking the address space's lock would panic.
//! 3. [`try_read`](pervma::AddressSpace::try_read) with the address. Nothing mapped: step 7.
//!    Changes in the way: yield and return, so that the access faults again.
//! 4. The region is read-locked: it cannot be unmapped, nor its source be dropped.
//! 5. The page is read from the source into a buffer of the thread; if the source is in memory,
//!    nothing is read. Failed: step 7, after unlocking.
//! 6. One `UFFDIO_COPY`. The page is there, or another thread was faster: unlock, return, and the
//!    access goes on.
//! 7. To the handler that was there before. If there was none, the default action is restored and
//!    the access, repeated, ends the process.
//!
//! # Trade-offs
//!
//! - A *system call* that touches a page not yet filled fails with `EFAULT`; so does reading it
//!   through `/proc/pid/mem`. Touch each page first, or copy.
//! - A SIGBUS handler that is installed *later* must pass on what is not its own, and must block
//!   all signals (`sa_mask`, no `SA_NODEFER`), as ours does: under a smaller mask another handler
//!   can interrupt a fault, and if it touches a region the process ends. One that is installed at
//!   the very moment at which the first region is mapped can be missed.
//! - *SIGBUS must not be blocked* in a thread that touches a region: the kernel ends the process
//!   then. Mapping a region from such a thread is an error.
//! - A SIGBUS that is *sent* (by `kill`) goes to the handler before ours, which in a Rust program is
//!   the standard library's; that one restores the default action, and the next fault of a region
//!   ends the process.
//! - A *forked child* does not have the regions: touching one there is SIGSEGV. It cannot map or
//!   drop regions either: mapping fails or waits for ever.
//! - A *slow source* holds up its thread, with all signals blocked, and the drop of its region.
//! - Each region takes a descriptor: `ulimit -n` bounds their number.
//! - The handler needs stack beside the signal frame: less than 1 KiB in a release build, a
//!   few KiB in a debug build. Each thread of the process has a page of 4 KiB in its thread-local
//!   memory, touched at its first fault; glibc takes it from the thread's stack.
//! - In a library that is loaded at run time the first fault of a thread may allocate its
//!   thread-locals: touch a region once on each thread, outside of allocators and handlers.
//! - For a local file that is in the page cache `mmap` is faster: it maps what is there, this
//!   copies it. The case for this crate is what the kernel cannot map.
//! - Pages are 4096 bytes; other page sizes are an error.
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("pervma-pager needs Linux: it is made of userfaultfd");

mod budget;
mod copy;
mod error;
mod evict;
mod failure;
mod fault;
mod live;
mod mapping;
mod options;
mod poller;
mod records;
mod region;
mod signal;
mod source;
mod stats;
pub mod sys;
mod wakeup;
mod write_back;

pub use error::Error;
pub use failure::{Failure, OnFailure, Response};
pub use live::LiveRegion;
pub use options::{InSignal, InThread, Options, Serves};
pub use region::Region;
pub use source::{FileSource, MemorySource, ReadFailed, SignalSafe, Source};
pub use stats::{Stats, stats};
