//! What is known of each page of a mapping: whether this crate has filled it, whether it was
//! written since, and when it last changed.
//!
//! A record is for deciding what to give back, to write, and whether what was read from a source is
//! still wanted. It never answers a fault: the kernel knows what is present.
//!
//! # Levels
//!
//! The records of 512 pages that lie together, as the kernel's page tables have them, are a
//! *block*: a page of memory, which is had when one of them is first wanted and can be given back
//! when they all say nothing. A word for each block says whether it is in use, and since when it is
//! what it is; a word above 512 of those says the same of them, and so on up to a few words. So
//! what was never touched takes no memory, and is passed over without a look at it.
//!
//! # Invariants
//!
//! - **R1** A record changes under the read lock of the page's VMA (filled, written, failed) or
//!   under an exclusion of it (given back, written to the source). So an exclusion sees records
//!   that no thread changes. Only whether a page is held changes at any time, by who locks the list
//!   of what is held (`holds.rs`).
//! - **R2** Under an exclusion, what is not `PRESENT` was not filled by this crate; what is
//!   `PRESENT` and not `DIRTY` is write-protected, if the mapping is tracked, and no device writes
//!   it, if the kernel can tell.
//! - **R3** The time of a page, the latest in its record and in the words above it, only grows, and
//!   grows whenever the page is given back.
//! - **R4** A block is given back under an exclusion of all its pages, by who locks the list of
//!   what is held: no thread changes any of it meanwhile.
//!
//! Records are atomic for readers of one VMA beside each other; everything else that they say is
//! ordered by the VMA's lock.
#![expect(
    clippy::disallowed_types,
    reason = "relaxed words: the VMA's lock orders what they tell of (R1)"
)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::budget::Share;
use crate::sys::{Errno, Words};

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
/// It was filled again soon after it had gone.
const HOT: u64 = 64;
/// A time is a multiple of this. What is below is flags in a record, and in the words above how
/// many of those below it are in use.
const TICK: u64 = 1 << 10;
const BELOW: u64 = TICK - 1;

/// So many records are a block, and so many words of a level have one above them.
pub(crate) const BLOCK: usize = 1 << BLOCK_SHIFT;
const BLOCK_SHIFT: usize = 9;
/// A level of so few words has none above it.
const FEW: usize = 8;

/// The time, which grows whenever something is filled or given back. Regions that share a bound
/// share it, so that what was filled longest ago is known of all of them.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// A time that is later than all before.
    #[inline]
    pub(crate) fn tick(&self) -> u64 {
        // RELAXED: its values are distinct whatever the order.
        (self.0.fetch_add(1, Relaxed) + 1) * TICK
    }
}

/// How pages were filled, in a region that has a bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filling {
    pub(crate) time: u64,
    /// Soon after they had gone.
    pub(crate) is_hot: bool,
}

impl Filling {
    fn record(self) -> u64 {
        self.time | if self.is_hot { HOT } else { 0 }
    }
}

/// The records of the pages of a mapping.
#[derive(Debug)]
pub(crate) struct Records {
    words: Words,
    /// Where the words of each level are: those of pages, of blocks, and so on.
    levels: Box<[Range<usize>]>,
    /// So many records of the first block are those of no page.
    lead: usize,
    pages: usize,
    pub(crate) clock: Arc<Clock>,
    /// What blocks in use count in.
    share: Option<Arc<Share>>,
    /// With a bound.
    counts: Counts,
}

/// How many pages there are of a kind.
#[derive(Debug, Default)]
struct Counts([AtomicUsize; Kind::ALL]);

/// Kinds of pages; some are of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Present, but held, or their write-back has failed.
    Fixed,
    /// Their write-back has failed.
    Stuck,
    /// Present, and cannot go as they are: held, or to be written.
    Staying,
    /// The bound was reached.
    Refused,
}

impl Kind {
    const ALL: usize = 4;

    /// The kinds that a page is of, by its record: a bit for each.
    fn of(record: u64) -> usize {
        let is_held = record & (PRESENT | HELD) == PRESENT | HELD;
        let (is_stuck, is_dirty) = (record & STUCK != 0, record & DIRTY != 0);
        usize::from(is_stuck || is_held)
            | usize::from(is_stuck) << 1
            | usize::from(is_dirty || is_held) << 2
            | usize::from(record & REFUSED != 0) << 3
    }
}

impl Counts {
    /// A record has changed. As plain as can be: unoptimised, it runs on a small signal stack.
    fn note(&self, before: u64, after: u64) {
        let (before, after) = (Kind::of(before), Kind::of(after));
        let mut kind = 0;
        while before != after && kind < Kind::ALL {
            let (was, is) = (before >> kind & 1, after >> kind & 1);
            // RELAXED: numbers that guard nothing.
            if was < is {
                self.0[kind].fetch_add(1, Relaxed);
            } else if is < was {
                self.0[kind].fetch_sub(1, Relaxed);
            }
            kind += 1;
        }
    }
}

/// A change of a record.
struct Change {
    /// It is for records that have this flag of `looks_at`, or none.
    has: u64,
    looks_at: u64,
    /// What stays of it, flags or time.
    keeps: u64,
    /// What it has then.
    set: u64,
}

impl Change {
    /// Of all records.
    const fn all(keeps: u64, set: u64) -> Self {
        Self { has: 0, looks_at: 0, keeps, set }
    }

    /// Of those that have a flag, or of those that do not.
    const fn those(looks_at: u64, has: bool, set: u64) -> Self {
        Self { has: if has { looks_at } else { 0 }, looks_at, keeps: u64::MAX, set }
    }

    fn is_for(&self, record: u64) -> bool {
        record & self.looks_at == self.has
    }
}

impl Records {
    /// Of so many pages, none of which is present, the first of them being that of this number
    /// among those of its block.
    pub(crate) fn new(
        pages: usize,
        lead: usize,
        clock: Arc<Clock>,
        share: Option<Arc<Share>>,
    ) -> Result<Self, Errno> {
        let (mut levels, mut next, mut words) = (Vec::new(), 0, lead + pages);
        loop {
            levels.push(next..next + words);
            // A level begins with a page, so that a block is one.
            next += words.next_multiple_of(BLOCK);
            if levels.len() > 1 && words <= FEW {
                break;
            }
            words = words.div_ceil(BLOCK);
        }
        let words = Words::zeroed(next)?;
        let (levels, counts) = (levels.into(), Counts::default());
        Ok(Self { words, levels, lead, pages, clock, share, counts })
    }

    #[inline]
    fn level(&self, level: usize) -> &[AtomicU64] {
        &self.words[self.levels[level].clone()]
    }

    /// A time that is later than all before.
    #[inline]
    pub(crate) fn tick(&self) -> u64 {
        self.clock.tick()
    }

    /// Whether the block of a page is in use.
    #[inline]
    fn is_in_use(&self, page: usize) -> bool {
        // RELAXED: R1. What another thread begins to use meanwhile is none of this one's pages.
        self.level(1)[(self.lead + page) >> BLOCK_SHIFT].load(Relaxed) & BELOW != 0
    }

    /// A page's record. Looking at it takes no memory.
    #[inline]
    fn record(&self, page: usize) -> u64 {
        // RELAXED: R1.
        if self.is_in_use(page) { self.level(0)[self.lead + page].load(Relaxed) } else { 0 }
    }

    /// Changes a page's record, if the change is for such; what it was before.
    ///
    /// As plain as can be: unoptimised, it runs on a small signal stack.
    #[inline]
    fn change(&self, page: usize, change: &Change) -> u64 {
        if !self.is_in_use(page) {
            if !change.is_for(0) || change.set == 0 {
                return 0;
            }
            self.begin_use((self.lead + page) >> BLOCK_SHIFT);
        }
        let record = &self.level(0)[self.lead + page];
        // RELAXED: R1.
        let mut before = record.load(Relaxed);
        while change.is_for(before) {
            let after = before & change.keeps | change.set;
            match record.compare_exchange_weak(before, after, Relaxed, Relaxed) {
                Ok(_) => {
                    self.counts.note(before, after);
                    break;
                }
                Err(now) => before = now,
            }
        }
        before
    }

    /// How many pages there are of a kind, in a region that has a bound.
    pub(crate) fn number_of(&self, kind: Kind) -> usize {
        // RELAXED: a number that guards nothing.
        self.counts.0[kind as usize].load(Relaxed)
    }

    /// A block is in use from now on.
    #[cold]
    fn begin_use(&self, block: usize) {
        // RELAXED: here and below, who looks without a lock may see it late, and whoever excludes
        // the block's pages sees all of it (R1).
        if self.level(1)[block].fetch_or(1, Relaxed) & BELOW != 0 {
            // Another thread was faster.
            return;
        }
        if let Some(share) = &self.share {
            share.add_table();
        }
        let mut at = block;
        for level in 2..self.levels.len() {
            at >>= BLOCK_SHIFT;
            if self.level(level)[at].fetch_add(1, Relaxed) & BELOW != 0 {
                break;
            }
        }
    }

    /// Gives back the blocks of some pages, whose records say nothing. R4 is up to the caller.
    pub(crate) fn end_use(&self, pages: Range<usize>) {
        let blocks = self.blocks(&pages);
        for block in blocks.clone() {
            // What its records say of times is to be said by it.
            let first = (block * BLOCK).saturating_sub(self.lead);
            let time = self.time(self.whole_blocks(&(first..first + 1)));
            // RELAXED: R4.
            let word = &self.level(1)[block];
            word.store(time | word.load(Relaxed) & BELOW, Relaxed);
        }
        let first = self.levels[0].start + blocks.start * BLOCK;
        if self.words.discard(first..first + blocks.len() * BLOCK).is_err() {
            // A filter: they stay.
            return;
        }
        for block in blocks {
            // RELAXED: R4.
            let word = &self.level(1)[block];
            word.store(word.load(Relaxed) & !BELOW, Relaxed);
            if let Some(share) = &self.share {
                share.remove_table();
            }
            let mut at = block;
            for level in 2..self.levels.len() {
                at >>= BLOCK_SHIFT;
                // RELAXED: as in `begin_use`.
                if self.level(level)[at].fetch_sub(1, Relaxed) & BELOW != 1 {
                    break;
                }
            }
        }
    }

    fn blocks(&self, pages: &Range<usize>) -> Range<usize> {
        let (start, end) = (self.lead + pages.start, self.lead + pages.end);
        start >> BLOCK_SHIFT..end.div_ceil(BLOCK)
    }

    /// The pages of all the blocks that some pages are in.
    pub(crate) fn whole_blocks(&self, pages: &Range<usize>) -> Range<usize> {
        let blocks = self.blocks(pages);
        let start = (blocks.start * BLOCK).saturating_sub(self.lead);
        start..(blocks.end * BLOCK - self.lead).min(self.pages)
    }

    /// The runs of whole blocks that are in use though none of their records says anything, among
    /// those that some pages are in. What is found stays so only while the caller excludes it.
    pub(crate) fn empty_blocks(&self, pages: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let whole = self.whole_blocks(pages);
        let mut next = whole.start;
        let is_empty = |page: usize| {
            let block = self.whole_blocks(&(page..page + 1));
            self.is_in_use(page) && block.into_iter().all(|page| self.record(page) & BELOW == 0)
        };
        std::iter::from_fn(move || {
            loop {
                let start = self.next_in_use(next..whole.end)?;
                let mut end = start;
                while end < whole.end && is_empty(end) {
                    end = self.whole_blocks(&(end..end + 1)).end;
                }
                if end > start {
                    next = end;
                    return Some(start..end);
                }
                next = self.whole_blocks(&(start..start + 1)).end;
            }
        })
    }

    /// The first of some pages whose block is in use.
    fn next_in_use(&self, pages: Range<usize>) -> Option<usize> {
        let (mut at, end) = (self.lead + pages.start, self.lead + pages.end);
        // RELAXED: as in `begin_use`.
        let is_unused = |level: usize, at: usize| {
            self.level(level)[at >> (BLOCK_SHIFT * level)].load(Relaxed) & BELOW == 0
        };
        while at < end {
            if !is_unused(1, at) {
                return Some(at - self.lead);
            }
            // As much as is not in use together.
            let mut level = 1;
            while level + 1 < self.levels.len() && is_unused(level + 1, at) {
                level += 1;
            }
            let shift = BLOCK_SHIFT * level;
            at = ((at >> shift) + 1) << shift;
        }
        None
    }

    /// The latest time at which one of the pages was given back, or filled at a time.
    #[inline]
    pub(crate) fn time(&self, pages: Range<usize>) -> u64 {
        let records = pages.clone().map(|page| self.record(page));
        let mut time = records.max().unwrap_or(0);
        let (mut first, mut last) = (self.lead + pages.start, self.lead + pages.end - 1);
        for level in 1..self.levels.len() {
            (first, last) = (first >> BLOCK_SHIFT, last >> BLOCK_SHIFT);
            // RELAXED: R1.
            let words = self.level(level)[first..=last].iter().map(|word| word.load(Relaxed));
            time = time.max(words.max().unwrap_or(0));
        }
        time & !BELOW
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
        self.record(page) & (PRESENT | DIRTY | HELD) == PRESENT
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
        self.record(page) & flag != 0
    }

    /// The pages were filled by the caller, who holds the read lock; how, if that matters. How many
    /// were missing before.
    #[inline]
    pub(crate) fn fill(&self, pages: Range<usize>, dirty: bool, how: Option<Filling>) -> usize {
        let kept = if dirty { HELD } else { HELD | DIRTY };
        let set = PRESENT | if dirty { DIRTY } else { 0 };
        // R1. Only one fill of a missing page succeeds, and others mark writes only when this has
        // been stored.
        let change = match how {
            Some(how) => Change::all(kept, set | how.record()),
            None => Change::all(kept | !BELOW, set),
        };
        let mut new = 0;
        for page in pages {
            new += usize::from(self.change(page, &change) & PRESENT == 0);
        }
        new
    }

    /// A page that is present is about to be written, by a holder of the read lock; whether it is
    /// present.
    pub(crate) fn mark_dirty(&self, page: usize) -> bool {
        self.change(page, &Change::those(PRESENT, true, DIRTY)) & PRESENT != 0
    }

    /// The bytes of a page could not be had, or met the bound, unless another thread had them and
    /// filled it.
    pub(crate) fn mark_failed(&self, page: usize, is_refused: bool) {
        let how = if is_refused { FAILED | REFUSED } else { FAILED };
        // It failed already if it is present by now, and nothing is to be done.
        self.change(page, &Change::those(PRESENT, false, how));
    }

    /// The pages were written to the source, by the caller, who excludes them.
    pub(crate) fn mark_clean(&self, pages: Range<usize>) {
        for page in pages {
            self.change(page, &Change::all(!(DIRTY | STUCK), 0));
        }
    }

    /// Those of the pages that are dirty could not be given back by the caller, who excludes faults
    /// from them.
    pub(crate) fn mark_stuck(&self, pages: Range<usize>) {
        for page in pages {
            // Nothing is to be done for a clean one.
            self.change(page, &Change::those(DIRTY, true, STUCK));
        }
    }

    /// The pages were given back, by the caller, who excludes them. How many were present.
    pub(crate) fn forget(&self, pages: Range<usize>) -> usize {
        self.raise_times(pages.clone(), self.tick());
        let mut gone = 0;
        for page in self.pages_in_use(pages) {
            // Who holds it fills it again.
            gone += (self.change(page, &Change::all(!BELOW | HELD, 0)) & PRESENT) as usize;
        }
        gone
    }

    /// Makes the times of pages this one, which is later than all before, by words of as high a
    /// level as are above none but these. Those of a block that is not in use are raised all.
    fn raise_times(&self, pages: Range<usize>, time: u64) {
        // RELAXED: R1, for all of the pages.
        let raise = |word: &AtomicU64| {
            let _ = word.fetch_update(Relaxed, Relaxed, |word| Some(time | word & BELOW));
        };
        let end = self.lead + pages.end;
        let mut at = self.lead + pages.start;
        while at < end {
            // The first word of a level is above no page before the first.
            let covers = |level: usize| {
                let shift = BLOCK_SHIFT * level;
                let (start, last) = (at >> shift << shift, ((at >> shift) + 1) << shift);
                (start == at || at == self.lead) && (last <= end || end == self.lead + self.pages)
            };
            let mut level = (1..self.levels.len()).rev().find(|&level| covers(level)).unwrap_or(0);
            if level == 0 && !self.is_in_use(at - self.lead) {
                level = 1;
            }
            let shift = BLOCK_SHIFT * level;
            raise(&self.level(level)[at >> shift]);
            at = ((at >> shift) + 1) << shift;
        }
    }

    /// The pages are to stay, from now on or when they have come. The caller locks the list of what
    /// is held, which the VMA's lock, taken afterwards, makes seen by who excludes the page.
    pub(crate) fn hold(&self, pages: Range<usize>) {
        for page in pages {
            self.change(page, &Change::all(u64::MAX, HELD));
        }
    }

    /// The pages are held no longer. Seen late, they stay a little longer.
    pub(crate) fn let_go(&self, pages: Range<usize>) {
        for page in pages {
            self.change(page, &Change::all(!HELD, 0));
        }
    }

    /// Goes on from the times of other records, of the same clock, of whose pages none is here.
    pub(crate) fn begin_later(&self) {
        self.raise_times(0..self.pages, self.tick());
    }

    /// The pages of those blocks that all lie within some pages, or of none.
    pub(crate) fn within_blocks(
        &self,
        blocks: &Range<usize>,
        pages: &Range<usize>,
    ) -> Range<usize> {
        let (first, last) = (self.lead + pages.start, self.lead + pages.end);
        let start = if pages.start == 0 { 0 } else { first.next_multiple_of(BLOCK) - self.lead };
        let end = if pages.end == self.pages {
            pages.end
        } else {
            (last / BLOCK * BLOCK).saturating_sub(self.lead)
        };
        blocks.start.max(start)..blocks.end.min(end)
    }

    fn pages_in_use(&self, within: Range<usize>) -> impl Iterator<Item = usize> {
        let mut next = 0..0;
        let mut rest = within;
        std::iter::from_fn(move || {
            if next.is_empty() {
                let start = self.next_in_use(rest.clone())?;
                let end = self.whole_blocks(&(start..start + 1)).end.min(rest.end);
                (next, rest.start) = (start..end, end);
            }
            next.next()
        })
    }

    /// The runs of pages in `within` that have the property, one after the other. It is none of
    /// pages whose records say nothing.
    pub(crate) fn runs(
        &self,
        within: Range<usize>,
        property: impl Fn(&Self, usize) -> bool,
    ) -> impl Iterator<Item = Range<usize>> {
        let mut next = within.start;
        std::iter::from_fn(move || {
            let start = self.pages_in_use(next..within.end).find(|&page| property(self, page))?;
            let end = (start..within.end).find(|&page| !property(self, page));
            next = end.unwrap_or(within.end);
            Some(start..next)
        })
    }

    /// The next run of pages in `within` that are neither present nor have failed, but for
    /// `wanted`, which is one whatever its record says.
    pub(crate) fn next_missing(
        &self,
        within: Range<usize>,
        wanted: Option<usize>,
    ) -> Option<Range<usize>> {
        let is_missing =
            |&page: &usize| Some(page) == wanted || self.record(page) & (PRESENT | FAILED) == 0;
        let start = within.clone().find(is_missing)?;
        let end = (start..within.end).find(|page| !is_missing(page));
        Some(start..end.unwrap_or(within.end))
    }

    /// Whether any of the pages has the property, which is none of pages whose records say nothing.
    pub(crate) fn has_any(
        &self,
        within: Range<usize>,
        property: impl Fn(&Self, usize) -> bool,
    ) -> bool {
        self.pages_in_use(within).any(|page| property(self, page))
    }

    /// How many pages have the property, which is none of pages whose records say nothing.
    pub(crate) fn count(&self, mut property: impl FnMut(&Self, usize) -> bool) -> usize {
        self.pages_in_use(0..self.pages).filter(|&page| property(self, page)).count()
    }

    /// When a page that is present was filled, in a region that has a bound.
    pub(crate) fn filled_at(&self, page: usize) -> Option<Filling> {
        let record = self.record(page);
        let filling = Filling { time: record & !BELOW, is_hot: record & HOT != 0 };
        (record & PRESENT != 0).then_some(filling)
    }

    pub(crate) fn len(&self) -> usize {
        self.pages
    }
}

impl Drop for Records {
    /// What they count for of a bound is no more: a region that has moved has others.
    fn drop(&mut self) {
        let Some(share) = self.share.take() else { return };
        let mut rest = 0..self.pages;
        while let Some(page) = self.next_in_use(rest.clone()) {
            share.remove_table();
            rest.start = self.whole_blocks(&(page..page + 1)).end;
        }
    }
}

#[cfg(test)]
impl Records {
    /// Of so many pages, for a region that has no bound.
    pub(crate) fn for_test(pages: usize) -> Self {
        Self::new(pages, 0, Arc::default(), None).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filling(records: &Records) -> Option<Filling> {
        Some(Filling { time: records.tick(), is_hot: false })
    }

    #[test]
    fn a_page_has_a_history() {
        let records = Records::for_test(10);
        assert_eq!(records.time(0..10), 0);
        assert_eq!(records.fill(2..5, false, None), 3);
        assert_eq!(records.fill(4..6, true, filling(&records)), 1);
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
        assert_eq!(records.filled_at(5).map(|filling| filling.time), Some(before));
        assert!(records.filled_at(4).is_none() && records.count(Records::is_present) == 1);
        records.mark_stuck(5..6);
        assert!(records.is_stuck(5) && records.is_dirty(5) && !records.is_evictable(5));
        records.mark_clean(5..6);
        assert!(!records.is_stuck(5) && records.is_evictable(5));
        records.mark_failed(9, false);
        records.mark_failed(8, true);
        records.mark_failed(5, false);
        assert!(records.has_failed(9) && !records.has_failed(5), "it is present");
        assert!(records.has_failed(8) && records.was_refused(8) && !records.was_refused(9));
        let moved = Records::new(20, 0, Arc::clone(&records.clock), None).unwrap();
        moved.begin_later();
        assert!(moved.time(0..1) > records.time(0..10) && moved.tick() > moved.time(0..20));
        assert!(!moved.has_failed(9) && !moved.is_present(5));
    }

    #[test]
    fn a_page_is_held_whatever_becomes_of_it() {
        let records = Records::for_test(4);
        records.hold(1..3);
        records.fill(0..4, false, filling(&records));
        let evictable = || records.runs(0..4, Records::is_evictable).collect::<Vec<_>>();
        assert_eq!(evictable(), [0..1, 3..4]);
        assert_eq!(records.forget(1..2), 1);
        assert!(records.is_held(1) && !records.is_present(1));
        records.fill(1..2, true, None);
        records.let_go(1..3);
        assert_eq!(evictable(), [0..1, 2..4]);
    }

    /// Random steps beside plain arrays, at places that are far apart and beside each other.
    #[test]
    fn records_of_many_pages_are_as_plain_ones_are() {
        const PAGES: usize = 3 << 18;
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % below
        };
        for lead in [0, 1, 511] {
            let share = Arc::new(Share::for_test(4096));
            let records =
                Records::new(PAGES, lead, Arc::default(), Some(Arc::clone(&share))).unwrap();
            let (mut present, mut times) = (vec![false; PAGES], vec![0; PAGES]);
            for step in 0..3000 {
                let centre = [0, 511, 512, 1 << 18, PAGES - 1][random(5)];
                let first = (centre + random(600)).saturating_sub(300).min(PAGES - 1);
                let most = [1, 20, 1500, PAGES][if step % 50 == 0 { 3 } else { random(3) }];
                let pages = first..(first + 1 + random(most)).min(PAGES);
                let before = records.time(pages.clone());
                if random(2) == 0 && pages.len() <= 1500 {
                    let new = present[pages.clone()].iter().filter(|present| !**present).count();
                    let filling = filling(&records);
                    assert_eq!(records.fill(pages.clone(), false, filling), new);
                    present[pages.clone()].fill(true);
                    times[pages.clone()].fill(filling.unwrap().time);
                } else {
                    let gone = present[pages.clone()].iter().filter(|present| **present).count();
                    assert_eq!(records.forget(pages.clone()), gone);
                    assert!(
                        pages
                            .clone()
                            .step_by(97)
                            .all(|page| { records.time(page..page + 1) > before }),
                        "R3"
                    );
                    present[pages.clone()].fill(false);
                    for empty in records.empty_blocks(&pages).collect::<Vec<_>>() {
                        assert!(!present[empty.clone()].iter().any(|present| *present));
                        let time = records.time(empty.clone());
                        records.end_use(empty.clone());
                        assert!(records.time(empty.start..empty.start + 1) >= time, "R3");
                    }
                }
                if step % 100 == 0 {
                    let found: Vec<_> = records.runs(0..PAGES, Records::is_present).collect();
                    let shown: usize = found.iter().map(Range::len).sum();
                    assert_eq!(shown, present.iter().filter(|present| **present).count());
                    assert!(found.into_iter().flatten().all(|page| present[page]));
                    let full: std::collections::BTreeSet<_> = (0..PAGES)
                        .filter(|&page| present[page])
                        .map(|page| (lead + page) / BLOCK)
                        .collect();
                    assert_eq!(share.tables(), full.len(), "blocks in use");
                    assert!((0..PAGES).filter(|&page| present[page]).all(|page| {
                        records.filled_at(page).is_some_and(|filling| filling.time == times[page])
                    }));
                }
            }
            assert!(share.tables() > 0);
            drop(records);
            assert_eq!(share.tables(), 0);
        }
    }
}
