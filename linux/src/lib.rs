//! Linux's memory-mapping system calls, with Linux's results.
//!
//! On an [`Mm`] the calls `mmap`, `munmap`, `mprotect`, `mremap`, `madvise`, `mlock`, `brk`,
//! `mseal`, `msync`, `mincore` and `fork` take what the system calls take and return what they
//! return: the address that is chosen, the error that comes first where several apply, the mappings
//! that merge or are split, and what stays changed when a call fails half-way. The crate is for
//! emulators, library operating systems and kernels on which programs for Linux run.
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
//! This crate keeps the map. Pages are the business of a [`Backing`], and files are types of the
//! caller's ([`File`]). What results depend on beside the map (layout, limits, privileges, the
//! machine's memory) is a [`Config`], which may change meanwhile ([`Mm::configure`]). By default a
//! call that fails leaves what Linux leaves; with [`Config::strict`] it changes nothing.
//!
//! A signal handler may ask with [`Mm::try_lookup`] and [`Mm::try_fault`]; see [`Mm`].
//!
//! # How it is checked
//!
//! `pervma differ` makes random calls here and, in a child process, on the running kernel, and
//! compares results, errors and the whole map after every call. `pervma mirror` does so with the
//! calls of a program that runs.
//!
//! An address space can begin as that of a process that is there (`Mm::of_process`, with the
//! feature `std` on Linux), or of any mappings ([`Mm::adopt`]).
//!
//! # What a call costs
//!
//! The steps of a call grow with the logarithm of the number of mappings, for each mapping that it
//! changes. Where the backing has something to do, a call is two edits, and one that moves a
//! mapping, or is near a limit, is tried on a copy of what is mapped at its addresses. In strict
//! mode a call runs on a copy of the map first. [`Backing::IDLE`] says that there is nothing to do.
//!
//! # Which Linux
//!
//! The rules are those of Linux 6.18 on x86-64 with four levels of page tables. There is no setting
//! for the version. What a kernel's configuration decides is in [`Config`]: names of anonymous
//! memory, huge pages, `MADV_HWPOISON`, and the mark of guard pages.
//!
//! These rules are known to differ by version:
//!
//! - `mremap` moves several mappings at once, and wants spare mappings before it looks at any,
//!   since 6.17;
//! - `madvise` of sealed memory: since 6.17;
//! - `MADV_GUARD_INSTALL` on files: since 6.15;
//! - guard pages mark the whole mapping: since 6.19 and in later releases of 6.18. Only this one
//!   can be chosen ([`Config::marks_guards`]);
//! - neighbours of which only one has anonymous pages merge on either side: since 6.16;
//! - anonymous mappings whose length is a multiple of a huge page are aligned to one: since 6.13.
//!
//! # What is not modelled, and why
//!
//! - *Files of huge pages* (`MAP_HUGETLB`, `SHM_HUGETLB`): their results depend on the machine's
//!   pool of huge pages. `MAP_HUGETLB` is refused with `EINVAL`.
//! - *`shmat`, `remap_file_pages`, `mbind`, `process_madvise`*: System V segments and other
//!   processes have name spaces of their own, and memory policies need nodes. What `shmat` has
//!   attached is a shared mapping of an open file of its own.
//! - *Names of memory files that were unlinked* (`memfd_create`), which Linux lets have names as
//!   shared anonymous memory: [`Mm::set_anon_name`] refuses them with `EBADF`. The kernel at hand
//!   has no names.
//! - *Protection keys and shadow stacks*: no machine at hand has them.
//! - *Device memory, `userfaultfd`, DAX, secret memory*: drivers make such mappings. One that is
//!   there can be taken over with its flags ([`Mm::adopt`]), as can the kernel's own (`[vdso]`,
//!   `[vvar]`): which calls they refuse is modelled.
//! - *`vm.overcommit_memory=2`*: every process of the machine counts there.
//! - *Where huge pages are*, shared memory on huge pages (`shmem_enabled`) included. In Linux,
//!   where a huge page fits into a mapping with `MADV_HUGEPAGE`, reading it makes anonymous pages;
//!   and `MADV_COLLAPSE` is the backing's to answer.
//! - *What `prctl` and boot parameters set for a whole process or machine*: `PR_SET_MDWE`,
//!   `PR_SET_MEMORY_MERGE`, `PR_SET_THP_DISABLE`, `ignore_rlimit_data`, and the old layout that is
//!   searched from below. A caller that has them can look at the arguments first.
//! - *Kernels without swap*, where `MADV_WILLNEED` of memory without a file is `EBADF`, *or without
//!   KSM*, where `MADV_MERGEABLE` is `EINVAL`: none was at hand.
//! - *The limits of a debugger*: where a stack grows because another process writes to it, Linux
//!   looks at the limits of that process, and this crate at those of the stack's process.
//! - *Files that are swapped to* (`ETXTBSY`).
//! - *Soft-dirty tracking*, a flag that `/proc/PID/clear_refs` resets.
//! - *The `[vsyscall]` page*, which lies above everything that can be mapped: nothing is there.
//! - *`READ_IMPLIES_EXEC`* and 32-bit processes.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, all(feature = "std", target_os = "linux")))]
extern crate std;

pub mod abi;
mod address;
mod adopt;
mod advise;
mod asked;
mod backing;
mod brk;
mod call;
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
#[cfg(all(feature = "std", target_os = "linux"))]
mod process;
mod protect;
mod remap;
mod render;
mod seal;
mod state;
mod sync;
mod trial;
mod unmap;
mod vma;

pub use backing::{Access, Backing, NoBacking, Part, Refusal, Work};
pub use config::{Config, Layout, Limits};
pub use counts::Counts;
pub use errno::Errno;
pub use fault::Signal;
pub use file::{File, FileFacts, Inode, MapOperation, Object, OpenFile};
pub use flags::VmFlags;
pub use mm::Mm;
pub use not_now::NotNow;
#[cfg(feature = "std")]
pub use pervma::StdPlatform;
pub use pervma::{HandlerScope, ReadGuard};
#[cfg(all(feature = "std", target_os = "linux"))]
pub use process::{Inference, Inferred, ProcessError};
pub use vma::{AnonVma, Source, Vma};
