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
//! space.edit()?.insert(0x7f00_0000..0x7f00_4000, "stack")?;
//!
//! let vma = space.try_read(0x7f00_1234)?; // no lock, no allocation: legal in a signal handler
//! assert_eq!(*vma, "stack");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//!
//! - A held VMA ([`ReadGuard`]) keeps its range and payload; nobody changes or drops them.
//! - What an edit does appears to readers when the edit ends, all of it.
//! - "Nothing is mapped there" is said only if it was true at a moment during the lookup.
//! - An operation happens completely or not at all, whatever fails: memory, or user code that panics.
//! - Payloads come back: refused ones in the error, removed ones in the result. None is dropped in a
//!   put; those that an operation cuts or merges away are dropped when its edit has ended.
//! - [`AddressSpace::remove`], [`update`](AddressSpace::update), [`replace`](AddressSpace::replace) and
//!   [`relocate`](AddressSpace::relocate) wait for readers of the VMAs that they touch, and hold no
//!   lock meanwhile ([`Exclusion`]).
//! - Waiting for oneself is an error that says so ([`EditError`], [`ReadError`], [`ChangeError`]), as
//!   far as the [`Platform`] can tell threads apart.
//!
//! # Ranges that are not VMAs
//!
//! A change may begin or end inside a VMA, and may make neighbours alike. [`Payload`] says how what a
//! VMA holds is divided and joined then. The simplest is one that is neither:
//!
//! ```
//! use pervma::{AddressSpace, ChangeError, Payload};
//!
//! struct Device;
//! impl Payload for Device {}
//!
//! let space = AddressSpace::new(4096);
//! space.edit()?.insert(0x1000..0x3000, Device)?;
//! let cut = space.remove(0x1000..0x2000);
//! assert_eq!(cut.err(), Some(ChangeError::PartlyCovered { vma: 0x1000..0x3000 }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Without `std`
//!
//! The default feature `std` brings `StdPlatform`, a platform with `parking_lot`'s raw lock, the futex
//! and a thread-local identity. Without it the crate needs `alloc` only, and a [`Platform`] of
//! yours: a raw lock, memory for slabs ([`SlabMemory`]), a way to sleep on a word and to wake, and
//! where a thread's state lives.
//!
//! # Memory orderings
//!
//! All of them are in the [`ledger`], each with a model that fails when it is weakened.
#![cfg_attr(
    pervma_model,
    expect(clippy::new_without_default, reason = "`internals` shows the models what is private")
)]
#![cfg_attr(not(any(feature = "std", test, pervma_model)), no_std)]

#[cfg(not(target_has_atomic = "64"))]
compile_error!("pervma needs 64-bit atomics: its sequence numbers must never come round");

extern crate alloc;

mod arena;
mod change;
#[cfg(doctest)]
mod compile_fail;
mod cursor;
mod edit;
mod error;
mod exclusion;
mod facade;
mod gap;
mod guard;
mod hazard;
pub mod ledger;
mod lock;
mod memory;
mod mm;
mod payload;
mod platform;
mod range;
mod reader;
mod reserve;
mod slab;
mod slots;
mod space;
mod thread;
mod tree;
mod view;

pub use arena::Usage;
pub use cursor::Cursor;
pub use edit::{Edit, Removed, RemovedVmas, VmaMut};
pub use error::{ChangeError, EditError, InsertError, ReadError, RegisterError, WriteError};
pub use exclusion::Exclusion;
pub use facade::WaitWord;
pub use gap::{GapError, GapSearch};
pub use guard::{OwnedReadGuard, ReadGuard};
pub use memory::{GlobalMemory, SlabMemory};
pub use payload::Payload;
pub use platform::Platform;
#[cfg(all(feature = "std", not(pervma_model)))]
pub use platform::StdPlatform;
pub use range::RangeError;
pub use reader::{Reader, ReaderCursor};
pub use reserve::{CommitError, Reservation};
pub use slab::Slab;
pub use space::AddressSpace;
pub use thread::{HandlerScope, ThreadState};
pub use view::View;

#[cfg(all(test, not(pervma_model)))]
extern crate self as pervma;
/// The same suite as in the integration tests, with small nodes.
#[cfg(all(test, not(pervma_model)))]
#[path = "../tests/suite/mod.rs"]
mod suite;

/// Runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The parts below the public interface, for the models.
#[cfg(pervma_model)]
pub mod internals {
    pub use crate::facade::{
        Cell, Relaxed, WaitWord,
        model::{Barrier, Mutation, mutate},
    };
    pub use crate::lock::{SpaceSeq, VmaLock};
    pub use crate::platform::Model;
}
