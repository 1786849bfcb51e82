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
/// many it can exclude. That is with up to 16,383 guards in each (127 where an address has 32 bits);
/// what goes beyond takes the place of another space.
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

/// How many of something a thread holds in each of a few spaces: a row is the space's name and a count
/// below it, free when that is 0. A space may have several.
pub(crate) struct Holdings([AtomicUsize; TRACKED_SPACES]);

/// Where something was noted: the number of a row, or [`Noted::NOWHERE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Noted(u8);

impl Noted {
    /// There was no row left, or the thread has none.
    pub(crate) const NOWHERE: Self = Self(TRACKED_SPACES as u8);
}

/// What a thread's record calls a space: its address, with room for a count in the low bits.
///
/// Where addresses have 64 bits, the upper seven say nothing: they are tags, or like the next lower bit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpaceName(usize);

impl SpaceName {
    /// Addresses of spaces are multiples of this.
    pub(crate) const ALIGN: usize = 128;

    const SHIFT: u32 = if usize::BITS == 64 { 7 } else { 0 };

    /// The largest count beside a name.
    const MOST: usize = (Self::ALIGN << Self::SHIFT) - 1;

    #[inline(always)]
    pub(crate) fn at(addr: usize) -> Self {
        Self(addr << Self::SHIFT)
    }
}

impl Holdings {
    const_unless_model! {
        fn none() -> Self {
            Self([AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0)])
        }
    }

    /// Notes one more in `space`, if there is a row left for it.
    ///
    /// A signal handler may run between any two accesses. It takes and returns guards in pairs, so a
    /// row that is in use is what it was; a free one may have had another name.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn note(&self, SpaceName(space): SpaceName) -> Noted {
        for (number, row) in self.0.iter().enumerate() {
            let word = row.load(OWN);
            let held = word & SpaceName::MOST;
            if held == 0 {
                row.store(space + 1, OWN);
                return Noted(number as u8);
            }
            if word - held == space && held < SpaceName::MOST {
                row.store(word + 1, OWN);
                return Noted(number as u8);
            }
        }
        Noted::NOWHERE
    }

    /// Forgets one that was noted.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn forget(&self, noted: Noted) {
        if let Some(row) = self.0.get(usize::from(noted.0)) {
            row.store(row.load(OWN) - 1, OWN);
        }
    }

    /// Whether this thread holds one in `space` that was noted.
    #[inline]
    pub(crate) fn any(&self, SpaceName(space): SpaceName) -> bool {
        // From one above the name to as many as there can be.
        self.0.iter().any(|row| row.load(OWN).wrapping_sub(space + 1) < SpaceName::MOST)
    }
}

/// Which of a thread's holdings.
pub(crate) trait Kind {
    fn of(thread: &ThreadState) -> &Holdings;
}

/// Read locks and views.
pub(crate) enum Guards {}

/// Exclusions.
pub(crate) enum Exclusions {}

impl Kind for Guards {
    #[inline(always)]
    fn of(thread: &ThreadState) -> &Holdings {
        &thread.guards
    }
}

impl Kind for Exclusions {
    fn of(thread: &ThreadState) -> &Holdings {
        &thread.exclusions
    }
}

/// That the thread holds something in a space, for as long as this lives.
pub(crate) struct Note<K: Kind, P: Platform> {
    noted: Noted,
    // It is the thread's own.
    _thread: PhantomData<(*const (), K, P)>,
}

impl<K: Kind, P: Platform> Note<K, P> {
    // As for a lookup: unoptimised, a frame of its own.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn new(space: SpaceName) -> Self {
        let noted = P::with_thread(|thread| K::of(thread).note(space));
        Self { noted: noted.unwrap_or(Noted::NOWHERE), _thread: PhantomData }
    }
}

impl<K: Kind, P: Platform> Drop for Note<K, P> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.noted != Noted::NOWHERE {
            P::with_thread(|thread| K::of(thread).forget(self.noted));
        }
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
/// A guard that a handler takes must be dropped before the handler returns. Else the thread's record of
/// guards may be wrong, and with it the errors that report self-deadlocks.
///
/// ```should_panic
/// use pervma::{AddressSpace, HandlerScope, StdPlatform};
///
/// let space: AddressSpace<&str> = AddressSpace::new(4096);
/// let _handler = HandlerScope::<StdPlatform>::enter();
/// let _ = space.edit(); // would wait
/// ```
#[derive(Debug)]
#[must_use]
pub struct HandlerScope<P: Platform> {
    // Belongs to the thread that made it.
    _thread: PhantomData<(*const (), P)>,
}

impl<P: Platform> HandlerScope<P> {
    /// Marks the thread until the scope is dropped. Scopes nest.
    ///
    /// ```
    /// use pervma::{HandlerScope, StdPlatform};
    ///
    /// let scope = HandlerScope::<StdPlatform>::enter();
    /// assert!(HandlerScope::<StdPlatform>::active());
    /// # drop(scope);
    /// ```
    pub fn enter() -> Self {
        P::with_thread(|thread| thread.in_handler.store(thread.in_handler.load(OWN) + 1, OWN));
        signal_fence();
        Self { _thread: PhantomData }
    }

    /// Whether the running thread is inside a marked handler.
    ///
    /// ```
    /// use pervma::{HandlerScope, StdPlatform};
    ///
    /// assert!(!HandlerScope::<StdPlatform>::active());
    /// let scope = HandlerScope::<StdPlatform>::enter();
    /// assert!(HandlerScope::<StdPlatform>::active());
    /// drop(scope);
    /// assert!(!HandlerScope::<StdPlatform>::active());
    /// ```
    pub fn active() -> bool {
        P::with_thread(|thread| thread.in_handler.load(OWN) != 0).unwrap_or(false)
    }

    /// Panics inside a marked handler: the caller is about to take the mmap lock.
    pub(crate) fn assert_may_wait() {
        assert!(!Self::active(), "the mmap lock was asked for inside a signal handler");
    }
}

impl<P: Platform> Drop for HandlerScope<P> {
    fn drop(&mut self) {
        signal_fence();
        P::with_thread(|thread| thread.in_handler.store(thread.in_handler.load(OWN) - 1, OWN));
    }
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;

    fn space(number: usize) -> SpaceName {
        SpaceName::at(number * SpaceName::ALIGN)
    }

    #[test]
    fn guards_are_counted_by_space() {
        let guards = Holdings::none();
        let [one, two, again] = [1, 2, 1].map(|number| guards.note(space(number)));
        assert!(one == again && one != two);
        guards.forget(one);
        assert!(guards.any(space(1)) && guards.any(space(2)));
        guards.forget(again);
        assert!(!guards.any(space(1)) && guards.any(space(2)));
        assert_eq!(guards.note(space(3)), one, "its row is free again");
        guards.forget(one);
        // In a second row, since the free one is found first.
        let second = guards.note(space(2));
        guards.forget(two);
        assert!(guards.any(space(2)));
        guards.forget(second);
        assert!(!guards.any(space(2)));
    }

    #[test]
    fn a_guard_beyond_the_rows_goes_unreported_and_harms_nothing() {
        let guards = Holdings::none();
        for number in 1..=TRACKED_SPACES + 1 {
            assert_eq!(guards.note(space(number)) == Noted::NOWHERE, number > TRACKED_SPACES);
        }
        guards.forget(Noted::NOWHERE);
        assert!(!guards.any(space(TRACKED_SPACES + 1)));
        assert!((1..=TRACKED_SPACES).all(|number| guards.any(space(number))));
    }

    #[test]
    fn a_row_that_is_full_is_followed_by_another() {
        let guards = Holdings::none();
        let notes: Vec<_> = (0..=SpaceName::MOST).map(|_| guards.note(space(1))).collect();
        assert!(notes.iter().all(|note| *note == notes[0] || *note == notes[SpaceName::MOST]));
        assert!(!guards.any(space(2)), "a count never runs into a name");
        for (number, note) in notes.into_iter().enumerate() {
            assert!(guards.any(space(1)), "{number} are forgotten");
            guards.forget(note);
        }
        assert!(!guards.any(space(1)));
    }
}
