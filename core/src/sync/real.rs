//! The processor's atomics. Everything here inlines to the bare operation.
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the door")]

use core::sync::atomic::Ordering;

use crate::step::Step;

pub use super::plain::{Cell, ConstPtr};
pub(super) use core::sync::atomic::fence;
pub use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

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
    /// Nothing.
    pub const fn new() -> Self {
        Self
    }

    /// Does nothing.
    #[inline(always)]
    pub const fn hint(&self) {}
}

/// A word of a VMA that threads sleep on: a futex word.
///
/// The platform's [`wait`](crate::Platform::wait) and [`wake`](crate::Platform::wake) receive one.
#[doc(alias("vm_refcnt", "VMA_LOCK_OFFSET", "VM_REFCNT_EXCLUDE_READERS_FLAG"))]
#[repr(transparent)]
pub struct WaitWord(super::AtomicU32);

impl WaitWord {
    pub(crate) const fn new(value: u32) -> Self {
        Self(super::AtomicU32::new(value))
    }

    /// The current value, with no ordering: enough to decide whether to go on waiting, since the
    /// lock looks again, with its own ordering, after every wait.
    #[inline]
    pub fn value(&self) -> u32 {
        self.0.load(super::Relaxed("a waiter looks again, with an ordering of its own"))
    }

    /// The word's address, for a system call that compares and sleeps. Whoever writes through it
    /// breaks the contract of [`Platform`](crate::Platform), and the lock.
    #[inline]
    pub fn as_ptr(&self) -> *const u32 {
        self.0.0.as_ptr()
    }

    /// The atomic. Not public: a platform lends sleep and may not store to the count.
    #[inline(always)]
    pub(crate) fn word(&self) -> &super::AtomicU32 {
        &self.0
    }

    /// The atomic as the standard library knows it, for this crate's own platform.
    #[cfg(all(feature = "std", any(target_os = "linux", target_os = "android")))]
    #[inline]
    pub(crate) fn as_futex(&self) -> &AtomicU32 {
        &self.0.0
    }
}
