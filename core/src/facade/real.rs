//! The processor's atomics. Everything here inlines to the bare operation.
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the facade")]

use core::sync::atomic::Ordering;

use crate::ledger::Step;
use crate::platform::Platform;

pub use super::plain::{Cell, ConstPtr};
pub(super) use core::sync::atomic::fence;
pub use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

/// The ordering an edge has: the one the ledger states. `tests/facade.rs` reads what comes of it.
#[inline(always)]
pub const fn resolve(_name: &'static str, stated: Ordering) -> Ordering {
    stated
}

/// Whether a step of the protocol is taken: always.
#[inline(always)]
pub const fn keep(_step: Step) -> bool {
    true
}

#[inline(always)]
pub(super) fn signal_fence() {
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
}

#[inline(always)]
pub(super) fn passing_place() {}

/// See the model's.
pub struct Meeting;

impl Meeting {
    /// Nothing.
    pub const fn new() -> Self {
        Self
    }

    /// Does nothing.
    #[inline(always)]
    pub const fn pass(&self) {}
}

/// A word of a VMA that threads sleep on, as they see it: a futex word.
///
/// The platform's [`wait`](Platform::wait) and [`wake`](Platform::wake) receive one.
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
    /// breaks the contract of [`Platform`], and the lock.
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

/// The mmap lock: the platform's raw lock.
pub struct MmapLock<P: Platform>(lock_api::RwLock<P::Lock, ()>);

/// The mmap lock held for reading.
pub type MmapReadGuard<'a, P> = lock_api::RwLockReadGuard<'a, <P as Platform>::Lock, ()>;

/// The mmap lock held for writing.
pub type MmapWriteGuard<'a, P> = lock_api::RwLockWriteGuard<'a, <P as Platform>::Lock, ()>;

impl<P: Platform> MmapLock<P> {
    /// An unlocked lock.
    pub const fn new() -> Self {
        Self(lock_api::RwLock::const_new(<P::Lock as lock_api::RawRwLock>::INIT, ()))
    }

    /// Waits for the lock, shared.
    #[inline]
    pub fn read(&self) -> MmapReadGuard<'_, P> {
        self.0.read()
    }

    /// Waits for the lock, exclusive.
    #[inline]
    pub fn write(&self) -> MmapWriteGuard<'_, P> {
        self.0.write()
    }

    /// Takes the lock, exclusive, if nobody has it.
    #[inline]
    pub fn try_write(&self) -> Option<MmapWriteGuard<'_, P>> {
        self.0.try_write()
    }

    /// Lets readers in, and no writer before them.
    #[inline]
    pub fn downgrade(guard: MmapWriteGuard<'_, P>) -> MmapReadGuard<'_, P> {
        lock_api::RwLockWriteGuard::downgrade(guard)
    }
}
