//! The state of a thread: its identity, the spaces in which it holds read locks or exclusions, and
//! whether it is in a signal handler, or in a call that a slab makes for memory.
//!
//! Only the thread itself and its own signal handlers touch it, and a handler leaves everything as
//! it found it. So nothing here orders anything between threads.

use core::fmt;

use crate::identity::{Identity, SpaceId};
use crate::sync::{AtomicU64, Relaxed, const_unless_model};

/// How many spaces a thread can hold read locks in, and in how many it can exclude, and still have
/// its self-deadlocks reported. That is with up to 16,383 guards in each; what goes beyond takes
/// the place of another space.
pub(crate) const TRACKED_SPACES: usize = 4;

const OWN: Relaxed = Relaxed("only this thread and its own signal handlers touch it");

/// The state of one thread: its identity, and a record of what it holds, for reporting
/// self-deadlocks.
///
/// A platform keeps one for each thread and lends it in
/// [`with_thread`](crate::Platform::with_thread).
pub struct ThreadState {
    identity: Identity,
    pub(crate) guards: HeldLocks,
    pub(crate) exclusions: HeldLocks,
    handlers: AtomicU64,
    slabs: AtomicU64,
}

/// The held-lock record of one kind of lock: in each row a space and how many the thread holds
/// there. A row is free when that is 0, and a space may have several.
pub(crate) struct HeldLocks([AtomicU64; TRACKED_SPACES]);

/// Bits of a row that count; above them stands the space's identity.
const COUNT_BITS: u32 = 14;

/// The largest count in a row.
const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;

/// The row in which a held lock was recorded, or [`Row::NONE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Row(u8);

impl Row {
    /// No row was left, or the thread has no record.
    pub(crate) const NONE: Self = Self(TRACKED_SPACES as u8);
}

/// A space's identity where a row has it.
#[inline(always)]
fn row_of(space: SpaceId) -> u64 {
    space.number() << COUNT_BITS
}

impl HeldLocks {
    const_unless_model! {
        fn none() -> Self {
            Self([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)])
        }
    }

    /// Records one more in `space`, if a row is left for it.
    ///
    /// A signal handler may run between any two accesses. It records and forgets in pairs, so a row
    /// that is in use is what it was; a free one may have had another space.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn record(&self, space: SpaceId) -> Row {
        let name = row_of(space);
        for (number, row) in self.0.iter().enumerate() {
            let word = row.load(OWN);
            let count = word & MAX_COUNT;
            if count == 0 {
                row.store(name + 1, OWN);
                return Row(number as u8);
            }
            if word - count == name && count < MAX_COUNT {
                row.store(word + 1, OWN);
                return Row(number as u8);
            }
        }
        Row::NONE
    }

    /// Forgets one that was recorded.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn forget(&self, recorded: Row) {
        if let Some(row) = self.0.get(usize::from(recorded.0)) {
            row.store(row.load(OWN) - 1, OWN);
        }
    }

    /// Whether this thread has one in `space` on record.
    #[inline]
    pub(crate) fn any(&self, space: SpaceId) -> bool {
        // From one above the name to as many as there can be.
        let name = row_of(space);
        self.0.iter().any(|row| row.load(OWN).wrapping_sub(name + 1) < MAX_COUNT)
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
                identity: Identity::unassigned(),
                guards: HeldLocks::none(),
                exclusions: HeldLocks::none(),
                handlers: AtomicU64::new(0),
                slabs: AtomicU64::new(0),
            }
        }
    }

    /// The thread's identity, never 0.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.identity.get_or_assign()
    }

    pub(crate) fn enter_handler(&self) {
        self.handlers.store(self.handlers.load(OWN) + 1, OWN);
    }

    pub(crate) fn leave_handler(&self) {
        self.handlers.store(self.handlers.load(OWN) - 1, OWN);
    }

    #[inline]
    pub(crate) fn in_handler(&self) -> bool {
        self.handlers.load(OWN) != 0
    }

    pub(crate) fn enter_slab(&self) {
        self.slabs.store(self.slabs.load(OWN) + 1, OWN);
    }

    pub(crate) fn leave_slab(&self) {
        self.slabs.store(self.slabs.load(OWN) - 1, OWN);
    }

    pub(crate) fn in_slab(&self) -> bool {
        self.slabs.load(OWN) != 0
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

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;

    fn spaces<const N: usize>() -> [SpaceId; N] {
        core::array::from_fn(|_| SpaceId::assigned(&Identity::unassigned()))
    }

    #[test]
    fn an_identity_is_given_once_and_kept() {
        let (one, two) = (ThreadState::new(), ThreadState::new());
        assert_eq!(one.id(), one.id());
        assert_ne!(one.id(), two.id());
        assert_ne!(one.id(), 0);
    }

    #[test]
    fn guards_are_counted_by_space() {
        let (guards, [a, b, c]) = (HeldLocks::none(), spaces());
        let [one, two, again] = [a, b, a].map(|space| guards.record(space));
        assert!(one == again && one != two);
        guards.forget(one);
        assert!(guards.any(a) && guards.any(b));
        guards.forget(again);
        assert!(!guards.any(a) && guards.any(b));
        assert_eq!(guards.record(c), one, "its row is free again");
        guards.forget(one);
        // In a second row, since the free one is found first.
        let second = guards.record(b);
        guards.forget(two);
        assert!(guards.any(b));
        guards.forget(second);
        assert!(!guards.any(b));
    }

    #[test]
    fn a_guard_beyond_the_rows_goes_unreported_and_harms_nothing() {
        let (guards, spaces) = (HeldLocks::none(), spaces::<{ TRACKED_SPACES + 1 }>());
        for (number, space) in spaces.into_iter().enumerate() {
            assert_eq!(guards.record(space) == Row::NONE, number == TRACKED_SPACES);
        }
        guards.forget(Row::NONE);
        let [tracked @ .., last] = spaces;
        assert!(!guards.any(last));
        assert!(tracked.into_iter().all(|space| guards.any(space)));
    }

    #[test]
    fn a_row_that_is_full_is_followed_by_another() {
        let (guards, [one, other]) = (HeldLocks::none(), spaces());
        let rows: Vec<_> = (0..=MAX_COUNT).map(|_| guards.record(one)).collect();
        let last = rows[MAX_COUNT as usize];
        assert!(rows.iter().all(|row| *row == rows[0] || *row == last));
        assert!(!guards.any(other), "a count never runs into an identity");
        for (number, row) in rows.into_iter().enumerate() {
            assert!(guards.any(one), "{number} are forgotten");
            guards.forget(row);
        }
        assert!(!guards.any(one));
    }

    #[test]
    fn nothing_is_held_in_a_space_without_an_identity() {
        let guards = HeldLocks::none();
        assert!(!guards.any(SpaceId::NONE));
    }
}
