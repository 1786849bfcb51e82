//! How much may be present at a time, of one region or of several together.
//!
//! Faults take from the budget before they fill, in a signal handler perhaps; the thread of
//! `evict.rs` gives back. A number of pages guards nothing but itself, so relaxed counters do.
#![expect(clippy::disallowed_types, reason = "relaxed counters that guard no memory")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::history::{Came, Filled, Fills, Gone};
use crate::kept::{Keeper, Kept};
use crate::sys::Errno;
use crate::wakeup::{Room, Wakeup, rest};

/// A bound of resident pages.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Pages.
    limit: usize,
    /// The evictor begins when more are present than the end of it, and ends at its start.
    watermarks: Range<usize>,
    resident: AtomicUsize,
    most_resident: AtomicUsize,
    /// The most pages that a fault wanted and could not have since the bound was reached.
    short: AtomicUsize,
    /// Some fault has found the bound reached for the first time.
    is_new: AtomicBool,
    /// Some access has, which is to fail only if nothing can be given back that is not pinned.
    is_insistent: AtomicBool,
    /// So many of those that are resident could not be written back, or are held.
    stuck: AtomicUsize,
    /// So many are to stay.
    held: AtomicUsize,
    /// Blocks of records that are in use.
    tables: AtomicUsize,
    /// So many pages were wanted when nothing could be given back; 0 if it could, or was not tried.
    exhausted: AtomicUsize,
    /// The same, when they were wanted ahead of accesses, for which more could be given back.
    exhausted_ahead: AtomicUsize,
    /// Pages are given back again and again, perhaps for an access that needs more pages at once
    /// than can be present.
    is_in_vain: AtomicBool,
    /// Few pages are left, and the evictor was woken.
    asked: AtomicBool,
    pub(crate) wakeup: Wakeup,
    /// Where threads wait for pages to go: the number of a [`Room`].
    room: u32,
    pub(crate) fills: Fills,
    pub(crate) gone: Gone,
    pub(crate) came: Came,
    /// What is kept of pages that have gone. Its memory counts as resident.
    pub(crate) kept: Kept,
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
    /// So many pages may be present beside the tables that there are.
    pub(crate) limit: usize,
}

/// What a fault is told that wants pages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Admission {
    Granted,
    /// The evictor is giving pages back: wait for them, and try again.
    Later(Wait),
    /// No page could be given back.
    Refused,
    /// Perhaps it is one that needs more pages at once than can be present.
    InVain,
}

/// Waits for pages to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    room: u32,
    times: u32,
}

impl Wait {
    /// Sleeps until some have gone that had not when it was made.
    pub(crate) fn wait(self) {
        Room::of(self.room).wait(self.times);
    }

    /// Whether some have.
    pub(crate) fn is_over(self) -> bool {
        Room::of(self.room).times() != self.times
    }
}

impl Budget {
    /// Of so many pages. The evictor begins when there are more than the end of `watermarks`, and
    /// ends at its start.
    pub(crate) fn new(limit: usize, watermarks: Range<usize>) -> Result<Self, Errno> {
        Ok(Self {
            limit,
            kept: Kept::new(watermarks.start)?,
            watermarks,
            fills: Fills::new(limit)?,
            gone: Gone::new(limit)?,
            came: Came::default(),
            room: Room::any(),
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
        })
    }

    /// The watermarks of a bound for which none are given. A 64th is left for faults to take while
    /// the evictor works, and a 32nd when it is done; more of a small bound, and of a large one
    /// what is enough for them.
    pub(crate) fn usual_watermarks(limit: usize) -> Range<usize> {
        let high = (limit / 64).clamp((limit / 8).min(8), 1024);
        let low = (limit / 32).clamp((limit / 4).min(16), 2048);
        limit - low..limit - high
    }

    /// A watermark, of what is left of the bound.
    fn watermark(&self, mark: usize, left: usize) -> usize {
        (mark as u128 * left as u128 / self.limit.max(1) as u128) as usize
    }

    pub(crate) fn watermarks(&self) -> &Range<usize> {
        &self.watermarks
    }

    pub(crate) fn pages(&self) -> usize {
        self.limit
    }

    /// Takes so many pages, for an access that was told `Later` before if `again` says so, or ahead
    /// of one, which does not insist. Runs in the signal handler.
    #[inline]
    fn take(&self, pages: usize, again: bool, insists: bool) -> Admission {
        // Before it is known whether there are any.
        let wait = Wait { room: self.room, times: self.room().times() };
        // Those that wait come first.
        let others = if again { 0 } else { pages.saturating_mul(self.room().sleepers()) };
        if !self.take_beside(pages, others) {
            return self.take_later(pages, again, insists, wait);
        }
        let limit = self.limit();
        if self.resident() > self.watermark(self.watermarks.end, limit) {
            self.ask();
        }
        if again && self.room().sleepers() > 0 && self.resident() < limit {
            // Or it would wait for the next time that pages go.
            self.room().open(1);
        }
        Admission::Granted
    }

    fn room(&self) -> &'static Room {
        Room::of(self.room)
    }

    /// Wakes the evictor, unless it is awake.
    fn ask(&self) {
        if !self.asked.swap(true, Relaxed) {
            self.wakeup.raise();
        }
    }

    /// Takes so many pages if the bound lets them be present now beside so many others.
    #[inline]
    fn take_beside(&self, pages: usize, others: usize) -> bool {
        let limit = self.limit();
        let fits = |resident: usize| {
            let all = resident.saturating_add(pages).saturating_add(others);
            (all <= limit).then_some(resident + pages)
        };
        let taken = self.resident.fetch_update(Relaxed, Relaxed, fits);
        if let Ok(before) = taken {
            self.most_resident.fetch_max(before + pages, Relaxed);
        }
        taken.is_ok()
    }

    /// How many pages may be present beside the tables that there are. A part is left whatever
    /// those are: with each page that goes they become fewer.
    fn limit(&self) -> usize {
        // RELAXED: here and below, numbers that guard nothing.
        let tables = self.tables.load(Relaxed) * PAGES_OF_TABLES;
        self.limit.saturating_sub(tables.saturating_sub(FREE_PAGES)).max(self.limit / 4)
    }

    /// Whether so many pages can be present at all, beside those that could not be written back.
    /// Runs in the signal handler.
    #[inline]
    fn can_take(&self, pages: usize) -> bool {
        pages <= self.limit().saturating_sub(self.stuck.load(Relaxed))
    }

    #[cold]
    fn take_later(&self, pages: usize, again: bool, insists: bool, wait: Wait) -> Admission {
        if self.is_in_vain.swap(false, Relaxed) {
            return Admission::InVain;
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
        Admission::Later(wait)
    }

    /// Gives pages back.
    #[inline]
    fn give(&self, pages: usize) {
        if pages > 0 {
            self.resident.fetch_sub(pages, Relaxed);
            self.exhausted.store(0, Relaxed);
            self.exhausted_ahead.store(0, Relaxed);
            if self.room().sleepers() > 0 {
                // It wakes them when nothing keeps them from the region any more.
                self.ask();
            }
        }
    }

    /// What keeps pages. The caller takes no signal.
    pub(crate) fn keeper(&self) -> Keeper<'_> {
        self.kept.ring(&self.gone)
    }

    /// Takes a page of the bound for what is kept, if it lets one more be present.
    pub(crate) fn take_to_keep(&self) -> bool {
        self.take_beside(1, 0)
    }

    /// So many pages are to be kept at most. How many have gone for it.
    pub(crate) fn keep(&self, pages: usize) -> usize {
        let gone = self.keeper().want(pages);
        self.give(gone);
        gone
    }

    /// Has so many of the pages that are kept go, as far as there are. How many have.
    pub(crate) fn keep_fewer(&self, pages: usize) -> usize {
        let gone = self.keeper().shrink(pages);
        self.give(gone);
        gone
    }

    /// Has all that is kept go. A thread that has just filled a page may still hold some, for a
    /// moment.
    pub(crate) fn keep_none(&self) {
        /// A filter may refuse it for ever.
        const TRIES: u32 = 200;
        for times in 0..TRIES {
            self.keep_fewer(usize::MAX);
            if self.kept.pages() == 0 {
                return;
            }
            rest(times);
        }
    }

    /// Wakes those who wait, if there is room, or all of them, for whom there is none.
    pub(crate) fn wake(&self, all: bool) {
        let left = self.limit().saturating_sub(self.resident());
        if all || left > 0 {
            self.room().open(if all { usize::MAX } else { left });
        }
    }

    /// Notes that so many pages are to stay, if together with others that are they leave enough for
    /// accesses to go on: a quarter, which is a granule or more, and what the evictor leaves free.
    fn hold(&self, pages: usize) -> bool {
        let limit = self.limit;
        let fits = |held: usize| held.checked_add(pages).filter(|&held| held <= limit - limit / 4);
        self.held.fetch_update(Relaxed, Relaxed, fits).is_ok()
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
        let (left, resident) = (limit.saturating_sub(stuck), resident.saturating_sub(stuck));
        let [low, high] =
            [self.watermarks.start, self.watermarks.end].map(|mark| self.watermark(mark, left));
        let pages = if short > 0 || resident > high { resident.saturating_sub(low) } else { 0 };
        let is_new = self.is_new.swap(false, Relaxed);
        let is_insistent = self.is_insistent.swap(false, Relaxed);
        Wanted { pages, short, is_new, is_insistent, limit }
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

    /// Pages are given back without an end, perhaps for an access that never has all that it needs.
    pub(crate) fn is_in_vain(&self) {
        self.is_in_vain.store(true, Relaxed);
    }

    pub(crate) fn resident(&self) -> usize {
        self.resident.load(Relaxed)
    }

    pub(crate) fn most_resident(&self) -> usize {
        self.most_resident.load(Relaxed)
    }
}

/// A region's part of a number of a budget's, which counts there until it is lifted.
#[derive(Debug, Default)]
struct Part(AtomicUsize);

impl Part {
    const LIFTED: usize = 1 << (usize::BITS - 1);

    /// Adds so many; whether they count.
    fn add(&self, count: usize) -> bool {
        self.0.fetch_add(count, Relaxed) & Self::LIFTED == 0
    }

    /// So many are no more; whether they counted.
    fn sub(&self, count: usize) -> bool {
        self.0.fetch_sub(count, Relaxed) & Self::LIFTED == 0
    }

    /// None counts any more. How many did.
    fn lift(&self) -> usize {
        let before = self.0.fetch_or(Self::LIFTED, Relaxed);
        if before & Self::LIFTED == 0 { before } else { 0 }
    }

    fn is_lifted(&self) -> bool {
        self.0.load(Relaxed) & Self::LIFTED != 0
    }

    fn get(&self) -> usize {
        self.0.load(Relaxed) & !Self::LIFTED
    }
}

/// What a region has of a budget, until it is dropped or lifted.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    resident: Part,
    most_resident: AtomicUsize,
    held: Part,
    tables: Part,
}

impl Share {
    pub(crate) fn of(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            resident: Part::default(),
            most_resident: AtomicUsize::new(0),
            held: Part::default(),
            tables: Part::default(),
        }
    }

    /// As [`Budget::take`].
    #[inline]
    pub(crate) fn take(&self, pages: usize, again: bool, insists: bool) -> Admission {
        if self.resident.is_lifted() {
            self.resident.add(pages);
            return Admission::Granted;
        }
        let admission = self.budget.take(pages, again, insists);
        if matches!(admission, Admission::Granted) {
            self.count(pages);
        }
        admission
    }

    /// Takes so many pages if the bound lets them be present now.
    pub(crate) fn take_now(&self, pages: usize) -> bool {
        if self.resident.is_lifted() {
            self.resident.add(pages);
            return true;
        }
        let taken = self.budget.take_beside(pages, 0);
        if taken {
            self.count(pages);
        }
        taken
    }

    /// Counts what was taken of the budget.
    fn count(&self, pages: usize) {
        if !self.resident.add(pages) {
            // It was lifted just now.
            self.budget.give(pages);
        }
        self.most_resident.fetch_max(self.resident(), Relaxed);
    }

    /// As [`Budget::can_take`].
    #[inline]
    pub(crate) fn can_take(&self, pages: usize) -> bool {
        self.resident.is_lifted() || self.budget.can_take(pages)
    }

    /// Gives pages back.
    #[inline]
    pub(crate) fn give(&self, pages: usize) {
        if self.resident.sub(pages) {
            self.budget.give(pages);
        }
    }

    /// As [`Budget::hold`].
    pub(crate) fn hold(&self, pages: usize) -> bool {
        if self.held.is_lifted() {
            self.held.add(pages);
            return true;
        }
        let are_let = self.budget.hold(pages);
        if are_let && !self.held.add(pages) {
            self.budget.held.fetch_sub(pages, Relaxed);
        }
        are_let
    }

    /// So many are held no longer.
    pub(crate) fn let_go(&self, pages: usize) {
        if self.held.sub(pages) {
            self.budget.held.fetch_sub(pages, Relaxed);
        }
    }

    /// How many pages there may be, and how many of them are to stay.
    pub(crate) fn limit_and_held(&self) -> (usize, usize) {
        (self.budget.limit, self.budget.held.load(Relaxed))
    }

    /// A block of records more is in use.
    pub(crate) fn add_table(&self) {
        self.budget.tables.fetch_add(1, Relaxed);
        if !self.tables.add(1) {
            self.budget.tables.fetch_sub(1, Relaxed);
        }
    }

    /// A block of records is not in use any more.
    pub(crate) fn remove_table(&self) {
        if self.tables.sub(1) {
            self.budget.tables.fetch_sub(1, Relaxed);
        }
    }

    /// A granule's pages were filled, from that one on.
    #[inline]
    pub(crate) fn filled(&self, region: usize, page: usize) {
        if self.budget.fills.add(Filled { region, page }) {
            self.budget.ask();
        }
    }

    /// Wakes the evictor.
    pub(crate) fn raise(&self) {
        self.budget.wakeup.raise();
    }

    /// Nothing of the region counts any more. The evictor has left it alone before.
    pub(crate) fn lift(&self) {
        self.budget.held.fetch_sub(self.held.lift(), Relaxed);
        self.budget.tables.fetch_sub(self.tables.lift(), Relaxed);
        self.budget.give(self.resident.lift());
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(crate) fn resident(&self) -> usize {
        self.resident.get()
    }

    pub(crate) fn most_resident(&self) -> usize {
        self.most_resident.load(Relaxed)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.lift();
    }
}

#[cfg(test)]
impl Share {
    /// Of a bound of its own of so many pages.
    pub(crate) fn for_test(pages: usize) -> Self {
        Self::of(Arc::new(Budget::new(pages, Budget::usual_watermarks(pages)).unwrap()))
    }

    pub(crate) fn tables(&self) -> usize {
        self.budget.tables.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Told {
        Granted,
        Later,
        Refused,
        InVain,
    }

    fn take(share: &Share, pages: usize, again: bool, insists: bool) -> Told {
        match share.take(pages, again, insists) {
            Admission::Granted => Told::Granted,
            Admission::Later(_) => Told::Later,
            Admission::Refused => Told::Refused,
            Admission::InVain => Told::InVain,
        }
    }

    #[test]
    fn one_access_that_finds_the_bound_reached_is_told_that_it_may_be_in_vain() {
        let share = Share::for_test(8);
        share.budget.is_in_vain();
        assert_eq!(take(&share, 8, false, true), Told::Granted);
        let access = || take(&share, 1, true, true);
        assert_eq!([access(), access()], [Told::InVain, Told::Later]);
    }

    #[test]
    fn no_access_is_refused_for_what_was_wanted_ahead() {
        let share = Share::for_test(8);
        assert_eq!(take(&share, 8, false, true), Told::Granted);
        let access = || take(&share, 1, true, true);
        let ahead = || take(&share, 1, true, false);
        assert_eq!((access(), ahead()), (Told::Later, Told::Later));
        share.budget.give_up(1, false);
        assert_eq!((access(), ahead()), (Told::Later, Told::Refused));
        assert_eq!(ahead(), Told::Later, "it was told");
        share.budget.give_up(1, true);
        assert_eq!((ahead(), access()), (Told::Refused, Told::Refused));
    }

    #[test]
    fn three_quarters_may_be_held() {
        let share = Share::for_test(8);
        assert!(share.hold(4) && !share.hold(3) && share.hold(2) && !share.hold(1));
        share.let_go(2);
        assert!(share.hold(1) && !share.hold(usize::MAX));
        assert_eq!(share.limit_and_held(), (8, 5));
        share.lift();
        assert!(share.hold(100));
        assert_eq!(share.limit_and_held(), (8, 0));
    }

    #[test]
    fn what_one_region_has_another_has_not() {
        let first = Share::for_test(8);
        let second = Share::of(Arc::clone(first.budget()));
        assert!(first.take_now(5) && second.take_now(3) && !first.take_now(1));
        assert!(first.hold(5) && !second.hold(2));
        second.give(2);
        assert!(first.take_now(2) && !second.take_now(1));
        assert_eq!((first.resident(), second.resident()), (7, 1));
        first.lift();
        assert!(second.take_now(7) && !second.take_now(1) && second.hold(6));
        assert!(first.take_now(100) && first.hold(100), "it has no bound any more");
        first.give(50);
        first.let_go(100);
        assert_eq!((first.budget.resident(), second.limit_and_held().1), (8, 6));
        drop(second);
        assert_eq!((first.budget.resident(), first.limit_and_held().1), (0, 0));
    }

    #[test]
    fn who_comes_later_does_not_go_first() {
        let share = Share::for_test(8);
        assert!(share.take_now(7));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let room = share.budget.room();
            let sleeper = scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    room.wait(room.times());
                }
            });
            let mut told = Told::Granted;
            while told != Told::Later && !sleeper.is_finished() {
                told = take(&share, 1, false, true);
                if told == Told::Granted {
                    // It did not sleep.
                    share.give(1);
                }
            }
            assert_eq!(take(&share, 1, true, true), Told::Granted, "it has waited");
            is_over.store(true, Relaxed);
        });
    }

    #[test]
    fn the_evictor_works_between_the_watermarks() {
        let budget = Budget::new(1000, 100..500).unwrap();
        assert!(budget.take_beside(500, 0) && budget.wanted(0).pages == 0);
        assert!(budget.take_beside(1, 0) && budget.wanted(0).pages == 401);
        // Of a bound half of which cannot go, half as many.
        assert_eq!(budget.wanted(500).pages, 0);
        assert!(budget.take_beside(250, 0) && budget.wanted(500).pages == 201);
    }
}
