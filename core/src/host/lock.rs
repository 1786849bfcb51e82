//! The mmap lock of the default platform.
#![expect(unsafe_code, reason = "the contract of `lock_api` is handed on")]

use lock_api::{RawRwLock, RawRwLockDowngrade};

#[cfg(any(target_os = "linux", target_os = "android"))]
mod inner {
    use std::time::Instant;

    use crate::host::futex::Left;
    pub(super) use crate::host::futex_lock::FutexLock as Lock;

    pub(super) const fn unlocked() -> Lock {
        Lock::new()
    }

    pub(super) fn lock_until(lock: &Lock, deadline: Instant) -> bool {
        lock.lock_exclusive_while(|| Left::until(deadline))
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod inner {
    use std::time::Instant;

    pub(super) use parking_lot::RawRwLock as Lock;

    pub(super) const fn unlocked() -> Lock {
        <Lock as lock_api::RawRwLock>::INIT
    }

    pub(super) fn lock_until(lock: &Lock, deadline: Instant) -> bool {
        lock_api::RawRwLockTimed::try_lock_exclusive_until(lock, deadline)
    }
}

/// The mmap lock of [`StdPlatform`](crate::StdPlatform). It comes with the feature `std`.
///
/// When a thread has waited long, those that come later let it go first. On Linux and Android it is
/// one word, on which threads sleep; elsewhere it is `parking_lot`'s.
pub struct StdLock(inner::Lock);

impl StdLock {
    /// As [`Platform::lock_until`](crate::Platform::lock_until).
    pub(super) fn lock_exclusive_until(&self, deadline: std::time::Instant) -> bool {
        inner::lock_until(&self.0, deadline)
    }

    /// As [`Platform::renew`](crate::Platform::renew).
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn renew(&self) {
        self.0.renew();
    }
}

// SAFETY: the lock behind it keeps the contract, and each call is handed on to it. A guard stays
// with its thread, as `parking_lot`'s does unless a feature of it says otherwise.
unsafe impl RawRwLock for StdLock {
    const INIT: Self = Self(inner::unlocked());

    type GuardMarker = lock_api::GuardNoSend;

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
        #[cfg(any(target_os = "linux", target_os = "android"))]
        self.0.unlock_shared();
        // SAFETY: as the caller says.
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        unsafe {
            self.0.unlock_shared();
        };
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
        #[cfg(any(target_os = "linux", target_os = "android"))]
        self.0.unlock_exclusive();
        // SAFETY: as the caller says.
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        unsafe {
            self.0.unlock_exclusive();
        };
    }
}

// SAFETY: as for `RawRwLock`.
unsafe impl RawRwLockDowngrade for StdLock {
    #[inline(always)]
    unsafe fn downgrade(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        self.0.downgrade();
        // SAFETY: as the caller says.
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        unsafe {
            self.0.downgrade();
        };
    }
}

impl core::fmt::Debug for StdLock {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StdLock").finish_non_exhaustive()
    }
}
