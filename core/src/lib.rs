//! A concurrent address space with a lock in every mapping.
//!
//! An [`AddressSpace`] maps disjoint ranges of addresses to payloads. Any number of threads look
//! addresses up and hold what they find ([`try_read`](AddressSpace::try_read),
//! [`read`](AddressSpace::read)) while one at a time changes the map
//! ([`edit`](AddressSpace::edit)); a change holds up only the readers of the VMAs that it touches.
//! It is the design that Linux calls *per-VMA locks*.
//!
//! ```
//! use pervma::AddressSpace;
//!
//! let space = AddressSpace::new(4096);
//! space.insert(0x7f00_0000..0x7f00_4000, "stack")?;
//!
//! let vma = space.try_read(0x7f00_1234)?; // no lock, no allocation: legal in a signal handler
//! assert_eq!(*vma, "stack");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What to use
//!
//! | you want | use |
//! |---|---|
//! | to look an address up, and keep what is there from being changed | [`AddressSpace::try_read`], which does not wait; [`AddressSpace::read`], which does |
//! | to know how far the hole at an address reaches | [`AddressSpace::try_read_or_hole`] |
//! | to look up addresses that lie close together | a [`Cursor`] |
//! | all VMAs | copies: [`AddressSpace::iter`]; one at a time, with what it holds: [`read_all`](AddressSpace::read_all); all at one moment: a [`View`] |
//! | a guard for another thread, or for a part of the payload | [`ReadGuard::try_to_owned`], [`ReadGuard::map`] |
//! | many threads to read one VMA | registered readers: [`AddressSpace::register`] |
//! | to map, unmap, change or move one range | [`AddressSpace::insert`], [`remove`](AddressSpace::remove), [`update`](AddressSpace::update), [`replace`](AddressSpace::replace), [`relocate`](AddressSpace::relocate) |
//! | attributes of ranges, with equal neighbours as one | [`AddressSpace::set`], [`insert_merging`](AddressSpace::insert_merging) |
//! | to remove VMAs, wherever they are, by what they hold | [`AddressSpace::retain`] |
//! | to say in one change how payloads are split and merged | [`AddressSpace::change`], with [`SplitMerge`] |
//! | several changes that appear at once, a search for a gap, a copy of the space | an [`Edit`] |
//! | a range to be taken while a system call is made | a [`Reservation`] |
//! | to wait for the readers of a range with no lock held, and then decide | an [`Exclusion`] |
//! | to use the space in a child of fork(2) | [`AddressSpace::prepare_fork`] |
//! | to find the same VMA again, after its lock was dropped | its [`VmaId`], and its [`VmaVersion`] |
//!
//! # Guarantees
//!
//! - A held VMA ([`ReadGuard`]) keeps its range and payload; they are neither changed nor dropped.
//! - What an edit does appears to readers when the edit ends, all of it.
//! - A lookup returns "not mapped" only if that was true at a moment during the lookup.
//! - An operation happens completely or not at all, whatever fails: memory, or user code that
//!   panics.
//! - Payloads come back: refused ones in the error, removed ones in the result. None is dropped
//!   when a guard is; those that an operation splits or merges away are dropped when its edit has
//!   ended.
//! - [`AddressSpace::remove`], [`update`](AddressSpace::update), [`set`](AddressSpace::set) and
//!   their relatives wait for readers of the VMAs that they touch, and hold no lock meanwhile
//!   ([`Exclusion`]).
//! - A thread that would wait for itself is given an error that says so ([`EditError`],
//!   [`ReadError`], [`ChangeError`]), as far as the [`Platform`] can tell threads apart.
//!
//! # Ranges that are not VMAs
//!
//! A change may begin or end inside a VMA, and may make neighbours alike. [`Payload`] says how what
//! a VMA holds is split and merged then. The simplest is one that is neither, and a payload that
//! is no `Payload` can be removed as a whole ([`AddressSpace::remove_whole`]):
//!
//! ```
//! use pervma::{AddressSpace, ChangeError, Payload};
//!
//! struct Device;
//! impl Payload for Device {}
//!
//! let space = AddressSpace::new(4096);
//! space.insert(0x1000..0x3000, Device)?;
//! let split = space.remove(0x1000..0x2000);
//! assert_eq!(split.err(), Some(ChangeError::PartlyCovered { vma: 0x1000..0x3000 }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A range ends at an address, so it cannot hold the last byte of the address space, nor the rest
//! of the last granule: [`AddressSpace::everything`] is all that can be mapped.
//!
//! # Without `std`
//!
//! The default feature `std` brings [`StdPlatform`], with a lock, the futex and a thread-local
//! state. Without it the crate needs `alloc` only, and a [`Platform`] of yours: a raw lock that
//! implements [`lock_api::RawRwLockDowngrade`], memory for slabs ([`SlabMemory`]), a way to sleep
//! on a word and to wake, and where a thread's state lives.
//!
//! # Fork
//!
//! In a child of fork(2) there is one thread, and what the others held or were doing is left as it
//! was. So a space must be prepared by the thread that forks, with
//! [`AddressSpace::prepare_fork`]: then the child can use it ([`PreparedFork::child`]), whatever
//! other threads did with it. Handlers of `pthread_atfork(3)` can do that for all forks of a
//! program. A space that was not prepared may only be abandoned in the child
//! ([`AddressSpace::abandon_after_fork`]), also after a raw `clone`. Between `vfork` and exec the
//! memory is the parent's: use lookups that do not wait, or nothing. All three parts are legal
//! between fork and exec, as are lookups that do not wait.
//!
//! # Memory orderings
//!
//! Each has a name, both of its ends, and a model that fails when it is weakened:
//! `docs/orderings.md` in the repository.
#![cfg_attr(
    pervma_model,
    expect(
        unreachable_pub,
        missing_debug_implementations,
        clippy::new_without_default,
        reason = "`internals` shows the models what is private"
    )
)]
#![cfg_attr(not(any(feature = "std", test, pervma_model)), no_std)]
#![deny(unsafe_code)]

#[cfg(not(target_has_atomic = "64"))]
compile_error!("pervma needs 64-bit atomics: its sequence numbers must never repeat");

extern crate alloc;

// From the bottom up; ARCHITECTURE.md has the order, and `.ci/layers` checks it.
mod ledger;
mod step;
mod sync;

mod error;
mod identity;
mod memory;
mod payload;
mod range;
mod removed;

mod held;
mod host;
mod mmap_lock;
mod platform;
mod thread;

mod arena;
mod btree;
mod deferred;
mod hazard;
mod lock;
mod mm;
mod slab;
mod slots;
mod vma_id;

mod change;
mod fork;
mod lookup;
mod map;
mod pinned;
mod reserved;

// The trust boundary: what follows forbids unsafe code, and cannot break what is above.
mod cursor;
mod edit;
mod exclusion;
mod gap;
mod guard;
mod iter;
mod lookups;
mod owned;
mod range_locks;
mod reader;
mod reserve;
mod space;
mod unwind;
mod view;
mod vmas;

#[cfg(doctest)]
mod compile_fail;

#[cfg(not(pervma_model))]
pub use lock_api;

pub use arena::Usage;
pub use cursor::{Cursor, ReaderCursor};
pub use edit::{Edit, VmaMut};
pub use error::{
    ChangeError, EditError, ForkError, InsertError, OwnRangeLock, ReadError, RegisterError,
    WriteError,
};
pub use exclusion::Exclusion;
pub use fork::PreparedFork;
pub use gap::{GapError, GapSearch};
pub use guard::{MappedReadGuard, ReadGuard};
pub use held::HandlerScope;
#[cfg(not(any(feature = "std", pervma_model)))]
pub use host::NoPlatform;
#[cfg(all(feature = "std", not(pervma_model)))]
pub use host::{StdLock, StdMemory, StdPlatform};
pub use iter::{Iter, ReadAll};
pub use lookups::VmaOrHole;
pub use map::Vmas;
pub use memory::{GlobalMemory, SlabMemory};
pub use owned::{OwnedMappedReadGuard, OwnedReadGuard};
pub use payload::{Payload, SplitMerge};
pub use platform::Platform;
pub use range::RangeError;
pub use range_locks::{RangeLock, RangeLocks};
pub use reader::Reader;
pub use removed::{IntoIter, Removed, RemovedVmas};
pub use reserve::Reservation;
pub use slab::Slab;
pub use space::AddressSpace;
pub use sync::WaitWord;
pub use thread::ThreadState;
pub use view::View;
pub use vma_id::{VmaId, VmaVersion};
pub use vmas::VmasIter;

#[cfg(all(test, not(pervma_model)))]
extern crate self as pervma;
/// The suite of the integration tests, with small nodes.
#[cfg(all(test, not(pervma_model)))]
#[path = "../tests/suite/mod.rs"]
#[expect(unsafe_code, reason = "a platform of the tests")]
mod suite;

/// The parts below the public interface, for the models.
#[cfg(pervma_model)]
pub mod internals {
    pub use crate::host::{FutexLock, Left, Model};
    pub use crate::lock::{EventKey, SpaceSeq, VmaLock};
    pub use crate::step::{STEPS, Step};
    pub use crate::sync::{
        Cell, Relaxed, WaitWord,
        model::{Barrier, Mutation, mutate, walk_unvalidated},
    };

    /// The edges, and what is argued.
    pub mod ledger {
        pub use crate::ledger::{ARGUED, Argued, EDGES, Edge, Kind, Ordering};
    }
}
