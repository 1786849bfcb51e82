//! How much of a region may be there at a time.
//!
//! Faults take from the budget before they fill, in a signal handler perhaps; the thread of
//! `evict.rs` gives back. A number of pages guards nothing but itself, so relaxed counters do.
#![expect(clippy::disallowed_types, reason = "relaxed counters that guard no memory")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::sys::Errno;
use crate::wakeup::Wakeup;

/// The bound of a region's resident pages.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Pages; a region that is frozen has no bound any more.
    limit: AtomicUsize,
    resident: AtomicUsize,
    most_resident: AtomicUsize,
    /// The last attempt to make room failed.
    exhausted: AtomicBool,
    /// Some fault found no room.
    short: AtomicBool,
    /// There is little room left, and somebody has rung.
    asked: AtomicBool,
    pub(crate) wakeup: Wakeup,
}

/// What the evictor is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// So many pages are to go, so that faults find room.
    pub(crate) pages: usize,
    /// Some fault has found none.
    pub(crate) is_short: bool,
}

/// What a fault is told that wants pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Granted,
    /// Somebody is making room: try again.
    Later,
    /// No room could be made.
    Refused,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Result<Self, Errno> {
        Ok(Self {
            limit: AtomicUsize::new(limit),
            resident: AtomicUsize::new(0),
            most_resident: AtomicUsize::new(0),
            exhausted: AtomicBool::new(false),
            short: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            wakeup: Wakeup::new()?,
        })
    }

    /// Takes so many pages. Runs in the signal handler.
    #[inline]
    pub(crate) fn take(&self, pages: usize) -> Admission {
        // RELAXED: here and below, numbers that guard nothing.
        let limit = self.limit.load(Relaxed);
        let resident = self.resident.fetch_add(pages, Relaxed) + pages;
        if resident > limit {
            self.resident.fetch_sub(pages, Relaxed);
            let refused = self.exhausted.swap(false, Relaxed);
            self.short.store(true, Relaxed);
            // Unconditionally: this thread waits for it.
            self.wakeup.ring();
            return if refused { Admission::Refused } else { Admission::Later };
        }
        self.most_resident.fetch_max(resident, Relaxed);
        if resident > limit - limit / 8 && !self.asked.swap(true, Relaxed) {
            self.wakeup.ring();
        }
        Admission::Granted
    }

    /// Gives pages back.
    #[inline]
    pub(crate) fn give(&self, pages: usize) {
        if pages > 0 {
            self.resident.fetch_sub(pages, Relaxed);
            self.exhausted.store(false, Relaxed);
        }
    }

    /// How many pages should go now, so that faults find room.
    pub(crate) fn wanted(&self) -> Wanted {
        self.asked.store(false, Relaxed);
        let limit = self.limit.load(Relaxed);
        let resident = self.resident.load(Relaxed);
        let is_short = self.short.swap(false, Relaxed);
        let pages = if is_short || resident > limit - limit / 8 {
            // A quarter is room for a granule, and for threads to go on while the next pages go.
            resident.saturating_sub(limit - limit / 4)
        } else {
            0
        };
        Wanted { pages, is_short }
    }

    /// Nothing could be given back although a fault found no room: it is to fail.
    pub(crate) fn give_up(&self) {
        self.exhausted.store(true, Relaxed);
    }

    pub(crate) fn lift(&self) {
        self.limit.store(usize::MAX, Relaxed);
    }

    pub(crate) fn resident(&self) -> usize {
        self.resident.load(Relaxed)
    }

    pub(crate) fn most_resident(&self) -> usize {
        self.most_resident.load(Relaxed)
    }
}
