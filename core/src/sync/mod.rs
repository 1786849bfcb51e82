//! The only door of this crate to atomics, fences and plain cells.
//!
//! Two back ends stand behind it: `real` (the processor's) and `model` (a checker's: loom's under
//! the cfg `pervma_model` that the models package emits, shuttle's under `pervma_shuttle` beside
//! it, from the schedules package). Nothing here decides anything: an atomic takes an edge of the
//! [`ledger`](crate::ledger), or [`Relaxed`] with its reason, and passes the ordering on. A bare
//! `Ordering` is not accepted, so an operation that the ledger does not know does not compile
//! (`models/tests/sync.rs` holds that to it).
#![cfg_attr(
    not(pervma_model),
    expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the door"),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

use core::sync::atomic::Ordering;

#[cfg(pervma_model)]
pub mod model;
#[cfg(any(not(pervma_model), pervma_shuttle))]
mod plain;
#[cfg(not(pervma_model))]
mod real;

#[cfg(pervma_model)]
use model as imp;
#[cfg(not(pervma_model))]
use real as imp;

pub use imp::{
    Cell, ConstPtr, ScheduleHint, WaitWord, keep, new_identity, resolve, walks_unvalidated,
};

/// A value with its cache lines to itself: processors fetch lines in pairs.
#[repr(align(128))]
pub struct Line<V>(pub V);

/// No ordering, with the reason why none is needed.
#[derive(Clone, Copy)]
pub struct Relaxed(
    #[cfg_attr(
        not(pervma_model),
        expect(dead_code, reason = "written for the reader of the code, not for the machine")
    )]
    pub &'static str,
);

/// For accesses that only mutants make.
pub const MUTANT: Relaxed = Relaxed("a mutant's");

/// For what tests do to an atomic.
#[cfg(all(test, not(pervma_model)))]
pub const TEST: Relaxed = Relaxed("a test's");

/// What an atomic load accepts.
pub trait LoadOrder: Copy {
    /// The ordering to use.
    fn order(self) -> Ordering;
}

/// What an atomic store accepts.
pub trait StoreOrder: Copy {
    /// The ordering to use.
    fn order(self) -> Ordering;
}

/// What an atomic read-modify-write accepts.
pub trait RmwOrder: Copy {
    /// The ordering to use.
    fn order(self) -> Ordering;
}

/// What a fence accepts: never [`Relaxed`].
pub trait FenceOrder: Copy {
    /// The ordering to use.
    fn order(self) -> Ordering;
}

impl LoadOrder for Relaxed {
    #[inline(always)]
    fn order(self) -> Ordering {
        Ordering::Relaxed
    }
}
impl StoreOrder for Relaxed {
    #[inline(always)]
    fn order(self) -> Ordering {
        Ordering::Relaxed
    }
}
impl RmwOrder for Relaxed {
    #[inline(always)]
    fn order(self) -> Ordering {
        Ordering::Relaxed
    }
}

/// A fence of the ledger.
#[inline(always)]
pub fn fence(edge: impl FenceOrder) {
    imp::fence(edge.order());
}

/// Keeps the compiler from moving accesses across, for signal handlers of the same thread. Orders
/// nothing between threads.
#[inline(always)]
pub fn signal_fence() {
    imp::signal_fence();
}

/// A barrier point: where a thread may pass a barrier that another thread has asked for, for a
/// checker. It may anywhere; this is such a place that no fence for signal handlers marks.
#[inline(always)]
pub fn barrier_point() {
    imp::barrier_point();
}

/// An assertion of debug builds and of all models, whose mutants fail by what it says.
#[inline(always)]
#[track_caller]
pub fn check(holds: bool, otherwise: &str) {
    if cfg!(any(pervma_model, debug_assertions)) {
        assert!(holds, "{otherwise}");
    }
}

/// Declares a function `const`, except under the model checker, whose atomics are built at run
/// time.
macro_rules! const_unless_model {
    ($(#[$meta:meta])* $vis:vis fn $($rest:tt)*) => {
        #[cfg(not(pervma_model))]
        $(#[$meta])*
        $vis const fn $($rest)*
        #[cfg(pervma_model)]
        $(#[$meta])*
        $vis fn $($rest)*
    };
}
pub(crate) use const_unless_model;

macro_rules! atomic {
    ($(#[$meta:meta])* $name:ident, $int:ty) => {
        $(#[$meta])*
        pub struct $name(imp::$name);

        impl $name {
            const_unless_model! {
                /// An atomic that holds `value`.
                #[inline]
                pub fn new(value: $int) -> Self {
                    Self(imp::$name::new(value))
                }
            }

            /// Loads the value.
            #[inline(always)]
            pub fn load(&self, edge: impl LoadOrder) -> $int {
                self.0.load(edge.order())
            }

            /// Stores `value`.
            #[inline(always)]
            pub fn store(&self, value: $int, edge: impl StoreOrder) {
                self.0.store(value, edge.order());
            }
        }
    };
}

atomic!(
    /// A 32-bit atomic that takes only orderings of the ledger.
    AtomicU32,
    u32
);
atomic!(
    /// A 64-bit atomic that takes only orderings of the ledger.
    AtomicU64,
    u64
);
atomic!(
    /// A pointer-sized atomic that takes only orderings of the ledger.
    AtomicUsize,
    usize
);

impl AtomicU32 {
    /// Adds `value`, wrapping; returns what was there.
    #[inline(always)]
    pub fn fetch_add(&self, value: u32, edge: impl RmwOrder) -> u32 {
        self.0.fetch_add(value, edge.order())
    }

    /// Subtracts `value`, wrapping; returns what was there.
    #[inline(always)]
    pub fn fetch_sub(&self, value: u32, edge: impl RmwOrder) -> u32 {
        self.0.fetch_sub(value, edge.order())
    }

    /// Stores `value`; returns what was there.
    #[inline(always)]
    pub fn swap(&self, value: u32, edge: impl RmwOrder) -> u32 {
        self.0.swap(value, edge.order())
    }

    /// Raises the bits of `value`; returns what was there.
    #[inline(always)]
    pub fn fetch_or(&self, value: u32, edge: impl RmwOrder) -> u32 {
        self.0.fetch_or(value, edge.order())
    }

    /// Replaces `current` by `new`. A failure orders nothing.
    #[inline(always)]
    pub fn compare_exchange(
        &self,
        current: u32,
        new: u32,
        edge: impl RmwOrder,
    ) -> Result<u32, u32> {
        self.0.compare_exchange(current, new, edge.order(), Ordering::Relaxed)
    }

    /// Replaces `current` by `new`; may fail for no reason. A failure orders nothing.
    #[inline(always)]
    pub fn compare_exchange_weak(
        &self,
        current: u32,
        new: u32,
        edge: impl RmwOrder,
    ) -> Result<u32, u32> {
        self.0.compare_exchange_weak(current, new, edge.order(), Ordering::Relaxed)
    }
}

impl AtomicUsize {
    /// Replaces `current` by `new`. A failure orders nothing.
    #[inline(always)]
    pub fn compare_exchange(
        &self,
        current: usize,
        new: usize,
        edge: impl RmwOrder,
    ) -> Result<usize, usize> {
        self.0.compare_exchange(current, new, edge.order(), Ordering::Relaxed)
    }
}

impl AtomicU64 {
    /// Replaces `current` by `new`. A failure orders nothing.
    #[inline(always)]
    pub fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        edge: impl RmwOrder,
    ) -> Result<u64, u64> {
        self.0.compare_exchange(current, new, edge.order(), Ordering::Relaxed)
    }
}
