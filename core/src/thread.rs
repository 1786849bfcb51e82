//! What a thread knows of itself: which spaces it reads, and whether it is in a signal handler.
//!
//! Only the thread itself and its own signal handlers touch it, and a handler leaves everything as
//! it found it. So nothing here orders anything between threads.

use core::fmt;
use core::marker::PhantomData;

use crate::facade::{AtomicUsize, Relaxed, const_unless_model, signal_fence};
use crate::platform::Platform;

/// How many spaces a thread can read at once and still have its self-deadlocks reported.
pub const TRACKED_SPACES: usize = 4;

const OWN: Relaxed = Relaxed("only this thread and its own signal handlers touch it");

/// The identity of a thread and the guards it holds, for reporting self-deadlocks.
///
/// A platform keeps one for each thread and lends it in
/// [`with_thread`](Platform::with_thread). Its address is the identity.
pub struct ThreadState {
    held: [Held; TRACKED_SPACES],
    in_handler: AtomicUsize,
}

/// The guards that a thread holds of one space. Free when `guards` is 0.
struct Held {
    space: AtomicUsize,
    guards: AtomicUsize,
}

impl Held {
    const_unless_model! {
        fn free() -> Self {
            Self { space: AtomicUsize::new(0), guards: AtomicUsize::new(0) }
        }
    }

    fn is_of(&self, space: usize) -> bool {
        self.guards.load(OWN) != 0 && self.space.load(OWN) == space
    }
}

impl ThreadState {
    const_unless_model! {
        /// The state of a thread that holds nothing.
        pub fn new() -> Self {
            Self {
                held: [Held::free(), Held::free(), Held::free(), Held::free()],
                in_handler: AtomicUsize::new(0),
            }
        }
    }

    /// The thread's identity, never 0.
    pub(crate) fn id(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Notes one more guard of `space`; `false` if there is no row left for it.
    ///
    /// A signal handler may run between any two accesses. It takes and returns guards in pairs, so
    /// it restores what it finds; the count is raised before the name is written so that it never
    /// takes a row that is being claimed.
    #[inline(always)]
    pub(crate) fn note_guard(&self, space: usize) -> bool {
        for row in &self.held {
            let guards = row.guards.load(OWN);
            if guards != 0 && row.space.load(OWN) != space {
                continue;
            }
            row.guards.store(guards + 1, OWN);
            if guards == 0 {
                signal_fence();
                row.space.store(space, OWN);
            }
            return true;
        }
        false
    }

    /// Forgets one guard of `space` that was noted.
    #[inline(always)]
    pub(crate) fn forget_guard(&self, space: usize) {
        if let Some(row) = self.held.iter().find(|row| row.is_of(space)) {
            row.guards.store(row.guards.load(OWN) - 1, OWN);
        }
    }

    /// Whether this thread holds a guard of `space` that was noted.
    pub(crate) fn holds_guard(&self, space: usize) -> bool {
        self.held.iter().any(|row| row.is_of(space))
    }
}

impl Default for ThreadState {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ThreadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadState").finish_non_exhaustive()
    }
}

/// Marks the running thread as being inside a signal handler.
///
/// While it lives, the thread must not wait: whatever takes a lock of this crate (an edit, the slow
/// path of a blocking read, the drop of a space, the usage of a slab) panics, which in an
/// `extern "C"` handler ends the process. That turns "this path never locks" from a promise into a
/// check.
///
/// ```should_panic
/// use pervma::{AddressSpace, HandlerScope, Std};
///
/// let space: AddressSpace<&str> = AddressSpace::new(4096);
/// let _handler = HandlerScope::<Std>::enter();
/// let _ = space.edit(); // would wait
/// ```
#[derive(Debug)]
#[must_use]
pub struct HandlerScope<T: Platform> {
    // Belongs to the thread that made it.
    _thread: PhantomData<(*const (), T)>,
}

impl<T: Platform> HandlerScope<T> {
    /// Marks the thread until the scope is dropped. Scopes nest.
    pub fn enter() -> Self {
        T::with_thread(|thread| thread.in_handler.store(thread.in_handler.load(OWN) + 1, OWN));
        signal_fence();
        Self { _thread: PhantomData }
    }

    /// Whether the running thread is inside a marked handler.
    ///
    /// ```
    /// use pervma::{HandlerScope, Std};
    ///
    /// assert!(!HandlerScope::<Std>::active());
    /// let scope = HandlerScope::<Std>::enter();
    /// assert!(HandlerScope::<Std>::active());
    /// drop(scope);
    /// assert!(!HandlerScope::<Std>::active());
    /// ```
    pub fn active() -> bool {
        T::with_thread(|thread| thread.in_handler.load(OWN) != 0).unwrap_or(false)
    }

    /// Panics inside a marked handler: the caller is about to take the mmap lock.
    pub(crate) fn assert_may_wait() {
        assert!(!Self::active(), "the mmap lock was asked for inside a signal handler");
    }
}

impl<T: Platform> Drop for HandlerScope<T> {
    fn drop(&mut self) {
        signal_fence();
        T::with_thread(|thread| thread.in_handler.store(thread.in_handler.load(OWN) - 1, OWN));
    }
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;

    #[test]
    fn guards_are_counted_by_space() {
        let thread = ThreadState::new();
        assert!(thread.note_guard(8) && thread.note_guard(16) && thread.note_guard(8));
        thread.forget_guard(8);
        assert!(thread.holds_guard(8) && thread.holds_guard(16));
        thread.forget_guard(8);
        assert!(!thread.holds_guard(8) && thread.holds_guard(16));
        assert!(thread.note_guard(24) && thread.holds_guard(24));
    }

    #[test]
    fn a_guard_beyond_the_rows_goes_unreported_and_harms_nothing() {
        let thread = ThreadState::new();
        for space in 1..=TRACKED_SPACES + 1 {
            assert_eq!(thread.note_guard(space), space <= TRACKED_SPACES);
        }
        assert!(!thread.holds_guard(TRACKED_SPACES + 1));
        assert!((1..=TRACKED_SPACES).all(|space| thread.holds_guard(space)));
    }
}
