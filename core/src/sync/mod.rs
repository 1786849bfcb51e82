//! The only place of this crate that uses atomics, fences and plain cells directly.
//!
//! It has two back ends: `real` (the processor's) and `model` (a checker's: loom's under
//! the cfg `pervma_model` that the models package emits, shuttle's under `pervma_shuttle` beside
//! it, from the schedules package). Nothing here decides anything: an atomic takes an edge of the
//! [`ledger`](crate::ledger), or [`Relaxed`] with its reason, and passes the ordering on. A bare
//! `Ordering` is not accepted, so an operation that the ledger does not know does not compile
//! (`models/tests/sync.rs` checks that).
#![cfg_attr(
    not(pervma_model),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

mod atomic;
mod const_fn;
#[cfg(pervma_model)]
pub mod model;
mod order;
#[cfg(any(not(pervma_model), pervma_shuttle))]
mod plain;
#[cfg(not(pervma_model))]
mod real;
mod wait_word;

#[cfg(pervma_model)]
use model as imp;
#[cfg(not(pervma_model))]
use real as imp;

pub use atomic::{
    AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Line, barrier_point, check, fence, signal_fence,
};
pub(crate) use const_fn::const_unless_model;
pub use imp::{Cell, ConstPtr, ScheduleHint, keep, new_identity, resolve, walks_unvalidated};
#[cfg(all(test, not(pervma_model)))]
pub use order::TEST;
pub use order::{FenceOrder, LoadOrder, MUTANT, Relaxed, RmwOrder, StoreOrder};
pub use wait_word::WaitWord;
