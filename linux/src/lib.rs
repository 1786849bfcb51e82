//! Linux's mapping calls, with Linux's results.
//!
//! [`Mm`] is an address space on which `mmap`, `munmap`, `mprotect`, `mremap`, `madvise`, `mlock`,
//! `brk`, `mseal`, `msync`, `mincore` and `fork` are called as the system calls are, and return what
//! they return: the address chosen, which of several errors wins, which mappings merge and which are
//! cut, and what stays changed when a call fails half-way. It is for emulators, library operating
//! systems and kernels that have to be Linux to somebody.
//!
//! ```
//! use pervma_linux::{Access, Config, Mm, NoBacking, Signal, abi::*};
//!
//! let mm = Mm::new(NoBacking, Config::default());
//! let flags = MAP_PRIVATE | MAP_ANONYMOUS;
//! let addr = mm.mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, flags, None, 0)?;
//! mm.mprotect(addr + 4096, 4096, PROT_NONE)?;
//! assert_eq!(mm.fault(addr + 4096, Access::Read), Err(Signal::NotAllowed));
//! print!("{}", mm.maps()?); // as /proc/PID/maps
//! # Ok::<(), pervma_linux::Errno>(())
//! ```
//!
//! The map alone is this crate's: pages are a [`Backing`]'s, files are the caller's ([`File`]). What the
//! results depend on beside the map (layout, limits, privileges, the machine's memory) is a
//! [`Config`]. With [`Config::strict`] no call ever changes the map half; the faithful default does
//! what Linux does.
//!
//! # How it is checked
//!
//! `pervma differ` makes random calls here and, in a child process, on the running kernel, and compares
//! results, errors and the whole map after every call.
//!
//! # What a call costs
//!
//! Steps logarithmic in the mappings, for each mapping that it touches; in strict mode a call is tried
//! on a copy of the map first.
//!
//! # Which Linux
//!
//! The rules are those of Linux 6.18 on x86-64 with four levels of page tables. There is no setting
//! for the version. What a kernel's configuration decides is in [`Config`]: names of anonymous memory,
//! huge pages, failing memory, and the mark of guard pages.
//!
//! What is known to differ by version:
//!
//! - `mremap` moves several mappings at once, and asks for room before it looks at any, since 6.17;
//! - sealed memory: the rules of 6.17 and later for `madvise`;
//! - `MADV_GUARD_INSTALL` on files: 6.15 and later;
//! - guard pages mark the whole mapping since 6.19 and in later releases of 6.18: only this can be
//!   chosen ([`Config::marks_guards`]);
//! - touched and untouched neighbours merge on either side since 6.16;
//! - anonymous mappings are placed on huge pages if their length is a multiple of one: 6.13 and later.
//!
//! # What is not modelled, and why
//!
//! - *Huge page files* (`MAP_HUGETLB`, `SHM_HUGETLB`): their results depend on the machine's pool of
//!   huge pages. `MAP_HUGETLB` is refused with `EINVAL`.
//! - *`shmat`, `remap_file_pages`, `mbind`, `process_madvise`*: System V segments and other processes
//!   have name spaces of their own, memory policies need nodes.
//! - *Protection keys and shadow stacks*: the machines at hand have none.
//! - *Device memory, `userfaultfd`, DAX, secret memory*: the mappings are made by drivers.
//! - *`vm.overcommit_memory=2`*, where every process of the machine counts.
//! - *Where huge pages are*, shared memory on huge pages (`shmem_enabled`) included: a read of a hole
//!   in a `MADV_HUGEPAGE` mapping, where a huge page fits, makes pages of one's own in Linux, and
//!   `MADV_COLLAPSE` is the backing's to answer.
//! - *What `prctl` and boot parameters set for a whole process or machine*: `PR_SET_MDWE`,
//!   `PR_SET_MEMORY_MERGE`, `PR_SET_THP_DISABLE`, `ignore_rlimit_data`, the old layout that is searched
//!   from below. A caller that has them can look at the arguments first.
//! - *Kernels without swap*, where `MADV_WILLNEED` of memory without a file is `EBADF`, *or without
//!   KSM*, where `MADV_MERGEABLE` is `EINVAL`; none has been at hand.
//! - *The limits of a debugger*: where a stack grows because another process writes to it, Linux looks
//!   at the limits of that process, and here they are those of the stack's.
//! - *Files that are swapped to* (`ETXTBSY`).
//! - *Soft-dirty tracking*, a flag that `/proc/PID/clear_refs` resets.
//! - *The `[vsyscall]` page*, which lies above all that can be mapped: here nothing is there.
//! - *`READ_IMPLIES_EXEC`* and 32-bit processes.
#![deny(unreachable_pub)]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod abi;
mod advise;
mod backing;
mod brk;
mod config;
mod counts;
mod errno;
mod fault;
mod file;
mod flags;
mod fork;
mod handler;
mod lock;
mod map;
mod merge;
mod mm;
mod not_now;
mod place;
mod populate;
mod protect;
mod remap;
mod render;
mod seal;
mod sync;
mod unmap;
mod vma;

pub use backing::{Access, Backing, NoBacking, Part, Refusal};
pub use config::{Config, Layout, Limits};
pub use counts::Counts;
pub use errno::Errno;
pub use fault::Signal;
pub use file::{File, FileFacts, MapOperation, OpenFile};
pub use flags::VmFlags;
pub use mm::Mm;
pub use not_now::NotNow;
#[cfg(feature = "std")]
pub use pervma::StdPlatform;
pub use pervma::{HandlerScope, ReadGuard};
pub use vma::{AnonVma, Object, Source, Vma};
