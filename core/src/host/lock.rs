//! The mmap lock of the default platform.
#![expect(unsafe_code, reason = "the contract of `lock_api` is handed on")]

use lock_api::{RawRwLock, RawRwLockDowngrade};

/// The mmap lock of [`StdPlatform`](crate::StdPlatform): `parking_lot`'s, which hands itself on to
/// the next in the queue when one has waited long. It comes with the feature `std`.
pub struct StdLock(parking_lot::RawRwLock);

// SAFETY: `parking_lot`'s lock keeps the contract, and each call is handed on to it.
unsafe impl RawRwLock for StdLock {
    const INIT: Self = Self(parking_lot::RawRwLock::INIT);

    type GuardMarker = <parking_lot::RawRwLock as RawRwLock>::GuardMarker;

    #[inline(always)]
    fn lock_shared(&self) {
        self.0.lock_shared();
    }

    #[inline(always)]
    fn try_lock_shared(&self) -> bool {
        self.0.try_lock_shared()
    }

    #[inline(always)]
    unsafe fn unlock_shared(&self) {
        // SAFETY: as the caller says.
        unsafe { self.0.unlock_shared() };
    }

    #[inline(always)]
    fn lock_exclusive(&self) {
        self.0.lock_exclusive();
    }

    #[inline(always)]
    fn try_lock_exclusive(&self) -> bool {
        self.0.try_lock_exclusive()
    }

    #[inline(always)]
    unsafe fn unlock_exclusive(&self) {
        // SAFETY: as the caller says.
        unsafe { self.0.unlock_exclusive() };
    }
}

// SAFETY: as for `RawRwLock`.
unsafe impl RawRwLockDowngrade for StdLock {
    #[inline(always)]
    unsafe fn downgrade(&self) {
        // SAFETY: as the caller says.
        unsafe { self.0.downgrade() };
    }
}

impl core::fmt::Debug for StdLock {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StdLock").finish_non_exhaustive()
    }
}
