//! How a fault is served, and by which threads.
//!
//! # Actors
//!
//! - *Threads that touch regions*: in signal mode the handler runs on them, looks up, reads, fills.
//! - *Handler threads*, of a region in thread mode or of several: they read faults and do the same.
//! - *Threads that fill pages before they touch them* (`filler.rs`), for operations that return
//!   errors: they do the same outside of a handler, and copy under the read lock of the VMA.
//! - *Evictors*, one for each bound: they give back what is clean of its regions, keep some of its
//!   bytes for a while, and never wait for a source.
//! - *Writers*, one for each region with a bound that is writable: they write to the source what
//!   has to go.
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
//! 4. If the region has a bound, pages are taken from its budget; if none are left, the thread
//!    sleeps until the evictor has given pages back, and repeats the access. It fails if no page
//!    can be given back: nothing is clean, and nothing can be written.
//! 5. If bytes of the page are kept since it has gone, it is filled from there. If another thread
//!    reads the granule, its end is awaited, and the access is repeated: the
//!    handler sleeps by a futex; a handler thread leaves the fault to the thread that reads, and
//!    serves others. Otherwise what is missing of the granule is read, into a buffer of the region:
//!    the VMA is unlocked for it, and what keeps the source is a VMA of its own, in a second
//!    address space. Then the VMA is locked again, and the record of the pages must say that
//!    nothing of them was given back meanwhile. Memory sources are not read: the kernel copies from
//!    there, and while it copies a granule for one thread, others have it copy the page they want.
//! 6. `UFFDIO_COPY`, or `UFFDIO_ZEROPAGE` for what the source says is zeros, or, for a frozen
//!    region, `UFFDIO_MOVE` of huge pages that were read to. The pages are present,
//!    or another thread was faster: unlock, and the access goes on.
//! 7. Failed: the page is poisoned, and the region's [`OnFailure`](crate::OnFailure) is asked. Not
//!    ours, or passed on: to the handler that was there before. If there was none, the default
//!    action is restored and the access, repeated, ends the process.
