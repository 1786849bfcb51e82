//! The words that threads sleep on.

#[cfg(pervma_model)]
pub use checked::WaitWord;
#[cfg(not(pervma_model))]
pub use real::WaitWord;

#[cfg(not(pervma_model))]
mod real {
    use core::fmt;

    use crate::sync::atomic::AtomicU32;
    use crate::sync::order::Relaxed;

    /// A word of a VMA that threads sleep on: a futex word.
    ///
    /// The platform's [`wait`](crate::Platform::wait) and [`wake`](crate::Platform::wake) receive
    /// one.
    #[doc(alias("vm_refcnt", "VMA_LOCK_OFFSET", "VM_REFCNT_EXCLUDE_READERS_FLAG"))]
    #[repr(transparent)]
    pub struct WaitWord(AtomicU32);

    impl WaitWord {
        pub(crate) const fn new(value: u32) -> Self {
            Self(AtomicU32::new(value))
        }

        /// The current value, with no ordering: enough to decide whether to go on waiting, since
        /// the lock looks again, with its own ordering, after every wait.
        #[inline]
        pub fn value(&self) -> u32 {
            self.0.load(Relaxed("a waiter looks again, with an ordering of its own"))
        }

        /// The word's address, for a system call that compares and sleeps. A write through it
        /// breaks the contract of [`Platform`](crate::Platform), and the lock.
        #[inline]
        pub fn as_ptr(&self) -> *const u32 {
            self.0.raw().as_ptr()
        }

        /// The atomic. Not public: a platform lends sleep and may not store to the count.
        #[inline(always)]
        pub(crate) fn word(&self) -> &AtomicU32 {
            &self.0
        }

        /// The atomic as the standard library knows it, for this crate's own platform.
        #[cfg(all(feature = "std", any(target_os = "linux", target_os = "android")))]
        #[inline]
        #[expect(clippy::disallowed_types, reason = "rustix takes it")]
        pub(crate) fn as_futex(&self) -> &core::sync::atomic::AtomicU32 {
            self.0.raw()
        }
    }

    impl fmt::Debug for WaitWord {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_tuple("WaitWord").field(&self.value()).finish()
        }
    }
}

#[cfg(pervma_model)]
mod checked {
    #![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a failed model panics")]

    use crate::step::Step;
    use crate::sync::atomic::AtomicU32;
    use crate::sync::model::checker::sync::{Condvar, Mutex};
    use crate::sync::model::keep;
    use crate::sync::order::Relaxed;

    /// A 32-bit atomic with the futex's two calls.
    pub struct WaitWord {
        word: AtomicU32,
        queue: Mutex<()>,
        woken: Condvar,
    }

    impl WaitWord {
        /// A word that holds `value`.
        pub fn new(value: u32) -> Self {
            Self { word: AtomicU32::new(value), queue: Mutex::new(()), woken: Condvar::new() }
        }

        /// Sleeps while the word holds `seen`; whether it slept.
        pub fn futex_wait(&self, seen: u32) -> bool {
            let queue = self.queue.lock().unwrap();
            let sleeps = self.word.load(Relaxed("the queue's mutex orders the compare")) == seen;
            if sleeps {
                drop(self.woken.wait(queue).unwrap());
            }
            sleeps
        }

        /// Wakes one sleeper.
        pub fn futex_wake(&self) {
            if keep(Step::WakeUnderLock) {
                drop(self.queue.lock().unwrap());
            }
            self.woken.notify_one();
        }

        /// Wakes all sleepers.
        pub fn futex_wake_all(&self) {
            drop(self.queue.lock().unwrap());
            self.woken.notify_all();
        }

        /// The atomic.
        pub fn word(&self) -> &AtomicU32 {
            &self.word
        }
    }
}
