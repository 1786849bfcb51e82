//! A list of releases that are deferred to the next edit, because the thread that would have made
//! them could not wait for the mmap lock.

use crate::ledger::{DEFER_DRAIN, DEFER_PUSH};
use crate::sync::{AtomicU32, Relaxed, const_unless_model};

/// The list. Entries are named by numbers; each entry stores the number of the next, plus 1, or 0
/// at the end.
pub(crate) struct DeferredReleases(AtomicU32);

impl DeferredReleases {
    const_unless_model! {
        pub(crate) fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// Whether there is nothing to drain; what is missed waits for the next edit.
    #[inline]
    pub(crate) fn looks_empty(&self) -> bool {
        self.0.load(Relaxed("a hint: what is missed waits for the next edit")) == 0
    }

    /// Pushes `entry`, which is the caller's until then; `link` stores the next one in it.
    pub(crate) fn push(&self, entry: u32, mut link: impl FnMut(u32)) {
        let mut next = self.0.load(Relaxed("the exchange that follows decides"));
        loop {
            link(next);
            match self.0.compare_exchange(next, entry + 1, DEFER_PUSH) {
                Ok(_) => return,
                Err(now) => next = now,
            }
        }
    }

    /// Takes all entries over: the first, plus 1; 0 if there is none.
    pub(crate) fn drain(&self) -> u32 {
        self.0.swap(0, DEFER_DRAIN)
    }
}
