//! How much of a region may be present at a time.
//!
//! Faults take from the budget before they fill, in a signal handler perhaps; the thread of
//! `evict.rs` gives back. A number of pages guards nothing but itself, so relaxed counters do.
#![expect(clippy::disallowed_types, reason = "relaxed counters that guard no memory")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::wakeup::Wakeup;

/// The bound of a region's resident pages.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Pages; a region that is frozen has no bound any more.
    limit: AtomicUsize,
    resident: AtomicUsize,
    most_resident: AtomicUsize,
    /// The most pages that a fault wanted and could not have since the bound was reached.
    short: AtomicUsize,
    /// Some fault has found the bound reached for the first time.
    is_new: AtomicBool,
    /// Some access has, which is to fail only if nothing can be given back that is not pinned.
    is_insistent: AtomicBool,
    /// So many of those that are resident could not be written back.
    stuck: AtomicUsize,
    /// So many are to stay.
    held: AtomicUsize,
    /// Blocks of records that are in use.
    tables: AtomicUsize,
    /// So many pages were wanted when nothing could be given back; 0 if it could, or was not tried.
    exhausted: AtomicUsize,
    /// The same, when they were wanted ahead of accesses, for which more could be given back.
    exhausted_ahead: AtomicUsize,
    /// Pages are given back again and again for accesses that need more pages at once than can be
    /// present.
    is_in_vain: AtomicBool,
    /// Few pages are left, and the evictor was woken.
    asked: AtomicBool,
    pub(crate) wakeup: Wakeup,
}

/// A block of records is in use, and so is, of small pages, a page table of the kernel's.
const PAGES_OF_TABLES: usize = 2;
/// So many pages may be those of tables before they take the place of others.
const FREE_PAGES: usize = (8 << 20) / 4096;

/// What the evictor is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// So many pages are to go, so that faults can take them.
    pub(crate) pages: usize,
    /// Some fault wanted so many, found the bound reached, and still would; 0 if it would not.
    pub(crate) short: usize,
    /// Some fault has found the bound reached for the first time.
    pub(crate) is_new: bool,
    /// Some fault that was short is that of an access.
    pub(crate) is_insistent: bool,
}

/// What a fault is told that wants pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Granted,
    /// The evictor is giving pages back: try again.
    Later,
    /// No page could be given back.
    Refused,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            resident: AtomicUsize::new(0),
            most_resident: AtomicUsize::new(0),
            short: AtomicUsize::new(0),
            is_new: AtomicBool::new(false),
            is_insistent: AtomicBool::new(false),
            stuck: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            tables: AtomicUsize::new(0),
            exhausted: AtomicUsize::new(0),
            exhausted_ahead: AtomicUsize::new(0),
            is_in_vain: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            wakeup: Wakeup::new(),
        }
    }

    /// Takes so many pages, for an access that was told `Later` before if `again` says so, or ahead
    /// of one, which does not insist. Runs in the signal handler.
    #[inline]
    pub(crate) fn take(&self, pages: usize, again: bool, insists: bool) -> Admission {
        if !self.take_now(pages) {
            return self.take_later(pages, again, insists);
        }
        let limit = self.limit();
        if self.resident() > limit - limit / 8 && !self.asked.swap(true, Relaxed) {
            self.wakeup.raise();
        }
        Admission::Granted
    }

    /// How many pages may be present beside the tables that there are. A part is left whatever
    /// those are: with each page that goes they become fewer.
    fn limit(&self) -> usize {
        // RELAXED: here and below, numbers that guard nothing.
        let (limit, tables) = (self.limit.load(Relaxed), self.tables.load(Relaxed));
        let tables = (tables * PAGES_OF_TABLES).saturating_sub(FREE_PAGES);
        limit.saturating_sub(tables).max(limit / 4)
    }

    /// So many blocks of records more are in use.
    pub(crate) fn add_tables(&self, blocks: usize) {
        self.tables.fetch_add(blocks, Relaxed);
    }

    /// So many blocks of records are not in use any more.
    pub(crate) fn remove_tables(&self, blocks: usize) {
        self.tables.fetch_sub(blocks, Relaxed);
    }

    /// Takes so many pages if the bound lets them be present now.
    #[inline]
    pub(crate) fn take_now(&self, pages: usize) -> bool {
        let limit = self.limit();
        let fits = |resident: usize| Some(resident + pages).filter(|&resident| resident <= limit);
        let taken = self.resident.fetch_update(Relaxed, Relaxed, fits);
        if let Ok(before) = taken {
            self.most_resident.fetch_max(before + pages, Relaxed);
        }
        taken.is_ok()
    }

    /// Whether so many pages can be present at all, beside those that could not be written back.
    /// Runs in the signal handler.
    #[inline]
    pub(crate) fn can_take(&self, pages: usize) -> bool {
        pages <= self.limit().saturating_sub(self.stuck.load(Relaxed))
    }

    #[cold]
    fn take_later(&self, pages: usize, again: bool, insists: bool) -> Admission {
        if self.is_in_vain.swap(false, Relaxed) {
            return Admission::Refused;
        }
        let exhausted = if insists { &self.exhausted } else { &self.exhausted_ahead };
        let exhausted = exhausted.swap(0, Relaxed);
        if !again {
            // What could not be done for others, who may have gone by now, is tried once more.
            self.is_new.store(true, Relaxed);
        } else if (1..=pages).contains(&exhausted) {
            return Admission::Refused;
        }
        self.short.fetch_max(pages, Relaxed);
        self.is_insistent.fetch_or(insists, Relaxed);
        // Unconditionally: this thread waits for it.
        self.wakeup.raise();
        Admission::Later
    }

    /// Gives pages back.
    #[inline]
    pub(crate) fn give(&self, pages: usize) {
        if pages > 0 {
            self.resident.fetch_sub(pages, Relaxed);
            self.exhausted.store(0, Relaxed);
            self.exhausted_ahead.store(0, Relaxed);
        }
    }

    /// Notes that so many pages are to stay, if together with others that are they leave enough for
    /// accesses to go on: a quarter, which is a granule or more, and what the evictor leaves free.
    pub(crate) fn hold(&self, pages: usize) -> bool {
        let limit = self.limit.load(Relaxed);
        let fits = |held: usize| held.checked_add(pages).filter(|&held| held <= limit - limit / 4);
        self.held.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    /// So many are held no longer.
    pub(crate) fn let_go(&self, pages: usize) {
        self.held.fetch_sub(pages, Relaxed);
    }

    /// How many pages should go now, so that faults can take them, when so many of those that are
    /// present cannot go.
    pub(crate) fn wanted(&self, stuck: usize) -> Wanted {
        self.asked.store(false, Relaxed);
        self.stuck.store(stuck, Relaxed);
        let limit = self.limit();
        let resident = self.resident.load(Relaxed);
        let mut short = self.short.swap(0, Relaxed);
        if resident.saturating_add(short) <= limit {
            short = 0;
        }
        // What those leave is what there is to work with.
        let (limit, resident) = (limit.saturating_sub(stuck), resident.saturating_sub(stuck));
        let pages = if short > 0 || resident > limit - limit / 8 {
            // A quarter is enough for a granule, and for threads to go on while the next pages go.
            resident.saturating_sub(limit - limit / 4)
        } else {
            0
        };
        let is_new = self.is_new.swap(false, Relaxed);
        let is_insistent = self.is_insistent.swap(false, Relaxed);
        Wanted { pages, short, is_new, is_insistent }
    }

    /// Nothing could be given back although a fault wants so many pages: it is to fail. If it does
    /// not insist, no other.
    pub(crate) fn give_up(&self, pages: usize, is_insistent: bool) {
        self.exhausted_ahead.store(pages, Relaxed);
        if is_insistent {
            self.exhausted.store(pages, Relaxed);
        }
        // Until here it was the same fault, which asks again.
        self.short.store(0, Relaxed);
    }

    /// Pages are given back without an end, for an access that never has all that it needs: it is
    /// to fail.
    pub(crate) fn is_in_vain(&self) {
        self.is_in_vain.store(true, Relaxed);
    }

    /// How many pages there may be, and how many of them are to stay.
    pub(crate) fn limit_and_held(&self) -> (usize, usize) {
        (self.limit.load(Relaxed), self.held.load(Relaxed))
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

#[cfg(test)]
impl Budget {
    pub(crate) fn tables(&self) -> usize {
        self.tables.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_access_is_refused_for_what_was_wanted_ahead() {
        let budget = Budget::new(8);
        assert_eq!(budget.take(8, false, true), Admission::Granted);
        let (access, ahead) = (|| budget.take(1, true, true), || budget.take(1, true, false));
        assert_eq!((access(), ahead()), (Admission::Later, Admission::Later));
        budget.give_up(1, false);
        assert_eq!((access(), ahead()), (Admission::Later, Admission::Refused));
        assert_eq!(ahead(), Admission::Later, "it was told");
        budget.give_up(1, true);
        assert_eq!((ahead(), access()), (Admission::Refused, Admission::Refused));
    }

    #[test]
    fn three_quarters_may_be_held() {
        let budget = Budget::new(8);
        assert!(budget.hold(4) && !budget.hold(3) && budget.hold(2) && !budget.hold(1));
        budget.let_go(2);
        assert!(budget.hold(1) && !budget.hold(usize::MAX));
        assert_eq!(budget.limit_and_held(), (8, 5));
        budget.lift();
        assert!(budget.hold(100));
    }
}
