//! A concurrent address space with a lock in every mapping.
#![doc = include_str!("../../README.md")]
#![cfg_attr(
    pervma_model,
    expect(clippy::new_without_default, reason = "`internals` shows the models what is private")
)]
#![cfg_attr(not(any(feature = "std", test, pervma_model)), no_std)]

#[cfg(not(target_has_atomic = "64"))]
compile_error!("pervma needs 64-bit atomics: its sequence numbers must never come round");

extern crate alloc;

mod edit;
mod error;
mod facade;
mod guard;
pub mod ledger;
mod lock;
mod mm;
mod platform;
mod range;
mod slab;
mod slots;
mod space;
mod thread;
mod tree;

pub use edit::{Edit, Removed, WriteGuard};
pub use error::{EditError, InsertError, InsertErrorKind, OutOfMemory, ReadError, RemoveError};
pub use facade::WaitWord;
pub use guard::ReadGuard;
pub use platform::Platform;
#[cfg(all(feature = "std", not(pervma_model)))]
pub use platform::Std;
pub use range::RangeError;
pub use slab::Slab;
pub use slots::Usage;
pub use space::AddressSpace;
pub use thread::{HandlerScope, ThreadState};

/// The parts below the public interface, for the models.
#[cfg(pervma_model)]
pub mod internals {
    pub use crate::facade::{
        Cell, Relaxed, WaitWord,
        model::{Mutation, mutate},
    };
    pub use crate::lock::{SpaceSeq, VmaLock};
    pub use crate::platform::Model;
}
