//! What a thread knows of itself: which spaces it reads, and whether it is in a signal handler.
//!
//! Plain cells, no atomics: only the thread itself and its own signal handlers touch them, and a
//! handler leaves everything as it found it.

use core::cell::Cell;
use core::marker::PhantomData;

use crate::platform::Platform;

/// How many spaces a thread can read at once and still have its self-deadlocks reported.
pub const TRACKED_SPACES: usize = 4;

/// The identity of a thread and the guards it holds, for reporting self-deadlocks.
///
/// A platform keeps one for each thread and lends it in
/// [`with_thread`](Platform::with_thread). Its address is the identity.
#[derive(Debug)]
pub struct ThreadState {
    held: [Held; TRACKED_SPACES],
    in_handler: Cell<u32>,
}

/// The guards that a thread holds of one space. Free when `guards` is 0.
#[derive(Debug)]
struct Held {
    space: Cell<usize>,
    guards: Cell<u32>,
}

impl ThreadState {
    /// The state of a thread that holds nothing.
    pub const fn new() -> Self {
        Self {
            held: [const { Held { space: Cell::new(0), guards: Cell::new(0) } }; TRACKED_SPACES],
            in_handler: Cell::new(0),
        }
    }

    /// The thread's identity, never 0.
    pub(crate) fn id(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Notes one more guard of `space`.
    ///
    /// A signal handler may run between any two accesses. It takes and returns guards in pairs, so
    /// it restores what it finds; the count is raised before the name is written so that it never
    /// takes a row that is being claimed.
    #[inline(always)]
    pub(crate) fn note_guard(&self, space: usize) {
        for row in &self.held {
            let guards = row.guards.get();
            if guards != 0 && row.space.get() != space {
                continue;
            }
            row.guards.set(guards + 1);
            if guards == 0 {
                row.space.set(space);
            }
            return;
        }
        // More spaces than rows: this guard goes unreported.
    }

    /// Forgets one guard of `space`.
    #[inline(always)]
    pub(crate) fn forget_guard(&self, space: usize) {
        for row in &self.held {
            let guards = row.guards.get();
            if guards != 0 && row.space.get() == space {
                row.guards.set(guards - 1);
                return;
            }
        }
    }

    /// Whether this thread holds a guard of `space`.
    pub(crate) fn holds_guard(&self, space: usize) -> bool {
        self.held.iter().any(|row| row.guards.get() != 0 && row.space.get() == space)
    }
}

impl Default for ThreadState {
    fn default() -> Self {
        Self::new()
    }
}

/// Marks the running thread as being inside a signal handler.
///
/// While it lives, the thread must not wait: taking the mmap lock (an edit, or the slow path of a
/// blocking read) panics, which in an `extern "C"` handler ends the process. That turns "this
/// path never locks" from a promise into a check.
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
        T::with_thread(|thread| thread.in_handler.set(thread.in_handler.get() + 1));
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
        T::with_thread(|thread| thread.in_handler.get() != 0).unwrap_or(false)
    }

    /// Panics inside a marked handler: the caller is about to take the mmap lock.
    pub(crate) fn assert_may_wait() {
        assert!(!Self::active(), "the mmap lock was asked for inside a signal handler");
    }
}

impl<T: Platform> Drop for HandlerScope<T> {
    fn drop(&mut self) {
        T::with_thread(|thread| thread.in_handler.set(thread.in_handler.get() - 1));
    }
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;

    #[test]
    fn guards_are_counted_by_space() {
        let thread = ThreadState::new();
        thread.note_guard(8);
        thread.note_guard(16);
        thread.note_guard(8);
        thread.forget_guard(8);
        assert!(thread.holds_guard(8) && thread.holds_guard(16));
        thread.forget_guard(8);
        assert!(!thread.holds_guard(8) && thread.holds_guard(16));
        thread.note_guard(24);
        assert!(thread.holds_guard(24));
    }

    #[test]
    fn a_guard_beyond_the_rows_goes_unreported_and_harms_nothing() {
        let thread = ThreadState::new();
        for space in 1..=TRACKED_SPACES + 1 {
            thread.note_guard(space);
        }
        assert!(!thread.holds_guard(TRACKED_SPACES + 1));
        thread.forget_guard(TRACKED_SPACES + 1);
        assert!((1..=TRACKED_SPACES).all(|space| thread.holds_guard(space)));
    }
}
