//! What is known of each page of a mapping: whether this crate has filled it, whether it was
//! written since, and when it last changed.
//!
//! A record is for deciding what to give back, to write, and whether what was read from a source is
//! still wanted. It never answers a fault: the kernel knows what is present.
//!
//! # Invariants
//!
//! - **R1** A record changes under the read lock of the page's VMA (filled, written, failed) or
//!   under an exclusion of it (given back, written to the source). So an exclusion sees records
//!   that no thread changes. Only whether a page is held changes at any time (`holds.rs`).
//! - **R2** Under an exclusion, what is not `PRESENT` was not filled by this crate; what is
//!   `PRESENT` and not `DIRTY` is write-protected, if the mapping is tracked, and no device writes
//!   it, if the kernel can tell.
//! - **R3** The time of a page only grows, and grows whenever the page is given back.
//!
//! Records are atomic for readers of one VMA beside each other; everything else that they say is
//! ordered by the VMA's lock.
#![expect(unsafe_code, reason = "takes zeroed memory for atomics as it is")]
#![expect(
    clippy::disallowed_types,
    reason = "relaxed words: the VMA's lock orders what they tell of (R1)"
)]

use std::alloc::{Layout, alloc_zeroed};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The page is present, filled by this crate.
const PRESENT: u64 = 1;
/// It was written since it was filled or last written to the source.
const DIRTY: u64 = 2;
/// Its bytes could not be had.
const FAILED: u64 = 4;
/// It is dirty, and could not be given back when that was tried last: the source has not taken it,
/// or it is held for a device.
const STUCK: u64 = 8;
/// It failed in a system call because the bound was reached: it may be had when others have gone.
const REFUSED: u64 = 16;
/// It is to stay, or to stay when it has come: some thread holds it.
const HELD: u64 = 32;
const FLAGS: u64 = PRESENT | DIRTY | FAILED | STUCK | REFUSED | HELD;
/// A time is a multiple of this.
const TICK: u64 = 64;

/// The records of the pages of a mapping.
#[derive(Debug)]
pub(crate) struct Records {
    pages: Box<[AtomicU64]>,
    clock: AtomicU64,
}

impl Records {
    /// Of so many pages, none of which is present. `None` without memory.
    ///
    /// It is the kernel's zeroed memory, so what is never touched costs none.
    pub(crate) fn new(pages: usize) -> Option<Self> {
        let layout = Layout::array::<AtomicU64>(pages).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout has a size.
        let start = unsafe { alloc_zeroed(layout) }.cast::<AtomicU64>();
        if start.is_null() {
            return None;
        }
        let slice = ptr::slice_from_raw_parts_mut(start, pages);
        // SAFETY: allocated with the layout of this slice, and zeros are valid atomics.
        let pages = unsafe { Box::from_raw(slice) };
        Some(Self { pages, clock: AtomicU64::new(0) })
    }

    /// A time that is later than all before.
    #[inline]
    pub(crate) fn tick(&self) -> u64 {
        // RELAXED: its values are distinct whatever the order.
        (self.clock.fetch_add(1, Relaxed) + 1) * TICK
    }

    /// The latest time at which one of the pages was given back, or filled at a time.
    #[inline]
    pub(crate) fn time(&self, pages: Range<usize>) -> u64 {
        // RELAXED: R1.
        self.pages[pages].iter().map(|page| page.load(Relaxed) & !FLAGS).max().unwrap_or(0)
    }

    #[inline]
    pub(crate) fn is_present(&self, page: usize) -> bool {
        self.has(page, PRESENT)
    }

    #[inline]
    pub(crate) fn is_dirty(&self, page: usize) -> bool {
        self.has(page, DIRTY)
    }

    /// Whether a page can be given back without a loss: it is present, is what its source has, and
    /// is not held.
    pub(crate) fn is_evictable(&self, page: usize) -> bool {
        self.is_present(page) && !self.has(page, DIRTY | HELD)
    }

    pub(crate) fn is_held(&self, page: usize) -> bool {
        self.has(page, HELD)
    }

    /// Whether a page is dirty and could not be given back when that was tried last.
    pub(crate) fn is_stuck(&self, page: usize) -> bool {
        self.has(page, STUCK)
    }

    #[inline]
    pub(crate) fn has_failed(&self, page: usize) -> bool {
        self.has(page, FAILED)
    }

    /// Whether a page has failed in a system call because the bound was reached.
    pub(crate) fn was_refused(&self, page: usize) -> bool {
        self.has(page, REFUSED)
    }

    #[inline]
    fn has(&self, page: usize, flag: u64) -> bool {
        // RELAXED: R1.
        self.pages[page].load(Relaxed) & flag != 0
    }

    /// The pages were filled by the caller, who holds the read lock; at that time, if it matters
    /// when. How many were missing before.
    #[inline]
    pub(crate) fn fill(&self, pages: Range<usize>, dirty: bool, time: Option<u64>) -> usize {
        let mut new = 0;
        for page in &self.pages[pages] {
            let filled = |old| {
                let time = time.unwrap_or(old & !FLAGS);
                Some(time | PRESENT | old & HELD | if dirty { DIRTY } else { old & DIRTY })
            };
            // RELAXED: R1. Only one fill of a missing page succeeds, and others mark writes only
            // when this has been stored.
            let old = page.fetch_update(Relaxed, Relaxed, filled).unwrap_or_default();
            new += usize::from(old & PRESENT == 0);
        }
        new
    }

    /// A page that is present is about to be written, by a holder of the read lock; whether it is
    /// present.
    pub(crate) fn mark_dirty(&self, page: usize) -> bool {
        // It cannot go between the two steps (R1).
        let present = self.is_present(page);
        if present {
            // RELAXED: R1.
            self.pages[page].fetch_or(DIRTY, Relaxed);
        }
        present
    }

    /// The bytes of a page could not be had, or met the bound, unless another thread had them and
    /// filled it.
    pub(crate) fn mark_failed(&self, page: usize, is_refused: bool) {
        let how = if is_refused { FAILED | REFUSED } else { FAILED };
        let failed = |record| (record & PRESENT == 0).then_some(record | how);
        // RELAXED: R1. It failed already if it is present by now, and nothing is to be done.
        let _ = self.pages[page].fetch_update(Relaxed, Relaxed, failed);
    }

    /// The pages were written to the source, by the caller, who excludes them.
    pub(crate) fn mark_clean(&self, pages: Range<usize>) {
        for page in &self.pages[pages] {
            // RELAXED: R1.
            page.fetch_and(!(DIRTY | STUCK), Relaxed);
        }
    }

    /// Those of the pages that are dirty could not be given back by the caller, who excludes faults
    /// from them.
    pub(crate) fn mark_stuck(&self, pages: Range<usize>) {
        let stuck = |record| (record & DIRTY != 0).then_some(record | STUCK);
        for page in &self.pages[pages] {
            // RELAXED: R1. Nothing is to be done for a clean one.
            let _ = page.fetch_update(Relaxed, Relaxed, stuck);
        }
    }

    /// The pages were given back, by the caller, who excludes them. How many were present.
    pub(crate) fn forget(&self, pages: Range<usize>) -> usize {
        let time = self.tick();
        let mut gone = 0;
        for page in &self.pages[pages] {
            // RELAXED: R1. Who holds it fills it again.
            let old = page.fetch_update(Relaxed, Relaxed, |old| Some(time | old & HELD));
            gone += (old.unwrap_or_default() & PRESENT) as usize;
        }
        gone
    }

    /// The pages are to stay, from now on or when they have come.
    pub(crate) fn hold(&self, pages: Range<usize>) {
        for page in &self.pages[pages] {
            // RELAXED: the VMA's lock, taken afterwards, makes it seen by who excludes the page.
            page.fetch_or(HELD, Relaxed);
        }
    }

    /// The pages are held no longer.
    pub(crate) fn let_go(&self, pages: Range<usize>) {
        for page in &self.pages[pages] {
            // RELAXED: seen late, they stay a little longer.
            page.fetch_and(!HELD, Relaxed);
        }
    }

    /// Goes on from the times of `other`, of whose pages none is here.
    pub(crate) fn inherit_times(&self, other: &Self) {
        // RELAXED: no other thread has these records yet, and the caller excludes the other pages.
        self.clock.store(other.clock.load(Relaxed), Relaxed);
        for (page, theirs) in self.pages.iter().zip(&other.pages) {
            let time = theirs.load(Relaxed) & !FLAGS;
            // What is zero stays memory that no thread has touched.
            if time != 0 {
                page.store(time, Relaxed);
            }
        }
    }

    /// The runs of pages in `within` that have the property, one after the other.
    pub(crate) fn runs(
        &self,
        within: Range<usize>,
        property: impl Fn(&Self, usize) -> bool,
    ) -> impl Iterator<Item = Range<usize>> {
        let mut next = within.start;
        std::iter::from_fn(move || {
            let start = (next..within.end).find(|&page| property(self, page))?;
            let end = (start..within.end).find(|&page| !property(self, page));
            next = end.unwrap_or(within.end);
            Some(start..next)
        })
    }

    /// The times of the pages that have the property, in the order of the pages.
    pub(crate) fn times(
        &self,
        mut property: impl FnMut(&Self, usize) -> bool,
    ) -> impl Iterator<Item = u64> {
        let pages = (0..self.len()).filter(move |&page| property(self, page));
        pages.map(|page| self.time(page..page + 1))
    }

    /// Whether a page is of this time or earlier.
    pub(crate) fn is_older(&self, page: usize, time: u64) -> bool {
        self.time(page..page + 1) <= time
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_history() {
        let records = Records::new(10).unwrap();
        assert_eq!(records.time(0..10), 0);
        assert_eq!(records.fill(2..5, false, None), 3);
        assert_eq!(records.fill(4..6, true, Some(records.tick())), 1);
        assert!(!records.mark_dirty(0), "it is missing");
        assert!(records.mark_dirty(2));
        let runs = |property: fn(&Records, usize) -> bool| {
            records.runs(0..10, property).collect::<Vec<_>>()
        };
        assert_eq!(runs(Records::is_present), vec![2..6]);
        assert_eq!(runs(Records::is_dirty), [2..3, 4..6]);
        records.mark_clean(4..5);
        assert_eq!(runs(Records::is_dirty), [2..3, 5..6]);
        let before = records.time(0..10);
        assert_eq!(records.forget(0..5), 3);
        assert!(records.time(0..5) > before && records.time(5..6) == before);
        assert_eq!(runs(Records::is_present), vec![5..6]);
        assert_eq!(records.times(Records::is_present).collect::<Vec<_>>(), [before]);
        records.mark_stuck(5..6);
        assert!(records.is_stuck(5) && records.is_dirty(5) && !records.is_evictable(5));
        records.mark_clean(5..6);
        assert!(!records.is_stuck(5) && records.is_evictable(5));
        assert!(records.is_older(5, before) && !records.is_older(5, before - 1));
        records.mark_failed(9, false);
        records.mark_failed(8, true);
        records.mark_failed(5, false);
        assert!(records.has_failed(9) && !records.has_failed(5), "it is present");
        assert!(records.has_failed(8) && records.was_refused(8) && !records.was_refused(9));
        let moved = Records::new(20).unwrap();
        moved.inherit_times(&records);
        assert_eq!(moved.time(0..20), records.time(0..10));
        assert!(moved.tick() > moved.time(0..20));
        assert!(!moved.has_failed(9) && !moved.is_present(5));
    }

    #[test]
    fn a_page_is_held_whatever_becomes_of_it() {
        let records = Records::new(4).unwrap();
        records.hold(1..3);
        records.fill(0..4, false, Some(records.tick()));
        let evictable = || records.runs(0..4, Records::is_evictable).collect::<Vec<_>>();
        assert_eq!(evictable(), [0..1, 3..4]);
        assert_eq!(records.forget(1..2), 1);
        assert!(records.is_held(1) && !records.is_present(1));
        records.fill(1..2, true, None);
        records.let_go(1..3);
        assert_eq!(evictable(), [0..1, 2..4]);
    }
}
