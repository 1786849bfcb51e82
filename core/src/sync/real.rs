//! The processor's atomics. Everything here inlines to the bare operation.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "takes edges, and passes them on"
)]

use core::sync::atomic::Ordering;

use crate::step::Step;

pub use super::plain::{Cell, ConstPtr};
pub(super) use core::sync::atomic::fence;
pub use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};

/// The ordering an edge has: the one the ledger states. `models/tests/sync.rs` reads what
/// comes of it.
#[inline(always)]
pub const fn resolve(_name: &'static str, stated: Ordering) -> Ordering {
    stated
}

/// Whether a step of the protocol is taken: always.
#[inline(always)]
pub const fn keep(_step: Step) -> bool {
    true
}

/// Whether a lookup begins with a walk that is not validated: always.
#[inline(always)]
pub const fn walks_unvalidated() -> bool {
    true
}

#[inline(always)]
pub(super) fn signal_fence() {
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
}

#[inline(always)]
pub(super) fn barrier_point() {}

/// An identity that was never given before in this process; not 0.
pub fn new_identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Only uniqueness matters (IDENTITY in the ledger): it publishes nothing.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// See the model's.
pub struct ScheduleHint;

impl ScheduleHint {
    /// A hint without effect.
    pub const fn new() -> Self {
        Self
    }

    /// Does nothing.
    #[inline(always)]
    pub const fn hint(&self) {}
}
