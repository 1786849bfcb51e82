//! Memory that is filled when it is touched: from files, from memory, or from anything that can be
//! read.
//!
//! A region's bytes come from a [`Source`]. Touching a page of it that is missing is a real page
//! fault, served on the thread that made it or by threads of the region; faults are served in
//! parallel, also while other ranges are discarded, protected, written back or moved.
//!
//! ```
//! use pervma_pager::{FrozenRegion, MemorySource};
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
//! | to discard, protect, unmap, resize, move or write while others read | [`Region`] |
//! | an error in place of a signal when a page cannot be had | [`Region::read_checked`] |
//! | pages to be there before they are touched | [`Region::prefetch`] |
//! | pages to stay, for system calls and devices | [`Region::pin`] |
//! | one bound of resident pages for several regions | [`Bound`] |
//! | more pages a fault, huge pages, a bound of resident pages, a hook for failures | [`Options`] |
//! | transparent huge pages | [granules](Options::granule) of 2 MiB, and [`Region::freeze`] |
//! | what is zeros not to be read, and to take no memory | [`Source::zeros`], in files by itself |
//! | threads that serve the faults of several regions | [`Handlers`] |
//! | SIGBUS to be handled after others have taken it, or by you | [`install_handler`], [`serve_sigbus`] |
//! | system calls on such memory, or a source that locks or allocates | [`Options::handler_threads`] |
//! | the kernel's interface, for a pager of your own | [`sys`] |
//!
//! For a local file that is in the page cache the kernel's own `mmap` is the better tool: it maps
//! what this copies. This crate is for what the kernel cannot map (remote, compressed, made up),
//! and for control over what is resident, what is written back and what a failure does.
//!
//! # Signal mode and thread mode
//!
//! | | signal mode | thread mode |
//! |---|---|---|
//! | who serves a fault | the thread that made it, in the SIGBUS handler | a thread of the region, or of [`Handlers`] |
//! | cost of a fault of one page | 4 to 5 µs | 8 µs and more, two changes of thread |
//! | privilege | none | none for user code; for system calls see [`Options::handler_threads`] |
//! | a system call that touches what is missing | fails with `EFAULT` | is served, if privileged |
//! | sources | [`SignalSafe`] ones | all |
//! | kernel | Linux 5.11 | Linux 6.6 |
//!
//! # Guarantee
//!
//! - Every byte of a region is the source's byte, or what was written to it. A page whose bytes
//!   cannot be had is an error of each access to it ([`OnFailure`]) until it is discarded.
//! - What is in a [`FrozenRegion`] never changes. What is in a [`Region`] changes when it is
//!   written, or read from the source again after it was given back.
//! - Threads that want the same granule at the same time share one read of the source.
//! - While a source is read for a fault, no part of the region is locked: changes go on, and only
//!   the drop of the region waits for the source. What was read is used only if the page was not
//!   given back, unmapped or moved meanwhile.
//! - An operation waits for the faults in the VMAs that it touches, and holds up those only.
//! - In signal mode the fault path does not lock, allocate or run a destructor, and `errno` is
//!   preserved.
//! - A SIGBUS that is not a region's fault goes to the handler that was there before.
//!
//! # Limits
//!
//! Each is explained in [`limits`].
//!
//! - Linux with pages of 4096 bytes; one file descriptor a region, three in thread mode
//!   unless it shares [`Handlers`]; a sparse
//!   file as the source takes one more.
//! - In signal mode a system call that touches a missing page fails with `EFAULT`:
//!   [pin](Region::pin) what it touches. And SIGBUS must not be blocked in a thread that touches a
//!   region.
//! - A SIGBUS handler that is installed later must pass on what is not its own, with all signals
//!   blocked ([`serve_sigbus`], [`install_handler`]).
//! - A library that this crate is in stays loaded once it has mapped a region.
//! - `munmap`, `mprotect` and `MADV_DONTNEED` at a region's addresses are this crate's to call.
//! - What devices write to a region after an operation on it can be lost: let the I/O end first.
//! - A forked child does not have the regions.
//! - A region whose source is read has buffers beside its pages, up to 40 MiB of them.
//! - A debugger stops at each fault in signal mode: in gdb say `handle SIGBUS nostop noprint pass`.
//!
//! How a fault is served, step by step, and by which threads: [`internals`].
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("pervma-pager needs Linux: it is made of userfaultfd");

mod accesses;
mod bound;
mod budget;
mod buffers;
mod copy;
mod error;
mod evict;
mod failure;
mod fault;
mod filler;
mod frozen;
mod held;
mod history;
mod holds;
#[cfg(doc)]
pub mod internals;
mod kept;
mod leaving;
#[cfg(doc)]
pub mod limits;
mod mapping;
mod options;
mod parts;
mod poller;
mod reads;
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

pub use bound::Bound;
pub use error::{AccessError, Error, Refusal};
pub use failure::{Failure, OnFailure, Response, WriteBackFailure};
pub use frozen::FrozenRegion;
pub use options::{InSignal, InThread, Options, Serves};
pub use poller::Handlers;
pub use region::{Pin, Prefetched, Region};
pub use signal::{install_handler, serve_sigbus};
pub use source::{FileSource, MemorySource, ReadFailed, SignalSafe, Source};
pub use stats::{RegionStats, Stats, stats};
