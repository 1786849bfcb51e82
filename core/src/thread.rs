//! What a thread knows of itself: which spaces it reads or excludes in, and whether it is in a
//! signal handler.
//!
//! Only the thread itself and its own signal handlers touch it, and a handler leaves everything as
//! it found it. So nothing here orders anything between threads.

use core::fmt;
use core::marker::PhantomData;

use crate::facade::{AtomicUsize, Relaxed, const_unless_model, signal_fence};
use crate::platform::Platform;

/// How many spaces a thread can read at once and still have its self-deadlocks reported; and in how
/// many it can exclude.
pub const TRACKED_SPACES: usize = 4;

const OWN: Relaxed = Relaxed("only this thread and its own signal handlers touch it");

/// The identity of a thread and what it holds, for reporting self-deadlocks.
///
/// A platform keeps one for each thread and lends it in
/// [`with_thread`](Platform::with_thread). Its address is the identity.
pub struct ThreadState {
    pub(crate) guards: Holdings,
    pub(crate) exclusions: Holdings,
    in_handler: AtomicUsize,
    /// Never given twice, where an address would be: that the end of a thread orders what the next
    /// does in its place is argued (`THREAD_IDENTITY`), and loom does not know it.
    #[cfg(pervma_model)]
    id: usize,
}

/// How many of something a thread holds in each of a few spaces.
pub(crate) struct Holdings([Row; TRACKED_SPACES]);

/// Where something was noted: the number of a row, or [`Noted::NOWHERE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Noted(u8);

impl Noted {
    /// There was no row left, or the thread has none.
    pub(crate) const NOWHERE: Self = Self(TRACKED_SPACES as u8);
}

/// Free when `held` is 0. A space may have several.
struct Row {
    space: AtomicUsize,
    held: AtomicUsize,
}

impl Row {
    const_unless_model! {
        fn free() -> Self {
            Self { space: AtomicUsize::new(0), held: AtomicUsize::new(0) }
        }
    }

    #[inline(always)]
    fn is_of(&self, space: usize) -> bool {
        self.held.load(OWN) != 0 && self.space.load(OWN) == space
    }
}

impl Holdings {
    const_unless_model! {
        fn none() -> Self {
            Self([Row::free(), Row::free(), Row::free(), Row::free()])
        }
    }

    /// Notes one more in `space`, if there is a row left for it.
    ///
    /// A signal handler may run between any two accesses. It takes and returns guards in pairs, so
    /// it restores what it finds; the count is raised before the name is written so that it never
    /// takes a row that is being claimed.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn note(&self, space: usize) -> Noted {
        for (number, row) in self.0.iter().enumerate() {
            if row.held.load(OWN) == 0 {
                row.held.store(1, OWN);
                signal_fence();
                row.space.store(space, OWN);
                return Noted(number as u8);
            }
            if row.is_of(space) {
                row.held.store(row.held.load(OWN) + 1, OWN);
                return Noted(number as u8);
            }
        }
        Noted::NOWHERE
    }

    /// Forgets one that was noted.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn forget(&self, noted: Noted) {
        if let Some(row) = self.0.get(usize::from(noted.0)) {
            row.held.store(row.held.load(OWN) - 1, OWN);
        }
    }

    /// Whether this thread holds one in `space` that was noted.
    #[inline]
    pub(crate) fn any(&self, space: usize) -> bool {
        self.0.iter().any(|row| row.is_of(space))
    }
}

impl ThreadState {
    const_unless_model! {
        /// The state of a thread that holds nothing.
        ///
        /// ```
        /// use pervma::ThreadState;
        ///
        /// static BOOT_CPU: ThreadState = ThreadState::new();
        /// ```
        pub fn new() -> Self {
            Self {
                guards: Holdings::none(),
                exclusions: Holdings::none(),
                in_handler: AtomicUsize::new(0),
                #[cfg(pervma_model)]
                id: crate::facade::model::new_identity(),
            }
        }
    }

    /// The thread's identity, never 0.
    pub(crate) fn id(&self) -> usize {
        #[cfg(not(pervma_model))]
        let id = core::ptr::from_ref(self).addr();
        #[cfg(pervma_model)]
        let id = self.id;
        id
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
/// path of a blocking read, the end of a reservation or of a space) panics, which in an
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
    ///
    /// ```
    /// use pervma::{HandlerScope, Std};
    ///
    /// let scope = HandlerScope::<Std>::enter();
    /// assert!(HandlerScope::<Std>::active());
    /// # drop(scope);
    /// ```
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
        let guards = Holdings::none();
        let [eight, sixteen, again] = [8, 16, 8].map(|space| guards.note(space));
        assert!(eight == again && eight != sixteen);
        guards.forget(eight);
        assert!(guards.any(8) && guards.any(16));
        guards.forget(again);
        assert!(!guards.any(8) && guards.any(16));
        assert_eq!(guards.note(24), eight, "its row is free again");
        guards.forget(eight);
        // In a second row, since the free one is found first.
        let second = guards.note(16);
        guards.forget(sixteen);
        assert!(guards.any(16));
        guards.forget(second);
        assert!(!guards.any(16));
    }

    #[test]
    fn a_guard_beyond_the_rows_goes_unreported_and_harms_nothing() {
        let guards = Holdings::none();
        for space in 1..=TRACKED_SPACES + 1 {
            assert_eq!(guards.note(space) == Noted::NOWHERE, space > TRACKED_SPACES);
        }
        guards.forget(Noted::NOWHERE);
        assert!(!guards.any(TRACKED_SPACES + 1));
        assert!((1..=TRACKED_SPACES).all(|space| guards.any(space)));
    }
}
