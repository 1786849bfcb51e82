//! What a region cannot do, and what its user has to keep in mind.
//!
//! - In signal mode a *system call* that touches a page that is missing, or protected for tracking,
//!   fails with `EFAULT`. Pin what it touches ([`Region::pin`](crate::Region::pin) and
//!   [`pin_for_writes`](crate::Region::pin_for_writes)), or use thread mode. Reading a missing page
//!   through `/proc/PID/mem` fails in both modes.
//! - In thread mode a *system call that writes missing pages of a region to the file* they come
//!   from can wait for ever, and with it the handler thread: the kernel holds the file's lock while
//!   it waits for the page, and takes it to tell of holes (sparse files, whatever the file system)
//!   or to read (XFS). Pin what it writes, or use [`write_back`](crate::Region::write_back).
//! - *Writes are tracked by write protection*: the first write to a page that was filled for a read
//!   is a fault of its own.
//! - A SIGBUS handler that is installed *later* must pass on what is not its own, and must block
//!   all signals (`sa_mask`, no `SA_NODEFER`), as ours does: under a smaller mask another handler
//!   can interrupt a fault, and if it touches a region the process ends. It may call
//!   [`serve_sigbus`](crate::serve_sigbus). Over one that does not pass signals on, call
//!   [`install_handler`](crate::install_handler). One that is installed at the very moment at which
//!   ours is can be missed.
//! - *SIGBUS must not be blocked* in a thread that touches a region in signal mode, or one that
//!   fails: the kernel ends the process then. Mapping a region from such a thread is an error.
//! - A SIGBUS that is *sent* (by `kill`) goes to the handler before ours, which in a Rust program
//!   is the standard library's; that one restores the default action, and the next fault of a
//!   region ends the process, unless the handler is installed again before.
//! - *Operations on a region block signals* in their thread while faults wait for them, but those
//!   of faults: a handler that touched the region would wait for its own thread. A source is
//!   written with signals blocked, and read so by the copies that return errors
//!   ([`read_checked`](crate::Region::read_checked)). None of them may be called in a signal
//!   handler.
//! - A *forked child* does not have the regions: touching one there is SIGSEGV, never zeros. What
//!   it drops of them is a leak, and does not affect its parent; any other operation fails or waits
//!   for ever.
//! - A *slow source* holds up the threads that want the same granule, the handler thread that reads
//!   it, and the drop of its region; in signal mode with all signals blocked. A read that takes
//!   more than 10 seconds is made once more, for the threads that wait for it in signal mode.
//! - *`munmap`, `mprotect`, `MADV_DONTNEED` and whatever else* changes what is at a region's
//!   addresses or who may access it is this crate's to call there: called by others it leaves the
//!   records wrong, and copies that return errors can wait for ever. Other advice, locks and memory
//!   policies may be given for any part. Each splits the kernel's mapping, and a granule that lies
//!   in several is filled in as many calls.
//! - *Writing back* copies each page that stays in the region, to know that no device writes it: it
//!   takes one and a half to two and a half times as long as just writing, to a file in the page
//!   cache. While it is written, up to 1 MiB is present twice; in a region whose bound does not
//!   allow that, it is given back.
//! - *Moving* a region copies what was written and leaves the rest to the source; *discarding* is
//!   not shared with other mappings of the same source.
//! - *Tables*: for each 2 MiB of which some page is present there are a page of records and a page
//!   table of the kernel's, 4 KiB each, which are given back when nothing of the 2 MiB is present
//!   any more (the page table since Linux 6.14, if it is built with `PT_RECLAIM`). What was never
//!   touched takes nothing; for each GiB of which something was ever touched 12 KiB stay. With a
//!   bound the first 8 MiB of tables are beside it, and more take the place of pages: where pages
//!   are touched that are far apart, up to two thirds of a bound; a fault takes up to two and a
//!   half times as long there, since tables come and go with each page. Tables of huge pages are
//!   4 KiB for each GiB, and counted as twice that.
//! - *Which pages go*: no processor tells a process which of its pages are used. A page is known to
//!   be used by coming back while its bytes are still kept, or again soon after it has gone for
//!   good. Second chance knows of each access. Beside it a bound of 1024 pages, of a source that is
//!   read, has 1 to 2 % more misses where the same half or three quarters of it are used often, 4
//!   to 7 % more where those change all the time, 7 % fewer where pages are used by rank, and 28 %
//!   fewer beside a scan (`pager/tests/bounds.rs` prints the numbers). For each page that is read
//!   up to two come back in vain. Bytes are not kept of a source in memory, where a page comes back
//!   as cheaply from there: there 6 % more miss, and up to 28 % where what is used often changes;
//!   nor of huge pages and of granules above 16 KiB, where the copy costs more than it saves; nor
//!   with a bound of less than some 60 pages. Beside a bound are some 40 bytes for each of its
//!   pages, for what came and went lately.
//! - *Moving* a region with a bound ([`relocate`](crate::Region::relocate), and
//!   [`resize`](crate::Region::resize) beyond its capacity) has what was written and not written
//!   back twice, as long as it takes, and beside the bound. [Write it
//!   back](crate::Region::write_back) first.
//! - *Pages that cannot be written back* stay, count, and leave that much less of a bound, as
//!   pinned ones do. An access that needs more pages at once than they leave fails after 10,000
//!   pages have gone in vain.
//! - *What is known to be zeros* ([`Source::zeros`](crate::Source::zeros), holes of a file) takes
//!   no memory in regions that are not writable and have no huge pages. In others it is copied: the
//!   kernel does not tell of the first write to its page of zeros. A bound counts it as any page.
//! - Each region takes a descriptor, and two more in thread mode unless it shares its
//!   [handlers](crate::Handlers), and the source of a sparse file one more than its file:
//!   `ulimit -n` bounds their number.
//! - *A system call that a filter refuses* (seccomp) is replaced by another one, or is an error: of
//!   mapping a region if it is refused then, of the operation or the access if it is refused later.
//!   Nothing works without `futex`, by which all of Rust waits.
//! - The handler needs stack beside the signal frame. An alternate stack as the standard library
//!   gives its threads (8 KiB or more) is enough for one fault, in a debug build too, but not for a
//!   handler of your own that runs on the same stack and touches a region: that needs twice as
//!   much.
//! - Copies that return errors, prefetching and pinning serve faults on the calling thread's own
//!   stack, of which they take what the handler takes of its, and a page. They read a source to
//!   memory that they allocate for the call, of a granule and 8 MiB at most.
//! - A region whose source is read has buffers: in thread mode one of a granule (8 MiB at most) for
//!   each thread, in signal mode up to 128 of up to 64 KiB, and with larger granules others of
//!   32 MiB together. They take memory once they are used, as many as are used at a time, and keep
//!   it. A bound does not count them. While all are in use, threads that fault in signal mode try
//!   again and again.
//! - *Huge pages*: from Linux 6.8 on, what is read for a [`FrozenRegion`](crate::FrozenRegion) in
//!   granules of 2 MiB or more comes in transparent huge pages, as far as it is whole ones and the
//!   kernel has some. The source is read to one, which is moved to its place: a fault takes about
//!   half the time of a copy, and accesses need fewer entries of the processor's tables. The
//!   kernel may first put memory together for one, as
//!   `/sys/kernel/mm/transparent_hugepage/defrag` lets it. While one comes, for some microseconds,
//!   a stray write to its 2 MiB is let through. All else is copied, in small pages: regions that
//!   are not frozen or were writable, sources in memory, code, what is locked, and 2 MiB that are
//!   in part present, or lie in several of the kernel's mappings. Who wants small pages chooses
//!   smaller granules, or tells the kernel: `MADV_NOHUGEPAGE` for the region once it is frozen,
//!   `PR_SET_THP_DISABLE` for the process. In a region that was
//!   [thawed](crate::FrozenRegion::thaw) a huge page stays: its memory is given back when all of it
//!   is discarded, or when the system is short of memory.
//! - In a library that is loaded at run time the first fault of a thread may allocate its
//!   thread-locals: touch a region once on each thread, outside of allocators and handlers.
//! - The kernel's pages are 4096 bytes, or 2 MiB of hugetlbfs; other page sizes are an error.
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
//! (`pkey_mprotect`) or [code](crate::sys::Access::ReadExecute), in locked parts beyond
//! `ulimit -l`, and where a filter refuses `UFFDIO_MOVE`.
//! Nor does the kernel tell of pages that are not pinned but only referenced, as some network file
//! systems do it.
