//! Atomics and fences that take an edge of the ledger, or a reason.
#![cfg_attr(
    not(pervma_model),
    expect(
        clippy::disallowed_types,
        clippy::disallowed_methods,
        reason = "takes edges, and passes them on"
    ),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

use core::sync::atomic::Ordering;

use super::const_fn::const_unless_model;
#[cfg(pervma_model)]
use super::model as imp;
use super::order::{FenceOrder, LoadOrder, RmwOrder, StoreOrder};
#[cfg(not(pervma_model))]
use super::real as imp;

/// A value with its cache lines to itself: processors fetch lines in pairs.
#[repr(align(128))]
pub struct Line<V>(pub V);

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

macro_rules! atomic {
    ($(#[$meta:meta])* $name:ident $(<$of:ident>)?, $int:ty) => {
        $(#[$meta])*
        pub struct $name $(<$of>)?(imp::$name $(<$of>)?);

        impl $(<$of>)? $name $(<$of>)? {
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

atomic!(
    /// An atomic pointer that takes only orderings of the ledger.
    AtomicPtr<V>,
    *mut V
);

impl AtomicU32 {
    /// The processor's atomic, for what the system does with it.
    #[cfg(not(pervma_model))]
    #[inline]
    pub(super) fn raw(&self) -> &imp::AtomicU32 {
        &self.0
    }

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
    /// Adds `value`, wrapping; returns what was there.
    #[inline(always)]
    pub fn fetch_add(&self, value: u64, edge: impl RmwOrder) -> u64 {
        self.0.fetch_add(value, edge.order())
    }

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
