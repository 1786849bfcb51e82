//! What was filled lately in the regions of a bound, in order, and what has gone lately: by these
//! the evictor knows what to give back without a look at all that is present.
//!
//! Both are hints. A fill that is missed is found by a look at all records, when there is nothing
//! else to give back; a page that is not known to have gone is taken to be new.
#![expect(clippy::disallowed_types, reason = "relaxed words: hints that guard no memory")]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::sys::{Errno, Words};

/// Fills in order. Threads that fault add to it, in signal handlers perhaps; one thread takes.
#[derive(Debug)]
pub(crate) struct Fills {
    /// A ring of them, of a power of two.
    words: Words,
    next: AtomicU64,
    taken: AtomicU64,
}

/// A granule, or what was missing of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    /// The region's number, as far as it is kept.
    pub(crate) region: usize,
    /// The first page.
    pub(crate) page: usize,
}

impl Filled {
    const PAGE_BITS: u32 = 36;
    const REGION_BITS: u32 = 20;
    /// So much of a region's number is kept: what it is taken for otherwise is looked at, no more.
    pub(crate) const REGIONS: usize = 1 << Self::REGION_BITS;

    fn word(self, lap: u64) -> u64 {
        let region = (self.region % Self::REGIONS) as u64;
        lap << (Self::PAGE_BITS + Self::REGION_BITS) | region << Self::PAGE_BITS | self.page as u64
    }

    fn of(word: u64) -> Self {
        let page = word & ((1 << Self::PAGE_BITS) - 1);
        let region = (word >> Self::PAGE_BITS) as usize % Self::REGIONS;
        Self { region, page: page as usize }
    }
}

impl Fills {
    /// For a bound of so many pages.
    pub(crate) fn new(pages: usize) -> Result<Self, Errno> {
        let words = pages.checked_next_power_of_two().ok_or(Errno::NOMEM)?.max(512);
        let (next, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { words: Words::zeroed(words)?, next, taken })
    }

    /// The number of times that the ring was gone round before, so that a word of the last time is
    /// told from one of this: never 0.
    fn lap(&self, at: u64) -> u64 {
        at / self.words.len() as u64 % 255 + 1
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        &self.words[at as usize % self.words.len()]
    }

    /// Adds one; whether it is time to take them.
    #[inline]
    pub(crate) fn add(&self, filled: Filled) -> bool {
        // RELAXED: here and below, hints.
        let at = self.next.fetch_add(1, Relaxed);
        self.word(at).store(filled.word(self.lap(at)), Relaxed);
        // It may have been passed over by now.
        at.saturating_sub(self.taken.load(Relaxed)) > self.words.len() as u64 / 2
    }

    /// Takes those that there are, in order. Whether that was all: not, if there were too many.
    pub(crate) fn take(&self, mut each: impl FnMut(Filled)) -> bool {
        let (mut at, next) = (self.taken.load(Relaxed), self.next.load(Relaxed));
        let most = self.words.len() as u64;
        let is_all = next - at <= most;
        if !is_all {
            at = next - most;
        }
        while at < next {
            let word = self.word(at).load(Relaxed);
            if word >> (Filled::PAGE_BITS + Filled::REGION_BITS) == self.lap(at) {
                each(Filled::of(word));
            } else if next - at <= most / 2 {
                // It is just being added. One that is not for so long has been overwritten.
                break;
            }
            at += 1;
        }
        self.taken.store(at, Relaxed);
        is_all
    }
}

/// Granules that have gone lately: those that come again soon are used often.
#[derive(Debug)]
pub(crate) struct Gone {
    /// Pairs of words, each the upper half of a granule's hash, with whether it was hot, and the
    /// number of granules that had gone before.
    words: Words,
    times: AtomicU64,
    /// What has gone more than so many granules ago is forgotten.
    most: u64,
}

/// In the upper half of a word: whether the granule was hot.
const WAS_HOT: u64 = 2;

/// A number for a region and one of its granules or pages; numbers that are near to each other are
/// made far from each other.
pub(crate) fn hash(region: usize, number: usize) -> u64 {
    let mut hash = (number as u64).wrapping_add((region as u64) << 40);
    for _ in 0..2 {
        hash = (hash ^ hash >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    hash
}

impl Gone {
    /// For a bound of so many pages.
    pub(crate) fn new(pages: usize) -> Result<Self, Errno> {
        let words = pages.checked_next_power_of_two().ok_or(Errno::NOMEM)?.saturating_mul(2);
        let words = Words::zeroed(words.max(512))?;
        Ok(Self { words, times: AtomicU64::new(0), most: pages.min(u32::MAX as usize) as u64 })
    }

    /// The two places that a granule may be at, and the upper half of its words.
    fn places(&self, region: usize, granule: usize) -> ([&AtomicU64; 2], u64) {
        let hash = hash(region, granule);
        let pair = (hash >> 16) as usize % (self.words.len() / 2);
        let tag = (hash | 1) & 0xFFFF_FFFF & !WAS_HOT;
        ([&self.words[2 * pair], &self.words[2 * pair + 1]], tag)
    }

    /// How many granules have gone since what a word is of.
    fn age(word: u64, now: u64) -> u64 {
        if word == 0 { u64::MAX } else { u64::from((now as u32).wrapping_sub(word as u32)) }
    }

    /// A granule has gone, which was hot or not.
    pub(crate) fn add(&self, region: usize, granule: usize, was_hot: bool) {
        let now = self.times.fetch_add(1, Relaxed);
        let (places, tag) = self.places(region, granule);
        let tag = if was_hot { tag | WAS_HOT } else { tag };
        let oldest = places.into_iter().max_by_key(|word| Self::age(word.load(Relaxed), now));
        if let Some(word) = oldest {
            word.store(tag << 32 | now & 0xFFFF_FFFF, Relaxed);
        }
    }

    /// Whether a granule that comes had gone lately, and was hot then.
    #[inline]
    pub(crate) fn has_come_again(&self, region: usize, granule: usize) -> Option<bool> {
        let now = self.times.load(Relaxed);
        let ([first, second], tag) = self.places(region, granule);
        // As plain as can be: unoptimised, it runs on a small signal stack.
        let first = self.is_of(first, tag, now);
        if first.is_some() { first } else { self.is_of(second, tag, now) }
    }

    fn is_of(&self, place: &AtomicU64, tag: u64, now: u64) -> Option<bool> {
        let word = place.load(Relaxed);
        let found = word >> 32;
        let is_it = found & !WAS_HOT == tag && Self::age(word, now) <= self.most;
        is_it.then_some(found & WAS_HOT != 0)
    }
}

/// How granules have come since the evictor looked last: what it divides a bound by.
#[derive(Debug, Default)]
pub(crate) struct Came {
    /// Pages that were read from a source.
    read: AtomicUsize,
    /// Pages whose bytes were kept.
    kept: AtomicUsize,
    /// Granules that had gone lately, or were kept, and were not hot then, and that were.
    again: [AtomicUsize; 2],
}

/// As of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) read: usize,
    pub(crate) kept: usize,
    pub(crate) again: [usize; 2],
}

impl Came {
    #[inline]
    pub(crate) fn add_read(&self, pages: usize) {
        self.read.fetch_add(pages, Relaxed);
    }

    #[inline]
    pub(crate) fn add_kept(&self, pages: usize) {
        self.kept.fetch_add(pages, Relaxed);
    }

    #[inline]
    pub(crate) fn add_again(&self, was_hot: bool) {
        self.again[usize::from(was_hot)].fetch_add(1, Relaxed);
    }

    /// What was counted since this was called last.
    pub(crate) fn take(&self) -> Counted {
        let take = |count: &AtomicUsize| count.swap(0, Relaxed);
        let again = [take(&self.again[0]), take(&self.again[1])];
        Counted { read: take(&self.read), kept: take(&self.kept), again }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_are_taken_in_order_until_there_are_too_many() {
        let fills = Fills::new(600).unwrap();
        let filled = |number: usize| Filled { region: number % 7, page: number << 20 };
        let mut is_time = 0;
        for round in 0..1000 {
            let mut taken = Vec::new();
            (0..round).for_each(|number| is_time += usize::from(fills.add(filled(number))));
            assert!(fills.take(|filled| taken.push(filled)));
            assert_eq!(taken, (0..round).map(filled).collect::<Vec<_>>());
        }
        assert_eq!(is_time, (0..1000_usize).map(|round| round.saturating_sub(513)).sum::<usize>());
        (0..2000).for_each(|number| _ = fills.add(filled(number)));
        let mut taken = Vec::new();
        assert!(!fills.take(|filled| taken.push(filled)), "too many");
        assert_eq!(taken, (2000 - 1024..2000).map(filled).collect::<Vec<_>>());
        assert!(fills.take(|_| panic!("there is none")));
    }

    #[test]
    fn what_has_gone_lately_is_known_for_most() {
        let gone = Gone::new(1000).unwrap();
        for granule in 0..10_000 {
            let was_hot = granule % 3 == 0;
            assert_eq!(gone.has_come_again(3, granule), None);
            gone.add(3, granule, was_hot);
            assert_eq!(gone.has_come_again(3, granule), Some(was_hot));
            assert_eq!(gone.has_come_again(4, granule), None);
        }
        let is_known = |granule| gone.has_come_again(3, granule) == Some(granule % 3 == 0);
        let known = (9000..10_000).filter(|&granule| is_known(granule)).count();
        assert!(known > 850, "{known} of 1000");
        assert!((0..8000).all(|granule| gone.has_come_again(3, granule).is_none()));
    }
}
