//! The mmap lock: the platform's raw lock, or the checker's. And a value behind such a lock.
#![expect(unsafe_code, reason = "the platform's lock is handled as it is")]

#[cfg(pervma_model)]
pub(crate) use checked::{Locked, MmapLock, RawReadGuard, RawWriteGuard};
#[cfg(not(pervma_model))]
pub(crate) use real::{Locked, MmapLock, RawReadGuard, RawWriteGuard};

#[cfg(not(pervma_model))]
mod real {
    use lock_api::{RawRwLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

    use crate::platform::Platform;

    /// The mmap lock: the platform's raw lock.
    pub(crate) struct MmapLock<P: Platform>(RwLock<P::Lock, ()>);

    /// The mmap lock held for reading.
    pub(crate) type RawReadGuard<'a, P> = RwLockReadGuard<'a, <P as Platform>::Lock, ()>;

    /// The mmap lock held for writing.
    pub(crate) type RawWriteGuard<'a, P> = RwLockWriteGuard<'a, <P as Platform>::Lock, ()>;

    impl<P: Platform> MmapLock<P> {
        /// An unlocked lock.
        pub(crate) const fn new() -> Self {
            Self(RwLock::const_new(<P::Lock as RawRwLock>::INIT, ()))
        }

        /// Waits for the lock, shared.
        #[inline]
        pub(crate) fn read(&self) -> RawReadGuard<'_, P> {
            self.0.read()
        }

        /// Waits for the lock, exclusive.
        #[inline]
        pub(crate) fn write(&self) -> RawWriteGuard<'_, P> {
            self.0.write()
        }

        /// Acquires the lock, exclusive, if no thread holds it.
        #[inline]
        pub(crate) fn try_write(&self) -> Option<RawWriteGuard<'_, P>> {
            self.0.try_write()
        }

        /// Waits for the lock, exclusive, at most until `deadline`.
        pub(crate) fn write_until(&self, deadline: P::Deadline) -> Option<RawWriteGuard<'_, P>> {
            // SAFETY: it is acquired, and the guard releases it.
            let acquired = P::lock_until(unsafe { self.0.raw() }, deadline);
            // SAFETY: this thread has acquired it for writing, says the platform, and has no guard.
            acquired.then(|| unsafe { self.0.make_write_guard_unchecked() })
        }

        /// Makes a writer a reader, with no writer in between.
        #[inline]
        pub(crate) fn downgrade(guard: RawWriteGuard<'_, P>) -> RawReadGuard<'_, P> {
            RwLockWriteGuard::downgrade(guard)
        }

        /// Makes it an unlocked lock that nothing waits for.
        ///
        /// # Safety
        ///
        /// The caller is the only thread of its process, has just forked, and has no guard of this
        /// lock.
        pub(crate) unsafe fn renew(&self) {
            // SAFETY: no guard is left that relies on the lock.
            let lock = unsafe { self.0.raw() };
            // SAFETY: as the caller says.
            unsafe { P::renew(lock) };
        }
    }

    /// A value behind a raw lock of the platform.
    pub(crate) struct Locked<V, P: Platform>(RwLock<P::Lock, V>);

    impl<V, P: Platform> Locked<V, P> {
        /// The value, unlocked.
        pub(crate) const fn new(value: V) -> Self {
            Self(RwLock::const_new(<P::Lock as RawRwLock>::INIT, value))
        }

        /// Waits for the lock, shared.
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, P::Lock, V> {
            self.0.read()
        }

        /// Acquires the lock, shared, if that needs no waiting.
        pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, P::Lock, V>> {
            self.0.try_read()
        }

        /// Waits for the lock, exclusive.
        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, P::Lock, V> {
            self.0.write()
        }
    }
}

#[cfg(pervma_model)]
mod checked {
    #![expect(clippy::unwrap_used, reason = "a model that panics has failed")]

    use core::marker::PhantomData;

    use crate::platform::Platform;
    use crate::sync::model::checker::sync::{
        Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    };

    /// The mmap lock.
    pub(crate) struct MmapLock<P> {
        lock: RwLock<()>,
        /// Held by a writer until it has gone or become a reader: the checkers' locks cannot be
        /// downgraded.
        writers: Mutex<()>,
        platform: PhantomData<P>,
    }

    /// The mmap lock held for reading.
    pub(crate) struct RawReadGuard<'a, P>(
        #[expect(dead_code, reason = "held for its drop")] RwLockReadGuard<'a, ()>,
        PhantomData<P>,
    );

    /// The mmap lock held for writing.
    pub(crate) struct RawWriteGuard<'a, P> {
        guard: RwLockWriteGuard<'a, ()>,
        _writers: MutexGuard<'a, ()>,
        lock: &'a MmapLock<P>,
    }

    impl<P: Platform> MmapLock<P> {
        /// An unlocked lock.
        pub(crate) fn new() -> Self {
            Self { lock: RwLock::new(()), writers: Mutex::new(()), platform: PhantomData }
        }

        /// Waits for the lock, shared.
        pub(crate) fn read(&self) -> RawReadGuard<'_, P> {
            RawReadGuard(self.lock.read().unwrap(), PhantomData)
        }

        /// Waits for the lock, exclusive.
        pub(crate) fn write(&self) -> RawWriteGuard<'_, P> {
            let writers = self.writers.lock().unwrap();
            RawWriteGuard { guard: self.lock.write().unwrap(), _writers: writers, lock: self }
        }

        /// Acquires the lock, exclusive, if no thread holds it.
        pub(crate) fn try_write(&self) -> Option<RawWriteGuard<'_, P>> {
            let writers = self.writers.try_lock().ok()?;
            let guard = self.lock.try_write().ok()?;
            Some(RawWriteGuard { guard, _writers: writers, lock: self })
        }

        /// Acquires the lock, exclusive, if no thread holds it: models do not measure time.
        pub(crate) fn write_until(&self, _: P::Deadline) -> Option<RawWriteGuard<'_, P>> {
            self.try_write()
        }

        /// Makes a writer a reader, with no writer in between.
        pub(crate) fn downgrade(guard: RawWriteGuard<'_, P>) -> RawReadGuard<'_, P> {
            let RawWriteGuard { guard, _writers, lock } = guard;
            drop(guard);
            lock.read()
        }

        /// Nothing: models do not fork.
        ///
        /// # Safety
        ///
        /// As for that of the platform's lock.
        pub(crate) unsafe fn renew(&self) {}
    }

    /// A value behind a lock.
    pub(crate) struct Locked<V, P> {
        lock: RwLock<V>,
        platform: PhantomData<P>,
    }

    impl<V, P: Platform> Locked<V, P> {
        /// The value, unlocked.
        pub(crate) fn new(value: V) -> Self {
            Self { lock: RwLock::new(value), platform: PhantomData }
        }

        /// Waits for the lock, shared.
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, V> {
            self.lock.read().unwrap()
        }

        /// Acquires the lock, shared, if that needs no waiting.
        pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, V>> {
            self.lock.try_read().ok()
        }

        /// Waits for the lock, exclusive.
        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, V> {
            self.lock.write().unwrap()
        }
    }
}
